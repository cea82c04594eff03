/*
 * SPDX-License-Identifier: MIT
 *
 * log.h: lines on stderr, by level. Whatever a guest or a client can provoke
 * goes through log_rated() or log_own(), which drop what exceeds LOG_RATE and
 * say so.
 */

#ifndef LOG_H
#define LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

/* syslog.h has LOG_INFO and so on for itself. */
enum log_level { VLOG_ERROR, VLOG_WARN, VLOG_INFO, VLOG_DEBUG };

/* Rated lines per second; enough to see a problem, too few to fill a disk. */
#define LOG_RATE 10

extern enum log_level log_threshold;

/* False if there is no such level. */
bool log_set_level(const char *name);
/* To stderr; lost if that takes nothing now, since nobody may stop us. */
void log_write(const char *text, size_t size);
/* Text of others stays on its line: what steers a terminal becomes '?'. */
void log_visible(char *text);
void log_line(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

struct log_rate {
    time_t second;
    unsigned count;
    unsigned dropped;
};

void log_rated_by(struct log_rate *rate, enum log_level level, const char *fmt,
                  ...) __attribute__((format(printf, 3, 4)));

/* What guests and clients do: all of it together has one rate. */
extern struct log_rate log_noise;
#define log_rated(level, ...) log_rated_by(&log_noise, level, __VA_ARGS__)

/*
 * What fails on this host: each such place has a rate of its own, so that no
 * noise, and no other failure, can hide it.
 */
#define log_own(level, ...)                       \
    do {                                          \
        static struct log_rate rate_;             \
                                                  \
        log_rated_by(&rate_, level, __VA_ARGS__); \
    } while (0)

#endif
