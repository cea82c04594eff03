/*
 * SPDX-License-Identifier: MIT
 *
 * front.h: a VMM and the rings of its guest, as cheap as they can be, so that
 * what is measured is the vsock backend. It checks nothing that it gets; the
 * fake guest of the tests (tests/python/vhost_guest.py) does that.
 *
 * Facts: virtio 1.2, 2.7 (split virtqueues), 5.10 (socket device); QEMU,
 * docs/interop/vhost-user.rst.
 */

#ifndef FRONT_H
#define FRONT_H

#include <stdbool.h>
#include <stdint.h>

/* The queues of a Linux guest behind virtio-mmio. */
#define QUEUE_SIZE 1024
/* Receive buffers of Linux since 2025: one descriptor for the whole packet. */
#define RX_BUFFER 3776
/* Packets that can be on their way to the backend. */
#define TX_SLOTS 64
#define TX_PIECES 3
#define HEADER 44
#define MAX_PAYLOAD 65536

struct queue {
    struct desc *desc;
    struct avail *avail;
    struct used *used;
    uint16_t next;              /* avail entry that we write next */
    uint16_t kicked;            /* next at the last look at avail_event */
    uint16_t last;              /* used entry that we take next */
    int kick;
    int call;
};

struct front {
    int fd;
    int memory;
    uint8_t *ram;
    struct queue rx;
    struct queue tx;
    uint16_t slot[TX_SLOTS];    /* the free ones */
    unsigned slots;
};

/* Connects, shares memory and starts both queues. Errors end the program. */
void front_open(struct front *f, const char *path);

/*
 * A packet: 44 bytes of header, and len bytes of payload that are in the
 * slot's memory already, in as many descriptors as Linux would use, or with
 * whole in one. False: no slot is free.
 */
bool front_send(struct front *f, const void *header, uint32_t len, bool whole);
/* Takes back the slots of packets that the backend has consumed. */
void front_reclaim(struct front *f);
/* Tells the backend of what was sent, if it wants to know. */
void front_kick(struct front *f);

/*
 * The next packet from the backend, NULL if there is none; its buffer is
 * posted again by the next call. len: with the header.
 */
const uint8_t *front_receive(struct front *f, uint32_t *len);

/* Waits for an interrupt unless there is news already; false: timeout. */
bool front_wait(struct front *f, int milliseconds);

#endif
