/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board
 *
 * A microvm that boots an Enclave Image File (EIF) and has exactly the two
 * devices of an enclave: vsock, served by a vhost-user process, and the Nitro
 * Secure Module. The board works around microvm's own initialisation: before
 * it, the EIF is checked, measured and taken apart, so that microvm finds an
 * ordinary kernel, initramfs and command line; after it, the devices are put
 * on the first two virtio-mmio transports. Options are checked before all of
 * that, in nitro_enclave_options.c.
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
#include "qom/object_interfaces.h"
#include "chardev/char.h"
#include "hw/boards.h"
#include "hw/i386/microvm.h"
#include "hw/i386/x86.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "hw/sysbus.h"
#include "hw/virtio/vhost-user-vsock.h"
#include "hw/virtio/virtio-mmio.h"
#include "target/i386/cpu.h"
#include "nitro/eif.h"
#include "nitro/nsm.h"
#include "nitro/qemu-compat.h"
#include "nitro/tsc.h"
#include "nitro/virtio-nsm.h"
#include "nitro_enclave.h"
#include "../virtio/nsm/trace.h"

#define PARENT_ID_UNKNOWN "i-0000000000000000"

#define MICROVM_LOWMEM (3 * GiB)    /* microvm's RAM below 4 GiB, at most */
#define TRANSPORT_SIZE 512
#define TRANSPORT_IRQ 5             /* of the first one, ACPI off */

#define I8042_COMMAND_PORT 0x64

#define RAM_ID "nitro-enclave.ram"

/*
 * Guest RAM has to be shared with the vsock backend, so it is a memfd unless
 * the user brings a backend. Called in place of QEMU's default.
 */
static bool nitro_enclave_create_ram(MachineState *machine, const char *path,
                                     Error **errp)
{
    g_autoptr(Object) obj = NULL;

    if (path) {
        error_setg(errp, "-mem-path is not supported by nitro-enclave: use "
                   "-object memory-backend-file,id=ram,size=%" PRIu64
                   ",mem-path=%s,share=on -machine memory-backend=ram",
                   (uint64_t)machine->ram_size, path);
        return false;
    }
    obj = object_new(TYPE_MEMORY_BACKEND_MEMFD);
    if (!object_property_set_int(obj, "size", machine->ram_size, errp) ||
        !object_property_set_bool(obj, "share", true, errp)) {
        return false;
    }
    object_property_add_child(object_get_objects_root(), RAM_ID, obj);
    return object_property_set_bool(obj, "x-use-canonical-path-for-ramblock-id",
                                    false, errp) &&
           user_creatable_complete(USER_CREATABLE(obj), errp) &&
           object_property_set_link(OBJECT(machine), "memory-backend", obj,
                                    errp);
}

static bool nitro_enclave_check_ram(MachineState *machine, Error **errp)
{
    const char *hint = "the vsock backend reads guest memory, so give it a "
                       "shared one, like -object memory-backend-memfd,"
                       "id=ram,size=512M,share=on";
    int i;

    for (i = 0; machine->numa_state && i < machine->numa_state->num_nodes;
         i++) {
        if (machine->numa_state->nodes[i].node_memdev) {
            error_setg(errp, "-numa memdev is not supported by "
                       "nitro-enclave: use -machine memory-backend=%s",
                       object_get_canonical_path_component(
                           OBJECT(machine->numa_state->nodes[i].node_memdev)));
            return false;
        }
    }
    if (!nitro_machine_need_ram(machine, nitro_enclave_create_ram, errp)) {
        return false;
    }
    if (!machine->ram) {
        error_setg(errp, "nitro-enclave needs guest memory: use -m");
        return false;
    }
    if (!qemu_ram_is_shared(machine->ram->ram_block)) {
        error_setg(errp, "memory-backend '%s' is not shared: %s",
                   object_get_canonical_path_component(
                       OBJECT(machine->memdev)), hint);
        return false;
    }
    if (memory_region_get_fd(machine->ram) < 0) {
        error_setg(errp, "memory-backend '%s' has no file: %s",
                   object_get_canonical_path_component(
                       OBJECT(machine->memdev)), hint);
        return false;
    }
    return true;
}

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
static void nitro_enclave_append_clocks(GString *append)
{
    const NitroTscClocks clocks = {
        .ns = nitro_enclave_clock_ns,
        .ticks = nitro_enclave_clock_ticks,
    };
    unsigned int khz;

    if (!tcg_enabled() || icount_enabled()) {
        return;
    }
    g_string_append(append, " no_timer_check");
    khz = nitro_tsc_khz(&clocks);
    if (khz) {
        g_string_append_printf(append, " tsc_early_khz=%u tsc=nowatchdog",
                               khz);
    }
}

/*
 * What the user's -append and the board add to the image's own command line.
 * None of it is measured.
 */
static char *nitro_enclave_append(NitroEnclaveMachineState *nems)
{
    const char *user = MACHINE(nems)->kernel_cmdline;
    GString *append = g_string_new(NULL);

    nitro_enclave_append_clocks(append);
    if (user && *user) {
        g_string_append_printf(append, " %s", user);
    }
    return g_string_free(append, false);
}

/* Bytes that microvm will append to the command line for our two devices. */
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

/* What a loaded image has told that is no error. */
static void nitro_enclave_tell(NitroEnclaveMachineState *nems,
                               const EifImage *image)
{
    const MachineState *machine = MACHINE(nems);

    if (image->layout.gap_bytes) {
        warn_report("%s: %" PRIu64 " bytes of it lie between its sections:"
                    " they are in no PCR", machine->kernel_filename,
                    image->layout.gap_bytes);
    }
    if (image->signature_warning.rule != EIF_OK) {
        warn_report("%s: %s (%s): ignored, as eif-signature asks",
                    machine->kernel_filename, image->signature_warning.text,
                    eif_rule_name(image->signature_warning.rule));
    }
    if (machine->initrd_filename && image->pcr.has_pcr8) {
        warn_report("%s: the signature of %s does not cover it: PCR0 and PCR2 "
                    "change with it, while PCR8 remains that of the signer",
                    machine->initrd_filename, machine->kernel_filename);
    }
    if (nitro_enclave_unmeasured(nems)) {
        warn_report("this enclave is unmeasured, for %s: %s",
                    nems->overlay ?: "-append names another init",
                    nems->keep_pcrs ? "its attestation documents say so in "
                    "the name of their issuer" : "PCR0, 1, 2 and 8 are zero");
    }
    trace_nitro_enclave_loaded(image->kernel_size, image->initramfs_size,
                               image->cmdline);
    trace_nitro_enclave_load_time(image->times.total, image->times.read,
                                  image->times.crc, image->times.store,
                                  image->times.reader_wait, image->times.pcr0,
                                  image->times.pcr2, image->times.signature);
}

/*
 * False unless the image is valid and, as far as is asked for, its signature
 * is. Nothing else of the machine exists yet: no vCPU, no NSM.
 */
static bool nitro_enclave_load_eif(NitroEnclaveMachineState *nems,
                                   const char *append, EifImage *image,
                                   Error **errp)
{
    MachineState *machine = MACHINE(nems);
    const EifOptions options = {
        .arch = EIF_ARCH_X86_64,
        .signature = nems->eif_signature,
        .now = g_get_real_time() / G_USEC_PER_SEC,
        .cmdline_extra = strlen(append) + nitro_enclave_cmdline_extra(nems),
        .lowmem = MIN(machine->ram_size, MICROVM_LOWMEM),
    };
    const char *const names[] = {
        machine->kernel_filename, machine->initrd_filename, nems->overlay,
    };
    int fds[ARRAY_SIZE(names)] = { -1, -1, -1 };
    EifError err;
    bool loaded = false;
    int i;

    for (i = 0; i < ARRAY_SIZE(names); i++) {
        if (names[i]) {
            fds[i] = qemu_open(names[i], O_RDONLY, errp);
            if (fds[i] < 0) {
                goto out;
            }
        }
    }
    loaded = eif_load(fds[0], fds[1], fds[2], &options, image, &err);
    if (loaded) {
        nitro_enclave_tell(nems, image);
    } else {
        error_setg(errp, "%s: %s (%s)", err.rule >= EIF_ERR_OVERLAY_NOT_CPIO ?
                   nems->overlay : machine->kernel_filename, err.text,
                   eif_rule_name(err.rule));
    }
out:
    for (i = 0; i < ARRAY_SIZE(fds); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    return loaded;
}

/*
 * Let microvm load what is in the memfds. It opens and maps them by name, so
 * the image can be cleared afterwards; the user's own names come back, for
 * whoever asks the machine what it runs. The command line stays, as microvm
 * builds the final one on it.
 */
static void nitro_enclave_parent_init(MachineState *machine,
                                      const EifImage *image,
                                      const char *append)
{
    NitroEnclaveMachineClass *nemc = NITRO_ENCLAVE_MACHINE_GET_CLASS(machine);
    g_autofree char *kernel = g_strdup_printf("/proc/self/fd/%d",
                                              image->kernel_fd);
    g_autofree char *initramfs = g_strdup_printf("/proc/self/fd/%d",
                                                 image->initramfs_fd);
    char *user_kernel = machine->kernel_filename;
    char *user_initrd = machine->initrd_filename;

    machine->kernel_filename = kernel;
    machine->initrd_filename = image->initramfs_fd >= 0 ? initramfs : NULL;
    g_free(machine->kernel_cmdline);
    machine->kernel_cmdline = g_strconcat(image->cmdline, append, NULL);

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

static bool nitro_enclave_create_vsock(Chardev *chr, Error **errp)
{
    ERRP_GUARD();
    DeviceState *dev = qdev_new(TYPE_VHOST_USER_VSOCK);

    qdev_prop_set_chr(dev, "chardev", chr);
    if (!qdev_realize_and_unref(
            dev, nitro_enclave_transport(NITRO_ENCLAVE_TRANSPORT_VSOCK),
            errp)) {
        error_prepend(errp, "vsock: the backend behind chardev '%s' does not "
                      "serve: ", chr->label);
        return false;
    }
    return true;
}

static bool nitro_enclave_create_nsm(NitroEnclaveMachineState *nems,
                                     const EifMeasurements *pcr, Error **errp)
{
    DeviceState *dev = qdev_new(TYPE_NITRO_NSM);
    const NsmBoot boot = {
        .pcr0 = pcr->pcr0,
        .pcr1 = pcr->pcr1,
        .pcr2 = pcr->pcr2,
        .pcr8 = pcr->has_pcr8 ? pcr->pcr8 : NULL,
        .parent_role = nems->parent_role,
        .parent_id = nems->parent_id,
        .debug = nems->debug_mode ||
                 (nitro_enclave_unmeasured(nems) && !nems->keep_pcrs),
    };

    if (!nems->id) {
        nems->id = nitro_nsm_new_id(nems->parent_id ?: PARENT_ID_UNKNOWN);
    }
    trace_nitro_enclave_identity(nems->id, nems->parent_id ?: "-",
                                 nems->parent_role ?: "-");
    qdev_prop_set_string(dev, "module-id", nems->id);
    if (nems->cert_chain) {
        qdev_prop_set_string(dev, "cert-chain", nems->cert_chain);
    }
    if (nems->cert_key) {
        qdev_prop_set_string(dev, "cert-key", nems->cert_key);
    }
    NITRO_NSM(dev)->document_form = nems->document_form;
    NITRO_NSM(dev)->unmeasured = nems->keep_pcrs;
    object_property_add_child(OBJECT(nems), "nsm", OBJECT(dev));
    if (!qdev_realize_and_unref(
            dev, nitro_enclave_transport(NITRO_ENCLAVE_TRANSPORT_NSM), errp)) {
        return false;
    }
    if (!nitro_nsm_boot(NITRO_NSM(dev), &boot)) {
        error_setg(errp, "gnutls cannot compute SHA-384");
        return false;
    }
    return true;
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
    if (!nitro_enclave_create_vsock(chr, errp) ||
        !nitro_enclave_create_nsm(nems, pcr, errp)) {
        return false;
    }
    memory_region_init_io(&nems->reset_port, OBJECT(nems),
                          &nitro_enclave_reset_port_ops, NULL,
                          "nitro-enclave.reset", 1);
    memory_region_add_subregion(get_system_io(), I8042_COMMAND_PORT,
                                &nems->reset_port);
    return true;
}

static bool nitro_enclave_build(MachineState *machine, Error **errp)
{
    NitroEnclaveMachineState *nems = NITRO_ENCLAVE_MACHINE(machine);
    Chardev *chr = nitro_enclave_check_options(nems, errp);
    g_autofree char *append = NULL;
    EifImage image = { 0 };
    bool built;

    if (!chr) {
        return false;
    }
    append = nitro_enclave_append(nems);
    nems->times.begun = g_get_real_time();
    if (!nitro_enclave_check_ram(machine, errp) ||
        !nitro_enclave_load_eif(nems, append, &image, errp)) {
        return false;
    }
    nems->times.loaded = g_get_real_time();
    nems->times.eif = image.times;

    /*
     * An enclave that resets is over, as on AWS. Not the business of the
     * machine's reset hook, which also serves the first reset of all.
     */
    reboot_action = REBOOT_ACTION_SHUTDOWN;

    nitro_enclave_parent_init(machine, &image, append);
    nitro_enclave_set_cmos_clock();
    built = nitro_enclave_create_devices(nems, chr, &image.pcr, errp);
    nems->times.ready = g_get_real_time();
    nitro_enclave_watch_times(nems);
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

static GlobalProperty nitro_enclave_compat[] = {
    /* virtio-mmio of the current kind, as enclaves have, not QEMU's default */
    { TYPE_VIRTIO_MMIO, "force-legacy", "off" },
};

static void nitro_enclave_class_init(ObjectClass *oc, NitroClassData *data)
{
    MachineClass *mc = MACHINE_CLASS(oc);
    NitroEnclaveMachineClass *nemc = NITRO_ENCLAVE_MACHINE_CLASS(oc);

    nemc->parent_init = mc->init;
    mc->init = nitro_enclave_init;
    mc->family = "nitro_enclave_i386";
    mc->desc = "AWS Nitro Enclave";
    nitro_machine_class_set_ram(mc, RAM_ID, nitro_enclave_create_ram);
    mc->default_ram_size = 512 * MiB;
    /* microvm's qemu64 cannot run programs built for x86-64-v2. */
    mc->default_cpu_type = X86_CPU_TYPE_NAME("max");
    compat_props_add(mc->compat_props, nitro_enclave_compat,
                     G_N_ELEMENTS(nitro_enclave_compat));

    nitro_enclave_add_options(oc);
    nitro_enclave_add_times(oc);
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
