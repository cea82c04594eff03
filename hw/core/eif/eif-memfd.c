/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: an image's kernel and initramfs in memfds, for boot loaders that
 * want files.  The loading itself is in eif-load.c: it writes to a mapping,
 * which is gone before the memfd is sealed.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "eif-internal.h"

typedef struct Mapping {
    int fd;
    void *start;
    size_t size;
} Mapping;

typedef struct Mappings {
    Mapping kernel;
    Mapping initramfs;
} Mappings;

static bool io_error(EifError *err, const char *doing)
{
    return eif_fail(err, EIF_ERR_IO, "cannot %s: %s", doing, strerror(errno));
}

/* A memfd of @size bytes, none of them there yet. */
static bool map_new(Mapping *m, const char *name, uint64_t size, EifError *err)
{
    m->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (m->fd < 0 || ftruncate(m->fd, (off_t)size) < 0) {
        return io_error(err, "make room for the image in memory");
    }
    if (size) {
        m->start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd,
                        0);
        if (m->start == MAP_FAILED) {
            m->start = NULL;
            return io_error(err, "map room for the image in memory");
        }
        m->size = size;
    }
    return true;
}

static bool place(void *opaque, const EifImage *image, EifPlaces *places,
                  EifError *err)
{
    Mappings *m = opaque;

    if (!map_new(&m->kernel, "eif-kernel", image->kernel_size, err) ||
        (image->initramfs_size &&
         !map_new(&m->initramfs, "eif-initramfs", image->initramfs_size,
                  err))) {
        return false;
    }
    places->setup = m->kernel.start;
    places->kernel = m->kernel.start;
    if (places->kernel) {
        places->kernel += image->kernel.setup_bytes;
    }
    places->initramfs = m->initramfs.start;
    return true;
}

static void unmap(Mapping *m)
{
    if (m->start) {
        munmap(m->start, m->size);
    }
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

bool eif_load_memfds(int fd, int initrd_fd, int overlay_fd,
                     const EifOptions *opt, EifMemfds *fds, EifImage *out,
                     EifError *err)
{
    Mappings m = { .kernel.fd = -1, .initramfs.fd = -1 };
    const EifMemory memory = { .place = place, .opaque = &m };
    bool ok = eif_load(fd, initrd_fd, overlay_fd, opt, &memory, out, err);

    unmap(&m.kernel);
    unmap(&m.initramfs);
    *fds = (EifMemfds) { m.kernel.fd, m.initramfs.fd };
    if (ok && (!seal(fds->kernel, err) ||
               (fds->initramfs >= 0 && !seal(fds->initramfs, err)))) {
        eif_image_clear(out);
        ok = false;
    }
    if (!ok) {
        eif_memfds_close(fds);
    }
    return ok;
}

void eif_memfds_close(EifMemfds *fds)
{
    if (fds->kernel >= 0) {
        close(fds->kernel);
    }
    if (fds->initramfs >= 0) {
        close(fds->initramfs);
    }
    fds->kernel = fds->initramfs = -1;
}
