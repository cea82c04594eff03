/*
 * SPDX-License-Identifier: MIT
 *
 * The tools agent's reader of frames and requests, on plain buffers: each test
 * states what the protocol's header says (guest/tools-protocol.h).
 */

#include <glib.h>
#include <string.h>

#include "../../guest/tools-frame.h"

/* A copy without a byte to spare, for sanitizers to watch. */
static uint8_t *exactly(const void *bytes, size_t len)
{
    return g_memdup2(bytes, len);
}

static void test_frame(void)
{
    static const uint8_t whole[] = { 4, 0, 0, 0, 'o', 'a', 'b', 'c', 'X' };
    static const uint8_t longest[] = { 0, 0, 1, 0, 'o' };
    static const uint8_t bad[][5] = {
        { 0, 0, 0, 0, 'o' },
        { 1, 0, 1, 0, 'o' },
        { 0xff, 0xff, 0xff, 0xff, 'o' },
        { 0, 0, 0, 0x80, 'o' },
    };
    uint8_t head[FRAME_HEAD];
    Frame f = { 0 };

    for (size_t len = 0; len < 8; len++) {
        g_autofree uint8_t *part = exactly(whole, len);

        g_assert_cmpint(frame_take(part, len, &f), ==, 0);
    }
    g_assert_cmpint(frame_take(whole, sizeof(whole), &f), ==, 8);
    g_assert_cmpint(f.kind, ==, 'o');
    g_assert_cmpmem(f.data, f.len, "abc", 3);

    g_assert_cmpint(frame_take(longest, sizeof(longest), &f), ==, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_cmpint(frame_take(bad[i], 5, &f), ==, -1);
    }

    frame_head(head, 'x', 2);
    g_assert_cmpmem(head, sizeof(head), "\x03\0\0\0x", 5);
    frame_head(head, 'o', TOOLS_FRAME_MAX - 1);
    g_assert_cmpmem(head, sizeof(head), "\0\0\x01\0o", 5);
}

static bool parse(const void *bytes, size_t len, Request *r)
{
    g_autofree uint8_t *copy = exactly(bytes, len);
    Frame f = { 'R', copy, len };
    bool good = request_parse(&f, r);

    /* What points into the frame is looked at while it is there. */
    for (size_t i = 0; good && i < r->variables; i++) {
        g_assert_nonnull(strchr(r->variable[i], '='));
    }
    for (size_t i = 0; good && i < r->words; i++) {
        g_assert_cmpuint(strlen(r->word[i]), <, len);
    }
    return good;
}

#define PARSE(text, r) parse(text, sizeof(text) - 1, r)

static void test_request(void)
{
    static const char exec[] = "\1\0X\3\x18\0\x50\0TERM=vt100\0A=\0\0ls\0-l";
    static Request r;
    Frame f = { 'R', (const uint8_t *)exec, sizeof(exec) };

    g_assert_true(request_parse(&f, &r));
    g_assert_cmpint(r.operation, ==, 'X');
    g_assert_cmpint(r.flags, ==, TOOLS_TTY | TOOLS_BUSYBOX);
    g_assert_cmpint(r.rows, ==, 24);
    g_assert_cmpint(r.columns, ==, 80);
    g_assert_cmpuint(r.variables, ==, 2);
    g_assert_cmpstr(r.variable[0], ==, "TERM=vt100");
    g_assert_cmpstr(r.variable[1], ==, "A=");
    g_assert_null(r.variable[2]);
    g_assert_cmpuint(r.words, ==, 2);
    g_assert_cmpstr(r.word[0], ==, "ls");
    g_assert_cmpstr(r.word[1], ==, "-l");
    g_assert_null(r.word[2]);
    f.kind = 'i';
    g_assert_false(request_parse(&f, &r));

    /* Empty words are words. */
    g_assert_true(PARSE("\1\0T\0\0\0\0\0\0\0\0", &r));
    g_assert_cmpuint(r.words, ==, 2);
    /* Of another version nothing but that is known. */
    g_assert_true(PARSE("\2\1", &r));
    g_assert_cmpint(r.version, ==, 0x102);

    g_assert_false(PARSE("\1", &r));
    g_assert_false(PARSE("\1\0", &r));
    g_assert_false(PARSE("\1\0X\0\0\0\0\0", &r));       /* no texts */
    g_assert_false(PARSE("\1\0X\0\0\0\0\0A=1\0", &r));  /* only variables */
    g_assert_false(PARSE("\1\0X\0\0\0\0\0\0ls", &r));   /* no end */
    g_assert_false(PARSE("\1\0X\0\0\0\0\0A\0\0", &r));  /* no variable */
    g_assert_false(PARSE("\1\0X\0\0\0\0\0=1\0\0", &r)); /* without a name */
}

static void test_many_texts(void)
{
    static Request r;
    size_t len = 8 + 1 + 2 * (REQUEST_TEXTS + 1);
    g_autofree char *bytes = g_malloc0(len);

    memcpy(bytes, "\1\0X", 3);
    for (size_t at = 9; at < len; at += 2) {
        bytes[at] = 'w';
    }
    g_assert_false(parse(bytes, len, &r));
    g_assert_true(parse(bytes, len - 2, &r));
    g_assert_cmpuint(r.words, ==, REQUEST_TEXTS);
    g_assert_null(r.word[REQUEST_TEXTS]);
}

static void test_number(void)
{
    int64_t n;

    g_assert_true(number_parse("-9223372036854775808", &n));
    g_assert_cmpint(n, ==, INT64_MIN);
    g_assert_true(number_parse("42", &n));
    g_assert_cmpint(n, ==, 42);
    for (const char *const *bad =
             (const char *const[]) { "", " 1", "+1", "1 ", "0x1",
                                     "9223372036854775808", "-", NULL };
         *bad; bad++) {
        g_assert_false(number_parse(*bad, &n));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/tools/frame", test_frame);
    g_test_add_func("/tools/request", test_request);
    g_test_add_func("/tools/many-texts", test_many_texts);
    g_test_add_func("/tools/number", test_number);
    return g_test_run();
}
