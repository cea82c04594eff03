/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * EIF core: the one guarded way into CBOR, for the signature section.
 *
 * The bytes are an adversary's.  They are read item by item through
 * eif_cbor_next() alone, which asks libcbor's streaming decoder for one head at
 * a time; there is no tree, no recursion, and no count of the document is
 * believed beyond the number of bytes that are left (an element takes one byte
 * at least).
 *
 * RFC 8949.
 */

#include <string.h>
#include <cbor.h>

#include "nitro/cbor-head.h"
#include "eif-cbor.h"
#include "eif-internal.h"

static const char *const kind_names[] = {
    [EIF_CBOR_UINT] = "an integer",
    [EIF_CBOR_NEGINT] = "a negative integer",
    [EIF_CBOR_BYTES] = "a byte string",
    [EIF_CBOR_TEXT] = "a text string",
    [EIF_CBOR_ARRAY] = "an array",
    [EIF_CBOR_MAP] = "a map",
    [EIF_CBOR_TAG] = "a tag",
    [EIF_CBOR_SIMPLE] = "a simple value or float",
    [EIF_CBOR_INDEFINITE] = "an indefinite length",
};

static void on_uint8(void *ctx, uint8_t v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_UINT, v, NULL };
}

static void on_uint16(void *ctx, uint16_t v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_UINT, v, NULL };
}

static void on_uint32(void *ctx, uint32_t v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_UINT, v, NULL };
}

static void on_uint64(void *ctx, uint64_t v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_UINT, v, NULL };
}

static void on_negint8(void *ctx, uint8_t v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_NEGINT, v, NULL };
}

static void on_negint16(void *ctx, uint16_t v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_NEGINT, v, NULL };
}

static void on_negint32(void *ctx, uint32_t v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_NEGINT, v, NULL };
}

static void on_negint64(void *ctx, uint64_t v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_NEGINT, v, NULL };
}

/* size_t up to libcbor 0.8, uint64_t later: one type where we run. */
static void on_bytes(void *ctx, cbor_data data, size_t len)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_BYTES, len, data };
}

static void on_text(void *ctx, cbor_data data, size_t len)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_TEXT, len, data };
}

static void on_array(void *ctx, size_t n)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_ARRAY, n, NULL };
}

static void on_map(void *ctx, size_t n)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_MAP, n, NULL };
}

static void on_tag(void *ctx, uint64_t v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_TAG, v, NULL };
}

static void on_float(void *ctx, float v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_SIMPLE, 0, NULL };
}

static void on_double(void *ctx, double v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_SIMPLE, 0, NULL };
}

static void on_bool(void *ctx, bool v)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_SIMPLE, 0, NULL };
}

static void on_simple(void *ctx)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_SIMPLE, 0, NULL };
}

static void on_indefinite(void *ctx)
{
    *(EifCborItem *)ctx = (EifCborItem) { EIF_CBOR_INDEFINITE, 0, NULL };
}

static const struct cbor_callbacks item_callbacks = {
    .uint8 = on_uint8,
    .uint16 = on_uint16,
    .uint32 = on_uint32,
    .uint64 = on_uint64,
    .negint8 = on_negint8,
    .negint16 = on_negint16,
    .negint32 = on_negint32,
    .negint64 = on_negint64,
    .byte_string_start = on_indefinite,
    .byte_string = on_bytes,
    .string = on_text,
    .string_start = on_indefinite,
    .indef_array_start = on_indefinite,
    .array_start = on_array,
    .indef_map_start = on_indefinite,
    .map_start = on_map,
    .tag = on_tag,
    .float2 = on_float,
    .float4 = on_float,
    .float8 = on_double,
    .undefined = on_simple,
    .null = on_simple,
    .boolean = on_bool,
    .indef_break = on_indefinite,
};

bool eif_cbor_malformed(EifCbor *r, const char *what)
{
    return eif_fail(r->err, EIF_ERR_SIGNATURE_MALFORMED,
                    "the %s, at byte %zu of %zu: %s", r->name, r->item_pos,
                    r->len, what);
}

bool eif_cbor_next(EifCbor *r, EifCborItem *item)
{
    struct cbor_decoder_result res;
    size_t head;
    int tag;

    r->item_pos = r->pos;
    if (r->pos == r->len) {
        return eif_cbor_malformed(r, "ends too early");
    }
    head = cbor_head_small(r->buf + r->pos, r->len - r->pos, &tag);
    if (head) {
        *item = tag == CBOR_HEAD_SIMPLE
                ? (EifCborItem) { EIF_CBOR_SIMPLE, 0, NULL }
                : (EifCborItem) { EIF_CBOR_TAG, tag, NULL };
        r->pos += head;
        return true;
    }
    res = cbor_stream_decode(r->buf + r->pos, r->len - r->pos, &item_callbacks,
                             item);
    if (res.status != CBOR_DECODER_FINISHED) {
        return eif_cbor_malformed(r, res.status == CBOR_DECODER_NEDATA
                                  ? "ends within an item"
                                  : "this is not CBOR");
    }
    r->pos += res.read;
    if (item->kind == EIF_CBOR_INDEFINITE) {
        return eif_cbor_malformed(r, "indefinite lengths are not allowed");
    }
    if ((item->kind == EIF_CBOR_ARRAY || item->kind == EIF_CBOR_MAP) &&
        item->value > r->len - r->pos) {
        return eif_cbor_malformed(r, "has more elements than there are bytes");
    }
    return true;
}

bool eif_cbor_expect(EifCbor *r, EifCborKind kind, EifCborItem *item)
{
    if (!eif_cbor_next(r, item)) {
        return false;
    }
    if (item->kind != kind) {
        g_autofree char *what = g_strdup_printf(
            "%s instead of %s", kind_names[item->kind], kind_names[kind]);

        return eif_cbor_malformed(r, what);
    }
    return true;
}

/* Counts what is still to come, so needs no stack. */
bool eif_cbor_skip(EifCbor *r)
{
    uint64_t todo = 1;
    EifCborItem item;

    while (todo) {
        if (!eif_cbor_next(r, &item)) {
            return false;
        }
        todo--;
        switch (item.kind) {
        case EIF_CBOR_ARRAY:
            todo += item.value;
            break;
        case EIF_CBOR_MAP:
            todo += 2 * item.value;
            break;
        case EIF_CBOR_TAG:
            todo++;
            break;
        default:
            break;
        }
    }
    return true;
}

bool eif_cbor_at_end(EifCbor *r)
{
    if (r->pos != r->len) {
        r->item_pos = r->pos;
        return eif_cbor_malformed(r, "goes on behind its end");
    }
    return true;
}

bool eif_cbor_byte_array(EifCbor *r, uint8_t *dest, size_t cap, size_t *len)
{
    EifCborItem array, item;

    if (!eif_cbor_expect(r, EIF_CBOR_ARRAY, &array)) {
        return false;
    }
    if (array.value > cap) {
        return eif_cbor_malformed(r, "the array is too long");
    }
    for (uint64_t i = 0; i < array.value; i++) {
        if (!eif_cbor_expect(r, EIF_CBOR_UINT, &item)) {
            return false;
        }
        if (item.value > UINT8_MAX) {
            return eif_cbor_malformed(
                r, "an integer above 255 in an array of bytes");
        }
        dest[i] = (uint8_t)item.value;
    }
    *len = array.value;
    return true;
}

bool eif_cbor_next_key(EifCbor *r, const char *const *keys, unsigned n_keys,
                       unsigned *seen, int *key)
{
    size_t start = r->pos;
    EifCborItem item;

    if (!eif_cbor_next(r, &item)) {
        return false;
    }
    for (unsigned i = 0; item.kind == EIF_CBOR_TEXT && i < n_keys; i++) {
        if (item.value != strlen(keys[i]) ||
            memcmp(item.data, keys[i], item.value) != 0) {
            continue;
        }
        if (*seen & 1u << i) {
            return eif_cbor_malformed(r, "a key comes twice");
        }
        *seen |= 1u << i;
        *key = (int)i;
        return true;
    }
    *key = -1;
    r->pos = start;
    return eif_cbor_skip(r) && eif_cbor_skip(r);
}

bool eif_cbor_all_keys(EifCbor *r, const char *const *keys, unsigned n_keys,
                       unsigned seen)
{
    for (unsigned i = 0; i < n_keys; i++) {
        if (!(seen & 1u << i)) {
            g_autofree char *what = g_strdup_printf("no \"%s\"", keys[i]);

            return eif_cbor_malformed(r, what);
        }
    }
    return true;
}
