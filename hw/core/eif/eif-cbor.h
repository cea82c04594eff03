/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The EIF core's reader of CBOR: item by item, without indefinite lengths.
 * Each function is false after an error, which is then in the reader's @err.
 */

#ifndef EIF_CBOR_H
#define EIF_CBOR_H

#include "nitro/cbor-token.h"
#include "nitro/eif.h"

typedef struct EifCbor {
    const char *name;           /* of the document, for errors */
    CborTokens in;
    size_t item_pos;            /* where the last item began */
    EifError *err;
} EifCbor;

/* Fill in @err with what is wrong with the last item; always false. */
bool eif_cbor_malformed(EifCbor *r, const char *what);

bool eif_cbor_next(EifCbor *r, CborToken *item);
/* The same, and the item is of that kind. */
bool eif_cbor_expect(EifCbor *r, CborTokenKind kind, CborToken *item);
/* Over one whole item, with all that is in it. */
bool eif_cbor_skip(EifCbor *r);
bool eif_cbor_at_end(EifCbor *r);

/* An array of integers below 256 as bytes; @cap: room at @dest. */
bool eif_cbor_byte_array(EifCbor *r, uint8_t *dest, size_t cap, size_t *len);

/*
 * The next key of a map: its place in @keys, or -1 after skipping the pair
 * because the key is none of them.  @seen: a bit per key, for the one that
 * comes twice.
 */
bool eif_cbor_next_key(EifCbor *r, const char *const *keys, unsigned n_keys,
                       unsigned *seen, int *key);
/* Each of them has come. */
bool eif_cbor_all_keys(EifCbor *r, const char *const *keys, unsigned n_keys,
                       unsigned seen);

#endif /* EIF_CBOR_H */
