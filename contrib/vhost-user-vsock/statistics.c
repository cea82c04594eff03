/*
 * SPDX-License-Identifier: MIT
 *
 * statistics.c: what was refused or cut, in the log, and all that was counted,
 * as a line of JSON.
 */

#include "serve.h"

#include <stdio.h>
#include <stdlib.h>

/* How loud each note is: what happens every day is not news. */
static enum log_level note_level(enum vsock_note what)
{
    switch (what) {
    case VSOCK_NOTE_UNKNOWN_TUPLE:
    case VSOCK_NOTE_CLIENT_GONE:
    case VSOCK_NOTE_GUEST_REFUSED:
    case VSOCK_NOTE_UNDELIVERED:
        return VLOG_DEBUG;
    case VSOCK_NOTE_NO_LISTENER:
    case VSOCK_NOTE_NOT_SERVED:
    case VSOCK_NOTE_BAD_LINE:
    case VSOCK_NOTE_GUEST_SILENT:
    case VSOCK_NOTE_FAULT:
        return VLOG_INFO;
    default:
        return VLOG_WARN;
    }
}

/* What a lack of ours has caused: the guest's noise must not hide it. */
static bool is_lack(enum vsock_note what)
{
    return what == VSOCK_NOTE_NO_MEMORY || what == VSOCK_NOTE_TABLE_FULL ||
           what == VSOCK_NOTE_BACKLOG || what == VSOCK_NOTE_HOST_ERROR ||
           what == VSOCK_NOTE_EVICTED;
}

void host_note(void *opaque, enum vsock_note what, const struct vsock_conn *c,
               const struct vsock_hdr *h)
{
    static struct log_rate lacks[VSOCK_NOTES];
    struct log_rate *rate = is_lack(what) ? &lacks[what] : &log_noise;
    const char *text = vsock_note_text(what);
    struct host *host = opaque;

    if (what == VSOCK_NOTE_NOT_SERVED && h) {
        host->refused_cid = h->dst_cid;
        host->refused_port = h->dst_port;
    } else if (what == VSOCK_NOTE_NO_LISTENER && c) {
        host->refused_cid = c->parent_cid;
        host->refused_port = c->parent_port;
    }
    if (h) {
        log_rated_by(rate, note_level(what),
                     "%s (op %u, from %llu:%u to "
                     "%llu:%u, length %u)",
                     text, h->op, (unsigned long long)h->src_cid, h->src_port,
                     (unsigned long long)h->dst_cid, h->dst_port, h->len);
    } else if (c && c->state != VSOCK_CLIENT) {
        log_rated_by(rate, note_level(what),
                     "%s (guest port %u, parent port "
                     "%u)",
                     text, c->guest_port, c->parent_port);
    } else {
        log_rated_by(rate, note_level(what), "%s", text);
    }
}

/* All that was counted, as members of a JSON object. */
static void put_counts(const struct host *h, FILE *f)
{
    const struct vsock_stats *s = vsock_stats(h->vsock);
    const struct {
        const char *name;
        uint64_t value;
    } values[] = {
        { "connections", vsock_count(h->vsock) },
        { "draining", vsock_draining(h->vsock) },
        { "reserved_bytes", vsock_reserved(h->vsock) },
        { "opened_by_guest", s->guest_opened },
        { "opened_by_host", s->host_opened },
        { "packets_from_guest", s->tx_packets },
        { "packets_to_guest", s->rx_packets },
        { "bytes_from_guest", s->bytes_to_host },
        { "bytes_to_guest", s->bytes_to_guest },
        { "credit_requests", s->credit_requests },
        { "bad_chains", h->device.bad_chains },
        { "interrupts", h->interrupts },
        { "wakeups", h->wakeups },
        { "dials", h->dials },
        { "drivers", h->drivers },
        { "wrong_heartbeats", h->wrong_heartbeats },
        { "relayed_heartbeats", h->relayed_heartbeats },
        { "refused_cid", h->refused_cid },
        { "refused_port", h->refused_port },
    };
    const char *comma = "";

    for (unsigned i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        fprintf(f, "\"%s\": %llu, ", values[i].name,
                (unsigned long long)values[i].value);
    }
    fputs("\"refusals\": {", f);
    for (unsigned i = 0; i < VSOCK_NOTES; i++) {
        if (s->notes[i]) {
            fprintf(f, "%s\"%s\": %llu", comma, vsock_note_name(i),
                    (unsigned long long)s->notes[i]);
            comma = ", ";
        }
    }
    fputs("}", f);
}

/* One line of JSON on stderr. */
void host_statistics(const struct host *h)
{
    char *line = NULL;
    size_t size;
    FILE *f = open_memstream(&line, &size);

    if (!f) {
        return;
    }
    fputs("{", f);
    put_counts(h, f);
    fputs("}\n", f);
    if (fclose(f) == 0) {
        log_write(line, size);
    }
    free(line);
}

static void put_port(FILE *f, const struct vsock_port *p, const char *before)
{
    fprintf(f,
            "%s\"connections\": %llu, \"open\": %llu, \"refused\": %llu, "
            "\"bytes_from_guest\": %llu, \"bytes_to_guest\": %llu",
            before, (unsigned long long)p->connections,
            (unsigned long long)p->open, (unsigned long long)p->refused,
            (unsigned long long)p->bytes_to_host,
            (unsigned long long)p->bytes_to_guest);
    if (p->refused) {
        fprintf(f, ", \"cause\": \"%s\"", vsock_note_name(p->why));
    }
    fputs("}", f);
}

void host_put_statistics(const struct host *h, FILE *f)
{
    const struct vsock_port *ports;
    unsigned count;

    put_counts(h, f);
    ports = vsock_ports(h->vsock, &count);
    fputs(", \"ports\": [", f);
    for (unsigned i = 0; i < count; i++) {
        fprintf(f, "%s{\"side\": \"%s\", \"port\": %u, ", i ? ", " : "",
                ports[i].of_guest ? "enclave" : "parent", ports[i].port);
        put_port(f, &ports[i], "");
    }
    fputs("]", f);
    put_port(f, vsock_other_ports(h->vsock), ", \"other_ports\": {");
}

void host_port(void *opaque, const struct vsock_port *p, bool refused)
{
    struct host *h = opaque;
    const char *side = p->of_guest ? "enclave" : "parent";

    if (refused) {
        control_event(h,
                      "{\"event\": \"refused\", \"side\": \"%s\", "
                      "\"port\": %u, \"cause\": \"%s\"}",
                      side, p->port, vsock_note_name(p->why));
    } else {
        control_event(h,
                      "{\"event\": \"connected\", \"side\": \"%s\", "
                      "\"port\": %u}",
                      side, p->port);
    }
}
