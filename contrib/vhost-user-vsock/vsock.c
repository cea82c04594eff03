/*
 * SPDX-License-Identifier: MIT
 *
 * vsock.c: the connection core. Packets and events in, packets and calls of
 * struct vsock_ops out; no system call, no clock, no ring, no descriptor.
 *
 * The protocol in a minute (virtio 1.2, section 5.10.6)
 * -----------------------------------------------------
 * A connection is the tuple (guest port, parent CID, parent port). Either side
 * opens it with REQUEST, which is answered by RESPONSE or RST. RW carries
 * bytes. SHUTDOWN says what its sender will not do any more: flag 1 receive,
 * flag 2 send; the flags add up. Who has got SHUTDOWN with both flags answers
 * RST once it has nothing left to read, and RST ends a connection at any time
 * and for any reason. An RST is never answered.
 *
 * Flow control is by credit. Every packet carries buf_alloc, the size of the
 * sender's receive buffer, and fwd_cnt, the count of bytes it has taken out of
 * that buffer since the start; both are valid whatever the packet is about.
 * What is in flight is (bytes sent - peer's fwd_cnt), in 32 bits that wrap, and
 * it may not exceed the peer's buf_alloc. CREDIT_UPDATE carries the two numbers
 * alone; CREDIT_REQUEST asks for one.
 *
 * How it is done here
 * -------------------
 * To the host: bytes go from guest memory straight to the socket; what the
 * socket does not take waits in the connection's buffer, of the size that we
 * advertise, so a guest that keeps to its credit cannot overflow it and one
 * that does not is cut. fwd_cnt counts bytes that the socket took.
 *
 * To the guest: nothing is queued. A connection that has something to say
 * stands in a list; when the guest has a buffer, the first in the list composes
 * its packet right there, and data goes from the socket straight into the
 * buffers. Control packets are bits in the connection: any number of
 * provocations costs no memory. Only RSTs that belong to no connection need a
 * queue, and when it is full vsock_tx_ready() stops the guest.
 *
 * When credit runs out, one CREDIT_REQUEST goes out and then silence until the
 * peer's numbers have changed: asking again on each answer would be a loop
 * between host and guest. There is one exception: a connection stopped by the
 * number of packets (VSOCK_MAX_PACKETS) asks again at growing intervals, since
 * Linux before 6.8 does not tell by itself that it has consumed a few
 * small packets, and half way to the limit it asks once in advance so that it
 * seldom stops.
 */

#include "vsock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Control packets that wait for an RX buffer (vsock_conn.pending). */
#define P_REQUEST 1
#define P_RESPONSE 2
#define P_SHUTDOWN 4
#define P_CREDIT 8
#define P_ASK 16

/* Which list a connection stands in (vsock_conn.list). */
#define L_NONE 0
#define L_READY 1
#define L_LATER 2

#define FIRST_PORT (1u << 30)

TAILQ_HEAD(conn_list, vsock_conn);

struct stray {
    uint64_t src_cid;
    uint64_t dst_cid;
    uint32_t src_port;
    uint32_t dst_port;
    uint16_t type;
};

struct vsock {
    struct vsock_config config;
    const struct vsock_ops *ops;
    void *opaque;
    int64_t now;
    int64_t next_deadline;      /* at or before the earliest; 0: none */
    bool driver_seen;

    struct vsock_conn *slots;
    uint32_t used_slots;        /* slots above were never used */
    unsigned count;
    unsigned clients;           /* VSOCK_CLIENT and VSOCK_REQUESTED */
    unsigned draining;          /* not in the table, or RST to be sent */
    struct conn_list free;
    struct conn_list ready;
    struct conn_list later;
    struct conn_list drains;    /* draining, who took bytes last at the end */
    bool finishing;             /* drains have deadlines */

    uint32_t *buckets;          /* slot + 1; 0: empty */
    uint32_t bucket_mask;

    uint32_t small_window;      /* what every connection is sure of */
    size_t extra;               /* bytes granted beyond that ... */
    size_t extra_max;           /* ... and how many may be */
    size_t reserved;
    uint32_t next_port;

    struct stray strays[VSOCK_MAX_STRAYS];
    unsigned stray_head;
    unsigned stray_count;

    struct vsock_stats stats;
};

static const struct {
    const char *name;
    const char *text;
} notes[VSOCK_NOTES] = {
    [VSOCK_NOTE_BAD_SOURCE] = {
        "bad-source", "packet with a foreign source CID" },
    [VSOCK_NOTE_BAD_LENGTH] = {
        "bad-length", "packet with an impossible length" },
    [VSOCK_NOTE_LOST] = {
        "lost", "packet that cannot be read; its connection is reset, "
        "whichever it is" },
    [VSOCK_NOTE_BAD_TYPE] = {
        "bad-type", "packet that is not of a stream socket" },
    [VSOCK_NOTE_BAD_PORT] = {
        "bad-port", "packet with an invalid port" },
    [VSOCK_NOTE_NOT_SERVED] = {
        "not-served", "packet to a CID that is not the parent's" },
    [VSOCK_NOTE_UNKNOWN_TUPLE] = {
        "unknown-tuple", "packet for an unknown connection" },
    [VSOCK_NOTE_TUPLE_REUSED] = {
        "tuple-reused", "second request on an open connection" },
    [VSOCK_NOTE_VIOLATION] = {
        "violation", "packet that its connection does not allow" },
    [VSOCK_NOTE_OVERRUN] = {
        "overrun", "guest sent more than its credit" },
    [VSOCK_NOTE_NO_LISTENER] = {
        "no-listener", "nobody serves the parent's port" },
    [VSOCK_NOTE_TABLE_FULL] = {
        "table-full", "connection table full" },
    [VSOCK_NOTE_NO_MEMORY] = {
        "no-memory", "no memory for a connection's buffer" },
    [VSOCK_NOTE_BACKLOG] = {
        "backlog", "host listener does not accept" },
    [VSOCK_NOTE_BAD_LINE] = {
        "bad-line", "client sent no valid line, or its port is taken" },
    [VSOCK_NOTE_GUEST_REFUSED] = {
        "guest-refused", "guest refused a client's connection" },
    [VSOCK_NOTE_GUEST_SILENT] = {
        "guest-silent", "guest did not answer in time" },
    [VSOCK_NOTE_CLIENT_GONE] = {
        "client-gone", "client left before it was connected" },
    [VSOCK_NOTE_HOST_ERROR] = {
        "host-error", "host end failed" },
    [VSOCK_NOTE_UNDELIVERED] = {
        "undelivered", "host end left bytes of the guest untaken" },
    [VSOCK_NOTE_EVICTED] = {
        "evicted", "host end is cut before it has the guest's last bytes" },
};

const char *vsock_note_name(enum vsock_note note)
{
    return notes[note].name;
}

const char *vsock_note_text(enum vsock_note note)
{
    return notes[note].text;
}

static void note(struct vsock *v, enum vsock_note what,
                 const struct vsock_conn *c, const struct vsock_hdr *h)
{
    v->stats.notes[what]++;
    v->ops->note(v->opaque, what, c, h);
}

/* Header bytes. */

static uint64_t get(const uint8_t *p, unsigned n)
{
    uint64_t x = 0;

    while (n--) {
        x = x << 8 | p[n];
    }
    return x;
}

static void put(uint8_t *p, unsigned n, uint64_t x)
{
    for (; n--; x >>= 8) {
        *p++ = x & 0xff;
    }
}

void vsock_hdr_decode(struct vsock_hdr *h, const uint8_t raw[VSOCK_HDR_SIZE])
{
    h->src_cid = get(raw, 8);
    h->dst_cid = get(raw + 8, 8);
    h->src_port = get(raw + 16, 4);
    h->dst_port = get(raw + 20, 4);
    h->len = get(raw + 24, 4);
    h->type = get(raw + 28, 2);
    h->op = get(raw + 30, 2);
    h->flags = get(raw + 32, 4);
    h->buf_alloc = get(raw + 36, 4);
    h->fwd_cnt = get(raw + 40, 4);
}

void vsock_hdr_encode(const struct vsock_hdr *h, uint8_t raw[VSOCK_HDR_SIZE])
{
    put(raw, 8, h->src_cid);
    put(raw + 8, 8, h->dst_cid);
    put(raw + 16, 4, h->src_port);
    put(raw + 20, 4, h->dst_port);
    put(raw + 24, 4, h->len);
    put(raw + 28, 2, h->type);
    put(raw + 30, 2, h->op);
    put(raw + 32, 4, h->flags);
    put(raw + 36, 4, h->buf_alloc);
    put(raw + 40, 4, h->fwd_cnt);
}

/* As far as buf agrees with the word, any case; -1: it does not. */
static ssize_t parse_word(const char *buf, size_t len, const char *word)
{
    size_t i;

    for (i = 0; i < len && word[i]; i++) {
        if ((buf[i] & ~0x20) != word[i]) {
            return -1;
        }
    }
    return i;
}

/* Spaces and a number below PORT_ANY; the index behind it, or -1. */
static ssize_t parse_number(const char *buf, size_t len, size_t i,
                            uint32_t *number)
{
    uint64_t value = 0;
    size_t start = i, digits;

    while (i < len && buf[i] == ' ') {
        i++;
    }
    if (i < len && i == start) {
        return -1;
    }
    for (digits = i; i < len && buf[i] >= '0' && buf[i] <= '9'; i++) {
        value = value * 10 + (buf[i] - '0');
        if (value >= VSOCK_PORT_ANY) {
            return -1;
        }
    }
    if (i < len && i == digits) {
        return -1;
    }
    *number = value;
    return i;
}

int vsock_parse_line(const char *buf, size_t len, uint32_t *port,
                     int64_t *from, uint32_t *ms)
{
    ssize_t i = parse_word(buf, len, "CONNECT");
    bool open = i < 0;
    uint32_t second;

    *from = -1;
    if (open) {
        i = parse_word(buf, len, "OPEN");
    }
    if (i >= 0) {
        i = parse_number(buf, len, i, port);
    }
    if (i >= 0 && open) {
        i = parse_number(buf, len, i, &second);
        *from = second;
    }
    if (i >= 0 && open) {
        i = parse_number(buf, len, i, ms);
    }
    if (i < 0) {
        return -1;
    }
    if ((size_t)i < len && buf[i] == '\r') {
        i++;
    }
    if ((size_t)i == len) {
        return 0;
    }
    return buf[i] == '\n' ? i + 1 : -1;
}

/* Lists, table, deadlines. */

static void conn_queue(struct vsock *v, struct vsock_conn *c)
{
    if (c->list == L_NONE) {
        TAILQ_INSERT_TAIL(&v->ready, c, link);
        c->list = L_READY;
    }
}

static void conn_unqueue(struct vsock *v, struct vsock_conn *c)
{
    if (c->list == L_READY) {
        TAILQ_REMOVE(&v->ready, c, link);
    } else if (c->list == L_LATER) {
        TAILQ_REMOVE(&v->later, c, link);
    }
    c->list = L_NONE;
}

static void conn_deadline(struct vsock *v, struct vsock_conn *c, int64_t when)
{
    c->deadline = when;
    if (when && (!v->next_deadline || when < v->next_deadline)) {
        v->next_deadline = when;
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

static struct vsock_conn *lookup(const struct vsock *v, uint64_t cid,
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

static bool is_client(const struct vsock_conn *c)
{
    return c->state == VSOCK_CLIENT || c->state == VSOCK_REQUESTED;
}

static bool is_draining(const struct vsock_conn *c)
{
    return c->host && (c->state == VSOCK_RESET || c->state == VSOCK_DRAIN);
}

/* All changes of state and host pass here, so that the counts are right. */
static void conn_state(struct vsock *v, struct vsock_conn *c,
                       enum vsock_state state, bool host)
{
    bool drained = is_draining(c);

    v->clients -= is_client(c);
    c->state = state;
    c->host = host;
    v->clients += is_client(c);
    if (drained && !is_draining(c)) {
        TAILQ_REMOVE(&v->drains, c, drain);
        v->draining--;
    } else if (!drained && is_draining(c)) {
        TAILQ_INSERT_TAIL(&v->drains, c, drain);
        v->draining++;
    }
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
static void conn_hash(struct vsock *v, struct vsock_conn *c, uint32_t cid,
                      uint32_t parent_port, uint32_t guest_port)
{
    uint32_t *b = bucket(v, cid, parent_port, guest_port);
    size_t extra = VSOCK_WINDOW - v->small_window;

    c->parent_cid = cid;
    c->parent_port = parent_port;
    c->guest_port = guest_port;
    c->hashed = true;
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

    if (!c->hashed) {
        return;
    }
    i = bucket(v, c->parent_cid, c->parent_port, c->guest_port);
    while (*i != c->slot + 1) {
        i = &v->slots[*i - 1].hash_next;
    }
    *i = c->hash_next;
    c->hashed = false;
}

static void host_close(struct vsock *v, struct vsock_conn *c)
{
    bool cut = c->buf_len;

    if (cut) {
        note(v, VSOCK_NOTE_EVICTED, c, NULL);
        c->buf_len = 0;
    }
    if (c->host) {
        v->ops->close(v->opaque, c, cut);
        conn_state(v, c, c->state, false);
    }
}

static void conn_free(struct vsock *v, struct vsock_conn *c)
{
    host_close(v, c);
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
static struct vsock_conn *oldest_drain(const struct vsock *v)
{
    struct vsock_conn *c;

    TAILQ_FOREACH(c, &v->drains, drain) {
        if (c->state == VSOCK_DRAIN) {
            return c;
        }
    }
    return NULL;
}

static struct vsock_conn *conn_new(struct vsock *v)
{
    struct vsock_conn *c;
    uint32_t slot, gen;

    if (v->count == v->config.max_conns) {
        c = oldest_drain(v);
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
static void drain_renew(struct vsock *v, struct vsock_conn *c)
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
    drain_renew(v, c);
}

/* The guest and we have forgotten it; the host gets what it has not taken. */
static void conn_forget(struct vsock *v, struct vsock_conn *c)
{
    bool drained = is_draining(c);

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
static void conn_reset(struct vsock *v, struct vsock_conn *c)
{
    if (c->state == VSOCK_RESET) {
        return;
    }
    if (c->state == VSOCK_REQUESTED && !c->sent) {
        conn_free(v, c);
        return;
    }
    c->pending = 0;
    conn_deadline(v, c, 0);
    if (c->buf_len) {
        conn_state(v, c, VSOCK_RESET, c->host);
        drain_begin(v, c);
    } else {
        host_close(v, c);
        conn_state(v, c, VSOCK_RESET, false);
    }
    conn_unqueue(v, c);
    conn_queue(v, c);
}

static void conn_pend(struct vsock *v, struct vsock_conn *c, uint8_t what)
{
    c->pending |= what;
    conn_queue(v, c);
}

/* Guest to host. */

/* n more bytes have left for the host, or never will have to. */
static void conn_consumed(struct vsock *v, struct vsock_conn *c, uint32_t n)
{
    c->fwd_cnt += n;
    if (c->state == VSOCK_OPEN &&
        c->fwd_cnt - c->last_fwd >= c->window / 4) {
        conn_pend(v, c, P_CREDIT);
    }
}

/*
 * The host end takes no more. What it sent before is still read and passed
 * on; the guest learns now that nobody listens.
 */
static void host_deaf(struct vsock *v, struct vsock_conn *c, int err)
{
    conn_consumed(v, c, c->buf_len);
    c->buf_len = 0;
    c->aborted |= err == -ECONNRESET;
    c->host_off |= VSOCK_OFF_RECV;
    c->readable = true;
    conn_pend(v, c, P_SHUTDOWN);
}

/* Writes once; what is taken is counted as consumed. */
static ssize_t host_send(struct vsock *v, struct vsock_conn *c,
                         const struct iovec *iov, unsigned niov)
{
    ssize_t r = v->ops->send(v->opaque, c, iov, niov);

    if (r > 0) {
        v->stats.bytes_to_host += r;
        conn_consumed(v, c, r);
    } else if (r == 0 || r == -EAGAIN) {
        c->writable = false;
        r = -EAGAIN;
    }
    if (c->answer) {
        c->answer = false;
        c->readable = true;
        conn_queue(v, c);
    }
    return r;
}

/* The guest will send no more, and all it sent has left: say so. */
static void host_finish(struct vsock *v, struct vsock_conn *c)
{
    if (c->state == VSOCK_OPEN && !c->buf_len &&
        (c->guest_off & VSOCK_OFF_SEND)) {
        v->ops->shutdown(v->opaque, c, VSOCK_OFF_SEND);
    }
}

static void conn_flush(struct vsock *v, struct vsock_conn *c)
{
    bool had = c->buf_len;

    while (c->buf_len && c->writable) {
        uint32_t first = c->window - c->buf_head;
        struct iovec iov[2] = {
            { c->buf + c->buf_head, first < c->buf_len ? first : c->buf_len },
            { c->buf, first < c->buf_len ? c->buf_len - first : 0 },
        };
        ssize_t r = host_send(v, c, iov, 1 + !!iov[1].iov_len);

        if (r >= 0) {
            c->buf_len -= r;
            c->buf_head = c->buf_len ? (c->buf_head + r) % c->window : 0;
            if (is_draining(c)) {
                drain_renew(v, c);
            }
        } else if (r != -EAGAIN) {
            if (c->state == VSOCK_OPEN) {
                host_deaf(v, c, r);
            } else {
                note(v, VSOCK_NOTE_UNDELIVERED, c, NULL);
                c->buf_len = 0;
                host_close(v, c);
            }
        }
    }
    if (c->buf_len) {
        return;
    }
    if (c->state == VSOCK_DRAIN) {
        conn_free(v, c);
    } else if (c->state == VSOCK_RESET) {
        host_close(v, c);
        conn_deadline(v, c, 0);
    } else if (had) {
        host_finish(v, c);
    }
}

/* Into the buffer, but for the first skip bytes; false: no memory. */
static bool conn_keep(struct vsock_conn *c, const struct iovec *iov,
                      unsigned niov, uint32_t skip)
{
    if (!c->buf) {
        c->buf = malloc(c->window);
        if (!c->buf) {
            return false;
        }
    }
    for (unsigned i = 0; i < niov; i++) {
        const uint8_t *p = iov[i].iov_base;
        uint32_t n = iov[i].iov_len;
        uint32_t at, first;

        if (skip >= n) {
            skip -= n;
            continue;
        }
        p += skip;
        n -= skip;
        skip = 0;
        at = (c->buf_head + c->buf_len) % c->window;
        first = c->window - at < n ? c->window - at : n;
        memcpy(c->buf + at, p, first);
        memcpy(c->buf, p + first, n - first);
        c->buf_len += n;
    }
    return true;
}

static void conn_data_in(struct vsock *v, struct vsock_conn *c,
                         const struct vsock_hdr *h,
                         const struct iovec *iov, unsigned niov)
{
    ssize_t r = 0;

    if ((c->guest_off & VSOCK_OFF_SEND) ||
        (c->state != VSOCK_OPEN && c->state != VSOCK_CLOSING)) {
        note(v, VSOCK_NOTE_VIOLATION, c, h);
        conn_reset(v, c);
        return;
    }
    if (!h->len) {
        return;
    }
    if (c->state == VSOCK_CLOSING || (c->host_off & VSOCK_OFF_RECV)) {
        conn_consumed(v, c, h->len);
        return;
    }
    if (h->len > c->window - c->buf_len) {
        note(v, VSOCK_NOTE_OVERRUN, c, h);
        conn_reset(v, c);
        return;
    }
    if (!c->buf_len && c->writable) {
        r = host_send(v, c, iov, niov);
        if (r < 0 && r != -EAGAIN) {
            conn_consumed(v, c, h->len);
            host_deaf(v, c, r);
            return;
        }
        r = r < 0 ? 0 : r;
    }
    if (r < h->len) {
        if (!conn_keep(c, iov, niov, r)) {
            note(v, VSOCK_NOTE_NO_MEMORY, c, h);
            conn_reset(v, c);
            return;
        }
        /* Until the socket says no: only then it tells when it has room. */
        conn_flush(v, c);
    }
}

/* Packets from the guest. */

static void stray_rst(struct vsock *v, const struct vsock_hdr *h)
{
    struct stray *s;

    if (h->op == VSOCK_OP_RST || v->stray_count == VSOCK_MAX_STRAYS) {
        return;
    }
    s = &v->strays[(v->stray_head + v->stray_count++) % VSOCK_MAX_STRAYS];
    s->src_cid = h->dst_cid;
    s->src_port = h->dst_port;
    s->dst_cid = h->src_cid;
    s->dst_port = h->src_port;
    s->type = h->type;
}

static void conn_open(struct vsock *v, struct vsock_conn *c)
{
    conn_state(v, c, VSOCK_OPEN, true);
    conn_deadline(v, c, 0);
    c->writable = true;
    v->stats.guest_opened++;
    conn_pend(v, c, P_RESPONSE);
}

/* The host end is not connected yet; vsock_opened() will tell. */
static void conn_opening(struct vsock *v, struct vsock_conn *c)
{
    conn_state(v, c, VSOCK_OPENING, true);
    conn_deadline(v, c, v->now + (c->open_ms ?: VSOCK_MS_OPEN));
}

/* One try to reach the host end; true unless it is to be refused. */
static bool conn_try(struct vsock *v, struct vsock_conn *c)
{
    int r = v->ops->open(v->opaque, c);

    if (r == 0) {
        conn_open(v, c);
    } else if (r == -EAGAIN && v->now < c->give_up) {
        conn_state(v, c, VSOCK_OPENING, false);
        conn_deadline(v, c, v->now + VSOCK_MS_RETRY);
    } else if (r == -EINPROGRESS) {
        conn_opening(v, c);
    } else {
        note(v, r == -EAGAIN ? VSOCK_NOTE_BACKLOG : VSOCK_NOTE_NO_LISTENER, c,
             NULL);
        return false;
    }
    return true;
}

static void guest_open(struct vsock *v, const struct vsock_hdr *h)
{
    struct vsock_conn *c = conn_new(v);

    if (!c) {
        note(v, VSOCK_NOTE_TABLE_FULL, NULL, h);
        stray_rst(v, h);
        return;
    }
    conn_hash(v, c, h->dst_cid, h->dst_port, h->src_port);
    c->peer_buf_alloc = h->buf_alloc;
    c->peer_fwd_cnt = h->fwd_cnt;
    c->give_up = v->now + VSOCK_MS_BACKLOG;
    if (!conn_try(v, c)) {
        conn_free(v, c);
        stray_rst(v, h);
    }
}

static unsigned packet_limit(const struct vsock_conn *c)
{
    uint32_t n = c->peer_buf_alloc / VSOCK_PACKET_COST;

    n = n < 2 ? 2 : n;
    return n < VSOCK_MAX_PACKETS ? n : VSOCK_MAX_PACKETS;
}

static void conn_credit(struct vsock *v, struct vsock_conn *c,
                        const struct vsock_hdr *h)
{
    if (c->peer_buf_alloc == h->buf_alloc && c->peer_fwd_cnt == h->fwd_cnt) {
        return;
    }
    c->peer_buf_alloc = h->buf_alloc;
    c->peer_fwd_cnt = h->fwd_cnt;
    while (c->ends_count &&
           (int32_t)(c->peer_fwd_cnt - c->ends[c->ends_head]) >= 0) {
        c->ends_head = (c->ends_head + 1) % VSOCK_MAX_PACKETS;
        c->ends_count--;
    }
    if (c->ends_count < packet_limit(c) / 2) {
        c->asked_half = false;
    }
    if (c->stalled) {
        c->stalled = false;
        if (c->packet_stall) {
            c->packet_stall = false;
            conn_deadline(v, c, 0);
        }
        conn_queue(v, c);
    }
}

/* Take what an OPEN has behind it, which tells the client that it may write. */
static bool client_skip(struct vsock *v, struct vsock_conn *c)
{
    char unused[16384];

    while (c->skip) {
        struct iovec iov = {
            unused, c->skip < sizeof(unused) ? c->skip : sizeof(unused)
        };
        ssize_t r = v->ops->recv(v->opaque, c, &iov, 1);

        if (r <= 0) {
            return false;
        }
        c->skip -= r;
    }
    return true;
}

static void guest_answered(struct vsock *v, struct vsock_conn *c,
                           const struct vsock_hdr *h)
{
    char line[32];
    struct iovec iov = { line, 0 };

    if (c->state != VSOCK_REQUESTED || !c->sent) {
        note(v, VSOCK_NOTE_VIOLATION, c, h);
        conn_reset(v, c);
        return;
    }
    iov.iov_len = snprintf(line, sizeof(line), "OK %u\n", c->parent_port);
    if (!c->silent &&
        v->ops->send(v->opaque, c, &iov, 1) != (ssize_t)iov.iov_len) {
        note(v, VSOCK_NOTE_CLIENT_GONE, c, h);
        conn_reset(v, c);
        return;
    }
    if (!client_skip(v, c)) {
        note(v, VSOCK_NOTE_HOST_ERROR, c, h);
        conn_reset(v, c);
        return;
    }
    v->stats.host_opened++;
    conn_state(v, c, VSOCK_OPEN, true);
    conn_deadline(v, c, 0);
    c->writable = true;
    c->readable = true;
    conn_queue(v, c);
}

static void guest_shutdown(struct vsock *v, struct vsock_conn *c,
                           const struct vsock_hdr *h)
{
    uint8_t fresh = h->flags & VSOCK_OFF_BOTH & ~c->guest_off;

    if (c->state != VSOCK_OPEN && c->state != VSOCK_CLOSING) {
        note(v, VSOCK_NOTE_VIOLATION, c, h);
        conn_reset(v, c);
        return;
    }
    c->guest_off |= fresh;
    if (c->guest_off == VSOCK_OFF_BOTH) {
        /* Closed. Its bytes are ours to deliver; the guest need not wait. */
        conn_reset(v, c);
    } else if (c->state == VSOCK_OPEN && (fresh & VSOCK_OFF_RECV)) {
        c->readable = false;
        v->ops->shutdown(v->opaque, c, VSOCK_OFF_RECV);
    } else if (c->state == VSOCK_OPEN && (fresh & VSOCK_OFF_SEND)) {
        host_finish(v, c);
    }
}

static void conn_packet(struct vsock *v, struct vsock_conn *c,
                        const struct vsock_hdr *h,
                        const struct iovec *iov, unsigned niov)
{
    if (h->op == VSOCK_OP_RST) {
        if (c->state == VSOCK_REQUESTED && !c->sent) {
            /* It has not been told of this one: meant for an older one. */
            return;
        }
        if (c->state == VSOCK_REQUESTED) {
            note(v, VSOCK_NOTE_GUEST_REFUSED, c, h);
        }
        conn_forget(v, c);
        return;
    }
    if (c->state == VSOCK_RESET) {
        return;
    }
    if (h->op == VSOCK_OP_REQUEST) {
        note(v, VSOCK_NOTE_TUPLE_REUSED, c, h);
        conn_reset(v, c);
        return;
    }
    conn_credit(v, c, h);
    switch (h->op) {
    case VSOCK_OP_RESPONSE:
        guest_answered(v, c, h);
        break;
    case VSOCK_OP_RW:
        conn_data_in(v, c, h, iov, niov);
        break;
    case VSOCK_OP_SHUTDOWN:
        guest_shutdown(v, c, h);
        break;
    case VSOCK_OP_CREDIT_REQUEST:
        if (c->state == VSOCK_OPEN) {
            conn_pend(v, c, P_CREDIT);
        }
        break;
    case VSOCK_OP_CREDIT_UPDATE:
        break;
    default:
        note(v, VSOCK_NOTE_VIOLATION, c, h);
        conn_reset(v, c);
    }
}

/* Shortens the array to len bytes; returns the number of pieces. */
static unsigned iov_limit(struct iovec *iov, unsigned niov, size_t len)
{
    unsigned i;

    for (i = 0; i < niov && len; i++) {
        if (iov[i].iov_len > len) {
            iov[i].iov_len = len;
        }
        len -= iov[i].iov_len;
    }
    return i;
}

static bool is_served(const struct vsock *v, uint64_t cid)
{
    return cid == VSOCK_CID_PARENT ||
           (cid == VSOCK_CID_HOST && v->config.serve_cid2);
}

void vsock_tx(struct vsock *v, const uint8_t raw[VSOCK_HDR_SIZE],
              struct iovec *iov, unsigned niov, size_t room)
{
    struct vsock_hdr h;
    struct vsock_conn *c;

    v->stats.tx_packets++;
    vsock_hdr_decode(&h, raw);
    if (h.src_cid != v->config.guest_cid) {
        note(v, VSOCK_NOTE_BAD_SOURCE, NULL, &h);
        return;
    }
    if (!is_served(v, h.dst_cid)) {
        note(v, VSOCK_NOTE_NOT_SERVED, NULL, &h);
        stray_rst(v, &h);
        return;
    }
    if (h.type != VSOCK_TYPE_STREAM) {
        note(v, VSOCK_NOTE_BAD_TYPE, NULL, &h);
        stray_rst(v, &h);
        return;
    }
    if (h.src_port == VSOCK_PORT_ANY || h.dst_port == VSOCK_PORT_ANY) {
        note(v, VSOCK_NOTE_BAD_PORT, NULL, &h);
        stray_rst(v, &h);
        return;
    }
    c = lookup(v, h.dst_cid, h.dst_port, h.src_port);
    if (h.len > (h.op == VSOCK_OP_RW ? VSOCK_MAX_PAYLOAD : 0) ||
        h.len > room) {
        note(v, VSOCK_NOTE_BAD_LENGTH, c, &h);
        if (!c) {
            stray_rst(v, &h);
        } else if (h.op == VSOCK_OP_RST) {
            conn_forget(v, c);
        } else {
            conn_reset(v, c);
        }
        return;
    }
    if (c) {
        conn_packet(v, c, &h, iov, iov_limit(iov, niov, h.len));
    } else if (h.op == VSOCK_OP_REQUEST) {
        guest_open(v, &h);
    } else if (h.op != VSOCK_OP_RST) {
        note(v, VSOCK_NOTE_UNKNOWN_TUPLE, NULL, &h);
        stray_rst(v, &h);
    }
}

void vsock_tx_lost(struct vsock *v)
{
    note(v, VSOCK_NOTE_LOST, NULL, NULL);
    for (uint32_t i = 0; i < v->used_slots; i++) {
        struct vsock_conn *c = &v->slots[i];

        if (c->state == VSOCK_OPEN && !(c->guest_off & VSOCK_OFF_SEND)) {
            conn_reset(v, c);
        }
    }
}

bool vsock_tx_ready(const struct vsock *v)
{
    return v->stray_count < VSOCK_MAX_STRAYS;
}

/* Packets to the guest. */

static void buf_put_hdr(struct vsock *v, struct vsock_buf *b,
                        const struct vsock_hdr *h)
{
    uint8_t raw[VSOCK_HDR_SIZE];
    size_t done = 0;

    vsock_hdr_encode(h, raw);
    for (unsigned i = 0; done < sizeof(raw); i++) {
        size_t n = b->iov[i].iov_len;

        n = n < sizeof(raw) - done ? n : sizeof(raw) - done;
        memcpy(b->iov[i].iov_base, raw + done, n);
        done += n;
    }
    b->used = VSOCK_HDR_SIZE + h->len;
    v->stats.rx_packets++;
}

static void conn_put(struct vsock *v, struct vsock_conn *c,
                     struct vsock_buf *b, enum vsock_op op, uint32_t flags,
                     uint32_t len)
{
    struct vsock_hdr h = {
        .src_cid = c->parent_cid,
        .dst_cid = v->config.guest_cid,
        .src_port = c->parent_port,
        .dst_port = c->guest_port,
        .len = len,
        .type = VSOCK_TYPE_STREAM,
        .op = op,
        .flags = flags,
        .buf_alloc = c->window,
        .fwd_cnt = c->fwd_cnt,
    };

    c->last_fwd = c->fwd_cnt;
    c->pending &= ~P_CREDIT;
    buf_put_hdr(v, b, &h);
}

static void conn_stall(struct vsock *v, struct vsock_conn *c, bool packets)
{
    c->stalled = true;
    if (!c->asked) {
        c->asked = true;
        c->ask_ms = VSOCK_MS_ASK;
        c->pending |= P_ASK;
    }
    if (packets) {
        c->packet_stall = true;
        conn_deadline(v, c, v->now + c->ask_ms);
    }
}

/* The host end will send no more. */
static void host_eof(struct vsock_conn *c)
{
    c->readable = false;
    c->host_off |= VSOCK_OFF_SEND;
    if (c->hup) {
        c->host_off = VSOCK_OFF_BOTH;
    }
    c->pending |= P_SHUTDOWN;
}

/*
 * Reads from the host end straight into as many buffers as credit, the packet
 * limit and the quantum allow; returns the number of packets made.
 */
static unsigned conn_data_out(struct vsock *v, struct vsock_conn *c,
                              struct vsock_buf *bufs, unsigned n, bool *maybe)
{
    struct iovec iov[VSOCK_MAX_BURST];
    unsigned niov = 0, count = 0, limit = packet_limit(c);
    uint32_t flight = c->tx_cnt - c->peer_fwd_cnt;
    uint32_t credit = flight < c->peer_buf_alloc ? c->peer_buf_alloc - flight
                                                 : 0;
    uint32_t total = 0;
    ssize_t got;

    if (c->ends_count >= limit) {
        conn_stall(v, c, true);
        return 0;
    }
    for (; count < n && c->ends_count + count < limit; count++) {
        struct vsock_buf *b = &bufs[count];
        size_t skip = VSOCK_HDR_SIZE;
        uint32_t room = b->len - skip < VSOCK_MAX_PAYLOAD ?
                        b->len - skip : VSOCK_MAX_PAYLOAD;
        uint32_t left = credit - total;
        unsigned i, first = niov;

        if (count && room > VSOCK_QUANTUM - total) {
            break;
        }
        if (left < room) {
            /* No crumbs while there are bytes under way. */
            if (!left || ((flight || total) && left < c->peer_buf_alloc / 4)) {
                break;
            }
            room = left;
        }
        b->used = room;
        for (i = 0; room && i < b->niov && niov < VSOCK_MAX_BURST; i++) {
            size_t len = b->iov[i].iov_len;

            if (skip >= len) {
                skip -= len;
                continue;
            }
            iov[niov].iov_base = (uint8_t *)b->iov[i].iov_base + skip;
            iov[niov].iov_len = len - skip < room ? len - skip : room;
            room -= iov[niov++].iov_len;
            skip = 0;
        }
        if (room && first) {
            niov = first;       /* no place for all its pieces */
            break;
        }
        b->used -= room;
        total += b->used;
    }
    if (!count) {
        conn_stall(v, c, false);
        return 0;
    }

    got = v->ops->recv(v->opaque, c, iov, niov);
    if (got <= 0) {
        if (got == 0) {
            host_eof(c);
        }
        if (got == -EAGAIN) {
            c->readable = false;
        } else if (got < 0 || c->aborted) {
            conn_reset(v, c);
        }
        return 0;
    }
    *maybe = got < total;
    v->stats.bytes_to_guest += got;
    c->asked = false;
    for (count = 0; got > 0; count++) {
        uint32_t len = bufs[count].used;

        len = len < got ? len : got;
        got -= len;
        c->tx_cnt += len;
        c->ends[(c->ends_head + c->ends_count++) % VSOCK_MAX_PACKETS] =
            c->tx_cnt;
        conn_put(v, c, &bufs[count], VSOCK_OP_RW, 0, len);
    }
    if (c->ends_count >= limit / 2 && !c->asked_half) {
        /* So that the count is fresh before the limit is reached. */
        c->asked_half = true;
        c->pending |= P_ASK;
    }
    return count;
}

static bool conn_has_data(const struct vsock_conn *c)
{
    return c->state == VSOCK_OPEN && c->readable && !c->stalled &&
           !(c->guest_off & VSOCK_OFF_RECV) && !(c->host_off & VSOCK_OFF_SEND);
}

static void conn_put_control(struct vsock *v, struct vsock_conn *c,
                             struct vsock_buf *b)
{
    if (c->pending & P_REQUEST) {
        c->pending &= ~P_REQUEST;
        c->sent = true;
        if (!c->give_up) {
            conn_deadline(v, c, v->now + VSOCK_MS_REQUEST);
        }
        conn_put(v, c, b, VSOCK_OP_REQUEST, 0, 0);
    } else if (c->pending & P_RESPONSE) {
        c->pending &= ~P_RESPONSE;
        conn_put(v, c, b, VSOCK_OP_RESPONSE, 0, 0);
    } else if (c->pending & P_SHUTDOWN) {
        c->pending &= ~P_SHUTDOWN;
        conn_put(v, c, b, VSOCK_OP_SHUTDOWN, c->host_off, 0);
        if (c->host_off == VSOCK_OFF_BOTH) {
            host_close(v, c);
            conn_state(v, c, VSOCK_CLOSING, false);
            conn_deadline(v, c, v->now + VSOCK_MS_RST);
            c->pending = 0;
        }
    } else if (c->pending & P_ASK) {
        c->pending &= ~P_ASK;
        v->stats.credit_requests++;
        conn_put(v, c, b, VSOCK_OP_CREDIT_REQUEST, 0, 0);
    } else {
        conn_put(v, c, b, VSOCK_OP_CREDIT_UPDATE, 0, 0);
    }
}

/* A turn of a connection that has just been taken from the ready list. */
static unsigned conn_turn(struct vsock *v, struct vsock_conn *c,
                          struct vsock_buf *bufs, unsigned n)
{
    unsigned count = 0;
    bool maybe = false;

    if (c->state == VSOCK_RESET) {
        conn_put(v, c, bufs, VSOCK_OP_RST, 0, 0);
        conn_forget(v, c);
        return 1;
    }
    /* Data carries the credit too, so only P_CREDIT can wait for it. */
    if (!(c->pending & ~P_CREDIT) && conn_has_data(c)) {
        count = conn_data_out(v, c, bufs, n, &maybe);
    }
    if (!count && c->pending) {
        conn_put_control(v, c, bufs);
        count = 1;
    }
    if (c->pending || (conn_has_data(c) && !maybe)) {
        conn_queue(v, c);
    } else if (conn_has_data(c)) {
        TAILQ_INSERT_TAIL(&v->later, c, link);
        c->list = L_LATER;
    }
    return count;
}

bool vsock_rx_ready(const struct vsock *v)
{
    return v->stray_count || !TAILQ_EMPTY(&v->ready);
}

unsigned vsock_rx(struct vsock *v, struct vsock_buf *bufs, unsigned n)
{
    struct vsock_conn *c;

    if (v->stray_count) {
        const struct stray *s = &v->strays[v->stray_head];
        struct vsock_hdr h = {
            .src_cid = s->src_cid,
            .dst_cid = s->dst_cid,
            .src_port = s->src_port,
            .dst_port = s->dst_port,
            .type = s->type,
            .op = VSOCK_OP_RST,
        };

        v->stray_head = (v->stray_head + 1) % VSOCK_MAX_STRAYS;
        v->stray_count--;
        buf_put_hdr(v, bufs, &h);
        return 1;
    }
    c = TAILQ_FIRST(&v->ready);
    if (!c) {
        return 0;
    }
    conn_unqueue(v, c);
    return conn_turn(v, c, bufs, n);
}

bool vsock_rx_again(struct vsock *v)
{
    struct vsock_conn *c;

    while ((c = TAILQ_FIRST(&v->later))) {
        conn_unqueue(v, c);
        conn_queue(v, c);
    }
    return vsock_rx_ready(v);
}

void vsock_driver_seen(struct vsock *v)
{
    v->driver_seen = true;
}

void vsock_fresh_driver(struct vsock *v)
{
    v->stray_count = 0;
    v->driver_seen = false;
    for (uint32_t i = 0; i < v->used_slots; i++) {
        struct vsock_conn *c = &v->slots[i];

        if (c->hashed && (c->state != VSOCK_REQUESTED || c->sent)) {
            conn_forget(v, c);
        }
    }
}

void vsock_disconnect(struct vsock *v)
{
    vsock_fresh_driver(v);
    for (uint32_t i = 0; i < v->used_slots; i++) {
        if (v->slots[i].hashed) {
            conn_free(v, &v->slots[i]);
        }
    }
}

void vsock_finish(struct vsock *v)
{
    struct vsock_conn *c;

    v->finishing = true;
    TAILQ_FOREACH(c, &v->drains, drain) {
        conn_deadline(v, c, v->now + VSOCK_MS_DRAIN);
    }
}

/* The host's side. */

bool vsock_client_room(const struct vsock *v)
{
    return v->clients < VSOCK_MAX_CLIENTS &&
           (v->count < v->config.max_conns || oldest_drain(v));
}

static uint32_t free_port(struct vsock *v, uint32_t guest_port)
{
    do {
        if (v->next_port < FIRST_PORT || v->next_port == VSOCK_PORT_ANY) {
            v->next_port = FIRST_PORT;
        }
    } while (lookup(v, VSOCK_CID_PARENT, v->next_port++, guest_port));
    return v->next_port - 1;
}

static void client_request(struct vsock *v, struct vsock_conn *c,
                           uint32_t parent_port, uint32_t guest_port)
{
    conn_hash(v, c, VSOCK_CID_PARENT, parent_port, guest_port);
    conn_state(v, c, VSOCK_REQUESTED, true);
    conn_deadline(v, c, c->give_up ?:
                  v->now + (v->driver_seen ? VSOCK_MS_REQUEST
                                           : v->config.driver_ms));
    conn_pend(v, c, P_REQUEST);
}

struct vsock_conn *vsock_client(struct vsock *v, int fd, int64_t port)
{
    struct vsock_conn *c = vsock_client_room(v) ? conn_new(v) : NULL;

    if (!c) {
        return NULL;
    }
    c->fd = fd;
    conn_state(v, c, VSOCK_CLIENT, true);
    if (port >= 0) {
        c->silent = true;
        client_request(v, c, free_port(v, port), port);
    } else {
        conn_deadline(v, c, v->now + VSOCK_MS_LINE);
    }
    return c;
}

static void client_line(struct vsock *v, struct vsock_conn *c)
{
    char line[VSOCK_MAX_LINE];
    struct iovec iov = { line, 0 };
    uint32_t port, ms;
    int64_t from;
    ssize_t r = v->ops->peek(v->opaque, c, line, sizeof(line));
    int n;

    if (r == -EAGAIN) {
        return;
    }
    if (r <= 0) {
        note(v, VSOCK_NOTE_CLIENT_GONE, c, NULL);
        conn_free(v, c);
        return;
    }
    n = vsock_parse_line(line, r, &port, &from, &ms);
    if (n < 0 || (n == 0 && r == sizeof(line)) ||
        (n > 0 && from >= 0 && lookup(v, VSOCK_CID_PARENT, from, port))) {
        note(v, VSOCK_NOTE_BAD_LINE, c, NULL);
        conn_free(v, c);
        return;
    }
    if (n > 0) {
        iov.iov_len = n;
        if (v->ops->recv(v->opaque, c, &iov, 1) != n) {
            note(v, VSOCK_NOTE_HOST_ERROR, c, NULL);
            conn_free(v, c);
            return;
        }
        if (from >= 0) {
            c->silent = true;
            c->skip = VSOCK_OPEN_SIZE - n;
            c->give_up = v->now + ms + 1;   /* never early: now is whole ms */
        }
        client_request(v, c, from >= 0 ? (uint32_t)from : free_port(v, port),
                       port);
    }
}

void vsock_event(struct vsock *v, struct vsock_conn *c, unsigned events)
{
    if (is_client(c)) {
        if (events & VSOCK_EV_HUP) {
            note(v, VSOCK_NOTE_CLIENT_GONE, c, NULL);
            if (c->state == VSOCK_REQUESTED) {
                conn_reset(v, c);
            } else {
                conn_free(v, c);
            }
        } else if (c->state == VSOCK_CLIENT) {
            client_line(v, c);
        }
        return;
    }
    if (!c->host || c->state == VSOCK_OPENING) {
        return;
    }
    if (events & VSOCK_EV_HUP) {
        c->hup = true;
        /* So that the read finds the end, and the write that nobody is. */
        events |= VSOCK_EV_IN | VSOCK_EV_OUT;
        if (c->state == VSOCK_OPEN && ((c->host_off & VSOCK_OFF_SEND) ||
                                       (c->guest_off & VSOCK_OFF_RECV))) {
            c->host_off = VSOCK_OFF_BOTH;
            conn_pend(v, c, P_SHUTDOWN);
        }
    }
    if (events & VSOCK_EV_IN) {
        c->readable = true;
        if (conn_has_data(c)) {
            conn_queue(v, c);
        }
    }
    if (events & VSOCK_EV_OUT) {
        c->writable = true;
        if (c->buf_len) {
            conn_flush(v, c);
        }
    }
}

void vsock_opened(struct vsock *v, struct vsock_conn *c, int err)
{
    if (c->state != VSOCK_OPENING || !c->host) {
        return;
    }
    err = err ? v->ops->instead(v->opaque, c) : 0;
    if (!err) {
        conn_open(v, c);
    } else if (err == -EINPROGRESS) {
        conn_opening(v, c);
    } else {
        note(v, VSOCK_NOTE_NO_LISTENER, c, NULL);
        conn_reset(v, c);
    }
}

struct vsock_conn *vsock_get(struct vsock *v, uint32_t slot, uint32_t gen)
{
    if (slot >= v->used_slots || v->slots[slot].gen != gen ||
        v->slots[slot].state == VSOCK_FREE) {
        return NULL;
    }
    return &v->slots[slot];
}

/* Time. */

void vsock_set_now(struct vsock *v, int64_t now)
{
    v->now = now;
}

int64_t vsock_deadline(const struct vsock *v)
{
    int64_t when = v->next_deadline;

    /* In steps, so that many deadlines do not mean many walks. */
    return when ? (when + VSOCK_MS_TICK - 1) / VSOCK_MS_TICK * VSOCK_MS_TICK
                : -1;
}

static void conn_expired(struct vsock *v, struct vsock_conn *c)
{
    conn_deadline(v, c, 0);
    switch (c->state) {
    case VSOCK_CLIENT:
        note(v, VSOCK_NOTE_BAD_LINE, c, NULL);
        conn_free(v, c);
        break;
    case VSOCK_REQUESTED:
        note(v, VSOCK_NOTE_GUEST_SILENT, c, NULL);
        conn_reset(v, c);
        break;
    case VSOCK_OPENING:
        if (c->host) {
            vsock_opened(v, c, -ETIMEDOUT);
        } else if (!conn_try(v, c)) {
            conn_reset(v, c);
        }
        break;
    case VSOCK_OPEN:
        if (c->packet_stall) {
            c->ask_ms = c->ask_ms * 2 < VSOCK_MS_ASK_MAX ? c->ask_ms * 2
                                                         : VSOCK_MS_ASK_MAX;
            conn_deadline(v, c, v->now + c->ask_ms);
            conn_pend(v, c, P_ASK);
        }
        break;
    case VSOCK_CLOSING:
        note(v, VSOCK_NOTE_GUEST_SILENT, c, NULL);
        conn_reset(v, c);
        break;
    case VSOCK_RESET:
        host_close(v, c);
        break;
    case VSOCK_DRAIN:
        conn_free(v, c);
        break;
    case VSOCK_FREE:
        break;
    }
}

void vsock_tick(struct vsock *v)
{
    if (!v->next_deadline || v->now < v->next_deadline) {
        return;
    }
    v->next_deadline = 0;
    for (uint32_t i = 0; i < v->used_slots; i++) {
        struct vsock_conn *c = &v->slots[i];

        if (c->state == VSOCK_FREE || !c->deadline) {
            continue;
        }
        if (c->deadline <= v->now) {
            conn_expired(v, c);
        } else {
            conn_deadline(v, c, c->deadline);
        }
    }
}

/* Life. */

unsigned vsock_count(const struct vsock *v)
{
    return v->count;
}

unsigned vsock_draining(const struct vsock *v)
{
    return v->draining;
}

size_t vsock_reserved(const struct vsock *v)
{
    return v->reserved;
}

const struct vsock_stats *vsock_stats(const struct vsock *v)
{
    return &v->stats;
}

struct vsock *vsock_new(const struct vsock_config *config,
                        const struct vsock_ops *ops, void *opaque)
{
    struct vsock *v = calloc(1, sizeof(*v));
    uint32_t buckets = 1;
    size_t share;

    if (!v) {
        return NULL;
    }
    v->config = *config;
    if (v->config.max_conns > VSOCK_MAX_CONNS_LIMIT) {
        v->config.max_conns = VSOCK_MAX_CONNS_LIMIT;
    }
    while (buckets < v->config.max_conns) {
        buckets *= 2;
    }
    v->ops = ops;
    v->opaque = opaque;
    v->bucket_mask = buckets - 1;
    v->next_port = FIRST_PORT;
    TAILQ_INIT(&v->free);
    TAILQ_INIT(&v->ready);
    TAILQ_INIT(&v->later);
    TAILQ_INIT(&v->drains);
    /* Half of the memory is everybody's share, half for who comes first. */
    share = VSOCK_WINDOW_TOTAL / 2 / (v->config.max_conns ?: 1);
    v->small_window = share < VSOCK_WINDOW ? share : VSOCK_WINDOW;
    v->extra_max = VSOCK_WINDOW_TOTAL -
                   (size_t)v->small_window * v->config.max_conns;
    v->slots = calloc(v->config.max_conns, sizeof(*v->slots));
    v->buckets = calloc(buckets, sizeof(*v->buckets));
    if (!v->slots || !v->buckets) {
        vsock_free(v);
        return NULL;
    }
    return v;
}

void vsock_free(struct vsock *v)
{
    for (uint32_t i = 0; i < v->used_slots; i++) {
        if (v->slots[i].state != VSOCK_FREE) {
            conn_free(v, &v->slots[i]);
        }
    }
    free(v->slots);
    free(v->buckets);
    free(v);
}
