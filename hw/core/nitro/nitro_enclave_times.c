/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board: when it came how far
 *
 * For whoever asks where a boot's time went: the property boot-times of the
 * machine. It is read over QMP, which QEMU serves once the guest could run.
 */

#include "qemu/osdep.h"
#include "nitro/qemu-compat.h"
#include "nitro_enclave.h"

static char *get_boot_times(Object *obj, Error **errp)
{
    const NitroEnclaveTimes *t = &NITRO_ENCLAVE_MACHINE(obj)->times;
    const EifTimes *eif = &t->eif;

    return g_strdup_printf(
        "begun=%" PRId64 ",loaded=%" PRId64 ",ready=%" PRId64 ",runs=%" PRId64
        ",read=%" PRIu64 ",crc=%" PRIu64 ",wait=%" PRIu64
        ",pcr0=%" PRIu64 ",pcr2=%" PRIu64 ",signature=%" PRIu64,
        t->begun, t->loaded, t->ready, t->runs, eif->read, eif->crc,
        eif->reader_wait, eif->pcr0, eif->pcr2, eif->signature);
}

static void vm_changed(void *opaque, bool running, RunState state)
{
    NitroEnclaveMachineState *nems = opaque;

    if (running && !nems->times.runs) {
        nems->times.runs = g_get_real_time();
    }
}

void nitro_enclave_watch_times(NitroEnclaveMachineState *nems)
{
    qemu_add_vm_change_state_handler(vm_changed, nems);
}

void nitro_enclave_add_times(ObjectClass *oc)
{
    object_class_property_add_str(oc, "boot-times", get_boot_times, NULL);
    object_class_property_set_description(oc, "boot-times",
        "When the boot came how far, in us; see docs/machine.md");
}
