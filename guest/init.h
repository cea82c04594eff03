/*
 * SPDX-License-Identifier: MIT
 *
 * What PID 1's parts share: how it says that a step failed, and files of lines.
 */

#ifndef GUEST_INIT_H
#define GUEST_INIT_H

#include <stddef.h>

/* Print "init: STEP: ERRNO" and die, which makes the kernel panic. */
void __attribute__((noreturn)) die(const char *step);
void __attribute__((noreturn)) die_about(const char *step, const char *what);

/* The same words, and go on. */
void warn_about(const char *step, const char *what);

/*
 * The lines of a file without their ends, as a NULL-terminated array that
 * lives as long as we do.  NULL with errno when it cannot be read.
 */
char **read_lines(const char *path, size_t *count);

#endif
