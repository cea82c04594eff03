/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nitro Secure Module as a virtio device
 *
 * The type, and what a board does with it. The protocol's logic is the NSM
 * core's (nitro/nsm.h); this device only carries bytes between the guest's
 * queue and the core.
 *
 * virtio device 33 ("Nitro Secure Module" in the list of device ids of the
 * virtio specification, section 5), no feature bits of its own, no
 * configuration space, one queue. The guest driver is Linux drivers/misc/nsm.c.
 */
#ifndef NITRO_VIRTIO_NSM_H
#define NITRO_VIRTIO_NSM_H

#include "nitro/qemu-compat.h"
#include "hw/virtio/virtio.h"
#include "qapi/util.h"
#include "qom/object.h"
#include "nitro/nsm.h"
#include "nitro/nsm-attest.h"
#include "nitro/nsm-fault.h"

/* Not upstream's name: a QEMU that has upstream's device may load ours too. */
#define TYPE_NITRO_NSM "nitro-nsm-device"
OBJECT_DECLARE_SIMPLE_TYPE(NitroNsm, NITRO_NSM)

/* One descriptor chain, read from guest memory once. */
typedef struct NitroNsmChain {
    uint16_t head;
    const char *fault;          /* why it cannot be used; NULL: it can */
    uint64_t out_len;           /* bytes for the device to read */
    uint64_t in_len;            /* bytes for the device to write */
    unsigned int out_num;       /* descriptors of each kind, */
    unsigned int in_num;        /* readable ones first in seg[] */
    struct {
        hwaddr addr;
        uint32_t len;
    } seg[VIRTQUEUE_MAX_SIZE];
} NitroNsmChain;

/* Where each request and its answer are written, if that is wanted. */
typedef struct NsmLog {
    NitroCharFrontend chr;
    char *chardev;              /* its id; NULL: nobody wants them */
    GString *pending;           /* what the chardev has not taken yet */
    guint watch;                /* of a chardev that takes no more now; or 0 */
    uint64_t lines;             /* begun in pending */
    uint64_t dropped;           /* since the last line that was not */
    uint64_t dropped_ever;
} NsmLog;

struct NitroNsm {
    VirtIODevice parent_obj;

    VirtQueue *vq;
    /* Properties */
    char *module_id;            /* NULL: one is made */
    char *cert_chain;           /* PEM files; NULL, both: an ephemeral chain */
    char *cert_key;
    NsmDocumentForm document_form;
    bool unmeasured;            /* and its documents shall say so */

    NsmState nsm;
    NsmSigner *signer;

    /* What a test wants to go wrong; it does not migrate. */
    NsmFaults faults;
    NsmClock clock;
    bool expired;
    NsmFate fate;               /* of the request that is next, */
    bool is_decided;            /* once that is */
    int64_t arrived_us;         /* and when it came */
    QEMUTimer *late;            /* runs while an answer is late */
    bool is_dead;

    NsmLog log;

    NitroNsmChain chain[2];     /* work space: too large for a stack */
    uint8_t request[NSM_REQUEST_MAX];
    uint8_t response[NSM_RESPONSE_MAX];
};

/* The device's property document-form, and the board's */
extern const QEnumLookup nitro_document_form_lookup;

/*
 * nitro_nsm_new_id: a module id of AWS's shape, PARENT-enc<16 hex digits>.
 * The digits are the time in ms and 16 random bits. To be freed with g_free.
 */
char *nitro_nsm_new_id(const char *parent_id);

/*
 * nitro_nsm_boot: give a realized NSM, before the guest runs, the values that
 * were measured at boot. Without it PCR0..15 are zero. False: hashing failed.
 */
bool nitro_nsm_boot(NitroNsm *s, const NsmBoot *boot);

#endif /* NITRO_VIRTIO_NSM_H */
