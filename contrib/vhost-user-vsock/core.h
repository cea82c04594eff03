/*
 * SPDX-License-Identifier: MIT
 *
 * core.h: what the files of the connection core share. See vsock.h for how it
 * is used, and vsock.c for how it works.
 */

#ifndef CORE_H
#define CORE_H

#include "vsock.h"

/* Control packets that wait for an RX buffer (vsock_conn.pending), bits. */
enum {
    PEND_REQUEST = 1,
    PEND_RESPONSE = 2,
    PEND_SHUTDOWN = 4,
    PEND_CREDIT = 8,
    PEND_ASK = 16,
};

/* Which list a connection stands in (vsock_conn.list). */
enum {
    LIST_NONE,
    LIST_READY,
    LIST_LATER,
};

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
    int64_t next_deadline; /* at or before the earliest; 0: none */
    bool driver_seen;
    bool tap;
    unsigned fault_count;
    uint32_t last_fault;
    struct vsock_fault faults[VSOCK_MAX_FAULTS];

    struct vsock_conn *slots;
    uint32_t used_slots; /* slots above were never used */
    unsigned count;
    unsigned clients;  /* who have not got their OK yet */
    unsigned draining; /* not in the table, or RST to be sent */
    struct conn_list free;
    struct conn_list ready;
    struct conn_list later;
    struct conn_list drains; /* draining, who took bytes last at the end */
    bool finishing;          /* drains have deadlines */

    uint32_t *buckets; /* slot + 1; 0: empty */
    uint32_t bucket_mask;

    uint32_t small_window; /* what every connection is sure of */
    size_t extra;          /* bytes granted beyond that ... */
    size_t extra_max;      /* ... and how many may be */
    size_t reserved;
    uint32_t next_port;

    struct stray strays[VSOCK_MAX_STRAYS];
    unsigned stray_head;
    unsigned stray_count;

    struct vsock_stats stats;
    struct vsock_port ports[VSOCK_MAX_PORTS + 1]; /* the last: all others */
    unsigned port_count;
};

/* notes.c: counts it, and tells the host side. */
void vsock_note(struct vsock *v, enum vsock_note what,
                const struct vsock_conn *c, const struct vsock_hdr *h);

/* vsock.c: for whoever looks on. */

/* To be asked before vsock_show(): it is seldom so. */
static inline bool vsock_shown(const struct vsock *v)
{
    return __builtin_expect(v->tap, false);
}
/* A packet of h->len bytes of data, as far as iov has them behind skip. */
void vsock_show(struct vsock *v, const uint8_t raw[VSOCK_HDR_SIZE],
                const struct vsock_hdr *h, const struct iovec *iov,
                unsigned niov, size_t skip, size_t room);

/* fault.c: what is asked to go wrong. All of it only where fault_on(). */

static inline bool fault_on(const struct vsock *v)
{
    return __builtin_expect(v->fault_count, 0);
}
/* A connection begins: its port is known. */
void fault_begin(struct vsock *v, struct vsock_conn *c);
bool fault_refuses(const struct vsock *v, const struct vsock_conn *c);
/* Until when what comes now is held back; 0: it is not. */
int64_t fault_until(struct vsock *v, const struct vsock_conn *c);
/* Bytes that may still pass. */
uint32_t fault_room(const struct vsock *v, const struct vsock_conn *c);
/* It can be reset: the guest has learnt first that it is connected. */
static inline bool fault_may_strike(const struct vsock_conn *c)
{
    return c->state == VSOCK_OPEN && !(c->pending & PEND_RESPONSE);
}
/* Resets it if no more may pass. */
void fault_strike(struct vsock *v, struct vsock_conn *c);
/* The host end is to be given nothing now. */
bool fault_holds(const struct vsock *v, const struct vsock_conn *c);
/* Bytes come where none were: from the guest, from the host. */
void fault_delay_out(struct vsock *v, struct vsock_conn *c);
void fault_delay_in(struct vsock *v, struct vsock_conn *c);
/* The time that it waits for may have come; c may be gone afterwards. */
void fault_tick(struct vsock *v, struct vsock_conn *c);

/* ports.c: what each port has carried. */

/* c is about that port. */
void port_begin(struct vsock *v, struct vsock_conn *c, uint32_t port,
                bool of_guest);
void port_opened(struct vsock *v, struct vsock_conn *c);
void port_closed(struct vsock *v, struct vsock_conn *c);
/* Counts it if it refuses c, which may be NULL. */
void port_noted(struct vsock *v, const struct vsock_conn *c,
                enum vsock_note why);

/* state.c: what follows what. */

/* All changes of state and host pass here, so that the counts are right. */
void conn_state(struct vsock *v, struct vsock_conn *c, enum vsock_state state,
                bool host);
/* It has its tuple in the table. */
bool conn_is_hashed(const struct vsock_conn *c);
/* A program of the host that has not got its OK yet. */
bool conn_is_client(const struct vsock_conn *c);
/* All that is left to do is to give the host end its last bytes. */
bool conn_is_draining(const struct vsock_conn *c);

/* conn.c: the table, lists, deadlines, windows. */

/* NULL: there is no room. Of those that only drain the oldest makes some. */
struct vsock_conn *conn_new(struct vsock *v);
void conn_free(struct vsock *v, struct vsock_conn *c);
/* The one to be cut where there is no room, or NULL. */
struct vsock_conn *conn_oldest_drain(const struct vsock *v);
/* Enters the table, and gets its window. */
void conn_hash(struct vsock *v, struct vsock_conn *c, uint32_t cid,
               uint32_t parent_port, uint32_t guest_port);
struct vsock_conn *conn_lookup(const struct vsock *v, uint64_t cid,
                               uint32_t parent_port, uint32_t guest_port);
/* Into the list of those that have something for the guest, and out of any. */
void conn_queue(struct vsock *v, struct vsock_conn *c);
void conn_unqueue(struct vsock *v, struct vsock_conn *c);
/* A control packet is to be sent. */
void conn_pend(struct vsock *v, struct vsock_conn *c, uint8_t what);
void conn_deadline(struct vsock *v, struct vsock_conn *c, int64_t when);
/* Something is to be done then. */
void conn_due(struct vsock *v, int64_t when);
/* The host has taken bytes, or may begin to: it has time again. */
void conn_drain_renew(struct vsock *v, struct vsock_conn *c);
/* The guest and we have forgotten it; the host gets what it has not taken. */
void conn_forget(struct vsock *v, struct vsock_conn *c);
/* Ends it by an RST to the guest. */
void conn_reset(struct vsock *v, struct vsock_conn *c);
/* Closes the host end. */
void end_close(struct vsock *v, struct vsock_conn *c);

/* vsock.c: events of the host, and time. */

/* The host end may give something. */
void conn_readable(struct vsock *v, struct vsock_conn *c);
/* One try to reach the host end; true unless it is to be refused. */
bool conn_try(struct vsock *v, struct vsock_conn *c);

/* credit.c: how much may be under way. */

/* What the guest's packet says of its buffer. */
void conn_credit(struct vsock *v, struct vsock_conn *c,
                 const struct vsock_hdr *h);
/* Packets that the guest may have unread. */
unsigned conn_packet_limit(const struct vsock_conn *c);
/* Nothing can be sent before the guest's numbers change. */
void conn_stall(struct vsock *v, struct vsock_conn *c, enum vsock_stall why);
/* n more bytes have left for the host, or never will have to. */
void conn_consumed(struct vsock *v, struct vsock_conn *c, uint32_t n);

/* to-host.c: bytes of the guest. */

void conn_data_in(struct vsock *v, struct vsock_conn *c,
                  const struct vsock_hdr *h, const struct iovec *iov,
                  unsigned niov);
/* Writes what the buffer holds, as far as the host end takes it. */
void conn_flush(struct vsock *v, struct vsock_conn *c);
/* The guest will send no more, and all it sent has left: say so. */
void end_finish(struct vsock *v, struct vsock_conn *c);

/* to-guest.c: packets for the guest. */

bool conn_has_data(const struct vsock_conn *c);

/* client.c: programs of the host that connect to the guest. */

/* The line that it says first, as far as it has come. */
void client_line(struct vsock *v, struct vsock_conn *c);
/* Takes what an OPEN has behind its line; false: it is not there. */
bool client_skip(struct vsock *v, struct vsock_conn *c);

#endif
