/*
 * SPDX-License-Identifier: MIT
 *
 * What the files of the test agent share: an answer under construction, the
 * arguments of a probe, the table of probes.  The protocol is described in
 * agent.c.
 */

#ifndef NITRO_GUEST_AGENT_H
#define NITRO_GUEST_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The longest frame, without its length; both ways. */
#define FRAME_MAX (1 << 20)

/* Linux's driver takes as much of a response, and no more. */
#define NSM_RESPONSE_MAX 0x3000

/* The agent ends, with errno's words. */
void die(const char *what) __attribute__((noreturn));

/* A growing answer.  Runs out of memory only by ending the agent. */
typedef struct Answer {
    uint8_t *data;
    size_t len, size;
} Answer;

void answer_add(Answer *a, const void *data, size_t len);
void answer_printf(Answer *a, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Replace what is in the answer by a message; returns -@err, for `return`. */
int answer_fail(Answer *a, int err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

typedef struct Args {
    char **v;
    size_t n;
} Args;

/*
 * Argument @i as a number (decimal or 0x) of at most @max.  False, with the
 * message in @a, when it is none; true and *@value untouched when there are
 * fewer arguments: the caller has put the default there.
 */
bool args_number(const Args *args, size_t i, uint64_t max, uint64_t *value,
                 Answer *a);

/* A probe: 0 with its text in the answer, or -errno with a message there. */
typedef struct Probe {
    const char *name;
    size_t min, max; /* number of arguments */
    int (*run)(const Args *args, Answer *a);
} Probe;

/* Ends with a nameless one. */
extern const Probe machine_probes[]; /* agent-machine.c */
extern const Probe nsm_probes[];     /* agent-nsm.c */
extern const Probe vsock_probes[];   /* agent-vsock.c */

/* What main() was given, for the probe that shows it. */
extern int agent_argc;
extern char **agent_argv;

/*
 * One request to /dev/nsm, with a response buffer of @size bytes: its bytes
 * are appended to the answer.
 */
int nsm_once(const uint8_t *request, size_t len, size_t size, Answer *a);

uint64_t now_us(void);

/* Run @fn(@arg) in a detached thread of its own; false: errno is set. */
bool start_thread(void *(*fn)(void *), void *arg);

/* A vsock listener on any CID; -1 with errno.  *@port 0: any, set on return. */
int vsock_listen(uint32_t *port);

/* Read or write exactly @len bytes; false at EOF (errno 0) or error. */
bool read_full(int fd, void *data, size_t len);
bool write_full(int fd, const void *data, size_t len);

#endif
