/*
 * SPDX-License-Identifier: MIT
 *
 * fault.c: what is asked to go wrong with connections: which of them each fault
 * is about, and when it strikes. Where no fault is set, all that is asked of
 * this file is one number (fault_on()).
 *
 * A fault chooses a connection when that begins, once: what it has chosen so
 * far, and its seed, are all that decides, so a test has the same faults each
 * time that its connections come in the same order.
 */

#include "core.h"

/* SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom ...", 2014). */
static uint64_t draw(struct vsock_fault *f)
{
    uint64_t z = f->random += 0x9e3779b97f4a7c15ull;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static bool chosen(const struct vsock *v, const struct vsock_conn *c,
                   unsigned i)
{
    return v->faults[i].id && (c->faults >> i & 1);
}

/* Whether it is about this connection, which begins, or is there already. */
static void choose(struct vsock *v, struct vsock_conn *c, unsigned i,
                   bool begins)
{
    struct vsock_fault *f = &v->faults[i];
    uint32_t port = c->of_guest ? c->guest_port : c->parent_port;

    if (!f->id || (!f->any_port && f->port != port)) {
        return;
    }
    f->seen += begins;
    if (f->chance < VSOCK_CHANCE_ALWAYS &&
        draw(f) % VSOCK_CHANCE_ALWAYS >= f->chance) {
        return;
    }
    if ((f->nth && (!begins || f->seen != f->nth)) ||
        (f->times && f->struck >= f->times)) {
        return;
    }
    f->struck++;
    c->faults |= 1u << i;
}

void fault_begin(struct vsock *v, struct vsock_conn *c)
{
    for (unsigned i = 0; i < VSOCK_MAX_FAULTS; i++) {
        choose(v, c, i, true);
    }
}

bool fault_refuses(const struct vsock *v, const struct vsock_conn *c)
{
    for (unsigned i = 0; i < VSOCK_MAX_FAULTS; i++) {
        if (chosen(v, c, i) && v->faults[i].kind == VSOCK_FAULT_REFUSE) {
            return true;
        }
    }
    return false;
}

static bool delays(const struct vsock *v, const struct vsock_conn *c)
{
    for (unsigned i = 0; i < VSOCK_MAX_FAULTS; i++) {
        if (chosen(v, c, i) && v->faults[i].kind == VSOCK_FAULT_LATENCY) {
            return true;
        }
    }
    return false;
}

int64_t fault_until(struct vsock *v, const struct vsock_conn *c)
{
    int64_t ms = 0, now = v->now;

    for (unsigned i = 0; i < VSOCK_MAX_FAULTS; i++) {
        struct vsock_fault *f = &v->faults[i];

        if (chosen(v, c, i) && f->kind == VSOCK_FAULT_LATENCY) {
            ms += f->ms + (f->jitter ? draw(f) % (f->jitter + 1) : 0);
        }
    }
    if (ms && v->ops->clock) {
        now = v->ops->clock(v->opaque);
    }
    return ms ? now + ms + 1 : 0; /* never early: now is whole ms */
}

uint32_t fault_room(const struct vsock *v, const struct vsock_conn *c)
{
    uint64_t room = UINT32_MAX;

    for (unsigned i = 0; i < VSOCK_MAX_FAULTS; i++) {
        const struct vsock_fault *f = &v->faults[i];

        if (chosen(v, c, i) && f->kind == VSOCK_FAULT_RESET) {
            uint64_t left = f->after > c->passed ? f->after - c->passed : 0;

            room = left < room ? left : room;
        }
    }
    return room;
}

void fault_strike(struct vsock *v, struct vsock_conn *c)
{
    if (fault_may_strike(c) && !fault_room(v, c)) {
        vsock_note(v, VSOCK_NOTE_FAULT, c, NULL);
        conn_reset(v, c);
    }
}

bool fault_holds(const struct vsock *v, const struct vsock_conn *c)
{
    if (c->out_at > v->now) {
        return true;
    }
    for (unsigned i = 0; i < VSOCK_MAX_FAULTS; i++) {
        if (chosen(v, c, i) && v->faults[i].kind == VSOCK_FAULT_STOP_READING &&
            c->passed >= v->faults[i].after) {
            return true;
        }
    }
    return false;
}

void fault_delay_out(struct vsock *v, struct vsock_conn *c)
{
    if (!c->out_at && !c->buf_len) {
        c->out_at = fault_until(v, c);
    }
    if (c->out_at) {
        conn_due(v, c->out_at);
    }
}

void fault_delay_in(struct vsock *v, struct vsock_conn *c)
{
    if (!c->in_at && !c->readable) {
        c->in_at = fault_until(v, c);
    }
    if (c->in_at) {
        conn_due(v, c->in_at);
    }
}

/* Nothing delays it any more; c may be gone afterwards. */
static void release(struct vsock *v, struct vsock_conn *c)
{
    if (conn_has_data(c)) {
        conn_queue(v, c);
    }
    if (c->buf_len && c->host) {
        conn_flush(v, c);
    }
}

void fault_tick(struct vsock *v, struct vsock_conn *c)
{
    bool in = c->in_at && c->in_at <= v->now;
    bool out = c->out_at && c->out_at <= v->now;

    c->in_at = in ? 0 : c->in_at;
    c->out_at = out ? 0 : c->out_at;
    if (c->in_at) {
        conn_due(v, c->in_at);
    }
    if (c->out_at) {
        conn_due(v, c->out_at);
    }
    if (in || out) {
        release(v, c);
    }
}

/* What can still change for a connection. */
static bool goes_on(const struct vsock_conn *c)
{
    return conn_is_hashed(c) || conn_is_draining(c);
}

uint32_t vsock_fault_add(struct vsock *v, const struct vsock_fault *fault)
{
    for (unsigned i = 0; i < VSOCK_MAX_FAULTS; i++) {
        struct vsock_fault *f = &v->faults[i];

        if (f->id) {
            continue;
        }
        *f = *fault;
        f->id = ++v->last_fault ?: ++v->last_fault;
        f->seen = f->struck = 0;
        f->random = f->seed;
        v->fault_count++;
        for (uint32_t s = 0; s < v->used_slots; s++) {
            struct vsock_conn *c = &v->slots[s];

            c->faults &= ~(1u << i);
            if (c->state == VSOCK_OPEN) {
                choose(v, c, i, false);
                fault_strike(v, c);
            }
        }
        return f->id;
    }
    return 0;
}

unsigned vsock_fault_clear(struct vsock *v, uint32_t id)
{
    unsigned count = 0;

    for (unsigned i = 0; i < VSOCK_MAX_FAULTS; i++) {
        if (v->faults[i].id && (!id || v->faults[i].id == id)) {
            v->faults[i].id = 0;
            count++;
        }
    }
    v->fault_count -= count;
    /* What they held back goes on at once. */
    for (uint32_t s = 0; count && s < v->used_slots; s++) {
        struct vsock_conn *c = &v->slots[s];

        if (goes_on(c) && !delays(v, c)) {
            c->in_at = c->out_at = 0;
            release(v, c);
        }
    }
    return count;
}

const struct vsock_fault *vsock_fault(const struct vsock *v, unsigned i)
{
    return v->faults[i].id ? &v->faults[i] : NULL;
}
