/*
 * SPDX-License-Identifier: MIT
 *
 * CBOR from strangers: what a token is, and what is none
 *
 * Inputs and their meaning are from RFC 8949: the examples of its appendix A,
 * the initial bytes of its appendix B and the faults of its appendix F. What
 * a sequence of tokens is worth is the subject of the cores' own tests.
 */
#include <stdbool.h>

#include "nitro/cbor-token.h"
#include "notation.h"

typedef struct Row {
    const char *cbor;
    const char *tokens;
} Row;

static const Row rows[] = {
    { "00", "uint(0)" },
    { "17", "uint(23)" },
    { "1818", "uint(24)" },
    { "1903e8", "uint(1000)" },
    { "1a000f4240", "uint(1000000)" },
    { "1bffffffffffffffff", "uint(18446744073709551615)" },
    { "1800 190000 1a00000000 1b0000000000000000",
      "uint(0) uint(0) uint(0) uint(0)" },
    { "20", "negint(0)" },
    { "3863", "negint(99)" },
    { "3903e7", "negint(999)" },
    { "3a000f423f", "negint(999999)" },
    { "3bffffffffffffffff", "negint(18446744073709551615)" },
    { "40", "bytes()" },
    { "4401020304", "bytes(01020304)" },
    { "580101 59000101 5a0000000101 5b000000000000000101",
      "bytes(01) bytes(01) bytes(01) bytes(01)" },
    { "60", "text()" },
    { "6449455446", "text(49455446)" },
    { "63e6b0b4", "text(e6b0b4)" },
    { "61ff", "text(ff)" },
    { "7801'a' 790001'a' 7a00000001'a' 7b0000000000000001'a'",
      "text(61) text(61) text(61) text(61)" },
    { "83010203", "array(3) uint(1) uint(2) uint(3)" },
    { "80 9800 990000 9a00000000 9b0000000000000000",
      "array(0) array(0) array(0) array(0) array(0)" },
    { "9bffffffffffffffff", "array(18446744073709551615)" },
    { "a201020304", "map(2) uint(1) uint(2) uint(3) uint(4)" },
    { "a0 b800 b90000 ba00000000 bb0000000000000000",
      "map(0) map(0) map(0) map(0) map(0)" },
    { "bbffffffffffffffff", "map(18446744073709551615)" },
    { "5f42010243030405ff", "bytes-open bytes(0102) bytes(030405) break" },
    { "7f61'a'ff", "text-open text(61) break" },
    { "9f01ff", "array-open uint(1) break" },
    { "bf0102ff", "map-open uint(1) uint(2) break" },
    { "f6", "null" },
    { "f4 f5 f7", "simple simple simple" },
    { "f93c00 fa47c35000 fb3ff199999999999a", "simple simple simple" },
    { "d81845'dIETF'", "tag(24) bytes(6449455446)" },
    { "d90102 da00010000 dbffffffffffffffff",
      "tag(258) tag(65536) tag(18446744073709551615)" },

    /* Additional information that is reserved */
    { "1c", "wrong" }, { "1d", "wrong" }, { "1e", "wrong" },
    { "3c", "wrong" }, { "5d", "wrong" }, { "7e", "wrong" },
    { "9c", "wrong" }, { "bd", "wrong" }, { "de", "wrong" },
    { "fc", "wrong" }, { "fd", "wrong" }, { "fe", "wrong" },
    /* An indefinite length where there is none */
    { "1f", "wrong" }, { "3f", "wrong" }, { "df", "wrong" },
    /* The end of the input within a head or a string */
    { "", "cut" },
    { "18", "cut" }, { "1900", "cut" }, { "1a000000", "cut" },
    { "1b00000000000000", "cut" },
    { "38", "cut" }, { "58", "cut" }, { "78", "cut" }, { "98", "cut" },
    { "9a010101", "cut" }, { "b8", "cut" }, { "d8", "cut" }, { "f8", "cut" },
    { "f900", "cut" }, { "fa000000", "cut" }, { "fb00000000000000", "cut" },
    { "41", "cut" }, { "61", "cut" }, { "5affffffff00", "cut" },
    { "5bffffffffffffffff010203", "cut" },
    { "7affffffff00", "cut" }, { "7b7fffffffffffffff010203", "cut" },
    { "01 41", "uint(1) cut" },
};

static const char *const names[TOKEN_KINDS] = {
    [TOKEN_UINT] = "uint",
    [TOKEN_NEGINT] = "negint",
    [TOKEN_BYTES] = "bytes",
    [TOKEN_TEXT] = "text",
    [TOKEN_BYTES_CHUNKED] = "bytes-open",
    [TOKEN_TEXT_CHUNKED] = "text-open",
    [TOKEN_ARRAY] = "array",
    [TOKEN_MAP] = "map",
    [TOKEN_ARRAY_OPEN] = "array-open",
    [TOKEN_MAP_OPEN] = "map-open",
    [TOKEN_TAG] = "tag",
    [TOKEN_BREAK] = "break",
    [TOKEN_NULL] = "null",
    [TOKEN_SIMPLE] = "simple",
};

static void describe(GString *out, const CborToken *t)
{
    g_string_append_printf(out, "%s%s", out->len ? " " : "", names[t->kind]);
    switch (t->kind) {
    case TOKEN_BYTES:
    case TOKEN_TEXT:
        g_string_append_c(out, '(');
        for (uint64_t i = 0; i < t->value; i++) {
            g_string_append_printf(out, "%02x", t->data[i]);
        }
        g_string_append_c(out, ')');
        break;
    case TOKEN_UINT:
    case TOKEN_NEGINT:
    case TOKEN_ARRAY:
    case TOKEN_MAP:
    case TOKEN_TAG:
        g_string_append_printf(out, "(%" G_GUINT64_FORMAT ")", t->value);
        break;
    default:
        break;
    }
}

static void check(const char *cbor, const char *expected)
{
    GByteArray *bytes = notation(cbor);
    /* A copy of just that length: a byte read behind it is found. */
    g_autofree uint8_t *copy = g_memdup2(bytes->data, bytes->len);
    CborTokens in = { .buf = copy, .len = bytes->len };
    GString *tokens = g_string_new(NULL);
    CborTokenResult result;
    CborToken t;

    do {
        size_t pos = in.pos;

        result = cbor_token_next(&in, &t);
        if (result == TOKEN_READ) {
            g_assert_cmpuint(in.pos, >, pos);
            describe(tokens, &t);
        } else {
            g_assert_cmpuint(in.pos, ==, pos);
            g_string_append_printf(tokens, "%s%s", tokens->len ? " " : "",
                                   result == TOKEN_CUT ? "cut" : "wrong");
        }
    } while (result == TOKEN_READ && in.pos < in.len);
    g_assert_cmpuint(in.pos, <=, in.len);
    g_test_message("%s", cbor);
    g_assert_cmpstr(tokens->str, ==, expected);

    g_string_free(tokens, true);
    g_byte_array_unref(bytes);
}

static void test_rows(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        check(rows[i].cbor, rows[i].tokens);
    }
}

/* Whatever IANA has them for: libcbor does not know them all. */
static void test_every_tag(void)
{
    for (unsigned n = 0; n < 256; n++) {
        g_autofree char *cbor = n < 24 ? g_strdup_printf("%02x", 0xc0 + n)
                                       : g_strdup_printf("d8%02x", n);
        g_autofree char *token = g_strdup_printf("tag(%u)", n);

        check(cbor, token);
    }
}

static void test_every_simple_value(void)
{
    for (unsigned n = 0; n < 256; n++) {
        g_autofree char *cbor = n < 24 ? g_strdup_printf("%02x", 0xe0 + n)
                                       : g_strdup_printf("f8%02x", n);

        check(cbor, n == 22 ? "null" : n < 24 || n >= 32 ? "simple" : "wrong");
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cbor-token/rows", test_rows);
    g_test_add_func("/cbor-token/every-tag", test_every_tag);
    g_test_add_func("/cbor-token/every-simple-value", test_every_simple_value);
    return g_test_run();
}
