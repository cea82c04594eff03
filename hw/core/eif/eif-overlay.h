/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An overlay's check, byte by byte.  For the EIF loader and the unit tests.
 */

#ifndef EIF_OVERLAY_H
#define EIF_OVERLAY_H

#include "eif-internal.h"

#define EIF_OVERLAY_HEADER 110

typedef enum EifOverlayState {
    EIF_OVERLAY_BETWEEN,        /* archives, and at both ends */
    EIF_OVERLAY_HEAD,
    EIF_OVERLAY_NAME,
    EIF_OVERLAY_CONTENT,        /* and padding, before it and after it */
} EifOverlayState;

/* Begins zeroed; holds nothing to be freed. */
typedef struct EifOverlay {
    EifOverlayState state;
    uint64_t pos;               /* bytes that were seen */
    uint64_t entry;             /* where the current entry begins, */
    uint64_t name_end;          /* its name ends, */
    uint64_t next;              /* and the next one begins */
    uint64_t name_size;
    uint8_t head[EIF_OVERLAY_HEADER];
    size_t have;                /* of the header */
    uint8_t name[11];           /* as much as tells a trailer */
    uint8_t last;               /* byte of the name */
    bool trailer;
    uint64_t archives;
} EifOverlay;

/* The next @len bytes of an overlay, of any number. */
bool eif_overlay_feed(EifOverlay *o, const uint8_t *data, size_t len,
                      EifError *err);
/* There are no more. */
bool eif_overlay_end(const EifOverlay *o, EifError *err);

#endif /* EIF_OVERLAY_H */
