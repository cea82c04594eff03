/*
 * SPDX-License-Identifier: MIT
 *
 * fuzz-vsock: running numbers, which show that every byte arrives in its order,
 * made once so that no input waits for them
 */
#ifndef FUZZ_RUNNING_H
#define FUZZ_RUNNING_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "vsock.h"

/* From any of the first 256 on: a whole payload and some more. */
static uint8_t running[256 + VSOCK_MAX_PAYLOAD + 64];

static void running_fill(void)
{
    if (!running[1]) {
        for (size_t i = 0; i < sizeof(running); i++) {
            running[i] = i;
        }
    }
}

/* Whether p has the n running numbers that begin with first. */
static bool runs(const uint8_t *p, uint8_t first, size_t n)
{
    for (size_t part; n; p += part, n -= part) {
        part = n < VSOCK_MAX_PAYLOAD ? n : VSOCK_MAX_PAYLOAD;
        if (memcmp(p, running + first, part)) {
            return false;
        }
        first += part;
    }
    return true;
}

#endif
