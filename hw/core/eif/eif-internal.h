/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the files of the EIF core share, grouped under the file that has it.
 * Not for anybody outside this directory but the core's own unit tests.
 */

#ifndef EIF_INTERNAL_H
#define EIF_INTERNAL_H

#include <glib.h>
#include <gnutls/gnutls.h>
#include <gnutls/crypto.h>

#include "nitro/eif.h"

static inline uint16_t eif_be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t eif_be32(const uint8_t *p)
{
    return (uint32_t)eif_be16(p) << 16 | eif_be16(p + 2);
}

static inline uint64_t eif_be64(const uint8_t *p)
{
    return (uint64_t)eif_be32(p) << 32 | eif_be32(p + 4);
}

/* In headers of kernels. */
static inline uint16_t eif_le16(const uint8_t *p)
{
    return (uint16_t)(p[1] << 8 | p[0]);
}

static inline uint32_t eif_le32(const uint8_t *p)
{
    return (uint32_t)eif_le16(p + 2) << 16 | eif_le16(p);
}

static inline uint64_t eif_le64(const uint8_t *p)
{
    return (uint64_t)eif_le32(p + 4) << 32 | eif_le32(p);
}

/* ---- eif-error.c ---- */

/* Fill in @err; always false, so that a check ends in `return eif_fail()`. */
bool eif_fail(EifError *err, EifRule rule, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);

/* ---- eif-boot.c ---- */

/*
 * Step 4 of the order in nitro/eif.h: sizes alone, before anything is
 * allocated.  @extra: bytes of an initrd that does not come from the file;
 * @overlay: of an overlay.
 */
bool eif_check_sizes(const EifLayout *l, uint64_t extra, uint64_t overlay,
                     uint64_t lowmem, EifError *err);

/*
 * An initramfs of @size bytes with @more appended, at the next multiple of
 * EIF_INITRD_ALIGN; the caller has checked the sizes.
 */
uint64_t eif_initramfs_append(uint64_t size, uint64_t more);

bool eif_check_cmdline_size(const EifKernel *k, uint64_t cmdline_len,
                            EifError *err);

/* ---- eif-boot-arm64.c: what eif-boot.c's functions do for aarch64 ---- */

bool eif_arm64_check_kernel(const uint8_t *hdr, size_t hdr_len, uint64_t size,
                            EifKernel *out, EifError *err);
bool eif_arm64_check_placement(const EifKernel *k, uint64_t initramfs_size,
                               uint64_t lowmem, EifError *err);

/* ---- eif-measure.c ---- */

/* What a piece of content is to the PCRs. */
typedef enum EifPart {
    EIF_PART_KERNEL,
    EIF_PART_CMDLINE,
    EIF_PART_RAMDISK_FIRST,     /* the first of the file */
    EIF_PART_RAMDISK_APP,       /* every other one, and an extra initrd */
} EifPart;

/* What section @i is to the PCRs; false: it is not measured. */
bool eif_section_part(const EifLayout *l, unsigned i, EifPart *part);

/*
 * PCR0 and PCR1 share what comes before the second ramdisk, so that is hashed
 * once: @pcr1 is a copy of the state taken there, NULL until then.
 */
typedef struct EifBootMeasure {
    gnutls_hash_hd_t pcr0;
    gnutls_hash_hd_t pcr1;
} EifBootMeasure;

bool eif_hash_init(gnutls_hash_hd_t *h, EifError *err);
bool eif_hash_update(gnutls_hash_hd_t h, const void *data, size_t len,
                     EifError *err);
/* The PCR that the content so far would give; @h goes on. */
bool eif_hash_pcr(gnutls_hash_hd_t h, uint8_t pcr[EIF_DIGEST_SIZE],
                  EifError *err);
void eif_hash_free(gnutls_hash_hd_t *h);
/* The PCR of one buffer. */
bool eif_measure_buffer(const void *data, size_t len,
                        uint8_t pcr[EIF_DIGEST_SIZE], EifError *err);

bool eif_boot_measure_init(EifBootMeasure *m, EifError *err);
bool eif_boot_measure_update(EifBootMeasure *m, EifPart part,
                             const void *data, size_t len, EifError *err);
bool eif_boot_measure_pcr1(const EifBootMeasure *m,
                           uint8_t pcr[EIF_DIGEST_SIZE], EifError *err);
void eif_boot_measure_free(EifBootMeasure *m);

/* ---- eif-signature.c, for eif-certificate.c ---- */

typedef struct EifCurve {
    const uint8_t *oid;         /* DER, without tag and length */
    size_t oid_len;
    gnutls_ecc_curve_t curve;
    int alg;                    /* COSE */
    const char *alg_name;
    gnutls_sign_algorithm_t sign;
    size_t half;                /* bytes of r, of s, of a coordinate */
} EifCurve;

/* NULL if it is none that may sign. */
const EifCurve *eif_curve_of_oid(const uint8_t *oid, size_t len);
/* The key at s->point; gnutls's code.  *@key may be there after an error. */
int eif_curve_key(const EifSignature *s, gnutls_pubkey_t *key);

/* ---- eif-check.c ---- */

/* The CRC-32 of a file's header without the CRC field itself. */
uint32_t eif_crc_header(const uint8_t *header);
bool eif_check_crc(const EifLayout *l, uint32_t crc, EifError *err);
bool eif_check_cmdline(const uint8_t *cmdline, size_t len, EifError *err);
/* Step 8, under the policy of @opt; sets pcr8 and has_pcr8 of @out. */
bool eif_judge_signature(const uint8_t *buf, size_t len,
                         const EifOptions *opt,
                         const uint8_t file_pcr0[EIF_DIGEST_SIZE],
                         EifMeasurements *out, EifError *warning,
                         EifError *err);

#endif /* EIF_INTERNAL_H */
