/*
 * SPDX-License-Identifier: MIT
 *
 * vhost-user.h: the back end's side of the vhost-user protocol, as much of it
 * as a vsock device needs. It reads and answers messages and keeps the file
 * descriptors that they carry; it does not listen, accept or poll.
 *
 * Facts: QEMU, "Vhost-user Protocol" (docs/interop/vhost-user.rst).
 */

#ifndef VHOST_USER_H
#define VHOST_USER_H

#include "device.h"

/* A message carries at most one descriptor for each memory region. */
#define VHOST_USER_MAX_FDS GUEST_MEM_MAX_REGIONS
/* The largest payload that we read: a full memory table or config space. */
#define VHOST_USER_MAX_PAYLOAD 512
/* Larger ones are skipped up to here; beyond it the stream is broken. */
#define VHOST_USER_MAX_SKIP (1u << 20)

struct vhost_user_ops {
    /* The queue's kick descriptor: begin, and before it closes, end. */
    void (*watch)(void *opaque, unsigned queue, int fd);
    void (*unwatch)(void *opaque, unsigned queue, int fd);
};

struct vhost_user {
    int fd;
    struct device *device;
    uint64_t guest_cid;
    const struct vhost_user_ops *ops;
    void *opaque;
    bool spoke; /* has sent a whole message */
    uint64_t features;
    uint64_t protocol;

    int kick[QUEUES];
    int call[QUEUES];
    int err[QUEUES];

    /* The message that is being read. */
    uint8_t buf[12 + VHOST_USER_MAX_PAYLOAD];
    size_t got; /* of header and payload */
    int fds[VHOST_USER_MAX_FDS];
    unsigned nfds;
};

/* A front end that has just connected by fd (non-blocking), taken over. */
void vhost_user_init(struct vhost_user *u, int fd, uint64_t guest_cid,
                     struct device *d, const struct vhost_user_ops *ops,
                     void *opaque);
/* Reads and answers what there is; false: disconnect. */
bool vhost_user_input(struct vhost_user *u);
/* Interrupts the guest. */
void vhost_user_interrupt(struct vhost_user *u, unsigned queue);
/*
 * Tells the front end that the queue has stopped. Not what the guest can do
 * over and over: QEMU makes a line of each.
 */
void vhost_user_error(struct vhost_user *u, unsigned queue);
/* Resets the device and closes all descriptors. */
void vhost_user_close(struct vhost_user *u);

#endif
