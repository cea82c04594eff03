/*
 * SPDX-License-Identifier: MIT
 *
 * from-guest.c: packets from the guest: which are refused, and what the others
 * mean for their connection.
 */

#include "core.h"

#include <stdio.h>

/* An RST for nobody's packet; it waits until the guest has a buffer for it. */
static void stray_rst(struct vsock *v, const struct vsock_hdr *h)
{
    struct stray *s;

    if (h->op == VSOCK_OP_RST || v->stray_count == VSOCK_MAX_STRAYS) {
        return;
    }
    s = &v->strays[(v->stray_head + v->stray_count++) % VSOCK_MAX_STRAYS];
    s->src_cid = h->dst_cid;
    s->src_port = h->dst_port;
    s->dst_cid = h->src_cid;
    s->dst_port = h->src_port;
    s->type = h->type;
}

/* As conn_try(), where a fault may refuse it, or delay it. */
static bool guest_open_late(struct vsock *v, struct vsock_conn *c)
{
    int64_t until;

    fault_begin(v, c);
    if (fault_refuses(v, c)) {
        vsock_note(v, VSOCK_NOTE_FAULT, c, NULL);
        return false;
    }
    until = fault_until(v, c);
    if (!until) {
        return conn_try(v, c);
    }
    c->give_up += until - v->now;
    conn_deadline(v, c, until);
    return true;
}

static void guest_open(struct vsock *v, const struct vsock_hdr *h)
{
    struct vsock_conn *c = conn_new(v);

    if (!c) {
        vsock_note(v, VSOCK_NOTE_TABLE_FULL, NULL, h);
        stray_rst(v, h);
        return;
    }
    conn_hash(v, c, h->dst_cid, h->dst_port, h->src_port);
    port_begin(v, c, h->dst_port, false);
    conn_state(v, c, VSOCK_OPENING, false);
    c->peer_buf_alloc = h->buf_alloc;
    c->peer_fwd_cnt = h->fwd_cnt;
    c->give_up = v->now + VSOCK_MS_BACKLOG;
    /* Refused as if it had never been: its RST needs no place in the table. */
    if (!(fault_on(v) ? guest_open_late(v, c) : conn_try(v, c))) {
        conn_free(v, c);
        stray_rst(v, h);
    }
}

static void guest_answered(struct vsock *v, struct vsock_conn *c,
                           const struct vsock_hdr *h)
{
    char line[32];
    struct iovec iov = { line, 0 };

    iov.iov_len = snprintf(line, sizeof(line), VSOCK_LINE_OK, c->parent_port);
    /* Its socket is empty, so a client that does not take this is gone. */
    if (!c->silent &&
        v->ops->send(v->opaque, c, &iov, 1) != (ssize_t)iov.iov_len) {
        vsock_note(v, VSOCK_NOTE_CLIENT_GONE, c, h);
        conn_reset(v, c);
        return;
    }
    if (!client_skip(v, c)) {
        vsock_note(v, VSOCK_NOTE_HOST_ERROR, c, h);
        conn_reset(v, c);
        return;
    }
    v->stats.host_opened++;
    port_opened(v, c);
    conn_state(v, c, VSOCK_OPEN, true);
    conn_deadline(v, c, 0);
    c->writable = true;
    conn_readable(v, c); /* it may have sent on behind its line */
    conn_queue(v, c);
}

static void guest_shutdown(struct vsock *v, struct vsock_conn *c,
                           const struct vsock_hdr *h)
{
    uint8_t fresh = h->flags & VSOCK_OFF_BOTH & ~c->guest_off;

    c->guest_off |= fresh;
    if (c->guest_off == VSOCK_OFF_BOTH) {
        /* Closed. Its bytes are ours to deliver; the guest need not wait. */
        conn_reset(v, c);
    } else if (c->state == VSOCK_OPEN && (fresh & VSOCK_OFF_RECV)) {
        c->readable = false; /* nobody is there for what would be read */
        v->ops->shutdown(v->opaque, c, VSOCK_OFF_RECV);
    } else if (c->state == VSOCK_OPEN && (fresh & VSOCK_OFF_SEND)) {
        end_finish(v, c);
    }
}

/* What a packet is for its connection. */
enum meaning {
    NOT_ALLOWED,
    NOTHING, /* but for the credit that it carries */
    REUSED,  /* the tuple is still in use */
    ANSWERED,
    REFUSED,
    GONE,
    SHUT,
    DATA,
    CREDIT_ASKED,
};

/*
 * By state and op. Of WAITING the guest has not been told: its RST is meant for
 * an older connection. RESET has an RST on its way, which is an answer to all.
 */
static const uint8_t meanings[VSOCK_STATES][VSOCK_OP_CREDIT_REQUEST + 1] = {
    [VSOCK_OPENING] = {
        [VSOCK_OP_REQUEST] = REUSED,
        [VSOCK_OP_RST] = GONE,
        [VSOCK_OP_CREDIT_UPDATE] = NOTHING,
        [VSOCK_OP_CREDIT_REQUEST] = NOTHING,
    },
    [VSOCK_WAITING] = {
        [VSOCK_OP_REQUEST] = REUSED,
        [VSOCK_OP_RST] = NOTHING,
        [VSOCK_OP_CREDIT_UPDATE] = NOTHING,
        [VSOCK_OP_CREDIT_REQUEST] = NOTHING,
    },
    [VSOCK_REQUESTED] = {
        [VSOCK_OP_REQUEST] = REUSED,
        [VSOCK_OP_RESPONSE] = ANSWERED,
        [VSOCK_OP_RST] = REFUSED,
        [VSOCK_OP_CREDIT_UPDATE] = NOTHING,
        [VSOCK_OP_CREDIT_REQUEST] = NOTHING,
    },
    [VSOCK_OPEN] = {
        [VSOCK_OP_REQUEST] = REUSED,
        [VSOCK_OP_RST] = GONE,
        [VSOCK_OP_SHUTDOWN] = SHUT,
        [VSOCK_OP_RW] = DATA,
        [VSOCK_OP_CREDIT_UPDATE] = NOTHING,
        [VSOCK_OP_CREDIT_REQUEST] = CREDIT_ASKED,
    },
    [VSOCK_CLOSING] = {
        [VSOCK_OP_REQUEST] = REUSED,
        [VSOCK_OP_RST] = GONE,
        [VSOCK_OP_SHUTDOWN] = SHUT,
        [VSOCK_OP_RW] = DATA,
        [VSOCK_OP_CREDIT_UPDATE] = NOTHING,
        [VSOCK_OP_CREDIT_REQUEST] = NOTHING,
    },
    [VSOCK_RESET] = {
        [VSOCK_OP_INVALID ... VSOCK_OP_RESPONSE] = NOTHING,
        [VSOCK_OP_RST] = GONE,
        [VSOCK_OP_SHUTDOWN ... VSOCK_OP_CREDIT_REQUEST] = NOTHING,
    },
};

static void conn_packet(struct vsock *v, struct vsock_conn *c,
                        const struct vsock_hdr *h, const struct iovec *iov,
                        unsigned niov)
{
    /* Those that nobody knows are no more allowed than VSOCK_OP_INVALID. */
    unsigned op = h->op <= VSOCK_OP_CREDIT_REQUEST ? h->op : VSOCK_OP_INVALID;

    /* The numbers are valid in any packet of a connection that goes on. */
    if (op != VSOCK_OP_RST && op != VSOCK_OP_REQUEST &&
        c->state != VSOCK_RESET) {
        conn_credit(v, c, h);
    }
    switch ((enum meaning)meanings[c->state][op]) {
    case NOT_ALLOWED:
        vsock_note(v, VSOCK_NOTE_VIOLATION, c, h);
        conn_reset(v, c);
        break;
    case NOTHING:
        break;
    case REUSED:
        vsock_note(v, VSOCK_NOTE_TUPLE_REUSED, c, h);
        conn_reset(v, c);
        break;
    case ANSWERED:
        guest_answered(v, c, h);
        break;
    case REFUSED:
        vsock_note(v, VSOCK_NOTE_GUEST_REFUSED, c, h);
        conn_forget(v, c);
        break;
    case GONE:
        conn_forget(v, c);
        break;
    case SHUT:
        guest_shutdown(v, c, h);
        break;
    case DATA:
        conn_data_in(v, c, h, iov, niov);
        break;
    case CREDIT_ASKED:
        conn_pend(v, c, PEND_CREDIT);
        break;
    }
}

/* Shortens the array to len bytes; returns the number of pieces. */
static unsigned iov_limit(struct iovec *iov, unsigned niov, size_t len)
{
    unsigned i;

    for (i = 0; i < niov && len; i++) {
        if (iov[i].iov_len > len) {
            iov[i].iov_len = len;
        }
        len -= iov[i].iov_len;
    }
    return i;
}

static bool is_served(const struct vsock *v, uint64_t cid)
{
    return cid == VSOCK_CID_PARENT ||
           (cid == VSOCK_CID_HOST && v->config.serve_cid2);
}

void vsock_tx(struct vsock *v, const uint8_t raw[VSOCK_HDR_SIZE],
              struct iovec *iov, unsigned niov, size_t room)
{
    struct vsock_hdr h;
    struct vsock_conn *c;

    v->stats.tx_packets++;
    vsock_hdr_decode(&h, raw);
    if (vsock_shown(v)) {
        vsock_show(v, raw, &h, iov, niov, 0, room);
    }
    /* Whom would an answer go to? */
    if (h.src_cid != v->config.guest_cid) {
        vsock_note(v, VSOCK_NOTE_BAD_SOURCE, NULL, &h);
        return;
    }
    if (!is_served(v, h.dst_cid)) {
        vsock_note(v, VSOCK_NOTE_NOT_SERVED, NULL, &h);
        stray_rst(v, &h);
        return;
    }
    if (h.type != VSOCK_TYPE_STREAM) {
        vsock_note(v, VSOCK_NOTE_BAD_TYPE, NULL, &h);
        stray_rst(v, &h);
        return;
    }
    if (h.src_port == VSOCK_PORT_ANY || h.dst_port == VSOCK_PORT_ANY) {
        vsock_note(v, VSOCK_NOTE_BAD_PORT, NULL, &h);
        stray_rst(v, &h);
        return;
    }
    c = conn_lookup(v, h.dst_cid, h.dst_port, h.src_port);
    /* A stream has a hole now, so it cannot go on. */
    if (h.len > (h.op == VSOCK_OP_RW ? VSOCK_MAX_PAYLOAD : 0) || h.len > room) {
        vsock_note(v, VSOCK_NOTE_BAD_LENGTH, c, &h);
        if (!c) {
            stray_rst(v, &h);
        } else if (h.op == VSOCK_OP_RST) {
            conn_forget(v, c);
        } else {
            conn_reset(v, c);
        }
        return;
    }
    if (c) {
        if (fault_on(v) && h.op == VSOCK_OP_RW && fault_may_strike(c) &&
            h.len > fault_room(v, c)) {
            h.len = fault_room(v, c); /* its end comes within this packet */
        }
        conn_packet(v, c, &h, iov, iov_limit(iov, niov, h.len));
        if (fault_on(v)) {
            fault_strike(v, c);
        }
    } else if (h.op == VSOCK_OP_REQUEST) {
        guest_open(v, &h);
    } else if (h.op != VSOCK_OP_RST) {
        vsock_note(v, VSOCK_NOTE_UNKNOWN_TUPLE, NULL, &h);
        stray_rst(v, &h);
    }
}

void vsock_tx_lost(struct vsock *v)
{
    vsock_note(v, VSOCK_NOTE_LOST, NULL, NULL);
    for (uint32_t i = 0; i < v->used_slots; i++) {
        struct vsock_conn *c = &v->slots[i];

        if (c->state == VSOCK_OPEN && !(c->guest_off & VSOCK_OFF_SEND)) {
            conn_reset(v, c);
        }
    }
}

bool vsock_tx_ready(const struct vsock *v)
{
    return v->stray_count < VSOCK_MAX_STRAYS;
}
