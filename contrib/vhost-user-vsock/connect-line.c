/*
 * SPDX-License-Identifier: MIT
 *
 * connect-line.c: understands what a client of the host says first.
 */

#include "connect-line.h"
#include "agreed.h"
#include "packet.h"

#include <stdbool.h>
#include <sys/types.h>

/* As far as buf agrees with the word, any case; -1: it does not. */
static ssize_t parse_word(const char *buf, size_t len, const char *word)
{
    size_t i;

    for (i = 0; i < len && word[i]; i++) {
        if ((buf[i] & ~0x20) != word[i]) {
            return -1;
        }
    }
    return i;
}

/* Spaces and a number below PORT_ANY; the index behind it, or -1. */
static ssize_t parse_number(const char *buf, size_t len, size_t i,
                            uint32_t *number)
{
    uint64_t value = 0;
    size_t start = i, digits;

    while (i < len && buf[i] == ' ') {
        i++;
    }
    if (i < len && i == start) {
        return -1;
    }
    for (digits = i; i < len && buf[i] >= '0' && buf[i] <= '9'; i++) {
        value = value * 10 + (buf[i] - '0');
        if (value >= VSOCK_PORT_ANY) {
            return -1;
        }
    }
    if (i < len && i == digits) {
        return -1;
    }
    *number = value;
    return i;
}

int vsock_parse_line(const char *buf, size_t len, uint32_t *port, int64_t *from,
                     uint32_t *ms)
{
    ssize_t i = parse_word(buf, len, VSOCK_WORD_CONNECT);
    bool open = i < 0;
    uint32_t second;

    *from = -1;
    if (open) {
        i = parse_word(buf, len, VSOCK_WORD_OPEN);
    }
    if (i >= 0) {
        i = parse_number(buf, len, i, port);
    }
    if (i >= 0 && open) {
        i = parse_number(buf, len, i, &second);
        *from = second;
    }
    if (i >= 0 && open) {
        i = parse_number(buf, len, i, ms);
    }
    if (i < 0) {
        return -1;
    }
    if ((size_t)i < len && buf[i] == '\r') {
        i++;
    }
    if ((size_t)i == len) {
        return 0;
    }
    return buf[i] == '\n' ? i + 1 : -1;
}
