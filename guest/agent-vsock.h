/*
 * SPDX-License-Identifier: MIT
 *
 * What the files of the test agent's vsock probes share: the report, the
 * pattern, modes, and how to get a connection.  See agent.c for what they mean.
 */

#ifndef NITRO_GUEST_AGENT_VSOCK_H
#define NITRO_GUEST_AGENT_VSOCK_H

#include "agent.h"

#include <sys/socket.h>
#include <linux/vm_sockets.h>

#define BLOCK 65521 /* the pattern's period: prime, so that no buffer fits it */
#define CHUNK_DEFAULT 65536

/* What happened on a connection. */
typedef struct Report {
    uint64_t sent, received;
    int64_t mismatch;
    int err;
    uint64_t us;
} Report;

void add_report(Answer *a, const Report *r);

/*
 * The pattern of @seed, long enough that @chunk bytes from any offset of the
 * first period lie in one piece.  NULL: no memory.
 */
uint8_t *new_pattern(uint32_t seed, size_t chunk);

typedef struct Mode Mode;

/* A mode's work: fills the report but for `us`; leaves the socket open. */
typedef void ModeFn(int fd, const Mode *mode, Report *r);

struct Mode {
    const char *name;
    size_t min, max; /* number of arguments */
    ModeFn *run;
    bool tells; /* a listener sends the report to its peer */
    uint64_t arg[3];
};

/* The mode that the arguments from @first on name. */
bool parse_mode(const Args *args, size_t first, Mode *mode, Answer *a);

/* With a report that has its start, and `us`. */
void run_mode(int fd, const Mode *mode, Report *r);

/* Shuts down our sending side, then reads to the end. */
ModeFn mode_half;

/* CID and PORT from arguments 0 and 1. */
bool parse_peer(const Args *args, struct sockaddr_vm *peer, Answer *a);

/* A connected socket, or -1 with errno. */
int dial(const struct sockaddr_vm *peer);

int probe_high_source(const Args *args, Answer *a); /* agent-high.c */

#endif
