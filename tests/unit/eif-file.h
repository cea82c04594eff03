/*
 * SPDX-License-Identifier: MIT
 *
 * EIF files for tests, made without the core: own layout code, a bitwise CRC,
 * GLib's SHA-384.  What these say is what the core is measured against.
 */

#ifndef EIF_FILE_H
#define EIF_FILE_H

#include <sys/types.h>
#include <glib.h>

#include "nitro/eif.h"

/* 2025-06-15, within the dates of the signed fixtures. */
#define NOW             1750000000

typedef struct Part {
    uint16_t type;
    const void *data;
    size_t size;
} Part;

/* Big-endian, @width bytes. */
void put_be(GByteArray *f, size_t offset, unsigned width, uint64_t value);
uint64_t get_be(const GByteArray *f, size_t offset, unsigned width);

GByteArray *eif_file_build(uint16_t version, const Part *parts, unsigned n);
void eif_file_fix_crc(GByteArray *f);
/* Where the header of section @i is; its data are 12 bytes on. */
size_t eif_file_section(const GByteArray *f, unsigned i);

/*
 * A bzImage header (boot protocol 2.15, relocatable, setup of 5 sectors,
 * init_size and pref_address 16 MiB, 2047 bytes of command line) and a filler
 * up to @size.
 */
GByteArray *bzimage(size_t size);

/*
 * An arm64 Image header (text_offset 2 MiB, image_size 16 MiB, little-endian,
 * 4 KiB pages) and a filler up to @size.
 */
GByteArray *arm64_image(size_t size);

/* SHA384(48 x 00 || SHA384(content)) of the parts in turn; {NULL} ends. */
void expect_pcr(uint8_t pcr[EIF_DIGEST_SIZE], const Part *parts);
char *hex_of(const uint8_t *data, size_t len);
/* Compares with hex digits, showing both. */
void assert_hex(const uint8_t *data, size_t len, const char *hex);

/* A memfd with these bytes. */
int fd_of(const void *data, size_t size);

/*
 * Judge @f by eif_check() and by eif_load(), which must agree on rule, text
 * and measurements.  @m and @err are set as they say.
 */
EifRule judge(const GByteArray *f, const EifOptions *opt, EifMeasurements *m,
              EifError *err);

/* pread(), wrapped by the linker for test-eif-load alone. */
ssize_t __real_pread64(int fd, void *buf, size_t len, off_t offset);
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset);

#endif /* EIF_FILE_H */
