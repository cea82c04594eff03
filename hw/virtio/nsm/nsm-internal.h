/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM core: what its files share
 *
 * Prototypes are grouped under the file that implements them. Nothing here is
 * for the device; that is include/nitro/nsm.h.
 */
#ifndef NSM_INTERNAL_H
#define NSM_INTERNAL_H

#include "nitro/nsm.h"

/* nsm-request.c: bytes from the guest -> a request */

/* The most fields that any operation has. */
#define NSM_FIELDS_MAX 3

/*
 * Containers inside one another, counted from the outermost: more than a
 * serde_cbor peer follows is an undecodable request.
 */
#define NSM_DEPTH_MAX 128

typedef struct NsmRequest {
    NsmOp op;
    uint16_t number;                    /* the index or range field */
    NsmSpan span[NSM_FIELDS_MAX];       /* byte fields, in field order */
    uint8_t scratch[NSM_REQUEST_MAX];   /* byte fields sent in pieces */
} NsmRequest;

/*
 * Decodes @len <= NSM_REQUEST_MAX bytes. Spans point into @buf or into
 * @req->scratch. Returns NSM_SUCCESS, NSM_INVALID_OPERATION (not one CBOR item
 * in the shape of a request, or unknown operation) or NSM_INVALID_ARGUMENT
 * (@req->op is known, its arguments are wrong).
 */
NsmCode nsm_request_decode(NsmRequest *req, const uint8_t *buf, size_t len);

/* nsm-writer.c: CBOR into a bounded buffer; the first overflow sticks */

typedef struct NsmWriter {
    uint8_t *buf;
    size_t cap;
    size_t len;
    bool overflow;
} NsmWriter;

void nsm_put_map(NsmWriter *w, size_t entries);
/* A map of indefinite length, and its end. */
void nsm_put_map_begin(NsmWriter *w);
void nsm_put_map_end(NsmWriter *w);
void nsm_put_array(NsmWriter *w, size_t entries);
void nsm_put_uint(NsmWriter *w, uint64_t value);
void nsm_put_bool(NsmWriter *w, bool value);
void nsm_put_null(NsmWriter *w);
void nsm_put_text(NsmWriter *w, const char *text);
void nsm_put_bytes(NsmWriter *w, const uint8_t *data, size_t len);
/* The head of a byte string whose @len bytes the caller writes next. */
void nsm_put_bytes_head(NsmWriter *w, size_t len);
/* Room for @len bytes that the caller fills in, or NULL (overflow). */
uint8_t *nsm_put_space(NsmWriter *w, size_t len);

/* nsm-pcr.c: the registers */

/* SHA384(PCR @index || data) into @out; the bank stays as it is. */
bool nsm_pcr_digest(const NsmState *s, unsigned index,
                    const uint8_t *data, size_t len,
                    uint8_t out[NSM_PCR_SIZE]);
void nsm_pcr_lock_below(NsmState *s, unsigned range);

#endif /* NSM_INTERNAL_H */
