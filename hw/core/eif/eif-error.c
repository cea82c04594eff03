/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: names of rules and architectures, and how a refusal is written.
 * The checks themselves are elsewhere.
 */

#include <stdarg.h>
#include <stdio.h>

#include "eif-internal.h"

static const char *const rule_names[EIF_RULE_COUNT] = {
    [EIF_OK] = "ok",
    [EIF_ERR_IO] = "io",
    [EIF_ERR_FILE_TOO_SHORT] = "file-too-short",
    [EIF_ERR_BAD_MAGIC] = "bad-magic",
    [EIF_ERR_BAD_VERSION] = "bad-version",
    [EIF_ERR_BAD_ARCH] = "bad-arch",
    [EIF_ERR_SECTION_COUNT] = "section-count",
    [EIF_ERR_SECTION_OFFSET] = "section-offset",
    [EIF_ERR_SECTION_BEYOND_FILE] = "section-beyond-file",
    [EIF_ERR_TRAILING_BYTES] = "trailing-bytes",
    [EIF_ERR_SECTION_SIZE_MISMATCH] = "section-size-mismatch",
    [EIF_ERR_SECTION_TYPE] = "section-type",
    [EIF_ERR_DUPLICATE_KERNEL] = "duplicate-kernel",
    [EIF_ERR_NO_KERNEL] = "no-kernel",
    [EIF_ERR_DUPLICATE_CMDLINE] = "duplicate-cmdline",
    [EIF_ERR_NO_CMDLINE] = "no-cmdline",
    [EIF_ERR_RAMDISK_BEFORE_KERNEL] = "ramdisk-before-kernel",
    [EIF_ERR_DUPLICATE_SIGNATURE] = "duplicate-signature",
    [EIF_ERR_SIGNATURE_TOO_LARGE] = "signature-too-large",
    [EIF_ERR_DUPLICATE_METADATA] = "duplicate-metadata",
    [EIF_ERR_NO_METADATA] = "no-metadata",
    [EIF_ERR_CRC_MISMATCH] = "crc-mismatch",
    [EIF_ERR_CMDLINE_NUL] = "cmdline-nul",
    [EIF_ERR_CMDLINE_TOO_LONG] = "cmdline-too-long",
    [EIF_ERR_KERNEL_TOO_LARGE] = "kernel-too-large",
    [EIF_ERR_KERNEL_NOT_BZIMAGE] = "kernel-not-bzimage",
    [EIF_ERR_KERNEL_SETUP_SIZE] = "kernel-setup-size",
    [EIF_ERR_KERNEL_NOT_IMAGE] = "kernel-not-image",
    [EIF_ERR_KERNEL_TEXT_OFFSET] = "kernel-text-offset",
    [EIF_ERR_KERNEL_IMAGE_SIZE] = "kernel-image-size",
    [EIF_ERR_INITRAMFS_TOO_LARGE] = "initramfs-too-large",
    [EIF_ERR_SIGNATURE_MALFORMED] = "signature-malformed",
    [EIF_ERR_SIGNATURE_CERTIFICATE] = "signature-certificate",
    [EIF_ERR_SIGNATURE_INVALID] = "signature-invalid",
    [EIF_ERR_SIGNATURE_INDEX] = "signature-index",
    [EIF_ERR_SIGNATURE_PCR0] = "signature-pcr0",
    [EIF_ERR_SIGNATURE_NOT_YET_VALID] = "signature-not-yet-valid",
    [EIF_ERR_SIGNATURE_EXPIRED] = "signature-expired",
    [EIF_ERR_OVERLAY_NOT_CPIO] = "overlay-not-cpio",
    [EIF_ERR_OVERLAY_MISALIGNED] = "overlay-misaligned",
    [EIF_ERR_OVERLAY_TOO_LARGE] = "overlay-too-large",
};

const char *eif_rule_name(EifRule rule)
{
    g_return_val_if_fail((unsigned)rule < EIF_RULE_COUNT, "unknown");

    return rule_names[rule];
}

const char *eif_arch_name(EifArch arch)
{
    switch (arch) {
    case EIF_ARCH_X86_64:
        return "x86_64";
    case EIF_ARCH_AARCH64:
        return "aarch64";
    default:
        return "any";
    }
}

bool eif_fail(EifError *err, EifRule rule, const char *fmt, ...)
{
    va_list ap;

    err->rule = rule;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
    return false;
}
