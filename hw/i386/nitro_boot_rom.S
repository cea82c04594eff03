/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the first vCPU runs before the kernel
 *
 * The last bytes of the ROM: from the reset vector to the entry of the kernel,
 * as Linux's "32-bit Boot Protocol" wants it. Kernel, command line and boot
 * parameters lie in memory already; no device is touched, no memory written.
 *
 * nitro_boot_rom.h has the bytes that this assembles to, so that building QEMU
 * needs no assembler; the unit test test-boot compares. To make it anew:
 *   tools/boot-rom
 */
#include "nitro/boot-map.h"

#define HERE(label) (NITRO_BOOT_CODE + (label) - code)      /* in its segment */
#define LINEAR(label) (0xffff0000 + HERE(label))

    .text
code:
    .code16
start:
    cli
    cld
    lgdtl   %cs:HERE(gdt_register)
    movl    $0x11, %eax             /* protected mode; caches are on */
    movl    %eax, %cr0
    ljmpl   $0x10, $LINEAR(protected)

    .code32
protected:
    movl    $0x18, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %fs
    movl    %eax, %gs
    movl    %eax, %ss
    movl    $NITRO_BOOT_PARAMS, %esi
    movl    %esi, %esp
    xorl    %ebx, %ebx
    xorl    %ebp, %ebp
    xorl    %edi, %edi
    movl    $NITRO_BOOT_KERNEL, %eax
    jmp     *%eax

    /* __BOOT_CS is 0x10 and __BOOT_DS 0x18: flat, 4 GiB, 32 bits. */
    .balign 8, 0xf4
gdt:
    .quad   0
    .quad   0
    .quad   0x00cf9b000000ffff
    .quad   0x00cf93000000ffff
gdt_register:
    .word   . - gdt - 1
    .long   LINEAR(gdt)

    .org    NITRO_BOOT_CODE_SIZE - 16, 0xf4
    .code16
reset_vector:
    jmp     start
    .org    NITRO_BOOT_CODE_SIZE, 0xf4
