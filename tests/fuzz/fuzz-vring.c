/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: the vsock backend's rings and device
 *
 * Input: a script of writes to guest memory, in which both rings lie, and of
 * runs of the device. Guest memory is a heap block of exactly its size, so a
 * sanitizer sees every step beside it. Beyond that, it checks that a run ends,
 * that a chain is given back only after it was taken, and once, and that
 * a fresh driver always finds a device that works. A bad chain, which ring.c
 * itself gives back, is not followed: it may come back twice where the queue
 * is stopped in between (hand_drop() in device.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "fuzz-vring.h"
#include "target.h"

#define MEMORY 16384
#define NUM 8
#define USER 0x7f0000000000ull
#define GUEST 0x100000ull
/* Where things are: per ring descriptors, avail, used; then buffers. */
#define RING_AT(q) ((q) * 512u)
#define AVAIL 128
#define USED 192
#define BUFFERS 1024
/* Between two regions, within the last packet. */
#define BORDER 8211

#define CHECK(claim)                                                    \
    do {                                                                \
        if (!(claim)) {                                                 \
            abort();                                                    \
        }                                                               \
    } while (0)

static const uint8_t *input;
static size_t input_size;
static uint8_t *memory;

static uint8_t byte(void)
{
    if (!input_size) {
        return 0;
    }
    input_size--;
    return *input++;
}

/* A host end that takes all and says as much as is wanted. */

static int op_open(void *opaque, struct vsock_conn *c)
{
    (void)opaque;
    c->fd = 1;
    return c->parent_port % 4 == 3 ? -ENOENT : 0;
}

static ssize_t op_send(void *opaque, struct vsock_conn *c,
                       const struct iovec *iov, unsigned niov)
{
    /* Volatile, so that reading every byte is not optimised away. */
    static volatile uint8_t sum __attribute__((unused));
    ssize_t n = 0;

    (void)opaque;
    c->answer = true;
    for (unsigned i = 0; i < niov; i++) {
        const uint8_t *p = iov[i].iov_base;

        for (size_t j = 0; j < iov[i].iov_len; j++) {
            sum += p[j];
        }
        n += iov[i].iov_len;
    }
    return n;
}

static ssize_t op_recv(void *opaque, struct vsock_conn *c,
                       const struct iovec *iov, unsigned niov)
{
    ssize_t n = 0;

    (void)opaque;
    (void)c;
    for (unsigned i = 0; i < niov; i++) {
        memset(iov[i].iov_base, 0x5a, iov[i].iov_len);
        n += iov[i].iov_len;
    }
    return c->parent_port % 4 == 2 && n ? n : -EAGAIN;
}

static ssize_t op_peek(void *opaque, struct vsock_conn *c, void *buf, size_t n)
{
    (void)opaque;
    (void)c;
    (void)buf;
    (void)n;
    return -EAGAIN;
}

static void op_shutdown(void *opaque, struct vsock_conn *c, int how)
{
    (void)opaque;
    (void)c;
    (void)how;
}

static void op_close(void *opaque, struct vsock_conn *c, bool cut)
{
    (void)opaque;
    (void)cut;
    c->fd = -1;
}

static void op_note(void *opaque, enum vsock_note note,
                    const struct vsock_conn *c, const struct vsock_hdr *h)
{
    (void)opaque;
    (void)note;
    (void)c;
    (void)h;
}

static const struct vsock_ops ops = {
    .open = op_open,            /* at once, so there is no "instead" */
    .send = op_send,
    .recv = op_recv,
    .peek = op_peek,
    .shutdown = op_shutdown,
    .close = op_close,
    .note = op_note,
};

static void on_interrupt(void *opaque, unsigned queue)
{
    (void)opaque;
    CHECK(queue < QUEUES);
}

static void on_bad_ring(void *opaque, unsigned queue, enum ring_result what)
{
    (void)opaque;
    CHECK(queue < QUEUES && (what == RING_BAD || what == RING_BROKEN));
}

static void on_fresh_driver(void *opaque)
{
    (void)opaque;
}

static const struct device_ops device_ops = {
    on_interrupt, on_bad_ring, on_fresh_driver,
};

/*
 * Which chains the device holds, by the head: the linker's --wrap leads the
 * calls of device.c here.
 */
static unsigned held[QUEUES][NUM];
static const struct ring *rings[QUEUES];

static unsigned *held_of(const struct ring *r)
{
    CHECK(r == rings[QUEUE_RX] || r == rings[QUEUE_TX]);
    return held[r == rings[QUEUE_TX] ? QUEUE_TX : QUEUE_RX];
}

enum ring_result __wrap_ring_pop(struct ring *r, const struct guest_mem *m,
                                 bool writable, struct ring_chain *c)
{
    enum ring_result got = __real_ring_pop(r, m, writable, c);

    if (got == RING_CHAIN) {
        CHECK(c->head < NUM);
        held_of(r)[c->head]++;  /* a driver may offer what it has not back */
    }
    return got;
}

void __wrap_ring_push(struct ring *r, uint16_t head, uint32_t written)
{
    CHECK(head < NUM && held_of(r)[head]);
    held_of(r)[head]--;
    __real_ring_push(r, head, written);
}

/* Whatever is held in advance is to be taken again. */
void __wrap_ring_unpop(struct ring *r, unsigned n)
{
    unsigned *heads = held_of(r), count = 0;

    for (unsigned i = 0; i < NUM; i++) {
        count += heads[i];
        heads[i] = 0;
    }
    CHECK(count == n);
    __real_ring_unpop(r, n);
}

static void put16(unsigned at, uint16_t x)
{
    memcpy(memory + at, &x, sizeof(x));
}

static uint16_t get16(unsigned at)
{
    uint16_t x;

    memcpy(&x, memory + at, sizeof(x));
    return x;
}

static void put_desc(unsigned queue, unsigned i, uint64_t addr, uint32_t len,
                     uint16_t flags, uint16_t next)
{
    uint8_t *p = memory + RING_AT(queue) + 16 * i;

    memcpy(p, &addr, 8);
    memcpy(p + 8, &len, 4);
    memcpy(p + 12, &flags, 2);
    memcpy(p + 14, &next, 2);
}

static void start(struct device *d, uint16_t base)
{
    for (unsigned q = 0; q < QUEUES; q++) {
        struct ring *r = &d->queue[q].ring;

        r->num = NUM;
        r->desc_user = USER + RING_AT(q);
        r->avail_user = USER + RING_AT(q) + AVAIL;
        r->used_user = USER + RING_AT(q) + USED;
        r->has_addr = true;
        device_set_base(d, q, base);    /* it lets go of what it held */
        memset(held[q], 0, sizeof(held[q]));
        device_start(d, q);
        device_enable(d, q, true);
        CHECK(device_usable(d, q));
    }
}

/* It stops by itself, whatever lies in the rings. */
static void run(struct device *d)
{
    unsigned turns = 0;

    while (device_run(d)) {
        CHECK(++turns < 100000);
        if (turns == 64) {
            return;     /* a host end that never ends talking */
        }
    }
}

static void offer(unsigned queue, uint16_t head)
{
    unsigned avail = RING_AT(queue) + AVAIL;
    uint16_t idx = get16(avail + 2);

    put16(avail + 4 + 2 * (idx % NUM), head);
    put16(avail + 2, idx + 1);
}

/* A packet that makes sense, so that there is something to answer. */
static void offer_packet(void)
{
    static const uint8_t opcodes[] = { 1, 5, 7, 4, 6, 3, 1, 5 };
    struct vsock_hdr h = {
        .src_cid = 4, .dst_cid = 3, .type = VSOCK_TYPE_STREAM,
        .buf_alloc = 262144,
    };
    uint8_t how = byte();
    unsigned i = how % 4, at = BUFFERS + 512 * i;

    h.op = opcodes[how >> 5];
    h.src_port = byte() % 4;
    h.dst_port = byte() % 4;
    h.flags = 3;
    h.len = h.op == VSOCK_OP_RW ? 100 : 0;
    vsock_hdr_encode(&h, memory + at);
    put_desc(QUEUE_TX, 2 * i, GUEST + at, 44 + h.len, 0, 0);
    offer(QUEUE_TX, 2 * i);
}

static void offer_buffer(void)
{
    uint8_t how = byte();
    unsigned i = how % NUM;

    put_desc(QUEUE_RX, i, GUEST + BUFFERS + 4096 + 1024 * i, 45 + how * 3, 2,
             0);
    offer(QUEUE_RX, i);
}

static void stop(struct device *d, uint16_t base[QUEUES])
{
    for (unsigned q = 0; q < QUEUES; q++) {
        device_enable(d, q, false);
        base[q] = device_stop(d, q);
    }
}

/* What the next bytes of the input say. */
static void act(struct device *d)
{
    uint16_t base[QUEUES];
    unsigned what = byte();

    switch (what % 8) {
    case 0:                     /* any byte of both rings */
        memory[byte() | (byte() & 3) << 8] = byte();
        break;
    case 1:                     /* a descriptor that points near an edge */
        put_desc(what >> 3 & 1, byte() % NUM,
                 GUEST + (byte() & 1 ? MEMORY : 0) - byte(), byte(),
                 byte() & 7, byte() % 10);
        break;
    case 2:
        offer(what >> 3 & 1, byte() % (NUM + 1));
        break;
    case 3:
        offer_packet();
        break;
    case 4:
    case 5:
        offer_buffer();
        break;
    case 6:
        run(d);
        break;
    case 7:                     /* stop and go, paused or afresh */
        if (what & 8) {
            stop(d, base);
            start(d, base[QUEUE_TX]);
        } else {
            memset(memory, 0, BUFFERS);
            start(d, 0);
        }
        break;
    }
}

/* A fresh driver finds it working: a packet to a stranger is reset. */
static void check_fresh(struct device *d)
{
    uint16_t base[QUEUES];

    stop(d, base);
    memset(memory, 0, MEMORY);
    start(d, 0);
    put_desc(QUEUE_RX, 0, GUEST + BUFFERS, 100, 2, 0);
    offer(QUEUE_RX, 0);
    vsock_hdr_encode(&(struct vsock_hdr) {
                         .src_cid = 4, .dst_cid = 3, .src_port = 77,
                         .dst_port = 88, .type = VSOCK_TYPE_STREAM, .op = 5,
                     }, memory + 8192);
    put_desc(QUEUE_TX, 0, GUEST + 8192, 44, 0, 0);
    offer(QUEUE_TX, 0);
    run(d);
    device_settle(d);
    CHECK(get16(RING_AT(QUEUE_TX) + USED + 2) == 1);
    CHECK(get16(RING_AT(QUEUE_RX) + USED + 2) == 1);
    CHECK(memory[BUFFERS + 30] == VSOCK_OP_RST && memory[BUFFERS + 20] == 77);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vsock_config config = {
        .guest_cid = 4, .serve_cid2 = true, .max_conns = 8,
        .driver_ms = VSOCK_MS_DRIVER,
    };
    struct vsock *v = vsock_new(&config, &ops, NULL);
    static struct device *d;    /* large, and device_init() leaves nothing */
    struct guest_mem mem = { .count = 2 };
    uint8_t how;

    if (!d) {
        d = malloc(sizeof(*d));
        memory = malloc(MEMORY);
    }
    CHECK(v && d && memory);
    memset(memory, 0, MEMORY);
    input = data;
    input_size = size;
    memset(held, 0, sizeof(held));
    vsock_set_now(v, 1);
    device_init(d, v, &device_ops, NULL);
    rings[QUEUE_RX] = &d->queue[QUEUE_RX].ring;
    rings[QUEUE_TX] = &d->queue[QUEUE_TX].ring;
    /* Two regions that meet, over one block. */
    mem.region[0] = (struct guest_mem_region) {
        .guest = GUEST, .user = USER, .size = BORDER, .host = memory,
    };
    mem.region[1] = (struct guest_mem_region) {
        .guest = GUEST + BORDER, .user = USER + MEMORY,
        .size = MEMORY - BORDER, .host = memory + BORDER,
    };
    d->mem = mem;
    how = byte();
    d->queue[0].ring.event_idx = d->queue[1].ring.event_idx = how & 1;
    d->hold = how & 2;
    start(d, 0);
    while (input_size) {
        act(d);
    }
    run(d);
    check_fresh(d);

    d->mem.count = 0;           /* no mapping to remove */
    vsock_free(v);
    return 0;
}
