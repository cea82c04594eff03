/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for the NSM device
 *
 * On -M microvm, without the board and without a guest: the commands of AWS's
 * conformance programs, reset, migration, documents and options. What a driver
 * may do to the queue is virtio-nsm-queue-test's subject. The platform's PCRs
 * are zero here; what the board measures into them is nitro-enclave-test's.
 * Expected bytes come from the published types of the NSM API and CBOR (RFC
 * 8949), digests from other tools.
 */

#include "qemu/osdep.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "nitro-qtest.h"

#define DATA BYTES("\x01\x02\x03")

static const uint8_t zero[48];

static void test_identity(const void *opaque)
{
    bool modern = opaque != NULL;
    QTestState *qts = nitro_qemu_start(modern ? NSM_MODERN : NSM_LEGACY);
    uint64_t base = NITRO_TRANSPORT(NSM_TRANSPORT);
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
        BYTES("\x69" "module_id" "\x78\x27" NSM_MODULE_ID),
        BYTES("\x68" "max_pcrs" "\x18\x20"),
        BYTES("\x6b" "locked_pcrs" "\x90\x00\x01\x02\x03\x04\x05\x06\x07"
              "\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"),
        BYTES("\x66" "digest" "\x66" "SHA384"),
    };
    static const char head[] = "\xa1\x6b" "DescribeNSM" "\xa7";
    QTestState *qts = nitro_qemu_start(NSM_LEGACY);
    uint8_t resp[0x3000];
    NsmQueue q;
    size_t len, i;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    len = nsm_command(&q, NSM_DESCRIBE_NSM, resp, sizeof(resp));
    g_assert_cmpmem(resp, MIN(len, strlen(head)), head, strlen(head));
    for (i = 0; i < ARRAY_SIZE(fields); i++) {
        g_assert_nonnull(memmem(resp, len, fields[i].data,
                                fields[i].len));
    }
    qtest_quit(qts);
}

/* Ten rounds: 48 zero bytes, and behind them DATA, hashed again and again. */
static void extend_all(NsmQueue *q)
{
    uint8_t pcr[48];
    int i, round;

    for (round = 0; round < 10; round++) {
        for (i = 16; i < 32; i++) {
            g_autofree char *hex = NULL;

            nsm_extend_pcr(q, i, DATA, pcr);
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
}

/* Every register by itself, and all at once; none can be extended any more. */
static void lock_all(NsmQueue *q)
{
    uint8_t req[64];
    int i;

    for (i = 16; i < 32; i++) {
        nsm_expect(q, nsm_req_lock_pcr(req, i), BYTES("\x67" "LockPCR"));
    }
    nsm_expect(q, BYTES("\xa1\x68" "LockPCRs" "\xa1\x65" "range" "\x18\x20"),
               BYTES("\x68" "LockPCRs"));
    nsm_expect_error(q, BYTES("\xa1\x68" "LockPCRs"
                              "\xa1\x65" "range" "\x18\x21"),
                     "InvalidIndex");
    for (i = 0; i < 32; i++) {
        nsm_expect_error(q, nsm_req_extend_pcr(req, i, DATA), "ReadOnlyIndex");
    }
}

/* No two answers are the same. */
static void get_random(NsmQueue *q)
{
    const NsmBytes head = BYTES("\xa1\x69" "GetRandom"
                                "\xa1\x66" "random" "\x59\x01\x00");
    uint8_t resp[0x3000], last[0x3000];
    size_t len, last_len = 0;
    int i;

    for (i = 0; i < 16; i++) {
        len = nsm_command(q, NSM_GET_RANDOM, resp, sizeof(resp));
        g_assert_cmpuint(len, ==, head.len + 256);
        g_assert_cmpmem(resp, head.len, head.data, head.len);
        g_assert_false(len == last_len && !memcmp(resp, last, len));
        memcpy(last, resp, len);
        last_len = len;
    }
}

/*
 * nsm-check of AWS's NSM API, in its order, but for attestation (below) and
 * for what only a measured enclave has.
 */
static void test_conformance(const void *opaque)
{
    QTestState *qts = nitro_qemu_start(opaque);
    uint8_t pcr[48], req[64];
    NsmQueue q;
    bool lock;
    int i, round;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    for (i = 0; i < 32; i++) {
        nsm_describe_pcr(&q, i, pcr, &lock);
        g_assert_cmpmem(pcr, 48, zero, 48);
        g_assert_cmpint(lock, ==, i < 16);
    }
    for (i = 0; i < 16; i++) {
        nsm_expect_error(&q, nsm_req_lock_pcr(req, i), "ReadOnlyIndex");
    }
    extend_all(&q);
    lock_all(&q);
    for (round = 0; round < 10; round++) {
        for (i = 0; i < 32; i++) {
            nsm_describe_pcr(&q, i, pcr, &lock);
            g_assert_true(lock);
            g_assert_cmpint(memcmp(pcr, zero, 48) == 0, ==, i < 16);
        }
    }
    get_random(&q);
    nsm_check_alive(&q);
    qtest_quit(qts);
}

/* Neither the driver's reset nor the machine's gives a register back. */
static void test_reset(void)
{
    QTestState *qts = nitro_qemu_start(NSM_LEGACY);
    uint8_t before[48], after[48], req[32];
    NsmQueue q;
    bool lock;
    int i;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
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
    const char *mode = opaque;
    g_autofree char *dir = g_dir_make_tmp("nitro-nsm-XXXXXX", NULL);
    g_autofree char *uri = g_strdup_printf("unix:%s/migrate", dir);
    g_autofree char *outgoing = NULL;
    g_autofree char *incoming = NULL;
    uint8_t before[48], after[48], req[32], resp[0x3000];
    QTestState *from, *to;
    NsmQueue q;
    size_t len;
    bool lock;

    outgoing = g_strdup_printf("%s" NSM_LEGACY, mode);
    incoming = g_strdup_printf("%s" NSM_MACHINE NSM_BARE_DEVICE
                               ",module-id=other -incoming %s", mode, uri);
    from = nitro_qemu_start(outgoing);
    to = nitro_qemu_start(incoming);

    nsm_queue_start(&q, from, NSM_TRANSPORT);
    nsm_extend_pcr(&q, 16, DATA, before);
    nsm_expect(&q, nsm_req_lock_pcr(req, 17), BYTES("\x67" "LockPCR"));
    nsm_fill(&q, 4, NSM_GET_RANDOM);
    nsm_desc(&q, 4, NSM_BUF(4), 10, 0, 0);
    nsm_avail(&q, 4);
    nsm_kick(&q);

    nitro_migrate(from, uri);
    qtest_qmp_eventwait(to, "RESUME");
    qtest_quit(from);

    q.qts = q.dev.qts = to;
    g_assert_cmpuint(nsm_used_count(&q), ==, 0);
    nsm_desc(&q, 5, NSM_BUF(5), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 5);
    nsm_kick(&q);
    nsm_expect_used(&q, 4, 0);
    nsm_expect_used(&q, 5, NSM_GET_RANDOM_ANSWER);
    nsm_interrupt(&q);

    nsm_describe_pcr(&q, 16, after, &lock);
    g_assert_cmpmem(before, 48, after, 48);
    g_assert_false(lock);
    nsm_describe_pcr(&q, 17, after, &lock);
    g_assert_true(lock);
    len = nsm_command(&q, NSM_DESCRIBE_NSM, resp, sizeof(resp));
    g_assert_nonnull(memmem(resp, len, NSM_MODULE_ID, strlen(NSM_MODULE_ID)));
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
    g_autofree char *args = g_strconcat(NSM_MACHINE NSM_BARE_DEVICE ",id=nsm",
                                        form, NULL);
    uint8_t map = *form ? 0xa9 : 0xbf;
    const NsmBytes request = BYTES("\xa1\x6b" "Attestation" "\xa0");
    const NsmBytes head = BYTES("\xa1\x6b" "Attestation"
                                "\xa1\x68" "document\x59");
    const NsmBytes cose = BYTES("\x84\x44\xa1\x01\x38\x22\xa0\x59");
    QTestState *qts = nitro_qemu_start(args);
    uint8_t resp[0x3000];
    const char *root;
    size_t len;
    QDict *dict;
    NsmQueue q;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
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
    QTestState *qts = nitro_qemu_start(NSM_MACHINE NSM_BARE_DEVICE);
    g_autofree char *text = NULL;
    uint8_t resp[0x3000];
    NsmQueue q;
    size_t len;
    char *id;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    len = nsm_command(&q, NSM_DESCRIBE_NSM, resp, sizeof(resp));
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
            NSM_MACHINE NSM_BARE_DEVICE ",%s", bad[i]);
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
    qtest_add_data_func("/nsm/conformance/legacy", NSM_LEGACY,
                        test_conformance);
    qtest_add_data_func("/nsm/conformance/modern", NSM_MODERN,
                        test_conformance);
    qtest_add_func("/nsm/reset", test_reset);
    qtest_add_data_func("/nsm/migration/legacy", "", test_migration);
    qtest_add_data_func("/nsm/migration/modern", NSM_FORCE_MODERN,
                        test_migration);
    qtest_add_data_func("/nsm/attestation", "", test_attestation);
    qtest_add_data_func("/nsm/attestation/2023", ",document-form=2023",
                        test_attestation);
    qtest_add_func("/nsm/default-id", test_default_id);
    qtest_add_func("/nsm/bad-id", test_bad_id);

    return g_test_run();
}
