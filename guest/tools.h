/*
 * SPDX-License-Identifier: MIT
 *
 * What the files of the program of `nitroctl run --tools` share.
 */

#ifndef NITRO_GUEST_TOOLS_H
#define NITRO_GUEST_TOOLS_H

#include <stdint.h>
#include <sys/types.h>

#include "tools-frame.h"

/* Where everything of ours is in the ramdisk, out of the application's sight */
#define TOOLS_FOLDER "/.nitroctl"
#define TOOLS_PROC TOOLS_FOLDER "/proc"

/* tools-agent.c */

/* Serves the parent; does not return unless that cannot be. */
void agent_run(void);

/* One frame.  False when nobody is there. */
bool send_frame(int sock, uint8_t kind, const void *data, size_t len);
/* The last one, for an error. */
void send_failure(int sock, int err, const char *what);

/*
 * The application: the oldest child of PID 1 that is not the agent.  0: there
 * is none.
 */
pid_t application_pid(void);

/* Read a file of /proc, which ends with NUL then; -1 with errno. */
ssize_t read_proc(const char *name, char *text, size_t size);

/* tools-exec.c */

void exec_run(int sock, const Request *request, int busybox);

/* tools-top.c */

void top_run(int sock);

/* tools-core.c */

/* The kernel's helper for core dumps: "core PID SIGNAL". */
int core_main(int argc, char **argv);

#endif
