/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board: options and state
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
 */
#ifndef NITRO_ENCLAVE_H
#define NITRO_ENCLAVE_H

#include "hw/i386/microvm.h"
#include "qom/object.h"
#include "nitro/eif.h"
#include "nitro/virtio-nsm.h"

/* Transports in the order of their addresses and IRQs. */
enum {
    NITRO_ENCLAVE_TRANSPORT_VSOCK,
    NITRO_ENCLAVE_TRANSPORT_NSM,
    NITRO_ENCLAVE_TRANSPORTS
};

/* Machine type options, beside microvm's. */
#define NITRO_ENCLAVE_VSOCK         "vsock"
#define NITRO_ENCLAVE_ID            "id"
#define NITRO_ENCLAVE_PARENT_ROLE   "parent-role"
#define NITRO_ENCLAVE_PARENT_ID     "parent-id"
#define NITRO_ENCLAVE_CERT_CHAIN    "cert-chain"
#define NITRO_ENCLAVE_CERT_KEY      "cert-key"
#define NITRO_ENCLAVE_DEBUG_MODE    "debug-mode"
#define NITRO_ENCLAVE_EIF_SIGNATURE "eif-signature"
#define NITRO_ENCLAVE_DOCUMENT_FORM "document-form"
#define NITRO_ENCLAVE_OVERLAY       "overlay"
#define NITRO_ENCLAVE_KEEP_PCRS     "overlay-keep-pcrs"
/* Read-only: what runs is not, or not only, what the image's PCRs say. */
#define NITRO_ENCLAVE_UNMEASURED    "unmeasured"

struct NitroEnclaveMachineClass {
    MicrovmMachineClass parent;

    void (*parent_init)(MachineState *machine);
};

/* When the machine came so far, in microseconds since 1970; 0: not yet. */
typedef struct NitroEnclaveTimes {
    int64_t begun;              /* the image is about to be opened */
    int64_t loaded;             /* it was read, measured and judged */
    int64_t ready;              /* the devices are there */
    int64_t runs;               /* the vCPUs run for the first time */
    EifTimes eif;               /* where the time of loading went */
} NitroEnclaveTimes;

struct NitroEnclaveMachineState {
    MicrovmMachineState parent;

    /* Options */
    char *vsock;
    char *id;
    char *parent_role;
    char *parent_id;
    char *cert_chain;
    char *cert_key;
    bool debug_mode;
    EifSignaturePolicy eif_signature;
    NsmDocumentForm document_form;
    char *overlay;
    bool keep_pcrs;

    /* State */
    bool other_init;            /* the user's -append names one */
    MemoryRegion reset_port;
    NitroEnclaveTimes times;
};

#define TYPE_NITRO_ENCLAVE_MACHINE MACHINE_TYPE_NAME("nitro-enclave")
OBJECT_DECLARE_TYPE(NitroEnclaveMachineState, NitroEnclaveMachineClass,
                    NITRO_ENCLAVE_MACHINE)

/* ---- nitro_enclave_options.c ---- */

/* The options as properties of the machine's class, and of one machine. */
void nitro_enclave_add_options(ObjectClass *oc);
void nitro_enclave_free_options(Object *obj);

/* Whether an option lets the guest run what was not measured. */
bool nitro_enclave_unmeasured(NitroEnclaveMachineState *nems);

/* The chardev of the vsock backend; NULL, with @errp: an option is wrong. */
Chardev *nitro_enclave_check_options(NitroEnclaveMachineState *nems,
                                     Error **errp);

/* ---- nitro_enclave_times.c ---- */

/* The property boot-times, and what notices that the vCPUs run. */
void nitro_enclave_add_times(ObjectClass *oc);
void nitro_enclave_watch_times(NitroEnclaveMachineState *nems);

#endif /* NITRO_ENCLAVE_H */
