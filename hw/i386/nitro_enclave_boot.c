/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board for x86: a boot without a firmware
 *
 * The loader puts kernel and initramfs straight into guest RAM. microvm is
 * told of no kernel, and gets a ROM of ours in place of its firmware, which
 * enters the kernel. What microvm would do for a kernel it loaded is done
 * here: boot parameters, and the command line with the devices in it. What the
 * parts look like is in nitro_boot.c, which knows no QEMU.
 *
 * With ACPI, whose tables a firmware has to put into memory, none of this is
 * used.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/memfd.h"
#include "hw/boards.h"
#include "hw/i386/microvm.h"
#include "hw/i386/x86.h"
#include "hw/sysbus.h"
#include "hw/virtio/virtio-mmio.h"
#include "nitro/boot.h"
#include "nitro/eif.h"
#include "nitro/qemu-compat.h"
#include "nitro_enclave_boot.h"

#define TRANSPORT_SIZE 512

/* Where the guest's memory is in ours: low memory comes first, in one piece. */
static uint8_t *low_memory(NitroEnclaveBoot *boot)
{
    return memory_region_get_ram_ptr(MACHINE(boot->nems)->ram);
}

static bool nitro_enclave_place(void *opaque, const EifImage *image,
                                EifPlaces *places, EifError *err)
{
    NitroEnclaveBoot *boot = opaque;
    EifX86Places guest;

    eif_x86_places(&image->kernel, image->initramfs_size, boot->lowmem,
                   &guest);
    boot->setup = g_malloc(image->kernel.setup_bytes);
    boot->cmdline_size = image->kernel.cmdline_size;
    boot->initramfs = guest.initramfs;
    boot->initramfs_size = image->initramfs_size;
    places->setup = boot->setup;
    places->kernel = low_memory(boot) + guest.kernel;
    places->initramfs = low_memory(boot) + guest.initramfs;
    return true;
}

/* The numbers under which the MP table has the CPUs. */
static bool apic_ids(MachineState *machine, uint8_t *ids, Error **errp)
{
    const CPUArchIdList *cpus =
        MACHINE_GET_CLASS(machine)->possible_cpu_arch_ids(machine);
    unsigned int i;

    for (i = 0; i < machine->smp.cpus; i++) {
        if (i == NITRO_BOOT_CPUS_MAX ||
            cpus->cpus[i].arch_id >= NITRO_BOOT_CPUS_MAX) {
            error_setg(errp, "-smp %u: without ACPI an enclave has at most "
                       "%d CPUs, with APIC ids below that: use fewer, or "
                       "acpi=on", machine->smp.cpus, NITRO_BOOT_CPUS_MAX);
            return false;
        }
        ids[i] = cpus->cpus[i].arch_id;
    }
    return true;
}

/* A file of the ROM, since microvm wants the name of one; -1 with @errp. */
static int create_rom(MachineState *machine, Error **errp)
{
    g_autofree uint8_t *rom = g_malloc(NITRO_BOOT_ROM_SIZE);
    uint8_t ids[NITRO_BOOT_CPUS_MAX];
    int fd;

    if (!apic_ids(machine, ids, errp)) {
        return -1;
    }
    nitro_boot_rom(rom, ids, machine->smp.cpus);
    fd = qemu_memfd_create("nitro-boot-rom", NITRO_BOOT_ROM_SIZE, false, 0, 0,
                           errp);
    if (fd >= 0 &&
        pwrite(fd, rom, NITRO_BOOT_ROM_SIZE, 0) != NITRO_BOOT_ROM_SIZE) {
        error_setg_errno(errp, errno, "cannot write the boot ROM");
        close(fd);
        return -1;
    }
    return fd;
}

/* One transport's entry, as microvm writes it; NULL if nothing is on it. */
static char *transport_entry(MicrovmMachineState *mms, DeviceState *dev)
{
    VirtIOMMIOProxy *proxy;
    hwaddr base;

    if (!object_dynamic_cast(OBJECT(dev), TYPE_VIRTIO_MMIO)) {
        return NULL;
    }
    proxy = VIRTIO_MMIO(dev);
    if (QTAILQ_EMPTY(&BUS(&proxy->bus)->children)) {
        return NULL;
    }
    base = SYS_BUS_DEVICE(dev)->mmio[0].addr;
    return g_strdup_printf(" virtio_mmio.device=%d@0x%" HWADDR_PRIx ":%" PRIu64,
                           TRANSPORT_SIZE, base, mms->virtio_irq_base +
                           (base - VIRTIO_MMIO_BASE) / TRANSPORT_SIZE);
}

/* Also of devices that the user has added, which exist by now. */
static GString *complete_cmdline(NitroEnclaveBoot *boot)
{
    MicrovmMachineState *mms = MICROVM_MACHINE(boot->nems);
    GString *cmdline = g_string_new(MACHINE(boot->nems)->kernel_cmdline);
    BusState *sysbus = sysbus_get_default();
    BusChild *kid;

    if (!mms->auto_kernel_cmdline) {
        return cmdline;
    }
    QTAILQ_FOREACH(kid, &sysbus->children, sibling) {
        g_autofree char *entry = transport_entry(mms, kid->child);

        if (entry) {
            g_string_append(cmdline, entry);
        }
    }
    return cmdline;
}

/* The machine is complete, nothing has run. */
static void nitro_enclave_boot_done(Notifier *notifier, void *data)
{
    NitroEnclaveBoot *boot = container_of(notifier, NitroEnclaveBoot, done);
    X86MachineState *x86ms = X86_MACHINE(boot->nems);
    uint8_t *memory = low_memory(boot);
    const NitroBoot params = {
        .setup = boot->setup,
        .initramfs = boot->initramfs,
        .initramfs_size = boot->initramfs_size,
        .below_4g = x86ms->below_4g_mem_size,
        .above_4g = x86ms->above_4g_mem_size,
    };
    GString *cmdline = complete_cmdline(boot);

    if (cmdline->len > boot->cmdline_size ||
        cmdline->len >= NITRO_BOOT_CMDLINE_MAX) {
        error_report("the command line has %zu bytes with all devices, and "
                     "the kernel takes %zu: leave out some of them, or of "
                     "-append", cmdline->len,
                     MIN((size_t)boot->cmdline_size,
                         (size_t)NITRO_BOOT_CMDLINE_MAX - 1));
        exit(1);
    }
    nitro_boot_params(memory + NITRO_BOOT_PARAMS, &params);
    memcpy(memory + NITRO_BOOT_CMDLINE, cmdline->str, cmdline->len + 1);
    g_string_free(cmdline, true);
    notifier_remove(notifier);
    nitro_enclave_boot_free(boot);
}

NitroEnclaveBoot *nitro_enclave_boot_new(NitroEnclaveMachineState *nems,
                                         uint64_t lowmem)
{
    NitroEnclaveBoot *boot = g_new0(NitroEnclaveBoot, 1);

    boot->nems = nems;
    boot->lowmem = lowmem;
    boot->memory.place = nitro_enclave_place;
    boot->memory.opaque = boot;
    return boot;
}

void nitro_enclave_boot_free(NitroEnclaveBoot *boot)
{
    if (boot) {
        g_free(boot->setup);
        g_free(boot);
    }
}

bool nitro_enclave_boot_init(NitroEnclaveBoot *boot, Error **errp)
{
    MachineState *machine = MACHINE(boot->nems);
    NitroEnclaveMachineClass *nemc = NITRO_ENCLAVE_MACHINE_GET_CLASS(machine);
    char *user_kernel = machine->kernel_filename;
    char *user_initrd = machine->initrd_filename;
    g_autofree char *rom = NULL;
    int fd = create_rom(machine, errp);

    if (fd < 0) {
        return false;
    }
    rom = g_strdup_printf("/proc/self/fd/%d", fd);
    machine->firmware = rom;
    machine->kernel_filename = NULL;
    machine->initrd_filename = NULL;

    nemc->parent_init(machine);

    machine->firmware = NULL;
    machine->kernel_filename = user_kernel;
    machine->initrd_filename = user_initrd;
    close(fd);
    /* Else the first reset looks for a command line that it had loaded. */
    MICROVM_MACHINE(machine)->kernel_cmdline_fixed = true;
    boot->done.notify = nitro_enclave_boot_done;
    qemu_add_machine_init_done_notifier(&boot->done);
    return true;
}
