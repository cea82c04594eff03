/*
 * SPDX-License-Identifier: MIT
 *
 * client.c: programs of the host that connect to the guest, from their first
 * line to the REQUEST.
 */

#include "core.h"

#include <errno.h>

/* Ports of the parent that we choose. */
#define FIRST_PORT (1u << 30)

bool vsock_client_room(const struct vsock *v)
{
    return v->clients < VSOCK_MAX_CLIENTS &&
           (v->count < v->config.max_conns || conn_oldest_drain(v));
}

static uint32_t free_port(struct vsock *v, uint32_t guest_port)
{
    do {
        if (v->next_port < FIRST_PORT || v->next_port == VSOCK_PORT_ANY) {
            v->next_port = FIRST_PORT;
        }
    } while (conn_lookup(v, VSOCK_CID_PARENT, v->next_port++, guest_port));
    return v->next_port - 1;
}

static void client_request(struct vsock *v, struct vsock_conn *c,
                           uint32_t parent_port, uint32_t guest_port)
{
    conn_hash(v, c, VSOCK_CID_PARENT, parent_port, guest_port);
    port_begin(v, c, guest_port, true);
    conn_state(v, c, VSOCK_WAITING, true);
    if (fault_on(v)) {
        fault_begin(v, c);
        if (fault_refuses(v, c)) {
            /* Our caller has use for it still; the guest learns nothing. */
            conn_deadline(v, c, v->now);
            return;
        }
    }
    conn_deadline(
        v, c,
        c->give_up ?:
            v->now + (v->driver_seen ? VSOCK_MS_REQUEST : v->config.driver_ms));
    conn_pend(v, c, PEND_REQUEST);
}

struct vsock_conn *vsock_client(struct vsock *v, int fd, int64_t port)
{
    struct vsock_conn *c = vsock_client_room(v) ? conn_new(v) : NULL;

    if (!c) {
        return NULL;
    }
    c->fd = fd;
    conn_state(v, c, VSOCK_CLIENT, true);
    if (port >= 0) {
        c->silent = true;
        client_request(v, c, free_port(v, port), port);
    } else {
        conn_deadline(v, c, v->now + VSOCK_MS_LINE);
    }
    return c;
}

/* Take what an OPEN has behind it, which tells the client that it may write. */
bool client_skip(struct vsock *v, struct vsock_conn *c)
{
    char unused[16384];

    while (c->skip) {
        struct iovec iov = { unused, c->skip < sizeof(unused) ?
                                         c->skip :
                                         sizeof(unused) };
        ssize_t r = v->ops->recv(v->opaque, c, &iov, 1);

        if (r <= 0) {
            return false;
        }
        c->skip -= r;
    }
    return true;
}

void client_line(struct vsock *v, struct vsock_conn *c)
{
    char line[VSOCK_MAX_LINE];
    struct iovec iov = { line, 0 };
    uint32_t port, ms;
    int64_t from;
    ssize_t r = v->ops->peek(v->opaque, c, line, sizeof(line));
    int n;

    if (r == -EAGAIN) {
        return;
    }
    if (r <= 0) {
        vsock_note(v, VSOCK_NOTE_CLIENT_GONE, c, NULL);
        conn_free(v, c);
        return;
    }
    n = vsock_parse_line(line, r, &port, &from, &ms);
    if (n < 0 || (n == 0 && r == sizeof(line)) ||
        (n > 0 && from >= 0 && conn_lookup(v, VSOCK_CID_PARENT, from, port))) {
        vsock_note(v, VSOCK_NOTE_BAD_LINE, c, NULL);
        conn_free(v, c);
        return;
    }
    if (n > 0) {
        iov.iov_len = n;
        if (v->ops->recv(v->opaque, c, &iov, 1) != n) {
            vsock_note(v, VSOCK_NOTE_HOST_ERROR, c, NULL);
            conn_free(v, c);
            return;
        }
        if (from >= 0) {
            c->silent = true;
            c->skip = VSOCK_OPEN_SIZE - n;
            c->give_up = v->now + ms + 1; /* never early: now is whole ms */
        }
        client_request(v, c, from >= 0 ? (uint32_t)from : free_port(v, port),
                       port);
    }
}
