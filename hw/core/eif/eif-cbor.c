/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: CBOR for the signature section.
 *
 * The bytes are an adversary's.  They are read item by item through
 * eif_cbor_next() alone, one token at a time; there is no tree, no recursion,
 * and no count of the document is believed beyond the number of bytes that are
 * left (an element takes one byte at least).
 *
 * RFC 8949.
 */

#include <string.h>

#include "eif-cbor.h"
#include "eif-internal.h"

static const char *const kind_names[TOKEN_KINDS] = {
    [TOKEN_UINT] = "an integer",
    [TOKEN_NEGINT] = "a negative integer",
    [TOKEN_BYTES] = "a byte string",
    [TOKEN_TEXT] = "a text string",
    [TOKEN_ARRAY] = "an array",
    [TOKEN_MAP] = "a map",
    [TOKEN_TAG] = "a tag",
    [TOKEN_NULL] = "a simple value or float",
    [TOKEN_SIMPLE] = "a simple value or float",
    /* What has no name here, eif_cbor_next() refuses. */
};

bool eif_cbor_malformed(EifCbor *r, const char *what)
{
    return eif_fail(r->err, EIF_ERR_SIGNATURE_MALFORMED,
                    "the %s, at byte %zu of %zu: %s", r->name, r->item_pos,
                    r->in.len, what);
}

bool eif_cbor_next(EifCbor *r, CborToken *item)
{
    r->item_pos = r->in.pos;
    if (r->in.pos == r->in.len) {
        return eif_cbor_malformed(r, "ends too early");
    }
    switch (cbor_token_next(&r->in, item)) {
    case TOKEN_READ:
        break;
    case TOKEN_CUT:
        return eif_cbor_malformed(r, "ends within an item");
    default:
        return eif_cbor_malformed(r, "this is not CBOR");
    }
    if (!kind_names[item->kind]) {
        return eif_cbor_malformed(r, "indefinite lengths are not allowed");
    }
    if ((item->kind == TOKEN_ARRAY || item->kind == TOKEN_MAP) &&
        item->value > r->in.len - r->in.pos) {
        return eif_cbor_malformed(r, "has more elements than there are bytes");
    }
    return true;
}

bool eif_cbor_expect(EifCbor *r, CborTokenKind kind, CborToken *item)
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
    CborToken item;

    while (todo) {
        if (!eif_cbor_next(r, &item)) {
            return false;
        }
        todo--;
        switch (item.kind) {
        case TOKEN_ARRAY:
            todo += item.value;
            break;
        case TOKEN_MAP:
            todo += 2 * item.value;
            break;
        case TOKEN_TAG:
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
    if (r->in.pos != r->in.len) {
        r->item_pos = r->in.pos;
        return eif_cbor_malformed(r, "goes on behind its end");
    }
    return true;
}

bool eif_cbor_byte_array(EifCbor *r, uint8_t *dest, size_t cap, size_t *len)
{
    CborToken array, item;

    if (!eif_cbor_expect(r, TOKEN_ARRAY, &array)) {
        return false;
    }
    if (array.value > cap) {
        return eif_cbor_malformed(r, "the array is too long");
    }
    for (uint64_t i = 0; i < array.value; i++) {
        if (!eif_cbor_expect(r, TOKEN_UINT, &item)) {
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
    size_t start = r->in.pos;
    CborToken item;

    if (!eif_cbor_next(r, &item)) {
        return false;
    }
    for (unsigned i = 0; item.kind == TOKEN_TEXT && i < n_keys; i++) {
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
    r->in.pos = start;
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
