/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: what a client of the host says first, CONNECT and OPEN
 *
 * The line comes in pieces, so it is parsed again with each byte more: once
 * there is a verdict it must stay, and a line must end with its newline. Its
 * caller (client.c) looks at VSOCK_MAX_LINE bytes and no more.
 */
#include <stdlib.h>
#include <string.h>

#include "agreed.h"
#include "connect-line.h"
#include "target.h"

#define CHECK(claim)                                                    \
    do {                                                                \
        if (!(claim)) {                                                 \
            abort();                                                    \
        }                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int verdict = 0;
    uint32_t port = 0, ms = 0;
    int64_t from = -2;
    static char *memory;

    memory = memory ? memory : malloc(VSOCK_MAX_LINE);
    CHECK(memory);
    for (size_t len = 0; len <= size && len <= VSOCK_MAX_LINE; len++) {
        /* Its end is that of the memory, so that a read behind it is seen. */
        char *buf = memory + VSOCK_MAX_LINE - len;
        uint32_t p = 0, m = 0;
        int64_t f = -2;
        int r;

        memcpy(buf, data, len);
        r = vsock_parse_line(buf, len, &p, &f, &m);
        CHECK(r >= -1 && r <= (int)len);
        if (verdict > 0) {
            CHECK(r == verdict && p == port && f == from && m == ms);
        } else if (verdict < 0) {
            CHECK(r < 0);
        } else if (r) {
            verdict = r;
            port = p;
            from = f;
            ms = m;
            CHECK(r < 0 || (data[r - 1] == '\n' && f >= -1 &&
                            f <= UINT32_MAX));
        }
    }
    return 0;
}
