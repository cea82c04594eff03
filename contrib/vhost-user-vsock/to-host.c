/*
 * SPDX-License-Identifier: MIT
 *
 * to-host.c: bytes from the guest to the host end, straight or by the buffer.
 */

#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * The host end takes no more. What it sent before is still read and passed
 * on; the guest learns now that nobody listens.
 */
static void end_deaf(struct vsock *v, struct vsock_conn *c, int err)
{
    conn_consumed(v, c, c->buf_len);
    c->buf_len = 0;
    c->aborted |= err == -ECONNRESET;
    c->host_off |= VSOCK_OFF_RECV;
    c->readable = true;
    conn_pend(v, c, PEND_SHUTDOWN);
}

/* Writes once; what is taken is counted as consumed. */
static ssize_t end_send(struct vsock *v, struct vsock_conn *c,
                        const struct iovec *iov, unsigned niov)
{
    ssize_t r = v->ops->send(v->opaque, c, iov, niov);

    if (r > 0) {
        v->stats.bytes_to_host += r;
        v->ports[c->port].bytes_to_host += r;
        conn_consumed(v, c, r);
    } else if (r == 0 || r == -EAGAIN) {
        c->writable = false;
        r = -EAGAIN;
    }
    if (c->answer) {
        c->answer = false;
        c->readable = true;
        conn_queue(v, c);
    }
    return r;
}

/* The guest will send no more, and all it sent has left: say so. */
void end_finish(struct vsock *v, struct vsock_conn *c)
{
    if (c->state == VSOCK_OPEN && !c->buf_len &&
        (c->guest_off & VSOCK_OFF_SEND)) {
        v->ops->shutdown(v->opaque, c, VSOCK_OFF_SEND);
    }
}

void conn_flush(struct vsock *v, struct vsock_conn *c)
{
    bool had = c->buf_len;

    if (fault_on(v) && c->buf_len && fault_holds(v, c)) {
        return;
    }
    while (c->buf_len && c->writable) {
        uint32_t first = c->window - c->buf_head;
        struct iovec iov[2] = {
            { c->buf + c->buf_head, first < c->buf_len ? first : c->buf_len },
            { c->buf, first < c->buf_len ? c->buf_len - first : 0 },
        };
        ssize_t r = end_send(v, c, iov, 1 + !!iov[1].iov_len);

        if (r >= 0) {
            c->buf_len -= r;
            c->buf_head = c->buf_len ? (c->buf_head + r) % c->window : 0;
            if (conn_is_draining(c)) {
                conn_drain_renew(v, c);
            }
        } else if (r != -EAGAIN) {
            if (c->state == VSOCK_OPEN) {
                end_deaf(v, c, r);
            } else {
                vsock_note(v, VSOCK_NOTE_UNDELIVERED, c, NULL);
                c->buf_len = 0;
                end_close(v, c);
            }
        }
    }
    if (c->buf_len) {
        return;
    }
    if (c->state == VSOCK_DRAIN) {
        conn_free(v, c);
    } else if (c->state == VSOCK_RESET) {
        end_close(v, c);
        conn_deadline(v, c, 0);
    } else if (had) {
        end_finish(v, c);
    }
}

/* Into the buffer, but for the first skip bytes; false: no memory. */
static bool conn_keep(struct vsock_conn *c, const struct iovec *iov,
                      unsigned niov, uint32_t skip)
{
    if (!c->buf) {
        c->buf = malloc(c->window);
        if (!c->buf) {
            return false;
        }
    }
    for (unsigned i = 0; i < niov; i++) {
        const uint8_t *p = iov[i].iov_base;
        uint32_t n = iov[i].iov_len;
        uint32_t at, first;

        if (skip >= n) {
            skip -= n;
            continue;
        }
        p += skip;
        n -= skip;
        skip = 0;
        at = (c->buf_head + c->buf_len) % c->window;
        first = c->window - at < n ? c->window - at : n;
        memcpy(c->buf + at, p, first);
        memcpy(c->buf, p + first, n - first);
        c->buf_len += n;
    }
    return true;
}

void conn_data_in(struct vsock *v, struct vsock_conn *c,
                  const struct vsock_hdr *h, const struct iovec *iov,
                  unsigned niov)
{
    ssize_t r = 0;

    if (c->guest_off & VSOCK_OFF_SEND) {
        vsock_note(v, VSOCK_NOTE_VIOLATION, c, h);
        conn_reset(v, c);
        return;
    }
    if (!h->len) {
        return;
    }
    if (c->state == VSOCK_CLOSING || (c->host_off & VSOCK_OFF_RECV)) {
        conn_consumed(v, c, h->len);
        return;
    }
    if (h->len > c->window - c->buf_len) {
        vsock_note(v, VSOCK_NOTE_OVERRUN, c, h);
        conn_reset(v, c);
        return;
    }
    if (fault_on(v)) {
        fault_delay_out(v, c);
    }
    if (!c->buf_len && c->writable && !(fault_on(v) && fault_holds(v, c))) {
        r = end_send(v, c, iov, niov);
        if (r < 0 && r != -EAGAIN) {
            conn_consumed(v, c, h->len);
            end_deaf(v, c, r);
            return;
        }
        r = r < 0 ? 0 : r;
    }
    if (r < h->len) {
        if (!conn_keep(c, iov, niov, r)) {
            vsock_note(v, VSOCK_NOTE_NO_MEMORY, c, h);
            conn_reset(v, c);
            return;
        }
        /* Until the socket says no: only then it tells when it has room. */
        conn_flush(v, c);
    }
    c->passed += h->len;
}
