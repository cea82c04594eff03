/*
 * SPDX-License-Identifier: MIT
 *
 * NSM core: every way to spell a request, and every way to get it wrong
 *
 * Each row is one input and its verdict, found through nsm_handle() alone.
 * The accepted spellings are those that a Rust program with serde_cbor accepts
 * for the published request types. What the operations then do is test-nsm's
 * subject.
 */
#include "nitro/nsm.h"
#include "notation.h"

/* SHA384(48 zero bytes || 01 02 03), SHA384(48 zero bytes || "abc") */
#define EXTENDED_010203 \
    "a1 69 'ExtendPCR' a1 64 'data' 5830" \
    "cb178fcd3f328244c05c6248723fd068b3a1dda878e1ab8b" \
    "e911098f199958add55d0c27f04826d27b44d949a650694e"
#define EXTENDED_ABC \
    "a1 69 'ExtendPCR' a1 64 'data' 5830" \
    "b1c16eb7634112b7c9d5ebd27e62a2d4528bbfcfd68b62d3" \
    "afd9ecf98e0f413a84314acce78317fb69fd895155343e09"
/* SHA384(48 zero bytes || 01 ff) */
#define EXTENDED_01FF \
    "a1 69 'ExtendPCR' a1 64 'data' 5830" \
    "0f3cfa9c3cbdd042d63ed7ec7f1bb6395f7b6e4f9dfdca08" \
    "43c54038ac5acae8d987c783b7ede354b4aee7e3ced55dcc"
#define PCR0 \
    "a1 6b 'DescribePCR' a2 64 'lock' f5 64 'data' 5830" \
    "000000000000000000000000000000000000000000000000" \
    "000000000000000000000000000000000000000000000000"
/* Their first bytes are enough where the rest is random or long. */
#define RANDOM "a1 69 'GetRandom' a1 66 'random' 590100"
#define NSM "a1 6b 'DescribeNSM' a7 6d 'version_major' 01"

#define ARGUMENT "a1 65 'Error' 6f 'InvalidArgument'"
#define INDEX "a1 65 'Error' 6c 'InvalidIndex'"
#define OPERATION "a1 65 'Error' 70 'InvalidOperation'"

#define DESCRIBE "a1 6b 'DescribePCR' "
#define EXTEND "a1 69 'ExtendPCR' a2 65 'index' 10 64 'data' "

typedef struct Row {
    const char *what;
    const char *request;
    const char *answer;         /* its beginning */
} Row;

static const Row numbers[] = {
    { "in the head", DESCRIBE "a1 65 'index' 00", PCR0 },
    { "1 byte", DESCRIBE "a1 65 'index' 1800", PCR0 },
    { "2 bytes", DESCRIBE "a1 65 'index' 190000", PCR0 },
    { "4 bytes", DESCRIBE "a1 65 'index' 1a00000000", PCR0 },
    { "8 bytes", DESCRIBE "a1 65 'index' 1b0000000000000000", PCR0 },
    { "tagged", DESCRIBE "a1 65 'index' c1 d9d9f7 00", PCR0 },
    { "32", DESCRIBE "a1 65 'index' 1820", INDEX },
    { "300", DESCRIBE "a1 65 'index' 19012c", INDEX },
    { "65535", DESCRIBE "a1 65 'index' 19ffff", INDEX },
    { "65535 in 8 bytes",
      DESCRIBE "a1 65 'index' 1b000000000000ffff", INDEX },
    { "65536", DESCRIBE "a1 65 'index' 1a00010000", ARGUMENT },
    { "2^32", DESCRIBE "a1 65 'index' 1b0000000100000000", ARGUMENT },
    { "2^64 - 1", DESCRIBE "a1 65 'index' 1bffffffffffffffff", ARGUMENT },
    { "-1", DESCRIBE "a1 65 'index' 20", ARGUMENT },
    { "-1 in 8 bytes", DESCRIBE "a1 65 'index' 3b0000000000000000", ARGUMENT },
    { "text", DESCRIBE "a1 65 'index' 61 '0'", ARGUMENT },
    { "bytes", DESCRIBE "a1 65 'index' 4100", ARGUMENT },
    { "null", DESCRIBE "a1 65 'index' f6", ARGUMENT },
    { "undefined", DESCRIBE "a1 65 'index' f7", ARGUMENT },
    { "boolean", DESCRIBE "a1 65 'index' f4", ARGUMENT },
    { "half float", DESCRIBE "a1 65 'index' f90000", ARGUMENT },
    { "float", DESCRIBE "a1 65 'index' fa00000000", ARGUMENT },
    { "double", DESCRIBE "a1 65 'index' fb0000000000000000", ARGUMENT },
    { "array", DESCRIBE "a1 65 'index' 8100", ARGUMENT },
    { "map", DESCRIBE "a1 65 'index' a0", ARGUMENT },
    { "reserved width", DESCRIBE "a1 65 'index' 1c", OPERATION },
    { "indefinite integer", DESCRIBE "a1 65 'index' 1f", OPERATION },
};

static const Row fields[] = {
    { "map", DESCRIBE "a1 65 'index' 00", PCR0 },
    { "map, 1 byte", DESCRIBE "b801 65 'index' 00", PCR0 },
    { "map, 8 bytes", DESCRIBE "bb0000000000000001 65 'index' 00", PCR0 },
    { "indefinite map", DESCRIBE "bf 65 'index' 00 ff", PCR0 },
    { "array", DESCRIBE "81 00", PCR0 },
    { "indefinite array", DESCRIBE "9f 00 ff", PCR0 },
    { "integer key", DESCRIBE "a1 00 00", PCR0 },
    { "wide integer key", DESCRIBE "a1 1b0000000000000000 00", PCR0 },
    { "tagged map", DESCRIBE "c0 a1 65 'index' 00", PCR0 },
    { "tagged key", DESCRIBE "a1 c0 65 'index' 00", PCR0 },
    { "byte string key", DESCRIBE "a1 45 'index' 00", PCR0 },
    { "chunked key", DESCRIBE "a1 7f 62 'in' 63 'dex' ff 00", PCR0 },
    { "null", DESCRIBE "f6", ARGUMENT },
    { "integer", DESCRIBE "00", ARGUMENT },
    { "text", DESCRIBE "65 'index'", ARGUMENT },

    { "none", DESCRIBE "a0", ARGUMENT },
    { "none, indefinite", DESCRIBE "bf ff", ARGUMENT },
    { "none, array", DESCRIBE "80", ARGUMENT },
    { "array too long", DESCRIBE "82 00 00", ARGUMENT },
    { "indefinite array too long", DESCRIBE "9f 00 00 ff", ARGUMENT },
    { "array too short", "a1 69 'ExtendPCR' 81 10", ARGUMENT },
    { "data missing", "a1 69 'ExtendPCR' a1 65 'index' 10", ARGUMENT },
    { "index missing", "a1 69 'ExtendPCR' a1 64 'data' 40", ARGUMENT },
    { "twice", DESCRIBE "a2 65 'index' 00 65 'index' 00", ARGUMENT },
    { "twice, by name and number", DESCRIBE "a2 65 'index' 00 00 00",
      ARGUMENT },
    { "twice, indefinite", DESCRIBE "bf 65 'index' 00 65 'index' 00 ff",
      ARGUMENT },
    { "range for index", DESCRIBE "a1 65 'range' 00", ARGUMENT },
    { "key in capitals", DESCRIBE "a1 65 'INDEX' 00", ARGUMENT },
    { "key longer", DESCRIBE "a1 66 'indexx' 00", ARGUMENT },
    { "null key", DESCRIBE "a1 f6 00", ARGUMENT },
    { "negative key", DESCRIBE "a1 20 00", ARGUMENT },
    { "array key", DESCRIBE "a2 80 00 65 'index' 00", ARGUMENT },

    { "any order", "a1 69 'ExtendPCR' a2 64 'data' 43010203 65 'index' 10",
      EXTENDED_010203 },
    { "positional", "a1 69 'ExtendPCR' 82 10 43010203", EXTENDED_010203 },
    { "by number", "a1 69 'ExtendPCR' a2 01 43010203 00 10",
      EXTENDED_010203 },

    { "unknown before", DESCRIBE "a2 61 'x' 182a 65 'index' 00", PCR0 },
    { "unknown after", DESCRIBE "a2 65 'index' 00 61 'x' f6", PCR0 },
    { "unknown twice", DESCRIBE "a3 61 'x' 00 61 'x' 00 65 'index' 00",
      PCR0 },
    { "unknown number", DESCRIBE "a2 17 00 65 'index' 00", PCR0 },
    { "unknown in indefinite map", DESCRIBE "bf 61 'x' 00 65 'index' 00 ff",
      PCR0 },
    { "unknown of every kind",
      DESCRIBE "ac 65 'index' 00 61 'a' 3903e7 61 'b' 420102"
      " 61 'c' 5f 4101 40 ff 61 'd' 7f 61 'x' 60 ff"
      " 61 'e' 83 01 820203 9f04ff 61 'f' a2 01 02 03 bf 04 05 ff"
      " 61 'g' c249010000000000000000 61 'h' fb3ff199999999999a"
      " 61 'i' f97e00 61 'j' f7 61 'k' f5", PCR0 },
    { "unknown empty containers",
      DESCRIBE "a5 61 'a' 80 61 'b' a0 61 'c' 9fff 61 'd' bfff"
      " 65 'index' 00", PCR0 },
    { "unknown odd indefinite map", DESCRIBE "a2 61 'a' bf 00 ff 65 'index' 00",
      OPERATION },
    { "unknown break", DESCRIBE "a2 61 'a' ff 65 'index' 00", OPERATION },
    { "unknown tagged break", DESCRIBE "a2 61 'a' 9f c0 ff 65 'index' 00",
      OPERATION },
    { "unknown break in definite array",
      DESCRIBE "a2 61 'a' 82 00 ff 65 'index' 00", OPERATION },
    { "unknown mixed chunks",
      DESCRIBE "a2 61 'a' 5f 41 01 61 'x' ff 65 'index' 00", OPERATION },
    { "unknown nested chunks",
      DESCRIBE "a2 61 'a' 5f 5f 41 01 ff ff 65 'index' 00", OPERATION },
    { "unknown huge array",
      DESCRIBE "a2 61 'a' 9bffffffffffffffff 00 65 'index' 00", OPERATION },
    { "unknown huge map",
      DESCRIBE "a2 61 'a' bb8000000000000000 00 65 'index' 00", OPERATION },
    { "unknown huge string",
      DESCRIBE "a2 61 'a' 5bffffffffffffffff 00 65 'index' 00", OPERATION },
    { "unknown bad text", DESCRIBE "a2 61 'a' 62 c328 65 'index' 00",
      OPERATION },
    { "indefinite map without end", DESCRIBE "bf 65 'index' 00", OPERATION },
    { "indefinite map with half a pair", DESCRIBE "bf 65 'index' 00 00 ff",
      OPERATION },
    { "map that lies", DESCRIBE "a2 65 'index' 00", OPERATION },
    { "map of 2^64 - 1", DESCRIBE "bbffffffffffffffff 65 'index' 00",
      OPERATION },
};

static const Row data[] = {
    { "bytes", EXTEND "43 010203", EXTENDED_010203 },
    { "bytes, 1 byte length", EXTEND "5803 010203", EXTENDED_010203 },
    { "bytes, 8 byte length", EXTEND "5b0000000000000003 010203",
      EXTENDED_010203 },
    { "chunks", EXTEND "5f 41 01 42 0203 ff", EXTENDED_010203 },
    { "empty chunks", EXTEND "5f 40 43 010203 40 ff", EXTENDED_010203 },
    { "text", EXTEND "63 'abc'", EXTENDED_ABC },
    { "text chunks", EXTEND "7f 61 'a' 62 'bc' ff", EXTENDED_ABC },
    { "array", EXTEND "83 01 02 03", EXTENDED_010203 },
    { "array of wide numbers",
      EXTEND "83 1801 190002 1b0000000000000003", EXTENDED_010203 },
    { "array of tagged numbers", EXTEND "83 c0 01 02 03", EXTENDED_010203 },
    { "indefinite array", EXTEND "9f 01 02 03 ff", EXTENDED_010203 },
    { "tagged", EXTEND "c2 43 010203", EXTENDED_010203 },
    { "integer", EXTEND "01", ARGUMENT },
    { "null", EXTEND "f6", ARGUMENT },
    { "boolean", EXTEND "f5", ARGUMENT },
    { "map", EXTEND "a0", ARGUMENT },
    { "array with 255", EXTEND "82 01 18ff", EXTENDED_01FF },
    { "array with 256", EXTEND "82 01 190100", ARGUMENT },
    { "array with -1", EXTEND "82 01 20", ARGUMENT },
    { "array with bytes", EXTEND "82 01 4102", ARGUMENT },
    { "array with null", EXTEND "82 01 f6", ARGUMENT },
    { "array in array", EXTEND "82 01 8102", ARGUMENT },
    { "text that is not UTF-8", EXTEND "62 ff00", OPERATION },
    { "text with a surrogate", EXTEND "63 eda080", OPERATION },
    { "text overlong", EXTEND "62 c080", OPERATION },
    { "text character across chunks", EXTEND "7f 61 c3 61 a9 ff", OPERATION },
    { "text chunk in bytes", EXTEND "5f 61 'a' ff", OPERATION },
    { "byte chunk in text", EXTEND "7f 41 01 ff", OPERATION },
    { "tagged chunk", EXTEND "5f c0 41 01 ff", OPERATION },
    { "chunk of chunks", EXTEND "5f 5f 41 01 ff ff", OPERATION },
    { "number as chunk", EXTEND "5f 01 ff", OPERATION },
    { "chunks without end", EXTEND "5f 41 01", OPERATION },
    { "longer than the request", EXTEND "44 010203", OPERATION },
    { "of 2^64 - 1 bytes", EXTEND "5bffffffffffffffff 010203", OPERATION },
    { "array of 2^64 - 1", EXTEND "9bffffffffffffffff 01 02", OPERATION },
    { "tag without item", EXTEND "c2", OPERATION },
};

static const Row shapes[] = {
    { "text", "69 'GetRandom'", RANDOM },
    { "text, 1 byte length", "7809 'GetRandom'", RANDOM },
    { "text in chunks", "7f 63 'Get' 66 'Random' ff", RANDOM },
    { "byte string", "49 'GetRandom'", RANDOM },
    { "tagged text", "d9d9f7 69 'GetRandom'", RANDOM },
    { "map with null", "a1 69 'GetRandom' f6", RANDOM },
    { "map with tagged null", "a1 69 'GetRandom' c0 f6", RANDOM },
    { "array", "81 69 'GetRandom'", RANDOM },
    { "indefinite array", "9f 69 'GetRandom' ff", RANDOM },
    { "map with {}", "a1 69 'GetRandom' a0", ARGUMENT },
    { "map with []", "a1 69 'GetRandom' 80", ARGUMENT },
    { "map with 0", "a1 69 'GetRandom' 00", ARGUMENT },
    { "map with false", "a1 69 'GetRandom' f4", ARGUMENT },
    { "array with null", "82 69 'GetRandom' f6", ARGUMENT },
    { "DescribeNSM", "6b 'DescribeNSM'", NSM },
    { "DescribeNSM with null", "a1 6b 'DescribeNSM' f6", NSM },

    { "array with fields", "82 6b 'DescribePCR' a1 65 'index' 00", PCR0 },
    { "array with positional fields", "82 6b 'DescribePCR' 81 00", PCR0 },
    { "long head of an array", "9802 6b 'DescribePCR' 81 00", PCR0 },
    { "indefinite array with fields",
      "9f 6b 'DescribePCR' a1 65 'index' 00 ff", PCR0 },
    { "array without fields", "81 6b 'DescribePCR'", ARGUMENT },
    { "array with null for fields", "82 6b 'DescribePCR' f6", ARGUMENT },
    { "array with more", "83 6b 'DescribePCR' 81 00 00", ARGUMENT },
    { "indefinite array with more", "9f 6b 'DescribePCR' 81 00 00 ff",
      ARGUMENT },
    { "indefinite array without end", "9f 6b 'DescribePCR' 81 00",
      OPERATION },
    { "fields bare in array", "82 6b 'DescribePCR' 00", ARGUMENT },

    { "tagged map", "c0 a1 6b 'DescribePCR' a1 65 'index' 00", PCR0 },
    { "name as byte string", "a1 4b 'DescribePCR' a1 65 'index' 00", PCR0 },
    { "name in chunks",
      "a1 7f 68 'Describe' 63 'PCR' ff a1 65 'index' 00", PCR0 },
    { "tagged name", "a1 c1 6b 'DescribePCR' a1 65 'index' 00", PCR0 },
    { "bare name that needs fields", "6b 'DescribePCR'", ARGUMENT },
    { "outer map, 1 byte", "b801 6b 'DescribePCR' a1 65 'index' 00",
      OPERATION },
    { "outer map, 2 bytes", "b90001 6b 'DescribePCR' a1 65 'index' 00",
      OPERATION },
    { "outer map, 8 bytes",
      "bb0000000000000001 6b 'DescribePCR' a1 65 'index' 00", OPERATION },
    { "outer map of 161 that looks like a1", "b8a1 69 'GetRandom' f6",
      OPERATION },
    { "outer map indefinite", "bf 6b 'DescribePCR' a1 65 'index' 00 ff",
      OPERATION },
    { "outer map empty", "a0", OPERATION },
    { "outer map of two", "a2 69 'GetRandom' f6 6b 'DescribeNSM' f6",
      OPERATION },
    { "array empty", "80", OPERATION },
    { "indefinite array empty", "9f ff", OPERATION },

    { "unknown name", "66 'Unlock'", OPERATION },
    { "unknown name with fields", "a1 69 'UnlockPCR' a1 65 'index' 00",
      OPERATION },
    { "name in lower case", "69 'getrandom'", OPERATION },
    { "name and NUL", "6a 'GetRandom' 00", OPERATION },
    { "start of a name", "68 'GetRando'", OPERATION },
    { "empty name", "60", OPERATION },
    { "name of the table's gap", "61 '-'", OPERATION },
    { "number for a name", "a1 00 81 00", OPERATION },
    { "null for a name", "a1 f6 f6", OPERATION },
    { "number", "00", OPERATION },
    { "null", "f6", OPERATION },
    { "break", "ff", OPERATION },
    { "simple value", "f820", OPERATION },
    { "unassigned simple value", "e0", OPERATION },
    { "tag alone", "c0", OPERATION },

    { "trailing byte after text", "69 'GetRandom' 00", OPERATION },
    { "trailing byte after map", DESCRIBE "a1 65 'index' 00 00", OPERATION },
    { "trailing break", DESCRIBE "a1 65 'index' 00 ff", OPERATION },
    { "two requests", "69 'GetRandom' 69 'GetRandom'", OPERATION },
    { "wrong argument and trailing byte", DESCRIBE "a1 65 'index' 20 00",
      OPERATION },
};

static void boot(NsmState *s)
{
    nsm_init(s, "i-0-enc0");
    g_assert_true(nsm_boot(s, &(NsmBoot) { 0 }));
}

/* The request's buffer ends where the request ends: sanitizers will tell. */
static size_t handle(NsmState *s, const uint8_t *req, size_t len,
                     uint8_t out[NSM_RESPONSE_MAX], NsmResult *info)
{
    uint8_t *copy = g_memdup2(req, len);
    size_t n = nsm_handle(s, copy, len, out, NSM_RESPONSE_MAX, info);

    g_free(copy);
    return n;
}

static void test_row(gconstpointer opaque)
{
    const Row *row = opaque;
    g_autoptr(GByteArray) req = notation(row->request);
    g_autoptr(GByteArray) want = notation(row->answer);
    uint8_t out[NSM_RESPONSE_MAX];
    NsmState s;
    size_t len;

    boot(&s);
    len = handle(&s, req->data, req->len, out, NULL);
    g_assert_cmpuint(len, >=, want->len);
    g_assert_cmpmem(out, want->len, want->data, want->len);
}

/* Cut anywhere, no request is a request; and none of it takes effect. */
static void test_truncated(gconstpointer opaque)
{
    const Row *row = opaque;
    g_autoptr(GByteArray) req = notation(row->request);
    uint8_t out[NSM_RESPONSE_MAX];
    NsmState s, before;
    NsmResult info;

    boot(&s);
    before = s;
    for (size_t n = 0; n < req->len; n++) {
        handle(&s, req->data, n, out, &info);
        g_assert_cmpint(info.code, ==, NSM_INVALID_OPERATION);
        g_assert_cmpmem(&s, sizeof(s), &before, sizeof(before));
    }
}

/* An unknown field of @depth arrays in one another, the last one empty */
static NsmCode nested(unsigned depth, uint8_t opening, bool close)
{
    g_autoptr(GByteArray) req = notation(DESCRIBE "a2 61 'x'");
    g_autoptr(GByteArray) rest = notation("65 'index' 00");
    uint8_t out[NSM_RESPONSE_MAX];
    NsmResult info;
    NsmState s;

    notation_fill(req, opening, depth - 1);
    notation_fill(req, close ? opening : 0x80, 1);
    if (close) {
        notation_fill(req, 0xff, depth);
    }
    g_byte_array_append(req, rest->data, rest->len);
    g_assert_cmpuint(req->len, <=, NSM_REQUEST_MAX);
    boot(&s);
    handle(&s, req->data, req->len, out, &info);
    return info.code;
}

static void test_depth(void)
{
    /* 128 levels with the outer map and the fields' map */
    g_assert_cmpint(nested(1, 0x81, false), ==, NSM_SUCCESS);
    g_assert_cmpint(nested(126, 0x81, false), ==, NSM_SUCCESS);
    g_assert_cmpint(nested(127, 0x81, false), ==, NSM_INVALID_OPERATION);
    g_assert_cmpint(nested(4000, 0x81, false), ==, NSM_INVALID_OPERATION);
    g_assert_cmpint(nested(126, 0x9f, true), ==, NSM_SUCCESS);
    g_assert_cmpint(nested(127, 0x9f, true), ==, NSM_INVALID_OPERATION);
    g_assert_cmpint(nested(2000, 0x9f, true), ==, NSM_INVALID_OPERATION);
}

/* Every head of a tag, and every simple value, whatever IANA has them for. */
static void test_all_tags(void)
{
    static const char *const more[] = { "10", "1234", "12345678",
                                        "123456789abcdef0" };

    for (unsigned head = 0xc0; head <= 0xdb; head++) {
        g_autofree char *tag = g_strdup_printf(
            "%02x %s", head, head < 0xd8 ? "" : more[head - 0xd8]);
        g_autofree char *request = g_strdup_printf(
            DESCRIBE "a1 65 'index' %s 00", tag);
        g_autofree char *unknown = g_strdup_printf(
            DESCRIBE "a2 65 'index' 00 61 'x' %s 01", tag);

        test_row(&(Row) { tag, request, PCR0 });
        test_row(&(Row) { tag, unknown, PCR0 });
    }
    for (unsigned value = 0; value < 256; value++) {
        g_autofree char *simple = g_strdup_printf(
            value < 24 ? "%02x" : "f8%02x", value < 24 ? 0xe0 + value : value);
        g_autofree char *request = g_strdup_printf(
            DESCRIBE "a2 65 'index' 00 61 'x' %s", simple);

        if (value < 24 || value >= 32) {
            test_row(&(Row) { simple, request, PCR0 });
        }
    }
}

static void test_many_tags(void)
{
    g_autoptr(GByteArray) req = g_byte_array_new();
    g_autoptr(GByteArray) name = notation("69 'GetRandom'");
    uint8_t out[NSM_RESPONSE_MAX];
    NsmResult info;
    NsmState s;

    boot(&s);
    notation_fill(req, 0xc0, NSM_REQUEST_MAX);
    handle(&s, req->data, req->len, out, &info);
    g_assert_cmpint(info.code, ==, NSM_INVALID_OPERATION);
    g_byte_array_set_size(req, NSM_REQUEST_MAX - name->len);
    g_byte_array_append(req, name->data, name->len);
    handle(&s, req->data, req->len, out, &info);
    g_assert_cmpint(info.code, ==, NSM_SUCCESS);
}

/* Attestation's fields, as its hook sees them */

typedef struct Seen {
    int calls;
    GByteArray *field[3];       /* user_data, nonce, public_key; NULL: absent */
} Seen;

static NsmCode see(void *opaque, const NsmState *state,
                   const NsmAttestRequest *request,
                   uint8_t *buf, size_t cap, size_t *len, const char **reason)
{
    const NsmSpan *spans[] = {
        &request->user_data, &request->nonce, &request->public_key,
    };
    Seen *seen = opaque;

    seen->calls++;
    for (int i = 0; i < 3; i++) {
        if (spans[i]->data) {
            seen->field[i] = g_byte_array_append(
                g_byte_array_new(), spans[i]->data, spans[i]->len);
        }
    }
    g_assert_cmpuint(cap, ==, NSM_RESPONSE_MAX - 26);
    buf[0] = 0x84;
    *len = 1;
    return NSM_SUCCESS;
}

/* NULL for a field means absent; an empty string, present and empty. */
static void attest(const GByteArray *req, const char *const want[3])
{
    uint8_t out[NSM_RESPONSE_MAX];
    Seen seen = { 0 };
    NsmResult info;
    NsmState s;

    boot(&s);
    nsm_set_attest(&s, see, &seen);
    handle(&s, req->data, req->len, out, &info);
    g_assert_cmpint(info.code, ==, NSM_SUCCESS);
    g_assert_cmpint(seen.calls, ==, 1);
    for (int i = 0; i < 3; i++) {
        if (!want[i]) {
            g_assert_null(seen.field[i]);
        } else {
            g_autoptr(GByteArray) bytes = notation(want[i]);

            g_assert_nonnull(seen.field[i]);
            g_assert_cmpmem(seen.field[i]->data, seen.field[i]->len,
                            bytes->data, bytes->len);
            g_byte_array_unref(seen.field[i]);
        }
    }
}

static void test_attestation_fields(void)
{
    static const struct {
        const char *request;
        const char *want[3];
    } rows[] = {
        { "a1 6b 'Attestation' a3 69 'user_data' f6 65 'nonce' f6"
          " 6a 'public_key' f6", { NULL, NULL, NULL } },
        { "a1 6b 'Attestation' a0", { NULL, NULL, NULL } },
        { "a1 6b 'Attestation' bf ff", { NULL, NULL, NULL } },
        { "82 6b 'Attestation' a0", { NULL, NULL, NULL } },
        { "a1 6b 'Attestation' 83 f6 f6 f6", { NULL, NULL, NULL } },
        { "a1 6b 'Attestation' a3 6a 'public_key' 43 333333 69 'user_data'"
          " 41 11 65 'nonce' 42 2222", { "11", "2222", "333333" } },
        { "a1 6b 'Attestation' 83 41 11 f6 43 333333",
          { "11", NULL, "333333" } },
        { "a1 6b 'Attestation' a1 02 40", { NULL, NULL, "" } },
        { "a1 6b 'Attestation' a1 65 'nonce' 80", { NULL, "", NULL } },
        { "a1 6b 'Attestation' a1 65 'nonce' 5fff", { NULL, "", NULL } },
        { "a1 6b 'Attestation' a1 65 'nonce' 60", { NULL, "", NULL } },
        { "a1 6b 'Attestation' a1 65 'nonce' c0 f6", { NULL, NULL, NULL } },
        { "a1 6b 'Attestation' a3 69 'user_data' 5f 41 11 41 12 ff"
          " 65 'nonce' 83 182118221823 6a 'public_key' 7f 61 'k' 62 'ey' ff",
          { "1112", "212223", "'key'" } },
        /* NUL is text, too. */
        { "a1 6b 'Attestation' a1 65 'nonce' 64 00 'a' 00 'b'",
          { NULL, "00 'a' 00 'b'", NULL } },
        { "a1 6b 'Attestation' a1 65 'nonce' 69 c3a9 e282ac f09f9880",
          { NULL, "c3a9 e282ac f09f9880", NULL } },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GByteArray) req = notation(rows[i].request);

        g_test_message("%s", rows[i].request);
        attest(req, rows[i].want);
    }
}

static void test_attestation_wrong(void)
{
    static const char *const requests[] = {
        "6b 'Attestation'",
        "81 6b 'Attestation'",
        "a1 6b 'Attestation' f6",
        "a1 6b 'Attestation' 80",
        "a1 6b 'Attestation' 82 f6 f6",
        "a1 6b 'Attestation' 84 f6 f6 f6 f6",
        "a1 6b 'Attestation' a1 65 'nonce' 00",
        "a1 6b 'Attestation' a1 65 'nonce' f7",
        "a1 6b 'Attestation' a2 65 'nonce' f6 65 'nonce' f6",
        "a1 6b 'Attestation' a2 65 'nonce' 40 01 f6",
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(requests); i++) {
        g_autoptr(GByteArray) req = notation(requests[i]);
        uint8_t out[NSM_RESPONSE_MAX];
        Seen seen = { 0 };
        NsmResult info;
        NsmState s;

        g_test_message("%s", requests[i]);
        boot(&s);
        nsm_set_attest(&s, see, &seen);
        handle(&s, req->data, req->len, out, &info);
        g_assert_cmpint(info.op, ==, NSM_OP_ATTESTATION);
        g_assert_cmpint(info.code, ==, NSM_INVALID_ARGUMENT);
        g_assert_cmpint(seen.calls, ==, 0);
    }
}

/* Fields that fill the request, in the forms that need copying */
static void test_attestation_long(void)
{
    g_autoptr(GByteArray) req = notation(
        "a1 6b 'Attestation' a3 65 'nonce' f6 6a 'public_key' f6"
        " 69 'user_data'");
    g_autoptr(GString) want = g_string_new("");
    size_t head = req->len;
    const uint8_t length[] = { 0x59, 0x0f, 0xd2 };      /* 4050 */
    const char *spans[3] = { NULL };

    g_byte_array_append(req, length, 3);
    notation_fill(req, 0x17, 4050);
    g_assert_cmpuint(req->len, ==, NSM_REQUEST_MAX);
    for (int i = 0; i < 4050; i++) {
        g_string_append(want, "17");
    }
    spans[0] = want->str;
    attest(req, spans);

    /* An array of one-byte numbers has the same length. */
    req->data[head] = 0x99;
    attest(req, spans);
}

static void add_rows(const char *table, const Row *row, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        g_autofree char *path =
            g_strdup_printf("/nsm-request/%s/%s", table, row[i].what);

        g_test_add_data_func(path, &row[i], test_row);
        /* Well-formed rows are those that are not OPERATION errors. */
        if (strcmp(row[i].answer, OPERATION)) {
            g_autofree char *cut = g_strdup_printf(
                "/nsm-request/truncated-%s/%s", table, row[i].what);

            g_test_add_data_func(cut, &row[i], test_truncated);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add_rows("number", numbers, G_N_ELEMENTS(numbers));
    add_rows("fields", fields, G_N_ELEMENTS(fields));
    add_rows("data", data, G_N_ELEMENTS(data));
    add_rows("shape", shapes, G_N_ELEMENTS(shapes));
    g_test_add_func("/nsm-request/depth", test_depth);
    g_test_add_func("/nsm-request/all-tags", test_all_tags);
    g_test_add_func("/nsm-request/many-tags", test_many_tags);
    g_test_add_func("/nsm-request/attestation/fields",
                    test_attestation_fields);
    g_test_add_func("/nsm-request/attestation/wrong", test_attestation_wrong);
    g_test_add_func("/nsm-request/attestation/long", test_attestation_long);
    return g_test_run();
}
