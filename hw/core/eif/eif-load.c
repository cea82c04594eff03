/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * EIF core: the loader.  One pass over a file; kernel and initramfs end in
 * memfds, digests come from there.  The rules themselves are in the other
 * files; this one has the I/O and the threads.
 *
 * Why it is built this way.  For an image of 400 MB, PCR0 alone is one SHA-384
 * over all of it, and that cannot be divided.  So the goal is to keep one core
 * on PCR0 from the first byte to the last, and to fit all the rest on another:
 *
 *   reader (the caller)   file -> 256 KiB buffer -> CRC-32 -> memfd
 *   PCR0 lane (thread)    memfd, read-only mapping -> SHA-384
 *   PCR2 lane (thread)    the same, ramdisks after the first
 *
 * The reader publishes how far each piece has come, the lanes follow.  There
 * is no ring between them and so nobody waits for room: what is read lies in
 * the memfd already, and the reader runs ahead, which gives the PCR2 lane its
 * work early and the reader's core free for it.
 *
 * The buffer stays in the second-level cache: the CRC costs next to nothing
 * there, and write() then fills fresh memfd pages without a page fault or the
 * clearing of a page.  For 400 MB on two cores: 0.13 s for file -> buffer ->
 * memfd, against 0.25 to 0.46 s for file -> writable mapping of the memfd,
 * populated beforehand or not.  Faults of a reading mapping are mapped 16
 * pages at a time and cost the lanes about 3 percent.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "eif-internal.h"

#define CHUNK           (256 * 1024)    /* the reader's buffer */
#define LANE_CHUNK      (1024 * 1024)   /* hashed before looking up again */
#define MAX_PIECES      (EIF_MAX_SECTIONS + 1)

/* One stretch of measured content. */
typedef struct Piece {
    EifPart part;
    bool extra;                 /* the -initrd: not in the file's own PCR0 */
    const uint8_t *data;
    uint64_t size;
    uint64_t ready;             /* bytes there; under Loader.lock */
} Piece;

typedef struct Loader {
    int fd;
    const EifOptions *opt;
    EifImage *image;
    EifLayout *layout;          /* image->layout */

    uint8_t header[EIF_HEADER_SIZE];
    uint8_t section_header[EIF_MAX_SECTIONS][EIF_SECTION_HEADER_SIZE];
    uint8_t *chunk;
    uint8_t *signature;
    uint32_t crc;

    const uint8_t *kernel_map;          /* private, read-only */
    const uint8_t *initramfs_map;
    uint64_t initramfs_used;

    Piece pieces[MAX_PIECES];
    unsigned n_pieces;
    Piece *section_piece[EIF_MAX_SECTIONS];     /* NULL: not measured */
    GMutex lock;
    GCond grown;
    bool stop;                  /* under lock: the verdict is out already */
} Loader;

typedef struct Lane {
    Loader *loader;
    GThread *thread;
    bool app_only;              /* PCR2's */
    bool ok;
    EifError err;
    uint64_t busy;
    uint8_t file_pcr0[EIF_DIGEST_SIZE];
    uint8_t pcr[EIF_DIGEST_SIZE];       /* PCR0 or PCR2 */
    uint8_t pcr1[EIF_DIGEST_SIZE];
} Lane;

/* Add the time since *@t to *@sum; *@t is now. */
static void lap(int64_t *t, uint64_t *sum)
{
    int64_t now = g_get_monotonic_time();

    *sum += (uint64_t)(now - *t);
    *t = now;
}

/* ---- Files ---- */

static bool io_error(EifError *err, const char *doing)
{
    return eif_fail(err, EIF_ERR_IO, "cannot %s: %s", doing, strerror(errno));
}

static bool regular_size(int fd, const char *what, uint64_t *size,
                         EifError *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return eif_fail(err, EIF_ERR_IO, "cannot look at the %s: %s", what,
                        strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return eif_fail(err, EIF_ERR_IO, "the %s is not a regular file",
                        what);
    }
    *size = (uint64_t)st.st_size;
    return true;
}

static bool read_all(int fd, uint8_t *buf, size_t len, uint64_t offset,
                     EifError *err)
{
    while (len) {
        ssize_t n = pread(fd, buf, len, (off_t)offset);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return eif_fail(err, EIF_ERR_IO, "cannot read at offset %" PRIu64
                            ": %s", offset, strerror(errno));
        }
        if (n == 0) {
            return eif_fail(err, EIF_ERR_IO, "the file ended at offset %"
                            PRIu64 " while it was read; is it still being"
                            " written?", offset);
        }
        buf += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return true;
}

static bool write_all(int fd, const uint8_t *buf, size_t len, uint64_t offset,
                      EifError *err)
{
    while (len) {
        ssize_t n = pwrite(fd, buf, len, (off_t)offset);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return io_error(err, "keep the image in memory");
        }
        buf += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return true;
}

/* A memfd of @size bytes, none of them there yet, and a look into it. */
static bool new_memfd(const char *name, uint64_t size, int *fd,
                      const uint8_t **map, EifError *err)
{
    void *p;

    *fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*fd < 0 || ftruncate(*fd, (off_t)size) < 0) {
        return io_error(err, "make room for the image in memory");
    }
    if (!size) {
        return true;
    }
    /* Private, or the kernel would count it as a writer when sealing. */
    p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, *fd, 0);
    if (p == MAP_FAILED) {
        return io_error(err, "map the image in memory");
    }
    *map = p;
    return true;
}

/* What was measured is what is there, for ever. */
static bool seal(int fd, EifError *err)
{
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE |
              F_SEAL_SEAL) < 0) {
        return io_error(err, "seal the image in memory");
    }
    return true;
}

/* ---- Hashing lanes ---- */

/* Wait until @p holds more than @pos; 0 if there is no need any more. */
static uint64_t wait_ready(Loader *ld, const Piece *p, uint64_t pos)
{
    uint64_t n;

    g_mutex_lock(&ld->lock);
    while (p->ready == pos && !ld->stop) {
        g_cond_wait(&ld->grown, &ld->lock);
    }
    n = ld->stop ? 0 : p->ready - pos;
    g_mutex_unlock(&ld->lock);
    return n;
}

static bool lane_piece(Lane *lane, const Piece *p, EifBootMeasure *boot,
                       gnutls_hash_hd_t app)
{
    uint64_t pos = 0;

    while (pos < p->size) {
        uint64_t n = wait_ready(lane->loader, p, pos);
        int64_t t = g_get_monotonic_time();
        bool ok;

        if (!n) {
            return eif_fail(&lane->err, EIF_ERR_IO, "stopped");
        }
        n = MIN(n, LANE_CHUNK);
        ok = lane->app_only
             ? eif_hash_update(app, p->data + pos, n, &lane->err)
             : eif_boot_measure_update(boot, p->part, p->data + pos, n,
                                       &lane->err);
        lap(&t, &lane->busy);
        if (!ok) {
            return false;
        }
        pos += n;
    }
    return true;
}

static void *lane_main(void *arg)
{
    Lane *lane = arg;
    Loader *ld = lane->loader;
    EifBootMeasure boot = { NULL, NULL };
    gnutls_hash_hd_t app = NULL;
    bool have_file_pcr0 = lane->app_only;
    bool ok;

    ok = lane->app_only ? eif_hash_init(&app, &lane->err)
                        : eif_boot_measure_init(&boot, &lane->err);
    for (unsigned i = 0; ok && i < ld->n_pieces; i++) {
        const Piece *p = &ld->pieces[i];

        if (lane->app_only && p->part != EIF_PART_RAMDISK_APP) {
            continue;
        }
        if (p->extra && !have_file_pcr0) {
            ok = eif_hash_pcr(boot.pcr0, lane->file_pcr0, &lane->err);
            have_file_pcr0 = true;
        }
        ok = ok && lane_piece(lane, p, &boot, app);
    }
    if (ok && !have_file_pcr0) {
        ok = eif_hash_pcr(boot.pcr0, lane->file_pcr0, &lane->err);
    }
    ok = ok && eif_hash_pcr(lane->app_only ? app : boot.pcr0, lane->pcr,
                            &lane->err);
    ok = ok && (lane->app_only ||
                eif_boot_measure_pcr1(&boot, lane->pcr1, &lane->err));
    eif_boot_measure_free(&boot);
    eif_hash_free(&app);
    lane->ok = ok;
    return NULL;
}

/* Signals are the process's affair, not these threads'. */
static bool lane_start(Lane *lane, EifError *err)
{
    g_autoptr(GError) gerr = NULL;
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    lane->thread = g_thread_try_new(lane->app_only ? "eif-pcr2" : "eif-pcr0",
                                    lane_main, lane, &gerr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!lane->thread) {
        return eif_fail(err, EIF_ERR_IO, "cannot start a thread: %s",
                        gerr->message);
    }
    return true;
}

static bool lane_join(Lane *lane, EifError *err)
{
    if (!lane->thread) {
        return true;
    }
    g_thread_join(lane->thread);
    lane->thread = NULL;
    if (!lane->ok && err) {
        *err = lane->err;
    }
    return lane->ok;
}

static void lanes_stop(Loader *ld)
{
    g_mutex_lock(&ld->lock);
    ld->stop = true;
    g_cond_broadcast(&ld->grown);
    g_mutex_unlock(&ld->lock);
}

/* ---- Reader ---- */

static bool parse(Loader *ld, uint64_t file_size, EifError *err)
{
    size_t head = MIN(file_size, EIF_HEADER_SIZE);
    EifLayout *l = ld->layout;

    if (!read_all(ld->fd, ld->header, head, 0, err) ||
        !eif_parse_header(l, ld->header, head, file_size, err)) {
        return false;
    }
    for (unsigned i = 0; i < l->n_sections; i++) {
        if (!read_all(ld->fd, ld->section_header[i], EIF_SECTION_HEADER_SIZE,
                      l->section[i].offset, err) ||
            !eif_parse_section(l, i, ld->section_header[i], err)) {
            return false;
        }
    }
    return eif_layout_finish(l, err);
}

static Piece *add_piece(Loader *ld, EifPart part, const uint8_t *data,
                        uint64_t size)
{
    Piece *p = &ld->pieces[ld->n_pieces++];

    *p = (Piece) { .part = part, .data = data, .size = size };
    return p;
}

/* Everything that what is read will need, sized by the checked layout. */
static bool allocate(Loader *ld, uint64_t extra, EifError *err)
{
    EifImage *image = ld->image;
    const EifLayout *l = ld->layout;
    uint64_t ramdisk = 0;

    image->kernel_size = l->section[l->kernel].size;
    image->cmdline_len = l->section[l->cmdline].size;
    image->initramfs_size = eif_initramfs_size(l, extra);
    image->is_signed = l->signature >= 0;

    if (!new_memfd("eif-kernel", image->kernel_size, &image->kernel_fd,
                   &ld->kernel_map, err)) {
        return false;
    }
    if (image->initramfs_size &&
        !new_memfd("eif-initramfs", image->initramfs_size,
                   &image->initramfs_fd, &ld->initramfs_map, err)) {
        return false;
    }
    image->cmdline = g_malloc0(image->cmdline_len + 1);
    if (image->is_signed) {
        ld->signature = g_malloc(l->section[l->signature].size);
    }
    ld->chunk = g_malloc(CHUNK);

    for (unsigned i = 0; i < l->n_sections; i++) {
        uint64_t size = l->section[i].size;
        const uint8_t *data;
        EifPart part;

        if (!eif_section_part(l, i, &part)) {
            continue;
        }
        if (part == EIF_PART_KERNEL) {
            data = ld->kernel_map;
        } else if (part == EIF_PART_CMDLINE) {
            data = (const uint8_t *)image->cmdline;
        } else {
            data = ld->initramfs_map ? ld->initramfs_map + ramdisk : NULL;
            ramdisk += size;
        }
        ld->section_piece[i] = add_piece(ld, part, data, size);
    }
    if (extra) {
        Piece *p = add_piece(ld, EIF_PART_RAMDISK_APP, ld->initramfs_map +
                             image->initramfs_size - extra, extra);

        p->extra = true;
    }
    return true;
}

static void publish(Loader *ld, Piece *p, uint64_t n)
{
    g_mutex_lock(&ld->lock);
    p->ready += n;
    g_cond_broadcast(&ld->grown);
    g_mutex_unlock(&ld->lock);
}

/*
 * @size bytes at @offset of @fd go, through the buffer, to @memfd at @at, or
 * else to @dest, or else nowhere.  With @crc, they enter the CRC.
 */
static bool stream(Loader *ld, int fd, uint64_t offset, uint64_t size,
                   bool crc, int memfd, uint64_t at, uint8_t *dest, Piece *p,
                   EifError *err)
{
    EifTimes *times = &ld->image->times;
    int64_t t = g_get_monotonic_time();
    uint64_t done = 0;

    while (done < size) {
        size_t n = MIN(size - done, CHUNK);

        if (!read_all(fd, ld->chunk, n, offset + done, err)) {
            return false;
        }
        lap(&t, &times->read);
        if (crc) {
            ld->crc = crc32_z(ld->crc, ld->chunk, n);
            lap(&t, &times->crc);
        }
        if (memfd >= 0) {
            if (!write_all(memfd, ld->chunk, n, at + done, err)) {
                return false;
            }
        } else if (dest) {
            memcpy(dest + done, ld->chunk, n);
        }
        if (p) {
            publish(ld, p, n);
        }
        lap(&t, &times->store);
        done += n;
    }
    return true;
}

static bool read_sections(Loader *ld, EifError *err)
{
    EifImage *image = ld->image;
    const EifLayout *l = ld->layout;
    uint64_t ramdisk = 0;

    ld->crc = eif_crc_header(ld->header);
    for (unsigned i = 0; i < l->n_sections; i++) {
        const EifSection *s = &l->section[i];
        int memfd = -1;
        uint64_t at = 0;
        uint8_t *dest = NULL;

        switch (s->type) {
        case EIF_SECTION_KERNEL:
            memfd = image->kernel_fd;
            break;
        case EIF_SECTION_RAMDISK:
            memfd = image->initramfs_fd;
            at = ramdisk;
            ramdisk += s->size;
            break;
        case EIF_SECTION_CMDLINE:
            dest = (uint8_t *)image->cmdline;
            break;
        case EIF_SECTION_SIGNATURE:
            dest = ld->signature;
            break;
        default:                /* metadata: only for the CRC */
            break;
        }
        ld->crc = crc32(ld->crc, ld->section_header[i],
                        EIF_SECTION_HEADER_SIZE);
        if (!stream(ld, ld->fd, s->offset + EIF_SECTION_HEADER_SIZE, s->size,
                    true, memfd, at, dest, ld->section_piece[i], err)) {
            return false;
        }
    }
    return eif_check_crc(l, ld->crc, err);
}

/* Steps 5 to 7, the extra initrd in between. */
static bool read_and_check(Loader *ld, int initrd_fd, uint64_t extra,
                           EifError *err)
{
    EifImage *image = ld->image;
    const EifOptions *opt = ld->opt;

    if (!read_sections(ld, err) ||
        !eif_check_cmdline((const uint8_t *)image->cmdline,
                           image->cmdline_len, err)) {
        return false;
    }
    if (extra &&
        !stream(ld, initrd_fd, 0, extra, false, image->initramfs_fd,
                image->initramfs_size - extra, NULL,
                &ld->pieces[ld->n_pieces - 1], err)) {
        return false;
    }
    return opt->file_rules_only ||
           (eif_check_kernel(ld->kernel_map, image->kernel_size,
                             image->kernel_size, &image->kernel, err) &&
            eif_check_placement(&image->kernel,
                                image->cmdline_len + opt->cmdline_extra,
                                image->initramfs_size, opt->lowmem, err));
}

/* From the checked layout to the verdict. */
static bool load(Loader *ld, int initrd_fd, uint64_t extra, EifError *err)
{
    EifImage *image = ld->image;
    EifTimes *times = &image->times;
    Lane pcr0 = { .loader = ld };
    Lane pcr2 = { .loader = ld, .app_only = true };
    int64_t t;
    bool ok;

    ok = allocate(ld, extra, err) && lane_start(&pcr0, err) &&
         lane_start(&pcr2, err) &&
         read_and_check(ld, initrd_fd, extra, err);
    if (!ok) {
        lanes_stop(ld);
    }
    t = g_get_monotonic_time();
    /* Both must be gone, and a first error stands. */
    ok = lane_join(&pcr0, ok ? err : NULL) && ok;
    ok = lane_join(&pcr2, ok ? err : NULL) && ok;
    lap(&t, &times->reader_wait);
    if (!ok) {
        return false;
    }

    times->pcr0 = pcr0.busy;
    times->pcr2 = pcr2.busy;
    memcpy(image->pcr.pcr0, pcr0.pcr, EIF_DIGEST_SIZE);
    memcpy(image->pcr.pcr1, pcr0.pcr1, EIF_DIGEST_SIZE);
    memcpy(image->pcr.pcr2, pcr2.pcr, EIF_DIGEST_SIZE);
    if (image->is_signed) {
        ok = eif_judge_signature(ld->signature,
                                 ld->layout->section[ld->layout->signature]
                                 .size, ld->opt, pcr0.file_pcr0, &image->pcr,
                                 &image->signature_warning, err);
    }
    lap(&t, &times->signature);
    return ok && seal(image->kernel_fd, err) &&
           (image->initramfs_fd < 0 || seal(image->initramfs_fd, err));
}

bool eif_load(int fd, int initrd_fd, const EifOptions *opt, EifImage *out,
              EifError *err)
{
    g_autofree Loader *ld = g_new0(Loader, 1);
    int64_t t = g_get_monotonic_time();
    uint64_t file_size, extra = 0;
    bool ok;

    memset(out, 0, sizeof(*out));
    out->kernel_fd = out->initramfs_fd = -1;
    ld->fd = fd;
    ld->opt = opt;
    ld->image = out;
    ld->layout = &out->layout;
    g_mutex_init(&ld->lock);
    g_cond_init(&ld->grown);

    ok = regular_size(fd, "EIF", &file_size, err) &&
         (initrd_fd < 0 || regular_size(initrd_fd, "initrd", &extra, err));
    if (ok) {
        posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
        ok = parse(ld, file_size, err) &&
             eif_check_sizes(ld->layout, extra, opt->lowmem, err) &&
             load(ld, initrd_fd, extra, err);
    }

    if (ld->kernel_map) {
        munmap((void *)ld->kernel_map, out->kernel_size);
    }
    if (ld->initramfs_map) {
        munmap((void *)ld->initramfs_map, out->initramfs_size);
    }
    g_free(ld->signature);
    g_free(ld->chunk);
    g_cond_clear(&ld->grown);
    g_mutex_clear(&ld->lock);
    lap(&t, &out->times.total);
    if (!ok) {
        eif_image_clear(out);
    }
    return ok;
}

void eif_image_clear(EifImage *image)
{
    /* The fds of a zeroed image are not descriptor 0. */
    if (image->layout.n_sections) {
        if (image->kernel_fd >= 0) {
            close(image->kernel_fd);
        }
        if (image->initramfs_fd >= 0) {
            close(image->initramfs_fd);
        }
    }
    g_free(image->cmdline);
    memset(image, 0, sizeof(*image));
    image->kernel_fd = image->initramfs_fd = -1;
}
