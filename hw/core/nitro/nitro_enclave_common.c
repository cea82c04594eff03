/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board: guest memory, the image, and the machine's class
 *
 * The same for every architecture; where kernel and initramfs go in memory,
 * and what else the guest finds there, is the board's.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "qom/object_interfaces.h"
#include "hw/boards.h"
#include "hw/sysbus.h"
#include "hw/virtio/virtio-mmio.h"
#include "nitro/eif.h"
#include "nitro/qemu-compat.h"
#include "nitro_enclave.h"
#include "../../virtio/nsm/trace.h"

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

bool nitro_enclave_check_ram(MachineState *machine, Error **errp)
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

char *nitro_enclave_append(NitroEnclaveMachineState *nems, const char *board)
{
    const char *user = MACHINE(nems)->kernel_cmdline;

    if (!user || !*user) {
        return g_strdup(board);
    }
    return g_strconcat(board, " ", user, NULL);
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
                                  image->times.crc, image->times.reader_wait,
                                  image->times.pcr0, image->times.pcr2,
                                  image->times.signature);
}

bool nitro_enclave_load_eif(NitroEnclaveMachineState *nems,
                            EifOptions *options, const EifMemory *memory,
                            EifMemfds *files, EifImage *image, Error **errp)
{
    MachineState *machine = MACHINE(nems);
    const char *const names[] = {
        machine->kernel_filename, machine->initrd_filename, nems->overlay,
    };
    int fds[ARRAY_SIZE(names)] = { -1, -1, -1 };
    EifError err;
    bool loaded = false;
    int i;

    nems->times.begun = g_get_real_time();
    options->signature = nems->eif_signature;
    options->now = nems->times.begun / G_USEC_PER_SEC;
    for (i = 0; i < ARRAY_SIZE(names); i++) {
        if (names[i]) {
            fds[i] = qemu_open(names[i], O_RDONLY, errp);
            if (fds[i] < 0) {
                goto out;
            }
        }
    }
    loaded = memory
        ? eif_load(fds[0], fds[1], fds[2], options, memory, image, &err)
        : eif_load_memfds(fds[0], fds[1], fds[2], options, files, image, &err);
    if (loaded) {
        nems->times.loaded = g_get_real_time();
        nems->times.eif = image->times;
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

void nitro_enclave_finish(NitroEnclaveMachineState *nems)
{
    /*
     * An enclave that resets is over, as on AWS. Not the business of the
     * machine's reset hook, which also serves the first reset of all.
     */
    reboot_action = REBOOT_ACTION_SHUTDOWN;
    nems->times.ready = g_get_real_time();
    nitro_enclave_watch_times(nems);
}

static GlobalProperty nitro_enclave_compat[] = {
    /* virtio-mmio of the current kind, as enclaves have, not QEMU's default */
    { TYPE_VIRTIO_MMIO, "force-legacy", "off" },
};

void nitro_enclave_class_init_common(MachineClass *mc)
{
    ObjectClass *oc = OBJECT_CLASS(mc);

    mc->desc = "AWS Nitro Enclave";
    mc->default_ram_size = 512 * MiB;
    nitro_machine_class_set_ram(mc, RAM_ID, nitro_enclave_create_ram);
    compat_props_add(mc->compat_props, nitro_enclave_compat,
                     G_N_ELEMENTS(nitro_enclave_compat));
    nitro_enclave_add_options(oc);
    nitro_enclave_add_times(oc);
}
