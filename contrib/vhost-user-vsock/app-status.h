/*
 * SPDX-License-Identifier: MIT
 *
 * app-status.h: how the application of an enclave ended, as its init tells it.
 *
 * The init that we build connects to a port of ours before its heartbeat, so
 * before any application runs, and keeps that connection; when the application
 * has ended it says how, and waits for our word before it resets the machine.
 * Nobody else can: after the heartbeat, and while such a connection is there or
 * was, the port is one like every other.
 *
 *   guest   'E' STATUS     it called exit(STATUS)
 *           'K' SIGNAL     it was killed by that signal
 *   we      the first byte again: it has been told
 */

#ifndef APP_STATUS_H
#define APP_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* As far from the last port as the heartbeat's is from the first. */
#define APP_STATUS_PORT (UINT32_MAX - 9000u)
#define APP_STATUS_SIZE 2
/* "exited 255\n" and its zero. */
#define APP_STATUS_LINE 16

struct app_status {
    bool closed; /* for whoever comes now */
    unsigned have;
    uint8_t said[APP_STATUS_SIZE];
};

/* Bytes came on the connection. True: they tell all of it. */
bool app_status_take(struct app_status *s, const struct iovec *iov,
                     unsigned niov);

/*
 * For the host, a line with its end: "exited 7" or "killed 11". False: what
 * was said is none of the above.
 */
bool app_status_line(const struct app_status *s, char line[APP_STATUS_LINE]);

#endif
