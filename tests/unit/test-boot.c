/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of what an x86 kernel is entered with: ROM, MP table, boot
 * parameters.  Expected values are those of Intel's MultiProcessor
 * Specification 1.4 (chapter 4) and of Linux's boot.rst and zero-page.rst.
 * That a kernel boots so is the boot tests' subject.
 *
 *   test-boot ROM_BIN      what the assembler makes of nitro_boot_rom.S
 */

#include <string.h>
#include <glib.h>

#include "nitro/boot.h"

static const char *assembled;

static uint64_t le(const uint8_t *p, unsigned bytes)
{
    uint64_t value = 0;

    while (bytes--) {
        value = value << 8 | p[bytes];
    }
    return value;
}

static uint8_t sum(const uint8_t *p, size_t len)
{
    uint8_t s = 0;

    while (len--) {
        s += *p++;
    }
    return s;
}

/* The bytes that are compiled in are those of the source. */
static void test_code(void)
{
    g_autofree uint8_t *rom = g_malloc(NITRO_BOOT_ROM_SIZE);
    g_autofree char *code = NULL;
    const uint8_t ids[] = { 0 };
    gsize len;

    g_assert_true(g_file_get_contents(assembled, &code, &len, NULL));
    g_assert_cmpuint(len, ==, NITRO_BOOT_CODE_SIZE);
    nitro_boot_rom(rom, ids, 1);
    g_assert_cmpmem(rom + NITRO_BOOT_ROM_SIZE - len, len, code, len);
    /* The reset vector, 16 bytes before the end, jumps back into it. */
    g_assert_cmphex(rom[0xfff0], ==, 0xeb);
    g_assert_cmpint((int8_t)rom[0xfff1], <, -2);
}

/* 4.3.4 and 4.3.5, from @p to @end; the IOAPIC has the number @ioapic. */
static void check_interrupts(const uint8_t *p, const uint8_t *end,
                             uint8_t ioapic)
{
    uint8_t irqs[16] = { 0 };
    unsigned lints = 0;

    for (; p < end; p += 8) {
        g_assert_cmphex(le(p + 2, 2), ==, 0);       /* as ISA has it */
        g_assert_cmpuint(p[4], ==, 0);              /* that bus */
        if (p[0] == 4) {
            g_assert_cmpmem(p, 8, lints++ ? "\4\1\0\0\0\0\xff\1"
                                          : "\4\3\0\0\0\0\xff\0", 8);
            continue;
        }
        g_assert_cmpmem(p, 2, "\3\0", 2);
        g_assert_cmpuint(p[6], ==, ioapic);
        g_assert_cmpuint(p[5], <, 16);
        g_assert_cmpuint(irqs[p[5]]++, ==, 0);
        /* QEMU's IOAPIC has the timer's interrupt on line 2. */
        g_assert_cmpuint(p[7], ==, p[5] ? p[5] : 2);
    }
    g_assert_true(p == end);
    g_assert_cmpuint(lints, ==, 2);
    g_assert_cmpmem(irqs, 16, "\1\1\0\1\1\1\1\1\1\1\1\1\1\1\1\1", 16);
}

static void test_mp_table(gconstpointer data)
{
    static const uint8_t few[] = { 0, 4 };
    g_autofree uint8_t *rom = g_malloc(NITRO_BOOT_ROM_SIZE);
    g_autofree uint8_t *many = g_malloc(NITRO_BOOT_CPUS_MAX);
    unsigned cpus = data ? NITRO_BOOT_CPUS_MAX : 2;
    const uint8_t *ids = data ? many : few;
    const uint8_t *p, *table, *end;
    uint8_t last;

    for (unsigned i = 0; i < NITRO_BOOT_CPUS_MAX; i++) {
        many[i] = i;
    }
    last = ids[cpus - 1];
    nitro_boot_rom(rom, ids, cpus);

    /* 4.1: on a 16-byte border in the ROM; table present, virtual wire. */
    g_assert_cmpmem(rom, 4, "_MP_", 4);
    g_assert_cmphex(le(rom + 4, 4), ==, 0xf0000 + 16);
    g_assert_cmpuint(rom[8], ==, 1);
    g_assert_cmpuint(rom[9], ==, 4);
    g_assert_cmpuint(sum(rom, 16), ==, 0);
    g_assert_cmphex(le(rom + 11, 5), ==, 0);

    /* 4.2 */
    table = rom + 16;
    g_assert_cmpmem(table, 4, "PCMP", 4);
    g_assert_cmpuint(table[6], ==, 4);
    g_assert_cmpuint(sum(table, le(table + 4, 2)), ==, 0);
    g_assert_cmphex(le(table + 28, 4), ==, 0);      /* no OEM table */
    g_assert_cmphex(le(table + 36, 4), ==, 0xfee00000);
    g_assert_cmphex(le(table + 40, 4), ==, 0);      /* no extended one */

    /* 4.3 */
    p = table + 44;
    end = table + le(table + 4, 2);
    g_assert_cmpuint(le(table + 34, 2), ==, cpus + 1 + 1 + 15 + 2);
    for (unsigned i = 0; i < cpus; i++, p += 20) {
        g_assert_cmpuint(p[0], ==, 0);
        g_assert_cmpuint(p[1], ==, ids[i]);
        g_assert_cmphex(p[2] & 0xf0, ==, 0x10);     /* integrated */
        g_assert_cmphex(p[3], ==, i ? 1 : 3);
        g_assert_cmphex(le(p + 8, 4) & 0x201, ==, 0x201);
        g_assert_cmphex(le(p + 12, 8), ==, 0);
    }
    g_assert_cmpmem(p, 8, "\1\0ISA   ", 8);
    p += 8;
    g_assert_cmpmem(p, 2, ((uint8_t[]) { 2, last + 1 }), 2);
    g_assert_cmpuint(p[3], ==, 1);
    g_assert_cmphex(le(p + 4, 4), ==, 0xfec00000);
    check_interrupts(p + 8, end, last + 1);
    g_assert_true(end < rom + NITRO_BOOT_ROM_SIZE - NITRO_BOOT_CODE_SIZE);
}

typedef struct E820 {
    uint64_t begin, end;
    uint32_t type;
} E820;

static void assert_e820(const uint8_t *page, const E820 *expected, unsigned n)
{
    g_assert_cmpuint(page[0x1e8], ==, n);
    for (unsigned i = 0; i < n; i++) {
        const uint8_t *entry = page + 0x2d0 + 20 * i;

        g_assert_cmphex(le(entry, 8), ==, expected[i].begin);
        g_assert_cmphex(le(entry + 8, 8), ==,
                        expected[i].end - expected[i].begin);
        g_assert_cmpuint(le(entry + 16, 4), ==, expected[i].type);
    }
    for (const uint8_t *p = page + 0x2d0 + 20 * n; p < page + 4096; p++) {
        g_assert_cmpuint(*p, ==, 0);
    }
}

static void test_params(void)
{
    static const E820 small[] = {
        { 0, 0x9fc00, 1 }, { 0x9fc00, 0xa0000, 2 }, { 0xf0000, 0x100000, 2 },
        { 0x100000, 0x8000000, 1 }, { 0xffff0000, 0x100000000, 2 },
    };
    uint8_t setup[1024], page[4096];
    NitroBoot boot = {
        .setup = setup, .initramfs = 0x7654000, .initramfs_size = 0x54321,
        .below_4g = 128 << 20,
    };

    for (unsigned i = 0; i < sizeof(setup); i++) {
        setup[i] = i * 7 + 1;
    }
    memset(page, 0xff, sizeof(page));
    setup[0x201] = 0x6a;                /* the header of protocol 2.15 */
    setup[0x211] = 0x81;
    nitro_boot_params(page, &boot);
    /* What is not the header's is zero, the sentinel at 0x1ef too. */
    for (unsigned i = 0; i < 0x2d0; i++) {
        if (i != 0x1e8 && (i < 0x1f1 || i >= 0x26c)) {
            g_assert_cmphex(page[i], ==, 0);
        }
    }
    /* It is the kernel's own but for what a loader writes. */
    g_assert_cmpmem(page + 0x1f1, 0x210 - 0x1f1, setup + 0x1f1,
                    0x210 - 0x1f1);
    g_assert_cmphex(page[0x210], ==, 0xb0);         /* QEMU */
    g_assert_cmphex(page[0x211], ==, 0x01);         /* no heap */
    g_assert_cmphex(le(page + 0x214, 4), ==, 0x100000);
    g_assert_cmphex(le(page + 0x218, 4), ==, 0x7654000);
    g_assert_cmphex(le(page + 0x21c, 4), ==, 0x54321);
    g_assert_cmphex(le(page + 0x226, 2), ==, 0);
    g_assert_cmphex(le(page + 0x228, 4), ==, 0x20000);
    g_assert_cmpmem(page + 0x22c, 0x250 - 0x22c, setup + 0x22c,
                    0x250 - 0x22c);
    g_assert_cmphex(le(page + 0x250, 8), ==, 0);
    g_assert_cmpmem(page + 0x258, 0x26c - 0x258, setup + 0x258,
                    0x26c - 0x258);
    assert_e820(page, small, G_N_ELEMENTS(small));
}

/* A header that lies about its length: the length of 0x201. */
static void test_params_length(void)
{
    static const E820 large[] = {
        { 0, 0x9fc00, 1 }, { 0x9fc00, 0xa0000, 2 }, { 0xf0000, 0x100000, 2 },
        { 0x100000, 0xc0000000, 1 }, { 0xffff0000, 0x100000000, 2 },
        { 0x100000000, 0x140000000, 1 },
    };
    uint8_t setup[1024], page[4096];
    NitroBoot boot = {
        .setup = setup, .initramfs = 0x7654000,
        .below_4g = 3ULL << 30, .above_4g = 1ULL << 30,
    };

    memset(setup, 0x5a, sizeof(setup));
    /* One that claims too little loses nothing that its protocol has. */
    setup[0x201] = 0;
    nitro_boot_params(page, &boot);
    g_assert_cmpmem(page + 0x258, 0x264 - 0x258, setup + 0x258,
                    0x264 - 0x258);
    g_assert_cmphex(le(page + 0x264, 4), ==, 0);

    /* A header that claims too much takes nothing else's place. */
    setup[0x201] = 0xff;
    nitro_boot_params(page, &boot);
    g_assert_cmphex(le(page + 0x218, 8), ==, 0);
    for (unsigned i = 0x290; i < 0x2d0; i++) {
        g_assert_cmphex(page[i], ==, 0);
    }
    assert_e820(page, large, G_N_ELEMENTS(large));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    assembled = argv[1];
    g_test_add_func("/boot/code", test_code);
    g_test_add_data_func("/boot/mp-table", NULL, test_mp_table);
    g_test_add_data_func("/boot/mp-table/most", "", test_mp_table);
    g_test_add_func("/boot/params", test_params);
    g_test_add_func("/boot/params/length", test_params_length);
    return g_test_run();
}
