/*
 * SPDX-License-Identifier: MIT
 *
 * device.h: the two queues of a vsock device joined to the connection core.
 * It neither speaks vhost-user nor makes system calls.
 */

#ifndef DEVICE_H
#define DEVICE_H

#include "ring.h"
#include "vsock.h"

enum {
    QUEUE_RX, /* device to guest */
    QUEUE_TX, /* guest to device */
    QUEUES,
};

/*
 * RX buffers taken from the ring in advance. Linux posts 3732 bytes of
 * payload each, so 18 make a quantum of the core; there is always at least one
 * quantum at hand.
 */
#define DEVICE_HAND 64
#define DEVICE_HAND_LOW 20
/* Pieces of each that are used; Linux posts one or two. */
#define DEVICE_PIECES 64
/* Chains from the guest, turns to the guest, before other events are seen. */
#define DEVICE_TX_BUDGET 64
#define DEVICE_RX_BUDGET 64

/*
 * Packets from the guest that may be done with and not given back, or an eighth
 * of its queue; and the bytes in them, of all that came at once.
 */
#define DEVICE_HELD 16
#define DEVICE_HELD_BYTES 2048

struct device_ops {
    void (*interrupt)(void *opaque, unsigned queue);
    /* A chain was given back unread, or the ring is broken. */
    void (*bad_ring)(void *opaque, unsigned queue, enum ring_result what);
    /* The guest has begun anew (vsock_fresh_driver() was called). */
    void (*fresh_driver)(void *opaque);
};

struct device_queue {
    struct ring ring;
    bool started; /* kick was set since the last stop */
    bool enabled;
    bool base_set; /* index given since the last stop */
};

struct device {
    struct vsock *vsock;
    const struct device_ops *ops;
    void *opaque;
    struct guest_mem mem;
    struct device_queue queue[QUEUES];
    uint64_t bad_chains;
    bool hold; /* see DEVICE_HELD; the caller's, who settles in time */

    /* A ring buffer, but bufs has everything twice so that it is straight. */
    unsigned hand_head;
    unsigned hand_count;
    struct ring_chain hand[DEVICE_HAND];
    struct vsock_buf bufs[2 * DEVICE_HAND];
    struct iovec hand_iov[DEVICE_HAND][DEVICE_PIECES];

    /* The packet that is being read. Untouched where chains are short. */
    struct iovec tx_iov[RING_MAX_SIZE + GUEST_MEM_MAX_REGIONS];
};

void device_init(struct device *d, struct vsock *v,
                 const struct device_ops *ops, void *opaque);
/* Works off both queues, for a while; true: there is more to do at once. */
bool device_run(struct device *d);
/* Packets that are not given back yet; and gives them back. */
unsigned device_held(const struct device *d);
void device_settle(struct device *d);
/* Whether the guest has sent something since; to be asked without arming. */
bool device_waits(const struct device *d);
/* Asks for a kick when it does; true: it has already. Before falling asleep. */
bool device_arm(struct device *d);
/* Started, enabled, mapped and not broken. */
bool device_usable(const struct device *d, unsigned queue);

/*
 * Life of a queue, driven by the front end's messages. Nobody else changes
 * queues and rings.
 */
void device_start(struct device *d, unsigned queue);
void device_set_base(struct device *d, unsigned queue, uint16_t index);
void device_enable(struct device *d, unsigned queue, bool on);
/* Stops it, and returns the index of the entry that would come next. */
uint16_t device_stop(struct device *d, unsigned queue);
/* Takes over *m, which is left empty. */
void device_set_mem(struct device *d, struct guest_mem *m);
/* num: a power of two, up to RING_MAX_SIZE. */
void device_set_size(struct device *d, unsigned queue, unsigned num);
/* Where the parts are, in the front end's memory; false: they are no good. */
bool device_set_addresses(struct device *d, unsigned queue, uint64_t desc,
                          uint64_t avail, uint64_t used);
/* Whether the guest says when it wants to be told, and is told the same. */
void device_set_event_idx(struct device *d, bool on);
/* The front end has gone. */
void device_reset(struct device *d);

#endif
