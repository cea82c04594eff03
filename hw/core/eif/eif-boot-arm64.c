/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: the kernel of an aarch64 image, and where its parts go in memory.
 * What eif-boot.c has for both architectures is there.
 *
 * Field offsets: "Call the kernel image" in the kernel's
 * Documentation/arch/arm64/booting.rst.  Numbers there are little-endian.  The
 * places are those of Firecracker: kernel at the start of memory, device tree
 * at its end, initramfs below that.
 */

#include <inttypes.h>
#include <string.h>

#include "eif-internal.h"

#define OFF_TEXT_OFFSET     8
#define OFF_IMAGE_SIZE      16
#define OFF_MAGIC           56
#define CMDLINE_SIZE        2047    /* COMMAND_LINE_SIZE, less its NUL */
#define PAGE                ((uint64_t)4096)

static const uint8_t magic[4] = { 'A', 'R', 'M', 0x64 };

static const char *looks_like(const uint8_t *hdr, size_t len)
{
    if (memcmp(hdr, "\177ELF", 4) == 0) {
        return " (this is an ELF file; use arch/arm64/boot/Image)";
    }
    if (hdr[0] == 0x1f && hdr[1] == 0x8b) {
        return " (this is a gzip file, like Image.gz; unpack it)";
    }
    if (memcmp(hdr, "MZ", 2) == 0 && memcmp(hdr + 4, "zimg", 4) == 0) {
        return " (this is an EFI zboot file, like vmlinuz.efi; use Image)";
    }
    if (len >= 0x206 && memcmp(hdr + 0x202, "HdrS", 4) == 0) {
        return " (this is an x86 bzImage, but the EIF is for aarch64)";
    }
    return "";
}

bool eif_arm64_check_kernel(const uint8_t *hdr, size_t hdr_len, uint64_t size,
                            EifKernel *out, EifError *err)
{
    uint64_t image_size;

    if (size < EIF_ARM64_HEADER_SIZE || hdr_len < EIF_ARM64_HEADER_SIZE) {
        return eif_fail(err, EIF_ERR_KERNEL_NOT_IMAGE,
                        "the kernel has %" PRIu64 " bytes, the header of an"
                        " arm64 Image alone has %d", size,
                        EIF_ARM64_HEADER_SIZE);
    }
    if (memcmp(hdr + OFF_MAGIC, magic, sizeof(magic)) != 0) {
        return eif_fail(err, EIF_ERR_KERNEL_NOT_IMAGE,
                        "the kernel is not an arm64 Image: %08" PRIx32 " at"
                        " %d instead of 41524d64 (\"ARM\\x64\")%s",
                        eif_be32(hdr + OFF_MAGIC), OFF_MAGIC,
                        looks_like(hdr, hdr_len));
    }
    out->text_offset = eif_le64(hdr + OFF_TEXT_OFFSET);
    if (out->text_offset % PAGE) {
        return eif_fail(err, EIF_ERR_KERNEL_TEXT_OFFSET,
                        "the kernel's text_offset is 0x%" PRIx64 ", no"
                        " multiple of 4 KiB; 0x%llx is usual",
                        out->text_offset, EIF_ARM64_TEXT_OFFSET);
    }
    image_size = eif_le64(hdr + OFF_IMAGE_SIZE);
    if (!image_size) {
        return eif_fail(err, EIF_ERR_KERNEL_IMAGE_SIZE,
                        "the kernel's image_size is 0, so it does not say how"
                        " much memory it needs; Linux 3.17 is the oldest"
                        " supported");
    }
    /* More than image_size: what was appended, like a signature for EFI. */
    out->memory = MAX(image_size, size);
    out->cmdline_size = CMDLINE_SIZE;
    return true;
}

static uint64_t kernel_start(const EifKernel *k)
{
    return k->text_offset ? k->text_offset : EIF_ARM64_TEXT_OFFSET;
}

/* Where the device tree begins, and an initramfs has to end. */
static uint64_t dtb_start(uint64_t lowmem)
{
    uint64_t top = MIN(lowmem, EIF_ARM64_WINDOW);

    return top < EIF_ARM64_DTB_SIZE ? 0
        : (top - EIF_ARM64_DTB_SIZE) & ~(EIF_ARM64_DTB_SIZE - 1);
}

bool eif_arm64_check_placement(const EifKernel *k, uint64_t initramfs_size,
                               uint64_t lowmem, EifError *err)
{
    uint64_t top = dtb_start(lowmem);
    uint64_t end, room;

    if (__builtin_add_overflow(kernel_start(k), k->memory, &end)) {
        end = UINT64_MAX;
    }
    if (end > top) {
        return eif_fail(err, EIF_ERR_KERNEL_TOO_LARGE,
                        "the kernel needs memory up to 0x%" PRIx64 " from its"
                        " start (text_offset 0x%" PRIx64 "), the guest's ends"
                        " at 0x%" PRIx64 " with room for a device tree before"
                        " it; give the guest more memory", end,
                        k->text_offset, top);
    }
    room = (top - end) & ~(PAGE - 1);
    if (initramfs_size > room) {
        return eif_fail(err, EIF_ERR_INITRAMFS_TOO_LARGE,
                        "the initramfs has %" PRIu64 " bytes, but between the"
                        " kernel's end (0x%" PRIx64 ") and the device tree"
                        " (0x%" PRIx64 ") there is room for %" PRIu64
                        "; give the guest more memory", initramfs_size, end,
                        top, room);
    }
    return true;
}

void eif_arm64_places(const EifKernel *k, uint64_t initramfs_size,
                      uint64_t lowmem, EifArm64Places *out)
{
    out->kernel = kernel_start(k);
    out->dtb = dtb_start(lowmem);
    out->initramfs = (out->dtb - initramfs_size) & ~(PAGE - 1);
}
