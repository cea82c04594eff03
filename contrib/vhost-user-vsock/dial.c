/*
 * SPDX-License-Identifier: MIT
 *
 * dial.c: the host ends of connections: what serves a port of the parent, the
 * way there, and bytes to and fro.
 */

#include "serve.h"

#include <errno.h>
#include <limits.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

/* The unix socket PATH_N. */
static void port_address(struct host_address *a, const char *path,
                         uint32_t port)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&a->addr;

    memset(un, 0, sizeof(*un));
    un->sun_family = AF_UNIX;
    /* The length was checked at the start. */
    snprintf(un->sun_path, sizeof(un->sun_path), "%.*s" VSOCK_PORT_SUFFIX,
             VSOCK_MAX_PATH - VSOCK_MAX_SUFFIX, path, port);
    a->text = un->sun_path;
    a->len = sizeof(*un);
}

void host_vsock_address(struct host_address *a, uint32_t cid, uint32_t port)
{
    struct sockaddr_vm *vm = (struct sockaddr_vm *)&a->addr;

    memset(vm, 0, sizeof(*vm));
    vm->svm_family = AF_VSOCK;
    vm->svm_cid = cid;
    vm->svm_port = port;
    snprintf(a->made, sizeof(a->made), "CID %u port %u", cid, port);
    a->text = a->made;
    a->len = sizeof(*vm);
}

/* The row of the user's table that is about this port of the parent, or -1. */
static int listed(const struct host *h, uint32_t port)
{
    const struct host_options *o = h->options;

    for (unsigned i = 0; i < o->routes; i++) {
        if (o->route[i].port == port) {
            return i;
        }
    }
    return -1;
}

void host_no_delay(int fd, int family)
{
    const int one = 1;

    if (family == AF_INET || family == AF_INET6) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
}

/*
 * A name that tells the listener who it is that connects, and to what. It is
 * unique, so nobody can be in the way of it; and no harm if somebody is.
 */
static void name_socket(const struct host *h, const struct vsock_conn *c,
                        int fd)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    int n =
        snprintf(un.sun_path + 1, sizeof(un.sun_path) - 1,
                 VSOCK_NAME_PAIR "%d-%d", h->options->guest_cid, c->guest_port,
                 c->parent_cid, c->parent_port, getpid(), fd);

    if (bind(fd, (struct sockaddr *)&un,
             offsetof(struct sockaddr_un, sun_path) + 1 + n) < 0) {
        log_rated(VLOG_DEBUG, "no name for a connection: %s", strerror(errno));
    }
}

/* 0 or -EINPROGRESS: c has the socket. Otherwise why not. */
static int host_connect(struct host *h, struct vsock_conn *c,
                        const struct host_address *a)
{
    int fd = socket(a->addr.ss_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int err = 0;

    if (fd < 0) {
        err = errno;
        log_own(VLOG_WARN, "no socket for %s: %s", a->text, strerror(err));
        return -err;
    }
    if (a->addr.ss_family == AF_UNIX) {
        name_socket(h, c, fd);
    }
    host_no_delay(fd, a->addr.ss_family);
    h->dials++;
    if (connect(fd, (const struct sockaddr *)&a->addr, a->len) < 0) {
        err = errno;
    }
    if (err == 0 || err == EINPROGRESS) {
        if (host_epoll(h, EPOLL_CTL_ADD, fd,
                       EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                       host_conn_tag(c))) {
            c->fd = fd;
            c->user =
                c->parent_port == HOST_HEARTBEAT_PORT ? BEAT_RELAY : BEAT_NONE;
            return -err;
        }
        err = errno;
    }
    close(fd);
    if (err != ENOENT && err != ECONNREFUSED && err != EAGAIN) {
        log_own(VLOG_WARN, "cannot connect to %s: %s", a->text, strerror(err));
    }
    return -err;
}

static bool nobody(int r)
{
    return r == -ENOENT || r == -ECONNREFUSED;
}

/*
 * Tries the addresses of a listed port in turn, from the one that was good, or
 * was not tried, the last time. The guest waits for two seconds, so each that
 * does not answer has its part of that.
 */
static int listed_connect(struct host *h, struct vsock_conn *c, int route)
{
    const struct host_address *first = &h->options->route[route].to, *a;
    unsigned count = 0;
    int r = -ECONNREFUSED;

    for (a = first; a; a = a->next) {
        count++;
    }
    c->open_ms = VSOCK_MS_OPEN / count > VSOCK_MS_TRY ? VSOCK_MS_OPEN / count :
                                                        VSOCK_MS_TRY;
    while (c->tries < count) {
        unsigned n = h->begin[route] % count;

        for (a = first; n; n--) {
            a = a->next;
        }
        r = host_connect(h, c, a);
        if (r == -EAGAIN) {
            break; /* a path, whose backlog is full */
        }
        c->tries++;
        if (r == 0 || r == -EINPROGRESS) {
            break;
        }
        h->begin[route]++;
    }
    return r;
}

static int port_connect(struct host *h, struct vsock_conn *c)
{
    const struct host_options *o = h->options;
    int route = listed(h, c->parent_port);
    const char *const paths[] = { o->uds_path, o->fallback_path };
    struct host_address a;
    int r = -ENOENT;

    if (status_open(h, c)) {
        return 0;
    }
    if (route >= 0) {
        return listed_connect(h, c, route);
    }
    for (unsigned i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        if (paths[i] && nobody(r)) {
            port_address(&a, paths[i], c->parent_port);
            r = host_connect(h, c, &a);
        }
    }
    if (nobody(r) && o->forward_cid) {
        host_vsock_address(&a, o->forward_cid, c->parent_port);
        r = host_connect(h, c, &a);
        if (r == -ENODEV) {
            r = -ECONNREFUSED; /* there is no such CID now */
        }
    }
    if (nobody(r) && c->parent_port == HOST_HEARTBEAT_PORT) {
        c->user = BEAT_WAIT;
        return 0;
    }
    return r;
}

/*
 * However many wait for one port, its listener is asked once in a while: each
 * try is four system calls, and other ports wait for them.
 */
static int host_open(void *opaque, struct vsock_conn *c)
{
    struct host *h = opaque;
    struct full_port *f = &h->full[c->parent_port % HOST_FULL_PORTS];
    int r;

    if (f->port == c->parent_port && h->now < f->until) {
        return -EAGAIN;
    }
    r = port_connect(h, c);
    if (r == -EAGAIN) {
        *f = (struct full_port) { c->parent_port, h->now + VSOCK_MS_RETRY };
    }
    return r;
}

/*
 * The next address of a name; and a heartbeat by AF_VSOCK that nobody takes is
 * ours to answer.
 */
static int host_instead(void *opaque, struct vsock_conn *c)
{
    struct host *h = opaque;
    int route = listed(h, c->parent_port);

    if (route < 0 && c->parent_port != HOST_HEARTBEAT_PORT) {
        return -ECONNREFUSED;
    }
    if (route >= 0) {
        h->begin[route]++; /* not again with this one */
        if (h->now >= c->give_up) {
            return -ETIMEDOUT;
        }
    }
    close(c->fd);
    c->fd = -1;
    if (route >= 0) {
        return listed_connect(h, c, route);
    }
    c->user = BEAT_WAIT;
    return 0;
}

static ssize_t host_send(void *opaque, struct vsock_conn *c,
                         const struct iovec *iov, unsigned niov)
{
    ssize_t r;

    if (c->user >= STATUS_WAIT) {
        return status_send(opaque, c, iov, niov);
    }
    if (c->user >= BEAT_WAIT) {
        return beat_send(c, iov, niov);
    }
    r = writev(c->fd, iov, niov < IOV_MAX ? niov : IOV_MAX);
    beat_watch(opaque, c, BEAT_RELAY, r, iov->iov_base);
    return r < 0 ? (errno == EINTR ? -EAGAIN : -errno) : r;
}

static ssize_t host_recv(void *opaque, struct vsock_conn *c,
                         const struct iovec *iov, unsigned niov)
{
    ssize_t r;

    if (c->user >= STATUS_WAIT) {
        return status_recv(opaque, c, iov);
    }
    if (c->user >= BEAT_WAIT) {
        return beat_recv(opaque, c, iov);
    }
    r = readv(c->fd, iov, niov);
    beat_watch(opaque, c, BEAT_RELAYED, r, iov->iov_base);
    return r < 0 ? -errno : r;
}

static ssize_t host_peek(void *opaque, struct vsock_conn *c, void *buf,
                         size_t n)
{
    ssize_t r = recv(c->fd, buf, n, MSG_PEEK | MSG_DONTWAIT);

    (void)opaque;
    return r < 0 ? -errno : r;
}

static void host_shutdown(void *opaque, struct vsock_conn *c, int how)
{
    (void)opaque;
    if (c->fd >= 0) {
        shutdown(c->fd, how == VSOCK_OFF_RECV ? SHUT_RD : SHUT_WR);
    }
}

static void host_close(void *opaque, struct vsock_conn *c, bool cut)
{
    const struct sockaddr nobody = { .sa_family = AF_UNSPEC };

    (void)opaque;
    if (c->fd >= 0) {
        /*
         * A TCP connection is reset by this. A unix socket's other end has an
         * error only if it has sent what was not read; it does not know what
         * this is, and the kernel has no other way.
         */
        if (cut) {
            connect(c->fd, &nobody, sizeof(nobody));
        }
        close(c->fd);
        c->fd = -1;
    }
}

static int64_t host_clock(void *opaque)
{
    (void)opaque;
    return host_now_ms();
}

const struct vsock_ops host_vsock_ops = {
    .open = host_open,
    .instead = host_instead,
    .send = host_send,
    .recv = host_recv,
    .peek = host_peek,
    .shutdown = host_shutdown,
    .close = host_close,
    .note = host_note,
    .port = host_port,
    .clock = host_clock,
    .packet = dump_packet,
};
