/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board for aarch64
 *
 * A machine of its own, with Firecracker's memory map (nitro_enclave_arm.h)
 * and exactly the two devices of an enclave.  QEMU's "virt" has a PL011 for a
 * console, which AWS's kernels have no driver for, and much that no enclave
 * has.  The board puts kernel, initramfs and device tree into guest memory
 * itself: QEMU's own loader takes file names, and keeps what it loads for
 * ever.  Options, image and devices are those of every architecture, in
 * hw/core/nitro.
 *
 * It imitates what an enclave's kernel and programs can see of AWS's
 * hypervisor. It isolates them no better than any other process of this user.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "hw/boards.h"
#include "hw/intc/arm_gicv3_common.h"
#include "hw/irq.h"
#include "hw/qdev-properties.h"
#include "hw/sysbus.h"
#include "hw/virtio/virtio-mmio.h"
#include "target/arm/cpu.h"
#include "target/arm/kvm_arm.h"
#include "nitro/eif.h"
#define NITRO_ARM_BOARD
#include "nitro/qemu-compat.h"
#include "../core/nitro/nitro_enclave.h"
#include "nitro_enclave_arm.h"

#define DEFAULT_CPU     "neoverse-n1"
#define MAX_CPUS        128         /* their redistributors have 16 MiB */
#define RAM_MAX         (1022 * GiB)        /* 40 bits of addresses */
#define UART_BAUD_BASE  (24000000 / 16)
#define PSCI_HVC        2           /* QEMU's number for that way of calling */

/* What the boot CPU begins with; of the first board, and there is one only. */
typedef struct NitroArmBoot {
    ARMCPU *cpu;
    uint64_t entry;
    uint64_t dtb;
} NitroArmBoot;

bool nitro_enclave_check_board(NitroEnclaveMachineState *nems, Error **errp)
{
    MachineState *machine = MACHINE(nems);

    if (machine->ram_size > RAM_MAX) {
        error_setg(errp, "nitro-enclave can have %" PRIu64 " GiB of memory at "
                   "most", (uint64_t)(RAM_MAX / GiB));
        return false;
    }
    return true;
}

/*
 * KVM's own default are 40 bits of guest physical addresses, which some hosts
 * do not have: it is asked for what this guest needs.
 */
static int nitro_arm_kvm_type(MachineState *machine, const char *type)
{
    bool fixed;
    int most = kvm_arm_get_max_vm_ipa_size(machine, &fixed);
    uint64_t last = NITRO_ARM_RAM + machine->ram_size - 1;
    int bits = MAX(32, 64 - clz64(last));

    if (bits > most) {
        error_report("-m: KVM on this host takes guest addresses of %d bits, "
                     "so much memory needs %d", most, bits);
        return -1;
    }
    return fixed ? 0 : bits;
}

/* ---- CPUs ---- */

static void nitro_arm_reset_cpu(void *opaque)
{
    cpu_reset(CPU(opaque));
}

/* Documentation/arch/arm64/booting.rst, "Call the kernel image". */
static void nitro_arm_reset_boot_cpu(void *opaque)
{
    NitroArmBoot *boot = opaque;
    CPUState *cs = CPU(boot->cpu);

    cpu_reset(cs);
    boot->cpu->env.xregs[0] = boot->dtb;
    cpu_set_pc(cs, boot->entry);
}

static bool nitro_arm_create_cpu(MachineState *machine, int n, ARMCPU **out,
                                 Error **errp)
{
    Object *obj = object_new(machine->cpu_type);
    static const char *const off[] = { "has_el3", "has_el2" };
    int i;

    *out = (ARMCPU *)object_dynamic_cast(obj, TYPE_ARM_CPU);
    for (i = 0; i < ARRAY_SIZE(off); i++) {
        if (object_property_find(obj, off[i])) {
            object_property_set_bool(obj, off[i], false, &error_abort);
        }
    }
    object_property_set_int(obj, "psci-conduit", PSCI_HVC, &error_abort);
    object_property_set_bool(obj, "start-powered-off", n > 0, &error_abort);
    object_property_set_link(obj, "memory", OBJECT(get_system_memory()),
                             &error_abort);
    if (!qdev_realize_and_unref(DEVICE(obj), NULL, errp)) {
        return false;
    }
    if (!arm_feature(&(*out)->env, ARM_FEATURE_AARCH64)) {
        error_setg(errp, "-cpu: an enclave needs a 64-bit CPU; leave it out "
                   "for %s", kvm_enabled() ? "the host's" : DEFAULT_CPU);
        return false;
    }
    return true;
}

static bool nitro_arm_create_cpus(MachineState *machine, ARMCPU **cpus,
                                  Error **errp)
{
    int i;

    /* Nobody asked for another one, or for one that KVM does not have. */
    if (kvm_enabled() &&
        !strcmp(machine->cpu_type, ARM_CPU_TYPE_NAME(DEFAULT_CPU))) {
        machine->cpu_type = ARM_CPU_TYPE_NAME("host");
    }
    for (i = 0; i < machine->smp.cpus; i++) {
        if (!nitro_arm_create_cpu(machine, i, &cpus[i], errp)) {
            return false;
        }
        if (i > 0) {
            qemu_register_reset(nitro_arm_reset_cpu, cpus[i]);
        }
    }
    return true;
}

/* ---- Interrupts and devices ---- */

static bool nitro_arm_create_gic(MachineState *machine, ARMCPU **cpus,
                                 DeviceState **out, Error **errp)
{
    static const struct {
        int output;
        int ppi;
    } timers[] = {
        { GTIMER_PHYS, NITRO_ARM_PPI_TIMER_PHYS },
        { GTIMER_VIRT, NITRO_ARM_PPI_TIMER_VIRT },
        { GTIMER_HYP, NITRO_ARM_PPI_TIMER_HYP },
        { GTIMER_SEC, NITRO_ARM_PPI_TIMER_SEC },
    };
    int n = machine->smp.cpus;
    DeviceState *gic = qdev_new(gicv3_class_name());
    SysBusDevice *sbd = SYS_BUS_DEVICE(gic);
    int i, j;

    qdev_prop_set_uint32(gic, "revision", 3);
    qdev_prop_set_uint32(gic, "num-cpu", n);
    qdev_prop_set_uint32(gic, "num-irq", NITRO_ARM_SPIS + GIC_INTERNAL);
    nitro_gic_set_redistributors(gic, n);
    if (!kvm_irqchip_in_kernel()) {
        qdev_prop_set_bit(gic, "has-security-extensions", false);
    }
    object_property_add_child(OBJECT(machine), "gic", OBJECT(gic));
    if (!sysbus_realize_and_unref(sbd, errp)) {
        return false;
    }
    sysbus_mmio_map(sbd, 0, NITRO_ARM_GICD);
    sysbus_mmio_map(sbd, 1, NITRO_ARM_GICR(n));

    for (i = 0; i < n; i++) {
        DeviceState *cpu = DEVICE(cpus[i]);
        /* The GIC's inputs: all SPIs, then each CPU's private interrupts. */
        int ppis = NITRO_ARM_SPIS + i * GIC_INTERNAL + 16;

        for (j = 0; j < ARRAY_SIZE(timers); j++) {
            qdev_connect_gpio_out(cpu, timers[j].output,
                                  qdev_get_gpio_in(gic,
                                                   ppis + timers[j].ppi));
        }
        qdev_connect_gpio_out_named(cpu, "gicv3-maintenance-interrupt", 0,
                                    qdev_get_gpio_in(gic, ppis +
                                                     NITRO_ARM_PPI_GIC));
        sysbus_connect_irq(sbd, i, qdev_get_gpio_in(cpu, ARM_CPU_IRQ));
        sysbus_connect_irq(sbd, i + n, qdev_get_gpio_in(cpu, ARM_CPU_FIQ));
        sysbus_connect_irq(sbd, i + 2 * n,
                           qdev_get_gpio_in(cpu, ARM_CPU_VIRQ));
        sysbus_connect_irq(sbd, i + 3 * n,
                           qdev_get_gpio_in(cpu, ARM_CPU_VFIQ));
    }
    *out = gic;
    return true;
}

static BusState *nitro_arm_create_transport(DeviceState *gic, int n)
{
    DeviceState *dev = qdev_new(TYPE_VIRTIO_MMIO);

    sysbus_realize_and_unref(SYS_BUS_DEVICE(dev), &error_fatal);
    sysbus_mmio_map(SYS_BUS_DEVICE(dev), 0, NITRO_ARM_VIRTIO(n));
    sysbus_connect_irq(SYS_BUS_DEVICE(dev), 0,
                       qdev_get_gpio_in(gic, NITRO_ARM_SPI_VIRTIO + n));
    return BUS(&VIRTIO_MMIO(dev)->bus);
}

static bool nitro_arm_create_devices(NitroEnclaveMachineState *nems,
                                     DeviceState *gic, Chardev *chr,
                                     const EifMeasurements *pcr, Error **errp)
{
    BusState *bus[NITRO_ENCLAVE_TRANSPORTS];
    int i;

    serial_mm_init(get_system_memory(), NITRO_ARM_UART, 0,
                   qdev_get_gpio_in(gic, NITRO_ARM_SPI_UART), UART_BAUD_BASE,
                   serial_hd(0), DEVICE_LITTLE_ENDIAN);
    sysbus_create_simple("pl031", NITRO_ARM_RTC,
                         qdev_get_gpio_in(gic, NITRO_ARM_SPI_RTC));
    for (i = 0; i < NITRO_ENCLAVE_TRANSPORTS; i++) {
        bus[i] = nitro_arm_create_transport(gic, i);
    }
    return nitro_enclave_create_vsock(
               chr, bus[NITRO_ENCLAVE_TRANSPORT_VSOCK], errp) &&
           nitro_enclave_create_nsm(
               nems, bus[NITRO_ENCLAVE_TRANSPORT_NSM], pcr, errp);
}

/* ---- Guest memory ---- */

/* Where eif_load() puts the image, and where that is for the guest. */
typedef struct NitroArmMemory {
    uint8_t *ram;
    uint64_t lowmem;
    EifArm64Places at;
} NitroArmMemory;

static bool nitro_arm_place(void *opaque, const EifImage *image,
                            EifPlaces *places, EifError *err)
{
    NitroArmMemory *memory = opaque;

    eif_arm64_places(&image->kernel, image->initramfs_size, memory->lowmem,
                     &memory->at);
    places->kernel = memory->ram + memory->at.kernel;
    places->initramfs = memory->ram + memory->at.initramfs;
    return true;
}

/* The image is there: add the device tree, and start at the kernel. */
static void nitro_arm_finish_memory(MachineState *machine, ARMCPU **cpus,
                                    const NitroArmMemory *memory,
                                    const EifImage *image, const char *append)
{
    g_autofree char *cmdline = g_strconcat(image->cmdline, append, NULL);
    g_autofree uint64_t *mpidr = g_new(uint64_t, machine->smp.cpus);
    NitroArmBoot *boot = g_new0(NitroArmBoot, 1);
    const NitroArmTree tree = {
        .n_cpus = machine->smp.cpus,
        .mpidr = mpidr,
        .ram_size = machine->ram_size,
        .cmdline = cmdline,
        .initramfs = NITRO_ARM_RAM + memory->at.initramfs,
        .initramfs_size = image->initramfs_size,
    };
    void *fdt;
    int i, size;

    for (i = 0; i < machine->smp.cpus; i++) {
        mpidr[i] = object_property_get_uint(OBJECT(cpus[i]), "mp-affinity",
                                            &error_abort);
    }
    fdt = nitro_arm_device_tree(&tree, &size);
    machine->fdt = fdt;         /* for the monitor's dumpdtb; freed with it */
    assert(size > 0 && size <= EIF_ARM64_DTB_SIZE);
    memcpy(memory->ram + memory->at.dtb, fdt, size);

    boot->cpu = cpus[0];
    boot->entry = NITRO_ARM_RAM + memory->at.kernel;
    boot->dtb = NITRO_ARM_RAM + memory->at.dtb;
    qemu_register_reset(nitro_arm_reset_boot_cpu, boot);

    g_free(machine->kernel_cmdline);
    machine->kernel_cmdline = g_steal_pointer(&cmdline);
}

/* ---- The machine ---- */

static bool nitro_enclave_build(MachineState *machine, Error **errp)
{
    NitroEnclaveMachineState *nems = NITRO_ENCLAVE_MACHINE(machine);
    Chardev *chr = nitro_enclave_check_options(nems, errp);
    g_autofree ARMCPU **cpus = g_new0(ARMCPU *, machine->smp.cpus);
    g_autofree char *append = NULL;
    EifOptions options = {
        .arch = EIF_ARCH_AARCH64,
        .lowmem = MIN(machine->ram_size, EIF_ARM64_WINDOW),
    };
    NitroArmMemory memory = { .lowmem = options.lowmem };
    const EifMemory places = { nitro_arm_place, &memory };
    EifImage image = { 0 };
    DeviceState *gic;
    bool built;

    if (!chr) {
        return false;
    }
    append = nitro_enclave_append(nems, "");
    options.cmdline_extra = strlen(append);
    if (!nitro_enclave_check_ram(machine, errp)) {
        return false;
    }
    memory.ram = memory_region_get_ram_ptr(machine->ram);
    if (!nitro_enclave_load_eif(nems, &options, &places, NULL, &image, errp)) {
        return false;
    }
    if (!image.kernel.text_offset) {
        warn_report("%s: the kernel's text_offset is 0: AWS's loader puts it "
                    "there, and it does not start; here it is put at 2 MiB",
                    machine->kernel_filename);
    }
    memory_region_add_subregion(get_system_memory(), NITRO_ARM_RAM,
                                machine->ram);
    built = nitro_arm_create_cpus(machine, cpus, errp) &&
            nitro_arm_create_gic(machine, cpus, &gic, errp) &&
            nitro_arm_create_devices(nems, gic, chr, &image.pcr, errp);
    if (built) {
        nitro_arm_finish_memory(machine, cpus, &memory, &image, append);
    }
    nitro_enclave_finish(nems);
    eif_image_clear(&image);
    return built;
}

/* QEMU's hook cannot fail, so all that can go wrong is fatal here. */
static void nitro_enclave_init(MachineState *machine)
{
    nitro_enclave_build(machine, &error_fatal);
}

static void nitro_enclave_class_init(ObjectClass *oc, NitroClassData *data)
{
    MachineClass *mc = MACHINE_CLASS(oc);

    mc->init = nitro_enclave_init;
    mc->family = "nitro_enclave_aarch64";
    mc->max_cpus = MAX_CPUS;
    mc->kvm_type = nitro_arm_kvm_type;
    /* "max" has 52-bit addresses (LPA2), which old kernels may not bear. */
    mc->default_cpu_type = ARM_CPU_TYPE_NAME(DEFAULT_CPU);
    mc->minimum_page_bits = 12;
    mc->no_parallel = 1;
    mc->no_floppy = 1;
    mc->no_cdrom = 1;
    nitro_enclave_class_init_common(mc);
}

static const TypeInfo nitro_enclave_types[] = {
    {
        .name = TYPE_NITRO_ENCLAVE_MACHINE,
        .parent = TYPE_MACHINE,
        .instance_size = sizeof(NitroEnclaveMachineState),
        .instance_finalize = nitro_enclave_free_options,
        .class_size = sizeof(NitroEnclaveMachineClass),
        .class_init = nitro_enclave_class_init,
        .interfaces = nitro_arm_interfaces,
    },
};

DEFINE_TYPES(nitro_enclave_types)
