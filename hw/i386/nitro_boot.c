/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * How an x86 kernel is entered that lies in the guest's memory already
 *
 * A core: plain C over buffers, for the board and for its unit test. What the
 * parts are for, and where the facts are from, is in nitro/boot.h.
 */

#include <string.h>

#include "nitro/boot.h"
#include "nitro_boot_rom.h"

static void put_le(uint8_t *p, uint64_t value, unsigned int bytes)
{
    for (unsigned int i = 0; i < bytes; i++) {
        p[i] = (uint8_t)(value >> (8 * i));
    }
}

/* ---- Boot parameters ---- */

/* Offsets in the page, of zero-page.rst; the header's are those in the file. */
enum {
    E820_ENTRIES = 0x1e8,
    HEADER = 0x1f1,
    HEADER_LENGTH = 0x201,          /* it ends so many bytes after 0x202 */
    LOADER = 0x210,
    LOAD_FLAGS = 0x211,
    CODE32_START = 0x214,
    RAMDISK_IMAGE = 0x218,
    RAMDISK_SIZE = 0x21c,
    HEAP_END = 0x224,
    EXT_LOADER = 0x226,             /* version and type */
    CMD_LINE_PTR = 0x228,
    SETUP_DATA = 0x250,
    HEADER_LEAST = 0x264,           /* of the oldest protocol that we take, */
    HEADER_END = 0x290,             /* and of all that there may be */
    E820_TABLE = 0x2d0,
};

#define LOADER_QEMU 0xb0
#define CAN_USE_HEAP 0x80           /* the setup code, which does not run */

enum { E820_RAM = 1, E820_RESERVED = 2 };

static void add_e820(uint8_t *page, uint64_t begin, uint64_t end, uint32_t type)
{
    uint8_t *entry = page + E820_TABLE + 20 * page[E820_ENTRIES];

    put_le(entry, begin, 8);
    put_le(entry + 8, end - begin, 8);
    put_le(entry + 16, type, 4);
    page[E820_ENTRIES]++;
}

void nitro_boot_params(uint8_t page[NITRO_BOOT_PARAMS_SIZE],
                       const NitroBoot *boot)
{
    const uint64_t four_gib = 1ULL << 32;
    size_t end = 0x202 + boot->setup[HEADER_LENGTH];

    if (end < HEADER_LEAST) {
        end = HEADER_LEAST;
    } else if (end > HEADER_END) {
        end = HEADER_END;
    }
    memset(page, 0, NITRO_BOOT_PARAMS_SIZE);
    memcpy(page + HEADER, boot->setup + HEADER, end - HEADER);
    page[LOADER] = LOADER_QEMU;
    page[LOAD_FLAGS] &= (uint8_t)~CAN_USE_HEAP;
    put_le(page + CODE32_START, NITRO_BOOT_KERNEL, 4);
    put_le(page + RAMDISK_IMAGE, boot->initramfs_size ? boot->initramfs : 0,
           4);
    put_le(page + RAMDISK_SIZE, boot->initramfs_size, 4);
    put_le(page + HEAP_END, 0, 2);
    put_le(page + EXT_LOADER, 0, 2);
    put_le(page + CMD_LINE_PTR, NITRO_BOOT_CMDLINE, 4);
    put_le(page + SETUP_DATA, 0, 8);

    /* As on a PC: a KiB below 640 KiB is the firmware's, and so is its ROM. */
    add_e820(page, 0, 0x9fc00, E820_RAM);
    add_e820(page, 0x9fc00, 0xa0000, E820_RESERVED);
    add_e820(page, NITRO_BOOT_ROM, NITRO_BOOT_ROM + NITRO_BOOT_ROM_SIZE,
             E820_RESERVED);
    add_e820(page, 0x100000, boot->below_4g, E820_RAM);
    add_e820(page, four_gib - NITRO_BOOT_ROM_SIZE, four_gib, E820_RESERVED);
    if (boot->above_4g) {
        add_e820(page, four_gib, four_gib + boot->above_4g, E820_RAM);
    }
}

/* ---- The MP table ---- */

#define MP_REVISION 4               /* 1.4 */
#define MP_POINTER_SIZE 16
#define MP_HEADER_SIZE 44

#define LAPIC_ADDRESS 0xfee00000
#define LAPIC_VERSION 0x14          /* integrated */
#define IOAPIC_ADDRESS 0xfec00000
#define IOAPIC_VERSION 0x20
#define ALL_APICS 255

#define CPU_ENABLED 1
#define CPU_BOOTSTRAP 2
#define CPU_SIGNATURE 0x600         /* a family; CPUID has the rest */
#define CPU_FEATURES 0x201          /* FPU and APIC */

enum { MP_CPU, MP_BUS, MP_IOAPIC, MP_INTERRUPT, MP_LOCAL_INTERRUPT };
enum { MP_INT, MP_NMI, MP_SMI, MP_EXTINT };

#define ISA_IRQS 16
#define ISA_IRQ_TIMER 0             /* on line 2 of the IOAPIC ... */
#define ISA_IRQ_CASCADE 2           /* ... which this one has no use for */

static void set_checksum(uint8_t *p, size_t len, size_t at)
{
    uint8_t sum = 0;

    p[at] = 0;
    for (size_t i = 0; i < len; i++) {
        sum += p[i];
    }
    p[at] = (uint8_t)-sum;
}

static uint8_t *add_interrupt(uint8_t *p, uint8_t entry, uint8_t type,
                              uint8_t irq, uint8_t apic, uint8_t line)
{
    p[0] = entry;
    p[1] = type;
    put_le(p + 2, 0, 2);            /* polarity and trigger as the bus has */
    p[4] = 0;                       /* the bus */
    p[5] = irq;
    p[6] = apic;
    p[7] = line;
    return p + 8;
}

/* Entries of the configuration table, in the order of their types. */
static uint8_t *add_entries(uint8_t *p, const uint8_t *apic_ids,
                            unsigned int cpus, uint16_t *count)
{
    uint8_t ioapic = 0;
    uint8_t irq;

    for (unsigned int i = 0; i < cpus; i++, p += 20) {
        p[0] = MP_CPU;
        p[1] = apic_ids[i];
        p[2] = LAPIC_VERSION;
        p[3] = CPU_ENABLED | (i == 0 ? CPU_BOOTSTRAP : 0);
        put_le(p + 4, CPU_SIGNATURE, 4);
        put_le(p + 8, CPU_FEATURES, 4);
        if (apic_ids[i] >= ioapic) {
            ioapic = apic_ids[i] + 1;
        }
    }
    p[0] = MP_BUS;
    memcpy(p + 2, "ISA   ", 6);
    p += 8;
    p[0] = MP_IOAPIC;
    p[1] = ioapic;
    p[2] = IOAPIC_VERSION;
    p[3] = CPU_ENABLED;
    put_le(p + 4, IOAPIC_ADDRESS, 4);
    p += 8;
    for (irq = 0; irq < ISA_IRQS; irq++) {
        if (irq != ISA_IRQ_CASCADE) {
            p = add_interrupt(p, MP_INTERRUPT, MP_INT, irq, ioapic,
                              irq == ISA_IRQ_TIMER ? 2 : irq);
        }
    }
    p = add_interrupt(p, MP_LOCAL_INTERRUPT, MP_EXTINT, 0, ALL_APICS, 0);
    p = add_interrupt(p, MP_LOCAL_INTERRUPT, MP_NMI, 0, ALL_APICS, 1);
    *count = (uint16_t)(cpus + 1 + 1 + (ISA_IRQS - 1) + 2);
    return p;
}

static void mp_table(uint8_t *rom, const uint8_t *apic_ids, unsigned int cpus)
{
    uint8_t *table = rom + MP_POINTER_SIZE;
    uint8_t *end;
    uint16_t count;

    memcpy(rom, "_MP_", 4);
    put_le(rom + 4, NITRO_BOOT_ROM + MP_POINTER_SIZE, 4);
    rom[8] = MP_POINTER_SIZE / 16;
    rom[9] = MP_REVISION;
    set_checksum(rom, MP_POINTER_SIZE, 10);

    end = add_entries(table + MP_HEADER_SIZE, apic_ids, cpus, &count);
    memcpy(table, "PCMP", 4);
    put_le(table + 4, (uint64_t)(end - table), 2);
    table[6] = MP_REVISION;
    memcpy(table + 8, "NITROCTL", 8);
    memcpy(table + 16, "ENCLAVE     ", 12);
    put_le(table + 34, count, 2);
    put_le(table + 36, LAPIC_ADDRESS, 4);
    set_checksum(table, (size_t)(end - table), 7);
}

/* ---- The ROM ---- */

void nitro_boot_rom(uint8_t rom[NITRO_BOOT_ROM_SIZE], const uint8_t *apic_ids,
                    unsigned int cpus)
{
    memset(rom, 0, NITRO_BOOT_ROM_SIZE);
    mp_table(rom, apic_ids, cpus);
    memcpy(rom + NITRO_BOOT_CODE, nitro_boot_code, NITRO_BOOT_CODE_SIZE);
}
