/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: the loader.  One pass over a file; kernel and initramfs end in
 * memfds, digests come from there.  The rules themselves are in the other
 * files; this one has the I/O and the threads.
 *
 * Why it is built this way.  For an image of 400 MB, PCR0 alone is one SHA-384
 * over all of it, and that cannot be divided.  So the goal is to keep one core
 * on PCR0 from the first byte to the last, and to fit all the rest on another:
 *
 *   reader (the caller)   file -> buffer -> CRC-32 -> memfd
 *   PCR0 lane (thread)    memfd -> buffer -> SHA-384
 *   PCR2 lane (thread)    the same, ramdisks after the first
 *
 * The reader publishes how far each piece has come, the lanes follow.  There
 * is no ring between them and so nobody waits for room: what is read lies in
 * the memfd already, and the reader runs ahead, which gives the PCR2 lane its
 * work early and the reader's core free for it.
 *
 * The buffers stay in the second-level cache, where CRC and copying cost
 * little, and nothing is mapped: write() fills fresh memfd pages without a page
 * fault or the clearing of a page.  For 400 MB, file -> buffer -> memfd takes
 * 0.13 s, file -> shared mapping of the memfd 0.25 to 0.46 s, populated
 * beforehand or not.  Lanes that hash a mapping of the memfd make the whole 4
 * percent slower.  Buffers of 64 KiB to 1 MiB do about equally well.
 *
 * All in all, on two cores: two ramdisks of 200 MB 0.40 s, one application
 * ramdisk of 400 MB, which goes into two digests, 0.49 s; one `openssl dgst
 * -sha384` of either file 0.39 s, GnuTLS's SHA-384 alone 0.36 s.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>        /* memfd_create() */
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "eif-internal.h"

#define CHUNK           (256 * 1024)    /* of each thread's buffer */
#define MAX_PIECES      (EIF_MAX_SECTIONS + 1)

/* A section's data, or the added initrd: from where, to where, for what. */
typedef struct Piece {
    int src_fd;
    uint64_t src_offset;
    uint64_t size;
    int memfd;                  /* where it goes, from @offset on; -1: ... */
    uint64_t offset;
    uint8_t *data;              /* ... here; NULL: nowhere (metadata) */
    bool measured;
    EifPart part;               /* if measured */
    bool extra;                 /* the added initrd */
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

    Piece pieces[MAX_PIECES];
    unsigned n_pieces;
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

/* A memfd of @size bytes, none of them there yet. */
static bool new_memfd(const char *name, uint64_t size, int *fd, EifError *err)
{
    *fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*fd < 0 || ftruncate(*fd, (off_t)size) < 0) {
        return io_error(err, "make room for the image in memory");
    }
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

static bool lane_piece(Lane *lane, const Piece *p, uint8_t *buf,
                       EifBootMeasure *boot, gnutls_hash_hd_t app)
{
    uint64_t pos = 0;

    while (pos < p->size) {
        size_t n = MIN(wait_ready(lane->loader, p, pos), CHUNK);
        int64_t t = g_get_monotonic_time();
        const uint8_t *data = buf;
        bool ok = true;

        if (!n) {
            return eif_fail(&lane->err, EIF_ERR_IO, "stopped");
        }
        if (p->memfd >= 0) {
            ok = read_all(p->memfd, buf, n, p->offset + pos, &lane->err);
        } else {
            data = p->data + pos;
        }
        ok = ok && (lane->app_only
                    ? eif_hash_update(app, data, n, &lane->err)
                    : eif_boot_measure_update(boot, p->part, data, n,
                                              &lane->err));
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
    g_autofree uint8_t *buf = g_malloc(CHUNK);
    bool have_file_pcr0 = lane->app_only;
    bool ok;

    ok = lane->app_only ? eif_hash_init(&app, &lane->err)
                        : eif_boot_measure_init(&boot, &lane->err);
    for (unsigned i = 0; ok && i < ld->n_pieces; i++) {
        const Piece *p = &ld->pieces[i];

        if (!p->measured ||
            (lane->app_only && p->part != EIF_PART_RAMDISK_APP)) {
            continue;
        }
        if (p->extra && !have_file_pcr0) {
            ok = eif_hash_pcr(boot.pcr0, lane->file_pcr0, &lane->err);
            have_file_pcr0 = true;
        }
        ok = ok && lane_piece(lane, p, buf, &boot, app);
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

/* Everything that what is read will need, sized by the checked layout. */
static bool allocate(Loader *ld, uint64_t extra, EifError *err)
{
    EifImage *image = ld->image;
    const EifLayout *l = ld->layout;

    image->kernel_size = l->section[l->kernel].size;
    image->cmdline_len = l->section[l->cmdline].size;
    image->initramfs_size = eif_initramfs_size(l, extra);
    image->is_signed = l->signature >= 0;

    if (!new_memfd("eif-kernel", image->kernel_size, &image->kernel_fd,
                   err)) {
        return false;
    }
    if (image->initramfs_size &&
        !new_memfd("eif-initramfs", image->initramfs_size,
                   &image->initramfs_fd, err)) {
        return false;
    }
    image->cmdline = g_malloc0(image->cmdline_len + 1);
    if (image->is_signed) {
        ld->signature = g_malloc(l->section[l->signature].size);
    }
    ld->chunk = g_malloc(CHUNK);
    return true;
}

/* After allocate(): the sections in file order, then the added initrd. */
static void plan(Loader *ld, int initrd_fd, uint64_t extra)
{
    const EifImage *image = ld->image;
    const EifLayout *l = ld->layout;
    uint64_t ramdisk = 0;

    for (unsigned i = 0; i < l->n_sections; i++) {
        const EifSection *s = &l->section[i];
        Piece *p = &ld->pieces[ld->n_pieces++];

        p->src_fd = ld->fd;
        p->src_offset = s->offset + EIF_SECTION_HEADER_SIZE;
        p->size = s->size;
        p->memfd = -1;
        p->measured = eif_section_part(l, i, &p->part);
        switch (s->type) {
        case EIF_SECTION_KERNEL:
            p->memfd = image->kernel_fd;
            break;
        case EIF_SECTION_RAMDISK:
            p->memfd = image->initramfs_fd;
            p->offset = ramdisk;
            ramdisk += s->size;
            break;
        case EIF_SECTION_CMDLINE:
            p->data = (uint8_t *)image->cmdline;
            break;
        case EIF_SECTION_SIGNATURE:
            p->data = ld->signature;
            break;
        default:
            break;
        }
    }
    if (extra) {
        ld->pieces[ld->n_pieces++] = (Piece) {
            .src_fd = initrd_fd,
            .size = extra,
            .memfd = image->initramfs_fd,
            .offset = image->initramfs_size - extra,
            .measured = true,
            .part = EIF_PART_RAMDISK_APP,
            .extra = true,
        };
    }
}

static void publish(Loader *ld, Piece *p, uint64_t n)
{
    g_mutex_lock(&ld->lock);
    p->ready += n;
    g_cond_broadcast(&ld->grown);
    g_mutex_unlock(&ld->lock);
}

static bool stream(Loader *ld, Piece *p, EifError *err)
{
    EifTimes *times = &ld->image->times;
    int64_t t = g_get_monotonic_time();
    uint64_t done = 0;

    while (done < p->size) {
        size_t n = MIN(p->size - done, CHUNK);

        if (!read_all(p->src_fd, ld->chunk, n, p->src_offset + done, err)) {
            return false;
        }
        lap(&t, &times->read);
        if (!p->extra) {
            ld->crc = crc32_z(ld->crc, ld->chunk, n);
            lap(&t, &times->crc);
        }
        if (p->memfd >= 0) {
            if (!write_all(p->memfd, ld->chunk, n, p->offset + done, err)) {
                return false;
            }
        } else if (p->data) {
            memcpy(p->data + done, ld->chunk, n);
        }
        publish(ld, p, n);
        lap(&t, &times->store);
        done += n;
    }
    return true;
}

static bool check_boot(Loader *ld, EifError *err)
{
    EifImage *image = ld->image;
    const EifOptions *opt = ld->opt;
    uint8_t header[EIF_KERNEL_HEADER_SIZE];
    size_t len = MIN(image->kernel_size, sizeof(header));

    return read_all(image->kernel_fd, header, len, 0, err) &&
           eif_check_kernel(header, len, image->kernel_size, &image->kernel,
                            err) &&
           eif_check_placement(&image->kernel,
                               image->cmdline_len + opt->cmdline_extra,
                               image->initramfs_size, opt->lowmem, err);
}

/* What no section has: in the checksum, and nowhere else. */
static bool sum_gap(Loader *ld, uint64_t from, uint64_t to, EifError *err)
{
    while (from < to) {
        size_t n = MIN(to - from, CHUNK);

        if (!read_all(ld->fd, ld->chunk, n, from, err)) {
            return false;
        }
        ld->crc = crc32_z(ld->crc, ld->chunk, n);
        from += n;
    }
    return true;
}

/* Steps 5 to 7, the added initrd in between. */
static bool read_and_check(Loader *ld, EifError *err)
{
    EifImage *image = ld->image;
    const EifLayout *l = ld->layout;
    uint64_t end = EIF_HEADER_SIZE;

    ld->crc = eif_crc_header(ld->header);
    for (unsigned i = 0; i < l->n_sections; i++) {
        const EifSection *s = &l->section[i];

        if (!sum_gap(ld, end, s->offset, err)) {
            return false;
        }
        end = s->offset + EIF_SECTION_HEADER_SIZE + s->size;
        ld->crc = crc32(ld->crc, ld->section_header[i],
                        EIF_SECTION_HEADER_SIZE);
        if (!stream(ld, &ld->pieces[i], err)) {
            return false;
        }
    }
    if (!eif_check_crc(l, ld->crc, err) ||
        !eif_check_cmdline((const uint8_t *)image->cmdline,
                           image->cmdline_len, err)) {
        return false;
    }
    if (ld->n_pieces > l->n_sections &&
        !stream(ld, &ld->pieces[l->n_sections], err)) {
        return false;
    }
    return ld->opt->file_rules_only || check_boot(ld, err);
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

    if (!allocate(ld, extra, err)) {
        return false;
    }
    plan(ld, initrd_fd, extra);
    ok = lane_start(&pcr0, err) && lane_start(&pcr2, err) &&
         read_and_check(ld, err);
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
