/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board: what all architectures share
 *
 * Options, state, guest memory, the image and the two devices of an enclave.
 * A board proper, in hw/i386 or hw/arm, has the machine around them: what the
 * guest finds where. It derives its machine type from NitroEnclaveParentState
 * and calls the functions below, in the order in which they stand here.
 *
 * Compiled once for each target, as the parent of the machine type differs.
 */
#ifndef NITRO_ENCLAVE_H
#define NITRO_ENCLAVE_H

#include "hw/boards.h"
#include "qom/object.h"
#include "nitro/eif.h"
#include "nitro/virtio-nsm.h"

#ifdef TARGET_I386
#include "hw/i386/microvm.h"
typedef MicrovmMachineState NitroEnclaveParentState;
typedef MicrovmMachineClass NitroEnclaveParentClass;
#else
typedef MachineState NitroEnclaveParentState;
typedef MachineClass NitroEnclaveParentClass;
#endif

/* Transports in the order of their addresses and IRQs. */
enum {
    NITRO_ENCLAVE_TRANSPORT_VSOCK,
    NITRO_ENCLAVE_TRANSPORT_NSM,
    NITRO_ENCLAVE_TRANSPORTS
};

/* Machine type options, beside the parent's. */
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
    NitroEnclaveParentClass parent;

    void (*parent_init)(MachineState *machine); /* of a parent that has one */
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
    NitroEnclaveParentState parent;

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
    MemoryRegion reset_port;    /* x86's keyboard controller */
    NitroEnclaveTimes times;
};

#define TYPE_NITRO_ENCLAVE_MACHINE MACHINE_TYPE_NAME("nitro-enclave")
OBJECT_DECLARE_TYPE(NitroEnclaveMachineState, NitroEnclaveMachineClass,
                    NITRO_ENCLAVE_MACHINE)

/* ---- nitro_enclave_common.c: of the machine type ---- */

/*
 * What a board's class_init says besides what is its own: RAM, compat
 * properties, options.  Its instance_finalize is nitro_enclave_free_options().
 */
void nitro_enclave_class_init_common(MachineClass *mc);

/* ---- nitro_enclave_options.c ---- */

/* The options as properties of the machine's class, and of one machine. */
void nitro_enclave_add_options(ObjectClass *oc);
void nitro_enclave_free_options(Object *obj);

/* Whether an option lets the guest run what was not measured. */
bool nitro_enclave_unmeasured(NitroEnclaveMachineState *nems);

/* The chardev of the vsock backend; NULL, with @errp: an option is wrong. */
Chardev *nitro_enclave_check_options(NitroEnclaveMachineState *nems,
                                     Error **errp);

/* The same of options that only one board has: the board's own function. */
bool nitro_enclave_check_board(NitroEnclaveMachineState *nems, Error **errp);

/* ---- nitro_enclave_common.c: of one machine, before its parts ---- */

/* Is there guest memory that the vsock backend can share? */
bool nitro_enclave_check_ram(MachineState *machine, Error **errp);

/*
 * What the user's -append adds to the image's command line, and what the board
 * does (@board, which begins with a space if it is not empty).  None of it is
 * measured.
 */
char *nitro_enclave_append(NitroEnclaveMachineState *nems, const char *board);

/*
 * False unless the image is valid and, as far as is asked for, its signature
 * is.  Nothing else of the machine has to exist yet: no vCPU, no NSM.
 * @options: what the board knows, arch, lowmem and cmdline_extra; the rest is
 * filled in here.  @memory: where kernel and initramfs go; NULL: to @files.
 */
bool nitro_enclave_load_eif(NitroEnclaveMachineState *nems,
                            EifOptions *options, const EifMemory *memory,
                            EifMemfds *files, EifImage *image, Error **errp);

/* ---- nitro_enclave_devices.c: after the board's transports ---- */

bool nitro_enclave_create_vsock(Chardev *chr, BusState *bus, Error **errp);
bool nitro_enclave_create_nsm(NitroEnclaveMachineState *nems, BusState *bus,
                              const EifMeasurements *pcr, Error **errp);

/* ---- nitro_enclave_common.c: when all parts are there ---- */

void nitro_enclave_finish(NitroEnclaveMachineState *nems);

/* ---- nitro_enclave_times.c ---- */

/* The property boot-times, and what notices that the vCPUs run. */
void nitro_enclave_add_times(ObjectClass *oc);
void nitro_enclave_watch_times(NitroEnclaveMachineState *nems);

#endif /* NITRO_ENCLAVE_H */
