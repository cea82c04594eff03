/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board
 *
 * A microvm that boots an Enclave Image File (EIF) and has exactly the two
 * devices of an enclave: vsock, served by a vhost-user process, and the Nitro
 * Secure Module. The board works around microvm's own initialisation: before
 * it, the EIF is checked, measured and put into guest RAM; after it, the
 * devices are put on the first two virtio-mmio transports. How the kernel is
 * entered is in nitro_enclave_boot.c; with ACPI, for which a firmware is
 * needed, microvm loads kernel and initramfs itself, from memfds. Options,
 * image and devices are those of every architecture, in hw/core/nitro.
 *
 * What the guest finds, ACPI off:
 *
 *   what              where                       IRQ
 *   ----------------  --------------------------  ---
 *   serial console    port 0x3f8                  4
 *   reset             port 0x64, command 0xfe     -
 *   vsock             virtio-mmio 0, 0xfeb00000   5
 *   NSM               virtio-mmio 1, 0xfeb00200   6
 *
 * and microvm's PIC, PIT, IOAPIC and (TCG only) RTC. Everything else of
 * microvm's address map is empty: no disk, no network device, no PCI.
 *
 * It imitates what an enclave's kernel and programs can see of AWS's
 * hypervisor. It isolates them no better than any other process of this user.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "chardev/char.h"
#include "hw/boards.h"
#include "hw/i386/microvm.h"
#include "hw/i386/x86.h"
#include "hw/sysbus.h"
#include "hw/virtio/virtio-mmio.h"
#include "target/i386/cpu.h"
#include "nitro/eif.h"
#include "nitro/qemu-compat.h"
#include "nitro/tsc.h"
#include "../core/nitro/nitro_enclave.h"
#include "nitro_enclave_boot.h"
#include "../virtio/nsm/trace.h"

#define MICROVM_LOWMEM (3 * GiB)    /* microvm's RAM below 4 GiB, at most */
#define TRANSPORT_SIZE 512
#define TRANSPORT_IRQ 5             /* of the first one, ACPI off */

#define I8042_COMMAND_PORT 0x64

static int64_t nitro_enclave_clock_ns(void *opaque)
{
    return get_clock();
}

static int64_t nitro_enclave_clock_ticks(void *opaque)
{
    return cpu_get_host_ticks();
}

/*
 * What lets Linux trust its TSC, which under TCG is the host's. By itself it
 * measures it against the PIT, or against nothing with ACPI, where microvm is
 * "hardware-reduced": on a busy host that fails, and its clock then loses
 * seconds or, with no clock at all, it spins for ever. Later its watchdog
 * compares the TSC with timer interrupts that come late, and gives it up.
 * And it panics when the PIT's interrupts, which it counts for some of its own
 * milliseconds to see whether the IO-APIC works, have not come by then.
 * KVM's guests have a clock of KVM's, and do not look.
 */
static char *nitro_enclave_clocks(void)
{
    const NitroTscClocks clocks = {
        .ns = nitro_enclave_clock_ns,
        .ticks = nitro_enclave_clock_ticks,
    };
    unsigned int khz;

    if (!tcg_enabled() || icount_enabled()) {
        return g_strdup("");
    }
    khz = nitro_tsc_khz(&clocks);
    if (!khz) {
        return g_strdup(" no_timer_check");
    }
    return g_strdup_printf(" no_timer_check tsc_early_khz=%u tsc=nowatchdog",
                           khz);
}

bool nitro_enclave_check_board(NitroEnclaveMachineState *nems, Error **errp)
{
    if (x86_machine_is_acpi_enabled(X86_MACHINE(nems)) &&
        MICROVM_MACHINE(nems)->ioapic2 != ON_OFF_AUTO_OFF) {
        error_setg(errp, "ioapic2=%s is not supported by "
                   "nitro-enclave: interrupts of vsock would be lost",
                   OnOffAuto_str(MICROVM_MACHINE(nems)->ioapic2));
        return false;
    }
    return true;
}

/* Bytes that will be appended to the command line for our two devices. */
static size_t nitro_enclave_cmdline_extra(NitroEnclaveMachineState *nems)
{
    char entry[VIRTIO_CMDLINE_MAXLEN];
    size_t len = 0;
    int i;

    if (x86_machine_is_acpi_enabled(X86_MACHINE(nems)) ||
        !MICROVM_MACHINE(nems)->auto_kernel_cmdline) {
        return 0;
    }
    for (i = 0; i < NITRO_ENCLAVE_TRANSPORTS; i++) {
        len += snprintf(entry, sizeof(entry),
                        " virtio_mmio.device=%d@0x%x:%d", TRANSPORT_SIZE,
                        VIRTIO_MMIO_BASE + i * TRANSPORT_SIZE,
                        TRANSPORT_IRQ + i);
    }
    return len;
}

/*
 * Let microvm load what is in the memfds. It opens and maps them by name, so
 * they can be closed afterwards; the user's own names come back, for
 * whoever asks the machine what it runs.
 */
static void nitro_enclave_load_files(MachineState *machine,
                                     const EifMemfds *files)
{
    NitroEnclaveMachineClass *nemc = NITRO_ENCLAVE_MACHINE_GET_CLASS(machine);
    g_autofree char *kernel = g_strdup_printf("/proc/self/fd/%d",
                                              files->kernel);
    g_autofree char *initramfs = g_strdup_printf("/proc/self/fd/%d",
                                                 files->initramfs);
    char *user_kernel = machine->kernel_filename;
    char *user_initrd = machine->initrd_filename;

    machine->kernel_filename = kernel;
    machine->initrd_filename = files->initramfs >= 0 ? initramfs : NULL;

    nemc->parent_init(machine);

    machine->kernel_filename = user_kernel;
    machine->initrd_filename = user_initrd;
}

/*
 * QEMU starts the CMOS clock from the host's in whole seconds, so that it is
 * behind by the rest of one. Linux reads it once, in whole seconds too, and
 * would be behind by up to two. It gets the rest, and half a second more: what
 * Linux reads is then right on average.
 */
static void nitro_enclave_set_cmos_clock(void)
{
    Object *obj = object_resolve_path_type("", TYPE_MC146818_RTC, NULL);
    NitroRtcState *rtc = (NitroRtcState *)obj;
    int64_t behind;

    if (!rtc) {
        return;                 /* there is none under KVM, nor with rtc=off */
    }
    behind = rtc->last_update - rtc->base_rtc * NANOSECONDS_PER_SECOND;
    /* Else -rtc asks for another time than the host's. */
    if (behind >= 0 && behind < 2 * NANOSECONDS_PER_SECOND) {
        rtc->offset = behind + NANOSECONDS_PER_SECOND / 2;
    }
}

/* The bus of transport @n, that is of the n-th 512 bytes of microvm's area. */
static BusState *nitro_enclave_transport(int n)
{
    BusState *sysbus = sysbus_get_default();
    BusChild *kid;

    QTAILQ_FOREACH(kid, &sysbus->children, sibling) {
        Object *obj = OBJECT(kid->child);

        if (object_dynamic_cast(obj, TYPE_VIRTIO_MMIO) &&
            SYS_BUS_DEVICE(obj)->mmio[0].addr ==
            VIRTIO_MMIO_BASE + n * TRANSPORT_SIZE) {
            return BUS(&VIRTIO_MMIO(obj)->bus);
        }
    }
    g_assert_not_reached();     /* microvm makes eight of them, or more */
}

/*
 * The keyboard controller's command port, with its reset and nothing else.
 *
 * AWS's kernels are started with reboot=k: they wait until the controller can
 * take a command (bit 1 of the status is clear), then send 0xfe. QEMU's own
 * i8042 would do, but brings a keyboard and a mouse that no enclave has, and
 * costs the guest their probing. The other status bits are set, as on a bus
 * where nobody answers: Linux's keyboard driver takes "data ready" that never
 * goes away for "no controller" and leaves.
 */
static uint64_t nitro_enclave_reset_port_read(void *opaque, hwaddr addr,
                                              unsigned int size)
{
    return 0xfd;
}

static void nitro_enclave_reset_port_write(void *opaque, hwaddr addr,
                                           uint64_t value, unsigned int size)
{
    trace_nitro_enclave_reset_port(value);
    /* 0xf0..0xff pulse the output lines whose bit is 0; line 0 is reset. */
    if ((value & 0xf1) == 0xf0) {
        qemu_system_reset_request(SHUTDOWN_CAUSE_GUEST_RESET);
    }
}

static const MemoryRegionOps nitro_enclave_reset_port_ops = {
    .read = nitro_enclave_reset_port_read,
    .write = nitro_enclave_reset_port_write,
    .impl.max_access_size = 1,
    .endianness = DEVICE_LITTLE_ENDIAN,
};

static bool nitro_enclave_create_devices(NitroEnclaveMachineState *nems,
                                         Chardev *chr,
                                         const EifMeasurements *pcr,
                                         Error **errp)
{
    BusState *vsock = nitro_enclave_transport(NITRO_ENCLAVE_TRANSPORT_VSOCK);
    BusState *nsm = nitro_enclave_transport(NITRO_ENCLAVE_TRANSPORT_NSM);

    if (!nitro_enclave_create_vsock(chr, vsock, errp) ||
        !nitro_enclave_create_nsm(nems, nsm, pcr, errp)) {
        return false;
    }
    memory_region_init_io(&nems->reset_port, OBJECT(nems),
                          &nitro_enclave_reset_port_ops, NULL,
                          "nitro-enclave.reset", 1);
    memory_region_add_subregion(get_system_io(), I8042_COMMAND_PORT,
                                &nems->reset_port);
    return true;
}

/*
 * The image, and the parent's part of the machine. What the machine tells of
 * its command line is the image's and all that is added, but for the devices.
 */
static bool nitro_enclave_load(NitroEnclaveMachineState *nems,
                               EifOptions *options, const char *append,
                               EifImage *image, Error **errp)
{
    MachineState *machine = MACHINE(nems);
    bool direct = !x86_machine_is_acpi_enabled(X86_MACHINE(nems));
    NitroEnclaveBoot *boot = NULL;
    EifMemfds files = { -1, -1 };

    if (direct) {
        boot = nitro_enclave_boot_new(nems, options->lowmem);
    }
    if (!nitro_enclave_load_eif(nems, options, boot ? &boot->memory : NULL,
                                &files, image, errp)) {
        nitro_enclave_boot_free(boot);
        return false;
    }
    g_free(machine->kernel_cmdline);
    machine->kernel_cmdline = g_strconcat(image->cmdline, append, NULL);
    if (direct) {
        return nitro_enclave_boot_init(boot, errp);
    }
    nitro_enclave_load_files(machine, &files);
    eif_memfds_close(&files);
    return true;
}

static bool nitro_enclave_build(MachineState *machine, Error **errp)
{
    NitroEnclaveMachineState *nems = NITRO_ENCLAVE_MACHINE(machine);
    Chardev *chr = nitro_enclave_check_options(nems, errp);
    EifOptions options = {
        .arch = EIF_ARCH_X86_64,
        .lowmem = MIN(machine->ram_size, MICROVM_LOWMEM),
    };
    g_autofree char *clocks = NULL, *append = NULL;
    EifImage image = { 0 };
    bool built;

    if (!chr) {
        return false;
    }
    clocks = nitro_enclave_clocks();
    append = nitro_enclave_append(nems, clocks);
    options.cmdline_extra = strlen(append) + nitro_enclave_cmdline_extra(nems);
    if (!nitro_enclave_check_ram(machine, errp) ||
        !nitro_enclave_load(nems, &options, append, &image, errp)) {
        return false;
    }
    nitro_enclave_set_cmos_clock();
    built = nitro_enclave_create_devices(nems, chr, &image.pcr, errp);
    nitro_enclave_finish(nems);
    eif_image_clear(&image);
    return built;
}

/* QEMU's hook cannot fail, so all that can go wrong is fatal here. */
static void nitro_enclave_init(MachineState *machine)
{
    nitro_enclave_build(machine, &error_fatal);
}

static void nitro_enclave_instance_init(Object *obj)
{
    /* As in an enclave; acpi=on helps kernels that need it to find devices. */
    X86_MACHINE(obj)->acpi = ON_OFF_AUTO_OFF;
    MICROVM_MACHINE(obj)->pcie = ON_OFF_AUTO_OFF;
    /*
     * With ACPI, the transports' lines would begin at line 0 of a second
     * IOAPIC, which QEMU's takes for the PC's timer: vsock would be deaf.
     */
    MICROVM_MACHINE(obj)->ioapic2 = ON_OFF_AUTO_OFF;
}

static void nitro_enclave_class_init(ObjectClass *oc, NitroClassData *data)
{
    MachineClass *mc = MACHINE_CLASS(oc);
    NitroEnclaveMachineClass *nemc = NITRO_ENCLAVE_MACHINE_CLASS(oc);

    nemc->parent_init = mc->init;
    mc->init = nitro_enclave_init;
    mc->family = "nitro_enclave_i386";
    /* microvm's qemu64 cannot run programs built for x86-64-v2. */
    mc->default_cpu_type = X86_CPU_TYPE_NAME("max");
    nitro_enclave_class_init_common(mc);
}

static const TypeInfo nitro_enclave_types[] = {
    {
        .name = TYPE_NITRO_ENCLAVE_MACHINE,
        .parent = TYPE_MICROVM_MACHINE,
        .instance_size = sizeof(NitroEnclaveMachineState),
        .instance_init = nitro_enclave_instance_init,
        .instance_finalize = nitro_enclave_free_options,
        .class_size = sizeof(NitroEnclaveMachineClass),
        .class_init = nitro_enclave_class_init,
    },
};

DEFINE_TYPES(nitro_enclave_types)
