/*
 * SPDX-License-Identifier: MIT
 *
 * sandbox.h: the system calls that are left to the process once it serves.
 */

#ifndef SANDBOX_H
#define SANDBOX_H

#include <stdbool.h>

/* Kinds of sockets that may still be made, beside unix ones. */
struct sandbox_sockets {
    bool inet;
    bool inet6;
    bool vsock;
};

/* 0, or -errno where this kernel, or what we run in, has no such filters. */
int sandbox_available(void);
/*
 * From here on any other call ends the process by SIGSYS, after a line that
 * names it. 0 or -errno; where filters are available every error is a fault
 * of ours, and the process is as before.
 */
int sandbox_enter(const struct sandbox_sockets *sockets);

#endif
