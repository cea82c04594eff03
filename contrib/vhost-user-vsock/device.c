/*
 * SPDX-License-Identifier: MIT
 *
 * device.c: the two queues of a vsock device joined to the connection core:
 * chains become packets, packets become chains. What a packet means is the
 * core's business (vsock.c), how a ring works is ring.c's.
 *
 * Neither queue waits for the other. TX is worked off even when the guest has
 * posted no RX buffer: answers are bits in the connections. It pauses only when
 * the core's queue of RSTs for nobody's packets is full.
 */

#include "device.h"

#include <string.h>

void device_init(struct device *d, struct vsock *v,
                 const struct device_ops *ops, void *opaque)
{
    memset(d, 0, offsetof(struct device, hand_iov));
    for (unsigned i = 0; i < DEVICE_HAND; i++) {
        d->hand[i].iov = d->hand_iov[i];
        d->hand[i].max = DEVICE_PIECES;
    }
    d->vsock = v;
    d->ops = ops;
    d->opaque = opaque;
}

bool device_usable(const struct device *d, unsigned queue)
{
    const struct device_queue *q = &d->queue[queue];

    return q->started && q->enabled && q->ring.desc && !q->ring.broken;
}

static void publish(struct device *d, unsigned queue)
{
    if (ring_publish(&d->queue[queue].ring)) {
        d->ops->interrupt(d->opaque, queue);
    }
}

unsigned device_held(const struct device *d)
{
    const struct ring *r = &d->queue[QUEUE_TX].ring;

    return r->desc ? (uint16_t)(r->used_idx - r->published) : 0;
}

void device_settle(struct device *d)
{
    if (device_held(d)) {
        publish(d, QUEUE_TX);
    }
}

/*
 * The guest has sent no more for now. An interrupt that only gives back its
 * buffers costs it more than an answer, so where messages go to and fro a few
 * of them wait for the next ones. A stream's are given back at once.
 */
static void tx_empty(struct device *d, size_t bytes)
{
    unsigned most = d->queue[QUEUE_TX].ring.num / 8;

    most = most < DEVICE_HELD ? most : DEVICE_HELD;
    if (!d->hold || bytes > DEVICE_HELD_BYTES || device_held(d) >= most) {
        device_settle(d);
    }
}

static void bad_ring(struct device *d, unsigned queue, enum ring_result what)
{
    d->bad_chains++;
    d->ops->bad_ring(d->opaque, queue, what);
}

/* From the guest. */

/*
 * What could be read of a chain: of a bad one perhaps a part, and if that ends
 * within the payload, the core resets the connection.
 */
static void tx_chain(struct device *d, struct ring_chain *c)
{
    struct iovec *iov = c->iov;
    unsigned niov = c->niov;
    uint8_t raw[VSOCK_HDR_SIZE];
    size_t got = 0;

    if (c->len < sizeof(raw)) {
        vsock_tx_lost(d->vsock);
        return;
    }
    while (got < sizeof(raw)) {
        size_t n = iov->iov_len;

        n = n < sizeof(raw) - got ? n : sizeof(raw) - got;
        memcpy(raw + got, iov->iov_base, n);
        got += n;
        if (n == iov->iov_len) {
            iov++;
            niov--;
        } else {
            iov->iov_base = (uint8_t *)iov->iov_base + n;
            iov->iov_len -= n;
        }
    }
    vsock_tx(d->vsock, raw, iov, niov, c->len - sizeof(raw));
}

/* True: there is more. */
static bool device_tx(struct device *d, unsigned budget)
{
    struct ring *r = &d->queue[QUEUE_TX].ring;
    struct ring_chain c = {
        .iov = d->tx_iov,
        .max = sizeof(d->tx_iov) / sizeof(d->tx_iov[0]),
    };
    size_t bytes = 0;

    if (!device_usable(d, QUEUE_TX)) {
        return false;
    }
    ring_disarm(r);
    while (vsock_tx_ready(d->vsock)) {
        enum ring_result got = RING_BAD;

        if (!budget--) {
            publish(d, QUEUE_TX);
            return true;
        }
        got = ring_pop(r, &d->mem, false, &c);
        if (got == RING_CHAIN && c.len < VSOCK_HDR_SIZE) {
            ring_push(r, c.head, 0);
            got = RING_BAD;
        }
        switch (got) {
        case RING_CHAIN:
            bytes += c.len;
            tx_chain(d, &c);
            ring_push(r, c.head, 0);
            break;
        case RING_EMPTY:
            tx_empty(d, bytes);
            return false;
        case RING_BAD:
            tx_chain(d, &c);
            bad_ring(d, QUEUE_TX, got);
            break;
        case RING_BROKEN:
            bad_ring(d, QUEUE_TX, got);
            publish(d, QUEUE_TX);
            return false;
        }
    }
    publish(d, QUEUE_TX);
    return false;
}

/* To the guest. */

static void hand_fill(struct device *d)
{
    struct ring *r = &d->queue[QUEUE_RX].ring;

    while (d->hand_count < DEVICE_HAND) {
        unsigned i = (d->hand_head + d->hand_count) % DEVICE_HAND;
        struct ring_chain *c = &d->hand[i];
        enum ring_result got = ring_pop(r, &d->mem, true, c);

        if (got == RING_CHAIN && c->len <= VSOCK_HDR_SIZE) {
            ring_push(r, c->head, 0);
            got = RING_BAD;
        }
        if (got == RING_EMPTY) {
            break;
        }
        if (got != RING_CHAIN) {
            bad_ring(d, QUEUE_RX, got);
            /* One bad chain ends it, so that it costs a turn each. */
            break;
        }
        d->bufs[i] = (struct vsock_buf) { c->iov, c->niov, c->len, 0 };
        d->bufs[i + DEVICE_HAND] = d->bufs[i];
        d->hand_count++;
    }
    if (d->hand_count) {
        vsock_driver_seen(d->vsock);
    }
}

/*
 * Gives back what was taken in advance. (Bad chains in between make this
 * inexact, at the expense of the guest that posted them.)
 */
static void hand_drop(struct device *d)
{
    ring_unpop(&d->queue[QUEUE_RX].ring, d->hand_count);
    d->hand_count = 0;
}

/* True: there is more. */
static bool device_rx(struct device *d, unsigned budget)
{
    struct ring *r = &d->queue[QUEUE_RX].ring;

    if (!device_usable(d, QUEUE_RX)) {
        return false;
    }
    ring_disarm(r);
    while (vsock_rx_ready(d->vsock) ||
           (publish(d, QUEUE_RX), vsock_rx_again(d->vsock))) {
        struct vsock_buf *b = &d->bufs[d->hand_head];
        unsigned n;

        if (!budget--) {
            publish(d, QUEUE_RX);
            return true;
        }
        if (d->hand_count < DEVICE_HAND_LOW) {
            hand_fill(d);
        }
        if (!d->hand_count) {
            publish(d, QUEUE_RX);
            if (r->broken || !ring_arm(r)) {
                return false;
            }
            ring_disarm(r);
            continue;
        }
        n = vsock_rx(d->vsock, b, d->hand_count);
        for (unsigned i = 0; i < n; i++) {
            ring_push(r, d->hand[d->hand_head].head, b[i].used);
            d->hand_head = (d->hand_head + 1) % DEVICE_HAND;
            d->hand_count--;
        }
    }
    return false;
}

bool device_run(struct device *d)
{
    bool more = device_tx(d, DEVICE_TX_BUDGET);
    bool stopped = !vsock_tx_ready(d->vsock);

    more |= device_rx(d, DEVICE_RX_BUDGET);
    return more || (stopped && vsock_tx_ready(d->vsock));
}

bool device_waits(const struct device *d)
{
    return device_usable(d, QUEUE_TX) && vsock_tx_ready(d->vsock) &&
           ring_waits(&d->queue[QUEUE_TX].ring);
}

bool device_arm(struct device *d)
{
    return device_usable(d, QUEUE_TX) && vsock_tx_ready(d->vsock) &&
           ring_arm(&d->queue[QUEUE_TX].ring);
}

/* Life. */

/*
 * The last packets of a guest that ends: it may have been stopped before we
 * saw its kick.
 */
static void tx_finish(struct device *d)
{
    device_tx(d, d->queue[QUEUE_TX].ring.num);
    device_settle(d);
}

/* Translates the ring's addresses again. */
static bool device_map(struct device *d, unsigned queue)
{
    if (queue == QUEUE_RX) {
        hand_drop(d);
    }
    return ring_map(&d->queue[queue].ring, &d->mem);
}

void device_start(struct device *d, unsigned queue)
{
    struct device_queue *q = &d->queue[queue];

    device_settle(d);
    q->started = true;
    q->ring.broken = false;
    device_map(d, queue);
}

void device_set_base(struct device *d, unsigned queue, uint16_t index)
{
    if (queue == QUEUE_RX) {
        d->hand_count = 0;
    }
    d->queue[queue].ring.next = index;
    d->queue[queue].base_set = true;
    /*
     * A pause keeps the indexes, a driver that begins anew has both at 0.
     * (So has one pause in 2^32, and then connections are cut.)
     */
    if (d->queue[QUEUE_RX].base_set && d->queue[QUEUE_TX].base_set &&
        !d->queue[QUEUE_RX].ring.next && !d->queue[QUEUE_TX].ring.next) {
        vsock_fresh_driver(d->vsock);
        d->ops->fresh_driver(d->opaque);
    }
}

void device_enable(struct device *d, unsigned queue, bool on)
{
    if (!on && queue == QUEUE_TX) {
        tx_finish(d);
    }
    d->queue[queue].enabled = on;
}

uint16_t device_stop(struct device *d, unsigned queue)
{
    struct device_queue *q = &d->queue[queue];

    if (queue == QUEUE_RX) {
        hand_drop(d);
    } else {
        tx_finish(d);
    }
    q->started = false;
    q->base_set = false;
    return q->ring.next;
}

void device_set_mem(struct device *d, struct guest_mem *m)
{
    device_settle(d);
    hand_drop(d);
    guest_mem_clear(&d->mem);
    d->mem = *m;
    m->count = 0;
    for (unsigned i = 0; i < QUEUES; i++) {
        ring_map(&d->queue[i].ring, &d->mem);
    }
}

void device_set_size(struct device *d, unsigned queue, unsigned num)
{
    struct ring *r = &d->queue[queue].ring;

    device_settle(d);
    /* The old addresses were checked against the old size. */
    ring_unmap(r);
    r->num = num;
    device_map(d, queue);
}

bool device_set_addresses(struct device *d, unsigned queue, uint64_t desc,
                          uint64_t avail, uint64_t used)
{
    struct ring *r = &d->queue[queue].ring;

    device_settle(d);
    r->desc_user = desc;
    r->avail_user = avail;
    r->used_user = used;
    r->has_addr = true;
    return device_map(d, queue);
}

void device_set_event_idx(struct device *d, bool on)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        d->queue[i].ring.event_idx = on;
    }
}

void device_reset(struct device *d)
{
    tx_finish(d);
    d->hand_count = 0;
    memset(d->queue, 0, sizeof(d->queue));
    guest_mem_clear(&d->mem);
    vsock_disconnect(d->vsock);
}
