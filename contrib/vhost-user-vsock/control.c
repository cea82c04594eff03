/*
 * SPDX-License-Identifier: MIT
 *
 * control.c: the owner of the process, who holds the other end of its lifeline,
 * asks, and is told what happens. Nobody else can: there is no path to it.
 *
 * The lifeline must be a socket that keeps messages apart (SOCK_SEQPACKET), or
 * what is written there means nothing. A message is a line of JSON:
 *
 *   {"id": 1, "do": "hello", "version": 1}     first of all
 *   {"id": 2, "do": "stats"}
 *   {"id": 3, "do": "dump", "snaplen": 100}    with a descriptor (SCM_RIGHTS)
 *
 * Each gets one answer with its id, of what it asked for or {"error": "..."}.
 * Between answers come events, {"event": "..."}, once hello was said. All of
 * them, and each member, are in docs/vsock.md. What is on the line is taken as
 * if it were a stranger's: an owner passes on what its own clients say.
 */

#include "control-line.h"
#include "serve.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unversioned"
#endif

/* Of what is said here. */
#define CONTROL_VERSION 1

/* A dump's, unless told otherwise: all data, and a GiB of them. */
#define CONTROL_DUMP_LIMIT (1u << 30)

/* A request while it is answered. */
struct request {
    struct control_line line;
    uint64_t id;
    int fd;  /* that came with it, or -1 */
    FILE *f; /* its answer: members, each with a comma before it */
    char wrong[256];
};

/* False: it does not take it now, or at all. */
static bool send_line(struct host *h, const char *text, size_t size)
{
    return send(h->options->lifeline_fd, text, size,
                MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
}

void control_event(struct host *h, const char *fmt, ...)
{
    char line[512];
    va_list ap;
    int n;

    if (!h->control) {
        return;
    }
    va_start(ap, fmt);
    n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
    va_end(ap);
    if (n < 0 || n >= (int)sizeof(line) - 1) {
        return;
    }
    line[n++] = '\n';
    h->lost_events += !send_line(h, line, n);
}

/* False, with the words. */
static bool __attribute__((format(printf, 2, 3))) refuse(struct request *r,
                                                         const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r->wrong, sizeof(r->wrong), fmt, ap);
    va_end(ap);
    return false;
}

static bool number(struct request *r, const char *name, uint64_t min,
                   uint64_t max, uint64_t *value)
{
    return control_number(&r->line, name, min, max, value) ||
           refuse(r, "%s is no number from %llu to %llu", name,
                  (unsigned long long)min, (unsigned long long)max);
}

/* Nothing is left that nobody knows. */
static bool complete(struct request *r)
{
    const char *left = control_left(&r->line);

    return !left || refuse(r, "%s is not known here", left);
}

/* What can be asked. False: refuse() was called. */

static bool do_hello(struct host *h, struct request *r)
{
    uint64_t version = 0;

    if (!number(r, "version", CONTROL_VERSION, CONTROL_VERSION, &version) ||
        !complete(r)) {
        return false;
    }
    if (!version) {
        return refuse(r, "version is missing; this is version %d",
                      CONTROL_VERSION);
    }
    h->control = true;
    fprintf(r->f, ", \"control\": %d, \"program\": \"vhost-user-vsock %s\"",
            CONTROL_VERSION, VERSION);
    return true;
}

static bool do_stats(struct host *h, struct request *r)
{
    if (!complete(r)) {
        return false;
    }
    fputs(", ", r->f);
    host_put_statistics(h, r->f);
    fprintf(r->f, ", \"lost_events\": %llu",
            (unsigned long long)h->lost_events);
    return true;
}

static bool do_dump(struct host *h, struct request *r)
{
    uint64_t snaplen = VSOCK_MAX_PAYLOAD, limit = CONTROL_DUMP_LIMIT;
    const char *wrong;
    uint32_t id;

    if (!number(r, "snaplen", 0, VSOCK_MAX_PAYLOAD, &snaplen) ||
        !number(r, "limit", PCAP_FILE_HDR_SIZE, INT64_MAX, &limit) ||
        !complete(r)) {
        return false;
    }
    if (r->fd < 0) {
        return refuse(r, "no descriptor has come with it");
    }
    wrong = dump_start(h, r->fd, snaplen, limit, &id);
    if (wrong) {
        return refuse(r, "%s", wrong);
    }
    r->fd = -1;
    fprintf(r->f, ", \"dump\": %u", id);
    return true;
}

static bool do_dump_stop(struct host *h, struct request *r)
{
    uint64_t id = 0;
    char text[128];

    if (!number(r, "dump", 1, UINT32_MAX, &id) || !complete(r)) {
        return false;
    }
    if (!dump_stop(h, id, text, sizeof(text))) {
        return refuse(r, "there is no dump %u", (unsigned)id);
    }
    fprintf(r->f, ", %s", text);
    return true;
}

static const char *const kinds[] = {
    [VSOCK_FAULT_LATENCY] = "latency",
    [VSOCK_FAULT_REFUSE] = "refuse",
    [VSOCK_FAULT_RESET] = "reset",
    [VSOCK_FAULT_STOP_READING] = "stop-reading",
};

static bool fault_kind(struct request *r, struct vsock_fault *fault)
{
    const char *kind = control_word(&r->line, "kind");

    for (unsigned i = 0; kind && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (!strcmp(kinds[i], kind)) {
            fault->kind = i;
            return true;
        }
    }
    return refuse(r, "kind is none of latency, refuse, reset, stop-reading");
}

static bool do_fault(struct host *h, struct request *r)
{
    uint64_t port = VSOCK_PORT_ANY, ms = 0, jitter = 0;
    uint64_t chance = VSOCK_CHANCE_ALWAYS;
    struct vsock_fault fault = { 0 };

    if (!fault_kind(r, &fault) ||
        !number(r, "port", 0, VSOCK_PORT_ANY - 1, &port) ||
        !number(r, "nth", 1, INT64_MAX, &fault.nth) ||
        !number(r, "times", 1, INT64_MAX, &fault.times) ||
        !number(r, "chance", 0, VSOCK_CHANCE_ALWAYS, &chance) ||
        !number(r, "seed", 0, UINT64_MAX, &fault.seed)) {
        return false;
    }
    if (fault.kind == VSOCK_FAULT_LATENCY &&
        (!number(r, "ms", 0, VSOCK_MS_FAULT, &ms) ||
         !number(r, "jitter", 0, VSOCK_MS_FAULT, &jitter))) {
        return false;
    }
    if ((fault.kind == VSOCK_FAULT_RESET ||
         fault.kind == VSOCK_FAULT_STOP_READING) &&
        !number(r, "after", 0, INT64_MAX, &fault.after)) {
        return false;
    }
    if (!complete(r)) {
        return false;
    }
    if (fault.kind == VSOCK_FAULT_LATENCY && !ms && !jitter) {
        return refuse(r, "a latency needs ms or jitter");
    }
    fault.any_port = port == VSOCK_PORT_ANY;
    fault.port = port;
    fault.ms = ms;
    fault.jitter = jitter;
    fault.chance = chance;
    fault.id = vsock_fault_add(h->vsock, &fault);
    if (!fault.id) {
        return refuse(r, "there are %u faults, as many as can be",
                      VSOCK_MAX_FAULTS);
    }
    fprintf(r->f, ", \"fault\": %u", fault.id);
    return true;
}

static bool do_fault_clear(struct host *h, struct request *r)
{
    uint64_t id = 0;
    unsigned count;

    if (!number(r, "fault", 1, UINT32_MAX, &id) || !complete(r)) {
        return false;
    }
    count = vsock_fault_clear(h->vsock, id);
    if (id && !count) {
        return refuse(r, "there is no fault %u", (unsigned)id);
    }
    fprintf(r->f, ", \"cleared\": %u", count);
    return true;
}

static void put_fault(FILE *f, const struct vsock_fault *fault)
{
    fprintf(f, "{\"fault\": %u, \"kind\": \"%s\"", fault->id,
            kinds[fault->kind]);
    if (!fault->any_port) {
        fprintf(f, ", \"port\": %u", fault->port);
    }
    fprintf(f,
            ", \"ms\": %u, \"jitter\": %u, \"after\": %llu, "
            "\"nth\": %llu, \"times\": %llu, \"chance\": %u, "
            "\"seed\": %llu, \"connections\": %llu, \"struck\": %llu}",
            fault->ms, fault->jitter, (unsigned long long)fault->after,
            (unsigned long long)fault->nth, (unsigned long long)fault->times,
            fault->chance, (unsigned long long)fault->seed,
            (unsigned long long)fault->seen, (unsigned long long)fault->struck);
}

static bool do_faults(struct host *h, struct request *r)
{
    const char *comma = "";

    if (!complete(r)) {
        return false;
    }
    fputs(", \"faults\": [", r->f);
    for (unsigned i = 0; i < VSOCK_MAX_FAULTS; i++) {
        const struct vsock_fault *fault = vsock_fault(h->vsock, i);

        if (fault) {
            fputs(comma, r->f);
            put_fault(r->f, fault);
            comma = ", ";
        }
    }
    fputs("]", r->f);
    return true;
}

static const struct {
    const char *name;
    bool (*act)(struct host *h, struct request *r);
} table[] = {
    { "hello", do_hello },   { "stats", do_stats },
    { "dump", do_dump },     { "dump-stop", do_dump_stop },
    { "fault", do_fault },   { "fault-clear", do_fault_clear },
    { "faults", do_faults },
};

static bool act(struct host *h, struct request *r, char *text, size_t size)
{
    const char *wrong = control_parse(&r->line, text, size);
    const char *name;

    /* As far as it was read: who asked learns what was wrong. */
    if (!number(r, "id", 0, UINT32_MAX, &r->id)) {
        return false;
    }
    if (wrong) {
        return refuse(r, "the request cannot be read: %s", wrong);
    }
    name = control_word(&r->line, "do");
    for (unsigned i = 0; name && i < sizeof(table) / sizeof(table[0]); i++) {
        if (!strcmp(table[i].name, name)) {
            if (!h->control && table[i].act != do_hello) {
                return refuse(r, "say hello first");
            }
            return table[i].act(h, r);
        }
    }
    return name ? refuse(r, "cannot do \"%s\"", name) :
                  refuse(r, "\"do\" is missing");
}

/* Quotes of JSON around what is printable ASCII. */
static void put_text(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') {
            fputc('\\', f);
        }
        fputc(*text, f);
    }
    fputc('"', f);
}

static void answer(struct host *h, struct request *r, char *text, size_t size)
{
    char *line = NULL, *members = NULL;
    size_t line_size, members_size;
    bool done;
    FILE *f;

    r->f = open_memstream(&members, &members_size);
    f = r->f ? open_memstream(&line, &line_size) : NULL;
    if (!f) {
        if (r->f) {
            fclose(r->f);
        }
        free(members);
        return; /* no memory, not even to say so */
    }
    done = act(h, r, text, size);
    fclose(r->f);
    fprintf(f, "{\"id\": %llu", (unsigned long long)r->id);
    if (done) {
        fputs(members, f);
    } else {
        fputs(", \"error\": ", f);
        put_text(f, r->wrong);
    }
    fputs("}\n", f);
    if (fclose(f) == 0 && !send_line(h, line, line_size)) {
        log_own(VLOG_WARN, "the owner does not take an answer: %s",
                strerror(errno));
    }
    free(line);
    free(members);
}

/* Keeps the first descriptor, and closes what else came. */
static void take_fds(struct request *r, struct msghdr *m)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        const unsigned char *data = CMSG_DATA(c);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0);
             at += sizeof(int)) {
            int fd;

            memcpy(&fd, data + at, sizeof(fd));
            if (r->fd < 0) {
                r->fd = fd;
            } else {
                close(fd);
            }
        }
    }
}

/* What can be read of any other lifeline means nothing. */
static bool is_channel(int fd)
{
    int type = 0;
    socklen_t len = sizeof(type);

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 &&
           type == SOCK_SEQPACKET;
}

bool control_input(struct host *h)
{
    char text[CONTROL_MAX_LINE + 1];
    char room[CMSG_SPACE(sizeof(int))];
    struct iovec iov = { text, CONTROL_MAX_LINE };
    struct msghdr m = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
    };
    struct request r = { .fd = -1 };
    int fd = h->options->lifeline_fd;
    ssize_t n;

    if (!h->channel) {
        n = read(fd, text, CONTROL_MAX_LINE);
        return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
    }
    m.msg_control = room;
    m.msg_controllen = sizeof(room);
    n = recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n <= 0) {
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    take_fds(&r, &m);
    /* What is cut off is no request, whatever the rest looks like. */
    answer(h, &r, text, m.msg_flags & MSG_TRUNC ? 0 : n);
    if (r.fd >= 0) {
        close(r.fd);
    }
    return true;
}

void control_start(struct host *h)
{
    h->channel = is_channel(h->options->lifeline_fd);
}
