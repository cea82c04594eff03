/*
 * SPDX-License-Identifier: MIT
 *
 * serve.h: what the files of the serving process share: its state, and who of
 * them does what. host.h is what it offers.
 */

#ifndef SERVE_H
#define SERVE_H

#include "app-status.h"
#include "host.h"
#include "listener.h"
#include "log.h"
#include "pace.h"
#include "vhost-user.h"

#include <stdio.h>
#include <sys/epoll.h>

/* What an event is about: the low byte of epoll's data. */
enum {
    ON_CONN, /* with slot and generation */
    ON_FRONT_LISTENER,
    ON_FRONT,
    ON_KICK,
    ON_CLIENTS,
    ON_PUBLISHED, /* with its number */
    ON_SIGNAL,
    ON_LIFELINE,
    ON_DUMP,
};

/* vsock_conn.user: how far a heartbeat, or a status, on this connection is. */
enum {
    BEAT_NONE,    /* an ordinary connection */
    BEAT_RELAY,   /* to somebody's listener on the port */
    BEAT_RELAYED, /* the guest's byte went there */
    /* To our own responder, fd -1: */
    BEAT_WAIT,   /* for the guest's byte */
    BEAT_ANSWER, /* ours is to be read */
    BEAT_DONE,
    BEAT_WRONG, /* it was another byte */
    /* The status of the application, fd -1 as well: */
    STATUS_WAIT,   /* for all its bytes */
    STATUS_ANSWER, /* ours is to be read */
    STATUS_DONE,
    STATUS_WRONG, /* it was none */
};

/* A port whose listener's backlog is full, and not asked again until then. */
struct full_port {
    uint32_t port;
    int64_t until;
};

struct host {
    const struct host_options *options;
    int epoll;
    int signals;
    struct listener front_listener;
    struct listener clients;
    struct listener published[HOST_MAX_ROUTES];
    unsigned begin[HOST_MAX_ROUTES]; /* with this address of a route */
    struct full_port full[HOST_FULL_PORTS];
    struct cleanup cleanup;
    struct vhost_user front;
    bool front_on;
    bool booted; /* told since the guest's last start */
    struct app_status app;
    bool front_gone; /* with --once: end when all is delivered */
    bool end;
    int status;
    int64_t now;
    struct pace pace;
    uint64_t wakeups;
    uint64_t dials; /* connects tried at the host's listeners */
    uint64_t interrupts;
    /* What may explain a heartbeat that does not come. */
    uint64_t drivers; /* starts of a driver in the guest */
    uint64_t wrong_heartbeats;
    uint64_t relayed_heartbeats;
    uint64_t refused_cid; /* of the last connection that nobody took */
    uint32_t refused_port;
    bool channel; /* the owner may speak on the lifeline ... */
    bool control; /* ... and has said hello */
    uint64_t lost_events;
    struct dumps *dumps; /* NULL: never was one */
    struct vsock *vsock;
    struct device device;
};

/* host.c: the loop. */

int64_t host_now_ms(void);
uint64_t host_conn_tag(const struct vsock_conn *c);
bool host_epoll(struct host *h, int op, int fd, uint32_t events, uint64_t tag);
extern const struct device_ops host_device_ops;

/* heartbeat.c: what an enclave's init says, and how it is told. */

void host_tell(int fd, const char *line);
ssize_t beat_send(struct vsock_conn *c, const struct iovec *iov, unsigned niov);
ssize_t beat_recv(struct host *h, struct vsock_conn *c,
                  const struct iovec *iov);
void beat_watch(struct host *h, struct vsock_conn *c, uint32_t from, ssize_t n,
                const void *byte);
bool status_open(struct host *h, struct vsock_conn *c);
ssize_t status_send(struct host *h, struct vsock_conn *c,
                    const struct iovec *iov, unsigned niov);
ssize_t status_recv(struct host *h, struct vsock_conn *c,
                    const struct iovec *iov);

/*
 * dial.c: the host ends of connections; what the core calls. (And what
 * host-address.h says.)
 */

void host_no_delay(int fd, int family);
extern const struct vsock_ops host_vsock_ops;

/* start.c: everything before "ready"; false: it has said why not. */

bool host_start(struct host *h);

/* statistics.c: what happened, as lines and as numbers. */

void host_note(void *opaque, enum vsock_note what, const struct vsock_conn *c,
               const struct vsock_hdr *h);
void host_port(void *opaque, const struct vsock_port *p, bool refused);
void host_statistics(const struct host *h);
/* The same and more, for the owner: members of a JSON object. */
void host_put_statistics(const struct host *h, FILE *f);

/* dump.c: packets, into what the owner has handed in. */

void dump_packet(void *opaque, const struct pcap_packet *p);
/* NULL: fd is the dump's now, and *id its number; else what is wrong. */
const char *dump_start(struct host *h, int fd, uint32_t snaplen, uint64_t limit,
                       uint32_t *id);
/* text: what it has counted, members of a JSON object. False: no such dump. */
bool dump_stop(struct host *h, uint32_t id, char *text, size_t size);
void dumps_flush(struct host *h);
void dumps_close(struct host *h);

/* control.c: the owner of the process asks, and is told. */

void control_start(struct host *h);
/* What is on the lifeline; false: the owner has gone. */
bool control_input(struct host *h);
/* A line of JSON about what happened; lost if the owner does not read. */
void control_event(struct host *h, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
