/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nitro Secure Module as a virtio device: what its files share
 *
 * Prototypes are grouped under the file that implements them. Boards use
 * include/nitro/virtio-nsm.h.
 */
#ifndef VIRTIO_NSM_INTERNAL_H
#define VIRTIO_NSM_INTERNAL_H

#include "nitro/nsm-attest.h"
#include "nitro/virtio-nsm.h"

/* virtio-nsm-ring.c: the guest's queue */

#define NSM_QUEUE 0

/*
 * A split virtqueue (virtio 1.2, section 2.7), mapped for the time of one
 * kick. Since every chain is completed in the order in which it was made
 * available, one index says both what comes next and what was used.
 */
typedef struct NsmRing {
    MemoryRegionCache desc;
    MemoryRegionCache avail;
    MemoryRegionCache used;
    unsigned int num;
    uint16_t next;
} NsmRing;

/* Tells whoever debugs a driver. */
void nsm_queue_refuse(unsigned int head, const char *why);
bool nsm_queue_size_valid(int num);
bool nsm_ring_map(NsmRing *ring, VirtIODevice *vdev);
void nsm_ring_unmap(NsmRing *ring);
uint16_t nsm_ring_avail_idx(NsmRing *ring);
void nsm_ring_read(NsmRing *ring, uint16_t pos, NitroNsmChain *chain);
void nsm_ring_complete(NsmRing *ring, uint16_t head, uint32_t len);
void nsm_ring_publish(NsmRing *ring);
bool nsm_chain_copy(VirtIODevice *vdev, const NitroNsmChain *chain,
                    uint8_t *buf, size_t len, bool to_guest);

/* virtio-nsm-fault.c: what a test wants to go wrong, as properties */

void nsm_faults_add_properties(ObjectClass *oc);
void nsm_faults_init(NitroNsm *s);
/* The module's own clock, for its signer. */
NsmClockFn nsm_device_clock;
/* Words for what @fate and the other faults did to an @op: "error,clock" */
void nsm_faults_name(const NitroNsm *s, NsmOp op, const NsmFate *fate,
                     GString *out);

/* virtio-nsm-log.c: every request and its answer, to a chardev */

void nsm_log_add_property(ObjectClass *oc);
void nsm_log_close(NsmLog *log);

static inline bool nsm_log_is_open(const NsmLog *log)
{
    return log->chardev != NULL;
}

/* A request that was served, for the log. */
typedef struct NsmServed {
    int64_t arrived_us;         /* since 1970 */
    int64_t took_us;
    const char *faults;         /* words; "" for none */
    const uint8_t *request;
    size_t request_len;         /* beyond NSM_REQUEST_MAX: was not read */
    const uint8_t *answer;
    size_t answer_len;
} NsmServed;

void nsm_log_write(NsmLog *log, const NsmServed *served);

#endif /* VIRTIO_NSM_INTERNAL_H */
