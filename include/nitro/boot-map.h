/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Where an x86 guest finds what its kernel is entered with
 *
 * Numbers alone, for C and for the ROM's assembler source.
 *
 * Guest addresses:
 *   0x10000             boot parameters (one page), the stack below it
 *   0x20000 to 0x9f000  command line
 *   0xf0000             ROM, 64 KiB; again at the end of 4 GiB
 *   0x100000            kernel
 */
#ifndef NITRO_BOOT_MAP_H
#define NITRO_BOOT_MAP_H

#define NITRO_BOOT_PARAMS       0x10000
#define NITRO_BOOT_PARAMS_SIZE  0x1000
#define NITRO_BOOT_CMDLINE      0x20000
#define NITRO_BOOT_CMDLINE_MAX  0x7f000         /* bytes, with its NUL */
#define NITRO_BOOT_ROM          0xf0000
#define NITRO_BOOT_ROM_SIZE     0x10000
#define NITRO_BOOT_KERNEL       0x100000

/* The code, at the end of the ROM, so that it ends with the reset vector. */
#define NITRO_BOOT_CODE_SIZE    0x80
#define NITRO_BOOT_CODE         (NITRO_BOOT_ROM_SIZE - NITRO_BOOT_CODE_SIZE)

#endif /* NITRO_BOOT_MAP_H */
