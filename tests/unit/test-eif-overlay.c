/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of the EIF core: what runs that no PCR has.  Overlays as they
 * should be and as they should not, in pieces of every size; where they end in
 * the initramfs, and that no PCR knows; command lines that name another init.
 *
 * The archives are written here by the format's description (Linux,
 * Documentation/driver-api/early-userspace/buffer-format.rst); that a real
 * Linux unpacks such ones is a boot test's subject.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "eif-file.h"
#include "../../hw/core/eif/eif-overlay.h"

enum { KERNEL = 1, CMDLINE, RAMDISK, SIGNATURE, METADATA };

#define HEADER 110

/* ---- Archives ---- */

static void pad(GByteArray *a, unsigned to)
{
    while (a->len % to) {
        g_byte_array_append(a, (const uint8_t *)"", 1);
    }
}

static void entry(GByteArray *a, const char *name, size_t name_size,
                  const void *data, size_t size)
{
    g_autofree char *header = g_strdup_printf(
        "070701%08X%08X%08X%08X%08X%08X%08zX%08X%08X%08X%08X%08zx%08X",
        1, 0100644, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0);

    g_assert_cmpuint(strlen(header), ==, HEADER);
    g_byte_array_append(a, (const uint8_t *)header, HEADER);
    g_byte_array_append(a, (const uint8_t *)name, name_size);
    pad(a, 4);
    g_byte_array_append(a, data, size);
    pad(a, 4);
}

static void trailer(GByteArray *a)
{
    entry(a, "TRAILER!!!", 11, "", 0);
}

static GByteArray *archive(void)
{
    GByteArray *a = g_byte_array_new();

    entry(a, "a", 2, "", 0);
    entry(a, "rootfs/etc/greeting", 20, "Hello!", 6);
    /* What looks like a trailer, and is content or another name. */
    entry(a, "TRAILER!!", 10, "TRAILER!!!", 11);
    entry(a, "TRAILER!!!!", 12, "070701", 6);
    trailer(a);
    return a;
}

static bool check(const GByteArray *a, size_t piece, EifError *err)
{
    EifOverlay o = { 0 };

    for (size_t at = 0; at < a->len; at += piece) {
        if (!eif_overlay_feed(&o, a->data + at, MIN(piece, a->len - at),
                              err)) {
            return false;
        }
    }
    return eif_overlay_end(&o, err);
}

static const size_t pieces[] = { 1, 3, 7, 110, 111, 4096 };

static void expect_good(const GByteArray *a)
{
    for (size_t i = 0; i < G_N_ELEMENTS(pieces); i++) {
        EifError err = { 0 };

        if (!check(a, pieces[i], &err)) {
            g_error("pieces of %zu: %s", pieces[i], err.text);
        }
    }
}

/* One verdict, however the bytes come. */
static void expect_bad(const GByteArray *a, EifRule rule, const char *text)
{
    for (size_t i = 0; i < G_N_ELEMENTS(pieces); i++) {
        EifError err = { 0 };

        g_assert_false(check(a, pieces[i], &err));
        if (err.rule != rule || !strstr(err.text, text)) {
            g_error("pieces of %zu: %s: %s, not: %s", pieces[i],
                    eif_rule_name(err.rule), err.text, text);
        }
    }
}

static void test_good(void)
{
    g_autoptr(GByteArray) a = archive();
    g_autoptr(GByteArray) empty = g_byte_array_new();

    expect_good(a);
    /* As GNU cpio pads it, and another behind it. */
    pad(a, 512);
    expect_good(a);
    trailer(a);
    expect_good(a);
    /* Zeros first, too. */
    g_byte_array_prepend(a, (const uint8_t *)"\0\0\0\0", 4);
    expect_good(a);
    trailer(empty);
    expect_good(empty);
}

typedef struct Damage {
    size_t at;
    const char *bytes;
    EifRule rule;
    const char *text;
} Damage;

/* To archive(). Fields: 6 and 8 times their number. */
static const Damage damages[] = {
    { 0, "\x1f\x8b\b", EIF_ERR_OVERLAY_NOT_CPIO, "1f8b0837: this is gzip" },
    { 0, "\x28\xb5\x2f\xfd", EIF_ERR_OVERLAY_NOT_CPIO, "this is zstd" },
    { 0, "\xfd" "7zXZ", EIF_ERR_OVERLAY_NOT_CPIO, "this is xz" },
    { 0, "070702", EIF_ERR_OVERLAY_NOT_CPIO, "another kind of cpio" },
    { 0, "070707", EIF_ERR_OVERLAY_NOT_CPIO, "another kind of cpio" },
    { 0, "\xc7\x71", EIF_ERR_OVERLAY_NOT_CPIO, "another kind of cpio" },
    { 0, "\177ELF", EIF_ERR_OVERLAY_NOT_CPIO, "this is an ELF file" },
    { 0, "PK", EIF_ERR_OVERLAY_NOT_CPIO, "cpio -o -H newc" },
    { 6 + 8 * 3, "x", EIF_ERR_OVERLAY_NOT_CPIO, "none in field 4" },
    { 6 + 8 * 11, "00000000", EIF_ERR_OVERLAY_NOT_CPIO, "a name of 0 bytes" },
    { 6 + 8 * 11, "00001001", EIF_ERR_OVERLAY_NOT_CPIO, "of 4097 bytes" },
    { 6 + 8 * 11, "ffffffff", EIF_ERR_OVERLAY_NOT_CPIO, "of 4294967295" },
    { 6 + 8 * 6, "FFFFFFFF", EIF_ERR_OVERLAY_NOT_CPIO, "was cut" },
    { 111, "b", EIF_ERR_OVERLAY_NOT_CPIO, "does not end with a NUL" },
    { 112, "070703", EIF_ERR_OVERLAY_NOT_CPIO, "at offset 112, but 30373037" },
};

static void test_bad(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(damages); i++) {
        g_autoptr(GByteArray) a = archive();
        const Damage *d = &damages[i];

        memcpy(a->data + d->at, d->bytes, strlen(d->bytes));
        expect_bad(a, d->rule, d->text);
    }
}

/* Cut anywhere it is refused, and never read beyond its end. */
static void test_cut(void)
{
    g_autoptr(GByteArray) whole = archive();

    for (unsigned len = 0; len < whole->len; len++) {
        g_autoptr(GByteArray) a = g_byte_array_new();

        g_byte_array_append(a, whole->data, len);
        if (len == 0) {
            expect_bad(a, EIF_ERR_OVERLAY_NOT_CPIO, "no cpio archive in its 0");
        } else if (len % 4) {
            expect_bad(a, EIF_ERR_OVERLAY_MISALIGNED, "no multiple of 4");
        } else {
            expect_bad(a, EIF_ERR_OVERLAY_NOT_CPIO, "was cut");
        }
    }
}

static void test_misaligned(void)
{
    g_autoptr(GByteArray) a = archive();
    g_autoptr(GByteArray) zeros = g_byte_array_new();
    unsigned end = a->len;
    g_autofree char *at = g_strdup_printf("at offset %u does not begin",
                                          end + 2);

    g_byte_array_append(a, (const uint8_t *)"\0\0", 2);
    trailer(a);
    expect_bad(a, EIF_ERR_OVERLAY_MISALIGNED, at);
    g_byte_array_append(zeros, (const uint8_t *)"\0\0\0\0\0\0\0\0", 8);
    expect_bad(zeros, EIF_ERR_OVERLAY_NOT_CPIO, "no cpio archive in its 8");
}

/* ---- In an image ---- */

#define INITRD "MORE!"

/* Behind all else, at a multiple of 4; the PCRs are as without it. */
static void test_load(gconstpointer with_initrd)
{
    const EifOptions rules = { .now = NOW, .file_rules_only = true };
    const Part parts[] = {
        { KERNEL, "KKKK", 4 }, { CMDLINE, "c", 1 }, { RAMDISK, "INITI", 5 },
        { RAMDISK, "APP", 3 }, { METADATA, "{}", 2 }, { RAMDISK, "x", 1 },
    };
    g_autoptr(GByteArray) f = eif_file_build(4, parts, 6);
    g_autoptr(GByteArray) a = archive();
    g_autoptr(GByteArray) wanted = g_byte_array_new();
    g_autofree uint8_t *buf = NULL;
    EifImage without, with;
    EifMemfds without_fds, with_fds;
    EifError err;
    int fd = fd_of(f->data, f->len);
    int initrd = with_initrd ? fd_of(INITRD, 5) : -1;
    int overlay = fd_of(a->data, a->len);

    g_byte_array_append(wanted, (const uint8_t *)"INITIAPPx", 9);
    if (with_initrd) {
        pad(wanted, 4);
        g_byte_array_append(wanted, (const uint8_t *)INITRD, 5);
    }
    pad(wanted, 4);
    g_byte_array_append(wanted, a->data, a->len);

    g_assert_true(eif_load_memfds(fd, initrd, -1, &rules, &without_fds,
                                  &without, &err));
    if (!eif_load_memfds(fd, initrd, overlay, &rules, &with_fds, &with, &err)) {
        g_error("%s", err.text);
    }
    g_assert_cmpuint(with.initramfs_size, ==, wanted->len);
    buf = g_malloc(wanted->len + 1);
    g_assert_cmpint(pread(with_fds.initramfs, buf, wanted->len + 1, 0), ==,
                    wanted->len);
    g_assert_cmpmem(buf, wanted->len, wanted->data, wanted->len);
    g_assert_cmpint(pwrite(with_fds.initramfs, "x", 1, 0), ==, -1);
    g_assert_cmpint(errno, ==, EPERM);
    g_assert_cmpmem(&with.pcr, sizeof(with.pcr), &without.pcr,
                    sizeof(without.pcr));
    eif_image_clear(&with);
    eif_memfds_close(&with_fds);
    eif_image_clear(&without);
    eif_memfds_close(&without_fds);
    close(fd);
    if (with_initrd) {
        close(initrd);
    }
    close(overlay);
}

/* An image without any ramdisk may have one. */
static void test_load_alone(void)
{
    const EifOptions rules = { .now = NOW, .file_rules_only = true };
    const Part parts[] = { { KERNEL, "KKKK", 4 }, { CMDLINE, "c", 1 } };
    g_autoptr(GByteArray) f = eif_file_build(3, parts, 2);
    g_autoptr(GByteArray) a = archive();
    EifImage image;
    EifMemfds fds;
    EifError err;
    int fd = fd_of(f->data, f->len), overlay = fd_of(a->data, a->len);

    g_assert_true(eif_load_memfds(fd, -1, overlay, &rules, &fds, &image, &err));
    g_assert_cmpuint(image.initramfs_size, ==, a->len);
    eif_image_clear(&image);
    eif_memfds_close(&fds);
    close(overlay);

    overlay = fd_of("", 0);
    g_assert_false(eif_load_memfds(fd, -1, overlay, &rules, &fds,
                                   &image, &err));
    g_assert_cmpint(err.rule, ==, EIF_ERR_OVERLAY_NOT_CPIO);
    close(overlay);
    close(fd);
}

/*
 * What the image leaves of the memory is the overlay's, and not a byte more.
 * bzimage() needs 16 MiB from 16 MiB on; QEMU leaves the last byte of low
 * memory free.
 */
static void test_too_large(void)
{
    g_autoptr(GByteArray) kernel = bzimage(8192);
    const Part parts[] = {
        { KERNEL, kernel->data, kernel->len }, { CMDLINE, "c", 1 },
        { RAMDISK, "INIT", 4 },
    };
    g_autoptr(GByteArray) f = eif_file_build(3, parts, 3);
    const uint64_t room = 1 << 20;
    EifOptions opt = { .now = NOW, .lowmem = (32 << 20) + room };
    int fd = fd_of(f->data, f->len);
    EifImage image;
    EifMemfds fds;
    EifError err;

    for (int over = 0; over < 2; over++) {
        g_autoptr(GByteArray) a = archive();
        uint64_t size = room - 8 + 4 * over, before = a->len;
        int overlay;

        g_byte_array_set_size(a, size);
        memset(a->data + before, 0, size - before);
        overlay = fd_of(a->data, size);
        if (over) {
            g_assert_false(eif_load_memfds(fd, -1, overlay, &opt, &fds,
                                           &image, &err));
            g_assert_cmpstr(eif_rule_name(err.rule), ==, "overlay-too-large");
            g_assert_nonnull(strstr(err.text, "it has 1048572 bytes"));
            g_assert_nonnull(strstr(err.text, "give the guest more memory"));
        } else {
            if (!eif_load_memfds(fd, -1, overlay, &opt, &fds, &image, &err)) {
                g_error("%s", err.text);
            }
            eif_image_clear(&image);
            eif_memfds_close(&fds);
        }
        close(overlay);
    }
    /* Without a byte of it being read: holes would be no archive. */
    for (int i = 0; i < 2; i++) {
        int overlay = fd_of("", 0);

        g_assert_cmpint(ftruncate(overlay, i ? 1LL << 40 : 1LL << 32), ==, 0);
        opt.lowmem = i ? 1 << 30 : 0;
        g_assert_false(eif_load_memfds(fd, -1, overlay, &opt, &fds,
                                       &image, &err));
        g_assert_cmpstr(eif_rule_name(err.rule), ==, "overlay-too-large");
        g_assert_nonnull(strstr(err.text, i ? "guest's memory below 4 GiB" :
                                "boot protocol's limit"));
        close(overlay);
    }
    close(fd);
}

/* ---- Command lines ---- */

static void test_cmdline(void)
{
    /* What parse_args() of Linux would take for one, or almost. */
    static const char *const named[] = {
        "init=/bin/sh", "rdinit=/x", "quiet rdinit=/x", "quiet\trdinit=",
        "\"rdinit=/x y\"", "a=\" rdinit=/x", "x\"init=/y", "-- init=/x",
        "a\nrdinit=/x", "a\xa0rdinit=/x", "a\v\"rdinit=/x\"",
    };
    static const char *const others[] = {
        "", "quiet", "init", "rdinit", "systemd.init=/x", "noinit=1",
        "xrdinit=/x", "a=init=/x", "initcall_debug", "init_on_alloc=1",
        "rdinit /x", "init:=", "in it=",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(named); i++) {
        g_test_message("%s", named[i]);
        g_assert_true(eif_cmdline_names_init(named[i]));
    }
    for (size_t i = 0; i < G_N_ELEMENTS(others); i++) {
        g_test_message("%s", others[i]);
        g_assert_false(eif_cmdline_names_init(others[i]));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/eif-overlay/good", test_good);
    g_test_add_func("/eif-overlay/bad", test_bad);
    g_test_add_func("/eif-overlay/cut", test_cut);
    g_test_add_func("/eif-overlay/misaligned", test_misaligned);
    g_test_add_data_func("/eif-overlay/load", NULL, test_load);
    g_test_add_data_func("/eif-overlay/load/initrd", "", test_load);
    g_test_add_func("/eif-overlay/load/alone", test_load_alone);
    g_test_add_func("/eif-overlay/too-large", test_too_large);
    g_test_add_func("/eif-overlay/cmdline", test_cmdline);

    return g_test_run();
}
