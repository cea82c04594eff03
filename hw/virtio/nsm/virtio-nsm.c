/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nitro Secure Module as a virtio device: the guest's queue and QEMU's side
 *
 * What it is: queue, properties, migration and traces. What a request means
 * is the NSM core's business (nitro/nsm.h).
 *
 * A command is two descriptor chains: the request, which the device reads,
 * then the response, which it writes. Both are completed before the one
 * interrupt that follows, the request first with length 0, then the response
 * with the exact length of the answer; the Linux driver insists on that.
 *
 * The ring is walked here and not with virtqueue_pop(), for two reasons. That
 * function marks the device broken, until the guest resets it, on descriptors
 * that any user of the guest can cause with an ioctl (one of length zero) or
 * that a driver's bug can. And it could not be kept from it by looking first:
 * another vCPU may change the ring in between. Here each descriptor is read
 * once, only RAM is ever touched, and every chain comes back to the guest.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/atomic.h"
#include "qemu/error-report.h"
#include "qemu/guest-random.h"
#include "qemu/log.h"
#include "qemu/module.h"
#include "hw/qdev-properties.h"
#include "hw/virtio/virtio.h"
#include "migration/vmstate.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ids.h"
#include "standard-headers/linux/virtio_ring.h"
#include "nitro/qemu-compat.h"
#include "nitro/virtio-nsm.h"
#include "trace.h"

/* Two would do for the driver; more let a guest queue several commands. */
#define NSM_QUEUE_SIZE 64

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

static void nsm_queue_refuse(unsigned int head, const char *why)
{
    trace_nitro_nsm_queue_refused(head, why);
    qemu_log_mask(LOG_GUEST_ERROR, "nitro-nsm: chain %u: %s\n", head, why);
}

/* RAM only: a device's registers are no place for a queue or a buffer. */
static bool nsm_map(MemoryRegionCache *cache, AddressSpace *as, hwaddr addr,
                    hwaddr len, bool is_write)
{
    int64_t got = address_space_cache_init(cache, as, addr, len, is_write);

    if (got == len && cache->ptr) {
        return true;
    }
    address_space_cache_destroy(cache);
    address_space_cache_init_empty(cache);
    return false;
}

static void nsm_ring_unmap(NsmRing *ring)
{
    address_space_cache_destroy(&ring->desc);
    address_space_cache_destroy(&ring->avail);
    address_space_cache_destroy(&ring->used);
}

/*
 * A chain of as many descriptors has to fit NitroNsmChain. QEMU keeps a driver
 * to that, but not a migration stream.
 */
static bool nsm_queue_size_valid(int num)
{
    return num > 0 && num <= VIRTQUEUE_MAX_SIZE;
}

static bool nsm_ring_map(NsmRing *ring, VirtIODevice *vdev)
{
    AddressSpace *as = vdev->dma_as;
    int num = virtio_queue_get_num(vdev, NSM_QUEUE);

    if (!nsm_queue_size_valid(num)) {
        return false;
    }
    ring->num = num;
    ring->next = virtio_queue_get_last_avail_idx(vdev, NSM_QUEUE);
    address_space_cache_init_empty(&ring->desc);
    address_space_cache_init_empty(&ring->avail);
    address_space_cache_init_empty(&ring->used);
    if (nsm_map(&ring->desc, as, virtio_queue_get_desc_addr(vdev, NSM_QUEUE),
                virtio_queue_get_desc_size(vdev, NSM_QUEUE), false) &&
        nsm_map(&ring->avail, as, virtio_queue_get_avail_addr(vdev, NSM_QUEUE),
                virtio_queue_get_avail_size(vdev, NSM_QUEUE), false) &&
        nsm_map(&ring->used, as, virtio_queue_get_used_addr(vdev, NSM_QUEUE),
                virtio_queue_get_used_size(vdev, NSM_QUEUE), true)) {
        return true;
    }
    nsm_ring_unmap(ring);
    return false;
}

static uint16_t nsm_ring_avail_idx(NsmRing *ring)
{
    uint16_t idx;

    idx = address_space_lduw_le_cached(&ring->avail,
                                       offsetof(struct vring_avail, idx),
                                       MEMTXATTRS_UNSPECIFIED, NULL);
    /* The entries that the index announces are read after it. */
    smp_rmb();
    return idx;
}

/* Read the chain in slot @pos; what is wrong with it is left in ->fault. */
static void nsm_ring_read(NsmRing *ring, uint16_t pos, NitroNsmChain *chain)
{
    struct vring_desc desc;
    uint16_t flags;
    hwaddr slot = offsetof(struct vring_avail, ring) +
                  (pos % ring->num) * sizeof(uint16_t);
    unsigned int i = address_space_lduw_le_cached(&ring->avail, slot,
                                                  MEMTXATTRS_UNSPECIFIED, NULL);
    unsigned int n = 0;

    chain->head = i;
    chain->fault = NULL;
    chain->out_len = chain->in_len = 0;
    chain->out_num = chain->in_num = 0;

    do {
        if (i >= ring->num) {
            chain->fault = "no such descriptor";
            return;
        }
        if (n == ring->num) {
            chain->fault = "descriptors form a loop";
            return;
        }
        address_space_read_cached(&ring->desc, i * sizeof(desc), &desc,
                                  sizeof(desc));
        flags = le16_to_cpu(desc.flags);
        if (flags & VRING_DESC_F_INDIRECT) {
            chain->fault = "indirect descriptors were not negotiated";
            return;
        }
        chain->seg[n].addr = le64_to_cpu(desc.addr);
        chain->seg[n].len = le32_to_cpu(desc.len);
        if (flags & VRING_DESC_F_WRITE) {
            chain->in_num++;
            chain->in_len += chain->seg[n].len;
        } else if (chain->in_num) {
            chain->fault = "readable descriptor after a writable one";
            return;
        } else {
            chain->out_num++;
            chain->out_len += chain->seg[n].len;
        }
        n++;
        i = le16_to_cpu(desc.next);
    } while (flags & VRING_DESC_F_NEXT);
}

/* Put the chain that is next into the used ring; not yet seen by the guest. */
static void nsm_ring_complete(NsmRing *ring, uint16_t head, uint32_t len)
{
    struct vring_used_elem elem = {
        .id = cpu_to_le32(head),
        .len = cpu_to_le32(len),
    };
    hwaddr slot = offsetof(struct vring_used, ring) +
                  (ring->next % ring->num) * sizeof(elem);

    address_space_write_cached(&ring->used, slot, &elem, sizeof(elem));
    address_space_cache_invalidate(&ring->used, slot, sizeof(elem));
    ring->next++;
}

/* Let the guest see everything that was completed. */
static void nsm_ring_publish(NsmRing *ring)
{
    hwaddr offset = offsetof(struct vring_used, idx);

    /* Elements and answers come before the index that announces them. */
    smp_wmb();
    address_space_stw_le_cached(&ring->used, offset, ring->next,
                                MEMTXATTRS_UNSPECIFIED, NULL);
    address_space_cache_invalidate(&ring->used, offset, sizeof(uint16_t));
}

/*
 * Copy @len bytes between @buf and the chain's readable (@to_guest false) or
 * writable descriptors. False when one of them is not in RAM.
 */
static bool nsm_chain_copy(VirtIODevice *vdev, const NitroNsmChain *chain,
                           uint8_t *buf, size_t len, bool to_guest)
{
    unsigned int i = to_guest ? chain->out_num : 0;

    for (; len; i++) {
        hwaddr addr = chain->seg[i].addr;
        size_t left = MIN(len, chain->seg[i].len);

        len -= left;
        while (left) {
            MemoryRegionCache cache;
            int64_t n = address_space_cache_init(&cache, vdev->dma_as, addr,
                                                 left, to_guest);

            if (n <= 0 || !cache.ptr) {
                address_space_cache_destroy(&cache);
                return false;
            }
            if (to_guest) {
                address_space_write_cached(&cache, 0, buf, n);
                address_space_cache_invalidate(&cache, 0, n);
            } else {
                address_space_read_cached(&cache, 0, buf, n);
            }
            address_space_cache_destroy(&cache);
            addr += n;
            buf += n;
            left -= n;
        }
    }
    return true;
}

/* Returns the number of bytes written to @resp; without @req an error. */
static uint32_t nsm_serve(NitroNsm *s, const NitroNsmChain *req,
                          const NitroNsmChain *resp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    size_t req_len = req ? MIN(req->out_len, NSM_REQUEST_MAX + 1) : 0;
    size_t cap = MIN(resp->in_len, NSM_RESPONSE_MAX);
    size_t len;
    NsmResult info;

    if (req_len <= NSM_REQUEST_MAX &&
        req_len && !nsm_chain_copy(vdev, req, s->request, req_len, false)) {
        nsm_queue_refuse(req->head, "request is not in RAM");
        req_len = 0;
    }
    len = nsm_handle(&s->nsm, s->request, req_len, s->response, cap, &info);
    trace_nitro_nsm_request(resp->head, nsm_op_name(info.op), info.number,
                            req_len, cap, len, nsm_code_name(info.code));
    if (info.code != NSM_SUCCESS) {
        trace_nitro_nsm_refused(resp->head, nsm_op_name(info.op), info.number,
                                nsm_code_name(info.code),
                                info.reason ? info.reason : "-");
    }
    if (!nsm_chain_copy(vdev, resp, s->response, len, true)) {
        nsm_queue_refuse(resp->head, "response buffer is not in RAM");
        return 0;
    }
    return len;
}

/* Give a chain back that has no place in the protocol. */
static void nsm_refuse(NitroNsm *s, NsmRing *ring, const NitroNsmChain *chain)
{
    uint32_t len = 0;

    if (chain->fault) {
        nsm_queue_refuse(chain->head, chain->fault);
    } else if (chain->in_num) {
        nsm_queue_refuse(chain->head, "response buffer without a request");
        len = nsm_serve(s, NULL, chain);
    } else {
        nsm_queue_refuse(chain->head, "request without a response buffer");
    }
    nsm_ring_complete(ring, chain->head, len);
}

/*
 * Serves every command that is in the queue now, also before DRIVER_OK: the
 * driver's hwrng asks for random bytes while it is still being probed, and
 * waits for them. A request whose response buffer has yet to come stays in
 * the queue. What arrives later comes with a kick of its own, so that a busy
 * guest cannot keep QEMU in here.
 */
static void nsm_handle_output(VirtIODevice *vdev, VirtQueue *vq)
{
    NitroNsm *s = NITRO_NSM(vdev);
    NitroNsmChain *req = &s->chain[0];
    NitroNsmChain *resp = &s->chain[1];
    NsmRing ring;
    uint16_t first, end;

    if (!nsm_ring_map(&ring, vdev)) {
        nsm_queue_refuse(0, "the queue has no valid size or is not in RAM");
        return;
    }
    first = ring.next;
    end = nsm_ring_avail_idx(&ring);
    trace_nitro_nsm_kick(first, end);

    if ((uint16_t)(end - first) > ring.num) {
        nsm_queue_refuse(0, "more chains than the queue can hold: all dropped");
        ring.next = end;
        nsm_ring_publish(&ring);
    }
    while (ring.next != end) {
        nsm_ring_read(&ring, ring.next, req);
        if (req->fault || req->in_num) {
            nsm_refuse(s, &ring, req);
            nsm_ring_publish(&ring);
            continue;
        }
        if ((uint16_t)(ring.next + 1) == end) {
            break;
        }
        nsm_ring_read(&ring, ring.next + 1, resp);
        if (resp->fault || resp->out_num) {
            nsm_refuse(s, &ring, req);
        } else {
            uint32_t len = nsm_serve(s, req, resp);

            nsm_ring_complete(&ring, req->head, 0);
            nsm_ring_complete(&ring, resp->head, len);
        }
        nsm_ring_publish(&ring);
    }
    nsm_ring_unmap(&ring);

    if (ring.next != first) {
        virtio_queue_set_last_avail_idx(vdev, NSM_QUEUE, ring.next);
        virtio_queue_update_used_idx(vdev, NSM_QUEUE);
        virtio_notify(vdev, vq);
    }
}

/*
 * No ioeventfd: the vCPU that kicks serves the queue itself. The guest waits
 * for the answer anyway, and waking QEMU's main loop for it costs several
 * times what most commands do.
 */
static int nsm_start_ioeventfd(VirtIODevice *vdev)
{
    return 0;
}

static void nsm_stop_ioeventfd(VirtIODevice *vdev)
{
}

/* None of QEMU's ring features: the walk above is for the plain split ring. */
static uint64_t nsm_get_features(VirtIODevice *vdev, uint64_t features,
                                 Error **errp)
{
    return features & (1ULL << VIRTIO_F_VERSION_1);
}

char *nitro_nsm_new_id(const char *parent_id)
{
    uint64_t ms = g_get_real_time() / 1000;
    uint16_t low;

    qemu_guest_getrandom_nofail(&low, sizeof(low));
    return g_strdup_printf("%s-enc%016" PRIx64, parent_id, ms << 16 | low);
}

bool nitro_nsm_boot(NitroNsm *s, const NsmBoot *boot)
{
    return nsm_boot(&s->nsm, boot);
}

#define BAD_STREAM "nitro-nsm: bad migration stream: "

static bool nsm_check_loaded_size(const char *what, int num)
{
    if (nsm_queue_size_valid(num)) {
        return true;
    }
    error_report(BAD_STREAM "the queue's %s is %u, not 1 to %d", what, num,
                 VIRTQUEUE_MAX_SIZE);
    return false;
}

/*
 * Called when QEMU has read the queues from a migration stream and before it
 * maps them, in which it takes their sizes for granted.
 */
static int nsm_load_queues(VirtIODevice *vdev, QEMUFile *f, int version_id)
{
    int i;

    if (!nsm_check_loaded_size("size", virtio_queue_get_num(vdev, NSM_QUEUE))) {
        return -EINVAL;
    }
    for (i = NSM_QUEUE + 1; i < VIRTIO_QUEUE_MAX; i++) {
        if (virtio_queue_get_num(vdev, i) ||
            virtio_queue_get_desc_addr(vdev, i)) {
            error_report(BAD_STREAM "it has a queue %d, an NSM only one", i);
            return -EINVAL;
        }
    }
    return 0;
}

static int nsm_post_load(void *opaque, int version_id)
{
    NitroNsm *s = opaque;
    const char *why;

    /* What the queue's size becomes at the next reset is read after it. */
    if (!nsm_check_loaded_size("size after a reset",
                               virtio_queue_get_max_num(VIRTIO_DEVICE(s),
                                                        NSM_QUEUE))) {
        return -EINVAL;
    }
    if (!nsm_state_valid(&s->nsm, &why)) {
        error_report(BAD_STREAM "%s", why);
        return -EINVAL;
    }
    return 0;
}

static const VMStateDescription vmstate_nitro_nsm = {
    .name = "nitro-nsm",
    .version_id = NSM_STATE_VERSION,
    .minimum_version_id = NSM_STATE_VERSION,
    .post_load = nsm_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_VIRTIO_DEVICE,
        VMSTATE_UINT8_2DARRAY(nsm.pcr, NitroNsm, NSM_PCR_COUNT, NSM_PCR_SIZE),
        VMSTATE_UINT32(nsm.locked, NitroNsm),
        VMSTATE_UINT8_ARRAY(nsm.module_id, NitroNsm, NSM_MODULE_ID_MAX + 1),
        VMSTATE_END_OF_LIST()
    },
};

static void nsm_realize(DeviceState *dev, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    NitroNsm *s = NITRO_NSM(dev);
    const NsmBoot nothing_measured = { 0 };
    const NsmSignerOptions options = {
        .cert_chain = s->cert_chain,
        .cert_key = s->cert_key,
        .form = s->document_form,
        .unmeasured = s->unmeasured,
    };
    NsmSignerError err;

    if (!s->module_id) {
        s->module_id = nitro_nsm_new_id("i-0000000000000000");
    }
    if (!nsm_module_id_valid(s->module_id)) {
        error_setg(errp, "module-id '%s': wants 1 to %d printable ASCII "
                   "characters without space", s->module_id,
                   NSM_MODULE_ID_MAX);
        return;
    }
    nsm_init(&s->nsm, s->module_id);
    if (!nitro_nsm_boot(s, &nothing_measured)) {
        error_setg(errp, "gnutls cannot compute SHA-384");
        return;
    }
    s->signer = nsm_signer_new(&options, s->module_id, &err);
    if (!s->signer) {
        error_setg(errp, "%s (%s)", err.text, nsm_signer_fault_name(err.fault));
        return;
    }
    nsm_set_attest(&s->nsm, nsm_signer_attest, s->signer);
    virtio_init(vdev, VIRTIO_ID_NITRO_SEC_MOD, 0);
    s->vq = virtio_add_queue(vdev, NSM_QUEUE_SIZE, nsm_handle_output);
}

static void nsm_unrealize(DeviceState *dev)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    NitroNsm *s = NITRO_NSM(dev);

    virtio_delete_queue(s->vq);
    virtio_cleanup(vdev);
    nsm_signer_free(s->signer);
    s->signer = NULL;
}

/* What a verifier has to trust, in PEM; empty until the device is realized. */
static char *nsm_get_root_certificate(Object *obj, Error **errp)
{
    NitroNsm *s = NITRO_NSM(obj);

    return g_strdup(s->signer ? nsm_signer_root(s->signer) : "");
}

const QEnumLookup nitro_document_form_lookup = {
    .array = (const char *const[]) {
        [NSM_DOCUMENT_2025] = "2025",
        [NSM_DOCUMENT_2023] = "2023",
    },
    .size = 2,
};

static int nsm_get_document_form(Object *obj, Error **errp)
{
    return NITRO_NSM(obj)->document_form;
}

static void nsm_set_document_form(Object *obj, int value, Error **errp)
{
    NITRO_NSM(obj)->document_form = value;
}

static const Property nsm_properties[] = {
    DEFINE_PROP_STRING("module-id", NitroNsm, module_id),
    DEFINE_PROP_STRING("cert-chain", NitroNsm, cert_chain),
    DEFINE_PROP_STRING("cert-key", NitroNsm, cert_key),
    DEFINE_PROP_BOOL("unmeasured", NitroNsm, unmeasured, false),
};

static void nsm_class_init(ObjectClass *oc, NitroClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_CLASS(oc);

    dc->desc = "Nitro Secure Module";
    dc->vmsd = &vmstate_nitro_nsm;
    device_class_set_props(dc, nsm_properties);
    object_class_property_set_description(oc, "module-id",
        "Name of this module in attestation documents (default: a new one)");
    object_class_property_set_description(oc, "cert-chain",
        "PEM file: CA certificates, root first (default: an ephemeral chain)");
    object_class_property_set_description(oc, "cert-key",
        "PEM file: private key of the last certificate in cert-chain");
    object_class_property_set_description(oc, "unmeasured",
        "Issue documents under a certificate that says \"unmeasured\"");
    object_class_property_add_enum(oc, "document-form", "NsmDocumentForm",
                                   &nitro_document_form_lookup,
                                   nsm_get_document_form,
                                   nsm_set_document_form);
    object_class_property_set_description(oc, "document-form",
        "Shape of attestation documents: AWS's of 2025 (default), or 2023");
    object_class_property_add_str(oc, "root-certificate",
                                  nsm_get_root_certificate, NULL);
    object_class_property_set_description(oc, "root-certificate",
        "The chain's root in PEM, for verifiers");
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    vdc->realize = nsm_realize;
    vdc->unrealize = nsm_unrealize;
    vdc->get_features = nsm_get_features;
    vdc->load = nsm_load_queues;
    vdc->start_ioeventfd = nsm_start_ioeventfd;
    vdc->stop_ioeventfd = nsm_stop_ioeventfd;
    /* No reset: registers and locks last as long as the enclave does. */
}

static const TypeInfo nsm_types[] = {
    {
        .name = TYPE_NITRO_NSM,
        .parent = TYPE_VIRTIO_DEVICE,
        .instance_size = sizeof(NitroNsm),
        .class_init = nsm_class_init,
    },
};

DEFINE_TYPES(nsm_types)
