/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: the loader.  One pass over a file; kernel and initramfs end in
 * memfds, digests come from there.  The rules themselves are in the other
 * files; this one has the I/O, and eif-lane.c the threads.
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
 * fault or the clearing of a page.  docs/eif.md has what that is worth.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>        /* memfd_create() */
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "eif-load.h"

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

bool eif_read_all(int fd, uint8_t *buf, size_t len, uint64_t offset,
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

/* ---- Reader ---- */

static bool parse(EifLoader *ld, uint64_t file_size, EifError *err)
{
    size_t head = MIN(file_size, EIF_HEADER_SIZE);
    EifLayout *l = ld->layout;

    if (!eif_read_all(ld->fd, ld->header, head, 0, err) ||
        !eif_parse_header(l, ld->header, head, file_size, ld->opt->arch,
                          err)) {
        return false;
    }
    for (unsigned i = 0; i < l->n_sections; i++) {
        uint8_t *header = ld->section_header[i];

        if (!eif_read_all(ld->fd, header, EIF_SECTION_HEADER_SIZE,
                          l->section[i].offset, err) ||
            !eif_parse_section(l, i, header, err)) {
            return false;
        }
    }
    return eif_layout_finish(l, err);
}

/* Of the file's ramdisks and the initrd: what lies before an overlay. */
static uint64_t measured_initramfs(const EifLoader *ld)
{
    return eif_initramfs_append(ld->layout->ramdisk_bytes, ld->initrd_size);
}

/* Everything that what is read will need, sized by the checked layout. */
static bool allocate(EifLoader *ld, EifError *err)
{
    EifImage *image = ld->image;
    const EifLayout *l = ld->layout;

    image->kernel_size = l->section[l->kernel].size;
    image->cmdline_len = l->section[l->cmdline].size;
    image->initramfs_size =
        eif_initramfs_append(measured_initramfs(ld), ld->overlay_size);
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
    ld->chunk = g_malloc(EIF_LOAD_CHUNK);
    return true;
}

/* After allocate(): the sections in file order, then what is added. */
static void plan(EifLoader *ld)
{
    const EifImage *image = ld->image;
    const EifLayout *l = ld->layout;
    uint64_t ramdisk = 0;

    for (unsigned i = 0; i < l->n_sections; i++) {
        const EifSection *s = &l->section[i];
        EifPiece *p = &ld->pieces[ld->n_pieces++];

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
    if (ld->initrd_size) {
        ld->pieces[ld->n_pieces++] = (EifPiece) {
            .src_fd = ld->initrd_fd,
            .size = ld->initrd_size,
            .memfd = image->initramfs_fd,
            .offset = measured_initramfs(ld) - ld->initrd_size,
            .measured = true,
            .part = EIF_PART_RAMDISK_APP,
            .extra = true,
        };
    }
    if (ld->overlay_size) {
        ld->pieces[ld->n_pieces++] = (EifPiece) {
            .src_fd = ld->overlay_fd,
            .size = ld->overlay_size,
            .memfd = image->initramfs_fd,
            .offset = image->initramfs_size - ld->overlay_size,
            .extra = true,
            .overlay = true,
        };
    }
}

static void publish(EifLoader *ld, EifPiece *p, uint64_t n)
{
    g_mutex_lock(&ld->lock);
    p->ready += n;
    g_cond_broadcast(&ld->grown);
    g_mutex_unlock(&ld->lock);
}

static bool stream(EifLoader *ld, EifPiece *p, EifError *err)
{
    EifTimes *times = &ld->image->times;
    int64_t t = g_get_monotonic_time();
    uint64_t done = 0;

    while (done < p->size) {
        size_t n = MIN(p->size - done, EIF_LOAD_CHUNK);

        if (!eif_read_all(p->src_fd, ld->chunk, n, p->src_offset + done, err)) {
            return false;
        }
        eif_lap(&t, &times->read);
        if (!p->extra) {
            ld->crc = crc32_z(ld->crc, ld->chunk, n);
            eif_lap(&t, &times->crc);
        }
        if (p->overlay && !eif_overlay_feed(&ld->overlay, ld->chunk, n, err)) {
            return false;
        }
        if (p->memfd >= 0) {
            if (!write_all(p->memfd, ld->chunk, n, p->offset + done, err)) {
                return false;
            }
        } else if (p->data) {
            memcpy(p->data + done, ld->chunk, n);
        }
        publish(ld, p, n);
        eif_lap(&t, &times->store);
        done += n;
    }
    return true;
}

static bool check_boot(EifLoader *ld, EifError *err)
{
    EifImage *image = ld->image;
    const EifOptions *opt = ld->opt;
    uint8_t header[EIF_KERNEL_HEADER_SIZE];
    size_t len = MIN(image->kernel_size, sizeof(header));
    uint64_t cmdline = image->cmdline_len + opt->cmdline_extra;
    EifError without;

    if (!eif_read_all(image->kernel_fd, header, len, 0, err) ||
        !eif_check_kernel(image->layout.arch, header, len, image->kernel_size,
                          &image->kernel, err) ||
        !eif_check_placement(&image->kernel, cmdline, measured_initramfs(ld),
                             opt->lowmem, err)) {
        return false;
    }
    if (!eif_check_placement(&image->kernel, cmdline, image->initramfs_size,
                             opt->lowmem, &without)) {
        return eif_fail(err, EIF_ERR_OVERLAY_TOO_LARGE, "it has %" PRIu64
                        " bytes, and with it %s", ld->overlay_size,
                        without.text);
    }
    return true;
}

/* What no section has: in the checksum, and nowhere else. */
static bool sum_gap(EifLoader *ld, uint64_t from, uint64_t to, EifError *err)
{
    while (from < to) {
        size_t n = MIN(to - from, EIF_LOAD_CHUNK);

        if (!eif_read_all(ld->fd, ld->chunk, n, from, err)) {
            return false;
        }
        ld->crc = crc32_z(ld->crc, ld->chunk, n);
        from += n;
    }
    return true;
}

/* Steps 5 to 7, what is added in between. */
static bool read_and_check(EifLoader *ld, EifError *err)
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
    for (unsigned i = l->n_sections; i < ld->n_pieces; i++) {
        if (!stream(ld, &ld->pieces[i], err)) {
            return false;
        }
    }
    if (ld->overlay_fd >= 0 && !eif_overlay_end(&ld->overlay, err)) {
        return false;
    }
    return ld->opt->file_rules_only || check_boot(ld, err);
}

/* From the checked layout to the verdict. */
static bool load(EifLoader *ld, EifError *err)
{
    EifImage *image = ld->image;
    EifTimes *times = &image->times;
    EifLane pcr0 = { .loader = ld };
    EifLane pcr2 = { .loader = ld, .app_only = true };
    int64_t t;
    bool ok;

    if (!allocate(ld, err)) {
        return false;
    }
    plan(ld);
    ok = eif_lane_start(&pcr0, err) && eif_lane_start(&pcr2, err) &&
         read_and_check(ld, err);
    if (!ok) {
        eif_lanes_stop(ld);
    }
    t = g_get_monotonic_time();
    /* Both must be gone, and a first error stands. */
    ok = eif_lane_join(&pcr0, ok ? err : NULL) && ok;
    ok = eif_lane_join(&pcr2, ok ? err : NULL) && ok;
    eif_lap(&t, &times->reader_wait);
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
    eif_lap(&t, &times->signature);
    return ok && seal(image->kernel_fd, err) &&
           (image->initramfs_fd < 0 || seal(image->initramfs_fd, err));
}

bool eif_load(int fd, int initrd_fd, int overlay_fd, const EifOptions *opt,
              EifImage *out, EifError *err)
{
    g_autofree EifLoader *ld = g_new0(EifLoader, 1);
    int64_t t = g_get_monotonic_time();
    uint64_t file_size;
    bool ok;

    memset(out, 0, sizeof(*out));
    out->kernel_fd = out->initramfs_fd = -1;
    ld->fd = fd;
    ld->initrd_fd = initrd_fd;
    ld->overlay_fd = overlay_fd;
    ld->opt = opt;
    ld->image = out;
    ld->layout = &out->layout;
    g_mutex_init(&ld->lock);
    g_cond_init(&ld->grown);

    ok = regular_size(fd, "EIF", &file_size, err) &&
         (initrd_fd < 0 ||
          regular_size(initrd_fd, "initrd", &ld->initrd_size, err)) &&
         (overlay_fd < 0 ||
          regular_size(overlay_fd, "overlay", &ld->overlay_size, err));
    if (ok) {
        posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
        ok = parse(ld, file_size, err) &&
             eif_check_sizes(ld->layout, ld->initrd_size, ld->overlay_size,
                             opt->lowmem, err) &&
             load(ld, err);
    }

    g_free(ld->signature);
    g_free(ld->chunk);
    g_cond_clear(&ld->grown);
    g_mutex_clear(&ld->lock);
    eif_lap(&t, &out->times.total);
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
