/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * How an x86 kernel is entered that lies in the guest's memory already
 *
 * What a firmware and a boot loader would leave behind: a ROM that switches
 * to 32 bits and jumps, the MP table in it, the boot parameters. Plain C over
 * buffers, for the board and for its unit test; no QEMU.
 *
 * Sources of the facts: Linux's Documentation/arch/x86/boot.rst ("32-bit Boot
 * Protocol") and zero-page.rst; Intel's MultiProcessor Specification 1.4.
 */
#ifndef NITRO_BOOT_H
#define NITRO_BOOT_H

#include <stddef.h>
#include <stdint.h>

#include "nitro/boot-map.h"

/* APIC ids have 8 bits in the MP table; 255 means all, one is the IOAPIC's. */
#define NITRO_BOOT_CPUS_MAX     254

typedef struct NitroBoot {
    const uint8_t *setup;       /* of the kernel's file, 1 KiB at least */
    uint64_t initramfs;         /* below 4 GiB */
    uint64_t initramfs_size;    /* 0: none */
    uint64_t below_4g;          /* RAM from 0 to here, 1 MiB at least */
    uint64_t above_4g;          /* and so much from 4 GiB on */
} NitroBoot;

/* The boot parameters. */
void nitro_boot_params(uint8_t page[NITRO_BOOT_PARAMS_SIZE],
                       const NitroBoot *boot);

/*
 * The ROM. @apic_ids: of the @cpus CPUs, 1 to NITRO_BOOT_CPUS_MAX, that of the
 * first one first, each below 254.
 */
void nitro_boot_rom(uint8_t rom[NITRO_BOOT_ROM_SIZE], const uint8_t *apic_ids,
                    unsigned int cpus);

#endif /* NITRO_BOOT_H */
