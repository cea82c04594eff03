/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for the NSM device's queue
 *
 * On -M microvm, without the board and without a guest: everything that a
 * driver may do to the queue, and what none may. What commands mean is
 * virtio-nsm-test's subject.
 */

#include "qemu/osdep.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "nitro-qtest.h"

/* Both chains are used before the one interrupt, the request first. */
static void test_one_interrupt(void)
{
    QTestState *qts = nitro_qemu_start(NSM_LEGACY);
    NsmQueue q;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    qtest_irq_intercept_in(qts, "/machine/ioapic");
    nsm_fill(&q, 3, NSM_GET_RANDOM);
    nsm_desc(&q, 3, NSM_BUF(3), 10, 0, 0);
    nsm_desc(&q, 2, NSM_BUF(2), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 3);
    nsm_avail(&q, 2);
    g_assert_false(qtest_get_irq(qts, 5 + NSM_TRANSPORT));
    nsm_kick(&q);
    g_assert_true(qtest_get_irq(qts, 5 + NSM_TRANSPORT));
    g_assert_cmpuint(nsm_used_count(&q), ==, 2);
    nsm_expect_used(&q, 3, 0);
    nsm_expect_used(&q, 2, NSM_GET_RANDOM_ANSWER);
    g_assert_true(nsm_interrupt(&q));
    g_assert_false(nsm_interrupt(&q));
    g_assert_false(qtest_get_irq(qts, 5 + NSM_TRANSPORT));
    qtest_quit(qts);
}

/* Put one pair into descriptors @i and @i + 1. */
static void add_pair(NsmQueue *q, unsigned int i, NsmBytes req, uint32_t cap)
{
    nsm_fill(q, i, req);
    nsm_desc(q, i, NSM_BUF(i), req.len, 0, 0);
    nsm_desc(q, i + 1, NSM_BUF(i + 1), cap, VRING_DESC_F_WRITE, 0);
    nsm_avail(q, i);
    nsm_avail(q, i + 1);
}

/* As many commands as the queue holds, each answered in its own buffer. */
static void test_several_pairs(void)
{
    QTestState *qts = nitro_qemu_start(NSM_LEGACY);
    uint8_t req[64], pcr[48];
    uint8_t resp[32];
    NsmQueue q;
    bool lock;
    int i, round;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    for (round = 0; round < 3; round++) {
        for (i = 0; i < NSM_QUEUE_NUM; i += 2) {
            add_pair(&q, i, nsm_req_lock_pcr(req, 16 + i / 2), 0x3000);
        }
        nsm_kick(&q);
        for (i = 0; i < NSM_QUEUE_NUM; i += 2) {
            uint32_t head, len;

            nsm_expect_used(&q, i, 0);
            nsm_used(&q, &head, &len);
            g_assert_cmpuint(head, ==, i + 1);
            g_assert_cmpuint(len, ==, round ? 21 : 8);
            qtest_memread(qts, NSM_BUF(i + 1), resp, len);
            if (round) {
                g_assert_cmpmem(resp, len, "\xa1\x65" "Error" "\x6d"
                                "ReadOnlyIndex", 21);
            } else {
                g_assert_cmpmem(resp, len, "\x67" "LockPCR", 8);
            }
        }
    }
    for (i = 16; i < 32; i++) {
        nsm_describe_pcr(&q, i, pcr, &lock);
        g_assert_cmpint(lock, ==, i < 16 + NSM_QUEUE_NUM / 2);
    }
    qtest_quit(qts);
}

/* The driver's hwrng asks during probe, and waits for the answer. */
static void test_before_driver_ok(const void *opaque)
{
    QTestState *qts = nitro_qemu_start(opaque);
    uint8_t resp[0x3000];
    NsmQueue q;

    nsm_queue_init(&q, qts, NSM_TRANSPORT);
    g_assert_cmpuint(nsm_command(&q, NSM_GET_RANDOM, resp,
                                 sizeof(resp)), ==, NSM_GET_RANDOM_ANSWER);
    qvirtio_set_driver_ok(&q.dev.vdev);
    nsm_check_alive(&q);
    qtest_quit(qts);
}

/* Any user of the guest can make these with an ioctl. */
static void test_zero_length(void)
{
    QTestState *qts = nitro_qemu_start(NSM_LEGACY);
    uint8_t resp[0x3000];
    NsmQueue q;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    nsm_expect_error(&q, BYTES(""), "InvalidOperation");
    nsm_check_alive(&q);
    g_assert_cmpuint(nsm_command(&q, NSM_GET_RANDOM, resp, 0), ==,
                     0);
    nsm_check_alive(&q);
    g_assert_cmpuint(nsm_command(&q, BYTES(""), resp, 0), ==, 0);
    nsm_check_alive(&q);
    qtest_quit(qts);
}

/*
 * Every size of response buffer: the answer, an error that fits, or nothing;
 * never a byte beyond the buffer.
 */
static void test_response_sizes(void)
{
    static const char answer_head[] = "\xa1\x69" "GetRandom";
    static const char error_head[] = "\xa1\x65" "Error";
    QTestState *qts = nitro_qemu_start(NSM_LEGACY);
    NsmQueue q;
    size_t cap;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    for (cap = 0; cap < 300; cap++) {
        uint8_t resp[300];
        size_t len;

        qtest_memset(qts, NSM_BUF(1), 0x5a, 300);
        len = nsm_command(&q, NSM_GET_RANDOM, resp, cap);
        if (cap >= NSM_GET_RANDOM_ANSWER) {
            g_assert_cmpuint(len, ==, NSM_GET_RANDOM_ANSWER);
            g_assert_cmpmem(resp, strlen(answer_head), answer_head,
                            strlen(answer_head));
        } else if (len) {
            g_assert_cmpuint(len, >, strlen(error_head));
            g_assert_cmpmem(resp, strlen(error_head), error_head,
                            strlen(error_head));
        } else {
            g_assert_cmpuint(cap, <, 22);
        }
        if (cap >= 22 && cap < NSM_GET_RANDOM_ANSWER) {
            g_assert_cmpmem(resp, len, "\xa1\x65" "Error" "\x6e"
                            "BufferTooSmall", 22);
        }
        qtest_memread(qts, NSM_BUF(1), resp, sizeof(resp));
        for (; len < sizeof(resp); len++) {
            g_assert_cmphex(resp[len], ==, 0x5a);
        }
    }
    nsm_check_alive(&q);
    qtest_quit(qts);
}

/* A buffer that is too small leaves the state alone. */
static void test_no_effect_without_answer(void)
{
    static const uint8_t zero[48];
    QTestState *qts = nitro_qemu_start(NSM_LEGACY);
    uint8_t req[64], resp[64], pcr[48];
    NsmQueue q;
    bool lock;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    nsm_command(&q, nsm_req_extend_pcr(req, 20, BYTES("\x01")), resp,
                sizeof(resp));
    nsm_describe_pcr(&q, 20, pcr, &lock);
    g_assert_cmpmem(pcr, 48, zero, 48);
    qtest_quit(qts);
}

/* Request and response in pieces, also in pieces of nothing. */
static void test_many_descriptors(void)
{
    QTestState *qts = nitro_qemu_start(NSM_LEGACY);
    uint8_t whole[0x3000], resp[0x3000];
    uint32_t head, used;
    size_t len, pos;
    NsmQueue q;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    len = nsm_command(&q, NSM_DESCRIBE_NSM, whole, sizeof(whole));

    nsm_fill(&q, 0, NSM_DESCRIBE_NSM);
    nsm_desc(&q, 5, NSM_BUF(0), 1, VRING_DESC_F_NEXT, 9);
    nsm_desc(&q, 9, NSM_BUF(0), 0, VRING_DESC_F_NEXT, 2);
    nsm_desc(&q, 2, NSM_BUF(0) + 1, 11, 0, 0);
    nsm_desc(&q, 7, NSM_BUF(1), 7, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 6);
    nsm_desc(&q, 6, NSM_BUF(2), 0, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
    nsm_desc(&q, 1, NSM_BUF(3), 1, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 0);
    nsm_desc(&q, 0, NSM_BUF(4), 0x1000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 5);
    nsm_avail(&q, 7);
    nsm_kick(&q);
    nsm_expect_used(&q, 5, 0);
    nsm_used(&q, &head, &used);
    g_assert_cmpuint(head, ==, 7);
    g_assert_cmpuint(used, ==, len);
    pos = 0;
    qtest_memread(qts, NSM_BUF(1), resp, 7);
    pos += 7;
    qtest_memread(qts, NSM_BUF(3), resp + pos, 1);
    pos += 1;
    qtest_memread(qts, NSM_BUF(4), resp + pos, len - pos);
    g_assert_cmpmem(resp, len, whole, len);
    nsm_check_alive(&q);
    qtest_quit(qts);
}

static void test_long_request(void)
{
    g_autofree uint8_t *req = g_malloc0(0x2000);
    QTestState *qts = nitro_qemu_start(NSM_LEGACY);
    NsmQueue q;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    nsm_expect_error(&q, (NsmBytes) { req, 0x1001 }, "InputTooLarge");
    nsm_expect_error(&q, (NsmBytes) { req, 0x2000 }, "InputTooLarge");
    nsm_check_alive(&q);
    qtest_quit(qts);
}

/*
 * Sequences of descriptors and kicks
 *
 * What a driver may do in an unusual way, and what it must not do at all. Each
 * chain comes back, with so many bytes written, and none of it harms what
 * follows. Before each case a GetRandom request lies in buffer 0.
 */

#define REQUEST 10                      /* bytes of GetRandom */
#define ROOM 0x3000                     /* the driver's for a response */
#define NOT_SERVED 24                   /* {"Error": "InvalidOperation"} */
#define TOO_LARGE 21                    /* {"Error": "InputTooLarge"} */
#define NEXT VRING_DESC_F_NEXT
#define WRITE VRING_DESC_F_WRITE
#define INDIRECT VRING_DESC_F_INDIRECT

typedef struct Descriptor {
    uint8_t index;
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} Descriptor;

typedef struct Used {
    uint16_t head;
    uint32_t len;
} Used;

/* Descriptors are written, heads made available, and the device is kicked. */
typedef struct Kick {
    const char *name;           /* of the case; NULL: it goes on */
    Descriptor desc[3];
    uint16_t heads[3];
    Used used[3];               /* all that comes back */
    unsigned int n_desc, n_heads, n_used;
} Kick;

#define COUNT(type, ...) (sizeof((const type[]) { __VA_ARGS__ }) / sizeof(type))
#define DESC(...) \
    .desc = { __VA_ARGS__ }, .n_desc = COUNT(Descriptor, __VA_ARGS__)
#define AVAIL(...) \
    .heads = { __VA_ARGS__ }, .n_heads = COUNT(uint16_t, __VA_ARGS__)
#define USED(...) \
    .used = { __VA_ARGS__ }, .n_used = COUNT(Used, __VA_ARGS__)

static const Kick kicks[] = {
    { "a request, a second kick, and the response buffer later",
      DESC({ 0, NSM_BUF(0), REQUEST }), AVAIL(0) },
    { NULL },
    { NULL, DESC({ 1, NSM_BUF(1), ROOM, WRITE }), AVAIL(1),
      USED({ 0, 0 }, { 1, NSM_GET_RANDOM_ANSWER }) },
    { "room for more than any answer",
      DESC({ 0, NSM_BUF(0), REQUEST }, { 1, NSM_BUF(1), 0x80000, WRITE }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, NSM_GET_RANDOM_ANSWER }) },
    { "a request longer than any, and longer than guest RAM",
      DESC({ 0, NSM_BUF(0), UINT32_MAX }, { 1, NSM_BUF(1), ROOM, WRITE }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, TOO_LARGE }) },
    { "the response buffer first: an error in it",
      DESC({ 1, NSM_BUF(1), ROOM, WRITE }), AVAIL(1),
      USED({ 1, NOT_SERVED }) },
    { "two requests, then a response: the second is served",
      DESC({ 2, NSM_BUF(0), 3 }, { 0, NSM_BUF(0), REQUEST },
           { 1, NSM_BUF(1), ROOM, WRITE }),
      AVAIL(2, 0, 1),
      USED({ 2, 0 }, { 0, 0 }, { 1, NSM_GET_RANDOM_ANSWER }) },
    { "request and response in one chain: an error in it",
      DESC({ 0, NSM_BUF(0), REQUEST, NEXT, 1 },
           { 1, NSM_BUF(1), ROOM, WRITE }),
      AVAIL(0), USED({ 0, NOT_SERVED }) },
    { "readable after writable",
      DESC({ 0, NSM_BUF(0), 10, NEXT | WRITE, 1 }, { 1, NSM_BUF(1), 10 }),
      AVAIL(0), USED({ 0, 0 }) },
    { "a loop, and a loop of one",
      DESC({ 0, NSM_BUF(0), 10, NEXT, 1 }, { 1, NSM_BUF(0), 10, NEXT, 0 },
           { 2, NSM_BUF(0), 0, NEXT | WRITE, 2 }),
      AVAIL(0, 2), USED({ 0, 0 }, { 2, 0 }) },
    { "a next descriptor and heads that do not exist",
      DESC({ 0, NSM_BUF(0), 10, NEXT, NSM_QUEUE_NUM }),
      AVAIL(0, NSM_QUEUE_NUM, 0xffff),
      USED({ 0, 0 }, { NSM_QUEUE_NUM, 0 }, { 0xffff, 0 }) },
    { "a good request whose response is a bad chain",
      DESC({ 0, NSM_BUF(0), REQUEST },
           { 1, NSM_BUF(1), ROOM, NEXT | WRITE, 500 }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, 0 }) },
    { "an empty indirect table, and one in a loop: none was offered",
      DESC({ 0, NSM_BUF(0), 0, INDIRECT },
           { 1, ~0ULL, UINT32_MAX, INDIRECT | NEXT, 1 }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, 0 }) },
    { "an indirect table, and one in a loop: none was offered",
      DESC({ 0, NSM_BUF(0), 16, INDIRECT },
           { 1, ~0ULL, UINT32_MAX, INDIRECT | NEXT, 1 }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, 0 }) },
    { "a request outside RAM: nothing to read",
      DESC({ 0, 1ULL << 40, 10 }, { 1, NSM_BUF(1), ROOM, WRITE }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, NOT_SERVED }) },
    { "a response outside RAM",
      DESC({ 0, NSM_BUF(0), REQUEST }, { 1, 1ULL << 40, ROOM, WRITE }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, 0 }) },
    { "a response across the end of RAM",
      DESC({ 0, NSM_BUF(0), REQUEST },
           { 1, NSM_MACHINE_RAM - 8, ROOM, WRITE }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, 0 }) },
    { "a response across the end of it all",
      DESC({ 0, NSM_BUF(0), REQUEST }, { 1, -8ULL, ROOM, WRITE }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, 0 }) },
    { "a response on the device's own registers",
      DESC({ 0, NSM_BUF(0), REQUEST },
           { 1, NITRO_TRANSPORT(NSM_TRANSPORT), 0x200, WRITE }),
      AVAIL(0, 1), USED({ 0, 0 }, { 1, 0 }) },
};

static void check_kick(NsmQueue *q, const Kick *k)
{
    unsigned int i;

    for (i = 0; i < k->n_desc; i++) {
        const Descriptor *d = &k->desc[i];

        nsm_desc(q, d->index, d->addr, d->len, d->flags, d->next);
    }
    for (i = 0; i < k->n_heads; i++) {
        nsm_avail(q, k->heads[i]);
    }
    nsm_kick(q);
    for (i = 0; i < k->n_used; i++) {
        nsm_expect_used(q, k->used[i].head, k->used[i].len);
    }
    g_assert_cmpuint(nsm_used_count(q), ==, 0);
    g_assert_cmpint(nsm_interrupt(q), ==, k->n_used > 0);
}

static void test_kicks(const void *opaque)
{
    QTestState *qts = nitro_qemu_start(opaque);
    NsmQueue q;
    int i;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    for (i = 0; i < ARRAY_SIZE(kicks); i++) {
        if (kicks[i].name) {
            g_test_message("%s", kicks[i].name);
            nsm_fill(&q, 0, NSM_GET_RANDOM);
        }
        check_kick(&q, &kicks[i]);
        if (i + 1 == ARRAY_SIZE(kicks) || kicks[i + 1].name) {
            nsm_check_alive(&q);
        }
    }

    g_test_message("an index that jumps: dropped, and in step again");
    q.avail_idx += 1000;
    nsm_kick(&q);
    g_assert_cmpuint(nsm_used_count(&q), ==, 1000);
    q.used_idx += 1000;
    nsm_check_alive(&q);
    qtest_quit(qts);
}

/* Rings where no RAM is; after a reset the device serves again. */
static void test_bad_rings(void)
{
    static const uint64_t where[] = {
        1ULL << 40, NITRO_TRANSPORT(NSM_TRANSPORT), NSM_MACHINE_RAM - 64,
    };
    QTestState *qts = nitro_qemu_start(NSM_MODERN);
    uint64_t base = NITRO_TRANSPORT(NSM_TRANSPORT);
    NsmQueue q;
    int i;

    for (i = 0; i < ARRAY_SIZE(where); i++) {
        nsm_queue_init(&q, qts, NSM_TRANSPORT);
        qtest_writel(qts, base + VIRTIO_MMIO_QUEUE_USED_LOW, where[i]);
        qtest_writel(qts, base + VIRTIO_MMIO_QUEUE_USED_HIGH, where[i] >> 32);
        qtest_writel(qts, base + VIRTIO_MMIO_QUEUE_READY, 1);
        /* QEMU may say NEEDS_RESET at once, so the status is not compared. */
        qtest_writel(qts, base + VIRTIO_MMIO_STATUS,
                     VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                     VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        nsm_kick(&q);
        nsm_queue_restart(&q);
        nsm_check_alive(&q);
    }
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/nsm/queue/one-interrupt", test_one_interrupt);
    qtest_add_func("/nsm/queue/several-pairs", test_several_pairs);
    qtest_add_data_func("/nsm/queue/before-driver-ok/legacy", NSM_LEGACY,
                        test_before_driver_ok);
    qtest_add_data_func("/nsm/queue/before-driver-ok/modern", NSM_MODERN,
                        test_before_driver_ok);
    qtest_add_func("/nsm/queue/zero-length", test_zero_length);
    qtest_add_func("/nsm/queue/response-sizes", test_response_sizes);
    qtest_add_func("/nsm/queue/no-effect-without-answer",
                   test_no_effect_without_answer);
    qtest_add_func("/nsm/queue/many-descriptors", test_many_descriptors);
    qtest_add_func("/nsm/queue/long-request", test_long_request);
    qtest_add_data_func("/nsm/queue/kicks/legacy", NSM_LEGACY, test_kicks);
    qtest_add_data_func("/nsm/queue/kicks/modern", NSM_MODERN, test_kicks);
    qtest_add_func("/nsm/queue/bad-rings", test_bad_rings);

    return g_test_run();
}
