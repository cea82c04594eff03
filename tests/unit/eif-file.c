/*
 * SPDX-License-Identifier: MIT
 *
 * EIF files for tests: see eif-file.h.
 */

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "eif-file.h"

void put_be(GByteArray *f, size_t offset, unsigned width, uint64_t value)
{
    g_assert_cmpuint(offset + width, <=, f->len);
    for (unsigned i = 0; i < width; i++) {
        f->data[offset + i] = (uint8_t)(value >> (8 * (width - 1 - i)));
    }
}

uint64_t get_be(const GByteArray *f, size_t offset, unsigned width)
{
    uint64_t value = 0;

    g_assert_cmpuint(offset + width, <=, f->len);
    for (unsigned i = 0; i < width; i++) {
        value = value << 8 | f->data[offset + i];
    }
    return value;
}

/* CRC-32/ISO-HDLC, bit by bit. */
static uint32_t crc_bits(uint32_t crc, const uint8_t *p, size_t len)
{
    while (len--) {
        crc ^= *p++;
        for (int i = 0; i < 8; i++) {
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
        }
    }
    return crc;
}

void eif_file_fix_crc(GByteArray *f)
{
    uint32_t crc = crc_bits(0xffffffff, f->data, 544);

    put_be(f, 544, 4, ~crc_bits(crc, f->data + 548, f->len - 548));
}

GByteArray *eif_file_build(uint16_t version, const Part *parts, unsigned n)
{
    GByteArray *f = g_byte_array_new();

    g_assert_cmpuint(n, <=, 32);
    g_byte_array_set_size(f, 548);
    memset(f->data, 0, f->len);
    put_be(f, 0, 4, 0x2e656966);
    put_be(f, 4, 2, version);
    put_be(f, 8, 8, 1 << 30);
    put_be(f, 16, 8, 2);
    put_be(f, 26, 2, n);
    for (unsigned i = 0; i < n; i++) {
        size_t offset = f->len;

        put_be(f, 28 + 8 * i, 8, offset);
        put_be(f, 284 + 8 * i, 8, parts[i].size);
        g_byte_array_set_size(f, offset + 12);
        put_be(f, offset, 2, parts[i].type);
        put_be(f, offset + 2, 2, 0);
        put_be(f, offset + 4, 8, parts[i].size);
        g_byte_array_append(f, parts[i].data, parts[i].size);
    }
    eif_file_fix_crc(f);
    return f;
}

size_t eif_file_section(const GByteArray *f, unsigned i)
{
    return get_be(f, 28 + 8 * i, 8);
}

static void put_le(GByteArray *f, size_t offset, unsigned width,
                   uint64_t value)
{
    for (unsigned i = 0; i < width; i++) {
        f->data[offset + i] = (uint8_t)(value >> (8 * i));
    }
}

GByteArray *bzimage(size_t size)
{
    GByteArray *k = g_byte_array_new();

    g_assert_cmpuint(size, >=, 0x264);
    g_byte_array_set_size(k, size);
    memset(k->data, 'k', size);
    put_le(k, 0x1f1, 1, 5);                 /* setup_sects */
    put_le(k, 0x1fe, 2, 0xaa55);            /* boot_flag */
    memcpy(k->data + 0x202, "HdrS", 4);
    put_le(k, 0x206, 2, 0x20f);             /* version */
    put_le(k, 0x211, 1, 1);                 /* loadflags: LOADED_HIGH */
    put_le(k, 0x22c, 4, 0x7fffffff);        /* initrd_addr_max */
    put_le(k, 0x230, 4, 0x200000);          /* kernel_alignment */
    put_le(k, 0x234, 1, 1);                 /* relocatable_kernel */
    put_le(k, 0x236, 2, 3);                 /* xloadflags */
    put_le(k, 0x238, 4, 2047);              /* cmdline_size */
    put_le(k, 0x258, 8, 0x1000000);         /* pref_address */
    put_le(k, 0x260, 4, 0x1000000);         /* init_size */
    return k;
}

GByteArray *arm64_image(size_t size)
{
    GByteArray *k = g_byte_array_new();

    g_assert_cmpuint(size, >=, 64);
    g_byte_array_set_size(k, size);
    memset(k->data, 'k', size);
    put_le(k, 0, 4, 0x91005a4d);            /* code0: add x13, x18, #0x16 */
    put_le(k, 8, 8, 0x200000);              /* text_offset */
    put_le(k, 16, 8, 0x1000000);            /* image_size */
    put_le(k, 24, 8, 0xa);                  /* flags */
    memset(k->data + 32, 0, 24);
    memcpy(k->data + 56, "ARM\x64", 4);
    return k;
}

void expect_pcr(uint8_t pcr[EIF_DIGEST_SIZE], const Part *parts)
{
    g_autoptr(GChecksum) inner = g_checksum_new(G_CHECKSUM_SHA384);
    g_autoptr(GChecksum) outer = g_checksum_new(G_CHECKSUM_SHA384);
    uint8_t extend[2 * EIF_DIGEST_SIZE] = { 0 };
    gsize len = EIF_DIGEST_SIZE;

    for (; parts->data; parts++) {
        g_checksum_update(inner, parts->data, (gssize)parts->size);
    }
    g_checksum_get_digest(inner, extend + EIF_DIGEST_SIZE, &len);
    g_assert_cmpuint(len, ==, EIF_DIGEST_SIZE);
    g_checksum_update(outer, extend, sizeof(extend));
    g_checksum_get_digest(outer, pcr, &len);
    g_assert_cmpuint(len, ==, EIF_DIGEST_SIZE);
}

char *hex_of(const uint8_t *data, size_t len)
{
    GString *s = g_string_new(NULL);

    for (size_t i = 0; i < len; i++) {
        g_string_append_printf(s, "%02x", data[i]);
    }
    return g_string_free(s, FALSE);
}

void assert_hex(const uint8_t *data, size_t len, const char *hex)
{
    g_autofree char *have = hex_of(data, len);

    g_assert_cmpstr(have, ==, hex);
}

int fd_of(const void *data, size_t size)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    if (size) {
        g_assert_cmpint(write(fd, data, size), ==, (ssize_t)size);
    }
    return fd;
}

EifRule judge(const GByteArray *f, const EifOptions *opt, EifMeasurements *m,
              EifError *err)
{
    /* Of exactly this size, so that a sanitizer sees one byte too many. */
    g_autofree uint8_t *copy = g_memdup2(f->data, f->len);
    EifError warning, load_err = { EIF_OK, "" };
    EifImage image;
    EifMemfds fds;
    bool checked, loaded;
    int fd = fd_of(f->data, f->len);

    *err = (EifError) { EIF_OK, "" };
    checked = eif_check(copy, f->len, opt, m, &warning, err);
    loaded = eif_load_memfds(fd, -1, -1, opt, &fds, &image, &load_err);
    g_assert_cmpint(checked, ==, err->rule == EIF_OK);
    g_assert_cmpstr(eif_rule_name(load_err.rule), ==,
                    eif_rule_name(err->rule));
    g_assert_cmpstr(load_err.text, ==, err->text);
    g_assert_cmpint(loaded, ==, checked);
    if (checked) {
        g_assert_cmpmem(image.pcr.pcr0, EIF_DIGEST_SIZE, m->pcr0,
                        EIF_DIGEST_SIZE);
        g_assert_cmpmem(image.pcr.pcr1, EIF_DIGEST_SIZE, m->pcr1,
                        EIF_DIGEST_SIZE);
        g_assert_cmpmem(image.pcr.pcr2, EIF_DIGEST_SIZE, m->pcr2,
                        EIF_DIGEST_SIZE);
        g_assert_cmpmem(image.pcr.pcr8, EIF_DIGEST_SIZE, m->pcr8,
                        EIF_DIGEST_SIZE);
        g_assert_cmpint(image.pcr.has_pcr8, ==, m->has_pcr8);
        g_assert_cmpstr(image.signature_warning.text, ==, warning.text);
        if (warning.rule != EIF_OK) {
            *err = warning;         /* for the tests of the lenient policy */
        }
    } else {
        g_assert_cmpuint(strlen(err->text), >, 20);
        g_assert_cmpint(fds.kernel, ==, -1);
        g_assert_cmpint(fds.initramfs, ==, -1);
        g_assert_null(image.cmdline);
    }
    eif_image_clear(&image);
    eif_memfds_close(&fds);
    close(fd);
    return checked ? EIF_OK : err->rule;
}
