/*
 * SPDX-License-Identifier: MIT
 *
 * host.h: the process around the device: sockets, event loop, life and end.
 */

#ifndef HOST_H
#define HOST_H

#include "host-address.h"

#include <stdbool.h>
#include <stdint.h>

/* Where an enclave says that it has booted, and the byte it says it with. */
#define HOST_HEARTBEAT_PORT 9000
#define HOST_HEARTBEAT_BYTE 0xB7
/* A listener that cannot accept for want of descriptors rests so long. */
#define HOST_MS_REST 100
/* Events, and clients of one listener, taken in one turn of the loop. */
#define HOST_EVENTS 64
#define HOST_ACCEPTS 16
/* Captures of packets at a time, and what each keeps for a slow reader. */
#define HOST_MAX_DUMPS 4
#define HOST_DUMP_BUFFER (4u << 20)
/*
 * Descriptors that are not connections: standard ones, events, listeners, those
 * of the front end and eight of its memory on their way.
 */
#define HOST_SPARE_FDS 64

/*
 * Ports of the parent, or of the guest, that are served in a way of their own;
 * a table that is searched at each connect, so not many.
 */
#define HOST_MAX_ROUTES 64

/* Ports that are known to be full; one more costs only tries. */
#define HOST_FULL_PORTS 64

struct host_route {
    uint32_t port;
    struct host_address to;
};

struct host_options {
    const char *socket_path;   /* vhost-user */
    const char *uds_path;      /* PATH and PATH_N; or NULL */
    const char *fallback_path; /* FALLBACK_N where PATH_N is not; or NULL */
    uint32_t guest_cid;
    uint32_t forward_cid; /* the parent by AF_VSOCK; 0: not */
    bool serve_cid2;
    bool once;
    bool sandbox;
    uint32_t max_conns;
    int64_t driver_ms;
    int ready_fd;            /* -1: a line on stdout */
    int booted_fd;           /* -1: a line on stdout */
    int lifeline_fd;         /* -1: none */
    const char *cleanup_dir; /* or NULL */
    int socket_fd;           /* listens already; -1: socket_path */
    int uds_fd;              /* listens already; -1: uds_path */
    /* Parent's ports that are not PATH_N. */
    unsigned routes;
    struct host_route route[HOST_MAX_ROUTES];
    /* Addresses whose clients are joined to a port of the guest. */
    unsigned published;
    struct host_route publish[HOST_MAX_ROUTES];
};

/* Serves until told to end; the exit status of the process. */
int host_run(const struct host_options *options);

#endif
