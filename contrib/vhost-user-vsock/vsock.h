/*
 * SPDX-License-Identifier: MIT
 *
 * vsock.h: the connection core.
 *
 * The core turns packets from the guest and events from the host's sockets
 * into packets for the guest and calls of struct vsock_ops. It makes no system
 * call, reads no clock and knows neither rings nor file descriptors, so that
 * a test or a fuzzer can drive every corner of it from plain buffers.
 */

#ifndef VSOCK_H
#define VSOCK_H

#include "agreed.h"
#include "connect-line.h"
#include "packet.h"
#include "pcap.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>
#include <sys/uio.h>

/*
 * Limits. Each one is a promise about host memory, host descriptors or time,
 * whatever the guest or a client does.
 */

/* Largest payload of one packet; Linux guests accept and send no more. */
#define VSOCK_MAX_PAYLOAD 65536u
/*
 * Bytes that all connections together may hold for slow host applications.
 * A window is reserved from this when its connection opens, so no connection
 * is ever reset for lack of memory: late ones get a smaller window instead.
 */
#define VSOCK_WINDOW_TOTAL (64u << 20)
/* Connections: thousands, at one descriptor and about 1.2 KiB each. */
#define VSOCK_MAX_CONNS 4096u
#define VSOCK_MAX_CONNS_LIMIT 8192u
/*
 * Clients that have not got their OK yet. More of them wait in the listener's
 * backlog, where they cost us nothing.
 */
#define VSOCK_MAX_CLIENTS 128u
/*
 * RSTs that belong to no connection and wait for an RX buffer. When they fill
 * up, packets from the guest stay in its ring.
 */
#define VSOCK_MAX_STRAYS 1024u
/*
 * Packets sent but not consumed, per connection. Recent Linux guests charge
 * 576 bytes for each against the receive buffer, however small, and reset the
 * connection above it (455 packets at the default 256 KiB).
 */
#define VSOCK_MAX_PACKETS 256u
#define VSOCK_PACKET_COST 1024u
/* Bytes moved for one connection before the next one has its turn. */
#define VSOCK_QUANTUM 65536u
/* Pieces of guest memory that one read from a host socket may fill. */
#define VSOCK_MAX_BURST 128u
/* Faults at a time, and the longest delay of one. */
#define VSOCK_MAX_FAULTS 16u
#define VSOCK_MS_FAULT 60000u
/* Ports that are counted each for itself. */
#define VSOCK_MAX_PORTS 256u

/* Connections that time ends in one turn. */
#define VSOCK_MAX_ENDED 64u

/* Times, in milliseconds. */
#define VSOCK_MS_LINE 5000    /* a client completes its CONNECT line */
#define VSOCK_MS_REQUEST 2000 /* the guest answers our REQUEST */
#define VSOCK_MS_DRIVER 20000 /* the guest's driver comes up */
#define VSOCK_MS_BACKLOG 1500 /* a full backlog; the guest waits 2 s */
#define VSOCK_MS_RETRY 20     /* between two tries at a full backlog */
#define VSOCK_MS_OPEN 1800    /* a connect in progress; guest: 2 s */
#define VSOCK_MS_TRY 450      /* at least, before the next address */
#define VSOCK_MS_RST 10000    /* the guest answers SHUTDOWN with RST */
#define VSOCK_MS_DRAIN 30000  /* a host application takes some more */
#define VSOCK_MS_ASK 20       /* first repeated CREDIT_REQUEST ... */
#define VSOCK_MS_ASK_MAX 1000 /* ... and the longest pause, see vsock.c */
#define VSOCK_MS_TICK 10      /* deadlines are rounded up to these */

/* How one follows another is in state.c. */
enum vsock_state {
    VSOCK_FREE,
    VSOCK_CLIENT,    /* host client, CONNECT line not complete */
    VSOCK_OPENING,   /* guest asked; the host end is not connected yet */
    VSOCK_WAITING,   /* host asked; the guest has not been told yet */
    VSOCK_REQUESTED, /* ... has been told, and has not answered */
    VSOCK_OPEN,
    VSOCK_CLOSING, /* SHUTDOWN of both directions sent, RST awaited */
    VSOCK_RESET,   /* RST to be sent, then the tuple is forgotten */
    VSOCK_DRAIN,   /* no tuple; the host end gets its last bytes */
    VSOCK_STATES
};

/* Nothing can be sent before the guest's numbers change, and why. */
enum vsock_stall {
    VSOCK_STALL_NONE,
    VSOCK_STALL_CREDIT,
    VSOCK_STALL_PACKETS,
};

/*
 * One connection. The first five belong to the host side; it may read all
 * else and write nothing.
 */
struct vsock_conn {
    int fd;
    uint32_t user;
    bool answer;      /* set in send(): there is something to read */
    uint16_t tries;   /* addresses that open() has tried */
    uint16_t open_ms; /* for the one in progress; 0: VSOCK_MS_OPEN */

    uint32_t slot; /* index in the table */
    uint32_t gen;  /* differs each time the slot is used */
    enum vsock_state state;
    uint32_t parent_cid; /* the tuple */
    uint32_t parent_port;
    uint32_t guest_port;
    bool host;     /* the host end is open */
    bool silent;   /* host end expects no OK line */
    uint32_t skip; /* ... but that we throw so much away */
    bool of_guest; /* the port that was connected to is the guest's */
    uint16_t port; /* ... and has this row among the ports */
    bool counted;  /* ... and there as open */

    /* guest to host */
    uint32_t window;   /* our buf_alloc */
    uint32_t fwd_cnt;  /* bytes the host end has taken */
    uint32_t last_fwd; /* fwd_cnt in our last packet */
    uint32_t buf_head;
    uint32_t buf_len;
    uint8_t *buf; /* window bytes, on first need */

    /* host to guest */
    uint32_t tx_cnt; /* bytes put into RX buffers */
    uint32_t peer_buf_alloc;
    uint32_t peer_fwd_cnt;
    uint16_t ends_head;
    uint16_t ends_count; /* packets in flight */

    uint8_t pending;   /* control packets to send, bits */
    uint8_t guest_off; /* VSOCK_OFF_*: what the guest stopped */
    uint8_t host_off;  /* what the host end stopped */
    bool readable;     /* a read may give something */
    bool writable;     /* a write may take something */
    bool hup;          /* host end closed or done both ways */
    bool aborted;      /* host end closed without reading it all */
    enum vsock_stall stall;
    bool asked;      /* CREDIT_REQUEST sent since the last data */
    bool asked_half; /* ... since half the packet limit */
    uint16_t ask_ms;
    uint8_t list;

    uint16_t faults; /* that are about it, bits */
    uint64_t passed; /* bytes, both directions */
    int64_t in_at;   /* no sooner anything is read from the host ... */
    int64_t out_at;  /* ... or given to it; 0: at once */

    int64_t deadline; /* 0: none */
    int64_t give_up;  /* 0: never; the deadline may be renewed */
    uint32_t hash_next;
    TAILQ_ENTRY(vsock_conn) link;
    TAILQ_ENTRY(vsock_conn) drain;

    uint32_t ends[VSOCK_MAX_PACKETS]; /* tx_cnt after each such packet */
};

/* Why something was refused or cut; counted, and told to the host side. */
enum vsock_note {
    VSOCK_NOTE_BAD_SOURCE,
    VSOCK_NOTE_BAD_LENGTH,
    VSOCK_NOTE_LOST,
    VSOCK_NOTE_BAD_TYPE,
    VSOCK_NOTE_BAD_PORT,
    VSOCK_NOTE_NOT_SERVED,
    VSOCK_NOTE_UNKNOWN_TUPLE,
    VSOCK_NOTE_TUPLE_REUSED,
    VSOCK_NOTE_VIOLATION,
    VSOCK_NOTE_OVERRUN,
    VSOCK_NOTE_NO_LISTENER,
    VSOCK_NOTE_TABLE_FULL,
    VSOCK_NOTE_NO_MEMORY,
    VSOCK_NOTE_BACKLOG,
    VSOCK_NOTE_BAD_LINE,
    VSOCK_NOTE_GUEST_REFUSED,
    VSOCK_NOTE_GUEST_SILENT,
    VSOCK_NOTE_CLIENT_GONE,
    VSOCK_NOTE_HOST_ERROR,
    VSOCK_NOTE_UNDELIVERED,
    VSOCK_NOTE_EVICTED,
    VSOCK_NOTE_FAULT,
    VSOCK_NOTES
};

/* As a key in statistics, and as words. */
const char *vsock_note_name(enum vsock_note note);
const char *vsock_note_text(enum vsock_note note);

/*
 * A port that was connected to: the guest's, by programs of the host, or the
 * parent's, by the guest.
 */
struct vsock_port {
    uint32_t port;
    bool of_guest;
    enum vsock_note why; /* it was refused the last time, if it was */
    uint64_t connections;
    uint64_t open; /* of these; until the host has the last byte */
    uint64_t refused;
    uint64_t bytes_to_host;
    uint64_t bytes_to_guest;
};

/* What is asked to go wrong. */
enum vsock_fault_kind {
    VSOCK_FAULT_LATENCY,      /* either direction, and the guest's connect */
    VSOCK_FAULT_REFUSE,       /* as if nobody listened */
    VSOCK_FAULT_RESET,        /* once so many bytes have passed */
    VSOCK_FAULT_STOP_READING, /* of the host: the guest's credit runs out */
};

#define VSOCK_CHANCE_ALWAYS 1000000u

/* Of the connections to a port, those that it is about, and what happens. */
struct vsock_fault {
    enum vsock_fault_kind kind;
    bool any_port;
    uint32_t port;   /* of the parent or of the guest: that is served */
    uint32_t ms;     /* VSOCK_FAULT_LATENCY ... */
    uint32_t jitter; /* ... and at most so much more, by the seed */
    uint64_t after;  /* RESET, STOP_READING: bytes, both directions */
    uint64_t nth;    /* only the nth that begins; 0: each */
    uint64_t times;  /* at most so many; 0: any number */
    uint32_t chance; /* of each, in millionths, by the seed */
    uint64_t seed;
    /* the core's */
    uint32_t id;
    uint64_t seen;   /* that began */
    uint64_t struck; /* that it is or was about */
    uint64_t random;
};

/*
 * What the core asks of the host side. Byte counts or 0 for success, -errno
 * for failure. None of these may call back into the core.
 */
struct vsock_ops {
    /*
     * Connect c to what serves c->parent_port. 0: connected; -EAGAIN: ask
     * again later; -EINPROGRESS: vsock_opened() will tell; else refuse.
     */
    int (*open)(void *opaque, struct vsock_conn *c);
    /*
     * What was in progress has failed, or takes too long. 0: c has another
     * host end now, which is connected; -EINPROGRESS: another one, of which
     * vsock_opened() will tell; else refuse.
     */
    int (*instead)(void *opaque, struct vsock_conn *c);
    ssize_t (*send)(void *opaque, struct vsock_conn *c, const struct iovec *iov,
                    unsigned niov);
    ssize_t (*recv)(void *opaque, struct vsock_conn *c, const struct iovec *iov,
                    unsigned niov);
    /* Like recv, but the bytes stay where they are. */
    ssize_t (*peek)(void *opaque, struct vsock_conn *c, void *buf, size_t n);
    /* how: VSOCK_OFF_RECV or VSOCK_OFF_SEND, seen from us. */
    void (*shutdown)(void *opaque, struct vsock_conn *c, int how);
    /* cut: it has not got all; its socket should say so, if it can. */
    void (*close)(void *opaque, struct vsock_conn *c, bool cut);
    /* h is NULL where no packet was the cause. */
    void (*note)(void *opaque, enum vsock_note note, const struct vsock_conn *c,
                 const struct vsock_hdr *h);
    /* May be NULL. The first connection to it, or a new cause of refusal. */
    void (*port)(void *opaque, const struct vsock_port *p, bool refused);
    /*
     * May be NULL. The time of this very moment, which vsock_set_now() may be
     * behind of: for what must not be too early.
     */
    int64_t (*clock)(void *opaque);
    /* Each packet, either way, while vsock_tap() is on. */
    void (*packet)(void *opaque, const struct pcap_packet *p);
};

struct vsock_config {
    uint32_t guest_cid;
    bool serve_cid2;
    uint32_t max_conns;   /* at most VSOCK_MAX_CONNS_LIMIT */
    int64_t driver_ms;    /* VSOCK_MS_DRIVER unless told otherwise */
    uint64_t hash_key[3]; /* random: the guest chooses what is hashed */
};

struct vsock_stats {
    uint64_t guest_opened;
    uint64_t host_opened;
    uint64_t tx_packets; /* from the guest */
    uint64_t rx_packets; /* to the guest */
    uint64_t bytes_to_host;
    uint64_t bytes_to_guest;
    uint64_t credit_requests;
    uint64_t notes[VSOCK_NOTES];
};

struct vsock;

/* NULL when there is no memory. */
struct vsock *vsock_new(const struct vsock_config *config,
                        const struct vsock_ops *ops, void *opaque);
/* Closes every host end. */
void vsock_free(struct vsock *v);

/* The guest's side. */

/*
 * One packet from the guest: its header as it came, and the rest of the
 * descriptor chain (room bytes, of which the header may use fewer). The
 * iovec array is changed.
 */
void vsock_tx(struct vsock *v, const uint8_t raw[VSOCK_HDR_SIZE],
              struct iovec *iov, unsigned niov, size_t room);
/*
 * A packet whose header cannot be read. Any stream may have a hole there, so
 * all on which the guest sends are reset.
 */
void vsock_tx_lost(struct vsock *v);
/* False: answers wait for RX buffers, give no packet before some went. */
bool vsock_tx_ready(const struct vsock *v);

/* A guest buffer of at least VSOCK_HDR_SIZE + 1 bytes. */
struct vsock_buf {
    struct iovec *iov;
    unsigned niov;
    size_t len;
    size_t used; /* out */
};

/* True: vsock_rx() may have something for the guest. */
bool vsock_rx_ready(const struct vsock *v);
/*
 * One turn: fills the first of n >= 1 buffers and returns how many, perhaps
 * none (then ask vsock_rx_ready() again).
 */
unsigned vsock_rx(struct vsock *v, struct vsock_buf *bufs, unsigned n);
/*
 * To be called when vsock_rx_ready() is false and the guest has been told of
 * what was filled: takes up the sockets that are probably empty and need one
 * more look. Returns vsock_rx_ready().
 */
bool vsock_rx_again(struct vsock *v);
/* The guest has posted RX buffers: its driver is up. */
void vsock_driver_seen(struct vsock *v);
/* The guest's driver starts anew: it has forgotten every connection. */
void vsock_fresh_driver(struct vsock *v);
/* There is no guest any more. */
void vsock_disconnect(struct vsock *v);
/* Nor will there be one: who takes nothing for VSOCK_MS_DRAIN is cut. */
void vsock_finish(struct vsock *v);

/* The host's side. */

/* May another client be accepted? */
bool vsock_client_room(const struct vsock *v);
/*
 * A new host client. port < 0: it will send a CONNECT line; else it is joined
 * to that guest port without a word. NULL: no room, fd stays the caller's.
 * vsock_event() must follow when there is something to read.
 */
struct vsock_conn *vsock_client(struct vsock *v, int fd, int64_t port);
#define VSOCK_EV_IN 1
#define VSOCK_EV_OUT 2
#define VSOCK_EV_HUP 4
void vsock_event(struct vsock *v, struct vsock_conn *c, unsigned events);
/* The end of an open() in progress: 0 or -errno. */
void vsock_opened(struct vsock *v, struct vsock_conn *c, int err);
/* The connection in this slot if it is still that one, or NULL. */
struct vsock_conn *vsock_get(struct vsock *v, uint32_t slot, uint32_t gen);

/* Its id, or 0: there are VSOCK_MAX_FAULTS. */
uint32_t vsock_fault_add(struct vsock *v, const struct vsock_fault *fault);
/* That one, or all by id 0; how many there were. All end with the guest. */
unsigned vsock_fault_clear(struct vsock *v, uint32_t id);
/* i < VSOCK_MAX_FAULTS; NULL: there is none in that place. */
const struct vsock_fault *vsock_fault(const struct vsock *v, unsigned i);

/* Whether packets are shown to ops->packet(). */
void vsock_tap(struct vsock *v, bool on);

/* Time: milliseconds of a clock that never goes back, starting above 0. */
void vsock_set_now(struct vsock *v, int64_t now);
/* When vsock_tick() is due; -1: never. */
int64_t vsock_deadline(const struct vsock *v);
void vsock_tick(struct vsock *v);

unsigned vsock_count(const struct vsock *v);
/* Connections whose last bytes still go to the host. */
unsigned vsock_draining(const struct vsock *v);
size_t vsock_reserved(const struct vsock *v);
const struct vsock_stats *vsock_stats(const struct vsock *v);
/* In the order in which they came. */
const struct vsock_port *vsock_ports(const struct vsock *v, unsigned *count);
/* All that came later, together. */
const struct vsock_port *vsock_other_ports(const struct vsock *v);

#endif
