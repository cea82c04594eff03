/*
 * SPDX-License-Identifier: MIT
 *
 * connect-line.h: understands what a client of the host says first; agreed.h
 * has what that may be.
 */

#ifndef CONNECT_LINE_H
#define CONNECT_LINE_H

#include <stddef.h>
#include <stdint.h>

/*
 * Returns the length of the line with its newline and sets *port and *from
 * (-1: CONNECT), for OPEN also *ms; 0: not complete yet; -1: no such line.
 */
int vsock_parse_line(const char *buf, size_t len, uint32_t *port, int64_t *from,
                     uint32_t *ms);

#endif
