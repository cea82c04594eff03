/*
 * SPDX-License-Identifier: MIT
 *
 * The test agent's ways to get a vsock connection, dial and listen.  What is
 * done on it is in agent-modes.c.
 */

#define _GNU_SOURCE
#include "agent-vsock.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <unistd.h>

/* --- Dialling ------------------------------------------------------------ */

bool parse_peer(const Args *args, struct sockaddr_vm *peer, Answer *a)
{
    uint64_t cid = 0, port = 0;

    if (!args_number(args, 0, UINT32_MAX, &cid, a) ||
        !args_number(args, 1, UINT32_MAX, &port, a)) {
        return false;
    }
    *peer = (struct sockaddr_vm) {
        .svm_family = AF_VSOCK,
        .svm_cid = cid,
        .svm_port = port,
    };
    return true;
}

int dial(const struct sockaddr_vm *peer)
{
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 &&
        connect(fd, (const struct sockaddr *)peer, sizeof(*peer)) < 0) {
        int saved = errno;

        close(fd);
        errno = saved;
        fd = -1;
    }
    return fd;
}

static int probe_connect(const Args *args, Answer *a)
{
    struct sockaddr_vm peer, own = { .svm_port = 0 };
    socklen_t len = sizeof(own);
    uint64_t started, us, ms = 0;
    int fd, err = 0;

    if (!parse_peer(args, &peer, a) ||
        !args_number(args, 2, UINT32_MAX, &ms, a)) {
        return -EINVAL;
    }
    fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return answer_fail(a, errno, "socket: %s", strerror(errno));
    }
    if (args->n > 2) {
        struct timeval t = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        if (setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &t,
                       sizeof(t)) < 0) {
            err = answer_fail(a, errno, "connect timeout: %s", strerror(errno));
            close(fd);
            return err;
        }
    }
    started = now_us();
    if (connect(fd, (struct sockaddr *)&peer, sizeof(peer)) < 0) {
        err = errno;
    }
    us = now_us() - started;
    getsockname(fd, (struct sockaddr *)&own, &len);
    close(fd);
    answer_printf(a, "errno %d\nus %" PRIu64 "\nport %u\n", err, us,
                  own.svm_port);
    return 0;
}

static int probe_dial(const Args *args, Answer *a)
{
    struct sockaddr_vm peer;
    Report report;
    Mode mode;
    int fd;

    if (!parse_peer(args, &peer, a) || !parse_mode(args, 2, &mode, a)) {
        return -EINVAL;
    }
    fd = dial(&peer);
    if (fd < 0) {
        return answer_fail(a, errno, "connect to CID %u port %u: %s",
                           peer.svm_cid, peer.svm_port, strerror(errno));
    }
    run_mode(fd, &mode, &report);
    close(fd);
    add_report(a, &report);
    return 0;
}

/* --- Listening ----------------------------------------------------------- */

typedef struct Listener {
    struct Listener *next;
    uint32_t port;
    int fd, stop; /* stop: an eventfd */
    pthread_t thread;
    Mode mode;
} Listener;

static Listener *listeners;
static pthread_mutex_t listeners_lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct Connection {
    int fd;
    Mode mode;
} Connection;

static void *serve_connection(void *opaque)
{
    Connection *c = opaque;
    Report report;

    run_mode(c->fd, &c->mode, &report);
    if (c->mode.tells) {
        Answer text = { 0 };

        add_report(&text, &report);
        /* The peer may be gone: then nobody misses it. */
        write_full(c->fd, text.data, text.len);
        free(text.data);
    }
    close(c->fd);
    free(c);
    return NULL;
}

static void *serve_listener(void *opaque)
{
    Listener *l = opaque;
    struct pollfd p[] = {
        { .fd = l->fd, .events = POLLIN },
        { .fd = l->stop, .events = POLLIN },
    };

    while (poll(p, 2, -1) > 0 && !p[1].revents) {
        Connection *c;
        int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0) {
            continue; /* it went away before we came */
        }
        c = malloc(sizeof(*c));
        if (c) {
            *c = (Connection) { fd, l->mode };
        }
        if (!c || !start_thread(serve_connection, c)) {
            fprintf(stderr, "agent: port %u: %s\n", l->port, strerror(errno));
            free(c);
            close(fd);
        }
    }
    return NULL;
}

static void close_listener(Listener *l)
{
    if (l->fd >= 0) {
        close(l->fd);
    }
    if (l->stop >= 0) {
        close(l->stop);
    }
    free(l);
}

static int start_listener(const Args *args, const Mode *mode, Answer *a)
{
    Listener *l;
    uint64_t port = 0;
    int err;

    if (!args_number(args, 0, UINT32_MAX - 1, &port, a)) {
        return -EINVAL;
    }
    l = calloc(1, sizeof(*l));
    if (!l) {
        return answer_fail(a, ENOMEM, "listener");
    }
    l->mode = *mode;
    l->port = port;
    l->stop = eventfd(0, EFD_CLOEXEC);
    l->fd = vsock_listen(&l->port);
    err = l->fd < 0 || l->stop < 0 ? errno : 0;
    if (!err) {
        err = pthread_create(&l->thread, NULL, serve_listener, l);
    }
    if (err) {
        close_listener(l);
        return answer_fail(a, err, "listen on port %" PRIu64 ": %s", port,
                           strerror(err));
    }
    pthread_mutex_lock(&listeners_lock);
    l->next = listeners;
    listeners = l;
    pthread_mutex_unlock(&listeners_lock);
    answer_printf(a, "port %u\n", l->port);
    return 0;
}

static int probe_listen(const Args *args, Answer *a)
{
    Mode mode;

    return parse_mode(args, 1, &mode, a) ? start_listener(args, &mode, a) :
                                           -EINVAL;
}

static int probe_echo_listen(const Args *args, Answer *a)
{
    char *echo[] = { args->v[0], (char *)"echo" };
    Args with_mode = { echo, 2 };

    return probe_listen(&with_mode, a);
}

static int probe_unlisten(const Args *args, Answer *a)
{
    uint64_t port = 0;
    Listener **at, *l;

    if (!args_number(args, 0, UINT32_MAX, &port, a)) {
        return -EINVAL;
    }
    pthread_mutex_lock(&listeners_lock);
    at = &listeners;
    while (*at && (*at)->port != port) {
        at = &(*at)->next;
    }
    l = *at;
    if (l) {
        *at = l->next;
    }
    pthread_mutex_unlock(&listeners_lock);
    if (!l) {
        return answer_fail(a, ENOENT, "no listener on port %" PRIu64, port);
    }
    eventfd_write(l->stop, 1);
    pthread_join(l->thread, NULL);
    close_listener(l);
    answer_printf(a, "port %" PRIu64 "\n", port);
    return 0;
}

const Probe vsock_probes[] = {
    { "connect", 2, 3, probe_connect },
    { "dial", 3, 6, probe_dial },
    { "echo-listen", 1, 1, probe_echo_listen },
    { "high-source", 4, 4, probe_high_source },
    { "listen", 2, 5, probe_listen },
    { "unlisten", 1, 1, probe_unlisten },
    { NULL, 0, 0, NULL },
};
