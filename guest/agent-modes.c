/*
 * SPDX-License-Identifier: MIT
 *
 * The test agent's modes: what is done on a vsock connection, whoever made it,
 * and the pattern by which a lost or doubled byte shows.
 */

#define _GNU_SOURCE
#include "agent-vsock.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_MAX (4 << 20)

void add_report(Answer *a, const Report *r)
{
    answer_printf(a,
                  "sent %" PRIu64 "\nreceived %" PRIu64 "\nmismatch %" PRId64
                  "\nerrno %d\nus %" PRIu64 "\n",
                  r->sent, r->received, r->mismatch, r->err, r->us);
}

uint8_t *new_pattern(uint32_t seed, size_t chunk)
{
    uint8_t *pattern = malloc(BLOCK + chunk);
    uint32_t x = seed;

    if (!pattern) {
        return NULL;
    }
    for (size_t i = 0; i < BLOCK; i++) {
        x = x * 1664525 + 1013904223;
        pattern[i] = x >> 24;
    }
    for (size_t done = BLOCK; done < BLOCK + chunk;) {
        size_t n = BLOCK + chunk - done;

        n = n < BLOCK ? n : BLOCK;
        memcpy(pattern + done, pattern, n);
        done += n;
    }
    return pattern;
}

/* Offset in @data of the first byte that differs from @want; @n: none. */
static size_t first_difference(const uint8_t *data, const uint8_t *want,
                               size_t n)
{
    size_t i = 0;

    if (memcmp(data, want, n) == 0) {
        return n;
    }
    while (data[i] == want[i]) {
        i++;
    }
    return i;
}

/* Read to the end; compare with @pattern unless it is NULL. */
static void read_to_end(int fd, const uint8_t *pattern, Report *r)
{
    uint8_t *data = malloc(CHUNK_DEFAULT);
    ssize_t n;

    if (!data) {
        r->err = ENOMEM;
        return;
    }
    while ((n = read(fd, data, CHUNK_DEFAULT)) > 0) {
        if (pattern && r->mismatch < 0) {
            size_t same =
                first_difference(data, pattern + r->received % BLOCK, n);

            if (same < (size_t)n) {
                r->mismatch = r->received + same;
            }
        }
        r->received += n;
    }
    if (n < 0 && !r->err) {
        r->err = errno;
    }
    free(data);
}

/* Send @size bytes of @pattern and shut down our sending side. */
static void send_pattern(int fd, const uint8_t *pattern, uint64_t size,
                         size_t chunk, Report *r)
{
    while (r->sent < size) {
        uint64_t left = size - r->sent;
        ssize_t n =
            write(fd, pattern + r->sent % BLOCK, left < chunk ? left : chunk);

        if (n < 0) {
            r->err = errno;
            return;
        }
        r->sent += n;
    }
    if (shutdown(fd, SHUT_WR) < 0) {
        r->err = errno;
    }
}

static void mode_echo(int fd, const Mode *mode, Report *r)
{
    uint8_t *data = malloc(CHUNK_DEFAULT);
    ssize_t n = -1;

    (void)mode;
    errno = ENOMEM;
    while (data && (n = read(fd, data, CHUNK_DEFAULT)) > 0) {
        r->received += n;
        if (!write_full(fd, data, n)) {
            n = -1;
            break;
        }
        r->sent += n;
    }
    if (n < 0) {
        r->err = errno;
    } else {
        shutdown(fd, SHUT_WR);
    }
    free(data);
}

static void mode_sink(int fd, const Mode *mode, Report *r)
{
    uint8_t *pattern = new_pattern(mode->arg[0], CHUNK_DEFAULT);

    if (!pattern) {
        r->err = ENOMEM;
        return;
    }
    read_to_end(fd, pattern, r);
    free(pattern);
}

static void mode_source(int fd, const Mode *mode, Report *r)
{
    size_t chunk = mode->arg[2];
    uint8_t *pattern = new_pattern(mode->arg[1], chunk);

    if (!pattern) {
        r->err = ENOMEM;
        return;
    }
    send_pattern(fd, pattern, mode->arg[0], chunk, r);
    if (!r->err) {
        read_to_end(fd, NULL, r);
    }
    free(pattern);
}

struct Sending {
    int fd;
    const Mode *mode;
    const uint8_t *pattern;
    Report report;
};

static void *send_thread(void *opaque)
{
    struct Sending *s = opaque;

    send_pattern(s->fd, s->pattern, s->mode->arg[0], s->mode->arg[2],
                 &s->report);
    return NULL;
}

static void mode_both(int fd, const Mode *mode, Report *r)
{
    size_t chunk = mode->arg[2];
    struct Sending s = {
        .fd = fd,
        .mode = mode,
        .pattern = new_pattern(mode->arg[1],
                               chunk > CHUNK_DEFAULT ? chunk : CHUNK_DEFAULT),
    };
    pthread_t thread;

    r->err =
        s.pattern ? pthread_create(&thread, NULL, send_thread, &s) : ENOMEM;
    if (!r->err) {
        read_to_end(fd, s.pattern, r);
        pthread_join(thread, NULL);
        r->sent = s.report.sent;
        r->err = s.report.err ? s.report.err : r->err;
    }
    free((void *)s.pattern);
}

static void mode_count(int fd, const Mode *mode, Report *r)
{
    (void)mode;
    read_to_end(fd, NULL, r);
}

static void mode_sleep(int fd, const Mode *mode, Report *r)
{
    poll(NULL, 0, mode->arg[0]);
    read_to_end(fd, NULL, r);
}

void mode_half(int fd, const Mode *mode, Report *r)
{
    (void)mode;
    if (shutdown(fd, SHUT_WR) < 0) {
        r->err = errno;
        return;
    }
    read_to_end(fd, NULL, r);
}

static void mode_hold(int fd, const Mode *mode, Report *r)
{
    /* Only errors and the end of the whole connection wake us. */
    struct pollfd p = { .fd = fd, .events = 0 };

    (void)mode;
    (void)r;
    poll(&p, 1, -1);
}

static void mode_drop(int fd, const Mode *mode, Report *r)
{
    (void)fd;
    (void)mode;
    (void)r;
}

static void mode_pingpong(int fd, const Mode *mode, Report *r)
{
    uint8_t byte = 0;

    for (uint64_t i = 0; i < mode->arg[0]; i++) {
        if (!write_full(fd, &byte, 1)) {
            r->err = errno;
            return;
        }
        r->sent++;
        if (!read_full(fd, &byte, 1)) {
            r->err = errno;
            return;
        }
        r->received++;
    }
}

static void mode_messages(int fd, const Mode *mode, Report *r)
{
    size_t size = mode->arg[0];
    uint8_t *zeros = calloc(1, size ? size : 1);

    if (!zeros) {
        r->err = ENOMEM;
        return;
    }
    for (uint64_t i = 0; !r->err && i < mode->arg[1]; i++) {
        if (write_full(fd, zeros, size)) {
            r->sent += size;
        } else {
            r->err = errno;
        }
    }
    free(zeros);
    if (!r->err) {
        mode_half(fd, mode, r);
    }
}

/* The numbers in arg[] are the defaults. */
static const Mode modes[] = {
    { "both", 2, 3, mode_both, false, { 0, 0, CHUNK_DEFAULT } },
    { "count", 0, 0, mode_count, true, { 0 } },
    { "drop", 0, 0, mode_drop, false, { 0 } },
    { "echo", 0, 0, mode_echo, false, { 0 } },
    { "half", 0, 0, mode_half, false, { 0 } },
    { "hold", 0, 0, mode_hold, false, { 0 } },
    { "messages", 2, 2, mode_messages, false, { 0 } },
    { "pingpong", 1, 1, mode_pingpong, false, { 0 } },
    { "sink", 1, 1, mode_sink, true, { 0 } },
    { "sleep", 1, 1, mode_sleep, true, { 0 } },
    { "source", 2, 3, mode_source, false, { 0, 0, CHUNK_DEFAULT } },
};

bool parse_mode(const Args *args, size_t first, Mode *mode, Answer *a)
{
    size_t n = args->n - first - 1;

    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (strcmp(modes[i].name, args->v[first])) {
            continue;
        }
        *mode = modes[i];
        if (n < mode->min || n > mode->max) {
            answer_fail(a, EINVAL,
                        "mode %s takes %zu to %zu arguments, not "
                        "%zu",
                        mode->name, mode->min, mode->max, n);
            return false;
        }
        for (size_t k = 0; k < n; k++) {
            /* Only a chunk has a limit of its own. */
            uint64_t max = k == 2 ? CHUNK_MAX : INT64_MAX;

            if (!args_number(args, first + 1 + k, max, &mode->arg[k], a)) {
                return false;
            }
        }
        if (mode->max == 3 && mode->arg[2] == 0) {
            answer_fail(a, EINVAL, "a chunk of 0 bytes");
            return false;
        }
        return true;
    }
    answer_fail(a, EINVAL, "no such mode: %s", args->v[first]);
    return false;
}

void run_mode(int fd, const Mode *mode, Report *r)
{
    uint64_t started = now_us();

    *r = (Report) { .mismatch = -1 };
    mode->run(fd, mode, r);
    r->us = now_us() - started;
}
