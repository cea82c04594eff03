/*
 * SPDX-License-Identifier: MIT
 *
 * The guest's clock, set from its NSM.  Linux starts from the CMOS clock, which
 * it reads in whole seconds, and loses ticks until it has found a better one:
 * at init it is a second or more behind.  The NSM dates its documents in
 * milliseconds, is there under every kernel that can run enclaves, and is whom
 * an enclave believes anyway.  The document is read for its date and thrown
 * away; nothing is measured and no register changes.
 */

#define _GNU_SOURCE
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL

/* Enough of a host's scheduling to meet a quiet moment, and a good one. */
#define TRIES 12
#define GOOD_TRIP (4 * NS / 1000)

/* Linux: include/uapi/linux/nsm.h */
struct NsmMessage {
    uint64_t request, request_len;
    uint64_t response, response_len;
};
#define NSM_IOCTL _IOWR(0x0a, 0, struct NsmMessage)

static int64_t now(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec * NS + t.tv_nsec;
}

/* The date of a new document, in ns since 1970; -1 with errno. */
static int64_t nsm_time(int fd)
{
    static const char request[] = "\xa1\x6b"
                                  "Attestation"
                                  "\xa3"
                                  "\x69"
                                  "user_data"
                                  "\xf6"
                                  "\x65"
                                  "nonce"
                                  "\xf6"
                                  "\x6a"
                                  "public_key"
                                  "\xf6";
    /* The key and the head of an integer of 64 bits (RFC 8949). */
    static const char key[] = "\x69"
                              "timestamp"
                              "\x1b";
    static uint8_t document[0x3000];
    struct NsmMessage m = {
        .request = (uintptr_t)request,
        .request_len = sizeof(request) - 1,
        .response = (uintptr_t)document,
        .response_len = sizeof(document),
    };
    const uint8_t *at, *end;
    uint64_t ms = 0;

    if (ioctl(fd, NSM_IOCTL, &m) < 0) {
        return -1;
    }
    end = document + (m.response_len < sizeof(document) ? m.response_len :
                                                          sizeof(document));
    at = memmem(document, end - document, key, sizeof(key) - 1);
    if (!at || end - (at + sizeof(key) - 1) < 8) {
        errno = EBADMSG;
        return -1;
    }
    at += sizeof(key) - 1;
    for (int i = 0; i < 8; i++) {
        ms = ms << 8 | at[i];
    }
    if (ms > INT64_MAX / 1000000 - 1) {
        errno = ERANGE;
        return -1;
    }
    /* Milliseconds are cut off: on average half of one is missing. */
    return (int64_t)ms * 1000000 + 500000;
}

bool clock_from_nsm(void)
{
    int64_t best = INT64_MAX, ahead = 0;
    int fd = open("/dev/nsm", O_RDWR | O_CLOEXEC);

    if (fd < 0) {
        return errno == ENOENT;
    }
    /*
     * The date was taken at some moment between question and answer: the
     * shorter the trip, the better it is known.
     */
    for (int i = 0; i < TRIES && best > GOOD_TRIP; i++) {
        int64_t asked = now(CLOCK_REALTIME);
        int64_t date = nsm_time(fd);
        int64_t trip = now(CLOCK_REALTIME) - asked;

        if (date < 0) {
            int saved = errno;

            close(fd);
            errno = saved;
            return false;
        }
        if (trip < best) {
            best = trip;
            ahead = date - (asked + trip / 2);
        }
    }
    close(fd);
    if (ahead > best / 2 + NS / 1000 || ahead < -best / 2 - NS / 1000) {
        int64_t right = now(CLOCK_REALTIME) + ahead;
        struct timespec t = { right / NS, right % NS };

        return clock_settime(CLOCK_REALTIME, &t) == 0;
    }
    return true;
}
