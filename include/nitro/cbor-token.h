/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * CBOR from strangers, token by token
 *
 * The one way into CBOR for both cores, EIF and NSM. A token is a head with,
 * for a string, its bytes. Nothing is allocated, nothing recurses, no count is
 * acted upon, and every token takes at least a byte; whether tokens make an
 * item, and one that is wanted, is for the caller to say. RFC 8949, section 3.
 */
#ifndef NITRO_CBOR_TOKEN_H
#define NITRO_CBOR_TOKEN_H

#include <stddef.h>
#include <stdint.h>

typedef enum CborTokenKind {
    TOKEN_UINT,                 /* value */
    TOKEN_NEGINT,               /* -1 - value */
    TOKEN_BYTES,                /* value bytes at data; whole */
    TOKEN_TEXT,                 /* as above; whether it is UTF-8 is not asked */
    TOKEN_BYTES_CHUNKED,        /* chunks follow, then a break */
    TOKEN_TEXT_CHUNKED,
    TOKEN_ARRAY,                /* value items follow */
    TOKEN_MAP,                  /* value pairs follow */
    TOKEN_ARRAY_OPEN,           /* items follow, then a break */
    TOKEN_MAP_OPEN,
    TOKEN_TAG,                  /* number value; one item follows */
    TOKEN_BREAK,
    TOKEN_NULL,
    TOKEN_SIMPLE,               /* any other simple value, or a float */
    TOKEN_KINDS
} CborTokenKind;

typedef struct CborToken {
    CborTokenKind kind;
    uint64_t value;
    const uint8_t *data;        /* in the reader's buffer */
} CborToken;

typedef struct CborTokens {
    const uint8_t *buf;
    size_t len;
    size_t pos;
} CborTokens;

typedef enum CborTokenResult {
    TOKEN_READ,
    TOKEN_CUT,                  /* the input ends before it or within it */
    TOKEN_WRONG,                /* no CBOR at all */
} CborTokenResult;

/* Unless it has read a token, it leaves the position as it is. */
CborTokenResult cbor_token_next(CborTokens *in, CborToken *t);

#endif /* NITRO_CBOR_TOKEN_H */
