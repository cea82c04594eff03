/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: PCR values from content.  What goes into which PCR is in
 * nitro/eif.h; who feeds it, and on which thread, is the callers' affair.
 */

#include <inttypes.h>

#include "eif-internal.h"

bool eif_section_part(const EifLayout *l, unsigned i, EifPart *part)
{
    switch (l->section[i].type) {
    case EIF_SECTION_KERNEL:
        *part = EIF_PART_KERNEL;
        return true;
    case EIF_SECTION_CMDLINE:
        *part = EIF_PART_CMDLINE;
        return true;
    case EIF_SECTION_RAMDISK:
        *part = EIF_PART_RAMDISK_FIRST;
        while (i-- > 0) {
            if (l->section[i].type == EIF_SECTION_RAMDISK) {
                *part = EIF_PART_RAMDISK_APP;
            }
        }
        return true;
    default:
        return false;
    }
}

static bool hash_error(int rc, EifError *err)
{
    return eif_fail(err, EIF_ERR_IO, "cannot compute SHA-384: %s",
                    gnutls_strerror(rc));
}

bool eif_hash_init(gnutls_hash_hd_t *h, EifError *err)
{
    int rc = gnutls_hash_init(h, GNUTLS_DIG_SHA384);

    if (rc < 0) {
        *h = NULL;
        return hash_error(rc, err);
    }
    return true;
}

bool eif_hash_update(gnutls_hash_hd_t h, const void *data, size_t len,
                     EifError *err)
{
    int rc = len ? gnutls_hash(h, data, len) : 0;

    return rc < 0 ? hash_error(rc, err) : true;
}

static bool hash_copy(gnutls_hash_hd_t h, gnutls_hash_hd_t *copy,
                      EifError *err)
{
    *copy = gnutls_hash_copy(h);
    return *copy ? true : hash_error(GNUTLS_E_MEMORY_ERROR, err);
}

/* A PCR that was zero, extended once: SHA384(48 x 00 || digest). */
bool eif_hash_pcr(gnutls_hash_hd_t h, uint8_t pcr[EIF_DIGEST_SIZE],
                  EifError *err)
{
    uint8_t extend[2 * EIF_DIGEST_SIZE] = { 0 };
    gnutls_hash_hd_t copy;
    int rc;

    if (!hash_copy(h, &copy, err)) {
        return false;
    }
    gnutls_hash_deinit(copy, extend + EIF_DIGEST_SIZE);
    rc = gnutls_hash_fast(GNUTLS_DIG_SHA384, extend, sizeof(extend), pcr);
    return rc < 0 ? hash_error(rc, err) : true;
}

void eif_hash_free(gnutls_hash_hd_t *h)
{
    if (*h) {
        gnutls_hash_deinit(*h, NULL);
        *h = NULL;
    }
}

bool eif_measure_buffer(const void *data, size_t len,
                        uint8_t pcr[EIF_DIGEST_SIZE], EifError *err)
{
    gnutls_hash_hd_t h;
    bool ok;

    if (!eif_hash_init(&h, err)) {
        return false;
    }
    ok = eif_hash_update(h, data, len, err) && eif_hash_pcr(h, pcr, err);
    eif_hash_free(&h);
    return ok;
}

bool eif_boot_measure_init(EifBootMeasure *m, EifError *err)
{
    m->pcr1 = NULL;
    return eif_hash_init(&m->pcr0, err);
}

bool eif_boot_measure_update(EifBootMeasure *m, EifPart part,
                             const void *data, size_t len, EifError *err)
{
    if (part == EIF_PART_RAMDISK_APP && !m->pcr1 &&
        !hash_copy(m->pcr0, &m->pcr1, err)) {
        return false;
    }
    /* Only a command line behind the second ramdisk is hashed twice. */
    if (part != EIF_PART_RAMDISK_APP && m->pcr1 &&
        !eif_hash_update(m->pcr1, data, len, err)) {
        return false;
    }
    return eif_hash_update(m->pcr0, data, len, err);
}

bool eif_boot_measure_pcr1(const EifBootMeasure *m,
                           uint8_t pcr[EIF_DIGEST_SIZE], EifError *err)
{
    return eif_hash_pcr(m->pcr1 ? m->pcr1 : m->pcr0, pcr, err);
}

void eif_boot_measure_free(EifBootMeasure *m)
{
    eif_hash_free(&m->pcr0);
    eif_hash_free(&m->pcr1);
}
