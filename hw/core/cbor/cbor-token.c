/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * CBOR from strangers, token by token
 *
 * The tokens come from libcbor's stream decoder, which neither allocates nor
 * recurses: cbor_load() would allocate what a length claims.
 */
#include <stdbool.h>
#include <cbor.h>

#include "nitro/cbor-token.h"

static void on_uint8(void *token, uint8_t value)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_UINT, .value = value };
}

static void on_uint16(void *token, uint16_t value)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_UINT, .value = value };
}

static void on_uint32(void *token, uint32_t value)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_UINT, .value = value };
}

static void on_uint64(void *token, uint64_t value)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_UINT, .value = value };
}

static void on_negint8(void *token, uint8_t value)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_NEGINT, .value = value };
}

static void on_negint16(void *token, uint16_t value)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_NEGINT, .value = value };
}

static void on_negint32(void *token, uint32_t value)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_NEGINT, .value = value };
}

static void on_negint64(void *token, uint64_t value)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_NEGINT, .value = value };
}

/* size_t up to libcbor 0.8, uint64_t later: one type where we run. */
static void on_bytes(void *token, cbor_data data, size_t len)
{
    *(CborToken *)token = (CborToken) {
        .kind = TOKEN_BYTES, .value = len, .data = data
    };
}

static void on_text(void *token, cbor_data data, size_t len)
{
    *(CborToken *)token = (CborToken) {
        .kind = TOKEN_TEXT, .value = len, .data = data
    };
}

static void on_bytes_start(void *token)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_BYTES_CHUNKED };
}

static void on_text_start(void *token)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_TEXT_CHUNKED };
}

static void on_array(void *token, size_t items)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_ARRAY, .value = items };
}

static void on_map(void *token, size_t pairs)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_MAP, .value = pairs };
}

static void on_array_open(void *token)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_ARRAY_OPEN };
}

static void on_map_open(void *token)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_MAP_OPEN };
}

static void on_tag(void *token, uint64_t number)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_TAG, .value = number };
}

static void on_break(void *token)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_BREAK };
}

static void on_null(void *token)
{
    *(CborToken *)token = (CborToken) { .kind = TOKEN_NULL };
}

static const struct cbor_callbacks callbacks = {
    .uint8 = on_uint8,
    .uint16 = on_uint16,
    .uint32 = on_uint32,
    .uint64 = on_uint64,
    .negint8 = on_negint8,
    .negint16 = on_negint16,
    .negint32 = on_negint32,
    .negint64 = on_negint64,
    .byte_string = on_bytes,
    .byte_string_start = on_bytes_start,
    .string = on_text,
    .string_start = on_text_start,
    .array_start = on_array,
    .indef_array_start = on_array_open,
    .map_start = on_map,
    .indef_map_start = on_map_open,
    .tag = on_tag,
    .null = on_null,
    .indef_break = on_break,
    /* All of these leave the token what it begins as: TOKEN_SIMPLE. */
    .float2 = cbor_null_float2_callback,
    .float4 = cbor_null_float4_callback,
    .float8 = cbor_null_float8_callback,
    .undefined = cbor_null_undefined_callback,
    .boolean = cbor_null_boolean_callback,
};

CborTokenResult cbor_token_next(CborTokens *in, CborToken *t)
{
    size_t len = in->len - in->pos;
    struct cbor_decoder_result r;
    const uint8_t *p;
    size_t used = 1;

    *t = (CborToken) { .kind = TOKEN_SIMPLE };
    if (!len) {
        return TOKEN_CUT;
    }
    p = in->buf + in->pos;
    /*
     * libcbor's decoder, up to 0.10, takes for an error what IANA has, or had,
     * no meaning for: tags 6 to 20 (18 is COSE_Sign1's) and simple values.
     * They are well-formed, and read here.
     */
    if (*p >= 0xc0 && *p <= 0xd7) {
        *t = (CborToken) { .kind = TOKEN_TAG, .value = *p & 0x1f };
    } else if (*p >= 0xe0 && *p <= 0xf3) {
        /* a simple value */
    } else if (*p == 0xf8) {
        if (len < 2) {
            return TOKEN_CUT;
        }
        if (p[1] < 32) {
            return TOKEN_WRONG; /* below 32 it has no second byte */
        }
        used = 2;
    } else {
        r = cbor_stream_decode(p, len, &callbacks, t);
        if (r.status != CBOR_DECODER_FINISHED) {
            return r.status == CBOR_DECODER_NEDATA ? TOKEN_CUT : TOKEN_WRONG;
        }
        used = r.read;
    }
    in->pos += used;
    return TOKEN_READ;
}
