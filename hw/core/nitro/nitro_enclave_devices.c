/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board: its two devices, on transports that the board made
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "chardev/char.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "hw/virtio/vhost-user-vsock.h"
#include "nitro/eif.h"
#include "nitro/nsm.h"
#include "nitro/qemu-compat.h"
#include "nitro/virtio-nsm.h"
#include "nitro_enclave.h"
#include "../../virtio/nsm/trace.h"

#define PARENT_ID_UNKNOWN "i-0000000000000000"

bool nitro_enclave_create_vsock(Chardev *chr, BusState *bus, Error **errp)
{
    ERRP_GUARD();
    DeviceState *dev = qdev_new(TYPE_VHOST_USER_VSOCK);

    qdev_prop_set_chr(dev, "chardev", chr);
    if (!qdev_realize_and_unref(dev, bus, errp)) {
        error_prepend(errp, "vsock: the backend behind chardev '%s' does not "
                      "serve: ", chr->label);
        return false;
    }
    return true;
}

bool nitro_enclave_create_nsm(NitroEnclaveMachineState *nems, BusState *bus,
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
    if (!qdev_realize_and_unref(dev, bus, errp)) {
        return false;
    }
    if (!nitro_nsm_boot(NITRO_NSM(dev), &boot)) {
        error_setg(errp, "gnutls cannot compute SHA-384");
        return false;
    }
    return true;
}
