/*
 * SPDX-License-Identifier: MIT
 *
 * When the guest gets its buffers back, and is told so: rings in a memfd, a
 * device over them, no front end. The packets are from another CID's address,
 * so that nothing else comes of them.
 */
#include "device.h"

#include <glib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY (1u << 20)
#define GUEST 0x100000
#define USER 0x7f0000000000
#define NUM 256

/* Offsets of TX; RX has a ring without entries. */
enum {
    DESC = 0,
    AVAIL = 0x4000,
    USED = 0x5000,
    RX = 0x8000,
    PACKET = 0x10000,
};

static uint8_t *memory;
static int memory_fd;
static unsigned interrupts;
static uint16_t offered;

static void on_interrupt(void *opaque, unsigned queue)
{
    g_assert_cmpuint(queue, ==, QUEUE_TX);
    interrupts++;
}

static void on_bad_ring(void *opaque, unsigned queue, enum ring_result what)
{
    g_assert_not_reached();
}

static void on_fresh_driver(void *opaque)
{
}

static const struct device_ops device_ops = {
    .interrupt = on_interrupt,
    .bad_ring = on_bad_ring,
    .fresh_driver = on_fresh_driver,
};

static void on_note(void *opaque, enum vsock_note what,
                    const struct vsock_conn *c, const struct vsock_hdr *h)
{
    g_assert_cmpint(what, ==, VSOCK_NOTE_BAD_SOURCE);
}

static const struct vsock_ops vsock_ops = { .note = on_note };

static void put16(unsigned at, uint16_t value)
{
    memcpy(memory + at, &value, sizeof(value));
}

/* How many were given back, modulo 2^16. */
static unsigned back(void)
{
    uint16_t value;

    memcpy(&value, memory + USED + 2, sizeof(value));
    return value;
}

static void map(struct device *d)
{
    struct guest_mem mem = { 0 };

    g_assert_cmpint(
        guest_mem_add(&mem, memory_fd, GUEST, USER, MEMORY, 0), ==, 0);
    device_set_mem(d, &mem);
}

static void begin(struct device *d, struct vsock *v, unsigned num)
{
    guest_mem_clear(&d->mem);
    memset(memory, 0, MEMORY);
    offered = 0;
    interrupts = 0;
    device_init(d, v, &device_ops, NULL);
    map(d);
    for (unsigned q = 0; q < QUEUES; q++) {
        uint64_t at = USER + (q == QUEUE_TX ? 0 : RX);

        device_set_size(d, q, num);
        g_assert_true(
            device_set_addresses(d, q, at + DESC, at + AVAIL, at + USED));
        device_start(d, q);
        device_enable(d, q, true);
    }
    d->hold = true;
}

/* So many packets of so many bytes, and the turn that takes them. */
static void put(struct device *d, unsigned count, uint32_t bytes)
{
    unsigned num = d->queue[QUEUE_TX].ring.num;
    uint64_t addr = GUEST + PACKET;
    uint32_t len = VSOCK_HDR_SIZE + bytes;

    while (count--) {
        unsigned i = offered % num;

        memcpy(memory + DESC + 16 * i, &addr, sizeof(addr));
        memcpy(memory + DESC + 16 * i + 8, &len, sizeof(len));
        put16(AVAIL + 4 + 2 * i, i);
        put16(AVAIL + 2, ++offered);
    }
    g_assert_false(device_run(d));
}

static void test_few_wait(struct device *d, struct vsock *v)
{
    begin(d, v, NUM);
    for (unsigned i = 1; i < DEVICE_HELD; i++) {
        put(d, 1, 1);
        g_assert_cmpuint(device_held(d), ==, i);
        g_assert_cmpuint(back(), ==, 0);
    }
    g_assert_cmpuint(interrupts, ==, 0);
    put(d, 1, 1);
    g_assert_cmpuint(back(), ==, DEVICE_HELD);
    g_assert_cmpuint(interrupts, ==, 1);
    put(d, 3, 1);
    device_settle(d);
    g_assert_cmpuint(back(), ==, DEVICE_HELD + 3);
    g_assert_cmpuint(interrupts, ==, 2);
    device_settle(d);
    g_assert_cmpuint(interrupts, ==, 2);
    /* Not held: each turn's at once. */
    d->hold = false;
    put(d, 1, 1);
    g_assert_cmpuint(device_held(d), ==, 0);
    g_assert_cmpuint(interrupts, ==, 3);
}

static void test_many_bytes_do_not(struct device *d, struct vsock *v)
{
    begin(d, v, NUM);
    put(d, 1, DEVICE_HELD_BYTES / 2);
    g_assert_cmpuint(back(), ==, 0);
    put(d, 1, DEVICE_HELD_BYTES);
    g_assert_cmpuint(back(), ==, 2);
    put(d, 4, DEVICE_HELD_BYTES / 4);
    g_assert_cmpuint(back(), ==, 6);
}

static void test_a_small_queue(struct device *d, struct vsock *v)
{
    begin(d, v, 4);
    put(d, 1, 1);
    g_assert_cmpuint(back(), ==, 1);
    begin(d, v, 32);
    put(d, 3, 1);
    g_assert_cmpuint(back(), ==, 0);
    put(d, 1, 1);
    g_assert_cmpuint(back(), ==, 4);
}

/* Whatever the front end does to queue or memory, nothing is lost. */
static void test_life(struct device *d, struct vsock *v)
{
    for (unsigned what = 0; what < 7; what++) {
        begin(d, v, NUM);
        put(d, 2, 1);
        g_assert_cmpuint(back(), ==, 0);
        switch (what) {
        case 0:
            g_assert_cmpuint(device_stop(d, QUEUE_TX), ==, 2);
            break;
        case 1:
            device_enable(d, QUEUE_TX, false);
            break;
        case 2:
            map(d);
            break;
        case 3:
            device_set_size(d, QUEUE_TX, NUM);
            break;
        case 4:
            g_assert_true(device_set_addresses(d, QUEUE_TX, USER + DESC,
                                               USER + AVAIL, USER + USED));
            break;
        case 5:
            device_start(d, QUEUE_TX);
            break;
        case 6:
            device_reset(d);
            break;
        }
        g_assert_cmpuint(back(), ==, 2);
        g_assert_cmpuint(interrupts, ==, 1);
        g_assert_cmpuint(device_held(d), ==, 0);
    }
}

static void with_device(gconstpointer data)
{
    void (*const *test)(struct device *, struct vsock *) = data;
    struct vsock_config config = { .guest_cid = 4, .max_conns = 1 };
    struct vsock *v = vsock_new(&config, &vsock_ops, NULL);
    struct device *d = g_new0(struct device, 1);

    memory_fd = memfd_create("guest", MFD_CLOEXEC);
    g_assert_cmpint(memory_fd, >=, 0);
    g_assert_cmpint(ftruncate(memory_fd, MEMORY), ==, 0);
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd,
                  0);
    g_assert_true(memory != MAP_FAILED);
    (*test)(d, v);
    device_reset(d);
    munmap(memory, MEMORY);
    close(memory_fd);
    vsock_free(v);
    g_free(d);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *path;
        void (*test)(struct device *, struct vsock *);
    } tests[] = {
        { "/held/few-wait", test_few_wait },
        { "/held/many-bytes-do-not", test_many_bytes_do_not },
        { "/held/a-small-queue", test_a_small_queue },
        { "/held/life", test_life },
    };

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(tests); i++) {
        g_test_add_data_func(tests[i].path, &tests[i].test, with_device);
    }
    return g_test_run();
}
