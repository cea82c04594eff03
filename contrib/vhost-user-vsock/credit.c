/*
 * SPDX-License-Identifier: MIT
 *
 * credit.c: how many bytes and packets may be under way to the guest, and how
 * many of its own it learns that we have taken. The rules are in the head of
 * vsock.c.
 */

#include "core.h"

unsigned conn_packet_limit(const struct vsock_conn *c)
{
    uint32_t n = c->peer_buf_alloc / VSOCK_PACKET_COST;

    n = n < 2 ? 2 : n;
    return n < VSOCK_MAX_PACKETS ? n : VSOCK_MAX_PACKETS;
}

void conn_credit(struct vsock *v, struct vsock_conn *c,
                 const struct vsock_hdr *h)
{
    if (c->peer_buf_alloc == h->buf_alloc && c->peer_fwd_cnt == h->fwd_cnt) {
        return;
    }
    c->peer_buf_alloc = h->buf_alloc;
    c->peer_fwd_cnt = h->fwd_cnt;
    while (c->ends_count &&
           (int32_t)(c->peer_fwd_cnt - c->ends[c->ends_head]) >= 0) {
        c->ends_head = (c->ends_head + 1) % VSOCK_MAX_PACKETS;
        c->ends_count--;
    }
    if (c->ends_count < conn_packet_limit(c) / 2) {
        c->asked_half = false;
    }
    if (c->stall) {
        if (c->stall == VSOCK_STALL_PACKETS) {
            conn_deadline(v, c, 0);
        }
        c->stall = VSOCK_STALL_NONE;
        conn_queue(v, c);
    }
}

void conn_stall(struct vsock *v, struct vsock_conn *c, enum vsock_stall why)
{
    c->stall = why;
    if (!c->asked) {
        c->asked = true;
        c->ask_ms = VSOCK_MS_ASK;
        c->pending |= PEND_ASK;
    }
    if (why == VSOCK_STALL_PACKETS) {
        conn_deadline(v, c, v->now + c->ask_ms);
    }
}

/* n more bytes have left for the host, or never will have to. */
void conn_consumed(struct vsock *v, struct vsock_conn *c, uint32_t n)
{
    c->fwd_cnt += n;
    if (c->state == VSOCK_OPEN && c->fwd_cnt - c->last_fwd >= c->window / 4) {
        conn_pend(v, c, PEND_CREDIT);
    }
}
