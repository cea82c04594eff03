/*
 * SPDX-License-Identifier: MIT
 *
 * NSM core: what a guest may rely on
 *
 * The protocol seen from /dev/nsm: exact answers, locks, errors, sizes, and
 * the assertions of AWS's own nsm-check program (all but those on attestation
 * documents). How a request may be spelt is test-nsm-request's subject.
 *
 * Expected digests were computed with Python's hashlib; those of PCR3 and PCR4
 * are printed in the AWS Nitro Enclaves user guide.
 *
 * Long because each command has its tests here, and all stand on one fixture.
 */
#include "nitro/nsm.h"
#include "notation.h"

#define MODULE_ID "i-1234567890abcdef0-enc0123456789abcdef"

#define ZERO48 \
    "000000000000000000000000000000000000000000000000" \
    "000000000000000000000000000000000000000000000000"

/* SHA384(48 zero bytes || 01 02 03), and so on for ten rounds */
#define ONE_EXTEND \
    "cb178fcd3f328244c05c6248723fd068b3a1dda878e1ab8b" \
    "e911098f199958add55d0c27f04826d27b44d949a650694e"
#define TEN_EXTENDS \
    "6323f1f718269f5f627840c0084b28c1288a2124c2ea4462" \
    "cc7a438d4d3b1ff6f0bcda05edea3ed314a4ef00f8d9bd3f"
/* SHA384(48 zero bytes) */
#define EMPTY_EXTEND \
    "8f0d145c0368ad6b70be22e41c400eea91b971d96ba220fe" \
    "c9fae25a58dffdaaf72dbe8f6783d55128c9df4efaf6f8a7"

#define ROLE "arn:aws:iam::123456789012:role/Webserver"
#define ROLE_PCR3 \
    "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75" \
    "329dccd99aa5f6ef4fc1f1a452e315b9e98f9e312e6921e6"
#define PARENT "i-1234567890abcdef0"
#define PARENT_PCR4 \
    "08f996b5d43e047a9eb51e7f548bfee7e164fd7dc8f65541" \
    "f2ac09d6545ac812719327281c401a67a10fcba87ae79ce0"

#define DESCRIBE_NSM "6b 'DescribeNSM'"
#define GET_RANDOM "69 'GetRandom'"
#define DESCRIBE_PCR(hex) "a1 6b 'DescribePCR' a1 65 'index' " hex
#define EXTEND_PCR(hex) \
    "a1 69 'ExtendPCR' a2 65 'index' " hex " 64 'data' 43010203"
#define LOCK_PCR(hex) "a1 67 'LockPCR' a1 65 'index' " hex
#define LOCK_PCRS(hex) "a1 68 'LockPCRs' a1 65 'range' " hex
#define ATTESTATION "a1 6b 'Attestation' a3 69 'user_data' f6 " \
    "65 'nonce' f6 6a 'public_key' f6"

#define INVALID_INDEX "a1 65 'Error' 6c 'InvalidIndex'"
#define READ_ONLY_INDEX "a1 65 'Error' 6d 'ReadOnlyIndex'"
#define BUFFER_TOO_SMALL "a1 65 'Error' 6e 'BufferTooSmall'"
#define INTERNAL_ERROR "a1 65 'Error' 6d 'InternalError'"
#define INPUT_TOO_LARGE "a1 65 'Error' 6d 'InputTooLarge'"
#define INVALID_OPERATION "a1 65 'Error' 70 'InvalidOperation'"

static void boot(NsmState *s)
{
    uint8_t pcr0[48], pcr1[48], pcr2[48];
    NsmBoot measured = {
        .pcr0 = pcr0, .pcr1 = pcr1, .pcr2 = pcr2, .parent_id = PARENT,
    };

    memset(pcr0, 0xa0, 48);
    memset(pcr1, 0xa1, 48);
    memset(pcr2, 0xa2, 48);
    nsm_init(s, MODULE_ID);
    g_assert_true(nsm_boot(s, &measured));
}

/*
 * Serves @req from and into buffers of exactly the given sizes, so that the
 * sanitizers see a read or a write beyond them.
 */
static GByteArray *serve(NsmState *s, const GByteArray *req, size_t cap,
                         NsmResult *info)
{
    uint8_t *in = g_memdup2(req->data, req->len);
    uint8_t *out = g_malloc(cap);
    GByteArray *answer = g_byte_array_new();
    size_t len = nsm_handle(s, in, req->len, out, cap, info);

    g_assert_cmpuint(len, <=, cap);
    g_byte_array_append(answer, out, len);
    g_free(in);
    g_free(out);
    return answer;
}

static GByteArray *ask(NsmState *s, const char *request)
{
    g_autoptr(GByteArray) req = notation(request);

    return serve(s, req, NSM_RESPONSE_MAX, NULL);
}

static void assert_bytes(const GByteArray *actual, const char *expected)
{
    g_autoptr(GByteArray) want = notation(expected);

    g_assert_cmpmem(actual->data, actual->len, want->data, want->len);
}

static void expect(NsmState *s, const char *request, const char *answer)
{
    g_autoptr(GByteArray) actual = ask(s, request);

    assert_bytes(actual, answer);
}

static bool is_error(const GByteArray *answer)
{
    return answer->len > 7 && !memcmp(answer->data, "\xa1\x65" "Error", 7);
}

static void assert_pcr(const NsmState *s, unsigned index, const char *hex)
{
    g_autoptr(GByteArray) want = notation(hex);

    g_assert_cmpmem(s->pcr[index], NSM_PCR_SIZE, want->data, want->len);
}

/* {"index": N} in the notation, as AWS's client encodes it */
static char *index_hex(unsigned n)
{
    return g_strdup_printf(n < 24 ? "%02x" : "18%02x", n);
}

static void test_names(void)
{
    /* The order of AWS's C API. */
    static const char *const codes[] = {
        "Success", "InvalidArgument", "InvalidIndex", "InvalidResponse",
        "ReadOnlyIndex", "InvalidOperation", "BufferTooSmall",
        "InputTooLarge", "InternalError",
    };

    g_assert_cmpint(NSM_CODE_COUNT, ==, G_N_ELEMENTS(codes));
    for (int i = 0; i < NSM_CODE_COUNT; i++) {
        g_assert_cmpstr(nsm_code_name(i), ==, codes[i]);
    }
    g_assert_cmpstr(nsm_op_name(NSM_OP_NONE), ==, "-");
    g_assert_cmpstr(nsm_op_name(NSM_OP_LOCK_PCRS), ==, "LockPCRs");
}

static void test_describe_nsm(void)
{
    NsmState s;

    boot(&s);
    expect(&s, DESCRIBE_NSM,
           "a1 6b 'DescribeNSM' a7"
           " 6d 'version_major' 01"
           " 6d 'version_minor' 00"
           " 6d 'version_patch' 00"
           " 69 'module_id' 7827 '" MODULE_ID "'"
           " 68 'max_pcrs' 1820"
           " 6b 'locked_pcrs' 90 000102030405060708090a0b0c0d0e0f"
           " 66 'digest' 66 'SHA384'");
    expect(&s, LOCK_PCR("181f"), "67 'LockPCR'");
    expect(&s, DESCRIBE_NSM,
           "a1 6b 'DescribeNSM' a7"
           " 6d 'version_major' 01"
           " 6d 'version_minor' 00"
           " 6d 'version_patch' 00"
           " 69 'module_id' 7827 '" MODULE_ID "'"
           " 68 'max_pcrs' 1820"
           " 6b 'locked_pcrs' 91 000102030405060708090a0b0c0d0e0f 181f"
           " 66 'digest' 66 'SHA384'");
}

static void test_describe_pcr(void)
{
    NsmState s;

    boot(&s);
    expect(&s, DESCRIBE_PCR("04"),
           "a1 6b 'DescribePCR' a2 64 'lock' f5 64 'data' 5830 " PARENT_PCR4);
    expect(&s, DESCRIBE_PCR("10"),
           "a1 6b 'DescribePCR' a2 64 'lock' f4 64 'data' 5830 " ZERO48);
    expect(&s, DESCRIBE_PCR("181f"),
           "a1 6b 'DescribePCR' a2 64 'lock' f4 64 'data' 5830 " ZERO48);
    expect(&s, DESCRIBE_PCR("1820"), INVALID_INDEX);
    expect(&s, DESCRIBE_PCR("19ffff"), INVALID_INDEX);
}

static void test_extend_pcr(void)
{
    NsmState s;

    boot(&s);
    expect(&s, EXTEND_PCR("10"),
           "a1 69 'ExtendPCR' a1 64 'data' 5830 " ONE_EXTEND);
    for (int i = 0; i < 9; i++) {
        g_autoptr(GByteArray) answer = ask(&s, EXTEND_PCR("10"));

        g_assert_false(is_error(answer));
    }
    expect(&s, DESCRIBE_PCR("10"),
           "a1 6b 'DescribePCR' a2 64 'lock' f4 64 'data' 5830 " TEN_EXTENDS);
    /* Its neighbour has not moved. */
    assert_pcr(&s, 17, ZERO48);

    /* No data is data, too. */
    expect(&s, "a1 69 'ExtendPCR' a2 65 'index' 11 64 'data' 40",
           "a1 69 'ExtendPCR' a1 64 'data' 5830 " EMPTY_EXTEND);

    expect(&s, EXTEND_PCR("1820"), INVALID_INDEX);
    expect(&s, EXTEND_PCR("0f"), READ_ONLY_INDEX);
    expect(&s, LOCK_PCR("10"), "67 'LockPCR'");
    expect(&s, EXTEND_PCR("10"), READ_ONLY_INDEX);
    assert_pcr(&s, 16, TEN_EXTENDS);
}

static void test_locks(void)
{
    NsmState s;

    boot(&s);
    g_assert_cmphex(s.locked, ==, 0x0000ffff);
    expect(&s, LOCK_PCR("00"), READ_ONLY_INDEX);
    expect(&s, LOCK_PCR("181e"), "67 'LockPCR'");
    g_assert_cmphex(s.locked, ==, 0x4000ffff);
    expect(&s, LOCK_PCR("181e"), READ_ONLY_INDEX);
    expect(&s, LOCK_PCR("1820"), INVALID_INDEX);

    /* A range is a count from 0; nothing in it is a success. */
    expect(&s, LOCK_PCRS("00"), "68 'LockPCRs'");
    expect(&s, LOCK_PCRS("05"), "68 'LockPCRs'");
    g_assert_cmphex(s.locked, ==, 0x4000ffff);
    expect(&s, LOCK_PCRS("11"), "68 'LockPCRs'");
    g_assert_cmphex(s.locked, ==, 0x4001ffff);
    expect(&s, LOCK_PCRS("1821"), INVALID_INDEX);
    g_assert_cmphex(s.locked, ==, 0x4001ffff);
    expect(&s, LOCK_PCRS("181f"), "68 'LockPCRs'");
    g_assert_cmphex(s.locked, ==, 0x7fffffff);
    expect(&s, LOCK_PCRS("1820"), "68 'LockPCRs'");
    g_assert_cmphex(s.locked, ==, 0xffffffff);
    expect(&s, LOCK_PCRS("1820"), "68 'LockPCRs'");
}

static void test_get_random(void)
{
    g_autoptr(GByteArray) head =
        notation("a1 69 'GetRandom' a1 66 'random' 59 0100");
    g_autoptr(GByteArray) last = NULL;
    NsmState s;

    boot(&s);
    for (int i = 0; i < 16; i++) {
        GByteArray *answer = ask(&s, GET_RANDOM);

        g_assert_cmpuint(answer->len, ==, head->len + 256);
        g_assert_cmpmem(answer->data, head->len, head->data, head->len);
        if (last) {
            g_assert_true(memcmp(last->data, answer->data, answer->len) != 0);
            g_byte_array_unref(last);
        }
        last = answer;
    }
}

static bool counting_random(void *opaque, uint8_t *buf, size_t len)
{
    int *calls = opaque;

    if ((*calls)++) {
        return false;
    }
    memset(buf, 0x5a, len);
    return true;
}

static void test_random_source(void)
{
    g_autoptr(GByteArray) want =
        notation("a1 69 'GetRandom' a1 66 'random' 59 0100");
    g_autoptr(GByteArray) answer = NULL;
    NsmState s;
    int calls = 0;

    notation_fill(want, 0x5a, 256);
    boot(&s);
    nsm_set_random(&s, counting_random, &calls);
    answer = ask(&s, GET_RANDOM);
    g_assert_cmpmem(answer->data, answer->len, want->data, want->len);
    expect(&s, GET_RANDOM, INTERNAL_ERROR);
    g_assert_cmpint(calls, ==, 2);

    nsm_set_random(&s, NULL, NULL);
    g_byte_array_unref(answer);
    answer = ask(&s, GET_RANDOM);
    g_assert_false(is_error(answer));
}

static void test_boot(void)
{
    uint8_t value[4][48];
    NsmBoot measured = {
        .pcr0 = value[0], .pcr1 = value[1], .pcr2 = value[2],
        .pcr8 = value[3], .parent_role = ROLE, .parent_id = PARENT,
    };
    NsmState s;

    for (int i = 0; i < 4; i++) {
        memset(value[i], 0xb0 + i, 48);
    }
    nsm_init(&s, MODULE_ID);
    g_assert_true(nsm_boot(&s, &measured));
    g_assert_cmpmem(s.pcr[0], 48, value[0], 48);
    g_assert_cmpmem(s.pcr[1], 48, value[1], 48);
    g_assert_cmpmem(s.pcr[2], 48, value[2], 48);
    g_assert_cmpmem(s.pcr[8], 48, value[3], 48);
    assert_pcr(&s, 3, ROLE_PCR3);
    assert_pcr(&s, 4, PARENT_PCR4);
    for (int i = 5; i < 32; i++) {
        if (i != 8) {
            assert_pcr(&s, i, ZERO48);
        }
    }
    g_assert_cmphex(s.locked, ==, 0xffff);

    /* A debug enclave: the image's registers are zero, the parent's are not. */
    expect(&s, EXTEND_PCR("10"),
           "a1 69 'ExtendPCR' a1 64 'data' 5830 " ONE_EXTEND);
    measured.debug = true;
    g_assert_true(nsm_boot(&s, &measured));
    for (int i = 0; i < 32; i++) {
        assert_pcr(&s, i, i == 3 ? ROLE_PCR3 : i == 4 ? PARENT_PCR4 : ZERO48);
    }
    g_assert_cmphex(s.locked, ==, 0xffff);

    /* Nothing measured: as on a bare QEMU. */
    g_assert_true(nsm_boot(&s, &(NsmBoot) { 0 }));
    for (int i = 0; i < 32; i++) {
        assert_pcr(&s, i, ZERO48);
    }
    g_assert_cmphex(s.locked, ==, 0xffff);
}

static void test_module_id(void)
{
    char longest[101];
    NsmState s;
    const char *why = NULL;

    g_assert_true(nsm_module_id_valid(MODULE_ID));
    g_assert_true(nsm_module_id_valid("~"));
    g_assert_false(nsm_module_id_valid(""));
    g_assert_false(nsm_module_id_valid("a b"));
    g_assert_false(nsm_module_id_valid("a\nb"));
    g_assert_false(nsm_module_id_valid("enc\xc3\xa9"));
    memset(longest, 'x', 100);
    longest[100] = '\0';
    g_assert_false(nsm_module_id_valid(longest));
    longest[99] = '\0';
    g_assert_true(nsm_module_id_valid(longest));

    nsm_init(&s, longest);
    g_assert_true(nsm_boot(&s, &(NsmBoot) { 0 }));
    g_assert_cmpstr(nsm_module_id(&s), ==, longest);
    g_assert_true(nsm_state_valid(&s, &why));

    /* What a migration stream could bring */
    s.module_id[99] = 'x';
    g_assert_false(nsm_state_valid(&s, &why));
    g_assert_nonnull(strstr(why, "module id"));
    s.module_id[0] = '\0';
    g_assert_false(nsm_state_valid(&s, &why));
    s.module_id[0] = 'i';
    s.module_id[1] = '\0';
    g_assert_true(nsm_state_valid(&s, &why));
    s.locked = 0xffff7fff;
    g_assert_false(nsm_state_valid(&s, &why));
    g_assert_nonnull(strstr(why, "locked"));
}

/* Answers of one operation into buffers of every size up to its own */
static void check_capacities(const char *request)
{
    g_autoptr(GByteArray) req = notation(request);
    g_autoptr(GByteArray) full = NULL;
    NsmState s, before;
    NsmResult info;

    boot(&s);
    full = serve(&s, req, NSM_RESPONSE_MAX, &info);
    g_assert_cmpint(info.code, ==, NSM_SUCCESS);
    g_assert_false(is_error(full));

    for (size_t cap = 0; cap <= full->len; cap++) {
        g_autoptr(GByteArray) answer = NULL;

        boot(&s);
        before = s;
        answer = serve(&s, req, cap, &info);
        if (cap == full->len) {
            g_assert_cmpint(info.code, ==, NSM_SUCCESS);
            g_assert_cmpuint(answer->len, ==, full->len);
            break;
        }
        g_assert_cmpint(info.code, ==, NSM_BUFFER_TOO_SMALL);
        assert_bytes(answer, cap >= 22 ? BUFFER_TOO_SMALL :
                             cap >= 21 ? INTERNAL_ERROR :
                             cap >= 20 ? INVALID_INDEX : "");
        g_assert_cmpmem(&s, sizeof(s), &before, sizeof(before));
    }
}

static NsmCode fixed_document(void *opaque, const NsmState *state,
                              const NsmAttestRequest *request,
                              uint8_t *buf, size_t cap, size_t *len,
                              const char **reason)
{
    const GByteArray *document = opaque;

    if (document->len > cap) {
        *reason = "the document is too long";
        return NSM_BUFFER_TOO_SMALL;
    }
    if (document->len > 0) {
        memcpy(buf, document->data, document->len);
    }
    *len = document->len;
    return NSM_SUCCESS;
}

static void test_capacities(void)
{
    check_capacities(DESCRIBE_NSM);
    check_capacities(DESCRIBE_PCR("00"));
    check_capacities(EXTEND_PCR("10"));
    check_capacities(LOCK_PCR("10"));
    check_capacities(LOCK_PCRS("1820"));
    check_capacities(GET_RANDOM);
}

/* Errors, too, have to fit. */
static void test_error_capacities(void)
{
    static const struct {
        const char *request;
        NsmCode code;
        const char *text;
    } errors[] = {
        { "00", NSM_INVALID_OPERATION, INVALID_OPERATION },
        { LOCK_PCR("00"), NSM_READ_ONLY_INDEX, READ_ONLY_INDEX },
        { LOCK_PCR("1820"), NSM_INVALID_INDEX, INVALID_INDEX },
        { ATTESTATION, NSM_INTERNAL_ERROR, INTERNAL_ERROR },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(errors); i++) {
        g_autoptr(GByteArray) req = notation(errors[i].request);
        g_autoptr(GByteArray) text = notation(errors[i].text);

        for (size_t cap = 0; cap <= 30; cap++) {
            g_autoptr(GByteArray) answer = NULL;
            NsmResult info;
            NsmState s;

            boot(&s);
            answer = serve(&s, req, cap, &info);
            g_assert_cmpint(info.code, ==, errors[i].code);
            assert_bytes(answer, cap >= text->len ? errors[i].text :
                                 cap >= 22 ? BUFFER_TOO_SMALL :
                                 cap >= 21 ? INTERNAL_ERROR :
                                 cap >= 20 ? INVALID_INDEX : "");
        }
    }
}

static void test_attestation_hook(void)
{
    static const struct {
        size_t len;
        const char *head;
    } documents[] = {
        { 0, "40" }, { 1, "41" }, { 23, "57" }, { 24, "5818" },
        { 255, "58ff" }, { 256, "590100" }, { 4700, "59125c" },
        { 0x3000 - 26, "592fe6" },
    };
    g_autoptr(GByteArray) req = notation(ATTESTATION);
    NsmState s;

    for (unsigned i = 0; i < G_N_ELEMENTS(documents); i++) {
        g_autoptr(GByteArray) document = g_byte_array_new();
        g_autoptr(GByteArray) want =
            notation("a1 6b 'Attestation' a1 68 'document'");
        g_autoptr(GByteArray) head = notation(documents[i].head);
        g_autoptr(GByteArray) answer = NULL;

        notation_fill(document, 0xd0 + i, documents[i].len);
        g_byte_array_append(want, head->data, head->len);
        notation_fill(want, 0xd0 + i, documents[i].len);
        boot(&s);
        nsm_set_attest(&s, fixed_document, document);
        answer = serve(&s, req, NSM_RESPONSE_MAX, NULL);
        g_assert_cmpmem(answer->data, answer->len, want->data, want->len);
    }
}

static void test_attestation_too_long(void)
{
    g_autoptr(GByteArray) req = notation(ATTESTATION);
    g_autoptr(GByteArray) document = g_byte_array_new();
    NsmResult info;
    NsmState s;

    /* One byte more than a response has room for, however large the buffer. */
    notation_fill(document, 0xd0, 0x3000 - 26 + 1);
    boot(&s);
    nsm_set_attest(&s, fixed_document, document);
    for (size_t cap = 0; cap <= 2 * NSM_RESPONSE_MAX;
         cap += cap < 40 ? 1 : 511) {
        g_autoptr(GByteArray) answer = serve(&s, req, cap, &info);

        g_assert_cmpint(info.code, ==, NSM_BUFFER_TOO_SMALL);
        assert_bytes(answer, cap >= 22 ? BUFFER_TOO_SMALL :
                             cap >= 21 ? INTERNAL_ERROR :
                             cap >= 20 ? INVALID_INDEX : "");
    }
    g_assert_cmpstr(info.reason, ==, "the document is too long");
}

static void test_no_attestation(void)
{
    g_autoptr(GByteArray) req = notation(ATTESTATION);
    g_autoptr(GByteArray) answer = NULL;
    NsmResult info;
    NsmState s;

    boot(&s);
    answer = serve(&s, req, NSM_RESPONSE_MAX, &info);
    assert_bytes(answer, INTERNAL_ERROR);
    g_assert_cmpint(info.op, ==, NSM_OP_ATTESTATION);
    g_assert_cmpint(info.code, ==, NSM_INTERNAL_ERROR);
    g_assert_nonnull(strstr(info.reason, "no signer"));
}

static void test_limits(void)
{
    g_autoptr(GByteArray) longest = NULL;
    g_autoptr(GByteArray) answer = NULL;
    uint8_t out[NSM_RESPONSE_MAX];
    NsmResult info;
    NsmState s;
    size_t len;

    boot(&s);

    /* 4096 bytes are a request, of which 4069 can be data. */
    longest = notation("a1 69 'ExtendPCR' a2 65 'index' 10 64 'data' 590fe5");
    notation_fill(longest, 0x5a, 4069);
    g_assert_cmpuint(longest->len, ==, NSM_REQUEST_MAX);
    answer = serve(&s, longest, NSM_RESPONSE_MAX, &info);
    g_assert_cmpint(info.code, ==, NSM_SUCCESS);
    assert_pcr(&s, 16,
               "73334f01aab99858c2af11240e2765ce1d871be4fb50c916"
               "9ef1c93d2e9b939a570e42064d7f2629c1216f7978bd879d");

    /* 4097 are not, whatever they say; they are not even read. */
    len = nsm_handle(&s, NULL, NSM_REQUEST_MAX + 1, out, sizeof(out), &info);
    g_assert_cmpint(info.code, ==, NSM_INPUT_TOO_LARGE);
    g_assert_cmpint(info.op, ==, NSM_OP_NONE);
    g_byte_array_set_size(answer, 0);
    g_byte_array_append(answer, out, len);
    assert_bytes(answer, INPUT_TOO_LARGE);
    len = nsm_handle(&s, NULL, SIZE_MAX, out, sizeof(out), &info);
    g_assert_cmpint(info.code, ==, NSM_INPUT_TOO_LARGE);

    /* And 0 are none. */
    len = nsm_handle(&s, NULL, 0, out, sizeof(out), &info);
    g_assert_cmpint(info.code, ==, NSM_INVALID_OPERATION);
    g_assert_cmpuint(len, ==, 24);

    /* Nowhere to answer to */
    len = nsm_handle(&s, longest->data, longest->len, NULL, 0, &info);
    g_assert_cmpuint(len, ==, 0);
    g_assert_cmpint(info.code, ==, NSM_BUFFER_TOO_SMALL);
}

static void test_info(void)
{
    static const struct {
        const char *request;
        NsmOp op;
        NsmCode code;
        unsigned number;
    } rows[] = {
        { DESCRIBE_NSM, NSM_OP_DESCRIBE_NSM, NSM_SUCCESS, 0 },
        { DESCRIBE_PCR("181f"), NSM_OP_DESCRIBE_PCR, NSM_SUCCESS, 31 },
        { EXTEND_PCR("0f"), NSM_OP_EXTEND_PCR, NSM_READ_ONLY_INDEX, 15 },
        { LOCK_PCR("19012c"), NSM_OP_LOCK_PCR, NSM_INVALID_INDEX, 300 },
        { LOCK_PCRS("1821"), NSM_OP_LOCK_PCRS, NSM_INVALID_INDEX, 33 },
        { GET_RANDOM, NSM_OP_GET_RANDOM, NSM_SUCCESS, 0 },
        { "66 'Unlock'", NSM_OP_NONE, NSM_INVALID_OPERATION, 0 },
    };
    NsmState s;

    boot(&s);
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GByteArray) req = notation(rows[i].request);
        g_autoptr(GByteArray) answer = NULL;
        NsmResult info;

        answer = serve(&s, req, NSM_RESPONSE_MAX, &info);
        g_assert_cmpint(info.op, ==, rows[i].op);
        g_assert_cmpint(info.code, ==, rows[i].code);
        g_assert_cmpuint(info.number, ==, rows[i].number);
    }
}

/* A DescribePCR answer's parts; its prefix is checked byte for byte. */
static const uint8_t *describe(NsmState *s, unsigned index, bool *lock)
{
    static uint8_t value[48];
    g_autofree char *hex = index_hex(index);
    g_autofree char *request =
        g_strconcat("a1 6b 'DescribePCR' a1 65 'index' ", hex, NULL);
    g_autoptr(GByteArray) answer = ask(s, request);
    g_autoptr(GByteArray) head = notation("a1 6b 'DescribePCR' a2 64 'lock'");

    g_assert_cmpuint(answer->len, ==, head->len + 1 + 7 + 48);
    g_assert_cmpmem(answer->data, head->len, head->data, head->len);
    *lock = answer->data[head->len] == 0xf5;
    g_assert_true(*lock || answer->data[head->len] == 0xf4);
    memcpy(value, answer->data + answer->len - 48, 48);
    return value;
}

static bool zero(const uint8_t *value)
{
    static const uint8_t zeros[48];

    return !memcmp(value, zeros, 48);
}

/* Name, PCRs, module id and what is locked */
static void check_description(NsmState *s)
{
    g_autoptr(GByteArray) answer = ask(s, DESCRIBE_NSM);
    g_autoptr(GByteArray) head = notation("a1 6b 'DescribeNSM'");
    g_autoptr(GByteArray) max = notation("68 'max_pcrs' 1820");
    g_autoptr(GByteArray) id = notation("69 'module_id' 7827 'i-'");
    g_autoptr(GByteArray) locks = notation(
        "6b 'locked_pcrs' 90 000102030405060708090a0b0c0d0e0f 66");

    g_assert_cmpmem(answer->data, head->len, head->data, head->len);
    g_assert_nonnull(memmem(answer->data, answer->len, max->data, max->len));
    g_assert_nonnull(memmem(answer->data, answer->len, id->data, id->len));
    g_assert_nonnull(memmem(answer->data, answer->len,
                            locks->data, locks->len));
}

static GByteArray *ask_lock(NsmState *s, unsigned i)
{
    g_autofree char *hex = index_hex(i);
    g_autofree char *request = g_strconcat(LOCK_PCR(""), hex, NULL);

    return ask(s, request);
}

static GByteArray *ask_extend(NsmState *s, unsigned i)
{
    g_autofree char *hex = index_hex(i);
    g_autofree char *request = g_strconcat(
        "a1 69 'ExtendPCR' a2 65 'index' ", hex, " 64 'data' 43010203", NULL);

    return ask(s, request);
}

static void check_extend(NsmState *s, unsigned i)
{
    g_autoptr(GByteArray) answer = ask_extend(s, i);
    g_autoptr(GByteArray) head =
        notation("a1 69 'ExtendPCR' a1 64 'data' 5830");

    g_assert_cmpuint(answer->len, ==, head->len + 48);
    g_assert_cmpmem(answer->data, head->len, head->data, head->len);
    g_assert_false(zero(answer->data + head->len));
}

/* No two answers are the same. */
static void check_random(NsmState *s)
{
    g_autoptr(GByteArray) last = NULL;

    for (int i = 0; i < 16; i++) {
        GByteArray *answer = ask(s, GET_RANDOM);

        g_assert_false(is_error(answer));
        if (last) {
            g_assert_true(last->len != answer->len ||
                          memcmp(last->data, answer->data, last->len));
            g_byte_array_unref(last);
        }
        last = answer;
    }
}

/*
 * AWS's nsm-check, assertions 2 to 4, 6 to 19 and 21 in its order, on an
 * unsigned EIF without debug mode whose parent has no role. 1 is the guest
 * driver's, 5 and 20 are about attestation documents.
 */
static void test_conformance(void)
{
    g_autoptr(GByteArray) range = NULL;
    NsmState s;
    bool lock;

    boot(&s);
    check_description(&s);
    for (unsigned i = 0; i < 32; i++) {
        bool measured = i == 0 || i == 1 || i == 2 || i == 4;

        g_assert_cmpint(zero(describe(&s, i, &lock)), ==, !measured);
        g_assert_cmpint(lock, ==, i < 16);
    }
    for (unsigned i = 0; i < 16; i++) {
        g_autoptr(GByteArray) answer = ask_lock(&s, i);

        g_assert_true(is_error(answer));
    }
    for (int round = 0; round < 10; round++) {
        for (unsigned i = 16; i < 32; i++) {
            check_extend(&s, i);
        }
    }
    for (unsigned i = 16; i < 32; i++) {
        g_autoptr(GByteArray) answer = ask_lock(&s, i);

        assert_bytes(answer, "67 'LockPCR'");
    }
    expect(&s, LOCK_PCRS("1820"), "68 'LockPCRs'");
    range = ask(&s, LOCK_PCRS("1821"));
    g_assert_true(is_error(range));
    for (unsigned i = 0; i < 32; i++) {
        g_autoptr(GByteArray) answer = ask_extend(&s, i);

        g_assert_true(is_error(answer));
    }
    for (int round = 0; round < 10; round++) {
        for (unsigned i = 0; i < 32; i++) {
            bool unused = i == 3 || (i >= 5 && i < 16);

            g_assert_cmpint(zero(describe(&s, i, &lock)), ==, unused);
            g_assert_true(lock);
        }
    }
    for (unsigned i = 16; i < 32; i++) {
        assert_pcr(&s, i, TEN_EXTENDS);
    }
    check_random(&s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nsm/names", test_names);
    g_test_add_func("/nsm/describe-nsm", test_describe_nsm);
    g_test_add_func("/nsm/describe-pcr", test_describe_pcr);
    g_test_add_func("/nsm/extend-pcr", test_extend_pcr);
    g_test_add_func("/nsm/locks", test_locks);
    g_test_add_func("/nsm/get-random", test_get_random);
    g_test_add_func("/nsm/random-source", test_random_source);
    g_test_add_func("/nsm/boot", test_boot);
    g_test_add_func("/nsm/module-id", test_module_id);
    g_test_add_func("/nsm/capacities", test_capacities);
    g_test_add_func("/nsm/error-capacities", test_error_capacities);
    g_test_add_func("/nsm/attestation/hook", test_attestation_hook);
    g_test_add_func("/nsm/attestation/too-long", test_attestation_too_long);
    g_test_add_func("/nsm/attestation/none", test_no_attestation);
    g_test_add_func("/nsm/limits", test_limits);
    g_test_add_func("/nsm/info", test_info);
    g_test_add_func("/nsm/conformance", test_conformance);
    return g_test_run();
}
