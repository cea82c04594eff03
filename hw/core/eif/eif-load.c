/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: the loader.  One pass over a file, each byte copied once, to where
 * the caller wants kernel and initramfs; digests come from what lies there.
 * The rules themselves are in the other files; this one has the I/O, and
 * eif-lane.c the threads.
 *
 * Why it is built this way.  For an image of 400 MB, PCR0 alone is one SHA-384
 * over all of it, and that cannot be divided.  So the goal is to keep one core
 * on PCR0 from the first byte to the last, and to fit all the rest on another:
 *
 *   reader (the caller)   file -> the caller's memory, CRC-32 there
 *   PCR0 lane (thread)    SHA-384 there
 *   PCR2 lane (thread)    the same, ramdisks after the first
 *
 * The reader publishes how far each piece has come, the lanes follow.  There
 * is no ring between them and so nobody waits for room: what is read lies in
 * its place already, and the reader runs ahead, which gives the PCR2 lane its
 * work early and the reader's core free for it.
 *
 * The reader works in pieces that stay in the second-level cache, where the
 * CRC costs little.  docs/performance.md has what all this is worth.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "eif-load.h"

/* ---- Files ---- */

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
        if (n < 0 && errno == EFAULT) {
            return eif_fail(err, EIF_ERR_IO, "there is no memory for what is"
                            " at offset %" PRIu64 " (%zu bytes): is the host's"
                            " full?", offset, len);
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

/* What the loader itself keeps, sized by the checked layout. */
static void allocate(EifLoader *ld)
{
    EifImage *image = ld->image;
    const EifLayout *l = ld->layout;

    image->kernel_size = l->section[l->kernel].size;
    image->cmdline_len = l->section[l->cmdline].size;
    image->initramfs_size =
        eif_initramfs_append(measured_initramfs(ld), ld->overlay_size);
    image->is_signed = l->signature >= 0;

    image->cmdline = g_malloc0(image->cmdline_len + 1);
    if (image->is_signed) {
        ld->signature = g_malloc(l->section[l->signature].size);
    }
    ld->chunk = g_malloc(EIF_LOAD_CHUNK);
}

/*
 * Steps 6 and 7, for a verdict that has to wait until the data were judged.
 * They come first since the places follow from the kernel's header, which is
 * kept: what was judged is what is measured.
 */
static bool check_boot(EifLoader *ld, EifError *err)
{
    EifImage *image = ld->image;
    const EifOptions *opt = ld->opt;
    uint64_t cmdline = image->cmdline_len + opt->cmdline_extra;
    EifError without;

    if (!eif_check_kernel(image->layout.arch, ld->kernel_head,
                          ld->kernel_head_len, image->kernel_size,
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

/* The kernel's header, ahead of all else. */
static bool read_kernel_head(EifLoader *ld, EifError *err)
{
    const EifSection *s = &ld->layout->section[ld->layout->kernel];

    ld->kernel_head_len = MIN(s->size, sizeof(ld->kernel_head));
    return eif_read_all(ld->fd, ld->kernel_head, ld->kernel_head_len,
                        s->offset + EIF_SECTION_HEADER_SIZE, err);
}

/* Between what is appended at a multiple of EIF_INITRD_ALIGN. */
static void clear_padding(EifLoader *ld)
{
    uint64_t before = measured_initramfs(ld);
    uint64_t initrd = before - ld->initrd_size;
    uint64_t overlay = ld->image->initramfs_size - ld->overlay_size;

    if (ld->initrd_size) {
        memset(ld->places.initramfs + ld->layout->ramdisk_bytes, 0,
               initrd - ld->layout->ramdisk_bytes);
    }
    if (ld->overlay_size) {
        memset(ld->places.initramfs + before, 0, overlay - before);
    }
}

static uint8_t *in_initramfs(const EifLoader *ld, uint64_t offset)
{
    return ld->places.initramfs ? ld->places.initramfs + offset : NULL;
}

/* The kernel, in two where its setup code goes elsewhere. */
static void plan_kernel(EifLoader *ld, EifPiece p)
{
    uint32_t setup = ld->image->kernel.setup_bytes;

    p.head = ld->kernel_head;
    p.head_len = ld->kernel_head_len;
    if (setup) {
        EifPiece first = p;

        first.size = setup;
        first.data = ld->places.setup;
        ld->pieces[ld->n_pieces++] = first;
        p.src_offset += setup;
        p.size -= setup;
        p.head_len = 0;         /* shorter than the shortest setup code */
    }
    p.data = ld->places.kernel;
    ld->pieces[ld->n_pieces++] = p;
}

/*
 * After allocate() and with ld->places, zero if nothing is to be kept: the
 * sections in file order, then what is added.
 */
static void plan(EifLoader *ld)
{
    const EifImage *image = ld->image;
    const EifLayout *l = ld->layout;
    uint64_t ramdisk = 0;

    for (unsigned i = 0; i < l->n_sections; i++) {
        const EifSection *s = &l->section[i];
        EifPiece p = {
            .section = i,
            .src_fd = ld->fd,
            .src_offset = s->offset + EIF_SECTION_HEADER_SIZE,
            .size = s->size,
        };

        p.measured = eif_section_part(l, i, &p.part);
        switch (s->type) {
        case EIF_SECTION_KERNEL:
            plan_kernel(ld, p);
            continue;
        case EIF_SECTION_RAMDISK:
            p.data = in_initramfs(ld, ramdisk);
            ramdisk += s->size;
            break;
        case EIF_SECTION_CMDLINE:
            p.data = (uint8_t *)image->cmdline;
            break;
        case EIF_SECTION_SIGNATURE:
            p.data = ld->signature;
            break;
        default:
            break;
        }
        ld->pieces[ld->n_pieces++] = p;
    }
    if (ld->initrd_size) {
        ld->pieces[ld->n_pieces++] = (EifPiece) {
            .src_fd = ld->initrd_fd,
            .size = ld->initrd_size,
            .data = in_initramfs(ld, measured_initramfs(ld) -
                                 ld->initrd_size),
            .measured = true,
            .part = EIF_PART_RAMDISK_APP,
            .extra = true,
        };
    }
    if (ld->overlay_size) {
        ld->pieces[ld->n_pieces++] = (EifPiece) {
            .src_fd = ld->overlay_fd,
            .size = ld->overlay_size,
            .data = in_initramfs(ld, image->initramfs_size -
                                 ld->overlay_size),
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
        uint8_t *to = p->data ? p->data + done : ld->chunk;

        if (done < p->head_len) {
            n = MIN(n, p->head_len - done);
            memcpy(to, p->head + done, n);
        } else if (!eif_read_all(p->src_fd, to, n, p->src_offset + done,
                                 err)) {
            return false;
        }
        eif_lap(&t, &times->read);
        if (!p->extra) {
            ld->crc = crc32_z(ld->crc, to, n);
        }
        if (p->overlay && !eif_overlay_feed(&ld->overlay, to, n, err)) {
            return false;
        }
        publish(ld, p, n);
        eif_lap(&t, &times->crc);
        done += n;
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

/* Step 5, and what is added. */
static bool read_and_check(EifLoader *ld, EifError *err)
{
    EifImage *image = ld->image;
    const EifLayout *l = ld->layout;
    uint64_t end = EIF_HEADER_SIZE;
    unsigned piece = 0;

    ld->crc = eif_crc_header(ld->header);
    for (unsigned i = 0; i < l->n_sections; i++) {
        const EifSection *s = &l->section[i];

        if (!sum_gap(ld, end, s->offset, err)) {
            return false;
        }
        end = s->offset + EIF_SECTION_HEADER_SIZE + s->size;
        ld->crc = crc32(ld->crc, ld->section_header[i],
                        EIF_SECTION_HEADER_SIZE);
        for (; piece < ld->n_pieces && !ld->pieces[piece].extra &&
               ld->pieces[piece].section == i; piece++) {
            if (!stream(ld, &ld->pieces[piece], err)) {
                return false;
            }
        }
    }
    if (!eif_check_crc(l, ld->crc, err) ||
        !eif_check_cmdline((const uint8_t *)image->cmdline,
                           image->cmdline_len, err)) {
        return false;
    }
    for (; piece < ld->n_pieces; piece++) {
        if (!stream(ld, &ld->pieces[piece], err)) {
            return false;
        }
    }
    return ld->overlay_fd < 0 || eif_overlay_end(&ld->overlay, err);
}

/* To the caller's memory, measured on the way. */
static bool read_and_measure(EifLoader *ld, EifError *err)
{
    EifImage *image = ld->image;
    EifLane pcr0 = { .loader = ld };
    EifLane pcr2 = { .loader = ld, .app_only = true };
    int64_t t;
    bool ok;

    clear_padding(ld);
    ok = eif_lane_start(&pcr0, err) && eif_lane_start(&pcr2, err) &&
         read_and_check(ld, err);
    if (!ok) {
        eif_lanes_stop(ld);
    }
    t = g_get_monotonic_time();
    /* Both must be gone, and a first error stands. */
    ok = eif_lane_join(&pcr0, ok ? err : NULL) && ok;
    ok = eif_lane_join(&pcr2, ok ? err : NULL) && ok;
    eif_lap(&t, &image->times.reader_wait);
    if (!ok) {
        return false;
    }

    image->times.pcr0 = pcr0.busy;
    image->times.pcr2 = pcr2.busy;
    memcpy(image->pcr.pcr0, pcr0.pcr, EIF_DIGEST_SIZE);
    memcpy(image->pcr.pcr1, pcr0.pcr1, EIF_DIGEST_SIZE);
    memcpy(image->pcr.pcr2, pcr2.pcr, EIF_DIGEST_SIZE);
    if (image->is_signed) {
        ok = eif_judge_signature(ld->signature,
                                 ld->layout->section[ld->layout->signature]
                                 .size, ld->opt, pcr0.file_pcr0, &image->pcr,
                                 &image->signature_warning, err);
    }
    eif_lap(&t, &image->times.signature);
    return ok;
}

/* From the checked layout to the verdict. */
static bool load(EifLoader *ld, const EifMemory *memory, EifError *err)
{
    EifError boot;

    allocate(ld);
    if (!read_kernel_head(ld, err)) {
        return false;
    }
    if (!ld->opt->file_rules_only && !check_boot(ld, &boot)) {
        /* It will not start, but may have broken an earlier rule: no place. */
        ld->image->kernel.setup_bytes = 0;
        plan(ld);
        if (read_and_check(ld, err)) {
            *err = boot;
        }
        return false;
    }
    if (!memory->place(memory->opaque, ld->image, &ld->places, err)) {
        return false;
    }
    plan(ld);
    return read_and_measure(ld, err);
}

bool eif_load(int fd, int initrd_fd, int overlay_fd, const EifOptions *opt,
              const EifMemory *memory, EifImage *out, EifError *err)
{
    g_autofree EifLoader *ld = g_new0(EifLoader, 1);
    int64_t t = g_get_monotonic_time();
    uint64_t file_size;
    bool ok;

    memset(out, 0, sizeof(*out));
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
             load(ld, memory, err);
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
    g_free(image->cmdline);
    memset(image, 0, sizeof(*image));
}
