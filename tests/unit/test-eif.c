/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of the EIF core: layout, measurement, boot checks.  A good file,
 * one field damaged, one exact rule; every case goes through the checker and
 * the loader alike.  Signatures and the loader's own affairs are elsewhere.
 *
 * The vector's values were computed with Python's hashlib and zlib and checked
 * again with OpenSSL, none of it this project's code.
 *
 * Long because it has a table of each of the format's rules.
 */

#include <string.h>

#include "eif-file.h"

enum { KERNEL = 1, CMDLINE, RAMDISK, SIGNATURE, METADATA };

static const EifOptions all_rules = {
    .arch = EIF_ARCH_X86_64, .now = NOW, .lowmem = 256 << 20,
};
static const EifOptions file_rules = { .now = NOW, .file_rules_only = true };

/* ---- The vector ---- */

static const char vector_metadata[] =
    "{\"ImageName\":\"tiny\",\"ImageVersion\":\"1.0\",\"BuildMetadata\":{"
    "\"BuildTime\":\"1970-01-01T00:00:00+00:00\",\"BuildTool\":\"t\","
    "\"BuildToolVersion\":\"0\",\"OperatingSystem\":\"Linux\","
    "\"KernelVersion\":\"0.0\"},\"DockerInfo\":null,\"CustomMetadata\":null}";

#define PCR2_EMPTY \
    "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c" \
    "10edb30948c90ba67310f7b964fc500a"

static void test_vector(void)
{
    const Part parts[] = {
        { KERNEL, "KKKKKKKKKKKKKKKK", 16 },
        { CMDLINE, "c", 1 },
        { METADATA, vector_metadata, strlen(vector_metadata) },
        { RAMDISK, "INITINIT", 8 },
        { RAMDISK, "APPLAPPLAPPL", 12 },
    };
    g_autoptr(GByteArray) f = eif_file_build(4, parts, 5);
    g_autofree char *sha256 = g_compute_checksum_for_data(G_CHECKSUM_SHA256,
                                                          f->data, f->len);
    EifMeasurements m;
    EifError err;

    g_assert_cmpuint(f->len, ==, 871);
    g_assert_cmpstr(sha256, ==, "b26cd815d69078da87d1eb5df13ff3f33c5ffe8c9365e"
                    "baad382923e8de9b09e");
    g_assert_cmphex(get_be(f, 0x220, 4), ==, 0x1d8f97aa);
    g_assert_cmpint(judge(f, &file_rules, &m, &err), ==, EIF_OK);
    assert_hex(m.pcr0, EIF_DIGEST_SIZE,
               "9a335c3cba13893f5ed6e9e8e521211352d5a57327ad66586e64c98bcce968"
               "136deee39fde3b6f215fdcd23ec0f2f64e");
    assert_hex(m.pcr1, EIF_DIGEST_SIZE,
               "cf92aa3b4dd5bf6174faf9ca4b01a5b15ffe949fa6aab520495d96f9732894"
               "7147213aa09a83c2ff34ce7986a7140981");
    assert_hex(m.pcr2, EIF_DIGEST_SIZE,
               "135a91f11e577c4ef9ab25d7669f5bcdfa838980fab14220df14aded46f893"
               "a11c2f0fb34624f8b56fc02b4d89247749");
    g_assert_false(m.has_pcr8);

    /* The kernel is 16 times K: nothing to boot. */
    g_assert_cmpint(judge(f, &all_rules, &m, &err), ==,
                    EIF_ERR_KERNEL_NOT_BZIMAGE);
}

static void test_one_ramdisk(void)
{
    const Part parts[] = {
        { KERNEL, "KKKKKKKKKKKKKKKK", 16 },
        { CMDLINE, "c", 1 },
        { METADATA, "{}", 2 },
        { RAMDISK, "INITINIT", 8 },
    };
    g_autoptr(GByteArray) f = eif_file_build(4, parts, 4);
    EifMeasurements m;
    EifError err;

    g_assert_cmpint(judge(f, &file_rules, &m, &err), ==, EIF_OK);
    assert_hex(m.pcr2, EIF_DIGEST_SIZE, PCR2_EMPTY);
    g_assert_cmpmem(m.pcr0, EIF_DIGEST_SIZE, m.pcr1, EIF_DIGEST_SIZE);
    assert_hex(m.pcr1, EIF_DIGEST_SIZE,
               "cf92aa3b4dd5bf6174faf9ca4b01a5b15ffe949fa6aab520495d96f9732894"
               "7147213aa09a83c2ff34ce7986a7140981");
}

/* ---- Order of sections, and PCRs computed apart ---- */

static const char *const letters = " KCRSM";    /* place: section type */

static GByteArray *from_letters(const char *order, uint16_t version)
{
    static char content[EIF_MAX_SECTIONS][8];
    Part parts[EIF_MAX_SECTIONS];
    unsigned n = strlen(order);

    for (unsigned i = 0; i < n; i++) {
        const char *at = strchr(letters, order[i]);

        g_assert_nonnull(at);
        g_snprintf(content[i], sizeof(content[i]), "%c%u", order[i], i);
        parts[i] = (Part) { at - letters, content[i], strlen(content[i]) };
    }
    return eif_file_build(version, parts, n);
}

typedef struct Order {
    const char *order;
    uint16_t version;
    EifRule rule;
    const char *text;
} Order;

static const Order orders[] = {
    { "KC", 2, EIF_OK, NULL },
    { "KC", 3, EIF_OK, NULL },
    { "CK", 2, EIF_OK, NULL },
    { "KCR", 2, EIF_OK, NULL },
    { "KCMR", 4, EIF_OK, NULL },
    { "KCMRR", 4, EIF_OK, NULL },
    { "CKRMRR", 4, EIF_OK, NULL },
    { "KRRCM", 4, EIF_OK, NULL },       /* command line behind PCR1's end */
    { "KRRCRM", 4, EIF_OK, NULL },
    { "KRCRM", 4, EIF_OK, NULL },
    { "MKC", 4, EIF_OK, NULL },
    { "MKC", 3, EIF_OK, NULL },
    { "KCMRRRRRRRRRRRRRRRRRRRRRRRRRRRRR", 4, EIF_OK, NULL },    /* 32 */
    { "CM", 4, EIF_ERR_NO_KERNEL, "none of the EIF's 2 sections" },
    { "CSM", 4, EIF_ERR_NO_KERNEL, "none of the EIF's 3 sections" },
    { "KM", 4, EIF_ERR_NO_CMDLINE, "none of the EIF's 2 sections" },
    { "KR", 3, EIF_ERR_NO_CMDLINE, "none of the EIF's 2 sections" },
    { "KC", 4, EIF_ERR_NO_METADATA, "version 4" },
    { "KCRS", 4, EIF_ERR_NO_METADATA, "none of the EIF's 4 sections" },
    { "KCKM", 4, EIF_ERR_DUPLICATE_KERNEL, "section 2 is a second kernel, the"
      " first is section 0" },
    { "KCMRK", 4, EIF_ERR_DUPLICATE_KERNEL, "section 4" },
    { "KCC", 3, EIF_ERR_DUPLICATE_CMDLINE, "section 2 is a second command" },
    { "RKCM", 4, EIF_ERR_RAMDISK_BEFORE_KERNEL, "section 0 is a ramdisk" },
    { "CRK", 3, EIF_ERR_RAMDISK_BEFORE_KERNEL, "section 1 is a ramdisk" },
    { "CRM", 4, EIF_ERR_RAMDISK_BEFORE_KERNEL, "section 1 is a ramdisk" },
    { "KCMSS", 4, EIF_ERR_DUPLICATE_SIGNATURE, "section 4 is a second" },
    { "KCMRM", 4, EIF_ERR_DUPLICATE_METADATA, "section 4 is a second" },
    { "KCMM", 3, EIF_ERR_DUPLICATE_METADATA, "section 3 is a second" },
    { "KCMS", 4, EIF_ERR_SIGNATURE_MALFORMED, "signature section" },
};

static void test_order(gconstpointer data)
{
    const Order *c = data;
    g_autoptr(GByteArray) f = from_letters(c->order, c->version);
    Part all[EIF_MAX_SECTIONS + 1] = { 0 };
    Part boot[EIF_MAX_SECTIONS + 1] = { 0 };
    Part app[EIF_MAX_SECTIONS + 1] = { 0 };
    unsigned n_all = 0, n_boot = 0, n_app = 0, ramdisks = 0;
    uint8_t pcr[EIF_DIGEST_SIZE];
    EifMeasurements m;
    EifError err;
    EifRule rule = judge(f, &file_rules, &m, &err);

    g_assert_cmpstr(eif_rule_name(rule), ==, eif_rule_name(c->rule));
    if (rule != EIF_OK) {
        g_assert_nonnull(strstr(err.text, c->text));
        return;
    }
    for (unsigned i = 0; c->order[i]; i++) {
        size_t at = eif_file_section(f, i);
        Part p = { 0, f->data + at + 12, get_be(f, at + 4, 8) };
        bool later = c->order[i] == 'R' && ramdisks++ > 0;

        if (!strchr("KCR", c->order[i])) {
            continue;
        }
        all[n_all++] = p;
        if (later) {
            app[n_app++] = p;
        } else {
            boot[n_boot++] = p;
        }
    }
    expect_pcr(pcr, all);
    g_assert_cmpmem(m.pcr0, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);
    expect_pcr(pcr, boot);
    g_assert_cmpmem(m.pcr1, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);
    expect_pcr(pcr, app);
    g_assert_cmpmem(m.pcr2, EIF_DIGEST_SIZE, pcr, EIF_DIGEST_SIZE);
}

/* ---- One field damaged ---- */

/* The good file, and where its parts are. */
#define KERNEL_BYTES    8192
#define COMMAND_LINE    "console=ttyS0 panic=1"
enum {
    AT_KERNEL = 548,
    AT_CMDLINE = AT_KERNEL + 12 + KERNEL_BYTES,
    AT_METADATA = AT_CMDLINE + 12 + sizeof(COMMAND_LINE) - 1,
    AT_RAMDISK0 = AT_METADATA + 12 + 2,
    AT_RAMDISK1 = AT_RAMDISK0 + 12 + 8,
    AT_END = AT_RAMDISK1 + 12 + 12,
};
#define OFFSET(i)   (0x1c + 8 * (i))
#define SIZE(i)     (0x11c + 8 * (i))
#define BZ(field)   (AT_KERNEL + 12 + (field))

static GByteArray *good_file(void)
{
    g_autoptr(GByteArray) kernel = bzimage(KERNEL_BYTES);
    const Part parts[] = {
        { KERNEL, kernel->data, kernel->len },
        { CMDLINE, COMMAND_LINE, strlen(COMMAND_LINE) },
        { METADATA, "{}", 2 },
        { RAMDISK, "INITINIT", 8 },
        { RAMDISK, "APPLAPPLAPPL", 12 },
    };
    GByteArray *f = eif_file_build(4, parts, 5);

    g_assert_cmpuint(f->len, ==, AT_END);
    return f;
}

typedef struct Poke {
    size_t offset;
    unsigned width;             /* 0: no poke */
    uint64_t value;             /* big-endian */
} Poke;

typedef struct Damage {
    const char *name;
    Poke poke[3];
    int resize;
    bool keep_crc;              /* else it is put right after the damage */
    EifRule rule;
    const char *text;           /* part of the error's */
} Damage;

static const Damage damages[] = {
    /* header */
    { "empty", .resize = -AT_END, .keep_crc = true,
      .rule = EIF_ERR_FILE_TOO_SHORT, .text = "has 0 bytes" },
    { "header-cut", .resize = -AT_END + 547, .keep_crc = true,
      .rule = EIF_ERR_FILE_TOO_SHORT, .text = "has 547 bytes" },
    { "magic-first", { { 0, 1, 0x2f } }, .rule = EIF_ERR_BAD_MAGIC,
      .text = "2f656966" },
    { "magic-last", { { 3, 1, 0x67 } }, .rule = EIF_ERR_BAD_MAGIC,
      .text = "2e656967" },
    { "version-0", { { 4, 2, 0 } }, .rule = EIF_ERR_BAD_VERSION,
      .text = "version 0," },
    { "version-1", { { 4, 2, 1 } }, .rule = EIF_ERR_BAD_VERSION,
      .text = "version 1," },
    { "version-5", { { 4, 2, 5 } }, .rule = EIF_ERR_BAD_VERSION,
      .text = "version 5," },
    { "version-high-byte", { { 4, 2, 0x0104 } }, .rule = EIF_ERR_BAD_VERSION,
      .text = "version 260," },
    { "version-2", { { 4, 2, 2 } }, .rule = EIF_OK },
    { "version-3", { { 4, 2, 3 } }, .rule = EIF_OK },
    { "aarch64", { { 6, 2, 1 } }, .rule = EIF_ERR_BAD_ARCH,
      .text = "aarch64 (flags 0x0001)" },
    { "aarch64-and-reserved", { { 6, 2, 0x8001 } }, .rule = EIF_ERR_BAD_ARCH,
      .text = "flags 0x8001" },
    { "reserved-flags", { { 6, 2, 0xfffe } }, .rule = EIF_OK },
    { "default-mem-and-cpus", { { 8, 8, 0 }, { 16, 8, UINT64_MAX } },
      .rule = EIF_OK },
    { "reserved-fields", { { 0x18, 2, 0xffff }, { 0x21c, 4, 0xffffffff } },
      .rule = EIF_OK },
    { "unused-slots", { { OFFSET(5), 8, 1 }, { SIZE(31), 8, 1 } },
      .rule = EIF_OK },
    { "no-sections", { { 0x1a, 2, 0 } }, .rule = EIF_ERR_SECTION_COUNT,
      .text = "has 0 sections" },
    { "one-section", { { 0x1a, 2, 1 } }, .rule = EIF_ERR_SECTION_COUNT,
      .text = "has 1 sections" },
    { "33-sections", { { 0x1a, 2, 33 } }, .rule = EIF_ERR_SECTION_COUNT,
      .text = "has 33 sections" },
    { "65535-sections", { { 0x1a, 2, 65535 } },
      .rule = EIF_ERR_SECTION_COUNT, .text = "has 65535 sections" },

    /* where sections are */
    { "first-inside-header", { { OFFSET(0), 8, 547 } },
      .rule = EIF_ERR_SECTION_OFFSET,
      .text = "section 0 is at offset 547, but what precedes it ends at 548"
              " (they overlap)" },
    { "first-runs-into-second", { { OFFSET(0), 8, 549 } },
      .rule = EIF_ERR_SECTION_OFFSET, .text = "section 1 is at offset" },
    { "runs-into-next", { { OFFSET(2), 8, AT_METADATA + 1 } },
      .rule = EIF_ERR_SECTION_OFFSET, .text = "section 3 is at offset" },
    { "overlap", { { OFFSET(2), 8, AT_METADATA - 1 } },
      .rule = EIF_ERR_SECTION_OFFSET, .text = "(they overlap)" },
    { "offset-0", { { OFFSET(4), 8, 0 } }, .rule = EIF_ERR_SECTION_OFFSET,
      .text = "section 4 is at offset 0," },
    { "offset-max", { { OFFSET(4), 8, UINT64_MAX } },
      .rule = EIF_ERR_SECTION_BEYOND_FILE, .text = "18446744073709551615" },
    { "offset-behind-the-file", { { OFFSET(4), 8, 8844 } },
      .rule = EIF_ERR_SECTION_BEYOND_FILE, .text = "offset 8844" },
    { "size-swallows-next", { { SIZE(1), 8, sizeof(COMMAND_LINE) } },
      .rule = EIF_ERR_SECTION_OFFSET, .text = "section 2" },
    { "last-one-byte-more", { { SIZE(4), 8, 13 } },
      .rule = EIF_ERR_SECTION_BEYOND_FILE,
      .text = "section 4 at offset 8819 claims 13 bytes, but the file ends at"
              " 8843" },
    { "size-max", { { SIZE(0), 8, UINT64_MAX } },
      .rule = EIF_ERR_SECTION_BEYOND_FILE,
      .text = "claims 18446744073709551615 bytes" },
    { "size-wraps-to-0", { { SIZE(0), 8, UINT64_MAX - 559 } },
      .rule = EIF_ERR_SECTION_BEYOND_FILE,
      .text = "claims 18446744073709551056 bytes" },
    { "size-sign-bit", { { SIZE(3), 8, 1ULL << 63 } },
      .rule = EIF_ERR_SECTION_BEYOND_FILE, .text = "9223372036854775808" },
    { "section-at-end-of-file",
      { { 0x1a, 2, 6 }, { OFFSET(5), 8, AT_END } },
      .rule = EIF_ERR_SECTION_BEYOND_FILE, .text = "section 5" },
    { "file-cut", .resize = -1, .rule = EIF_ERR_SECTION_BEYOND_FILE,
      .text = "the file ends at 8842" },
    { "file-cut-with-crc", .resize = -1, .keep_crc = true,
      .rule = EIF_ERR_SECTION_BEYOND_FILE, .text = "section 4" },
    { "one-byte-more", .resize = 1, .rule = EIF_ERR_TRAILING_BYTES,
      .text = "ends at 8843, but the file goes on for 1 bytes" },
    { "one-section-less", { { 0x1a, 2, 4 } },
      .rule = EIF_ERR_TRAILING_BYTES, .text = "for 24 bytes" },

    /* section headers */
    { "own-size-more", { { AT_RAMDISK1 + 4, 8, 13 } },
      .rule = EIF_ERR_SECTION_SIZE_MISMATCH,
      .text = "section 4 has 12 bytes by the file header, but 13 by its own"
              " header at offset 8819" },
    { "own-size-less", { { AT_KERNEL + 4, 8, KERNEL_BYTES - 1 } },
      .rule = EIF_ERR_SECTION_SIZE_MISMATCH, .text = "8191" },
    { "own-size-high-bits", { { AT_RAMDISK0 + 4, 8, 8 | 1ULL << 32 } },
      .rule = EIF_ERR_SECTION_SIZE_MISMATCH, .text = "4294967304" },
    { "type-0", { { AT_RAMDISK0, 2, 0 } }, .rule = EIF_ERR_SECTION_TYPE,
      .text = "section 3 at offset 8799 has type 0" },
    { "type-6", { { AT_RAMDISK0, 2, 6 } }, .rule = EIF_ERR_SECTION_TYPE,
      .text = "type 6" },
    { "type-high-byte", { { AT_RAMDISK0, 2, 0x0103 } },
      .rule = EIF_ERR_SECTION_TYPE, .text = "type 259" },
    { "section-flags", { { AT_RAMDISK0 + 2, 2, 0xffff } }, .rule = EIF_OK },
    { "kernel-becomes-metadata", { { AT_KERNEL, 2, METADATA } },
      .rule = EIF_ERR_DUPLICATE_METADATA, .text = "section 2" },
    { "metadata-becomes-kernel", { { AT_METADATA, 2, KERNEL } },
      .rule = EIF_ERR_DUPLICATE_KERNEL, .text = "section 2" },

    /* data */
    { "crc-itself", { { 0x220, 4, 0 } }, .keep_crc = true,
      .rule = EIF_ERR_CRC_MISMATCH, .text = "its header says 0x00000000" },
    { "crc-of-header", { { 8, 1, 1 } }, .keep_crc = true,
      .rule = EIF_ERR_CRC_MISMATCH, .text = "CRC-32" },
    { "crc-of-reserved", { { 0x21f, 1, 1 } }, .keep_crc = true,
      .rule = EIF_ERR_CRC_MISMATCH, .text = "CRC-32" },
    { "crc-of-section-header", { { AT_RAMDISK0 + 3, 1, 1 } },
      .keep_crc = true, .rule = EIF_ERR_CRC_MISMATCH, .text = "CRC-32" },
    { "crc-of-kernel", { { AT_KERNEL + 12, 1, 0 } }, .keep_crc = true,
      .rule = EIF_ERR_CRC_MISMATCH, .text = "CRC-32" },
    { "crc-of-cmdline", { { AT_CMDLINE + 12, 1, 0 } }, .keep_crc = true,
      .rule = EIF_ERR_CRC_MISMATCH, .text = "CRC-32" },
    { "crc-of-metadata", { { AT_METADATA + 12, 1, 0 } }, .keep_crc = true,
      .rule = EIF_ERR_CRC_MISMATCH, .text = "CRC-32" },
    { "crc-of-last-byte", { { AT_END - 1, 1, 0 } }, .keep_crc = true,
      .rule = EIF_ERR_CRC_MISMATCH, .text = "CRC-32" },
    { "cmdline-nul-first", { { AT_CMDLINE + 12, 1, 0 } },
      .rule = EIF_ERR_CMDLINE_NUL, .text = "byte 0 of the command line's 21" },
    { "cmdline-nul-last", { { AT_METADATA - 1, 1, 0 } },
      .rule = EIF_ERR_CMDLINE_NUL, .text = "byte 20 of" },

    /* kernel; fields of the boot protocol are little-endian */
    { "hdrs", { { BZ(0x202), 1, 'h' } }, .rule = EIF_ERR_KERNEL_NOT_BZIMAGE,
      .text = "68647253 at 0x202" },
    { "elf", { { BZ(0x202), 4, 0 }, { BZ(0), 4, 0x7f454c46 } },
      .rule = EIF_ERR_KERNEL_NOT_BZIMAGE, .text = "this is an ELF file" },
    { "arm64-image", { { BZ(0x202), 4, 0 }, { BZ(0x38), 4, 0x41524d64 } },
      .rule = EIF_ERR_KERNEL_NOT_BZIMAGE, .text = "this is an arm64 Image" },
    { "boot-flag", { { BZ(0x1fe), 2, 0x55ab } },
      .rule = EIF_ERR_KERNEL_NOT_BZIMAGE, .text = "boot flag 0xab55" },
    { "protocol-2.09", { { BZ(0x206), 2, 0x0902 } },
      .rule = EIF_ERR_KERNEL_NOT_BZIMAGE, .text = "boot protocol 0x0209" },
    { "protocol-2.10", { { BZ(0x206), 2, 0x0a02 } }, .rule = EIF_OK },
    { "zimage", { { BZ(0x211), 1, 0x80 } },
      .rule = EIF_ERR_KERNEL_NOT_BZIMAGE, .text = "load flags 0x80" },
    { "setup-default", { { BZ(0x1f1), 1, 0 } }, .rule = EIF_OK },
    { "setup-just-fits", { { BZ(0x1f1), 1, 14 } }, .rule = EIF_OK },
    { "setup-is-everything", { { BZ(0x1f1), 1, 15 } },
      .rule = EIF_ERR_KERNEL_SETUP_SIZE, .text = "8192 bytes (15 sectors)" },
    { "setup-255-sectors", { { BZ(0x1f1), 1, 255 } },
      .rule = EIF_ERR_KERNEL_SETUP_SIZE, .text = "131072 bytes" },
    { "cmdline-size-20", { { BZ(0x238), 4, 0x14000000 } },
      .rule = EIF_ERR_CMDLINE_TOO_LONG, .text = "21 bytes" },
    { "cmdline-size-21", { { BZ(0x238), 4, 0x15000000 } }, .rule = EIF_OK },
    { "init-size-too-large", { { BZ(0x260), 4, 0x000000f0 } },
      .rule = EIF_ERR_KERNEL_TOO_LARGE, .text = "0xf1000000" },
    { "pref-address-wraps", { { BZ(0x258), 8, UINT64_MAX } },
      .rule = EIF_ERR_KERNEL_TOO_LARGE, .text = "give the guest more memory" },
    { "init-size-no-room", { { BZ(0x260), 4, 0x0000000f } },
      .rule = EIF_ERR_INITRAMFS_TOO_LARGE, .text = "room for 0" },
    { "initrd-max-too-low",
      { { BZ(0x236), 2, 0 }, { BZ(0x22c), 4, 0xffff0000 } },
      .rule = EIF_ERR_INITRAMFS_TOO_LARGE, .text = "the kernel's own limit" },
};

static void test_damage(gconstpointer data)
{
    const Damage *c = data;
    g_autoptr(GByteArray) f = good_file();
    EifMeasurements m;
    EifError err;
    EifRule rule;

    for (unsigned i = 0; i < G_N_ELEMENTS(c->poke); i++) {
        if (c->poke[i].width) {
            put_be(f, c->poke[i].offset, c->poke[i].width, c->poke[i].value);
        }
    }
    if (c->resize > 0) {
        g_byte_array_append(f, (const uint8_t *)"~", 1);
    } else {
        g_byte_array_set_size(f, f->len + c->resize);
    }
    if (!c->keep_crc) {
        eif_file_fix_crc(f);
    }
    rule = judge(f, &all_rules, &m, &err);
    g_assert_cmpstr(eif_rule_name(rule), ==, eif_rule_name(c->rule));
    if (c->text && !strstr(err.text, c->text)) {
        g_error("\"%s\" does not say \"%s\"", err.text, c->text);
    }
}

static void test_good(void)
{
    g_autoptr(GByteArray) f = good_file();
    EifMeasurements m;
    EifError err;

    g_assert_cmpint(judge(f, &all_rules, &m, &err), ==, EIF_OK);
}

/* Every rule of the core has a case in some table of these tests. */
static void test_all_rules_covered(void)
{
    /* test-eif-arm64, test-eif-load, test-eif-signature, test-eif-overlay. */
    static const EifRule elsewhere[] = {
        EIF_ERR_KERNEL_NOT_IMAGE, EIF_ERR_KERNEL_TEXT_OFFSET,
        EIF_ERR_KERNEL_IMAGE_SIZE, EIF_ERR_IO, EIF_ERR_SIGNATURE_TOO_LARGE,
        EIF_ERR_SIGNATURE_CERTIFICATE, EIF_ERR_SIGNATURE_INVALID,
        EIF_ERR_SIGNATURE_INDEX, EIF_ERR_SIGNATURE_PCR0,
        EIF_ERR_SIGNATURE_NOT_YET_VALID, EIF_ERR_SIGNATURE_EXPIRED,
        EIF_ERR_OVERLAY_NOT_CPIO, EIF_ERR_OVERLAY_MISALIGNED,
        EIF_ERR_OVERLAY_TOO_LARGE,
    };
    bool covered[EIF_RULE_COUNT] = { false };
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);

    for (unsigned i = 0; i < G_N_ELEMENTS(orders); i++) {
        covered[orders[i].rule] = true;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(damages); i++) {
        covered[damages[i].rule] = true;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(elsewhere); i++) {
        covered[elsewhere[i]] = true;
    }
    for (unsigned i = 0; i < EIF_RULE_COUNT; i++) {
        const char *name = eif_rule_name(i);

        g_assert_nonnull(name);
        g_assert_true(g_hash_table_add(names, (gpointer)name));
        if (!covered[i]) {
            g_error("no case for rule %s", name);
        }
    }
}

/* ---- Everything at once, and every byte ---- */

/* Faults in the order in which they must be reported. */
static const struct {
    EifRule rule;
    Poke poke;
} faults[] = {
    { EIF_ERR_BAD_MAGIC, { 0, 1, 0 } },
    { EIF_ERR_BAD_VERSION, { 4, 2, 9 } },
    { EIF_ERR_BAD_ARCH, { 6, 2, 1 } },
    { EIF_ERR_SECTION_COUNT, { 0x1a, 2, 99 } },
    { EIF_ERR_SECTION_OFFSET, { OFFSET(1), 8, 0 } },
    { EIF_ERR_SECTION_BEYOND_FILE, { SIZE(4), 8, 99 } },
    { EIF_ERR_SECTION_SIZE_MISMATCH, { AT_KERNEL + 4, 8, 0 } },
    { EIF_ERR_DUPLICATE_KERNEL, { AT_CMDLINE, 2, KERNEL } },
    { EIF_ERR_SECTION_TYPE, { AT_RAMDISK1, 2, 9 } },
    { EIF_ERR_CRC_MISMATCH, { 0x220, 4, 0 } },
    { EIF_ERR_CMDLINE_NUL, { AT_CMDLINE + 12, 1, 0 } },
    { EIF_ERR_KERNEL_NOT_BZIMAGE, { BZ(0x202), 1, 0 } },
    { EIF_ERR_KERNEL_SETUP_SIZE, { BZ(0x1f1), 1, 255 } },
    { EIF_ERR_CMDLINE_TOO_LONG, { BZ(0x238), 4, 0 } },
    { EIF_ERR_INITRAMFS_TOO_LARGE, { BZ(0x260), 4, 0x0000000f } },
};

static void test_first_fault_wins(void)
{
    EifMeasurements m;
    EifError err;

    for (unsigned first = 0; first < G_N_ELEMENTS(faults); first++) {
        g_autoptr(GByteArray) f = good_file();

        for (unsigned i = first; i < G_N_ELEMENTS(faults); i++) {
            const Poke *p = &faults[i].poke;

            if (faults[i].rule != EIF_ERR_CRC_MISMATCH) {
                put_be(f, p->offset, p->width, p->value);
            }
        }
        if (faults[first].rule > EIF_ERR_CRC_MISMATCH) {
            eif_file_fix_crc(f);
        } else {
            put_be(f, 0x220, 4, 0);
        }
        judge(f, &all_rules, &m, &err);
        g_assert_cmpstr(eif_rule_name(err.rule), ==,
                        eif_rule_name(faults[first].rule));
    }
}

/* The CRC covers everything: no byte of a file can change unnoticed. */
static void test_every_byte(void)
{
    g_autoptr(GByteArray) f = good_file();
    EifMeasurements m;
    EifError err;

    for (size_t i = 0; i < f->len; i++) {
        /* All of what is not kernel, and some of that. */
        if (i > BZ(0x270) && i < AT_CMDLINE && i % 97) {
            continue;
        }
        f->data[i] ^= 0x10;
        if (eif_check(f->data, f->len, &all_rules, &m, NULL, &err)) {
            g_error("a changed byte %zu was not noticed", i);
        }
        f->data[i] ^= 0x10;
    }
    g_assert_true(eif_check(f->data, f->len, &all_rules, &m, NULL, &err));
}

static void test_truncated(void)
{
    static const size_t borders[] = {
        AT_KERNEL, AT_CMDLINE, AT_METADATA, AT_RAMDISK0, AT_RAMDISK1, AT_END,
    };
    EifMeasurements m;
    EifError err;

    for (size_t len = 0; len < AT_KERNEL; len++) {
        g_autoptr(GByteArray) f = good_file();

        g_byte_array_set_size(f, len);
        g_assert_cmpint(judge(f, &all_rules, &m, &err), ==,
                        EIF_ERR_FILE_TOO_SHORT);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(borders); i++) {
        for (int around = -13; around <= 13; around++) {
            g_autoptr(GByteArray) f = good_file();
            size_t len = borders[i] + around;

            if (len < AT_KERNEL || len >= AT_END) {
                continue;
            }
            g_byte_array_set_size(f, len);
            eif_file_fix_crc(f);
            g_assert_cmpint(judge(f, &all_rules, &m, &err), ==,
                            EIF_ERR_SECTION_BEYOND_FILE);
        }
    }
}

/* ---- Boot checks on their own ---- */

static void test_short_kernel(void)
{
    g_autoptr(GByteArray) k = bzimage(4096);
    EifKernel out;
    EifError err;

    for (size_t len = 0; len < EIF_KERNEL_HEADER_SIZE; len++) {
        g_autofree uint8_t *copy = g_memdup2(k->data, len);

        g_assert_false(eif_check_kernel(EIF_ARCH_X86_64, copy, len, len, &out,
                                        &err));
        g_assert_cmpint(err.rule, ==, EIF_ERR_KERNEL_NOT_BZIMAGE);
    }
    g_assert_true(eif_check_kernel(EIF_ARCH_X86_64, k->data,
                                   EIF_KERNEL_HEADER_SIZE, k->len, &out,
                                   &err));
    g_assert_cmphex(out.protocol, ==, 0x20f);
    g_assert_cmpuint(out.setup_bytes, ==, 6 * 512);
    g_assert_cmpuint(out.payload_bytes, ==, 4096 - 6 * 512);
    g_assert_cmpuint(out.cmdline_size, ==, 2047);
    g_assert_cmphex(out.init_size, ==, 0x1000000);
    g_assert_cmphex(out.pref_address, ==, 0x1000000);
    g_assert_cmphex(out.initrd_max, ==, 0xffffffff);
}

#define MIB ((uint64_t)1 << 20)

typedef struct Place {
    const char *name;
    EifKernel kernel;           /* cmdline_size is 2047, alignment 2 MiB */
    uint64_t cmdline;
    uint64_t initramfs;
    uint64_t lowmem;
    EifRule rule;
} Place;

/* pref 16 MiB + init 16 MiB: the kernel ends at 32 MiB. */
#define USUAL .pref_address = 16 * MIB, .init_size = 16 * MIB, \
              .relocatable = true, .payload_bytes = 4 * MIB

static const Place places[] = {
    { "fits", { USUAL, .initrd_max = UINT32_MAX }, 10, MIB, 64 * MIB, EIF_OK },
    { "no-initramfs", { USUAL, .initrd_max = 0 }, 10, 0, 64 * MIB, EIF_OK },
    { "memory-not-known", { USUAL, .initrd_max = 0 }, 10, 1 << 30, 0,
      EIF_OK },
    { "cmdline-longest", { USUAL, .initrd_max = UINT32_MAX }, 2047, MIB,
      64 * MIB, EIF_OK },
    { "cmdline-too-long", { USUAL, .initrd_max = UINT32_MAX }, 2048, MIB,
      64 * MIB, EIF_ERR_CMDLINE_TOO_LONG },
    { "cmdline-before-memory", { USUAL, .initrd_max = UINT32_MAX }, 2048,
      999 * MIB, MIB, EIF_ERR_CMDLINE_TOO_LONG },
    /* QEMU puts the last byte at lowmem - 1 at most, then rounds down. */
    { "to-the-page", { USUAL, .initrd_max = UINT32_MAX }, 10,
      32 * MIB - 1, 64 * MIB, EIF_OK },
    { "one-more", { USUAL, .initrd_max = UINT32_MAX }, 10, 32 * MIB,
      64 * MIB, EIF_ERR_INITRAMFS_TOO_LARGE },
    { "larger-than-memory", { USUAL, .initrd_max = UINT32_MAX }, 10,
      999 * MIB, 64 * MIB, EIF_ERR_INITRAMFS_TOO_LARGE },
    { "largest-number", { USUAL, .initrd_max = UINT32_MAX }, 10, UINT64_MAX,
      64 * MIB, EIF_ERR_INITRAMFS_TOO_LARGE },
    { "own-limit-fits", { USUAL, .initrd_max = 48 * MIB - 1 }, 10,
      16 * MIB - 1, 3072 * MIB, EIF_OK },
    { "own-limit", { USUAL, .initrd_max = 48 * MIB - 1 }, 10, 16 * MIB,
      3072 * MIB, EIF_ERR_INITRAMFS_TOO_LARGE },
    { "own-limit-zero", { USUAL, .initrd_max = 0 }, 10, 1, 3072 * MIB,
      EIF_ERR_INITRAMFS_TOO_LARGE },
    { "kernel-needs-more", { USUAL, .initrd_max = UINT32_MAX }, 10, 1,
      32 * MIB - 1, EIF_ERR_KERNEL_TOO_LARGE },
    { "kernel-just-fits", { USUAL, .initrd_max = UINT32_MAX }, 10, 0,
      32 * MIB, EIF_OK },
    /* init_size claims little, but the image itself is there. */
    { "payload-counts", { .payload_bytes = 40 * MIB, .init_size = 1,
                          .initrd_max = UINT32_MAX }, 10, 24 * MIB, 64 * MIB,
      EIF_ERR_INITRAMFS_TOO_LARGE },
    /* loaded at 1 MiB, aligned up to 2: ends at 18 MiB */
    { "aligned", { .relocatable = true, .init_size = 16 * MIB,
                   .initrd_max = UINT32_MAX }, 10, 46 * MIB - 1, 64 * MIB,
      EIF_OK },
    { "aligned-one-more", { .relocatable = true, .init_size = 16 * MIB,
                            .initrd_max = UINT32_MAX }, 10, 46 * MIB,
      64 * MIB, EIF_ERR_INITRAMFS_TOO_LARGE },
};

static void test_place(gconstpointer data)
{
    const Place *c = data;
    EifKernel k = c->kernel;
    EifError err = { EIF_OK, "" };
    bool ok;

    k.cmdline_size = 2047;
    k.alignment = 2 * MIB;
    ok = eif_check_placement(&k, c->cmdline, c->initramfs, c->lowmem, &err);
    g_assert_cmpstr(eif_rule_name(err.rule), ==, eif_rule_name(c->rule));
    g_assert_cmpint(ok, ==, c->rule == EIF_OK);
}

static void test_options(void)
{
    g_autoptr(GByteArray) f = good_file();
    EifOptions opt = all_rules;
    EifMeasurements m;
    EifError err;

    /* 21 bytes of the file and 2026 of others: 2047. */
    opt.cmdline_extra = 2026;
    g_assert_cmpint(judge(f, &opt, &m, &err), ==, EIF_OK);
    opt.cmdline_extra = 2027;
    g_assert_cmpint(judge(f, &opt, &m, &err), ==, EIF_ERR_CMDLINE_TOO_LONG);
    g_assert_nonnull(strstr(err.text, "has 2048 bytes"));

    opt = all_rules;
    opt.lowmem = 20;        /* the size of the ramdisks */
    g_assert_cmpint(judge(f, &opt, &m, &err), ==,
                    EIF_ERR_INITRAMFS_TOO_LARGE);
    opt.lowmem = 0;
    g_assert_cmpint(judge(f, &opt, &m, &err), ==, EIF_OK);
}

static void test_long_cmdline(void)
{
    g_autoptr(GByteArray) kernel = bzimage(KERNEL_BYTES);
    g_autofree char *line = g_strnfill(EIF_CMDLINE_MAX + 1, 'x');
    Part parts[] = {
        { KERNEL, kernel->data, kernel->len },
        { CMDLINE, line, EIF_CMDLINE_MAX + 1 },
    };
    g_autoptr(GByteArray) f = eif_file_build(3, parts, 2);
    g_autoptr(GByteArray) g = NULL;
    EifMeasurements m;
    EifError err;

    /* By its size alone: the wrong CRC is not looked at. */
    put_be(f, 0x220, 4, 0);
    g_assert_cmpint(judge(f, &all_rules, &m, &err), ==,
                    EIF_ERR_CMDLINE_TOO_LONG);
    g_assert_nonnull(strstr(err.text, "65537"));

    parts[1].size = EIF_CMDLINE_MAX;
    g = eif_file_build(3, parts, 2);
    g_assert_cmpint(judge(g, &file_rules, &m, &err), ==, EIF_OK);
    g_assert_cmpint(judge(g, &all_rules, &m, &err), ==,
                    EIF_ERR_CMDLINE_TOO_LONG);
    g_assert_nonnull(strstr(err.text, "the kernel takes at most 2047"));
}

static void add(const char *group, const char *name, gconstpointer data,
                GTestDataFunc func)
{
    g_autofree char *path = g_strdup_printf("/eif/%s/%s", group, name);

    g_test_add_data_func(path, data, func);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/eif/vector", test_vector);
    g_test_add_func("/eif/one-ramdisk", test_one_ramdisk);
    g_test_add_func("/eif/good", test_good);
    for (unsigned i = 0; i < G_N_ELEMENTS(orders); i++) {
        g_autofree char *name = g_strdup_printf("%s-v%u", orders[i].order,
                                                orders[i].version);

        add("order", name, &orders[i], test_order);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(damages); i++) {
        add("damage", damages[i].name, &damages[i], test_damage);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        add("placement", places[i].name, &places[i], test_place);
    }
    g_test_add_func("/eif/all-rules-covered", test_all_rules_covered);
    g_test_add_func("/eif/first-fault-wins", test_first_fault_wins);
    g_test_add_func("/eif/every-byte", test_every_byte);
    g_test_add_func("/eif/truncated", test_truncated);
    g_test_add_func("/eif/short-kernel", test_short_kernel);
    g_test_add_func("/eif/options", test_options);
    g_test_add_func("/eif/long-cmdline", test_long_cmdline);
    return g_test_run();
}
