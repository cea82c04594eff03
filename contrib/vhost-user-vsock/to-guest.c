/*
 * SPDX-License-Identifier: MIT
 *
 * to-guest.c: packets for the guest, composed in its own buffers when their
 * connection has its turn.
 */

#include "core.h"

#include <errno.h>
#include <string.h>

static void buf_put_hdr(struct vsock *v, struct vsock_buf *b,
                        const struct vsock_hdr *h)
{
    uint8_t raw[VSOCK_HDR_SIZE];
    size_t done = 0;

    vsock_hdr_encode(h, raw);
    for (unsigned i = 0; done < sizeof(raw); i++) {
        size_t n = b->iov[i].iov_len;

        n = n < sizeof(raw) - done ? n : sizeof(raw) - done;
        memcpy(b->iov[i].iov_base, raw + done, n);
        done += n;
    }
    b->used = VSOCK_HDR_SIZE + h->len;
    v->stats.rx_packets++;
    if (vsock_shown(v)) {
        vsock_show(v, raw, h, b->iov, b->niov, VSOCK_HDR_SIZE, h->len);
    }
}

static void conn_put(struct vsock *v, struct vsock_conn *c, struct vsock_buf *b,
                     enum vsock_op op, uint32_t flags, uint32_t len)
{
    struct vsock_hdr h = {
        .src_cid = c->parent_cid,
        .dst_cid = v->config.guest_cid,
        .src_port = c->parent_port,
        .dst_port = c->guest_port,
        .len = len,
        .type = VSOCK_TYPE_STREAM,
        .op = op,
        .flags = flags,
        .buf_alloc = c->window,
        .fwd_cnt = c->fwd_cnt,
    };

    c->last_fwd = c->fwd_cnt;
    c->pending &= ~PEND_CREDIT;
    buf_put_hdr(v, b, &h);
}

/* The host end will send no more. */
static void end_eof(struct vsock_conn *c)
{
    c->readable = false;
    c->host_off |= VSOCK_OFF_SEND;
    if (c->hup) {
        c->host_off = VSOCK_OFF_BOTH;
    }
    c->pending |= PEND_SHUTDOWN;
}

/* How far one read goes: pieces of the guest's buffers, and their bytes. */
struct burst {
    struct iovec iov[VSOCK_MAX_BURST];
    unsigned niov;
    uint32_t total;
};

/* At most room bytes of b behind the header; false: no place for the pieces. */
static bool burst_add(struct burst *burst, struct vsock_buf *b, uint32_t room)
{
    size_t skip = VSOCK_HDR_SIZE;
    unsigned first = burst->niov;

    b->used = room;
    for (unsigned i = 0; room && i < b->niov && burst->niov < VSOCK_MAX_BURST;
         i++) {
        struct iovec *to = &burst->iov[burst->niov];
        size_t len = b->iov[i].iov_len;

        if (skip >= len) {
            skip -= len;
            continue;
        }
        to->iov_base = (uint8_t *)b->iov[i].iov_base + skip;
        to->iov_len = len - skip < room ? len - skip : room;
        room -= to->iov_len;
        burst->niov++;
        skip = 0;
    }
    if (room && first) {
        burst->niov = first;
        return false;
    }
    b->used -= room;
    burst->total += b->used;
    return true;
}

/*
 * As many buffers as credit, the packet limit, the quantum and most, of bytes,
 * allow; returns how many.
 */
static unsigned burst_fill(struct burst *burst, const struct vsock_conn *c,
                           struct vsock_buf *bufs, unsigned n, uint32_t most)
{
    unsigned count, limit = conn_packet_limit(c);
    uint32_t flight = c->tx_cnt - c->peer_fwd_cnt;
    uint32_t credit =
        flight < c->peer_buf_alloc ? c->peer_buf_alloc - flight : 0;

    burst->niov = 0;
    burst->total = 0;
    for (count = 0; count < n && c->ends_count + count < limit; count++) {
        size_t len = bufs[count].len - VSOCK_HDR_SIZE;
        uint32_t room = len < VSOCK_MAX_PAYLOAD ? len : VSOCK_MAX_PAYLOAD;
        uint32_t left = credit - burst->total;

        if (count && room > VSOCK_QUANTUM - burst->total) {
            break;
        }
        if (left < room) {
            /* No crumbs while there are bytes under way. */
            if (!left ||
                ((flight || burst->total) && left < c->peer_buf_alloc / 4)) {
                break;
            }
            room = left;
        }
        if (room > most - burst->total) {
            room = most - burst->total;
            if (!room) {
                break;
            }
        }
        if (!burst_add(burst, &bufs[count], room)) {
            break;
        }
    }
    return count;
}

/* Makes packets of the bytes that were read into the buffers. */
static unsigned burst_send(struct vsock *v, struct vsock_conn *c,
                           struct vsock_buf *bufs, uint32_t got)
{
    unsigned count;

    v->stats.bytes_to_guest += got;
    v->ports[c->port].bytes_to_guest += got;
    c->passed += got;
    c->asked = false;
    for (count = 0; got > 0; count++) {
        uint32_t len = bufs[count].used;

        len = len < got ? len : got;
        got -= len;
        c->tx_cnt += len;
        c->ends[(c->ends_head + c->ends_count++) % VSOCK_MAX_PACKETS] =
            c->tx_cnt;
        conn_put(v, c, &bufs[count], VSOCK_OP_RW, 0, len);
    }
    if (c->ends_count >= conn_packet_limit(c) / 2 && !c->asked_half) {
        /* So that the count is fresh before the limit is reached. */
        c->asked_half = true;
        c->pending |= PEND_ASK;
    }
    return count;
}

/*
 * Reads from the host end straight into the guest's buffers; returns the number
 * of packets made. *maybe: the host end gave less than there was place for, so
 * it is probably empty.
 */
static unsigned conn_data_out(struct vsock *v, struct vsock_conn *c,
                              struct vsock_buf *bufs, unsigned n, bool *maybe)
{
    struct burst burst;
    ssize_t got;

    if (c->ends_count >= conn_packet_limit(c)) {
        conn_stall(v, c, VSOCK_STALL_PACKETS);
        return 0;
    }
    if (!burst_fill(&burst, c, bufs, n,
                    fault_on(v) ? fault_room(v, c) : UINT32_MAX)) {
        conn_stall(v, c, VSOCK_STALL_CREDIT);
        return 0;
    }
    got = v->ops->recv(v->opaque, c, burst.iov, burst.niov);
    if (got <= 0) {
        if (got == 0) {
            end_eof(c);
        }
        if (got == -EAGAIN) {
            c->readable = false;
        } else if (got < 0 || c->aborted) {
            conn_reset(v, c);
        }
        return 0;
    }
    *maybe = got < burst.total;
    return burst_send(v, c, bufs, got);
}

bool conn_has_data(const struct vsock_conn *c)
{
    return c->state == VSOCK_OPEN && c->readable && !c->stall &&
           !(c->guest_off & VSOCK_OFF_RECV) &&
           !(c->host_off & VSOCK_OFF_SEND) && !c->in_at;
}

static void conn_put_control(struct vsock *v, struct vsock_conn *c,
                             struct vsock_buf *b)
{
    if (c->pending & PEND_REQUEST) {
        c->pending &= ~PEND_REQUEST;
        conn_state(v, c, VSOCK_REQUESTED, true);
        if (!c->give_up) {
            conn_deadline(v, c, v->now + VSOCK_MS_REQUEST);
        }
        conn_put(v, c, b, VSOCK_OP_REQUEST, 0, 0);
    } else if (c->pending & PEND_RESPONSE) {
        c->pending &= ~PEND_RESPONSE;
        conn_put(v, c, b, VSOCK_OP_RESPONSE, 0, 0);
    } else if (c->pending & PEND_SHUTDOWN) {
        c->pending &= ~PEND_SHUTDOWN;
        conn_put(v, c, b, VSOCK_OP_SHUTDOWN, c->host_off, 0);
        if (c->host_off == VSOCK_OFF_BOTH) {
            end_close(v, c);
            conn_state(v, c, VSOCK_CLOSING, false);
            conn_deadline(v, c, v->now + VSOCK_MS_RST);
            c->pending = 0;
        }
    } else if (c->pending & PEND_ASK) {
        c->pending &= ~PEND_ASK;
        v->stats.credit_requests++;
        conn_put(v, c, b, VSOCK_OP_CREDIT_REQUEST, 0, 0);
    } else {
        conn_put(v, c, b, VSOCK_OP_CREDIT_UPDATE, 0, 0);
    }
}

/* A turn of a connection that has just been taken from the ready list. */
static unsigned conn_turn(struct vsock *v, struct vsock_conn *c,
                          struct vsock_buf *bufs, unsigned n)
{
    unsigned count = 0;
    bool maybe = false;

    if (c->state == VSOCK_RESET) {
        conn_put(v, c, bufs, VSOCK_OP_RST, 0, 0);
        conn_forget(v, c);
        return 1;
    }
    /* Data carries the credit too, so only PEND_CREDIT can wait for it. */
    if (!(c->pending & ~PEND_CREDIT) && conn_has_data(c)) {
        count = conn_data_out(v, c, bufs, n, &maybe);
    }
    if (!count && c->pending) {
        conn_put_control(v, c, bufs);
        count = 1;
    }
    if (c->pending || (conn_has_data(c) && !maybe)) {
        conn_queue(v, c);
    } else if (conn_has_data(c)) {
        TAILQ_INSERT_TAIL(&v->later, c, link);
        c->list = LIST_LATER;
    }
    if (fault_on(v)) {
        fault_strike(v, c);
    }
    return count;
}

bool vsock_rx_ready(const struct vsock *v)
{
    return v->stray_count || !TAILQ_EMPTY(&v->ready);
}

unsigned vsock_rx(struct vsock *v, struct vsock_buf *bufs, unsigned n)
{
    struct vsock_conn *c;

    if (v->stray_count) {
        const struct stray *s = &v->strays[v->stray_head];
        struct vsock_hdr h = {
            .src_cid = s->src_cid,
            .dst_cid = s->dst_cid,
            .src_port = s->src_port,
            .dst_port = s->dst_port,
            .type = s->type,
            .op = VSOCK_OP_RST,
        };

        v->stray_head = (v->stray_head + 1) % VSOCK_MAX_STRAYS;
        v->stray_count--;
        buf_put_hdr(v, bufs, &h);
        return 1;
    }
    c = TAILQ_FIRST(&v->ready);
    if (!c) {
        return 0;
    }
    conn_unqueue(v, c);
    return conn_turn(v, c, bufs, n);
}

bool vsock_rx_again(struct vsock *v)
{
    struct vsock_conn *c;

    while ((c = TAILQ_FIRST(&v->later))) {
        conn_unqueue(v, c);
        conn_queue(v, c);
    }
    return vsock_rx_ready(v);
}
