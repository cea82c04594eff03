/*
 * SPDX-License-Identifier: MIT
 *
 * vsock.c: the connection core: packets and events in, packets and calls of
 * struct vsock_ops out; no system call, no clock, no ring, no descriptor. What
 * an event of the host or the time means for a connection is here; its other
 * parts are in core.h.
 *
 * The protocol in a minute (virtio 1.2, section 5.10.6)
 * -----------------------------------------------------
 * A connection is the tuple (guest port, parent CID, parent port). Either side
 * opens it with REQUEST, which is answered by RESPONSE or RST. RW carries
 * bytes. SHUTDOWN says what its sender will not do any more: flag 1 receive,
 * flag 2 send; the flags add up. Who has got SHUTDOWN with both flags answers
 * RST once it has nothing left to read, and RST ends a connection at any time
 * and for any reason. An RST is never answered.
 *
 * Flow control is by credit. Every packet carries buf_alloc, the size of the
 * sender's receive buffer, and fwd_cnt, the count of bytes it has taken out of
 * that buffer since the start; both are valid whatever the packet is about.
 * What is in flight is (bytes sent - peer's fwd_cnt), in 32 bits that wrap, and
 * it may not exceed the peer's buf_alloc. CREDIT_UPDATE carries the two numbers
 * alone; CREDIT_REQUEST asks for one.
 *
 * How it is done here
 * -------------------
 * To the host: bytes go from guest memory straight to the socket; what the
 * socket does not take waits in the connection's buffer, of the size that we
 * advertise, so a guest that keeps to its credit cannot overflow it and one
 * that does not is cut. fwd_cnt counts bytes that the socket took.
 *
 * To the guest: nothing is queued. A connection that has something to say
 * stands in a list; when the guest has a buffer, the first in the list composes
 * its packet right there, and data goes from the socket straight into the
 * buffers. Control packets are bits in the connection: any number of
 * provocations costs no memory. Only RSTs that belong to no connection need a
 * queue, and when it is full vsock_tx_ready() stops the guest.
 *
 * When credit runs out, one CREDIT_REQUEST goes out and then silence until the
 * peer's numbers have changed: asking again on each answer would be a loop
 * between host and guest. There is one exception: a connection stopped by the
 * number of packets (VSOCK_MAX_PACKETS) asks again at growing intervals, since
 * Linux before 6.8 does not tell by itself that it has consumed a few
 * small packets, and half way to the limit it asks once in advance so that it
 * seldom stops.
 */

#include "core.h"

#include <errno.h>
#include <stdlib.h>

static void conn_open(struct vsock *v, struct vsock_conn *c)
{
    conn_state(v, c, VSOCK_OPEN, true);
    conn_deadline(v, c, 0);
    c->writable = true; /* until a write says no */
    v->stats.guest_opened++;
    port_opened(v, c);
    conn_pend(v, c, PEND_RESPONSE);
}

/* The host end is not connected yet; vsock_opened() will tell. */
static void conn_opening(struct vsock *v, struct vsock_conn *c)
{
    conn_state(v, c, VSOCK_OPENING, true);
    conn_deadline(v, c, v->now + (c->open_ms ?: VSOCK_MS_OPEN));
}

bool conn_try(struct vsock *v, struct vsock_conn *c)
{
    int r = v->ops->open(v->opaque, c);

    if (r == 0) {
        conn_open(v, c);
    } else if (r == -EAGAIN && v->now < c->give_up) {
        /* A unix socket does not tell when its backlog has room again. */
        conn_state(v, c, VSOCK_OPENING, false);
        conn_deadline(v, c, v->now + VSOCK_MS_RETRY);
    } else if (r == -EINPROGRESS) {
        conn_opening(v, c);
    } else {
        vsock_note(v,
                   r == -EAGAIN ? VSOCK_NOTE_BACKLOG : VSOCK_NOTE_NO_LISTENER,
                   c, NULL);
        return false;
    }
    return true;
}

void vsock_driver_seen(struct vsock *v)
{
    v->driver_seen = true;
}

void vsock_fresh_driver(struct vsock *v)
{
    v->stray_count = 0; /* RSTs for a driver that has gone */
    v->driver_seen = false;
    for (uint32_t i = 0; i < v->used_slots; i++) {
        struct vsock_conn *c = &v->slots[i];

        /* What it has not been told of it can be told of yet. */
        if (conn_is_hashed(c) && c->state != VSOCK_WAITING) {
            conn_forget(v, c);
        }
    }
}

void vsock_disconnect(struct vsock *v)
{
    vsock_fault_clear(v, 0);
    vsock_fresh_driver(v);
    /* And those that waited for a driver to be told of: none will come. */
    for (uint32_t i = 0; i < v->used_slots; i++) {
        if (conn_is_hashed(&v->slots[i])) {
            conn_free(v, &v->slots[i]);
        }
    }
}

void vsock_finish(struct vsock *v)
{
    struct vsock_conn *c;

    v->finishing = true;
    TAILQ_FOREACH(c, &v->drains, drain)
    {
        conn_deadline(v, c, v->now + VSOCK_MS_DRAIN);
    }
}

void conn_readable(struct vsock *v, struct vsock_conn *c)
{
    if (fault_on(v)) {
        fault_delay_in(v, c);
    }
    c->readable = true;
}

void vsock_event(struct vsock *v, struct vsock_conn *c, unsigned events)
{
    /* No byte of it is for the guest yet, so its end is the end. */
    if (conn_is_client(c)) {
        if (events & VSOCK_EV_HUP) {
            vsock_note(v, VSOCK_NOTE_CLIENT_GONE, c, NULL);
            if (c->state == VSOCK_CLIENT) {
                conn_free(v, c);
            } else {
                conn_reset(v, c);
            }
        } else if (c->state == VSOCK_CLIENT) {
            client_line(v, c);
        }
        return;
    }
    if (!c->host || c->state == VSOCK_OPENING) {
        return;
    }
    if (events & VSOCK_EV_HUP) {
        c->hup = true;
        /* So that the read finds the end, and the write that nobody is. */
        events |= VSOCK_EV_IN | VSOCK_EV_OUT;
        /* It is read from no more, so no read would find the end. */
        if (c->state == VSOCK_OPEN && ((c->host_off & VSOCK_OFF_SEND) ||
                                       (c->guest_off & VSOCK_OFF_RECV))) {
            c->host_off = VSOCK_OFF_BOTH;
            conn_pend(v, c, PEND_SHUTDOWN);
        }
    }
    if (events & VSOCK_EV_IN) {
        conn_readable(v, c);
        if (conn_has_data(c)) {
            conn_queue(v, c);
        }
    }
    if (events & VSOCK_EV_OUT) {
        c->writable = true;
        if (c->buf_len) {
            conn_flush(v, c);
        }
    }
}

void vsock_opened(struct vsock *v, struct vsock_conn *c, int err)
{
    if (c->state != VSOCK_OPENING || !c->host) {
        return; /* decided already, by time or the guest */
    }
    err = err ? v->ops->instead(v->opaque, c) : 0;
    if (!err) {
        conn_open(v, c);
    } else if (err == -EINPROGRESS) {
        conn_opening(v, c);
    } else {
        vsock_note(v, VSOCK_NOTE_NO_LISTENER, c, NULL);
        conn_reset(v, c);
    }
}

struct vsock_conn *vsock_get(struct vsock *v, uint32_t slot, uint32_t gen)
{
    if (slot >= v->used_slots || v->slots[slot].gen != gen ||
        v->slots[slot].state == VSOCK_FREE) {
        return NULL;
    }
    return &v->slots[slot];
}

void vsock_tap(struct vsock *v, bool on)
{
    v->tap = on && v->ops->packet;
}

void vsock_show(struct vsock *v, const uint8_t raw[VSOCK_HDR_SIZE],
                const struct vsock_hdr *h, const struct iovec *iov,
                unsigned niov, size_t skip, size_t room)
{
    struct pcap_packet p = {
        .raw = raw,
        .iov = iov,
        .niov = niov,
        .skip = skip,
    };

    /* By vsockmon's rules no other operation has data. */
    if (h->op == VSOCK_OP_RW) {
        p.len = h->len < room ? h->len : room;
    }
    v->ops->packet(v->opaque, &p);
}

void vsock_set_now(struct vsock *v, int64_t now)
{
    v->now = now;
}

int64_t vsock_deadline(const struct vsock *v)
{
    int64_t when = v->next_deadline;

    if (!when) {
        return -1;
    }
    /*
     * What the last turn has left is due now; all else in steps, so that many
     * deadlines do not mean many walks.
     */
    return when <= v->now ?
               v->now :
               (when + VSOCK_MS_TICK - 1) / VSOCK_MS_TICK * VSOCK_MS_TICK;
}

static void conn_expired(struct vsock *v, struct vsock_conn *c)
{
    conn_deadline(v, c, 0);
    switch (c->state) {
    case VSOCK_CLIENT:
        vsock_note(v, VSOCK_NOTE_BAD_LINE, c, NULL);
        conn_free(v, c);
        break;
    case VSOCK_WAITING:
    case VSOCK_REQUESTED:
        vsock_note(v,
                   c->state == VSOCK_WAITING && fault_refuses(v, c) ?
                       VSOCK_NOTE_FAULT :
                       VSOCK_NOTE_GUEST_SILENT,
                   c, NULL);
        conn_reset(v, c);
        break;
    case VSOCK_OPENING:
        /* One that is in progress, or else a full backlog's next try. */
        if (c->host) {
            vsock_opened(v, c, -ETIMEDOUT);
        } else if (!conn_try(v, c)) {
            conn_reset(v, c);
        }
        break;
    case VSOCK_OPEN:
        /* Linux before 6.8 says nothing by itself, see above. */
        if (c->stall == VSOCK_STALL_PACKETS) {
            c->ask_ms = c->ask_ms * 2 < VSOCK_MS_ASK_MAX ? c->ask_ms * 2 :
                                                           VSOCK_MS_ASK_MAX;
            conn_deadline(v, c, v->now + c->ask_ms);
            conn_pend(v, c, PEND_ASK);
        }
        break;
    case VSOCK_CLOSING:
        vsock_note(v, VSOCK_NOTE_GUEST_SILENT, c, NULL);
        conn_reset(v, c);
        break;
    case VSOCK_RESET:
        end_close(v, c); /* the RST still waits for the guest */
        break;
    case VSOCK_DRAIN:
        conn_free(v, c);
        break;
    case VSOCK_FREE:
    case VSOCK_STATES:
        break;
    }
}

void vsock_tick(struct vsock *v)
{
    unsigned ended = 0;

    if (!v->next_deadline || v->now < v->next_deadline) {
        return;
    }
    v->next_deadline = 0; /* found again by what is left */
    for (uint32_t i = 0; i < v->used_slots; i++) {
        struct vsock_conn *c = &v->slots[i];

        if (c->state != VSOCK_FREE && (c->in_at || c->out_at)) {
            fault_tick(v, c);
        }
        if (c->state == VSOCK_FREE || !c->deadline) {
            continue;
        }
        /*
         * Thousands may end at once, each with words for the host and a packet
         * for the guest, and all others would wait for that.
         */
        if (c->deadline <= v->now && ended < VSOCK_MAX_ENDED) {
            conn_expired(v, c);
            ended += c->state == VSOCK_RESET || c->state == VSOCK_FREE;
        } else {
            conn_deadline(v, c, c->deadline);
        }
    }
}

unsigned vsock_count(const struct vsock *v)
{
    return v->count;
}

unsigned vsock_draining(const struct vsock *v)
{
    return v->draining;
}

size_t vsock_reserved(const struct vsock *v)
{
    return v->reserved;
}

const struct vsock_stats *vsock_stats(const struct vsock *v)
{
    return &v->stats;
}

struct vsock *vsock_new(const struct vsock_config *config,
                        const struct vsock_ops *ops, void *opaque)
{
    struct vsock *v = calloc(1, sizeof(*v));
    uint32_t buckets = 1;
    size_t share;

    if (!v) {
        return NULL;
    }
    v->config = *config;
    if (v->config.max_conns > VSOCK_MAX_CONNS_LIMIT) {
        v->config.max_conns = VSOCK_MAX_CONNS_LIMIT;
    }
    while (buckets < v->config.max_conns) {
        buckets *= 2;
    }
    v->ops = ops;
    v->opaque = opaque;
    v->bucket_mask = buckets - 1;
    TAILQ_INIT(&v->free);
    TAILQ_INIT(&v->ready);
    TAILQ_INIT(&v->later);
    TAILQ_INIT(&v->drains);
    /* Half of the memory is everybody's share, half for who comes first. */
    share = VSOCK_WINDOW_TOTAL / 2 / (v->config.max_conns ?: 1);
    v->small_window = share < VSOCK_WINDOW ? share : VSOCK_WINDOW;
    v->extra_max =
        VSOCK_WINDOW_TOTAL - (size_t)v->small_window * v->config.max_conns;
    v->slots = calloc(v->config.max_conns, sizeof(*v->slots));
    v->buckets = calloc(buckets, sizeof(*v->buckets));
    if (!v->slots || !v->buckets) {
        vsock_free(v);
        return NULL;
    }
    return v;
}

void vsock_free(struct vsock *v)
{
    for (uint32_t i = 0; i < v->used_slots; i++) {
        if (v->slots[i].state != VSOCK_FREE) {
            conn_free(v, &v->slots[i]);
        }
    }
    free(v->slots);
    free(v->buckets);
    free(v);
}
