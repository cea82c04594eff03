/*
 * SPDX-License-Identifier: MIT
 *
 * agreed.h: what the backend and the library for parent programs
 * (contrib/vsock-preload) have agreed on: what one says to the other first, and
 * the names by which they find and know each other. Numbers in names are
 * decimal, for "%" PRIu32.
 */

#ifndef AGREED_H
#define AGREED_H

#include <inttypes.h>

/* The parent, as Nitro has it; CID 2 of other hosts is served as well. */
#define VSOCK_CID_PARENT 3
/*
 * The receive window of a connection: what Linux uses for its own side, and the
 * most it will have outstanding. A smaller one costs kicks and throughput.
 */
#define VSOCK_WINDOW 262144u

/*
 * What a client of the backend says first, in any case, with one or more spaces
 * where there is one here, and an optional CR:
 *
 * "CONNECT 1234\n"   the answer is "OK N\n", N the parent's port
 * "OPEN 1234 N MS\n" from the parent's port N; no answer. The line is part of
 *                    VSOCK_OPEN_SIZE bytes that come in one piece, whose rest
 *                    means nothing but fills the client's socket. Taken: it
 *                    can write. Closed, at the latest after MS milliseconds:
 *                    it has an error. So the kernel tells it the outcome, as
 *                    for any connect() in progress.
 */
#define VSOCK_WORD_CONNECT "CONNECT"
#define VSOCK_WORD_OPEN "OPEN"
#define VSOCK_LINE_OPEN VSOCK_WORD_OPEN " %" PRIu32 " %" PRIu32 " %" PRIu32 "\n"
#define VSOCK_LINE_OK "OK %" PRIu32 "\n"
#define VSOCK_OPEN_SIZE 36000
/* "OPEN" with three numbers of ten digits and an end, and some slack. */
#define VSOCK_MAX_LINE 48u

/*
 * PATH_N, where the parent's port N is served: PATH is --uds-path, or
 * --fallback-path for every enclave. sun_path holds 107 bytes and a zero; the
 * guest chooses the port, so PATH must leave room for the longest suffix,
 * "_4294967294".
 */
#define VSOCK_PORT_MARK "_"
#define VSOCK_PORT_SUFFIX VSOCK_PORT_MARK "%" PRIu32
#define VSOCK_MAX_PATH 107
#define VSOCK_MAX_SUFFIX 11

/*
 * Below the folder where all enclaves are: a folder for each CID as long as it
 * lives, in that its backend's PATH, and beside them the files of the ports
 * that every enclave's backend falls back to, FOLDER/ports/all being the PATH.
 */
#define VSOCK_FOLDER_HOME "%s/%" PRIu32
#define VSOCK_FOLDER_PATH VSOCK_FOLDER_HOME "/vsock"
#define VSOCK_PORTS "/ports"
#define VSOCK_PORTS_ALL VSOCK_PORTS "/all"
#define VSOCK_FOLDER_PORT "%s" VSOCK_PORTS_ALL VSOCK_PORT_SUFFIX

/*
 * The name of one end of a connection, in the abstract namespace: the CID and
 * port of this end, then of the other one, then what makes it unique. The
 * backend gives such names to its ends; for the library's, what makes them
 * unique is a time, in milliseconds, when the connect has lasted too long.
 */
#define VSOCK_NAME_PREFIX "nitro-vsock/"
#define VSOCK_NAME_PAIR \
    VSOCK_NAME_PREFIX "%" PRIu32 ":%" PRIu32 "/%" PRIu32 ":%" PRIu32 "/"

#endif
