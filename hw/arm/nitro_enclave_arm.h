/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board for aarch64: what the guest finds where
 *
 *   what              where                       interrupt
 *   ----------------  --------------------------  ----------------
 *   redistributors    below 0x3fff0000            -
 *   GICv3             0x3fff0000                  -
 *   clock (PL031)     0x40001000                  SPI 1, level
 *   serial (ns16550a) 0x40002000                  SPI 0, level
 *   vsock             virtio-mmio, 0x40003000     SPI 2, edge
 *   NSM               virtio-mmio, 0x40004000     SPI 3, edge
 *   memory            0x80000000                  -
 *
 * The addresses are those of Firecracker, AWS's open hypervisor.  Everything
 * else is empty: no disk, no network device, no PCI, no firmware.
 */
#ifndef NITRO_ENCLAVE_ARM_H
#define NITRO_ENCLAVE_ARM_H

#include "nitro/eif.h"

#define NITRO_ARM_GICD          0x3fff0000
#define NITRO_ARM_GICD_SIZE     0x10000
#define NITRO_ARM_GICR_SIZE     0x20000     /* of each CPU */
#define NITRO_ARM_GICR(cpus)    (NITRO_ARM_GICD - (cpus) * NITRO_ARM_GICR_SIZE)
#define NITRO_ARM_RTC           0x40001000
#define NITRO_ARM_UART          0x40002000
#define NITRO_ARM_VIRTIO(n)     (0x40003000 + (n) * NITRO_ARM_DEVICE_SIZE)
#define NITRO_ARM_DEVICE_SIZE   0x1000
#define NITRO_ARM_RAM           0x80000000

/* Shared peripheral interrupts, counted from 0. */
enum {
    NITRO_ARM_SPI_UART,
    NITRO_ARM_SPI_RTC,
    NITRO_ARM_SPI_VIRTIO,       /* and the next one */
    /*
     * As many as Firecracker has. A multiple of 32, as the GIC asks; QEMU 7.2
     * tells the guest of 32 fewer than there are.
     */
    NITRO_ARM_SPIS = 96,
};

/* The architected timer's private interrupts, as on every Arm server. */
enum {
    NITRO_ARM_PPI_TIMER_HYP = 10,
    NITRO_ARM_PPI_TIMER_VIRT = 11,
    NITRO_ARM_PPI_TIMER_SEC = 13,
    NITRO_ARM_PPI_TIMER_PHYS = 14,
    NITRO_ARM_PPI_GIC = 9,      /* its maintenance interrupt */
};

/* One guest, for the device tree. */
typedef struct NitroArmTree {
    unsigned int n_cpus;
    const uint64_t *mpidr;      /* of each CPU */
    uint64_t ram_size;
    const char *cmdline;
    uint64_t initramfs;         /* its address, and ... */
    uint64_t initramfs_size;    /* ... size; 0: there is none */
} NitroArmTree;

/* ---- nitro_enclave_fdt.c ---- */

/* The device tree, packed, of @size bytes; to be freed with g_free(). */
void *nitro_arm_device_tree(const NitroArmTree *tree, int *size);

#endif /* NITRO_ENCLAVE_ARM_H */
