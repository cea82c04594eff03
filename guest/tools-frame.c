/*
 * SPDX-License-Identifier: MIT
 *
 * The tools agent's reader of frames and requests.  No I/O: what is done with
 * them is tools-agent.c's business.
 */

#include "tools-frame.h"

#include <string.h>

#define REQUEST_HEAD 8

static uint16_t u16(const uint8_t *p)
{
    return p[0] | p[1] << 8;
}

ssize_t frame_take(const uint8_t *bytes, size_t len, Frame *frame)
{
    uint32_t size;

    if (len < 4) {
        return 0;
    }
    size = u16(bytes) | (uint32_t)u16(bytes + 2) << 16;
    if (size < 1 || size > TOOLS_FRAME_MAX) {
        return -1;
    }
    if (len - 4 < size) {
        return 0;
    }
    *frame = (Frame) { bytes[4], bytes + FRAME_HEAD, size - 1 };
    return 4 + size;
}

void frame_head(uint8_t head[FRAME_HEAD], uint8_t kind, size_t len)
{
    for (int i = 0; i < 4; i++) {
        head[i] = (len + 1) >> 8 * i;
    }
    head[4] = kind;
}

bool request_parse(const Frame *frame, Request *request)
{
    const uint8_t *p = frame->data;
    const char *at = (const char *)p + REQUEST_HEAD;
    const char *end = (const char *)p + frame->len;
    bool variables = true;

    memset(request, 0, sizeof(*request));
    if (frame->kind != 'R' || frame->len < 2) {
        return false;
    }
    request->version = u16(p);
    if (request->version != TOOLS_VERSION) {
        return true;
    }
    /* With a last byte of NUL every text below has its end. */
    if (frame->len <= REQUEST_HEAD || end[-1]) {
        return false;
    }
    request->operation = p[2];
    request->flags = p[3];
    request->rows = u16(p + 4);
    request->columns = u16(p + 6);
    for (; at < end; at += strlen(at) + 1) {
        if (variables && !*at) {
            variables = false;
        } else if (variables) {
            if (request->variables == REQUEST_TEXTS || !strchr(at, '=') ||
                *at == '=') {
                return false;
            }
            request->variable[request->variables++] = at;
        } else {
            if (request->words == REQUEST_TEXTS) {
                return false;
            }
            request->word[request->words++] = at;
        }
    }
    return !variables;
}

bool number_parse(const char *text, int64_t *value)
{
    bool minus = *text == '-';

    text += minus;
    *value = 0;
    if (!*text) {
        return false;
    }
    for (; *text; text++) {
        int digit = *text - '0';

        if (digit < 0 || digit > 9 ||
            __builtin_mul_overflow(*value, 10, value) ||
            __builtin_sub_overflow(*value, digit, value)) {
            return false;
        }
    }
    /* It was counted below zero, where there is one number more. */
    return minus || !__builtin_sub_overflow(0, *value, value);
}
