/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: what a guest runs that no PCR has.  An overlay is an archive that
 * Linux unpacks over the image's own; a command line can name another init.
 * Here is what an overlay must be: cpio archives of the kind newc, one after
 * the other, as Linux will read them (Documentation/driver-api/
 * early-userspace/buffer-format.rst).  Linux passes over what it cannot read
 * without a word, so all of it is looked at first, while it is loaded.
 *
 * Nothing is kept of an archive but the entry that is being read.
 */

#include <inttypes.h>
#include <string.h>

#include "eif-overlay.h"

#define MAGIC       "070701"
#define TRAILER     "TRAILER!!!"
#define LONGEST     4096            /* PATH_MAX: Linux skips longer names */

/* Numbers of eight digits each behind the magic. */
enum { FIELD_FILE_SIZE = 6, FIELD_NAME_SIZE = 11 };

static uint64_t align(uint64_t n)
{
    return (n + EIF_INITRD_ALIGN - 1) & ~(EIF_INITRD_ALIGN - 1ULL);
}

static const char *looks_like(const uint8_t *head)
{
    if (head[0] == 0x1f && head[1] == 0x8b) {
        return "this is gzip: unpack it";
    }
    if (memcmp(head, "\x28\xb5\x2f\xfd", 4) == 0) {
        return "this is zstd: unpack it";
    }
    if (memcmp(head, "\xfd" "7zXZ", 5) == 0) {
        return "this is xz: unpack it";
    }
    if (memcmp(head, "070702", 6) == 0 || memcmp(head, "070707", 6) == 0 ||
        memcmp(head, "\xc7\x71", 2) == 0 || memcmp(head, "\x71\xc7", 2) == 0) {
        return "this is another kind of cpio: make it with cpio -o -H newc";
    }
    if (memcmp(head, "\177ELF", 4) == 0) {
        return "this is an ELF file: put it into one with cpio -o -H newc";
    }
    return "make one with cpio -o -H newc";
}

/* Eight hexadecimal digits. */
static bool number(const uint8_t *digits, uint64_t *value)
{
    *value = 0;
    for (int i = 0; i < 8; i++) {
        int digit = g_ascii_xdigit_value(digits[i]);

        if (digit < 0) {
            return false;
        }
        *value = *value << 4 | (unsigned)digit;
    }
    return true;
}

/* A header, or, where the overlay has less, what there is of one. */
static bool judge_magic(const EifOverlay *o, EifError *err)
{
    if (memcmp(o->head, MAGIC, MIN(strlen(MAGIC), o->have)) == 0) {
        return true;
    }
    return eif_fail(err, EIF_ERR_OVERLAY_NOT_CPIO,
                    "no cpio archive of the kind newc at offset %" PRIu64
                    ", but %02x%02x%02x%02x: %s", o->entry, o->head[0],
                    o->head[1], o->head[2], o->head[3], looks_like(o->head));
}

static bool judge_header(EifOverlay *o, EifError *err)
{
    const uint8_t *field = o->head + strlen(MAGIC);
    uint64_t value, file_size = 0;

    if (!judge_magic(o, err)) {
        return false;
    }
    for (int i = 0; i < 13; i++, field += 8) {
        if (!number(field, &value)) {
            return eif_fail(err, EIF_ERR_OVERLAY_NOT_CPIO,
                            "the header at offset %" PRIu64 " has a number "
                            "that is none in field %d; make the archive again "
                            "with cpio -o -H newc", o->entry, i + 1);
        }
        if (i == FIELD_FILE_SIZE) {
            file_size = value;
        } else if (i == FIELD_NAME_SIZE) {
            o->name_size = value;
        }
    }
    if (o->name_size < 1 || o->name_size > LONGEST) {
        return eif_fail(err, EIF_ERR_OVERLAY_NOT_CPIO,
                        "the entry at offset %" PRIu64 " has a name of %"
                        PRIu64 " bytes; Linux takes 1 to %d, the NUL included",
                        o->entry, o->name_size, LONGEST);
    }
    /* All below 2^33: offsets of a file do not come near 2^64. */
    o->name_end = o->entry + EIF_OVERLAY_HEADER + o->name_size;
    o->next = align(align(o->name_end) + file_size);
    o->state = EIF_OVERLAY_NAME;
    return true;
}

static bool judge_name(EifOverlay *o, EifError *err)
{
    if (o->last != 0) {
        return eif_fail(err, EIF_ERR_OVERLAY_NOT_CPIO,
                        "the name of the entry at offset %" PRIu64 " does not "
                        "end with a NUL; make the archive again with cpio -o "
                        "-H newc", o->entry);
    }
    o->trailer = o->name_size == sizeof(TRAILER) &&
                 memcmp(o->name, TRAILER, sizeof(TRAILER)) == 0;
    o->state = EIF_OVERLAY_CONTENT;
    return true;
}

/* Zeros may stand between archives, and the next begins where Linux looks. */
static bool between(EifOverlay *o, uint8_t byte, EifError *err)
{
    if (byte == 0) {
        o->pos++;
        return true;
    }
    if (o->pos % EIF_INITRD_ALIGN) {
        return eif_fail(err, EIF_ERR_OVERLAY_MISALIGNED,
                        "what follows at offset %" PRIu64 " does not begin at "
                        "a multiple of %d, where Linux looks for an archive; "
                        "pad the one before it with zeros", o->pos,
                        EIF_INITRD_ALIGN);
    }
    o->entry = o->pos;
    o->have = 0;
    o->state = EIF_OVERLAY_HEAD;
    return true;
}

static void take(EifOverlay *o, const uint8_t **data, size_t *len, size_t n)
{
    o->pos += n;
    *data += n;
    *len -= n;
}

static void take_header(EifOverlay *o, const uint8_t **data, size_t *len)
{
    size_t n = MIN(EIF_OVERLAY_HEADER - o->have, *len);

    memcpy(o->head + o->have, *data, n);
    o->have += n;
    take(o, data, len, n);
}

static void take_name(EifOverlay *o, const uint8_t **data, size_t *len)
{
    size_t n = MIN(o->name_end - o->pos, *len);
    size_t have = o->name_size - (o->name_end - o->pos);

    for (size_t i = 0; i < n && have + i < sizeof(o->name); i++) {
        o->name[have + i] = (*data)[i];
    }
    o->last = (*data)[n - 1];
    take(o, data, len, n);
}

static void entry_over(EifOverlay *o)
{
    o->archives += o->trailer;
    o->state = o->trailer ? EIF_OVERLAY_BETWEEN : EIF_OVERLAY_HEAD;
    o->entry = o->pos;
    o->have = 0;
}

bool eif_overlay_feed(EifOverlay *o, const uint8_t *data, size_t len,
                      EifError *err)
{
    while (len) {
        switch (o->state) {
        case EIF_OVERLAY_BETWEEN:
            if (!between(o, *data, err)) {
                return false;
            }
            if (o->state == EIF_OVERLAY_BETWEEN) {
                data++;
                len--;
            }
            break;
        case EIF_OVERLAY_HEAD:
            take_header(o, &data, &len);
            if (o->have == EIF_OVERLAY_HEADER && !judge_header(o, err)) {
                return false;
            }
            break;
        case EIF_OVERLAY_NAME:
            take_name(o, &data, &len);
            if (o->pos == o->name_end && !judge_name(o, err)) {
                return false;
            }
            break;
        case EIF_OVERLAY_CONTENT:
            take(o, &data, &len, MIN(o->next - o->pos, len));
            break;
        }
        if (o->state == EIF_OVERLAY_CONTENT && o->pos == o->next) {
            entry_over(o);
        }
    }
    return true;
}

bool eif_overlay_end(const EifOverlay *o, EifError *err)
{
    if (o->state == EIF_OVERLAY_HEAD && !judge_magic(o, err)) {
        return false;
    }
    if (o->pos % EIF_INITRD_ALIGN) {
        return eif_fail(err, EIF_ERR_OVERLAY_MISALIGNED,
                        "it has %" PRIu64 " bytes, no multiple of %d: it was "
                        "cut, or pad it with zeros", o->pos, EIF_INITRD_ALIGN);
    }
    if (o->state != EIF_OVERLAY_BETWEEN) {
        return eif_fail(err, EIF_ERR_OVERLAY_NOT_CPIO,
                        "it ends after %" PRIu64 " bytes, and its archive is "
                        "not over: what begins at offset %" PRIu64 " was cut",
                        o->pos, o->entry);
    }
    if (!o->archives) {
        return eif_fail(err, EIF_ERR_OVERLAY_NOT_CPIO,
                        "there is no cpio archive in its %" PRIu64 " bytes; "
                        "make one with cpio -o -H newc", o->pos);
    }
    return true;
}

/* isspace() of Linux, which splits its command line there. */
static bool separates(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r') || (unsigned char)c == 0xa0;
}

bool eif_cmdline_names_init(const char *text)
{
    static const char *const names[] = { "init=", "rdinit=" };
    bool begins = true;

    for (; *text; text++) {
        for (size_t i = 0; begins && i < G_N_ELEMENTS(names); i++) {
            if (g_str_has_prefix(text, names[i])) {
                return true;
            }
        }
        /* A value in quotes may begin before its name does. */
        begins = separates(*text) || *text == '"';
    }
    return false;
}
