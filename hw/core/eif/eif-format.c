/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: the file's layout.  Header, section headers, and which sections
 * there must be.  Looks at no section's data, allocates nothing, does no I/O.
 *
 * AWS's rules ask that sections do not overlap and lie in the file, and Nitro
 * boots files with gaps behind the header and between sections.  So here: the
 * sections are in the order of their offsets, what lies between them is in
 * the CRC and in no PCR, and its size is told.  The file ends with the last
 * section: what would become of bytes behind it is nowhere said.
 */

#include <inttypes.h>
#include <string.h>

#include "eif-internal.h"

/* Offsets in the header. */
enum {
    OFF_MAGIC = 0x000,
    OFF_VERSION = 0x004,
    OFF_FLAGS = 0x006,
    OFF_DEFAULT_MEM = 0x008,
    OFF_DEFAULT_CPUS = 0x010,
    OFF_N_SECTIONS = 0x01a,
    OFF_OFFSETS = 0x01c,
    OFF_SIZES = 0x11c,
};

static const uint8_t eif_magic[4] = { 0x2e, 0x65, 0x69, 0x66 }; /* ".eif" */

/* Offsets and sizes: one section after the other, and nothing behind them. */
static bool parse_table(EifLayout *l, const uint8_t *buf, EifError *err)
{
    uint64_t end = EIF_HEADER_SIZE;

    for (unsigned i = 0; i < l->n_sections; i++) {
        EifSection *s = &l->section[i];
        uint64_t next;

        s->offset = eif_be64(buf + OFF_OFFSETS + 8 * i);
        s->size = eif_be64(buf + OFF_SIZES + 8 * i);
        if (s->offset < end) {
            return eif_fail(err, EIF_ERR_SECTION_OFFSET,
                            "section %u is at offset %" PRIu64 ", but what"
                            " precedes it ends at %" PRIu64 " (they overlap)",
                            i, s->offset, end);
        }
        if (__builtin_add_overflow(s->offset, EIF_SECTION_HEADER_SIZE,
                                   &next) ||
            __builtin_add_overflow(next, s->size, &next) ||
            next > l->file_size) {
            return eif_fail(err, EIF_ERR_SECTION_BEYOND_FILE,
                            "section %u at offset %" PRIu64 " claims %" PRIu64
                            " bytes, but the file ends at %" PRIu64,
                            i, s->offset, s->size, l->file_size);
        }
        l->gap_bytes += s->offset - end;
        end = next;
    }
    if (end != l->file_size) {
        return eif_fail(err, EIF_ERR_TRAILING_BYTES,
                        "the last section ends at %" PRIu64 ", but the file"
                        " goes on for %" PRIu64 " bytes", end,
                        l->file_size - end);
    }
    return true;
}

/* Bit 0 of the flags decides; the others are reserved. */
static bool parse_arch(EifLayout *l, EifArch wanted, EifError *err)
{
    l->arch = l->flags & EIF_FLAG_AARCH64 ? EIF_ARCH_AARCH64
                                          : EIF_ARCH_X86_64;
    if (wanted != EIF_ARCH_ANY && wanted != l->arch) {
        return eif_fail(err, EIF_ERR_BAD_ARCH,
                        "the EIF is for %s (flags 0x%04x), this machine is %s;"
                        " run it with qemu-system-%s, or build it for %s",
                        eif_arch_name(l->arch), l->flags,
                        eif_arch_name(wanted), eif_arch_name(l->arch),
                        eif_arch_name(wanted));
    }
    return true;
}

bool eif_parse_header(EifLayout *l, const uint8_t *buf, size_t len,
                      uint64_t file_size, EifArch arch, EifError *err)
{
    memset(l, 0, sizeof(*l));
    l->file_size = file_size;
    l->kernel = l->cmdline = l->signature = l->metadata = -1;

    if (file_size < EIF_HEADER_SIZE || len < EIF_HEADER_SIZE) {
        return eif_fail(err, EIF_ERR_FILE_TOO_SHORT,
                        "the file has %" PRIu64 " bytes, an EIF header alone"
                        " has %d", file_size, EIF_HEADER_SIZE);
    }
    if (memcmp(buf + OFF_MAGIC, eif_magic, sizeof(eif_magic)) != 0) {
        return eif_fail(err, EIF_ERR_BAD_MAGIC,
                        "the file begins with %08" PRIx32 ", an EIF with"
                        " 2e656966 (\".eif\")", eif_be32(buf + OFF_MAGIC));
    }
    l->version = eif_be16(buf + OFF_VERSION);
    if (l->version < EIF_MIN_VERSION || l->version > EIF_MAX_VERSION) {
        return eif_fail(err, EIF_ERR_BAD_VERSION,
                        "the EIF has version %u, supported are %d to %d",
                        l->version, EIF_MIN_VERSION, EIF_MAX_VERSION);
    }
    l->flags = eif_be16(buf + OFF_FLAGS);
    if (!parse_arch(l, arch, err)) {
        return false;
    }
    l->default_mem = eif_be64(buf + OFF_DEFAULT_MEM);
    l->default_cpus = eif_be64(buf + OFF_DEFAULT_CPUS);
    l->crc32 = eif_be32(buf + EIF_CRC_OFFSET);
    l->n_sections = eif_be16(buf + OFF_N_SECTIONS);
    if (l->n_sections < EIF_MIN_SECTIONS ||
        l->n_sections > EIF_MAX_SECTIONS) {
        unsigned n = l->n_sections;

        l->n_sections = 0;
        return eif_fail(err, EIF_ERR_SECTION_COUNT,
                        "the EIF has %u sections, it must have %d to %d",
                        n, EIF_MIN_SECTIONS, EIF_MAX_SECTIONS);
    }

    return parse_table(l, buf, err);
}

static bool only_one(int *slot, unsigned i, EifRule rule, const char *what,
                     EifError *err)
{
    if (*slot >= 0) {
        return eif_fail(err, rule, "section %u is a second %s, the first is"
                        " section %d", i, what, *slot);
    }
    *slot = (int)i;
    return true;
}

bool eif_parse_section(EifLayout *l, unsigned i, const uint8_t *hdr12,
                       EifError *err)
{
    EifSection *s = &l->section[i];
    uint16_t type = eif_be16(hdr12);
    uint64_t size = eif_be64(hdr12 + 4);
    bool ok = true;

    if (size != s->size) {
        return eif_fail(err, EIF_ERR_SECTION_SIZE_MISMATCH,
                        "section %u has %" PRIu64 " bytes by the file header,"
                        " but %" PRIu64 " by its own header at offset %"
                        PRIu64, i, s->size, size, s->offset);
    }

    switch (type) {
    case EIF_SECTION_KERNEL:
        ok = only_one(&l->kernel, i, EIF_ERR_DUPLICATE_KERNEL, "kernel", err);
        break;
    case EIF_SECTION_CMDLINE:
        ok = only_one(&l->cmdline, i, EIF_ERR_DUPLICATE_CMDLINE,
                      "command line", err);
        break;
    case EIF_SECTION_RAMDISK:
        if (l->kernel < 0) {
            return eif_fail(err, EIF_ERR_RAMDISK_BEFORE_KERNEL,
                            "section %u is a ramdisk, but no kernel comes"
                            " before it", i);
        }
        l->n_ramdisks++;
        l->ramdisk_bytes += s->size;    /* all lie in the file: no overflow */
        break;
    case EIF_SECTION_SIGNATURE:
        ok = only_one(&l->signature, i, EIF_ERR_DUPLICATE_SIGNATURE,
                      "signature", err);
        if (ok && s->size > EIF_SIGNATURE_MAX) {
            return eif_fail(err, EIF_ERR_SIGNATURE_TOO_LARGE,
                            "section %u is a signature of %" PRIu64 " bytes,"
                            " at most %d are allowed", i, s->size,
                            EIF_SIGNATURE_MAX);
        }
        break;
    case EIF_SECTION_METADATA:
        ok = only_one(&l->metadata, i, EIF_ERR_DUPLICATE_METADATA,
                      "metadata section", err);
        break;
    default:
        return eif_fail(err, EIF_ERR_SECTION_TYPE,
                        "section %u at offset %" PRIu64 " has type %u,"
                        " known are 1 to 5", i, s->offset, type);
    }
    s->type = type;
    return ok;
}

bool eif_layout_finish(const EifLayout *l, EifError *err)
{
    if (l->kernel < 0) {
        return eif_fail(err, EIF_ERR_NO_KERNEL,
                        "none of the EIF's %u sections is a kernel",
                        l->n_sections);
    }
    if (l->cmdline < 0) {
        return eif_fail(err, EIF_ERR_NO_CMDLINE,
                        "none of the EIF's %u sections is a command line",
                        l->n_sections);
    }
    if (l->version >= 4 && l->metadata < 0) {
        return eif_fail(err, EIF_ERR_NO_METADATA,
                        "none of the EIF's %u sections is metadata, which"
                        " version %u must have", l->n_sections, l->version);
    }
    return true;
}
