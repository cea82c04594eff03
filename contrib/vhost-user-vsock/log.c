/*
 * SPDX-License-Identifier: MIT
 *
 * log.c: lines on stderr, by level. Not a trace: nothing per packet.
 */

#include "log.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum log_level log_threshold = VLOG_WARN;
struct log_rate log_noise;

static const char *const names[] = { "error", "warning", "info", "debug" };

bool log_set_level(const char *name)
{
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (!strcmp(name, names[i])) {
            log_threshold = i;
            return true;
        }
    }
    return false;
}

void log_write(const char *text, size_t size)
{
    struct pollfd p = { .fd = STDERR_FILENO, .events = POLLOUT };
    ssize_t unused;

    /* A pipe that can be written to has room for 4096 bytes. */
    if (poll(&p, 1, 0) == 1 && (p.revents & POLLOUT)) {
        unused = write(STDERR_FILENO, text, size);
        (void)unused;
    }
}

void log_visible(char *text)
{
    for (unsigned char *p = (unsigned char *)text; *p; p++) {
        /* In UTF-8 U+0080 to U+009F are controls as well. */
        if (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) {
            *p++ = '?';
            *p = '?';
        } else if (*p < ' ' || *p == 127) {
            *p = '?';
        }
    }
}

static void log_va(enum log_level level, const char *fmt, va_list ap)
{
    char line[512];
    int n =
        snprintf(line, sizeof(line), "vhost-user-vsock: %s: ", names[level]);
    int m = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);

    n += m < 0 ? 0 : m;
    n = n > (int)sizeof(line) - 2 ? (int)sizeof(line) - 2 : n;
    log_visible(line);
    line[n++] = '\n';
    log_write(line, n);
}

void log_line(enum log_level level, const char *fmt, ...)
{
    va_list ap;

    if (level <= log_threshold) {
        va_start(ap, fmt);
        log_va(level, fmt, ap);
        va_end(ap);
    }
}

void log_rated_by(struct log_rate *rate, enum log_level level, const char *fmt,
                  ...)
{
    struct timespec now;
    va_list ap;

    if (level > log_threshold) {
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec != rate->second) {
        if (rate->dropped) {
            log_line(level, "%u more lines like these were dropped",
                     rate->dropped);
        }
        *rate = (struct log_rate) { .second = now.tv_sec };
    }
    if (rate->count++ >= LOG_RATE) {
        rate->dropped++;
        return;
    }
    va_start(ap, fmt);
    log_va(level, fmt, ap);
    va_end(ap);
}
