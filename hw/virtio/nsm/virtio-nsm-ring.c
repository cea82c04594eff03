/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nitro Secure Module as a virtio device: its ring
 *
 * The ring is walked here and not with virtqueue_pop(), for two reasons. That
 * function marks the device broken, until the guest resets it, on descriptors
 * that any user of the guest can cause with an ioctl (one of length zero) or
 * that a driver's bug can. And it could not be kept from it by looking first:
 * another vCPU may change the ring in between. Here each descriptor is read
 * once, only RAM is ever touched, and every chain comes back to the guest.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/log.h"
#include "hw/virtio/virtio.h"
#include "standard-headers/linux/virtio_ring.h"
#include "nitro/qemu-compat.h"
#include "virtio-nsm-internal.h"
#include "trace.h"

void nsm_queue_refuse(unsigned int head, const char *why)
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

void nsm_ring_unmap(NsmRing *ring)
{
    address_space_cache_destroy(&ring->desc);
    address_space_cache_destroy(&ring->avail);
    address_space_cache_destroy(&ring->used);
}

/*
 * A chain of as many descriptors has to fit NitroNsmChain. QEMU keeps a driver
 * to that, but not a migration stream.
 */
bool nsm_queue_size_valid(int num)
{
    return num > 0 && num <= VIRTQUEUE_MAX_SIZE;
}

bool nsm_ring_map(NsmRing *ring, VirtIODevice *vdev)
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

uint16_t nsm_ring_avail_idx(NsmRing *ring)
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
void nsm_ring_read(NsmRing *ring, uint16_t pos, NitroNsmChain *chain)
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
void nsm_ring_complete(NsmRing *ring, uint16_t head, uint32_t len)
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
void nsm_ring_publish(NsmRing *ring)
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
bool nsm_chain_copy(VirtIODevice *vdev, const NitroNsmChain *chain,
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
