/*
 * SPDX-License-Identifier: MIT
 *
 * The tools agent's reader of frames and requests (tools-protocol.h): bytes in,
 * pieces of these bytes out, nothing is allocated.
 */

#ifndef NITRO_GUEST_TOOLS_FRAME_H
#define NITRO_GUEST_TOOLS_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "tools-protocol.h"

#define FRAME_HEAD 5 /* length and kind */
#define REQUEST_TEXTS 2048

typedef struct Frame {
    uint8_t kind;
    const uint8_t *data;
    size_t len;
} Frame;

/*
 * The frame that @len bytes begin with: how many bytes it has, 0 if some of
 * them are still missing, -1 if it is none.
 */
ssize_t frame_take(const uint8_t *bytes, size_t len, Frame *frame);

/* The head of a frame with @len bytes of payload, less than TOOLS_FRAME_MAX. */
void frame_head(uint8_t head[FRAME_HEAD], uint8_t kind, size_t len);

typedef struct Request {
    uint16_t version;
    uint8_t operation, flags;
    uint16_t rows, columns;
    size_t variables, words;
    /* NULL after the last of each; they lie in the frame. */
    const char *variable[REQUEST_TEXTS + 1], *word[REQUEST_TEXTS + 1];
} Request;

/*
 * The request in a frame.  Of another version than ours only the version is
 * read.
 */
bool request_parse(const Frame *frame, Request *request);

/* A decimal number, perhaps negative, and nothing else. */
bool number_parse(const char *text, int64_t *value);

#endif
