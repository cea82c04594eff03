/*
 * SPDX-License-Identifier: MIT
 *
 * ring.c: guest memory and split virtqueues, the device's side. It knows
 * nothing of what the buffers carry, nor of vhost-user.
 */

#include "ring.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

_Static_assert(BYTE_ORDER == LITTLE_ENDIAN, "rings are little-endian");

#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4
#define AVAIL_NO_INTERRUPT 1
#define USED_NO_NOTIFY 1

struct ring_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct ring_avail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[]; /* num, then used_event */
};

struct ring_used_elem {
    uint32_t id;
    uint32_t len;
};

struct ring_used {
    uint16_t flags;
    uint16_t idx;
    struct ring_used_elem ring[]; /* num, then u16 avail_event */
};

#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define STORE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)

/* Memory. */

int guest_mem_add(struct guest_mem *m, int fd, uint64_t guest, uint64_t user,
                  uint64_t size, uint64_t offset)
{
    struct guest_mem_region *g = &m->region[m->count];
    uint64_t end, unused;
    struct stat st;

    if (m->count == GUEST_MEM_MAX_REGIONS) {
        return -ENOSPC;
    }
    if (!size || __builtin_add_overflow(size, offset, &end) ||
        end > SIZE_MAX / 2 ||
        __builtin_add_overflow(guest, size - 1, &unused) ||
        __builtin_add_overflow(user, size - 1, &unused)) {
        return -EOVERFLOW;
    }
    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    if (S_ISREG(st.st_mode)) {
        /* A touch behind the end of the file would be a SIGBUS. */
        if ((uint64_t)st.st_size < end) {
            return -ENXIO;
        }
        /* Whole huge pages, or munmap fails. */
        end = (end + st.st_blksize - 1) / st.st_blksize * st.st_blksize;
    }
    /* From 0, since an offset need not be a multiple of the page size. */
    g->map = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                  fd, 0);
    if (g->map == MAP_FAILED) {
        return -errno;
    }
    madvise(g->map, end, MADV_DONTDUMP);
    g->map_size = end;
    g->host = (uint8_t *)g->map + offset;
    g->guest = guest;
    g->user = user;
    g->size = size;
    m->count++;
    return 0;
}

void guest_mem_clear(struct guest_mem *m)
{
    for (unsigned i = 0; i < m->count; i++) {
        munmap(m->region[i].map, m->region[i].map_size);
    }
    m->count = 0;
}

void *guest_mem_at(const struct guest_mem *m, uint64_t addr, uint64_t *len)
{
    for (unsigned i = 0; i < m->count; i++) {
        const struct guest_mem_region *g = &m->region[i];
        uint64_t at = addr - g->guest;

        if (addr >= g->guest && at < g->size) {
            *len = *len < g->size - at ? *len : g->size - at;
            return g->host + at;
        }
    }
    return NULL;
}

void *guest_mem_at_user(const struct guest_mem *m, uint64_t addr, uint64_t len)
{
    for (unsigned i = 0; i < m->count; i++) {
        const struct guest_mem_region *g = &m->region[i];
        uint64_t at = addr - g->user;

        if (addr >= g->user && at < g->size && len <= g->size - at) {
            return g->host + at;
        }
    }
    return NULL;
}

/* Rings. */

static uint16_t *used_event(struct ring *r)
{
    return &r->avail->ring[r->num];
}

static uint16_t *avail_event(struct ring *r)
{
    return (uint16_t *)&r->used->ring[r->num];
}

bool ring_map(struct ring *r, const struct guest_mem *m)
{
    ring_unmap(r);
    if (!r->has_addr || !r->num) {
        return false;
    }
    r->desc = guest_mem_at_user(m, r->desc_user, sizeof(*r->desc) * r->num);
    r->avail = guest_mem_at_user(m, r->avail_user, 6 + 2 * r->num);
    r->used = guest_mem_at_user(m, r->used_user, 6 + 8 * r->num);
    if (!r->desc || !r->avail || !r->used ||
        (uintptr_t)r->desc % _Alignof(struct ring_desc) ||
        (uintptr_t)r->avail % 2 || (uintptr_t)r->used % 4) {
        ring_unmap(r);
        return false;
    }
    r->used_idx = LOAD(r->used->idx);
    r->published = r->used_idx;
    r->told_valid = false;
    return true;
}

void ring_unmap(struct ring *r)
{
    r->desc = NULL;
    r->avail = NULL;
    r->used = NULL;
}

/* A descriptor's memory, cut where regions meet. */
static bool chain_add(struct ring_chain *c, const struct guest_mem *m,
                      uint64_t addr, uint64_t len, bool writable)
{
    uint64_t last, n;

    if (!len || __builtin_add_overflow(addr, len - 1, &last)) {
        return false;
    }
    for (; len; addr += n, len -= n) {
        void *p;

        n = len;
        p = guest_mem_at(m, addr, &n);
        if (!p) {
            return false;
        }
        if (c->niov < c->max) {
            c->iov[c->niov].iov_base = p;
            c->iov[c->niov++].iov_len = n;
            c->len += n;
        } else if (!writable) {
            return false;
        }
    }
    return true;
}

static bool chain_read(struct ring *r, const struct guest_mem *m, bool writable,
                       struct ring_chain *c)
{
    unsigned i = c->head;

    for (unsigned steps = 0; steps < r->num; steps++) {
        struct ring_desc *d = &r->desc[i];
        uint64_t addr = LOAD(d->addr);
        uint32_t len = LOAD(d->len);
        uint16_t flags = LOAD(d->flags);

        if ((flags & DESC_INDIRECT) || !!(flags & DESC_WRITE) != writable ||
            !chain_add(c, m, addr, len, writable)) {
            return false;
        }
        if (!(flags & DESC_NEXT)) {
            return true;
        }
        i = LOAD(d->next);
        if (i >= r->num) {
            return false;
        }
    }
    return false;
}

enum ring_result ring_pop(struct ring *r, const struct guest_mem *m,
                          bool writable, struct ring_chain *c)
{
    uint16_t waiting;

    c->niov = 0;
    c->len = 0;
    if (r->broken) {
        return RING_BROKEN;
    }
    waiting = __atomic_load_n(&r->avail->idx, __ATOMIC_ACQUIRE) - r->next;
    if (!waiting) {
        return RING_EMPTY;
    }
    if (waiting > r->num) {
        r->broken = true;
        return RING_BROKEN;
    }
    c->head = LOAD(r->avail->ring[r->next++ & (r->num - 1)]);
    if (c->head >= r->num) {
        /* No chain, so there is nothing to give back either. */
        return RING_BAD;
    }
    if (!chain_read(r, m, writable, c)) {
        ring_push(r, c->head, 0);
        return RING_BAD;
    }
    return RING_CHAIN;
}

void ring_unpop(struct ring *r, unsigned n)
{
    r->next -= n;
}

void ring_push(struct ring *r, uint16_t head, uint32_t written)
{
    struct ring_used_elem *e = &r->used->ring[r->used_idx++ & (r->num - 1)];

    STORE(e->id, head);
    STORE(e->len, written);
}

bool ring_publish(struct ring *r)
{
    uint16_t old = r->told;
    bool valid = r->told_valid;
    uint16_t event;

    if (r->published == r->used_idx) {
        return false;
    }
    r->published = r->used_idx;
    __atomic_store_n(&r->used->idx, r->used_idx, __ATOMIC_RELEASE);
    /* The index must be seen before we look whether it is waited for. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!r->event_idx) {
        return !(LOAD(r->avail->flags) & AVAIL_NO_INTERRUPT);
    }
    r->told = r->used_idx;
    r->told_valid = true;
    event = LOAD(*used_event(r));
    return !valid ||
           (uint16_t)(r->used_idx - event - 1) < (uint16_t)(r->used_idx - old);
}

bool ring_waits(const struct ring *r)
{
    return LOAD(r->avail->idx) != r->next;
}

bool ring_arm(struct ring *r)
{
    if (r->event_idx) {
        STORE(*avail_event(r), r->next);
    } else {
        STORE(r->used->flags, 0);
    }
    /* The guest must see it before we look at what it has added. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return ring_waits(r);
}

void ring_disarm(struct ring *r)
{
    if (!r->event_idx) {
        STORE(r->used->flags, USED_NO_NOTIFY);
    }
}
