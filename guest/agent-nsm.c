/*
 * SPDX-License-Identifier: MIT
 *
 * The test agent's NSM requests: one ioctl with any bytes and any buffer, and
 * the probe that sends one from many threads.  It knows nothing of what a
 * request means.
 */

#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Linux: drivers/misc/nsm.c, include/uapi/linux/nsm.h */
struct NsmMessage {
    uint64_t request, request_len;
    uint64_t response, response_len;
};
#define NSM_IOCTL _IOWR(0x0a, 0, struct NsmMessage)

static ssize_t nsm(int fd, const void *request, size_t len, void *response,
                   size_t size)
{
    struct NsmMessage m = {
        .request = (uintptr_t)request,
        .request_len = len,
        .response = (uintptr_t)response,
        .response_len = size,
    };

    return ioctl(fd, NSM_IOCTL, &m) < 0 ? -1 : (ssize_t)m.response_len;
}

/*
 * One request, with the response appended to the answer.  The device is opened
 * anew each time: an open descriptor does not survive the driver's unbinding.
 */
int nsm_once(const uint8_t *request, size_t len, size_t size, Answer *a)
{
    uint8_t *response;
    ssize_t n;
    int err = 0, fd = open("/dev/nsm", O_RDWR | O_CLOEXEC);

    if (fd < 0) {
        return answer_fail(a, errno, "open /dev/nsm: %s", strerror(errno));
    }
    response = malloc(size ? size : 1);
    if (!response) {
        die("response");
    }
    n = nsm(fd, request, len, response, size);
    if (n < 0) {
        err = answer_fail(a, errno, "ioctl on /dev/nsm: %s", strerror(errno));
    } else if ((size_t)n > size) {
        err = answer_fail(a, EPROTO,
                          "the driver reports %zd bytes in a buffer "
                          "of %zu",
                          n, size);
    } else {
        answer_add(a, response, n);
    }
    close(fd);
    free(response);
    return err;
}

typedef struct NsmLoop {
    int fd;
    uint64_t count;
    const uint8_t *request;
    size_t len;
    /* results */
    uint64_t ok, errors, failed, bytes;
    ssize_t last_len;
    uint8_t last[NSM_RESPONSE_MAX];
} NsmLoop;

static void *nsm_loop_thread(void *opaque)
{
    static const uint8_t error[] = "\xa1\x65"
                                   "Error";
    NsmLoop *l = opaque;

    for (uint64_t i = 0; i < l->count; i++) {
        ssize_t n = nsm(l->fd, l->request, l->len, l->last, sizeof(l->last));

        l->last_len = n < 0 ? 0 : n;
        if (n < 0) {
            l->failed++;
        } else if (n >= (ssize_t)sizeof(error) - 1 &&
                   !memcmp(l->last, error, sizeof(error) - 1)) {
            l->errors++;
        } else {
            l->ok++;
        }
        l->bytes += l->last_len;
    }
    return NULL;
}

static bool parse_hex(const char *text, uint8_t *data, size_t *len)
{
    size_t n = strlen(text) / 2;

    if (strlen(text) % 2 || n > *len) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (sscanf(text + 2 * i, "%2hhx", &data[i]) != 1) {
            return false;
        }
    }
    *len = n;
    return true;
}

static int probe_nsm_loop(const Args *args, Answer *a)
{
    uint64_t threads = 0, count = 0, started, us;
    uint8_t request[0x1000];
    size_t len = sizeof(request);
    NsmLoop sum = { 0 }, *loops;
    pthread_t ids[512];
    int fd;

    if (!args_number(args, 0, 512, &threads, a) ||
        !args_number(args, 1, UINT32_MAX, &count, a)) {
        return -EINVAL;
    }
    if (!parse_hex(args->v[2], request, &len)) {
        return answer_fail(a, EINVAL, "not the hex of at most %zu bytes",
                           sizeof(request));
    }
    if (!threads) {
        return answer_fail(a, EINVAL, "at least one thread");
    }
    fd = open("/dev/nsm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return answer_fail(a, errno, "open /dev/nsm: %s", strerror(errno));
    }
    loops = calloc(threads, sizeof(*loops));
    if (!loops) {
        die("nsm-loop");
    }
    started = now_us();
    for (uint64_t i = 0; i < threads; i++) {
        loops[i].fd = fd;
        loops[i].count = count;
        loops[i].request = request;
        loops[i].len = len;
        errno = pthread_create(&ids[i], NULL, nsm_loop_thread, &loops[i]);
        if (errno) {
            die("nsm-loop: thread");
        }
    }
    for (uint64_t i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        sum.ok += loops[i].ok;
        sum.errors += loops[i].errors;
        sum.failed += loops[i].failed;
        sum.bytes += loops[i].bytes;
    }
    us = now_us() - started;
    close(fd);
    answer_printf(a,
                  "us %" PRIu64 "\nok %" PRIu64 "\nerrors %" PRIu64
                  "\nfailed %" PRIu64 "\nbytes %" PRIu64 "\nlast ",
                  us, sum.ok, sum.errors, sum.failed, sum.bytes);
    for (ssize_t i = 0; i < loops[0].last_len; i++) {
        answer_printf(a, "%02x", loops[0].last[i]);
    }
    answer_printf(a, "\n");
    free(loops);
    return 0;
}

const Probe nsm_probes[] = {
    { "nsm-loop", 3, 3, probe_nsm_loop },
    { NULL, 0, 0, NULL },
};
