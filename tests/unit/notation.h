/*
 * SPDX-License-Identifier: MIT
 *
 * Bytes as a reader of a specification writes them down
 *
 * For tests of binary formats: hex digits in pairs, 'text' as it is, blanks to
 * taste. "a1 65 'index' 10" is eight bytes long. Not a parser of anything
 * that could be wrong: a bad notation is a bug in the test and aborts it.
 */
#ifndef TESTS_NOTATION_H
#define TESTS_NOTATION_H

#include <string.h>
#include <glib.h>

static inline GByteArray *notation(const char *text)
{
    GByteArray *out = g_byte_array_new();

    while (*text) {
        if (*text == ' ') {
            text++;
        } else if (*text == '\'') {
            const char *end = strchr(text + 1, '\'');

            g_assert_nonnull(end);
            g_byte_array_append(out, (const guint8 *)text + 1, end - text - 1);
            text = end + 1;
        } else {
            int high = g_ascii_xdigit_value(text[0]);
            int low = g_ascii_xdigit_value(text[1]);
            guint8 byte;

            g_assert_cmpint(high, >=, 0);
            g_assert_cmpint(low, >=, 0);
            byte = high << 4 | low;
            g_byte_array_append(out, &byte, 1);
            text += 2;
        }
    }
    return out;
}

/* @count times @byte at the end, for long fields. */
static inline void notation_fill(GByteArray *bytes, guint8 byte, size_t count)
{
    while (count--) {
        g_byte_array_append(bytes, &byte, 1);
    }
}

#endif /* TESTS_NOTATION_H */
