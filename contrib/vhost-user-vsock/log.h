/*
 * SPDX-License-Identifier: MIT
 *
 * log.h: lines on stderr, by level. Whatever a guest or a client can provoke
 * goes through log_rated(), which drops what exceeds LOG_RATE and says so.
 */

#ifndef LOG_H
#define LOG_H

#include <stdbool.h>
#include <stddef.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Rated lines per second; enough to see a problem, too few to fill a disk. */
#define LOG_RATE 10

extern enum log_level log_threshold;

/* False if there is no such level. */
bool log_set_level(const char *name);
/* To stderr; lost if that takes nothing now, since nobody may stop us. */
void log_write(const char *text, size_t size);
void log_line(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void log_rated(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
