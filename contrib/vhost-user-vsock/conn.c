/*
 * SPDX-License-Identifier: MIT
 *
 * conn.c: the table of connections: where each is found, which list it stands
 * in, when it is due, how much memory it has, and its end. Why any of that
 * happens is vsock.c's business.
 */

#include "core.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

void conn_queue(struct vsock *v, struct vsock_conn *c)
{
    if (c->list == LIST_NONE) {
        TAILQ_INSERT_TAIL(&v->ready, c, link);
        c->list = LIST_READY;
    }
}

void conn_unqueue(struct vsock *v, struct vsock_conn *c)
{
    if (c->list == LIST_READY) {
        TAILQ_REMOVE(&v->ready, c, link);
    } else if (c->list == LIST_LATER) {
        TAILQ_REMOVE(&v->later, c, link);
    }
    c->list = LIST_NONE;
}

void conn_pend(struct vsock *v, struct vsock_conn *c, uint8_t what)
{
    c->pending |= what;
    conn_queue(v, c);
}

void conn_due(struct vsock *v, int64_t when)
{
    if (!v->next_deadline || when < v->next_deadline) {
        v->next_deadline = when;
    }
}

void conn_deadline(struct vsock *v, struct vsock_conn *c, int64_t when)
{
    c->deadline = when;
    if (when) {
        conn_due(v, when);
    }
}

/*
 * Multiply and shift by random keys: whoever does not know them cannot choose
 * ports that fall into one bucket (Dietzfelbinger, "Universal hashing ... via
 * integer arithmetic without primes", 1996).
 */
static uint32_t *bucket(const struct vsock *v, uint32_t cid,
                        uint32_t parent_port, uint32_t guest_port)
{
    const uint64_t *key = v->config.hash_key;
    uint64_t h = key[0] * guest_port + key[1] * parent_port + key[2] * cid;

    return &v->buckets[h >> 32 & v->bucket_mask];
}

struct vsock_conn *conn_lookup(const struct vsock *v, uint64_t cid,
                               uint32_t parent_port, uint32_t guest_port)
{
    uint32_t i = *bucket(v, cid, parent_port, guest_port);

    while (i) {
        struct vsock_conn *c = &v->slots[i - 1];

        if (c->guest_port == guest_port && c->parent_port == parent_port &&
            c->parent_cid == cid) {
            return c;
        }
        i = c->hash_next;
    }
    return NULL;
}

/* Another size for its window; 0 gives it back. */
static void conn_window(struct vsock *v, struct vsock_conn *c, uint32_t size)
{
    v->reserved += size - (size_t)c->window;
    if (c->window > v->small_window) {
        v->extra -= c->window - v->small_window;
    }
    if (size > v->small_window) {
        v->extra += size - v->small_window;
    }
    c->window = size;
}

/* Enters the table, and gets its window. */
void conn_hash(struct vsock *v, struct vsock_conn *c, uint32_t cid,
               uint32_t parent_port, uint32_t guest_port)
{
    uint32_t *b = bucket(v, cid, parent_port, guest_port);
    size_t extra = VSOCK_WINDOW - v->small_window;

    c->parent_cid = cid;
    c->parent_port = parent_port;
    c->guest_port = guest_port;
    c->hash_next = *b;
    *b = c->slot + 1;

    if (extra > v->extra_max - v->extra) {
        extra = 0;
    }
    conn_window(v, c, v->small_window + extra);
}

static void conn_unhash(struct vsock *v, struct vsock_conn *c)
{
    uint32_t *i;

    if (!conn_is_hashed(c)) {
        return;
    }
    i = bucket(v, c->parent_cid, c->parent_port, c->guest_port);
    while (*i != c->slot + 1) {
        i = &v->slots[*i - 1].hash_next;
    }
    *i = c->hash_next;
}

void end_close(struct vsock *v, struct vsock_conn *c)
{
    bool cut = c->buf_len;

    if (cut) {
        vsock_note(v, VSOCK_NOTE_EVICTED, c, NULL);
        c->buf_len = 0;
    }
    if (c->host) {
        v->ops->close(v->opaque, c, cut);
        conn_state(v, c, c->state, false);
    }
}

void conn_free(struct vsock *v, struct vsock_conn *c)
{
    end_close(v, c);
    port_closed(v, c);
    conn_unqueue(v, c);
    conn_unhash(v, c);
    conn_window(v, c, 0);
    free(c->buf);
    c->buf = NULL;
    conn_state(v, c, VSOCK_FREE, false);
    c->gen++;
    v->count--;
    TAILQ_INSERT_HEAD(&v->free, c, link);
}

/*
 * The one to be cut where there is no room for a new connection, of those that
 * only wait for their host end: who took nothing for the longest time.
 */
struct vsock_conn *conn_oldest_drain(const struct vsock *v)
{
    struct vsock_conn *c;

    TAILQ_FOREACH(c, &v->drains, drain)
    {
        if (c->state == VSOCK_DRAIN) {
            return c;
        }
    }
    return NULL;
}

struct vsock_conn *conn_new(struct vsock *v)
{
    struct vsock_conn *c;
    uint32_t slot, gen;

    if (v->count == v->config.max_conns) {
        c = conn_oldest_drain(v);
        if (c) {
            conn_free(v, c);
        }
    }
    c = TAILQ_FIRST(&v->free);
    if (c) {
        TAILQ_REMOVE(&v->free, c, link);
        slot = c->slot;
        gen = c->gen;
        /* All but the array at the end, which counts say is empty. */
        memset(c, 0, offsetof(struct vsock_conn, ends));
        c->slot = slot;
        c->gen = gen;
    } else if (v->used_slots < v->config.max_conns) {
        c = &v->slots[v->used_slots];
        c->slot = v->used_slots++;
    } else {
        return NULL;
    }
    c->fd = -1;
    v->count++;
    return c;
}

/* The host has taken bytes, or may begin to: it has time again. */
void conn_drain_renew(struct vsock *v, struct vsock_conn *c)
{
    TAILQ_REMOVE(&v->drains, c, drain);
    TAILQ_INSERT_TAIL(&v->drains, c, drain);
    conn_deadline(v, c, v->finishing ? v->now + VSOCK_MS_DRAIN : 0);
}

/*
 * From here on nothing is added to what the host has still to take, however
 * long it takes. Memory is kept for no more than that.
 */
static void drain_begin(struct vsock *v, struct vsock_conn *c)
{
    uint32_t first = c->window - c->buf_head;
    uint8_t *rest = malloc(c->buf_len);

    if (rest) {
        first = first < c->buf_len ? first : c->buf_len;
        memcpy(rest, c->buf + c->buf_head, first);
        memcpy(rest + first, c->buf, c->buf_len - first);
        free(c->buf);
        c->buf = rest;
        c->buf_head = 0;
        conn_window(v, c, c->buf_len);
    }
    conn_drain_renew(v, c);
}

/* The guest and we have forgotten it; the host gets what it has not taken. */
void conn_forget(struct vsock *v, struct vsock_conn *c)
{
    bool drained = conn_is_draining(c);

    if (!c->host || !c->buf_len) {
        conn_free(v, c);
        return;
    }
    conn_unqueue(v, c);
    conn_unhash(v, c);
    c->pending = 0;
    conn_state(v, c, VSOCK_DRAIN, true);
    if (!drained) {
        drain_begin(v, c);
    }
}

/* Ends it by an RST to the guest. */
void conn_reset(struct vsock *v, struct vsock_conn *c)
{
    if (c->state == VSOCK_RESET) {
        return;
    }
    if (c->state == VSOCK_WAITING) {
        conn_free(v, c); /* the guest does not know it */
        return;
    }
    c->pending = 0;
    conn_deadline(v, c, 0);
    if (c->buf_len) {
        conn_state(v, c, VSOCK_RESET, c->host);
        drain_begin(v, c);
    } else {
        end_close(v, c);
        conn_state(v, c, VSOCK_RESET, false);
    }
    conn_unqueue(v, c);
    conn_queue(v, c);
}
