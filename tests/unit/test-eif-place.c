/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of the EIF core: the loader, into memory of the caller's.  What
 * lies there, what around it stays as it was, and who is asked for a place.
 * Files, failures of reading and memfds are test-eif-load.c's.
 */

#include <string.h>
#include <unistd.h>

#include "eif-file.h"

enum { KERNEL = 1, CMDLINE, RAMDISK, SIGNATURE, METADATA };

#define KERNEL_SIZE     70001
#define MARK            0xee

/* A place for each part, between bytes that nobody may touch. */
typedef struct Memory {
    uint8_t setup[8192];
    uint8_t kernel[KERNEL_SIZE + 16];
    uint8_t initramfs[256];
    unsigned asked;
    bool full;
    EifKernel seen;
} Memory;

static bool place(void *opaque, const EifImage *image, EifPlaces *places,
                  EifError *err)
{
    Memory *m = opaque;

    m->asked++;
    m->seen = image->kernel;
    if (m->full) {
        err->rule = EIF_ERR_IO;
        strcpy(err->text, "there is no room for that in this test");
        return false;
    }
    memset(m->setup, MARK, sizeof(m->setup));
    memset(m->kernel, MARK, sizeof(m->kernel));
    memset(m->initramfs, MARK, sizeof(m->initramfs));
    places->setup = m->setup + 8;
    places->kernel = m->kernel + 8;
    places->initramfs = image->initramfs_size ? m->initramfs + 8 : NULL;
    return true;
}

static void assert_place(const uint8_t *p, const void *data, size_t size)
{
    g_assert_cmpint(p[7], ==, MARK);
    g_assert_true(memcmp(p + 8, data, size) == 0);
    g_assert_cmpint(p[8 + size], ==, MARK);
}

static bool load(const GByteArray *f, const char *initrd, const char *overlay,
                 const EifOptions *opt, Memory *m, EifImage *image,
                 EifError *err)
{
    const EifMemory memory = { .place = place, .opaque = m };
    int fd = fd_of(f->data, f->len);
    int initrd_fd = initrd ? fd_of(initrd, strlen(initrd)) : -1;
    int overlay_fd = overlay ? fd_of(overlay, strlen(overlay)) : -1;
    bool ok;

    ok = eif_load(fd, initrd_fd, overlay_fd, opt, &memory, image, err);
    close(fd);
    if (initrd) {
        close(initrd_fd);
    }
    if (overlay) {
        close(overlay_fd);
    }
    return ok;
}

static const EifOptions x86 = { .arch = EIF_ARCH_X86_64, .now = NOW,
                                .lowmem = 64 << 20 };

/* The kernel in two, whatever comes before it and behind. */
static void test_x86(gconstpointer cmdline_first)
{
    g_autoptr(GByteArray) k = bzimage(KERNEL_SIZE);
    const Part kernel = { KERNEL, k->data, k->len };
    const Part cmdline = { CMDLINE, "quiet", 5 };
    const Part parts[] = {
        cmdline_first ? cmdline : kernel, cmdline_first ? kernel : cmdline,
        { METADATA, "{}", 2 }, { RAMDISK, "INITI", 5 },
        { RAMDISK, "APPLI", 5 },
    };
    const Part measured[] = { parts[0], parts[1], parts[3], parts[4],
                              { RAMDISK, "MORE", 4 }, { 0 } };
    g_autoptr(GByteArray) f = eif_file_build(4, parts, 5);
    g_autofree Memory *m = g_new0(Memory, 1);
    uint8_t pcr[EIF_DIGEST_SIZE];
    uint32_t setup = (k->data[0x1f1] + 1) * 512;
    EifX86Places places;
    EifImage image;
    EifError err;

    if (!load(f, "MORE", NULL, &x86, m, &image, &err)) {
        g_error("%s", err.text);
    }
    g_assert_cmpuint(m->asked, ==, 1);
    g_assert_cmpuint(m->seen.setup_bytes, ==, setup);
    assert_place(m->setup, k->data, setup);
    assert_place(m->kernel, k->data + setup, k->len - setup);
    /* The added one begins at a multiple of 4, behind zeros. */
    assert_place(m->initramfs, "INITIAPPLI\0\0MORE", 16);
    g_assert_cmpstr(image.cmdline, ==, "quiet");
    expect_pcr(pcr, measured);
    g_assert_cmpmem(image.pcr.pcr0, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);

    /* At the top of memory less a byte, on a page border: as QEMU does it. */
    eif_x86_places(&image.kernel, image.initramfs_size, x86.lowmem, &places);
    g_assert_cmphex(places.kernel, ==, 0x100000);
    g_assert_cmphex(places.initramfs, ==, (64 << 20) - 4096);
    eif_x86_places(&image.kernel, 4096, x86.lowmem, &places);
    g_assert_cmphex(places.initramfs, ==, (64 << 20) - 2 * 4096);
    eif_image_clear(&image);
}

/* An arm64 kernel is one piece. */
static void test_arm64(void)
{
    g_autoptr(GByteArray) k = arm64_image(KERNEL_SIZE);
    const Part parts[] = {
        { KERNEL, k->data, k->len }, { CMDLINE, "quiet", 5 },
    };
    const EifOptions opt = { .arch = EIF_ARCH_AARCH64, .now = NOW,
                             .lowmem = 64 << 20 };
    g_autoptr(GByteArray) f = eif_file_build(3, parts, 2);
    g_autofree Memory *m = g_new0(Memory, 1);
    EifImage image;
    EifError err;

    put_be(f, 6, 2, EIF_FLAG_AARCH64);
    eif_file_fix_crc(f);
    if (!load(f, NULL, NULL, &opt, m, &image, &err)) {
        g_error("%s", err.text);
    }
    g_assert_cmpuint(m->seen.setup_bytes, ==, 0);
    assert_place(m->kernel, k->data, k->len);
    g_assert_cmpint(m->setup[8], ==, MARK);
    g_assert_cmpint(m->initramfs[8], ==, MARK);
    eif_image_clear(&image);
}

/* What will not boot gets no place, and is refused for its first fault. */
static void test_no_place(void)
{
    g_autoptr(GByteArray) k = bzimage(KERNEL_SIZE);
    const Part parts[] = {
        { KERNEL, k->data, k->len }, { CMDLINE, "quiet", 5 },
        { RAMDISK, "INIT", 4 },
    };
    g_autofree Memory *m = g_new0(Memory, 1);
    g_autoptr(GByteArray) good = eif_file_build(3, parts, 3);
    g_autoptr(GByteArray) bad = NULL;
    EifOptions small = x86;
    EifImage image;
    EifError err;

    small.lowmem = 8 << 20;
    g_assert_false(load(good, NULL, NULL, &small, m, &image, &err));
    g_assert_cmpstr(eif_rule_name(err.rule), ==, "kernel-too-large");
    /* An overlay that is none comes before that. */
    g_assert_false(load(good, NULL, "none", &small, m, &image, &err));
    g_assert_cmpstr(eif_rule_name(err.rule), ==, "overlay-not-cpio");
    k->data[0x202] = 'h';
    bad = eif_file_build(3, parts, 3);
    g_assert_false(load(bad, NULL, NULL, &x86, m, &image, &err));
    g_assert_cmpstr(eif_rule_name(err.rule), ==, "kernel-not-bzimage");
    bad->data[bad->len - 1] ^= 1;
    g_assert_false(load(bad, NULL, NULL, &x86, m, &image, &err));
    g_assert_cmpstr(eif_rule_name(err.rule), ==, "crc-mismatch");
    g_assert_cmpuint(m->asked, ==, 0);

    m->full = true;
    g_assert_false(load(good, NULL, NULL, &x86, m, &image, &err));
    g_assert_cmpstr(err.text, ==, "there is no room for that in this test");
    g_assert_null(image.cmdline);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/eif-place/x86", NULL, test_x86);
    g_test_add_data_func("/eif-place/x86-cmdline-first", "", test_x86);
    g_test_add_func("/eif-place/arm64", test_arm64);
    g_test_add_func("/eif-place/no-place", test_no_place);
    return g_test_run();
}
