/*
 * SPDX-License-Identifier: MIT
 *
 * NSM core: faults
 *
 * Which requests a fault befalls, what a refused one is answered, a clock that
 * jumps and drifts, and documents whose certificate has expired. The chances'
 * numbers are those published for SplitMix64 (Rosetta Code, seed 1234567):
 * 6457827717110365317, 3203168211198807973, 9817491932198370423,
 * 4593380528125082431, 16408922859458223821.
 */
#include "nitro/nsm-fault.h"
#include "nsm-module.h"

static void test_none(void)
{
    NsmFaults f = { .rate = NSM_FAULT_RATE_ALL };

    for (int i = 0; i < 3; i++) {
        NsmFate fate = nsm_fault_decide(&f, NSM_OP_GET_RANDOM);

        g_assert_false(fate.fails || fate.delay_ms || fate.is_last);
    }
    g_assert_cmpuint(f.requests, ==, 3);
    g_assert_cmpuint(f.hits, ==, 0);
}

/* Two of a kind fail, the first of them late; others of the kind do not. */
static void test_counts(void)
{
    NsmFaults f = {
        .rate = NSM_FAULT_RATE_ALL, .kind = NSM_OP_ATTESTATION,
        .errors = 2, .delays = 1, .delay_ms = 70,
    };
    NsmFate fate = nsm_fault_decide(&f, NSM_OP_GET_RANDOM);

    g_assert_false(fate.fails || fate.delay_ms);
    fate = nsm_fault_decide(&f, NSM_OP_ATTESTATION);
    g_assert_true(fate.fails);
    g_assert_cmpuint(fate.delay_ms, ==, 70);
    fate = nsm_fault_decide(&f, NSM_OP_ATTESTATION);
    g_assert_true(fate.fails);
    g_assert_cmpuint(fate.delay_ms, ==, 0);
    fate = nsm_fault_decide(&f, NSM_OP_ATTESTATION);
    g_assert_false(fate.fails || fate.delay_ms);
    g_assert_cmpuint(f.errors, ==, 0);
    g_assert_cmpuint(f.hits, ==, 2);
    g_assert_cmpuint(f.requests, ==, 4);
}

static void test_always(void)
{
    NsmFaults f = { .rate = NSM_FAULT_RATE_ALL, .errors = NSM_FAULT_ALWAYS };

    for (int i = 0; i < 3; i++) {
        g_assert_true(nsm_fault_decide(&f, NSM_OP_NONE).fails);
    }
    g_assert_cmpuint(f.errors, ==, NSM_FAULT_ALWAYS);
}

/* In thousands the numbers above end with 317, 973, 423, 431, 821. */
static void test_chances(void)
{
    static const bool expected[] = { true, false, true, true, false };
    NsmFaults f = {
        .rate = 432, .seed = 1234567, .kind = NSM_OP_GET_RANDOM,
        .errors = NSM_FAULT_ALWAYS,
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(expected); i++) {
        /* What is of another kind uses no chance up. */
        g_assert_false(nsm_fault_decide(&f, NSM_OP_LOCK_PCR).fails);
        g_assert_cmpint(nsm_fault_decide(&f, NSM_OP_GET_RANDOM).fails, ==,
                        expected[i]);
    }
}

static void test_last(void)
{
    NsmFaults f = { .rate = NSM_FAULT_RATE_ALL, .die_after = 2 };

    g_assert_false(nsm_fault_decide(&f, NSM_OP_NONE).is_last);
    g_assert_true(nsm_fault_decide(&f, NSM_OP_GET_RANDOM).is_last);
    g_assert_false(nsm_fault_decide(&f, NSM_OP_NONE).is_last);
}

static void test_wrong_clock(void)
{
    NsmClock c = { 0 };

    g_assert_cmpint(nsm_clock_now(&c, NOW_MS), ==, NOW_MS);
    nsm_clock_set_offset(&c, NOW_MS, -5000);
    g_assert_cmpint(nsm_clock_now(&c, NOW_MS + 7), ==, NOW_MS - 4993);
    /* An hour at 1000 ppm is 3.6 s. */
    nsm_clock_set_drift(&c, NOW_MS, 1000);
    g_assert_cmpint(nsm_clock_now(&c, NOW_MS), ==, NOW_MS - 5000);
    g_assert_cmpint(nsm_clock_offset(&c, NOW_MS + 3600000), ==, -1400);
    /* What it has gained is not lost when it goes right again. */
    nsm_clock_set_drift(&c, NOW_MS + 3600000, 0);
    g_assert_cmpint(nsm_clock_offset(&c, NOW_MS + 7200000), ==, -1400);
    nsm_clock_set_offset(&c, NOW_MS, -NSM_CLOCK_OFFSET_MAX);
    g_assert_cmpint(nsm_clock_now(&c, NOW_MS), ==, 0);
    nsm_clock_set_drift(&c, 0, NSM_CLOCK_DRIFT_MAX);
    g_assert_cmpint(nsm_clock_offset(&c, NSM_CLOCK_OFFSET_MAX), ==,
                    -NSM_CLOCK_OFFSET_MAX / 2);
}

/* As nsm_handle() encodes it, and what fits of it. */
static void test_refusal(void)
{
    g_autoptr(GByteArray) error = notation("a1 65 'Error' 6d 'InternalError'");
    g_autoptr(GByteArray) request = notation("6b 'Attestation'");
    g_autoptr(GByteArray) junk = notation("ff");
    uint8_t *buf = g_malloc(error->len);

    g_assert_cmpuint(nsm_refuse(NSM_INTERNAL_ERROR, buf, error->len), ==,
                     error->len);
    g_assert_cmpmem(buf, error->len, error->data, error->len);
    g_assert_cmpuint(nsm_refuse(NSM_INTERNAL_ERROR, NULL, 0), ==, 0);
    g_assert_cmpint(nsm_request_op(request->data, request->len), ==,
                    NSM_OP_ATTESTATION);
    g_assert_cmpint(nsm_request_op(junk->data, junk->len), ==, NSM_OP_NONE);
    g_assert_cmpint(nsm_request_op(NULL, NSM_REQUEST_MAX + 1), ==,
                    NSM_OP_NONE);
    g_free(buf);
}

static char *dates(const Document *d)
{
    return openssl_reads(d->certificate, "x509 -in c.der -inform DER "
                         "-noout -startdate -enddate");
}

/* Issued a day before NOW, with three hours to live; and right again. */
static void test_expired(void)
{
    NsmState s;
    NsmSigner *signer = module_start(&s, MODULE_ID);
    g_autofree char *expired = NULL;
    Document d;

    nsm_signer_set_expired(signer, true);
    ask(&s, PLAIN, &d);
    expired = dates(&d);
    g_assert_cmpstr(expired, ==, "notBefore=Jan 30 11:59:57 2026 GMT\n"
                    "notAfter=Jan 30 15:00:00 2026 GMT\n");
    document_clear(&d);

    nsm_signer_set_expired(signer, false);
    ask(&s, PLAIN, &d);
    verify(&d, NOW);
    document_clear(&d);
    nsm_signer_free(signer);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nsm-fault/none", test_none);
    g_test_add_func("/nsm-fault/counts", test_counts);
    g_test_add_func("/nsm-fault/always", test_always);
    g_test_add_func("/nsm-fault/chances", test_chances);
    g_test_add_func("/nsm-fault/last", test_last);
    g_test_add_func("/nsm-fault/clock", test_wrong_clock);
    g_test_add_func("/nsm-fault/refusal", test_refusal);
    g_test_add_func("/nsm-fault/expired", test_expired);
    return g_test_run();
}
