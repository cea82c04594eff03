/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board for aarch64: its device tree
 *
 * All that a kernel learns of the machine: there is neither ACPI nor EFI.
 * Bindings: Documentation/devicetree/bindings of Linux (arm/cpus.yaml,
 * arm/psci.yaml, timer/arm,arch_timer.yaml, interrupt-controller/arm,gic-v3,
 * serial/8250.yaml, rtc/arm,pl031.yaml, virtio/mmio.yaml).
 */

#include "qemu/osdep.h"
#include "qemu/guest-random.h"
#define NITRO_ARM_BOARD
#include "nitro/qemu-compat.h"
#include "../core/nitro/nitro_enclave.h"
#include "nitro_enclave_arm.h"
#include <libfdt.h>

#define CLOCK_HZ        24000000
#define RNG_SEED_SIZE   64

/* What refers to these does so by number. */
enum { PHANDLE_GIC = 1, PHANDLE_CLOCK };

/* The cells of an interrupt: kind, number, trigger. */
enum { KIND_SPI, KIND_PPI };
enum { TRIGGER_EDGE = 1, TRIGGER_LEVEL = 4 };

static void add_cpus(void *fdt, const NitroArmTree *tree)
{
    int i;

    qemu_fdt_add_subnode(fdt, "/cpus");
    qemu_fdt_setprop_cell(fdt, "/cpus", "#address-cells", 2);
    qemu_fdt_setprop_cell(fdt, "/cpus", "#size-cells", 0);
    /* Each node is put first among its siblings. */
    for (i = (int)tree->n_cpus - 1; i >= 0; i--) {
        g_autofree char *node = g_strdup_printf("/cpus/cpu@%x", i);

        qemu_fdt_add_subnode(fdt, node);
        qemu_fdt_setprop_string(fdt, node, "device_type", "cpu");
        qemu_fdt_setprop_string(fdt, node, "compatible", "arm,arm-v8");
        qemu_fdt_setprop_string(fdt, node, "enable-method", "psci");
        qemu_fdt_setprop_u64(fdt, node, "reg", tree->mpidr[i]);
    }
    qemu_fdt_add_subnode(fdt, "/psci");
    qemu_fdt_setprop_string(fdt, "/psci", "compatible", "arm,psci-0.2");
    qemu_fdt_setprop_string(fdt, "/psci", "method", "hvc");
}

static void add_interrupts(void *fdt, const NitroArmTree *tree)
{
    qemu_fdt_add_subnode(fdt, "/intc");
    qemu_fdt_setprop_string(fdt, "/intc", "compatible", "arm,gic-v3");
    qemu_fdt_setprop_cell(fdt, "/intc", "#interrupt-cells", 3);
    qemu_fdt_setprop(fdt, "/intc", "interrupt-controller", NULL, 0);
    qemu_fdt_setprop_cell(fdt, "/intc", "#address-cells", 2);
    qemu_fdt_setprop_cell(fdt, "/intc", "#size-cells", 2);
    qemu_fdt_setprop(fdt, "/intc", "ranges", NULL, 0);
    qemu_fdt_setprop_sized_cells(fdt, "/intc", "reg",
                                 2, NITRO_ARM_GICD, 2, NITRO_ARM_GICD_SIZE,
                                 2, NITRO_ARM_GICR(tree->n_cpus),
                                 2, tree->n_cpus * NITRO_ARM_GICR_SIZE);
    qemu_fdt_setprop_cells(fdt, "/intc", "interrupts", KIND_PPI,
                           NITRO_ARM_PPI_GIC, TRIGGER_LEVEL);
    qemu_fdt_setprop_cell(fdt, "/intc", "phandle", PHANDLE_GIC);

    qemu_fdt_add_subnode(fdt, "/timer");
    qemu_fdt_setprop_string(fdt, "/timer", "compatible", "arm,armv8-timer");
    qemu_fdt_setprop(fdt, "/timer", "always-on", NULL, 0);
    qemu_fdt_setprop_cells(fdt, "/timer", "interrupts",
                           KIND_PPI, NITRO_ARM_PPI_TIMER_SEC, TRIGGER_LEVEL,
                           KIND_PPI, NITRO_ARM_PPI_TIMER_PHYS, TRIGGER_LEVEL,
                           KIND_PPI, NITRO_ARM_PPI_TIMER_VIRT, TRIGGER_LEVEL,
                           KIND_PPI, NITRO_ARM_PPI_TIMER_HYP, TRIGGER_LEVEL);
}

/* The node NAME@ADDRESS of a device with one interrupt. */
static char *add_device(void *fdt, const char *name, uint64_t address, int spi,
                        int trigger)
{
    char *node = g_strdup_printf("/%s@%" PRIx64, name, address);

    qemu_fdt_add_subnode(fdt, node);
    qemu_fdt_setprop_sized_cells(fdt, node, "reg", 2, address,
                                 2, NITRO_ARM_DEVICE_SIZE);
    qemu_fdt_setprop_cells(fdt, node, "interrupts", KIND_SPI, spi, trigger);
    return node;
}

static void add_devices(void *fdt)
{
    static const char primecell[] = "arm,pl031\0arm,primecell";
    g_autofree char *rtc = NULL, *uart = NULL;
    int i;

    qemu_fdt_add_subnode(fdt, "/apb-pclk");
    qemu_fdt_setprop_string(fdt, "/apb-pclk", "compatible", "fixed-clock");
    qemu_fdt_setprop_cell(fdt, "/apb-pclk", "#clock-cells", 0);
    qemu_fdt_setprop_cell(fdt, "/apb-pclk", "clock-frequency", CLOCK_HZ);
    qemu_fdt_setprop_string(fdt, "/apb-pclk", "clock-output-names",
                            "clk24mhz");
    qemu_fdt_setprop_cell(fdt, "/apb-pclk", "phandle", PHANDLE_CLOCK);

    rtc = add_device(fdt, "rtc", NITRO_ARM_RTC, NITRO_ARM_SPI_RTC,
                     TRIGGER_LEVEL);
    qemu_fdt_setprop(fdt, rtc, "compatible", primecell, sizeof(primecell));
    qemu_fdt_setprop_cell(fdt, rtc, "clocks", PHANDLE_CLOCK);
    qemu_fdt_setprop_string(fdt, rtc, "clock-names", "apb_pclk");

    uart = add_device(fdt, "uart", NITRO_ARM_UART, NITRO_ARM_SPI_UART,
                      TRIGGER_LEVEL);
    qemu_fdt_setprop_string(fdt, uart, "compatible", "ns16550a");
    qemu_fdt_setprop_cell(fdt, uart, "clock-frequency", CLOCK_HZ);

    /* The first one of the tree is Linux's first. */
    for (i = NITRO_ENCLAVE_TRANSPORTS - 1; i >= 0; i--) {
        g_autofree char *node = add_device(fdt, "virtio_mmio",
                                           NITRO_ARM_VIRTIO(i),
                                           NITRO_ARM_SPI_VIRTIO + i,
                                           TRIGGER_EDGE);

        qemu_fdt_setprop_string(fdt, node, "compatible", "virtio,mmio");
        qemu_fdt_setprop(fdt, node, "dma-coherent", NULL, 0);
    }
}

static void add_chosen(void *fdt, const NitroArmTree *tree)
{
    uint8_t seed[RNG_SEED_SIZE];

    qemu_fdt_add_subnode(fdt, "/chosen");
    qemu_fdt_setprop_string(fdt, "/chosen", "bootargs", tree->cmdline);
    if (tree->initramfs_size) {
        qemu_fdt_setprop_u64(fdt, "/chosen", "linux,initrd-start",
                             tree->initramfs);
        qemu_fdt_setprop_u64(fdt, "/chosen", "linux,initrd-end",
                             tree->initramfs + tree->initramfs_size);
    }
    qemu_guest_getrandom_nofail(seed, sizeof(seed));
    qemu_fdt_setprop(fdt, "/chosen", "rng-seed", seed, sizeof(seed));
}

void *nitro_arm_device_tree(const NitroArmTree *tree, int *size)
{
    void *fdt = create_device_tree(size);

    qemu_fdt_setprop_string(fdt, "/", "compatible", "linux,dummy-virt");
    qemu_fdt_setprop_cell(fdt, "/", "#address-cells", 2);
    qemu_fdt_setprop_cell(fdt, "/", "#size-cells", 2);
    qemu_fdt_setprop_cell(fdt, "/", "interrupt-parent", PHANDLE_GIC);

    add_devices(fdt);
    add_interrupts(fdt, tree);
    add_cpus(fdt, tree);
    qemu_fdt_add_subnode(fdt, "/memory@80000000");
    qemu_fdt_setprop_string(fdt, "/memory@80000000", "device_type", "memory");
    qemu_fdt_setprop_sized_cells(fdt, "/memory@80000000", "reg",
                                 2, NITRO_ARM_RAM, 2, tree->ram_size);
    add_chosen(fdt, tree);

    fdt_pack(fdt);
    *size = fdt_totalsize(fdt);
    return fdt;
}
