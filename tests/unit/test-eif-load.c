/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of the EIF core: the loader.  What ends in the memfds, an added
 * initrd, reading and its failures (pread() is wrapped at link time), sizes
 * that must be refused before anything is allocated.
 *
 * Long because all of it stands on the wrapped pread() and one set of files.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eif-file.h"

enum { KERNEL = 1, CMDLINE, RAMDISK, SIGNATURE, METADATA };

static const EifOptions file_rules = { .now = NOW, .file_rules_only = true };

/* ---- pread(), as the test wants it ---- */

static struct {
    int fd;                     /* the one that is watched */
    uint8_t *seen;              /* times each byte of it was read */
    size_t size;
    unsigned calls;
    size_t most;                /* bytes per call; 0: as asked */
    uint64_t end;               /* fail from here on */
    int error;                  /* with this errno; 0: end of file */
    bool interrupt;             /* EINTR at every other call */
} feed;

ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset)
{
    ssize_t n;

    if (fd != feed.fd) {
        return __real_pread64(fd, buf, len, offset);
    }
    if (feed.interrupt && feed.calls++ % 2 == 0) {
        errno = EINTR;
        return -1;
    }
    feed.calls++;
    if (feed.most) {
        len = MIN(len, feed.most);
    }
    if ((uint64_t)offset + len > feed.end) {
        len = (uint64_t)offset < feed.end ? feed.end - offset : 0;
        if (len == 0) {
            errno = feed.error;
            return feed.error ? -1 : 0;
        }
    }
    n = __real_pread64(fd, buf, len, offset);
    for (ssize_t i = 0; i < n; i++) {
        g_assert_cmpuint(offset + i, <, feed.size);
        feed.seen[offset + i]++;
    }
    return n;
}

static void watch(int fd, size_t size)
{
    g_free(feed.seen);
    memset(&feed, 0, sizeof(feed));
    feed.fd = fd;
    feed.seen = g_malloc0(size + 1);
    feed.size = size;
    feed.end = UINT64_MAX;
}

static void unwatch(void)
{
    g_clear_pointer(&feed.seen, g_free);
    feed.fd = -1;
}

/* ---- Content ---- */

/* Bytes that repeat at no power of two. */
static uint8_t *filler(size_t size, unsigned seed)
{
    uint8_t *p = g_malloc(size + 1);
    uint32_t x = seed * 2654435761u + 1;

    for (size_t i = 0; i < size; i++) {
        x = x * 1664525u + 1013904223u;
        p[i] = x >> 24 ? x >> 24 : 1;
    }
    return p;
}

static void assert_memfd(int fd, const void *data, size_t size)
{
    g_autofree uint8_t *buf = g_malloc(size + 1);
    struct stat st;

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(fstat(fd, &st), ==, 0);
    g_assert_cmpuint(st.st_size, ==, size);
    g_assert_cmpint(pread(fd, buf, size + 1, 0), ==, (ssize_t)size);
    g_assert_true(memcmp(buf, data, size) == 0);
    /* Sealed: nobody can change what was measured. */
    g_assert_cmpint(pwrite(fd, "x", 1, 0), ==, -1);
    g_assert_cmpint(errno, ==, EPERM);
    g_assert_cmpint(ftruncate(fd, size + 1), ==, -1);
    g_assert_cmpint(errno, ==, EPERM);
    if (size) {
        g_assert_cmpint(ftruncate(fd, size - 1), ==, -1);
        g_assert_cmpint(errno, ==, EPERM);
    }
    g_assert_true(mmap(NULL, 1, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
    g_assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
}

typedef struct Sizes {
    const char *name;
    size_t kernel;
    size_t cmdline;
    int n_ramdisks;
    size_t ramdisk[3];
    size_t initrd;              /* 0: none */
} Sizes;

/* 256 KiB is the reader's buffer, 1 MiB what a lane hashes at once. */
#define KIB ((size_t)1024)
static const Sizes sizes[] = {
    { "no-ramdisk", 1000, 10, 0, { 0 }, 0 },
    { "one", 1000, 10, 1, { 5000 }, 0 },
    { "two", 1000, 10, 2, { 5000, 7001 }, 0 },
    { "three", 1000, 10, 3, { 5000, 7001, 3 }, 0 },
    { "empty-parts", 0, 0, 3, { 0, 0, 0 }, 0 },
    { "empty-first", 7, 1, 2, { 0, 9 }, 0 },
    { "empty-second", 7, 1, 3, { 9, 0, 5 }, 0 },
    { "buffer-exactly", 256 * KIB, 256, 2, { 256 * KIB, 512 * KIB }, 0 },
    { "buffer-and-one", 256 * KIB + 1, 256, 2,
      { 256 * KIB + 1, 512 * KIB - 1 }, 0 },
    { "several-lanes", 3000 * KIB + 17, 2000, 2,
      { 5000 * KIB + 3, 6000 * KIB + 5 }, 0 },
    { "initrd-none-before", 1000, 10, 0, { 0 }, 4099 },
    { "initrd-pad-0", 1000, 10, 1, { 5000 }, 4099 },
    { "initrd-pad-1", 1000, 10, 1, { 5003 }, 4099 },
    { "initrd-pad-2", 1000, 10, 2, { 5001, 1 }, 4099 },
    { "initrd-pad-3", 1000, 10, 2, { 5000, 7001 }, 4099 },
    { "initrd-after-empty", 1000, 10, 1, { 0 }, 1 },
    { "initrd-large", 1000 * KIB, 10, 2, { 2000 * KIB, 1 },
      3000 * KIB + 1 },
};

/* What a file is made of, and what the loader has to make of it. */
typedef struct Content {
    Part parts[8];              /* the file */
    Part all[8];                /* what PCR0, */
    Part boot[4];               /* PCR1 */
    Part app[4];                /* and PCR2 are of */
    GByteArray *initramfs;
    uint8_t *initrd;
} Content;

static void content_init(Content *c, const Sizes *sizes)
{
    unsigned n_app = 0;

    *c = (Content) {
        .parts = {
            { KERNEL, filler(sizes->kernel, 1), sizes->kernel },
            { CMDLINE, filler(sizes->cmdline, 2), sizes->cmdline },
            { METADATA, "{}", 2 },
        },
        .initramfs = g_byte_array_new(),
        .initrd = filler(sizes->initrd, 3),
    };
    c->all[0] = c->boot[0] = c->parts[0];
    c->all[1] = c->boot[1] = c->parts[1];
    for (int i = 0; i < sizes->n_ramdisks; i++) {
        Part p = { RAMDISK, filler(sizes->ramdisk[i], 10 + i),
                   sizes->ramdisk[i] };

        c->parts[3 + i] = c->all[2 + i] = p;
        if (i == 0) {
            c->boot[2] = p;
        } else {
            c->app[n_app++] = p;
        }
        g_byte_array_append(c->initramfs, p.data, p.size);
    }
    if (sizes->initrd) {
        Part p = { 0, c->initrd, sizes->initrd };

        c->all[2 + sizes->n_ramdisks] = c->app[n_app++] = p;
        while (c->initramfs->len % 4) {
            g_byte_array_append(c->initramfs, (const uint8_t *)"", 1);
        }
        g_byte_array_append(c->initramfs, c->initrd, sizes->initrd);
    }
}

static void content_clear(Content *c, const Sizes *sizes)
{
    g_free((void *)c->parts[0].data);
    g_free((void *)c->parts[1].data);
    for (int i = 0; i < sizes->n_ramdisks; i++) {
        g_free((void *)c->parts[3 + i].data);
    }
    g_byte_array_unref(c->initramfs);
    g_free(c->initrd);
}

/* Loads it, and sees that each byte of the file is read once. */
static void load_watched(int fd, size_t len, int initrd_fd, EifImage *image,
                         EifMemfds *fds)
{
    EifError err;

    watch(fd, len);
    if (!eif_load_memfds(fd, initrd_fd, -1, &file_rules, fds, image, &err)) {
        g_error("%s: %s", eif_rule_name(err.rule), err.text);
    }
    g_assert_cmpuint(feed.calls, >, 0);
    for (size_t i = 0; i < len; i++) {
        if (feed.seen[i] != 1) {
            g_error("byte %zu was read %u times", i, feed.seen[i]);
        }
    }
    unwatch();
}

static void check_image(const EifImage *image, const EifMemfds *fds,
                        const Content *c,
                        const Sizes *sizes)
{
    uint8_t pcr[EIF_DIGEST_SIZE];

    assert_memfd(fds->kernel, c->parts[0].data, sizes->kernel);
    g_assert_cmpuint(image->kernel_size, ==, sizes->kernel);
    g_assert_cmpuint(image->initramfs_size, ==, c->initramfs->len);
    if (c->initramfs->len) {
        assert_memfd(fds->initramfs, c->initramfs->data,
                     c->initramfs->len);
    } else {
        g_assert_cmpint(fds->initramfs, ==, -1);
    }
    g_assert_cmpmem(image->cmdline, image->cmdline_len, c->parts[1].data,
                    sizes->cmdline);
    g_assert_cmpint(image->cmdline[sizes->cmdline], ==, 0);
    g_assert_cmpuint(image->layout.n_ramdisks, ==, sizes->n_ramdisks);
    g_assert_false(image->is_signed);
    g_assert_false(image->pcr.has_pcr8);
    g_assert_cmpint(image->signature_warning.rule, ==, EIF_OK);

    expect_pcr(pcr, c->all);
    g_assert_cmpmem(image->pcr.pcr0, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);
    expect_pcr(pcr, c->boot);
    g_assert_cmpmem(image->pcr.pcr1, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);
    expect_pcr(pcr, c->app);
    g_assert_cmpmem(image->pcr.pcr2, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);
}

static void test_sizes(gconstpointer data)
{
    const Sizes *sizes = data;
    g_autoptr(GByteArray) f = NULL;
    Content c;
    EifImage image;
    EifMemfds fds;
    int fd, initrd_fd;

    content_init(&c, sizes);
    f = eif_file_build(4, c.parts, 3 + sizes->n_ramdisks);
    fd = fd_of(f->data, f->len);
    initrd_fd = sizes->initrd ? fd_of(c.initrd, sizes->initrd) : -1;

    load_watched(fd, f->len, initrd_fd, &image, &fds);
    check_image(&image, &fds, &c, sizes);

    /* The position of the descriptor is the caller's. */
    g_assert_cmpint(lseek(fd, 0, SEEK_CUR), ==, f->len);
    eif_image_clear(&image);
    eif_memfds_close(&fds);
    g_assert_cmpint(fds.kernel, ==, -1);
    eif_image_clear(&image);
    eif_memfds_close(&fds);
    close(fd);
    if (initrd_fd >= 0) {
        close(initrd_fd);
    }
    content_clear(&c, sizes);
}

/* ---- A signed file with an added initrd ---- */

static void test_signed_with_initrd(void)
{
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "data",
                                                  "signed-p384.eif", NULL);
    uint8_t pcr[EIF_DIGEST_SIZE];
    EifImage image;
    EifMemfds fds;
    EifError err;
    int fd = open(path, O_RDONLY);
    int initrd_fd = fd_of("MORE", 4);

    g_assert_cmpint(fd, >=, 0);
    if (!eif_load_memfds(fd, initrd_fd, -1, &file_rules, &fds, &image, &err)) {
        g_error("%s: %s", eif_rule_name(err.rule), err.text);
    }
    g_assert_true(image.is_signed);
    g_assert_true(image.pcr.has_pcr8);
    expect_pcr(pcr, (Part[]) { { 0, "KKKKKKKKKKKKKKKKcINITINITAPPLAPPLAPPL"
                                    "MORE", 41 }, { 0 } });
    g_assert_cmpmem(image.pcr.pcr0, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);
    expect_pcr(pcr, (Part[]) { { 0, "KKKKKKKKKKKKKKKKcINITINIT", 25 },
                               { 0 } });
    g_assert_cmpmem(image.pcr.pcr1, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);
    expect_pcr(pcr, (Part[]) { { 0, "APPLAPPLAPPLMORE", 16 }, { 0 } });
    g_assert_cmpmem(image.pcr.pcr2, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);
    assert_memfd(fds.initramfs, "INITINITAPPLAPPLAPPLMORE", 24);
    eif_image_clear(&image);
    eif_memfds_close(&fds);
    close(fd);
    close(initrd_fd);
}

/* ---- Reading ---- */

static GByteArray *plain_file(void)
{
    g_autofree uint8_t *ramdisk = filler(600 * KIB, 1);
    const Part parts[] = {
        { KERNEL, "KKKK", 4 },
        { CMDLINE, "c", 1 },
        { METADATA, "{}", 2 },
        { RAMDISK, ramdisk, 600 * KIB },
        { RAMDISK, "APPL", 4 },
    };

    return eif_file_build(4, parts, 5);
}

static void test_short_reads(void)
{
    static const size_t most[] = { 1, 7, 4096, 100000 };
    g_autoptr(GByteArray) f = plain_file();
    int fd = fd_of(f->data, f->len);
    EifMeasurements m;
    EifError err;

    g_assert_cmpint(judge(f, &file_rules, &m, &err), ==, EIF_OK);
    for (unsigned i = 0; i < G_N_ELEMENTS(most); i++) {
        EifImage image;
        EifMemfds fds;

        watch(fd, f->len);
        feed.most = most[i];
        feed.interrupt = true;
        g_assert_true(eif_load_memfds(fd, -1, -1, &file_rules, &fds,
                                      &image, &err));
        g_assert_cmpuint(feed.calls, >, 2 * (f->len / most[i]));
        g_assert_cmpmem(image.pcr.pcr0, EIF_DIGEST_SIZE, m.pcr0,
                        EIF_DIGEST_SIZE);
        eif_image_clear(&image);
        eif_memfds_close(&fds);
    }
    unwatch();
    close(fd);
}

/* The file breaks off while it is read: anywhere, by error or by end. */
static void test_read_fails(void)
{
    g_autoptr(GByteArray) f = plain_file();
    int fd = fd_of(f->data, f->len);
    size_t ends[] = { 0, 1, 547, 548, 559, 560, 564, 600, 700, 5000,
                      300 * KIB, f->len - 17, f->len - 16, f->len - 5,
                      f->len - 4, f->len - 1 };

    for (unsigned i = 0; i < 2 * G_N_ELEMENTS(ends); i++) {
        EifImage image;
        EifMemfds fds;
        EifError err;

        watch(fd, f->len);
        feed.end = ends[i / 2];
        feed.error = i % 2 ? EIO : 0;
        g_assert_false(eif_load_memfds(fd, -1, -1, &file_rules, &fds,
                                       &image, &err));
        g_assert_cmpstr(eif_rule_name(err.rule), ==, "io");
        g_assert_nonnull(strstr(err.text, "at offset "));
        g_assert_nonnull(strstr(err.text, i % 2 ? "Input/output error"
                                                : "still being written"));
        g_assert_cmpint(fds.kernel, ==, -1);
        g_assert_null(image.cmdline);
    }
    unwatch();
    close(fd);
}

static void refuse(int fd, int initrd_fd, const char *text)
{
    EifImage image;
    EifMemfds fds;
    EifError err;

    g_assert_false(eif_load_memfds(fd, initrd_fd, -1, &file_rules, &fds,
                                   &image, &err));
    g_assert_cmpstr(eif_rule_name(err.rule), ==, "io");
    g_assert_nonnull(strstr(err.text, text));
    g_assert_cmpint(fds.kernel, ==, -1);
}

static void test_not_a_file(void)
{
    g_autoptr(GByteArray) f = plain_file();
    int good = fd_of(f->data, f->len);
    int pipes[2];
    int dir = open("/", O_RDONLY | O_DIRECTORY);
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", good);
    int write_only = open(path, O_WRONLY);

    g_assert_cmpint(pipe(pipes), ==, 0);
    g_assert_cmpint(dir, >=, 0);
    g_assert_cmpint(write_only, >=, 0);
    refuse(-1, -1, "Bad file descriptor");
    refuse(pipes[0], -1, "the EIF is not a regular file");
    refuse(dir, -1, "the EIF is not a regular file");
    refuse(write_only, -1, "Bad file descriptor");
    refuse(good, pipes[0], "the initrd is not a regular file");
    close(pipes[0]);
    close(pipes[1]);
    close(dir);
    close(write_only);
    close(good);
}

/* An empty -initrd adds nothing, not even padding. */
static void test_empty_initrd(void)
{
    const Part parts[] = {
        { KERNEL, "KKKK", 4 }, { CMDLINE, "c", 1 }, { RAMDISK, "INI", 3 },
    };
    g_autoptr(GByteArray) f = eif_file_build(3, parts, 3);
    int fd = fd_of(f->data, f->len);
    int initrd_fd = fd_of("", 0);
    EifImage image;
    EifMemfds fds;
    EifError err;

    g_assert_true(eif_load_memfds(fd, initrd_fd, -1, &file_rules, &fds,
                                  &image, &err));
    assert_memfd(fds.initramfs, "INI", 3);
    g_assert_cmpmem(image.pcr.pcr0, EIF_DIGEST_SIZE, image.pcr.pcr1,
                    EIF_DIGEST_SIZE);
    eif_image_clear(&image);
    eif_memfds_close(&fds);
    close(fd);
    close(initrd_fd);
}

/* ---- Sizes are looked at first ---- */

static uint64_t peak_kib(void)
{
    g_autofree char *status = NULL;
    const char *at;

    g_assert_true(g_file_get_contents("/proc/self/status", &status, NULL,
                                      NULL));
    at = strstr(status, "VmPeak:");
    g_assert_nonnull(at);
    return g_ascii_strtoull(at + strlen("VmPeak:"), NULL, 10);
}

/* A file of holes, with a header and section headers that fit together. */
static int sparse(const Part *parts, unsigned n)
{
    Part none[EIF_MAX_SECTIONS];
    g_autoptr(GByteArray) f = NULL;
    uint64_t offset = 548;
    int fd = memfd_create("sparse", MFD_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    for (unsigned i = 0; i < n; i++) {
        none[i] = (Part) { parts[i].type, "", 0 };
    }
    f = eif_file_build(3, none, n);
    for (unsigned i = 0; i < n; i++) {
        size_t at = eif_file_section(f, i);

        put_be(f, at + 4, 8, parts[i].size);
        g_assert_cmpint(pwrite(fd, f->data + at, 12, offset), ==, 12);
        put_be(f, 28 + 8 * i, 8, offset);
        put_be(f, 284 + 8 * i, 8, parts[i].size);
        offset += 12 + parts[i].size;
        /* The section's place in the small file, for the next round. */
        if (i + 1 < n) {
            put_be(f, 28 + 8 * (i + 1), 8, 548 + 12 * (i + 1));
        }
    }
    g_assert_cmpint(pwrite(fd, f->data, 548, 0), ==, 548);
    g_assert_cmpint(ftruncate(fd, offset), ==, 0);
    return fd;
}

typedef struct Large {
    const char *name;
    Part parts[3];
    EifRule rule;
    const char *text;
    uint64_t initrd;            /* 0: none */
    uint64_t lowmem;
} Large;

#define GIB ((uint64_t)1 << 30)

static const Large larges[] = {
    { "kernel-1-gib", { { KERNEL, NULL, GIB }, { CMDLINE, NULL, 1 },
                        { RAMDISK, NULL, 1 } },
      EIF_ERR_KERNEL_TOO_LARGE, "1073741824 bytes", 0, 0 },
    { "cmdline-1-gib", { { KERNEL, NULL, 1 }, { CMDLINE, NULL, GIB },
                         { RAMDISK, NULL, 1 } },
      EIF_ERR_CMDLINE_TOO_LONG, "1073741824 bytes", 0, 0 },
    { "ramdisk-4-gib", { { KERNEL, NULL, 1 }, { CMDLINE, NULL, 1 },
                         { RAMDISK, NULL, 4 * GIB } },
      EIF_ERR_INITRAMFS_TOO_LARGE, "4294967296 bytes", 0, 0 },
    { "ramdisk-1-tib", { { KERNEL, NULL, 1 }, { CMDLINE, NULL, 1 },
                         { RAMDISK, NULL, 1024 * GIB } },
      EIF_ERR_INITRAMFS_TOO_LARGE, "boot protocol's limit", 0, 0 },
    { "ramdisk-above-memory", { { KERNEL, NULL, 1 }, { CMDLINE, NULL, 1 },
                                { RAMDISK, NULL, 2 * GIB } },
      EIF_ERR_INITRAMFS_TOO_LARGE, "guest's memory below 4 GiB", 0, 2 * GIB },
    { "initrd-4-gib", { { KERNEL, NULL, 1 }, { CMDLINE, NULL, 1 },
                        { RAMDISK, NULL, 1 } },
      EIF_ERR_INITRAMFS_TOO_LARGE, "4294967296 of an added", 4 * GIB, 0 },
    { "initrd-and-ramdisk", { { KERNEL, NULL, 1 }, { CMDLINE, NULL, 1 },
                              { RAMDISK, NULL, 2 * GIB } },
      EIF_ERR_INITRAMFS_TOO_LARGE, "2147483648 of an added", 2 * GIB, 0 },
    { "signature-1-gib", { { KERNEL, NULL, 1 }, { CMDLINE, NULL, 1 },
                           { SIGNATURE, NULL, GIB } },
      EIF_ERR_SIGNATURE_TOO_LARGE, "1073741824 bytes", 0, 0 },
};

static void test_large(gconstpointer data)
{
    const Large *c = data;
    EifOptions opt = { .now = NOW, .lowmem = c->lowmem };
    int fd = sparse(c->parts, 3);
    int initrd_fd = -1;
    EifImage image;
    EifMemfds fds;
    EifError err;
    uint64_t peak;

    if (c->initrd) {
        initrd_fd = fd_of("", 0);
        g_assert_cmpint(ftruncate(initrd_fd, c->initrd), ==, 0);
    }
    peak = peak_kib();
    g_assert_false(eif_load_memfds(fd, initrd_fd, -1, &opt, &fds,
                                   &image, &err));
    if (err.rule != c->rule || !strstr(err.text, c->text)) {
        g_error("%s: %s", eif_rule_name(err.rule), err.text);
    }
    /* Neither mapped nor allocated; a thread's stack alone is 8 MiB. */
    g_assert_cmpuint(peak_kib() - peak, <, 4096);
    close(fd);
    if (initrd_fd >= 0) {
        close(initrd_fd);
    }
}

/* A small file whose header claims much: refused by the file's size. */
static void test_claims(void)
{
    static const uint64_t claims[] = {
        600 * 1024, GIB, 1024 * GIB, INT64_MAX, (uint64_t)INT64_MAX + 1,
        UINT64_MAX - 600 * 1024, UINT64_MAX,
    };

    for (unsigned section = 0; section < 5; section++) {
        for (unsigned i = 0; i < G_N_ELEMENTS(claims); i++) {
            g_autoptr(GByteArray) f = plain_file();
            uint64_t peak;
            EifImage image;
            EifMemfds fds;
            EifError err;
            int fd;

            put_be(f, eif_file_section(f, section) + 4, 8, claims[i]);
            put_be(f, 284 + 8 * section, 8, claims[i]);
            if (section == 3 && claims[i] == 600 * KIB) {
                continue;       /* what it has */
            }
            fd = fd_of(f->data, f->len);
            peak = peak_kib();
            g_assert_false(eif_load_memfds(fd, -1, -1, &file_rules, &fds,
                                           &image, &err));
            if (section < 3 && claims[i] == 600 * KIB) {
                /* So much there is, but the next section is elsewhere. */
                g_assert_cmpstr(eif_rule_name(err.rule), ==,
                                "section-offset");
            } else {
                g_assert_cmpstr(eif_rule_name(err.rule), ==,
                                "section-beyond-file");
            }
            g_assert_cmpuint(peak_kib() - peak, <, 4096);
            close(fd);
        }
    }
}

/* No descriptor and no thread is left, whatever the outcome. */
static unsigned entries(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    unsigned n = 0;

    g_assert_nonnull(dir);
    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

static void test_nothing_left(void)
{
    g_autoptr(GByteArray) f = plain_file();
    int fd = fd_of(f->data, f->len);
    unsigned n_fds = entries("/proc/self/fd");
    unsigned threads = entries("/proc/self/task");
    EifOptions all = { .now = NOW };
    EifImage image;
    EifMemfds fds;
    EifError err;

    for (unsigned i = 0; i < 20; i++) {
        g_assert_true(eif_load_memfds(fd, -1, -1, &file_rules, &fds,
                                      &image, &err));
        eif_image_clear(&image);
        eif_memfds_close(&fds);
        g_assert_false(eif_load_memfds(fd, -1, -1, &all, &fds, &image, &err));
        watch(fd, f->len);
        feed.end = 400 * KIB;
        g_assert_false(eif_load_memfds(fd, -1, -1, &file_rules, &fds,
                                       &image, &err));
        unwatch();
    }
    g_assert_cmpuint(entries("/proc/self/fd"), ==, n_fds);
    g_assert_cmpuint(entries("/proc/self/task"), ==, threads);
    close(fd);
}

static void test_times(void)
{
    g_autoptr(GByteArray) f = plain_file();
    int fd = fd_of(f->data, f->len);
    EifImage image;
    EifMemfds fds;
    EifError err;

    g_assert_true(eif_load_memfds(fd, -1, -1, &file_rules, &fds, &image, &err));
    g_assert_cmpuint(image.times.total, >, 0);
    g_assert_cmpuint(image.times.pcr0, >, 0);
    g_assert_cmpuint(image.times.pcr0, <=, image.times.total);
    g_assert_cmpuint(image.times.read + image.times.crc +
                     image.times.reader_wait + image.times.signature, <=,
                     image.times.total);
    eif_image_clear(&image);
    eif_memfds_close(&fds);
    close(fd);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    feed.fd = -1;
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autofree char *path = g_strdup_printf("/eif-load/sizes/%s",
                                                sizes[i].name);

        g_test_add_data_func(path, &sizes[i], test_sizes);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(larges); i++) {
        g_autofree char *path = g_strdup_printf("/eif-load/large/%s",
                                                larges[i].name);

        g_test_add_data_func(path, &larges[i], test_large);
    }
    g_test_add_func("/eif-load/claims", test_claims);
    g_test_add_func("/eif-load/signed-with-initrd", test_signed_with_initrd);
    g_test_add_func("/eif-load/short-reads", test_short_reads);
    g_test_add_func("/eif-load/read-fails", test_read_fails);
    g_test_add_func("/eif-load/not-a-file", test_not_a_file);
    g_test_add_func("/eif-load/empty-initrd", test_empty_initrd);
    g_test_add_func("/eif-load/nothing-left", test_nothing_left);
    g_test_add_func("/eif-load/times", test_times);
    return g_test_run();
}
