/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: a whole file in memory, judged and measured.  For unit tests,
 * cross-checks and the fuzzer; also holds the last steps that the loader
 * shares.  The order of the checks is in nitro/eif.h, and the loader has to
 * keep to it as eif_check() does.
 */

#include <inttypes.h>
#include <string.h>
#include <zlib.h>

#include "eif-internal.h"

uint32_t eif_crc_header(const uint8_t *header)
{
    uint32_t crc = crc32(0, header, EIF_CRC_OFFSET);

    return crc32(crc, header + EIF_CRC_OFFSET + 4,
                 EIF_HEADER_SIZE - EIF_CRC_OFFSET - 4);
}

bool eif_check_crc(const EifLayout *l, uint32_t crc, EifError *err)
{
    if (crc != l->crc32) {
        return eif_fail(err, EIF_ERR_CRC_MISMATCH,
                        "the file's CRC-32 is 0x%08" PRIx32 ", its header says"
                        " 0x%08" PRIx32 "; the file is damaged", crc,
                        l->crc32);
    }
    return true;
}

bool eif_check_cmdline(const uint8_t *cmdline, size_t len, EifError *err)
{
    const uint8_t *nul = len ? memchr(cmdline, 0, len) : NULL;

    if (nul) {
        return eif_fail(err, EIF_ERR_CMDLINE_NUL,
                        "byte %zu of the command line's %zu is NUL: it would"
                        " be measured whole, but end there for the kernel",
                        (size_t)(nul - cmdline), len);
    }
    return true;
}

bool eif_judge_signature(const uint8_t *buf, size_t len,
                         const EifOptions *opt,
                         const uint8_t file_pcr0[EIF_DIGEST_SIZE],
                         EifMeasurements *out, EifError *warning,
                         EifError *err)
{
    bool verify = opt->signature == EIF_SIGNATURE_VERIFY;
    EifError *why = verify ? err : warning;
    EifError later;
    EifSignature s;
    bool ok, cose_ok;

    ok = eif_signature_parse(&s, buf, len, why);
    if (ok) {
        cose_ok = eif_signature_cose(&s, why);
        /* Tolerant: a certificate counts, whatever its signature is like. */
        if (cose_ok || !verify) {
            ok = eif_signature_certificate(&s, cose_ok ? why : &later);
            if (ok) {
                memcpy(out->pcr8, s.pcr8, EIF_DIGEST_SIZE);
                out->has_pcr8 = true;
            }
        }
        ok = ok && cose_ok &&
             eif_signature_verify(&s, file_pcr0, opt->now, why);
    }
    eif_signature_clear(&s);
    return ok || !verify;
}

/* The section's data; parse has made sure that they lie in the file. */
static const uint8_t *section_data(const EifLayout *l, unsigned i,
                                   const uint8_t *buf)
{
    return buf + l->section[i].offset + EIF_SECTION_HEADER_SIZE;
}

static bool parse(EifLayout *l, const uint8_t *buf, size_t len, EifArch arch,
                  EifError *err)
{
    if (!eif_parse_header(l, buf, len, len, arch, err)) {
        return false;
    }
    for (unsigned i = 0; i < l->n_sections; i++) {
        if (!eif_parse_section(l, i, buf + l->section[i].offset, err)) {
            return false;
        }
    }
    return eif_layout_finish(l, err);
}

static bool measure(const EifLayout *l, const uint8_t *buf,
                    EifMeasurements *out, EifError *err)
{
    EifBootMeasure boot = { NULL, NULL };
    gnutls_hash_hd_t app = NULL;
    bool ok;

    ok = eif_boot_measure_init(&boot, err) && eif_hash_init(&app, err);
    for (unsigned i = 0; ok && i < l->n_sections; i++) {
        const uint8_t *data = section_data(l, i, buf);
        size_t size = l->section[i].size;
        EifPart part;

        if (!eif_section_part(l, i, &part)) {
            continue;
        }
        ok = eif_boot_measure_update(&boot, part, data, size, err) &&
             (part != EIF_PART_RAMDISK_APP ||
              eif_hash_update(app, data, size, err));
    }
    ok = ok && eif_hash_pcr(boot.pcr0, out->pcr0, err) &&
         eif_boot_measure_pcr1(&boot, out->pcr1, err) &&
         eif_hash_pcr(app, out->pcr2, err);
    eif_boot_measure_free(&boot);
    eif_hash_free(&app);
    return ok;
}

bool eif_check(const uint8_t *buf, size_t len, const EifOptions *opt,
               EifMeasurements *out, EifError *warning, EifError *err)
{
    const EifSection *kernel, *cmdline;
    EifLayout l;
    EifError unused;
    uint32_t crc;

    if (!warning) {
        warning = &unused;
    }
    memset(out, 0, sizeof(*out));
    warning->rule = EIF_OK;
    warning->text[0] = '\0';

    if (!parse(&l, buf, len, opt->arch, err)) {
        return false;
    }
    kernel = &l.section[l.kernel];
    cmdline = &l.section[l.cmdline];
    if (!opt->file_rules_only &&
        !eif_check_sizes(&l, 0, 0, opt->lowmem, err)) {
        return false;
    }
    crc = crc32_z(eif_crc_header(buf), buf + EIF_HEADER_SIZE,
                  len - EIF_HEADER_SIZE);
    if (!eif_check_crc(&l, crc, err) ||
        !eif_check_cmdline(section_data(&l, l.cmdline, buf), cmdline->size,
                           err)) {
        return false;
    }
    if (!opt->file_rules_only) {
        EifKernel k;

        /* Room for the sum: the command line is EIF_CMDLINE_MAX at most. */
        if (!eif_check_kernel(l.arch, section_data(&l, l.kernel, buf),
                              kernel->size, kernel->size, &k, err) ||
            !eif_check_placement(&k, cmdline->size + opt->cmdline_extra,
                                 l.ramdisk_bytes, opt->lowmem, err)) {
            return false;
        }
    }
    if (!measure(&l, buf, out, err)) {
        return false;
    }
    return l.signature < 0 ||
           eif_judge_signature(section_data(&l, l.signature, buf),
                               l.section[l.signature].size, opt, out->pcr0,
                               out, warning, err);
}
