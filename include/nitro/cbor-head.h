/*
 * CBOR heads that libcbor's stream decoder takes for an error
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Up to libcbor 0.10 these are the ones that IANA has, or had, no meaning for:
 * tags 6 to 20 (18 is COSE_Sign1's) and simple values. They are well-formed
 * (RFC 8949, section 3), so whoever reads tokens asks here first.
 */
#ifndef NITRO_CBOR_HEAD_H
#define NITRO_CBOR_HEAD_H

#include <stddef.h>
#include <stdint.h>

#define CBOR_HEAD_SIMPLE (-1)

/*
 * Looks at the head at @p, of @len bytes at least one. Returns its length and
 * in @tag a tag's number or CBOR_HEAD_SIMPLE; 0: it is libcbor's to read.
 */
static inline size_t cbor_head_small(const uint8_t *p, size_t len, int *tag)
{
    if (*p >= 0xc0 && *p <= 0xd7) {
        *tag = *p & 0x1f;
        return 1;
    }
    *tag = CBOR_HEAD_SIMPLE;
    if (*p >= 0xe0 && *p <= 0xf3) {
        return 1;
    }
    /* Below 32 a simple value has no second byte. */
    return *p == 0xf8 && len > 1 && p[1] >= 32 ? 2 : 0;
}

#endif /* NITRO_CBOR_HEAD_H */
