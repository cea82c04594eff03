/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for a nitro-enclave board that runs what was not measured
 *
 * Overlays and another init: where they end, what the registers, QMP and the
 * issuer of documents then say. What an overlay must be is the subject of the
 * core's unit tests; no guest runs.
 */

#include "qemu/osdep.h"
#include "nitro-qtest-enclave.h"

static bool is_unmeasured(QTestState *qts)
{
    QDict *resp = qtest_qmp(qts, "{ 'execute': 'qom-get', 'arguments': {"
                            " 'path': '/machine',"
                            " 'property': 'unmeasured' } }");
    bool value = qdict_get_bool(resp, "return");

    qobject_unref(resp);
    return value;
}

/* Behind all else in the initramfs, as it is; QMP tells; it is for good. */
static void test_overlay(void)
{
    static const char overlay[] = OVERLAY;
    g_autofree char *file = write_temporary(overlay, sizeof(overlay));
    g_autofree char *machine = g_strdup_printf(",overlay=%s", file);
    g_autofree char *pcr4 = enclave_extend_zero("i-1", 3);
    g_autofree char *with_parent = g_strdup_printf("%s,parent-id=i-1",
                                                   machine);
    static const char before[] = RAMDISK_1 RAMDISK_2 "\0\0";
    uint8_t data[512];
    uint32_t size;
    QTestState *qts;
    NsmQueue q;
    Enclave e;
    int i;

    enclave_init(&e);
    qts = enclave_start(&e, with_parent, "");
    size = qtest_readl(qts, BOOT_PARAMS + 0x21c);
    g_assert_cmpuint(size, ==, sizeof(before) + sizeof(overlay));
    qtest_memread(qts, qtest_readl(qts, BOOT_PARAMS + 0x218), data, size);
    g_assert_cmpmem(data, sizeof(before), before, sizeof(before));
    g_assert_cmpmem(data + sizeof(before), sizeof(overlay), overlay,
                    sizeof(overlay));
    g_assert_true(is_unmeasured(qts));
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    for (i = 0; i < 16; i++) {
        enclave_expect_pcr(&q, i, i == 4 ? pcr4 : enclave_zero_pcr);
    }
    /* Even where a reset is none of its ends. */
    qtest_qmp_assert_success(qts, "{ 'execute': 'set-action', 'arguments': {"
                             " 'reboot': 'reset' } }");
    qtest_qmp_assert_success(qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(qts, "RESET");
    g_assert_true(is_unmeasured(qts));
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    enclave_expect_pcr(&q, 0, enclave_zero_pcr);
    qtest_quit(qts);
    enclave_clear(&e);

    /* The PCRs are the image's on demand. */
    enclave_init(&e);
    g_free(machine);
    machine = g_strdup_printf(",overlay=%s,overlay-keep-pcrs=on", file);
    qts = enclave_start(&e, machine, "");
    g_assert_true(is_unmeasured(qts));
    enclave_expect_measured(&e, qts, false, enclave_zero_pcr, enclave_zero_pcr);
    qtest_quit(qts);
    enclave_clear(&e);
    unlink(file);
}

/* Another init is as good as another ramdisk; other words are not. */
static void test_other_init(void)
{
    QTestState *qts;
    NsmQueue q;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "-append 'quiet rdinit=/bin/sh'");
    g_assert_true(is_unmeasured(qts));
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    enclave_expect_pcr(&q, 0, enclave_zero_pcr);
    enclave_expect_pcr(&q, 1, enclave_zero_pcr);
    qtest_quit(qts);
    enclave_clear(&e);

    enclave_init(&e);
    qts = enclave_start(&e, "", "-append noinit=1");
    g_assert_false(is_unmeasured(qts));
    enclave_expect_measured(&e, qts, false, enclave_zero_pcr, enclave_zero_pcr);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* An image's own rdinit= was measured with it. */
static void test_own_init(void)
{
    g_autoptr(GByteArray) eif = NULL;
    QTestState *qts;
    Enclave e;

    make_kernel(e.kernel);
    eif = make_eif(e.kernel, CMDLINE " rdinit=/other");
    enclave_init_eif(&e, eif);
    qts = enclave_start(&e, "", "");
    g_assert_false(is_unmeasured(qts));
    qtest_quit(qts);
    enclave_clear(&e);
}

/*
 * A document whose PCRs are kept has an issuer that says so; a document says
 * it nowhere else.
 */
static void check_issuer(const char *machine, const char *args, bool says)
{
    uint8_t resp[0x3000];
    QTestState *qts;
    size_t len;
    NsmQueue q;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, machine, args);
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    /* {"Attestation": {"user_data": null, "nonce": null, ...}} */
    len = nsm_command(&q, BYTES("\xa1\x6b" "Attestation" "\xa3"
                                "\x69" "user_data" "\xf6"
                                "\x65" "nonce" "\xf6"
                                "\x6a" "public_key" "\xf6"),
                      resp, sizeof(resp));
    g_assert_nonnull(memmem(resp, len, "Local, not AWS", 14));
    g_assert_cmpint(!!memmem(resp, len, "Local, not AWS, unmeasured", 26), ==,
                    says);
    qtest_quit(qts);
    enclave_clear(&e);
}

static void test_issuer(void)
{
    check_issuer("", "", false);
    check_issuer("", "-append init=/x", false);
    check_issuer(",overlay-keep-pcrs=on", "-append init=/x", true);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/nitro-enclave-unmeasured/overlay", test_overlay);
    qtest_add_func("/nitro-enclave-unmeasured/init", test_other_init);
    qtest_add_func("/nitro-enclave-unmeasured/own-init", test_own_init);
    qtest_add_func("/nitro-enclave-unmeasured/issuer", test_issuer);

    return g_test_run();
}
