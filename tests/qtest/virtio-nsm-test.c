/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for the NSM device
 *
 * On -M microvm, without the board and without a guest: the commands of AWS's
 * conformance programs, and everything that a driver may do to the queue. The
 * platform's PCRs are zero here; what the board measures into them is
 * nitro-enclave-test's subject. Expected bytes come from the published types
 * of the NSM API and CBOR (RFC 8949), digests from other tools.
 */

#include "qemu/osdep.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "nitro-qtest.h"

#define MODULE_ID "i-1234567890abcdef0-enc0123456789abcdef"

#define TRANSPORT 0
#define DEVICE "-device nitro-nsm-device,bus=virtio-mmio-bus.0"

#define MODERN "-global virtio-mmio.force-legacy=off "
#define MACHINE "-M microvm,acpi=off -m 64M -nodefaults "
#define NSM DEVICE ",module-id=" MODULE_ID " "

#define GET_RANDOM BYTES("\x69" "GetRandom")
#define GET_RANDOM_ANSWER 278   /* bytes of {"GetRandom": {"random": 256}} */
#define DESCRIBE_NSM BYTES("\x6b" "DescribeNSM")
#define DATA BYTES("\x01\x02\x03")

static const uint8_t zero[48];

static QTestState *start(const char *args)
{
    return qtest_initf("%s" MACHINE "%s", nitro_firmware_args(), args);
}

/* A good command after a bad one: the device lives, and is not marked. */
static void check_alive(NsmQueue *q)
{
    bool lock;
    uint8_t pcr[48];

    nsm_describe_pcr(q, 0, pcr, &lock);
    g_assert_true(lock);
    g_assert_cmphex(q->dev.vdev.bus->get_status(&q->dev.vdev) &
                    VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
    g_assert_cmpuint(nsm_used_count(q), ==, 0);
}

static void test_identity(const void *opaque)
{
    bool modern = opaque != NULL;
    QTestState *qts = start(modern ? MODERN NSM : NSM);
    uint64_t base = NITRO_TRANSPORT(TRANSPORT);
    QVirtioMMIODevice dev;

    qvirtio_mmio_init_device(&dev, qts, base, 4096);
    g_assert_cmpuint(dev.version, ==, modern ? 2 : 1);
    g_assert_cmpuint(dev.vdev.device_type, ==, 33);
    g_assert_cmphex(dev.vdev.bus->get_features(&dev.vdev), ==,
                    modern ? 1ULL << VIRTIO_F_VERSION_1 : 0);
    qtest_writel(qts, base + VIRTIO_MMIO_QUEUE_SEL, 1);
    g_assert_cmpuint(qtest_readl(qts, base + VIRTIO_MMIO_QUEUE_NUM_MAX), ==,
                     0);
    qtest_quit(qts);
}

/* The version is whatever it is; all the rest is known. */
static void test_describe_nsm(void)
{
    const NsmBytes fields[] = {
        BYTES("\x69" "module_id" "\x78\x27" MODULE_ID),
        BYTES("\x68" "max_pcrs" "\x18\x20"),
        BYTES("\x6b" "locked_pcrs" "\x90\x00\x01\x02\x03\x04\x05\x06\x07"
              "\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"),
        BYTES("\x66" "digest" "\x66" "SHA384"),
    };
    static const char head[] = "\xa1\x6b" "DescribeNSM" "\xa7";
    QTestState *qts = start(NSM);
    uint8_t resp[0x3000];
    NsmQueue q;
    size_t len, i;

    nsm_queue_start(&q, qts, TRANSPORT);
    len = nsm_command(&q, DESCRIBE_NSM, resp, sizeof(resp));
    g_assert_cmpmem(resp, MIN(len, strlen(head)), head, strlen(head));
    for (i = 0; i < ARRAY_SIZE(fields); i++) {
        g_assert_nonnull(memmem(resp, len, fields[i].data,
                                fields[i].len));
    }
    qtest_quit(qts);
}

/*
 * nsm-check of AWS's NSM API, in its order, but for attestation (below) and
 * for what only a measured enclave has.
 */
static void test_conformance(const void *opaque)
{
    QTestState *qts = start(opaque);
    uint8_t pcr[48], req[64], resp[0x3000], last[0x3000];
    size_t len, last_len = 0;
    NsmQueue q;
    bool lock;
    int i, round;

    nsm_queue_start(&q, qts, TRANSPORT);
    for (i = 0; i < 32; i++) {
        nsm_describe_pcr(&q, i, pcr, &lock);
        g_assert_cmpmem(pcr, 48, zero, 48);
        g_assert_cmpint(lock, ==, i < 16);
    }
    for (i = 0; i < 16; i++) {
        nsm_expect_error(&q, nsm_req_lock_pcr(req, i), "ReadOnlyIndex");
    }
    for (round = 0; round < 10; round++) {
        for (i = 16; i < 32; i++) {
            g_autofree char *hex = NULL;

            nsm_extend_pcr(&q, i, DATA, pcr);
            hex = nitro_hex(pcr, 48);
            /* (head -c48 /dev/zero; printf '\1\2\3') | sha384sum; and so on */
            if (round == 0) {
                g_assert_cmpstr(hex, ==,
                    "cb178fcd3f328244c05c6248723fd068b3a1dda878e1ab8be911098f"
                    "199958add55d0c27f04826d27b44d949a650694e");
            } else if (round == 9) {
                g_assert_cmpstr(hex, ==,
                    "6323f1f718269f5f627840c0084b28c1288a2124c2ea4462cc7a438d"
                    "4d3b1ff6f0bcda05edea3ed314a4ef00f8d9bd3f");
            }
        }
    }
    for (i = 16; i < 32; i++) {
        nsm_expect(&q, nsm_req_lock_pcr(req, i), BYTES("\x67" "LockPCR"));
    }
    nsm_expect(&q, BYTES("\xa1\x68" "LockPCRs" "\xa1\x65" "range" "\x18\x20"),
               BYTES("\x68" "LockPCRs"));
    nsm_expect_error(&q, BYTES("\xa1\x68" "LockPCRs"
                               "\xa1\x65" "range" "\x18\x21"),
                     "InvalidIndex");
    for (i = 0; i < 32; i++) {
        nsm_expect_error(&q, nsm_req_extend_pcr(req, i, DATA),
                         "ReadOnlyIndex");
    }
    for (round = 0; round < 10; round++) {
        for (i = 0; i < 32; i++) {
            nsm_describe_pcr(&q, i, pcr, &lock);
            g_assert_true(lock);
            g_assert_cmpint(memcmp(pcr, zero, 48) == 0, ==, i < 16);
        }
    }
    for (i = 0; i < 16; i++) {
        const NsmBytes head = BYTES("\xa1\x69" "GetRandom"
                                    "\xa1\x66" "random" "\x59\x01\x00");

        len = nsm_command(&q, GET_RANDOM, resp, sizeof(resp));
        g_assert_cmpuint(len, ==, head.len + 256);
        g_assert_cmpmem(resp, head.len, head.data, head.len);
        g_assert_false(len == last_len && !memcmp(resp, last, len));
        memcpy(last, resp, len);
        last_len = len;
    }
    check_alive(&q);
    qtest_quit(qts);
}

/* Both chains are used before the one interrupt, the request first. */
static void test_one_interrupt(void)
{
    QTestState *qts = start(NSM);
    NsmQueue q;

    nsm_queue_start(&q, qts, TRANSPORT);
    qtest_irq_intercept_in(qts, "/machine/ioapic");
    nsm_fill(&q, 3, GET_RANDOM);
    nsm_desc(&q, 3, NSM_BUF(3), 10, 0, 0);
    nsm_desc(&q, 2, NSM_BUF(2), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 3);
    nsm_avail(&q, 2);
    g_assert_false(qtest_get_irq(qts, 5 + TRANSPORT));
    nsm_kick(&q);
    g_assert_true(qtest_get_irq(qts, 5 + TRANSPORT));
    g_assert_cmpuint(nsm_used_count(&q), ==, 2);
    nsm_expect_used(&q, 3, 0);
    nsm_expect_used(&q, 2, GET_RANDOM_ANSWER);
    g_assert_true(nsm_interrupt(&q));
    g_assert_false(nsm_interrupt(&q));
    g_assert_false(qtest_get_irq(qts, 5 + TRANSPORT));
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
    QTestState *qts = start(NSM);
    uint8_t req[64], pcr[48];
    uint8_t resp[32];
    NsmQueue q;
    bool lock;
    int i, round;

    nsm_queue_start(&q, qts, TRANSPORT);
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

/* The request is kicked first, its response buffer follows later. */
static void test_two_kicks(void)
{
    QTestState *qts = start(NSM);
    NsmQueue q;

    nsm_queue_start(&q, qts, TRANSPORT);
    nsm_fill(&q, 0, GET_RANDOM);
    nsm_desc(&q, 0, NSM_BUF(0), 10, 0, 0);
    nsm_avail(&q, 0);
    nsm_kick(&q);
    nsm_kick(&q);
    g_assert_cmpuint(nsm_used_count(&q), ==, 0);
    g_assert_false(nsm_interrupt(&q));
    nsm_desc(&q, 1, NSM_BUF(1), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 1);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    nsm_expect_used(&q, 1, GET_RANDOM_ANSWER);
    check_alive(&q);
    qtest_quit(qts);
}

/* The driver's hwrng asks during probe, and waits for the answer. */
static void test_before_driver_ok(const void *opaque)
{
    QTestState *qts = start(opaque);
    uint8_t resp[0x3000];
    NsmQueue q;

    nsm_queue_init(&q, qts, TRANSPORT);
    g_assert_cmpuint(nsm_command(&q, GET_RANDOM, resp,
                                 sizeof(resp)), ==, GET_RANDOM_ANSWER);
    qvirtio_set_driver_ok(&q.dev.vdev);
    check_alive(&q);
    qtest_quit(qts);
}

/* Any user of the guest can make these with an ioctl. */
static void test_zero_length(void)
{
    QTestState *qts = start(NSM);
    uint8_t resp[0x3000];
    NsmQueue q;

    nsm_queue_start(&q, qts, TRANSPORT);
    nsm_expect_error(&q, BYTES(""), "InvalidOperation");
    check_alive(&q);
    g_assert_cmpuint(nsm_command(&q, GET_RANDOM, resp, 0), ==,
                     0);
    check_alive(&q);
    g_assert_cmpuint(nsm_command(&q, BYTES(""), resp, 0), ==, 0);
    check_alive(&q);
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
    QTestState *qts = start(NSM);
    NsmQueue q;
    size_t cap;

    nsm_queue_start(&q, qts, TRANSPORT);
    for (cap = 0; cap < 300; cap++) {
        uint8_t resp[300];
        size_t len;

        qtest_memset(qts, NSM_BUF(1), 0x5a, 300);
        len = nsm_command(&q, GET_RANDOM, resp, cap);
        if (cap >= GET_RANDOM_ANSWER) {
            g_assert_cmpuint(len, ==, GET_RANDOM_ANSWER);
            g_assert_cmpmem(resp, strlen(answer_head), answer_head,
                            strlen(answer_head));
        } else if (len) {
            g_assert_cmpuint(len, >, strlen(error_head));
            g_assert_cmpmem(resp, strlen(error_head), error_head,
                            strlen(error_head));
        } else {
            g_assert_cmpuint(cap, <, 22);
        }
        if (cap >= 22 && cap < GET_RANDOM_ANSWER) {
            g_assert_cmpmem(resp, len, "\xa1\x65" "Error" "\x6e"
                            "BufferTooSmall", 22);
        }
        qtest_memread(qts, NSM_BUF(1), resp, sizeof(resp));
        for (; len < sizeof(resp); len++) {
            g_assert_cmphex(resp[len], ==, 0x5a);
        }
    }
    /* Larger than any answer: as much as the descriptor can say. */
    qtest_memset(qts, NSM_BUF(1), 0, 300);
    nsm_desc(&q, 1, NSM_BUF(1), 0x80000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 0);
    nsm_avail(&q, 1);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    nsm_expect_used(&q, 1, GET_RANDOM_ANSWER);
    check_alive(&q);
    qtest_quit(qts);
}

/* A buffer that is too small leaves the state alone. */
static void test_no_effect_without_answer(void)
{
    QTestState *qts = start(NSM);
    uint8_t req[64], resp[64], pcr[48];
    NsmQueue q;
    bool lock;

    nsm_queue_start(&q, qts, TRANSPORT);
    nsm_command(&q, nsm_req_extend_pcr(req, 20, DATA), resp,
                sizeof(resp));
    nsm_describe_pcr(&q, 20, pcr, &lock);
    g_assert_cmpmem(pcr, 48, zero, 48);
    qtest_quit(qts);
}

/* Request and response in pieces, also in pieces of nothing. */
static void test_many_descriptors(void)
{
    QTestState *qts = start(NSM);
    uint8_t whole[0x3000], resp[0x3000];
    uint32_t head, used;
    size_t len, pos;
    NsmQueue q;

    nsm_queue_start(&q, qts, TRANSPORT);
    len = nsm_command(&q, DESCRIBE_NSM, whole, sizeof(whole));

    nsm_fill(&q, 0, DESCRIBE_NSM);
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
    check_alive(&q);
    qtest_quit(qts);
}

static void test_long_request(void)
{
    g_autofree uint8_t *req = g_malloc0(0x2000);
    QTestState *qts = start(NSM);
    NsmQueue q;

    nsm_queue_start(&q, qts, TRANSPORT);
    nsm_expect_error(&q, (NsmBytes) { req, 0x1001 }, "InputTooLarge");
    nsm_expect_error(&q, (NsmBytes) { req, 0x2000 }, "InputTooLarge");
    /* Longer than any request and longer than guest RAM. */
    nsm_desc(&q, 0, NSM_BUF(0), UINT32_MAX, 0, 0);
    nsm_desc(&q, 1, NSM_BUF(1), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 0);
    nsm_avail(&q, 1);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    nsm_expect_used(&q, 1, 21);
    check_alive(&q);
    qtest_quit(qts);
}

/* What a driver must not do: each comes back, none of it harms what follows. */
static void test_nonsense(const void *opaque)
{
    QTestState *qts = start(opaque);
    NsmQueue q;
    int i;

    nsm_queue_start(&q, qts, TRANSPORT);

    g_test_message("response buffer first: an error in it");
    nsm_desc(&q, 1, NSM_BUF(1), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 1);
    nsm_kick(&q);
    nsm_expect_used(&q, 1, 24);
    g_assert_true(nsm_interrupt(&q));
    check_alive(&q);

    g_test_message("two requests, then a response: the second is served");
    nsm_fill(&q, 0, GET_RANDOM);
    nsm_desc(&q, 2, NSM_BUF(0), 3, 0, 0);
    nsm_desc(&q, 0, NSM_BUF(0), 10, 0, 0);
    nsm_desc(&q, 1, NSM_BUF(1), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 2);
    nsm_avail(&q, 0);
    nsm_avail(&q, 1);
    nsm_kick(&q);
    nsm_expect_used(&q, 2, 0);
    nsm_expect_used(&q, 0, 0);
    nsm_expect_used(&q, 1, GET_RANDOM_ANSWER);
    check_alive(&q);

    g_test_message("request and response in one chain: an error in it");
    nsm_desc(&q, 0, NSM_BUF(0), 10, VRING_DESC_F_NEXT, 1);
    nsm_desc(&q, 1, NSM_BUF(1), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 0);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 24);
    check_alive(&q);

    g_test_message("readable after writable");
    nsm_desc(&q, 0, NSM_BUF(0), 10, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
    nsm_desc(&q, 1, NSM_BUF(1), 10, 0, 0);
    nsm_avail(&q, 0);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    check_alive(&q);

    g_test_message("a loop, and a loop of one");
    nsm_desc(&q, 0, NSM_BUF(0), 10, VRING_DESC_F_NEXT, 1);
    nsm_desc(&q, 1, NSM_BUF(0), 10, VRING_DESC_F_NEXT, 0);
    nsm_desc(&q, 2, NSM_BUF(0), 0, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 2);
    nsm_avail(&q, 0);
    nsm_avail(&q, 2);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    nsm_expect_used(&q, 2, 0);
    check_alive(&q);

    g_test_message("a next descriptor and a head that do not exist");
    nsm_desc(&q, 0, NSM_BUF(0), 10, VRING_DESC_F_NEXT, NSM_QUEUE_NUM);
    nsm_avail(&q, 0);
    nsm_avail(&q, NSM_QUEUE_NUM);
    nsm_avail(&q, 0xffff);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    nsm_expect_used(&q, NSM_QUEUE_NUM, 0);
    nsm_expect_used(&q, 0xffff, 0);
    check_alive(&q);

    g_test_message("a good request whose response is a bad chain");
    nsm_desc(&q, 0, NSM_BUF(0), 10, 0, 0);
    nsm_desc(&q, 1, NSM_BUF(1), 0x3000,
             VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 500);
    nsm_avail(&q, 0);
    nsm_avail(&q, 1);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    nsm_expect_used(&q, 1, 0);
    check_alive(&q);

    g_test_message("indirect tables, which were not offered");
    for (i = 0; i < 2; i++) {
        nsm_desc(&q, 0, NSM_BUF(0), i ? 16 : 0, VRING_DESC_F_INDIRECT, 0);
        nsm_desc(&q, 1, ~0ULL, UINT32_MAX,
                 VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1);
        nsm_avail(&q, 0);
        nsm_avail(&q, 1);
        nsm_kick(&q);
        nsm_expect_used(&q, 0, 0);
        nsm_expect_used(&q, 1, 0);
        check_alive(&q);
    }

    g_test_message("a request outside RAM: nothing to read");
    nsm_desc(&q, 0, 1ULL << 40, 10, 0, 0);
    nsm_desc(&q, 1, NSM_BUF(1), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 0);
    nsm_avail(&q, 1);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    nsm_expect_used(&q, 1, 24);
    check_alive(&q);

    g_test_message("a response outside RAM, at its end, at the end of it all");
    for (i = 0; i < 3; i++) {
        static const uint64_t where[] = {
            1ULL << 40, 64 * 1024 * 1024 - 8, -8ULL
        };

        nsm_fill(&q, 0, GET_RANDOM);
        nsm_desc(&q, 0, NSM_BUF(0), 10, 0, 0);
        nsm_desc(&q, 1, where[i], 0x3000, VRING_DESC_F_WRITE, 0);
        nsm_avail(&q, 0);
        nsm_avail(&q, 1);
        nsm_kick(&q);
        nsm_expect_used(&q, 0, 0);
        nsm_expect_used(&q, 1, 0);
        check_alive(&q);
    }

    g_test_message("a response on the device's own registers");
    nsm_desc(&q, 0, NSM_BUF(0), 10, 0, 0);
    nsm_desc(&q, 1, NITRO_TRANSPORT(TRANSPORT), 0x200, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 0);
    nsm_avail(&q, 1);
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    nsm_expect_used(&q, 1, 0);
    check_alive(&q);

    g_test_message("an index that jumps: dropped, and in step again");
    q.avail_idx += 1000;
    nsm_kick(&q);
    g_assert_cmpuint(nsm_used_count(&q), ==, 1000);
    q.used_idx += 1000;
    check_alive(&q);
    qtest_quit(qts);
}

/* Rings where no RAM is; after a reset the device serves again. */
static void test_bad_rings(void)
{
    static const uint64_t where[] = {
        1ULL << 40, NITRO_TRANSPORT(TRANSPORT), 64 * 1024 * 1024 - 64,
    };
    QTestState *qts = start(MODERN NSM);
    uint64_t base = NITRO_TRANSPORT(TRANSPORT);
    NsmQueue q;
    int i;

    for (i = 0; i < ARRAY_SIZE(where); i++) {
        nsm_queue_init(&q, qts, TRANSPORT);
        qtest_writel(qts, base + VIRTIO_MMIO_QUEUE_USED_LOW, where[i]);
        qtest_writel(qts, base + VIRTIO_MMIO_QUEUE_USED_HIGH, where[i] >> 32);
        qtest_writel(qts, base + VIRTIO_MMIO_QUEUE_READY, 1);
        /* QEMU may say NEEDS_RESET at once, so the status is not compared. */
        qtest_writel(qts, base + VIRTIO_MMIO_STATUS,
                     VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                     VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        nsm_kick(&q);
        nsm_queue_restart(&q);
        check_alive(&q);
    }
    qtest_quit(qts);
}

/* Neither the driver's reset nor the machine's gives a register back. */
static void test_reset(void)
{
    QTestState *qts = start(NSM);
    uint8_t before[48], after[48], req[32];
    NsmQueue q;
    bool lock;
    int i;

    nsm_queue_start(&q, qts, TRANSPORT);
    nsm_extend_pcr(&q, 16, DATA, before);
    nsm_expect(&q, nsm_req_lock_pcr(req, 17), BYTES("\x67" "LockPCR"));
    for (i = 0; i < 2; i++) {
        if (i) {
            qtest_system_reset(qts);
        }
        nsm_queue_restart(&q);
        nsm_describe_pcr(&q, 16, after, &lock);
        g_assert_cmpmem(before, 48, after, 48);
        g_assert_false(lock);
        nsm_describe_pcr(&q, 17, after, &lock);
        g_assert_true(lock);
    }
    qtest_quit(qts);
}

/*
 * Registers, locks, module id and a command that is half in the queue move to
 * another QEMU.
 */
static void test_migration(const void *opaque)
{
    g_autofree char *dir = g_dir_make_tmp("nitro-nsm-XXXXXX", NULL);
    g_autofree char *uri = g_strdup_printf("unix:%s/migrate", dir);
    g_autofree char *incoming = NULL;
    uint8_t before[48], after[48], req[32], resp[0x3000];
    QTestState *from, *to;
    NsmQueue q;
    size_t len;
    bool lock, done = false;

    incoming = g_strdup_printf("%s " DEVICE ",module-id=other -incoming %s",
                               (const char *)opaque, uri);
    from = qtest_initf("%s" MACHINE "%s " NSM, nitro_firmware_args(),
                       (const char *)opaque);
    to = start(incoming);

    nsm_queue_start(&q, from, TRANSPORT);
    nsm_extend_pcr(&q, 16, DATA, before);
    nsm_expect(&q, nsm_req_lock_pcr(req, 17), BYTES("\x67" "LockPCR"));
    nsm_fill(&q, 4, GET_RANDOM);
    nsm_desc(&q, 4, NSM_BUF(4), 10, 0, 0);
    nsm_avail(&q, 4);
    nsm_kick(&q);

    qtest_qmp_assert_success(from, "{ 'execute': 'migrate',"
                             "  'arguments': { 'uri': %s } }", uri);
    while (!done) {
        QDict *info = qtest_qmp_assert_success_ref(
            from, "{ 'execute': 'query-migrate' }");
        const char *status = qdict_get_str(info, "status");

        g_assert_cmpstr(status, !=, "failed");
        done = g_str_equal(status, "completed");
        qobject_unref(info);
    }
    qtest_qmp_eventwait(to, "RESUME");
    qtest_quit(from);

    q.qts = q.dev.qts = to;
    g_assert_cmpuint(nsm_used_count(&q), ==, 0);
    nsm_desc(&q, 5, NSM_BUF(5), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 5);
    nsm_kick(&q);
    nsm_expect_used(&q, 4, 0);
    nsm_expect_used(&q, 5, GET_RANDOM_ANSWER);
    nsm_interrupt(&q);

    nsm_describe_pcr(&q, 16, after, &lock);
    g_assert_cmpmem(before, 48, after, 48);
    g_assert_false(lock);
    nsm_describe_pcr(&q, 17, after, &lock);
    g_assert_true(lock);
    len = nsm_command(&q, DESCRIBE_NSM, resp, sizeof(resp));
    g_assert_nonnull(memmem(resp, len, MODULE_ID, strlen(MODULE_ID)));
    qtest_quit(to);

    g_free(uri);
    uri = g_strdup_printf("%s/migrate", dir);
    unlink(uri);
    g_assert_cmpint(rmdir(dir), ==, 0);
}

/*
 * A document is what verifiers look for first, an untagged COSE_Sign1 with
 * ES384, its payload a map in the form that was asked for, and the root to
 * trust can be had from outside. The rest of it is the unit tests' and the
 * verifier's subject.
 */
static void test_attestation(const void *opaque)
{
    const char *form = opaque;
    g_autofree char *device = g_strconcat(DEVICE ",id=nsm", form, NULL);
    uint8_t map = *form ? 0xa9 : 0xbf;
    const NsmBytes request = BYTES("\xa1\x6b" "Attestation" "\xa0");
    const NsmBytes head = BYTES("\xa1\x6b" "Attestation"
                                "\xa1\x68" "document\x59");
    const NsmBytes cose = BYTES("\x84\x44\xa1\x01\x38\x22\xa0\x59");
    QTestState *qts = start(device);
    uint8_t resp[0x3000];
    const char *root;
    size_t len;
    QDict *dict;
    NsmQueue q;

    nsm_queue_start(&q, qts, TRANSPORT);
    len = nsm_command(&q, request, resp, sizeof(resp));
    g_assert_cmpuint(len, >, head.len + 2 + cose.len);
    g_assert_cmpmem(resp, head.len, head.data, head.len);
    g_assert_cmpuint(resp[head.len] << 8 | resp[head.len + 1], ==,
                     len - head.len - 2);
    g_assert_cmpmem(resp + head.len + 2, cose.len, cose.data, cose.len);
    g_assert_cmphex(resp[head.len + 2 + cose.len + 2], ==, map);

    dict = qtest_qmp(qts, "{ 'execute': 'qom-get', 'arguments': {"
                     " 'path': 'nsm', 'property': 'root-certificate' } }");
    root = qdict_get_str(dict, "return");
    g_assert_true(g_str_has_prefix(root, "-----BEGIN CERTIFICATE-----\n"));
    qobject_unref(dict);
    qtest_quit(qts);
}

/* Without the property the module gets an id of AWS's shape. */
static void test_default_id(void)
{
    QTestState *qts = start(DEVICE);
    g_autofree char *text = NULL;
    uint8_t resp[0x3000];
    NsmQueue q;
    size_t len;
    char *id;

    nsm_queue_start(&q, qts, TRANSPORT);
    len = nsm_command(&q, DESCRIBE_NSM, resp, sizeof(resp));
    id = memmem(resp, len, "i-", 2);
    g_assert_nonnull(id);
    text = g_strndup(id, 39);
    g_assert_true(g_regex_match_simple("^i-0{16}-enc[0-9a-f]{16}", text, 0,
                                       0));
    qtest_quit(qts);
}

static void test_bad_id(void)
{
    g_autofree char *hundred = g_strnfill(100, 'x');
    g_autofree char *long_id = g_strdup_printf("module-id=%s", hundred);
    const char *const bad[] = { "module-id=", "module-id='a b'", long_id };
    int i;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *args = g_strdup_printf(
            MACHINE DEVICE ",%s", bad[i]);
        g_autofree char *err = NULL;

        g_assert_cmpint(nitro_qemu_run(args, NULL, &err), ==, 1);
        g_assert_nonnull(strstr(err, "1 to 99 printable ASCII"));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_data_func("/nsm/identity/legacy", NULL, test_identity);
    qtest_add_data_func("/nsm/identity/modern", "", test_identity);
    qtest_add_func("/nsm/describe-nsm", test_describe_nsm);
    qtest_add_data_func("/nsm/conformance/legacy", NSM, test_conformance);
    qtest_add_data_func("/nsm/conformance/modern", MODERN NSM,
                        test_conformance);
    qtest_add_func("/nsm/queue/one-interrupt", test_one_interrupt);
    qtest_add_func("/nsm/queue/several-pairs", test_several_pairs);
    qtest_add_func("/nsm/queue/two-kicks", test_two_kicks);
    qtest_add_data_func("/nsm/queue/before-driver-ok/legacy", NSM,
                        test_before_driver_ok);
    qtest_add_data_func("/nsm/queue/before-driver-ok/modern", MODERN NSM,
                        test_before_driver_ok);
    qtest_add_func("/nsm/queue/zero-length", test_zero_length);
    qtest_add_func("/nsm/queue/response-sizes", test_response_sizes);
    qtest_add_func("/nsm/queue/no-effect-without-answer",
                   test_no_effect_without_answer);
    qtest_add_func("/nsm/queue/many-descriptors", test_many_descriptors);
    qtest_add_func("/nsm/queue/long-request", test_long_request);
    qtest_add_data_func("/nsm/queue/nonsense/legacy", NSM,
                        test_nonsense);
    qtest_add_data_func("/nsm/queue/nonsense/modern", MODERN NSM,
                        test_nonsense);
    qtest_add_func("/nsm/queue/bad-rings", test_bad_rings);
    qtest_add_func("/nsm/reset", test_reset);
    qtest_add_data_func("/nsm/migration/legacy", "", test_migration);
    qtest_add_data_func("/nsm/migration/modern", MODERN, test_migration);
    qtest_add_data_func("/nsm/attestation", "", test_attestation);
    qtest_add_data_func("/nsm/attestation/2023", ",document-form=2023",
                        test_attestation);
    qtest_add_func("/nsm/default-id", test_default_id);
    qtest_add_func("/nsm/bad-id", test_bad_id);

    return g_test_run();
}
