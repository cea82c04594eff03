/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: what must hold before kernel, command line and initramfs go to a
 * boot loader: sizes for all, the kernel for x86; that of arm64 is judged in
 * eif-boot-arm64.c.  QEMU's loader trusts its kernel file: it takes another
 * path for what is not a bzImage, ends the process on some bad values, and
 * places the initramfs as high as it goes without asking what the kernel
 * overwrites while it decompresses.  All of that is settled here first.
 *
 * Field offsets: "The real-mode kernel header" in the kernel's
 * Documentation/arch/x86/boot.rst.  Numbers there are little-endian.
 */

#include <inttypes.h>
#include <string.h>

#include "eif-internal.h"

#define MIN_PROTOCOL        0x20a       /* has pref_address and init_size */
#define SECTOR              512
#define SETUP_MIN           (2 * SECTOR)        /* holds the header itself */
/*
 * QEMU puts the setup code at 64 KiB and the command line at 128 KiB.  Linux
 * has about 20 KiB; the protocol's field could say 128 KiB.
 */
#define SETUP_MAX           (64 * 1024)
#define LOAD_ADDRESS        ((uint64_t)0x100000)        /* LOADED_HIGH */
#define LOADED_HIGH         0x01
#define ABOVE_4G            0x02
#define PAGE                ((uint64_t)4096)

bool eif_check_sizes(const EifLayout *l, uint64_t extra, uint64_t overlay,
                     uint64_t lowmem, EifError *err)
{
    uint64_t kernel = l->section[l->kernel].size;
    uint64_t cmdline = l->section[l->cmdline].size;
    uint64_t size;
    uint64_t limit = EIF_INITRAMFS_LIMIT;
    const char *whose = l->arch == EIF_ARCH_AARCH64 ? "loader's limit"
                                                    : "boot protocol's limit";

    if (kernel >= EIF_KERNEL_LIMIT) {
        return eif_fail(err, EIF_ERR_KERNEL_TOO_LARGE,
                        "the kernel has %" PRIu64 " bytes, it must have less"
                        " than %llu", kernel, EIF_KERNEL_LIMIT);
    }
    if (cmdline > EIF_CMDLINE_MAX) {
        return eif_fail(err, EIF_ERR_CMDLINE_TOO_LONG,
                        "the command line has %" PRIu64 " bytes, at most %d"
                        " are allowed", cmdline, EIF_CMDLINE_MAX);
    }
    if (lowmem && lowmem < limit) {
        limit = lowmem;
        whose = l->arch == EIF_ARCH_AARCH64 ? "guest's memory"
                                            : "guest's memory below 4 GiB";
    }
    /* Each is tested alone first, so that their sum cannot wrap. */
    if (l->ramdisk_bytes >= limit || extra >= limit ||
        eif_initramfs_append(l->ramdisk_bytes, extra) >= limit) {
        return eif_fail(err, EIF_ERR_INITRAMFS_TOO_LARGE,
                        "the initramfs has %" PRIu64 " bytes of ramdisks and"
                        " %" PRIu64 " of an added initrd, but must be smaller"
                        " than the %s (%" PRIu64 " bytes)",
                        l->ramdisk_bytes, extra, whose, limit);
    }
    size = eif_initramfs_append(l->ramdisk_bytes, extra);
    if (overlay >= limit || eif_initramfs_append(size, overlay) >= limit) {
        return eif_fail(err, EIF_ERR_OVERLAY_TOO_LARGE,
                        "it has %" PRIu64 " bytes and the initramfs before it"
                        " %" PRIu64 ", but together they must be smaller than"
                        " the %s (%" PRIu64 " bytes)%s", overlay, size, whose,
                        limit, limit == lowmem
                        ? "; give the guest more memory" : "");
    }
    return true;
}

uint64_t eif_initramfs_append(uint64_t size, uint64_t more)
{
    if (more) {
        size = (size + EIF_INITRD_ALIGN - 1) & ~(EIF_INITRD_ALIGN - 1ULL);
        size += more;
    }
    return size;
}

static const char *looks_like(const uint8_t *hdr)
{
    if (memcmp(hdr, "\177ELF", 4) == 0) {
        return " (this is an ELF file; use arch/x86/boot/bzImage)";
    }
    if (memcmp(hdr + 0x38, "ARM\x64", 4) == 0) {
        return " (this is an arm64 Image, but the EIF is for x86_64)";
    }
    if (hdr[0] == 0x1f && hdr[1] == 0x8b) {
        return " (this is a gzip file)";
    }
    return "";
}

/* Where the kernel wants to lie, and its initramfs may. */
static void read_placement(const uint8_t *hdr, EifKernel *out)
{
    out->cmdline_size = eif_le32(hdr + 0x238);
    out->init_size = eif_le32(hdr + 0x260);
    out->pref_address = eif_le64(hdr + 0x258);
    out->alignment = eif_le32(hdr + 0x230);
    out->relocatable = hdr[0x234] != 0;
    /*
     * A kernel that takes its initramfs anywhere still says 2 GiB in
     * initrd_addr_max, as a favour to old boot loaders; QEMU knows better.
     */
    if (out->protocol >= 0x20c && (eif_le16(hdr + 0x236) & ABOVE_4G)) {
        out->initrd_max = UINT32_MAX;
    } else {
        out->initrd_max = eif_le32(hdr + 0x22c);
    }
}

static bool check_bzimage(const uint8_t *hdr, size_t hdr_len, uint64_t size,
                          EifKernel *out, EifError *err)
{
    unsigned sectors;

    if (size < EIF_KERNEL_HEADER_SIZE || hdr_len < EIF_KERNEL_HEADER_SIZE) {
        return eif_fail(err, EIF_ERR_KERNEL_NOT_BZIMAGE,
                        "the kernel has %" PRIu64 " bytes, the header of a"
                        " bzImage alone has %d", size, EIF_KERNEL_HEADER_SIZE);
    }
    if (memcmp(hdr + 0x202, "HdrS", 4) != 0) {
        return eif_fail(err, EIF_ERR_KERNEL_NOT_BZIMAGE,
                        "the kernel is not a bzImage: %08" PRIx32 " at 0x202"
                        " instead of 48647253 (\"HdrS\")%s",
                        eif_be32(hdr + 0x202), looks_like(hdr));
    }
    if (eif_le16(hdr + 0x1fe) != 0xaa55) {
        return eif_fail(err, EIF_ERR_KERNEL_NOT_BZIMAGE,
                        "the kernel is not a bzImage: boot flag 0x%04x at"
                        " 0x1fe instead of 0xaa55", eif_le16(hdr + 0x1fe));
    }
    out->protocol = eif_le16(hdr + 0x206);
    if (out->protocol < MIN_PROTOCOL) {
        return eif_fail(err, EIF_ERR_KERNEL_NOT_BZIMAGE,
                        "the kernel has boot protocol 0x%04x, 0x%04x (Linux"
                        " 2.6.31) is the oldest supported", out->protocol,
                        MIN_PROTOCOL);
    }
    if (!(hdr[0x211] & LOADED_HIGH)) {
        return eif_fail(err, EIF_ERR_KERNEL_NOT_BZIMAGE,
                        "the kernel is a zImage (load flags 0x%02x without"
                        " LOADED_HIGH), a bzImage is needed", hdr[0x211]);
    }

    sectors = hdr[0x1f1] ? hdr[0x1f1] : 4;      /* 0 means 4, says boot.rst */
    out->setup_bytes = (sectors + 1) * SECTOR;
    if (out->setup_bytes < SETUP_MIN || out->setup_bytes > SETUP_MAX ||
        out->setup_bytes >= size) {
        return eif_fail(err, EIF_ERR_KERNEL_SETUP_SIZE,
                        "the kernel's setup code has %" PRIu32 " bytes (%u"
                        " sectors), it must have %d to %d and less than the"
                        " kernel's %" PRIu64, out->setup_bytes, sectors,
                        SETUP_MIN, SETUP_MAX, size);
    }
    out->payload_bytes = size - out->setup_bytes;
    read_placement(hdr, out);
    return true;
}

bool eif_check_kernel(EifArch arch, const uint8_t *hdr, size_t hdr_len,
                      uint64_t size, EifKernel *out, EifError *err)
{
    memset(out, 0, sizeof(*out));
    out->arch = arch;
    return arch == EIF_ARCH_AARCH64
        ? eif_arm64_check_kernel(hdr, hdr_len, size, out, err)
        : check_bzimage(hdr, hdr_len, size, out, err);
}

/*
 * First address that the kernel leaves alone at boot: the end of its image as
 * loaded, or of the init_size bytes from where it decompresses, by the rule
 * in boot.rst under init_size.
 */
static uint64_t kernel_end(const EifKernel *k)
{
    uint64_t loaded = LOAD_ADDRESS + k->payload_bytes;
    uint64_t start = k->pref_address;
    uint64_t end;

    if (k->relocatable) {
        uint64_t align = k->alignment ? k->alignment : 1;

        start = MAX(start, LOAD_ADDRESS);
        if (__builtin_add_overflow(start, align - 1, &start)) {
            return UINT64_MAX;
        }
        start -= start % align;
    }
    if (__builtin_add_overflow(start, k->init_size, &end)) {
        return UINT64_MAX;
    }
    return MAX(loaded, end);
}

/* As QEMU does: at the top of what there is, on a page border. */
static uint64_t initramfs_top(const EifKernel *k, uint64_t lowmem)
{
    return MIN((uint64_t)k->initrd_max, lowmem - 1);
}

void eif_x86_places(const EifKernel *k, uint64_t initramfs_size,
                    uint64_t lowmem, EifX86Places *out)
{
    out->kernel = LOAD_ADDRESS;
    out->initramfs = (initramfs_top(k, lowmem) - initramfs_size) & ~(PAGE - 1);
}

bool eif_check_cmdline_size(const EifKernel *k, uint64_t cmdline_len,
                            EifError *err)
{
    if (cmdline_len > k->cmdline_size) {
        return eif_fail(err, EIF_ERR_CMDLINE_TOO_LONG,
                        "the command line has %" PRIu64 " bytes with all that"
                        " is added to it, the kernel takes at most %" PRIu32
                        " and would drop the rest", cmdline_len,
                        k->cmdline_size);
    }
    return true;
}

bool eif_check_placement(const EifKernel *k, uint64_t cmdline_len,
                         uint64_t initramfs_size, uint64_t lowmem,
                         EifError *err)
{
    uint64_t end = kernel_end(k);
    uint64_t top, room;

    if (!eif_check_cmdline_size(k, cmdline_len, err)) {
        return false;
    }
    if (!lowmem) {
        return true;
    }
    if (k->arch == EIF_ARCH_AARCH64) {
        return eif_arm64_check_placement(k, initramfs_size, lowmem, err);
    }
    if (end > lowmem) {
        return eif_fail(err, EIF_ERR_KERNEL_TOO_LARGE,
                        "the kernel needs memory up to address 0x%" PRIx64
                        " to start, the guest's below 4 GiB ends at 0x%"
                        PRIx64 "; give the guest more memory", end, lowmem);
    }
    if (!initramfs_size) {
        return true;
    }
    top = initramfs_top(k, lowmem);
    room = top > end ? (top - end) & ~(PAGE - 1) : 0;
    if (initramfs_size >= top ||
        ((top - initramfs_size) & ~(PAGE - 1)) < end) {
        return eif_fail(err, EIF_ERR_INITRAMFS_TOO_LARGE,
                        "the initramfs has %" PRIu64 " bytes, but between the"
                        " kernel's end (0x%" PRIx64 ") and 0x%" PRIx64 " (%s)"
                        " there is room for %" PRIu64 "%s", initramfs_size,
                        end, top,
                        top == k->initrd_max ? "the kernel's own limit"
                                             : "the end of low memory",
                        room,
                        top == k->initrd_max ? ""
                            : "; give the guest more memory");
    }
    return true;
}
