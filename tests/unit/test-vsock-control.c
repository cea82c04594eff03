/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of what the owner of the vsock backend may say: the reader of its
 * lines. Whole exchanges are in tests/python/vsock/test_vsock_control.py.
 */

#include <glib.h>
#include <string.h>

#include "control-line.h"

static struct control_line line;
static char text[4096];

static const char *parse(const char *said)
{
    /* Of exactly that size, so that a sanitizer sees a step too far. */
    size_t size = strlen(said);

    g_assert_cmpuint(size, <, sizeof(text));
    memcpy(text, said, size);
    return control_parse(&line, text, size);
}

static void test_good(void)
{
    uint64_t n = 5;

    g_assert_null(parse("{\"do\": \"stats\", \"a\":18446744073709551615 , "
                        "\"b\" : \"\"}\n"));
    g_assert_cmpuint(line.count, ==, 3);
    g_assert_cmpstr(control_word(&line, "do"), ==, "stats");
    g_assert_cmpstr(control_left(&line), ==, "a");
    g_assert_true(control_number(&line, "a", 0, UINT64_MAX, &n));
    g_assert_cmpuint(n, ==, UINT64_MAX);
    g_assert_cmpstr(control_word(&line, "b"), ==, "");
    g_assert_null(control_left(&line));
    /* What is not there leaves the default. */
    g_assert_true(control_number(&line, "c", 1, 2, &n));
    g_assert_cmpuint(n, ==, UINT64_MAX);
    g_assert_null(control_word(&line, "c"));
    g_assert_null(parse(" \t{ } "));
    g_assert_cmpuint(line.count, ==, 0);
    g_assert_null(parse("{\"n\": 00}"));
}

static void test_numbers(void)
{
    uint64_t n = 5;

    g_assert_null(parse("{\"n\": 10, \"w\": \"10\"}"));
    g_assert_false(control_number(&line, "n", 0, 9, &n));
    g_assert_false(control_number(&line, "n", 11, 12, &n));
    g_assert_false(control_number(&line, "w", 0, 100, &n));
    g_assert_cmpuint(n, ==, 5);
    /* A number is no word. */
    g_assert_null(control_word(&line, "n"));
}

static void test_bad(void)
{
    static const char *const bad[] = {
        "", "x", "[]", "{", "{\"a\"", "{\"a\":", "{\"a\":}", "{\"a\":1",
        "{\"a\":1,", "{\"a\":1,}", "{,}", "{\"a\" 1}", "{a:1}", "{\"a\":-1}",
        "{\"a\":1.5}", "{\"a\":1e3}", "{\"a\":true}", "{\"a\":null}",
        "{\"a\":{}}", "{\"a\":[1]}", "{\"a\":\"x}", "{\"a\":\"\\n\"}",
        "{\"a\":\"\x1b\"}", "{\"a\":\"\xc3\xa4\"}", "{\"a\x7f\":1}",
        "{\"a\":18446744073709551616}", "{\"a\":99999999999999999999999}",
        "{\"a\":1}{", "{\"a\":1} x", "{\"a\":1,\"a\":2}", "{\"a\":1 \"b\":2}",
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_nonnull(parse(bad[i]));
    }
    memcpy(text, "{\"a\": 1}\0}", 10);
    g_assert_cmpstr(control_parse(&line, text, 10), ==, "it has a byte 0");
}

static void test_members(void)
{
    g_autoptr(GString) s = g_string_new("{");

    for (unsigned i = 0; i < CONTROL_MAX_MEMBERS; i++) {
        g_string_append_printf(s, "%s\"m%u\": %u", i ? ", " : "", i, i);
    }
    g_string_append(s, "}");
    g_assert_null(parse(s->str));
    g_assert_cmpuint(line.count, ==, CONTROL_MAX_MEMBERS);
    g_string_truncate(s, s->len - 1);
    g_string_append(s, ", \"one\": 1}");
    g_assert_cmpstr(parse(s->str), ==, "it has too many members");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vsock-control/good", test_good);
    g_test_add_func("/vsock-control/numbers", test_numbers);
    g_test_add_func("/vsock-control/bad", test_bad);
    g_test_add_func("/vsock-control/members", test_members);
    return g_test_run();
}
