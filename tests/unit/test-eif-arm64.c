/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of the EIF core: images for aarch64.  Which machine takes which
 * image, the header of an arm64 Image, and where its parts go in memory.  What
 * does not depend on the architecture is in test-eif.c.
 *
 * Facts: Documentation/arch/arm64/booting.rst; AWS's build of Linux writes a
 * text_offset of 2 MiB.
 */

#include <string.h>
#include <unistd.h>

#include "eif-file.h"

enum { KERNEL = 1, CMDLINE, RAMDISK, SIGNATURE, METADATA };

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

static const EifOptions all_rules = {
    .arch = EIF_ARCH_AARCH64, .now = NOW, .lowmem = 256 << 20,
};

static const char cmdline[] = "reboot=k panic=30 console=ttyS0";

/* The kernel's data begin at 548 + 12. */
#define IMAGE(offset) (560 + (offset))

static GByteArray *good_file(void)
{
    g_autoptr(GByteArray) kernel = arm64_image(8192);
    const Part parts[] = {
        { KERNEL, kernel->data, kernel->len },
        { CMDLINE, cmdline, strlen(cmdline) },
        { METADATA, "{}", 2 },
        { RAMDISK, "INITINIT", 8 },
        { RAMDISK, "APPLAPPLAPPL", 12 },
    };
    GByteArray *f = eif_file_build(4, parts, G_N_ELEMENTS(parts));

    put_be(f, 6, 2, EIF_FLAG_AARCH64);
    eif_file_fix_crc(f);
    return f;
}

/* The flag is in the checksum and in no PCR. */
static void test_good(void)
{
    g_autoptr(GByteArray) f = good_file();
    g_autoptr(GByteArray) kernel = arm64_image(8192);
    const Part all[] = {
        { 0, kernel->data, kernel->len }, { 0, cmdline, strlen(cmdline) },
        { 0, "INITINIT", 8 }, { 0, "APPLAPPLAPPL", 12 }, { 0 },
    };
    uint8_t pcr0[EIF_DIGEST_SIZE];
    EifMeasurements m;
    EifError err;
    EifImage image;
    EifMemfds fds;
    int fd = fd_of(f->data, f->len);

    g_assert_cmpint(judge(f, &all_rules, &m, &err), ==, EIF_OK);
    expect_pcr(pcr0, all);
    g_assert_cmpmem(m.pcr0, EIF_DIGEST_SIZE, pcr0, EIF_DIGEST_SIZE);
    g_assert_true(eif_load_memfds(fd, -1, -1, &all_rules, &fds, &image,
                                  &err));
    g_assert_cmpint(image.layout.arch, ==, EIF_ARCH_AARCH64);
    g_assert_cmpint(image.kernel.arch, ==, EIF_ARCH_AARCH64);
    g_assert_cmphex(image.kernel.text_offset, ==, 2 * MIB);
    g_assert_cmphex(image.kernel.memory, ==, 16 * MIB);
    g_assert_cmpuint(image.kernel.cmdline_size, ==, 2047);
    eif_image_clear(&image);
    eif_memfds_close(&fds);
    close(fd);
}

/* Which machine takes it; only bit 0 of the flags counts. */
static void test_arch(void)
{
    static const struct {
        EifArch machine;
        uint16_t flags;
        EifRule rule;
        const char *text;
    } cases[] = {
        { EIF_ARCH_AARCH64, 0x0001, EIF_OK, NULL },
        { EIF_ARCH_AARCH64, 0xffff, EIF_OK, NULL },
        { EIF_ARCH_ANY, 0x0001, EIF_OK, NULL },
        { EIF_ARCH_X86_64, 0x0001, EIF_ERR_BAD_ARCH,
          "for aarch64 (flags 0x0001), this machine is x86_64; run it with"
          " qemu-system-aarch64" },
        { EIF_ARCH_AARCH64, 0x0000, EIF_ERR_BAD_ARCH,
          "for x86_64 (flags 0x0000), this machine is aarch64; run it with"
          " qemu-system-x86_64" },
        { EIF_ARCH_AARCH64, 0xfffe, EIF_ERR_BAD_ARCH, "for x86_64" },
        /* The kernel has to be of the header's architecture. */
        { EIF_ARCH_ANY, 0x0000, EIF_ERR_KERNEL_NOT_BZIMAGE,
          "this is an arm64 Image, but the EIF is for x86_64" },
    };
    EifMeasurements m;
    EifError err;

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GByteArray) f = good_file();
        EifOptions opt = all_rules;

        opt.arch = cases[i].machine;
        put_be(f, 6, 2, cases[i].flags);
        eif_file_fix_crc(f);
        g_assert_cmpstr(eif_rule_name(judge(f, &opt, &m, &err)), ==,
                        eif_rule_name(cases[i].rule));
        if (cases[i].text && !strstr(err.text, cases[i].text)) {
            g_error("\"%s\" does not say \"%s\"", err.text, cases[i].text);
        }
    }
}

/* One field of the Image's header changed; numbers there are little-endian. */
static void test_header(void)
{
    static const struct {
        size_t offset;
        unsigned width;
        uint64_t value;         /* big-endian, as put_be() writes it */
        EifRule rule;
        const char *text;
    } cases[] = {
        { 56, 1, 'a', EIF_ERR_KERNEL_NOT_IMAGE, "61524d64 at 56 instead of" },
        { 59, 1, 0x65, EIF_ERR_KERNEL_NOT_IMAGE, "41524d65" },
        /* flags, reserved words and the code may be anything */
        { 0, 8, 0, EIF_OK, NULL },
        { 24, 8, UINT64_MAX, EIF_OK, NULL },
        { 32, 8, UINT64_MAX, EIF_OK, NULL },
        { 60, 4, UINT32_MAX, EIF_OK, NULL },
        /* text_offset: 0, 0x80000 (Linux 4.14), 4 KiB, and what is wrong */
        { 8, 8, 0, EIF_OK, NULL },
        { 8, 8, 0x0000080000000000, EIF_OK, NULL },
        { 8, 8, 0x0010000000000000, EIF_OK, NULL },
        { 8, 8, 0x0100000000000000, EIF_ERR_KERNEL_TEXT_OFFSET,
          "text_offset is 0x1, no multiple of 4 KiB; 0x200000 is usual" },
        { 8, 8, 0x0008200000000000, EIF_ERR_KERNEL_TEXT_OFFSET, "0x200800" },
        /* It may lie far off, if only there is so much memory. */
        { 8, 8, 0x0000000e00000000, EIF_OK, NULL },
        { 8, 8, 0x0010e00e00000000, EIF_ERR_KERNEL_TOO_LARGE,
          "up to 0xfe01000" },
        { 8, 8, 0x00f0ffffffffffff, EIF_ERR_KERNEL_TOO_LARGE,
          "up to 0xffffffffffffffff from its start (text_offset"
          " 0xfffffffffffff000)" },
        /* image_size */
        { 16, 8, 0, EIF_ERR_KERNEL_IMAGE_SIZE, "image_size is 0" },
        { 16, 8, 0x0100000000000000, EIF_OK, NULL },    /* the file has more */
        { 16, 8, UINT64_MAX, EIF_ERR_KERNEL_TOO_LARGE, "give the guest more" },
        { 16, 8, 0x0000bc0f00000000, EIF_OK, NULL },
        { 16, 8, 0x0000c00f00000000, EIF_ERR_INITRAMFS_TOO_LARGE,
          "between the kernel's end (0xfe00000) and the device tree"
          " (0xfe00000) there is room for 0" },
        { 16, 8, 0x0100c00f00000000, EIF_ERR_KERNEL_TOO_LARGE,
          "the guest's ends at 0xfe00000 with room for a device tree" },
    };
    EifMeasurements m;
    EifError err;

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GByteArray) f = good_file();

        put_be(f, IMAGE(cases[i].offset), cases[i].width, cases[i].value);
        eif_file_fix_crc(f);
        g_assert_cmpstr(eif_rule_name(judge(f, &all_rules, &m, &err)), ==,
                        eif_rule_name(cases[i].rule));
        if (cases[i].text && !strstr(err.text, cases[i].text)) {
            g_error("\"%s\" does not say \"%s\"", err.text, cases[i].text);
        }
    }
}

/* What people take for an Image. */
static void test_other_kernels(void)
{
    g_autoptr(GByteArray) bz = bzimage(4096);
    static const uint8_t elf[64] = "\177ELF", gzip[64] = "\x1f\x8b\x08";
    static const uint8_t zboot[64] = "MZ\0\0zimg";
    const struct {
        const uint8_t *data;
        size_t len;
        const char *text;
    } cases[] = {
        { bz->data, bz->len, "this is an x86 bzImage, but the EIF is for" },
        { elf, 64, "use arch/arm64/boot/Image" },
        { gzip, 64, "like Image.gz" },
        { zboot, 64, "EFI zboot" },
        { elf, 63, "has 63 bytes, the header of an arm64 Image alone has 64" },
        { elf, 0, "has 0 bytes" },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree uint8_t *copy = g_memdup2(cases[i].data, cases[i].len);
        EifKernel k;
        EifError err;

        g_assert_false(eif_check_kernel(EIF_ARCH_AARCH64, copy, cases[i].len,
                                        cases[i].len, &k, &err));
        g_assert_cmpint(err.rule, ==, EIF_ERR_KERNEL_NOT_IMAGE);
        g_assert_nonnull(strstr(err.text, cases[i].text));
    }
}

/* Of a kernel of 16 MiB. */
static void test_places(void)
{
    static const struct {
        uint64_t text_offset, initramfs, memory;
        uint64_t kernel, at, dtb;
        EifRule rule;
    } cases[] = {
        { 2 * MIB, 5, 64 * MIB, 2 * MIB, 62 * MIB - 4096, 62 * MIB, EIF_OK },
        { 2 * MIB, 4096, 64 * MIB, 2 * MIB, 62 * MIB - 4096, 62 * MIB,
          EIF_OK },
        { 2 * MIB, 4097, 64 * MIB, 2 * MIB, 62 * MIB - 8192, 62 * MIB,
          EIF_OK },
        { 0, 0, 64 * MIB, 2 * MIB, 62 * MIB, 62 * MIB, EIF_OK },
        { 0x80000, 0, 64 * MIB, 0x80000, 62 * MIB, 62 * MIB, EIF_OK },
        /* The device tree begins at a multiple of its size. */
        { 2 * MIB, 1, 64 * MIB + 4096, 2 * MIB, 62 * MIB - 4096, 62 * MIB,
          EIF_OK },
        /* All in one window of 32 GiB */
        { 2 * MIB, 1, 100 * GIB, 2 * MIB, 32 * GIB - 2 * MIB - 4096,
          32 * GIB - 2 * MIB, EIF_OK },
        /* Kernel to 18 MiB, device tree from there. */
        { 2 * MIB, 0, 20 * MIB, 2 * MIB, 18 * MIB, 18 * MIB, EIF_OK },
        { 2 * MIB, 1, 20 * MIB, .rule = EIF_ERR_INITRAMFS_TOO_LARGE },
        { 2 * MIB, 0, 20 * MIB - 1, .rule = EIF_ERR_KERNEL_TOO_LARGE },
        { 2 * MIB, 0, 1, .rule = EIF_ERR_KERNEL_TOO_LARGE },
        { 2 * MIB, 2 * MIB, 22 * MIB, 2 * MIB, 18 * MIB, 20 * MIB, EIF_OK },
        { 2 * MIB, 2 * MIB + 1, 22 * MIB,
          .rule = EIF_ERR_INITRAMFS_TOO_LARGE },
        { 2 * MIB, UINT64_MAX, 22 * MIB,
          .rule = EIF_ERR_INITRAMFS_TOO_LARGE },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        const EifKernel k = {
            .arch = EIF_ARCH_AARCH64,
            .cmdline_size = 2047,
            .text_offset = cases[i].text_offset,
            .memory = 16 * MIB,
        };
        EifArm64Places places;
        EifError err = { EIF_OK, "" };

        g_assert_cmpint(eif_check_placement(&k, 2047, cases[i].initramfs,
                                            cases[i].memory, &err),
                        ==, cases[i].rule == EIF_OK);
        g_assert_cmpstr(eif_rule_name(err.rule), ==,
                        eif_rule_name(cases[i].rule));
        if (cases[i].rule != EIF_OK) {
            continue;
        }
        eif_arm64_places(&k, cases[i].initramfs, cases[i].memory, &places);
        g_assert_cmphex(places.kernel, ==, cases[i].kernel);
        g_assert_cmphex(places.initramfs, ==, cases[i].at);
        g_assert_cmphex(places.dtb, ==, cases[i].dtb);
    }
}

static void test_cmdline(void)
{
    const EifKernel k = {
        .arch = EIF_ARCH_AARCH64, .cmdline_size = 2047, .memory = MIB,
    };
    EifError err;

    g_assert_true(eif_check_placement(&k, 2047, UINT64_MAX, 0, &err));
    g_assert_false(eif_check_placement(&k, 2048, 0, 64 * MIB, &err));
    g_assert_cmpint(err.rule, ==, EIF_ERR_CMDLINE_TOO_LONG);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/eif/arm64/good", test_good);
    g_test_add_func("/eif/arm64/arch", test_arch);
    g_test_add_func("/eif/arm64/header", test_header);
    g_test_add_func("/eif/arm64/other-kernels", test_other_kernels);
    g_test_add_func("/eif/arm64/places", test_places);
    g_test_add_func("/eif/arm64/cmdline", test_cmdline);
    return g_test_run();
}
