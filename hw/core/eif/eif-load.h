/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What reader and lanes of the EIF loader share.  Not for the core's other
 * files.
 */

#ifndef EIF_LOAD_H
#define EIF_LOAD_H

#include "eif-internal.h"
#include "eif-overlay.h"

#define EIF_LOAD_CHUNK  (256 * 1024)    /* at once, by each thread */
/* The kernel may be two; an initrd, an overlay. */
#define EIF_MAX_PIECES  (EIF_MAX_SECTIONS + 3)

/* A section's data, or what is added: from where, to where, for what. */
typedef struct EifPiece {
    unsigned section;
    int src_fd;
    uint64_t src_offset;
    uint64_t size;
    const uint8_t *head;        /* so much of it has been read already */
    size_t head_len;
    uint8_t *data;              /* where it goes; NULL: nowhere */
    bool measured;
    EifPart part;               /* if measured */
    bool extra;                 /* from another file */
    bool overlay;               /* of these, the one that is checked */
    uint64_t ready;             /* bytes there; under EifLoader.lock */
} EifPiece;

typedef struct EifLoader {
    int fd;
    int initrd_fd;
    int overlay_fd;
    uint64_t initrd_size;       /* 0: there is none */
    uint64_t overlay_size;
    const EifOptions *opt;
    EifImage *image;
    EifLayout *layout;          /* image->layout */

    uint8_t header[EIF_HEADER_SIZE];
    uint8_t section_header[EIF_MAX_SECTIONS][EIF_SECTION_HEADER_SIZE];
    uint8_t kernel_head[EIF_KERNEL_HEADER_SIZE];
    size_t kernel_head_len;
    EifPlaces places;
    uint8_t *chunk;             /* for what goes nowhere */
    uint8_t *signature;
    uint32_t crc;
    EifOverlay overlay;

    EifPiece pieces[EIF_MAX_PIECES];
    unsigned n_pieces;
    GMutex lock;
    GCond grown;
    bool stop;                  /* under lock: the verdict is out already */
} EifLoader;

typedef struct EifLane {
    EifLoader *loader;
    GThread *thread;
    bool app_only;              /* PCR2's */
    bool ok;
    EifError err;
    uint64_t busy;
    uint8_t file_pcr0[EIF_DIGEST_SIZE];
    uint8_t pcr[EIF_DIGEST_SIZE];       /* PCR0 or PCR2 */
    uint8_t pcr1[EIF_DIGEST_SIZE];
} EifLane;

/* Add the time since *@t to *@sum; *@t is now. */
static inline void eif_lap(int64_t *t, uint64_t *sum)
{
    int64_t now = g_get_monotonic_time();

    *sum += (uint64_t)(now - *t);
    *t = now;
}

/* ---- eif-load.c ---- */

/* Exactly @len bytes: an end before that is an error, too. */
bool eif_read_all(int fd, uint8_t *buf, size_t len, uint64_t offset,
                  EifError *err);

/* ---- eif-lane.c ---- */

bool eif_lane_start(EifLane *lane, EifError *err);
/*
 * Waits for it; true where there was none to wait for. Its own error goes to
 * @err, NULL where a first one stands there already.
 */
bool eif_lane_join(EifLane *lane, EifError *err);
/* Whoever waits for more of a piece stops waiting. */
void eif_lanes_stop(EifLoader *ld);

#endif /* EIF_LOAD_H */
