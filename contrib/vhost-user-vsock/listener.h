/*
 * SPDX-License-Identifier: MIT
 *
 * listener.h: listening sockets, and removing at the end what they and a
 * supervisor leave in folders. Folders are opened at the start and used by
 * descriptor, so that a process that may open nothing any more can clean up.
 */

#ifndef LISTENER_H
#define LISTENER_H

#include "host-address.h"

#include <sys/stat.h>

/* Beside a socket while it is made: the file that is locked. */
#define LISTENER_LOCK ".lock"
/* Tries to lock it: 5 s, far longer than any start. */
#define LISTENER_LOCK_TRIES 500
#define LISTENER_MS_LOCK 10

struct listener {
    int fd;
    uint64_t tag;
    bool on;      /* watched, that is */
    int64_t rest; /* not before; 0: at once */
    int family;
    int64_t port;     /* of the guest; -1: its clients say it */
    const char *path; /* NULL: not ours to remove */
    const char *name; /* the path's last part, in ... */
    int folder;
    dev_t dev;
    ino_t ino;
};

/* Neither open nor watched. */
void listener_init(struct listener *l);
/* One that listens already, handed in. */
bool listener_take(struct listener *l, int fd, const char *option);
/* Makes a unix socket; one that a dead process has left is replaced. */
bool listener_open_unix(struct listener *l, const char *path);
/* Any other address; 0 or -errno. */
int listener_open(struct listener *l, const struct host_address *a);
/* Removes the socket, if it is still ours. */
void listener_close(struct listener *l);

/* A folder to be removed at the end. */
struct cleanup {
    const char *path;
    const char *name;
    int fd;
    int parent;
};

void cleanup_init(struct cleanup *c);
/* path without a slash at its end. */
bool cleanup_open(struct cleanup *c, const char *path);
/* Only what a supervisor leaves there: plain files and sockets, then itself. */
void cleanup_remove(struct cleanup *c);
void cleanup_close(struct cleanup *c);

#endif
