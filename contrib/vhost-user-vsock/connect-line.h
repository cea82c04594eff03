/*
 * SPDX-License-Identifier: MIT
 *
 * connect-line.h: what a client of the host says first. The other side of it is
 * in contrib/vsock-preload.
 */

#ifndef CONNECT_LINE_H
#define CONNECT_LINE_H

#include <stddef.h>
#include <stdint.h>

/*
 * What a client says first, in any case, with one or more spaces where there
 * is one here, and an optional CR:
 *
 * "CONNECT 1234\n"   the answer is "OK N\n", N the parent's port
 * "OPEN 1234 N MS\n" from the parent's port N; no answer. The line is part of
 *                    VSOCK_OPEN_SIZE bytes that come in one piece, whose rest
 *                    means nothing but fills the client's socket. Taken: it
 *                    can write. Closed, at the latest after MS milliseconds:
 *                    it has an error. So the kernel tells it the outcome, as
 *                    for any connect() in progress.
 *
 * Returns the length of the line with its newline and sets *port and *from
 * (-1: CONNECT), for OPEN also *ms; 0: not complete yet; -1: no such line.
 */
#define VSOCK_OPEN_SIZE 36000
int vsock_parse_line(const char *buf, size_t len, uint32_t *port,
                     int64_t *from, uint32_t *ms);

#endif
