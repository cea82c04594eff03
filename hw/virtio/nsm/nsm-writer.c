/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM core: CBOR writer
 *
 * Shortest encodings (RFC 8949, section 4.2.1), definite but for one kind of
 * map, into a buffer of fixed size. A writer that ran out of room remembers
 * it, so that callers write all they have and ask once at the end. It checks
 * no structure: that a map gets as many entries as it announced is its
 * caller's affair.
 */
#include <string.h>
#include <cbor.h>

#include "nsm-internal.h"

static uint8_t *tail(NsmWriter *w)
{
    return w->buf + w->len;
}

static size_t room(const NsmWriter *w)
{
    return w->overflow ? 0 : w->cap - w->len;
}

/* All of libcbor's encoders return 0 when the item does not fit. */
static void advance(NsmWriter *w, size_t written)
{
    if (written == 0) {
        w->overflow = true;
    }
    w->len += written;
}

void nsm_put_map(NsmWriter *w, size_t entries)
{
    advance(w, cbor_encode_map_start(entries, tail(w), room(w)));
}

void nsm_put_map_begin(NsmWriter *w)
{
    advance(w, cbor_encode_indef_map_start(tail(w), room(w)));
}

void nsm_put_map_end(NsmWriter *w)
{
    advance(w, cbor_encode_break(tail(w), room(w)));
}

void nsm_put_array(NsmWriter *w, size_t entries)
{
    advance(w, cbor_encode_array_start(entries, tail(w), room(w)));
}

void nsm_put_uint(NsmWriter *w, uint64_t value)
{
    advance(w, cbor_encode_uint(value, tail(w), room(w)));
}

void nsm_put_bool(NsmWriter *w, bool value)
{
    advance(w, cbor_encode_bool(value, tail(w), room(w)));
}

void nsm_put_null(NsmWriter *w)
{
    advance(w, cbor_encode_null(tail(w), room(w)));
}

uint8_t *nsm_put_space(NsmWriter *w, size_t len)
{
    uint8_t *space;

    if (w->overflow || len > room(w)) {
        w->overflow = true;
        return NULL;
    }
    space = tail(w);
    w->len += len;
    return space;
}

static void put_raw(NsmWriter *w, const void *data, size_t len)
{
    uint8_t *space = nsm_put_space(w, len);

    if (space && len) {
        memcpy(space, data, len);
    }
}

void nsm_put_text(NsmWriter *w, const char *text)
{
    size_t len = strlen(text);

    advance(w, cbor_encode_string_start(len, tail(w), room(w)));
    put_raw(w, text, len);
}

void nsm_put_bytes_head(NsmWriter *w, size_t len)
{
    advance(w, cbor_encode_bytestring_start(len, tail(w), room(w)));
}

void nsm_put_bytes(NsmWriter *w, const uint8_t *data, size_t len)
{
    nsm_put_bytes_head(w, len);
    put_raw(w, data, len);
}
