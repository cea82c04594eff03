/*
 * SPDX-License-Identifier: MIT
 *
 * ring.h: guest memory and split virtqueues, the device's side of them.
 *
 * Everything in guest memory is hostile and may change while it is looked at:
 * each field is read once, every address is checked against the memory table,
 * and nothing here follows the guest further than the queue is long. No system
 * call but mmap and munmap; interrupts and kicks are the caller's.
 *
 * Facts: virtio 1.2, section 2.7 (split virtqueues).
 */

#ifndef RING_H
#define RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* What a vhost-user message can carry without CONFIGURE_MEM_SLOTS. */
#define GUEST_MEM_MAX_REGIONS 8
/* virtio's own limit. */
#define RING_MAX_SIZE 32768

struct guest_mem_region {
    uint64_t guest; /* guest-physical address */
    uint64_t user;  /* the front end's own address */
    uint64_t size;
    uint8_t *host; /* ours */
    void *map;
    size_t map_size;
};

struct guest_mem {
    unsigned count;
    struct guest_mem_region region[GUEST_MEM_MAX_REGIONS];
};

/*
 * Maps one more region, from the file at offset; 0 or -errno (EOVERFLOW: the
 * numbers wrap; ENOSPC: the table is full; ENXIO: the file is too short).
 */
int guest_mem_add(struct guest_mem *m, int fd, uint64_t guest, uint64_t user,
                  uint64_t size, uint64_t offset);
void guest_mem_clear(struct guest_mem *m);
/* Where *len > 0 bytes begin, or NULL; no more than the region has of them. */
void *guest_mem_at(const struct guest_mem *m, uint64_t addr, uint64_t *len);
/* len > 0 bytes that lie in one region, or NULL. */
void *guest_mem_at_user(const struct guest_mem *m, uint64_t addr, uint64_t len);

struct ring_desc;
struct ring_avail;
struct ring_used;

struct ring {
    /* As told by the front end. */
    unsigned num;
    uint64_t desc_user;
    uint64_t avail_user;
    uint64_t used_user;
    bool has_addr;
    bool event_idx;

    /* Ours; NULL when not mapped. */
    struct ring_desc *desc;
    struct ring_avail *avail;
    struct ring_used *used;

    uint16_t next;      /* avail entry that we take next */
    uint16_t used_idx;  /* used entry that we write next */
    uint16_t published; /* used_idx that the guest knows */
    uint16_t told;      /* used_idx at the last look at used_event */
    bool told_valid;
    bool broken; /* the guest's index ran away */
};

/*
 * A chain as an array of pieces of our memory: one for each descriptor, more
 * where a buffer crosses from one region into the next. The array is the
 * caller's. A writable chain that has more pieces is used as far as they go;
 * one that is to be read, which virtio allows to be as long as the queue, wants
 * num + GUEST_MEM_MAX_REGIONS of them.
 */
struct ring_chain {
    uint16_t head;
    unsigned niov;
    size_t len;
    unsigned max;
    struct iovec *iov;
};

/*
 * Translates the addresses and takes the used index from the ring; false and
 * unmapped if they are no good.
 */
bool ring_map(struct ring *r, const struct guest_mem *m);
void ring_unmap(struct ring *r);

enum ring_result {
    RING_EMPTY,
    RING_CHAIN,
    /* A bad chain, given back, with what could be read of it; ask again. */
    RING_BAD,
    RING_BROKEN, /* nothing will come until broken is reset */
};

/* Takes a chain, of which every piece must be (not) writable. */
enum ring_result ring_pop(struct ring *r, const struct guest_mem *m,
                          bool writable, struct ring_chain *c);
/* Undoes the last n pops. */
void ring_unpop(struct ring *r, unsigned n);
/* Gives back a chain with so many bytes written; seen at ring_publish(). */
void ring_push(struct ring *r, uint16_t head, uint32_t written);
/* Shows the guest what was pushed; true: interrupt it. */
bool ring_publish(struct ring *r);
/* Whether there is an entry. */
bool ring_waits(const struct ring *r);
/* Asks for a kick at the next entry; true: there is one already. */
bool ring_arm(struct ring *r);
/* Asks for no kicks. */
void ring_disarm(struct ring *r);

#endif
