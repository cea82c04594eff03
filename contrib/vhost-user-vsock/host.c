/*
 * SPDX-License-Identifier: MIT
 *
 * host.c: the process around the device: the host ends of connections, the
 * event loop, the heartbeat responder, start and end. Neither packets nor rings
 * nor messages: those are vsock.c, ring.c and vhost-user.c.
 *
 * Sockets of connections are watched edge-triggered, once for all, and the core
 * remembers what may be read or written; so nothing has to be changed in the
 * epoll set when a connection stalls, and a hang-up cannot make the loop spin.
 * Kick descriptors are watched the same way and never read: each write to an
 * eventfd is an edge. Listeners are level-triggered and switched off while no
 * client can be taken.
 */

#include "host.h"
#include "app-status.h"
#include "listener.h"
#include "log.h"
#include "sandbox.h"
#include "vhost-user.h"

#include <errno.h>
#include <limits.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* What an event is about: the low byte of epoll's data. */
enum {
    ON_CONN,                    /* with slot and generation */
    ON_FRONT_LISTENER,
    ON_FRONT,
    ON_KICK,
    ON_CLIENTS,
    ON_PUBLISHED,               /* with its number */
    ON_SIGNAL,
    ON_LIFELINE,
};

/* vsock_conn.user: how far a heartbeat, or a status, on this connection is. */
enum {
    BEAT_NONE,                  /* an ordinary connection */
    BEAT_RELAY,                 /* to somebody's listener on the port */
    BEAT_RELAYED,               /* the guest's byte went there */
    /* To our own responder, fd -1: */
    BEAT_WAIT,                  /* for the guest's byte */
    BEAT_ANSWER,                /* ours is to be read */
    BEAT_DONE,
    BEAT_WRONG,                 /* it was another byte */
    /* The status of the application, fd -1 as well: */
    STATUS_WAIT,                /* for all its bytes */
    STATUS_ANSWER,              /* ours is to be read */
    STATUS_DONE,
    STATUS_WRONG,               /* it was none */
};

/* A port whose listener's backlog is full, and not asked again until then. */
struct full_port {
    uint32_t port;
    int64_t until;
};

struct host {
    const struct host_options *options;
    int epoll;
    int signals;
    struct listener front_listener;
    struct listener clients;
    struct listener published[HOST_MAX_ROUTES];
    unsigned begin[HOST_MAX_ROUTES]; /* with this address of a route */
    struct full_port full[HOST_FULL_PORTS];
    struct cleanup cleanup;
    struct vhost_user front;
    bool front_on;
    bool booted;                /* told since the guest's last start */
    struct app_status app;
    bool front_gone;            /* with --once: end when all is delivered */
    bool end;
    int status;
    int64_t now;
    bool can_wait_awake;
    bool brisk;                 /* the last wait was a short one */
    unsigned sleeps;            /* waits until one may be awake again ... */
    unsigned penalty;           /* ... after one that was so in vain */
    uint64_t wakeups;
    uint64_t interrupts;
    /* What may explain a heartbeat that does not come. */
    uint64_t drivers;           /* starts of a driver in the guest */
    uint64_t wrong_heartbeats;
    uint64_t relayed_heartbeats;
    uint64_t refused_cid;       /* of the last connection that nobody took */
    uint32_t refused_port;
    struct vsock *vsock;
    struct device device;
};

static int64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static int64_t now_ms(void)
{
    return now_us() / 1000 + 1;
}

static uint64_t conn_tag(const struct vsock_conn *c)
{
    return (uint64_t)c->gen << 32 | c->slot << 8 | ON_CONN;
}

static bool watch(struct host *h, int op, int fd, uint32_t events,
                  uint64_t tag)
{
    struct epoll_event e = { .events = events, .data.u64 = tag };

    return epoll_ctl(h->epoll, op, fd, &e) == 0;
}

/* A line to whoever waits for it; a reader that has gone is no harm. */
static void tell(int fd, const char *line)
{
    struct pollfd p = { .fd = fd < 0 ? STDOUT_FILENO : fd, .events = POLLOUT };

    if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT) ||
        write(p.fd, line, strlen(line)) != (ssize_t)strlen(line)) {
        log_rated(LOG_WARN, "nobody reads descriptor %d: \"%.*s\" not "
                  "told", p.fd, (int)strcspn(line, "\n"), line);
    }
}

/* The heartbeat responder. */

static void beat_done(struct host *h)
{
    h->app.closed = true;
    if (!h->booted) {
        h->booted = true;
        tell(h->options->booted_fd, "booted\n");
    }
}

static ssize_t beat_send(struct vsock_conn *c, const struct iovec *iov,
                         unsigned niov)
{
    ssize_t n = 0;

    for (unsigned i = 0; i < niov; i++) {
        n += iov[i].iov_len;
    }
    if (c->user == BEAT_WAIT && n) {
        bool right = *(uint8_t *)iov->iov_base == HOST_HEARTBEAT_BYTE;

        c->user = right ? BEAT_ANSWER : BEAT_WRONG;
        c->answer = true;
    }
    return n;
}

static ssize_t beat_recv(struct host *h, struct vsock_conn *c,
                         const struct iovec *iov)
{
    if (c->user == BEAT_WRONG) {
        h->wrong_heartbeats++;
        return -ECONNRESET;
    }
    if (c->user != BEAT_ANSWER) {
        return -EAGAIN;
    }
    *(uint8_t *)iov->iov_base = HOST_HEARTBEAT_BYTE;
    c->user = BEAT_DONE;
    beat_done(h);
    return 1;
}

/*
 * Somebody else answers: look on as the first byte of each direction passes.
 * @n of them did, the first of them @byte.
 */
static void beat_watch(struct host *h, struct vsock_conn *c, uint32_t from,
                       ssize_t n, const void *byte)
{
    if (c->user != from || n <= 0) {
        return;
    }
    if (*(const uint8_t *)byte != HOST_HEARTBEAT_BYTE) {
        c->user = BEAT_NONE;
    } else if (from == BEAT_RELAY) {
        c->user = BEAT_RELAYED;
        h->relayed_heartbeats++;
    } else {
        c->user = BEAT_NONE;
        beat_done(h);
    }
}

/* The application's status. */

static bool status_open(struct host *h, struct vsock_conn *c)
{
    if (c->parent_port != APP_STATUS_PORT || h->app.closed) {
        return false;
    }
    h->app.closed = true;
    c->user = STATUS_WAIT;
    return true;
}

static ssize_t status_send(struct host *h, struct vsock_conn *c,
                           const struct iovec *iov, unsigned niov)
{
    char line[APP_STATUS_LINE];
    ssize_t n = 0;

    for (unsigned i = 0; i < niov; i++) {
        n += iov[i].iov_len;
    }
    if (c->user == STATUS_WAIT && app_status_take(&h->app, iov, niov)) {
        c->user = STATUS_WRONG;
        if (app_status_line(&h->app, line)) {
            tell(h->options->booted_fd, line);
            c->user = STATUS_ANSWER;
        }
        c->answer = true;
    }
    return n;
}

static ssize_t status_recv(struct host *h, struct vsock_conn *c,
                           const struct iovec *iov)
{
    if (c->user == STATUS_WRONG) {
        return -ECONNRESET;
    }
    if (c->user != STATUS_ANSWER) {
        return -EAGAIN;
    }
    *(uint8_t *)iov->iov_base = h->app.said[0];
    c->user = STATUS_DONE;
    return 1;
}

/* What the core asks of us. */

/* The unix socket PATH_N. */
static void port_address(struct host_address *a, const char *path,
                         uint32_t port)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&a->addr;

    memset(un, 0, sizeof(*un));
    un->sun_family = AF_UNIX;
    /* The length was checked at the start. */
    snprintf(un->sun_path, sizeof(un->sun_path), "%.*s_%u",
             HOST_MAX_PATH - HOST_MAX_SUFFIX, path, port);
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

/* The number of what the user said about this port of the parent, or -1. */
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

static void no_delay(int fd, int family)
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
    int n = snprintf(un.sun_path + 1, sizeof(un.sun_path) - 1,
                     HOST_NAME "%u:%u/%u:%u/%d-%d", h->options->guest_cid,
                     c->guest_port, c->parent_cid, c->parent_port, getpid(),
                     fd);

    if (bind(fd, (struct sockaddr *)&un,
             offsetof(struct sockaddr_un, sun_path) + 1 + n) < 0) {
        log_rated(LOG_DEBUG, "no name for a connection: %s", strerror(errno));
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
        log_own(LOG_WARN, "no socket for %s: %s", a->text, strerror(err));
        return -err;
    }
    if (a->addr.ss_family == AF_UNIX) {
        name_socket(h, c, fd);
    }
    no_delay(fd, a->addr.ss_family);
    if (connect(fd, (const struct sockaddr *)&a->addr, a->len) < 0) {
        err = errno;
    }
    if (err == 0 || err == EINPROGRESS) {
        if (watch(h, EPOLL_CTL_ADD, fd,
                  EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, conn_tag(c))) {
            c->fd = fd;
            c->user = c->parent_port == HOST_HEARTBEAT_PORT ? BEAT_RELAY
                                                            : BEAT_NONE;
            return -err;
        }
        err = errno;
    }
    close(fd);
    if (err != ENOENT && err != ECONNREFUSED && err != EAGAIN) {
        log_own(LOG_WARN, "cannot connect to %s: %s", a->text,
                  strerror(err));
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
    c->open_ms = VSOCK_MS_OPEN / count > VSOCK_MS_TRY ? VSOCK_MS_OPEN / count
                                                      : VSOCK_MS_TRY;
    while (c->tries < count) {
        unsigned n = h->begin[route] % count;

        for (a = first; n; n--) {
            a = a->next;
        }
        r = host_connect(h, c, a);
        if (r == -EAGAIN) {
            break;              /* a path, whose backlog is full */
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
            r = -ECONNREFUSED;  /* there is no such CID now */
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
        h->begin[route]++;      /* not again with this one */
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

/* How loud each note is: what happens every day is not news. */
static enum log_level note_level(enum vsock_note what)
{
    switch (what) {
    case VSOCK_NOTE_UNKNOWN_TUPLE:
    case VSOCK_NOTE_CLIENT_GONE:
    case VSOCK_NOTE_GUEST_REFUSED:
    case VSOCK_NOTE_UNDELIVERED:
        return LOG_DEBUG;
    case VSOCK_NOTE_NO_LISTENER:
    case VSOCK_NOTE_NOT_SERVED:
    case VSOCK_NOTE_BAD_LINE:
    case VSOCK_NOTE_GUEST_SILENT:
        return LOG_INFO;
    default:
        return LOG_WARN;
    }
}

/* What a lack of ours has caused: the guest's noise must not hide it. */
static bool is_lack(enum vsock_note what)
{
    return what == VSOCK_NOTE_NO_MEMORY || what == VSOCK_NOTE_TABLE_FULL ||
           what == VSOCK_NOTE_BACKLOG || what == VSOCK_NOTE_HOST_ERROR ||
           what == VSOCK_NOTE_EVICTED;
}

static void host_note(void *opaque, enum vsock_note what,
                      const struct vsock_conn *c, const struct vsock_hdr *h)
{
    static struct log_rate lacks[VSOCK_NOTES];
    struct log_rate *rate = is_lack(what) ? &lacks[what] : &log_noise;
    const char *text = vsock_note_text(what);
    struct host *host = opaque;

    if (what == VSOCK_NOTE_NOT_SERVED && h) {
        host->refused_cid = h->dst_cid;
        host->refused_port = h->dst_port;
    } else if (what == VSOCK_NOTE_NO_LISTENER && c) {
        host->refused_cid = c->parent_cid;
        host->refused_port = c->parent_port;
    }
    if (h) {
        log_rated_by(rate, note_level(what), "%s (op %u, from %llu:%u to "
                     "%llu:%u, length %u)", text, h->op,
                     (unsigned long long)h->src_cid, h->src_port,
                     (unsigned long long)h->dst_cid, h->dst_port, h->len);
    } else if (c && c->state != VSOCK_CLIENT) {
        log_rated_by(rate, note_level(what), "%s (guest port %u, parent port "
                     "%u)", text, c->guest_port, c->parent_port);
    } else {
        log_rated_by(rate, note_level(what), "%s", text);
    }
}

static const struct vsock_ops vsock_ops = {
    .open = host_open,
    .instead = host_instead,
    .send = host_send,
    .recv = host_recv,
    .peek = host_peek,
    .shutdown = host_shutdown,
    .close = host_close,
    .note = host_note,
};

/* What the device and the front end ask of us. */

static void host_interrupt(void *opaque, unsigned queue)
{
    struct host *h = opaque;

    h->interrupts++;
    vhost_user_interrupt(&h->front, queue);
}

static void host_bad_ring(void *opaque, unsigned queue, enum ring_result what)
{
    struct host *h = opaque;

    if (what == RING_BROKEN) {
        vhost_user_error(&h->front, queue);
    }
    log_rated(LOG_WARN, what == RING_BROKEN ?
              "ring %u: the guest's index ran away, ring stopped" :
              "ring %u: bad descriptor chain given back", queue);
}

static void host_fresh_driver(void *opaque)
{
    struct host *h = opaque;

    h->booted = false;
    h->drivers++;
    log_rated(LOG_INFO, "the guest's driver starts");
}

static const struct device_ops device_ops = {
    .interrupt = host_interrupt,
    .bad_ring = host_bad_ring,
    .fresh_driver = host_fresh_driver,
};

static void host_watch(void *opaque, unsigned queue, int fd)
{
    (void)queue;
    if (!watch(opaque, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, ON_KICK)) {
        log_own(LOG_ERROR, "cannot watch a kick descriptor: %s",
                  strerror(errno));
    }
}

static void host_unwatch(void *opaque, unsigned queue, int fd)
{
    struct host *h = opaque;

    (void)queue;
    /* Closing is not enough: the front end keeps the same file open. */
    epoll_ctl(h->epoll, EPOLL_CTL_DEL, fd, NULL);
}

static const struct vhost_user_ops vhost_user_ops = {
    .watch = host_watch,
    .unwatch = host_unwatch,
};

/* Listening sockets, as far as events are concerned. */

static void listeners_close(struct host *h)
{
    listener_close(&h->front_listener);
    listener_close(&h->clients);
    for (unsigned i = 0; i < h->options->published; i++) {
        listener_close(&h->published[i]);
    }
}

static void listener_watch(struct host *h, struct listener *l, bool on)
{
    if (l->fd >= 0 && on != l->on &&
        watch(h, EPOLL_CTL_MOD, l->fd, on ? EPOLLIN : 0, l->tag)) {
        l->on = on;
    }
}

/* By AF_VSOCK other machines may reach us too. */
static bool is_parent(const struct host *h, const struct sockaddr_storage *peer)
{
    const struct sockaddr_vm *vm = (const struct sockaddr_vm *)peer;

    return vm->svm_family != AF_VSOCK || vm->svm_cid == h->options->forward_cid;
}

/* Accepts one; -1: none now. It rests when it fails, instead of spinning. */
static int listener_accept(struct host *h, struct listener *l)
{
    struct sockaddr_storage peer = { 0 };
    socklen_t len = sizeof(peer);
    int fd = accept4(l->fd, (struct sockaddr *)&peer, &len,
                     SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        log_own(LOG_WARN, "cannot accept on %s: %s",
                  l->path ? l->path : "a socket", strerror(errno));
        listener_watch(h, l, false);
        l->rest = h->now + HOST_MS_REST;
    }
    if (fd >= 0 && !is_parent(h, &peer)) {
        log_rated(LOG_INFO, "a client of another CID was refused");
        close(fd);
        fd = -1;                /* others that wait will wake us again */
    }
    return fd;
}

static void listener_wake(struct host *h, struct listener *l, bool room)
{
    if (!l->on && room && h->now >= l->rest) {
        l->rest = 0;
        listener_watch(h, l, true);
    }
}

/* Clients. */

static bool client_accept(struct host *h, struct listener *l)
{
    struct vsock_conn *c;
    int fd;

    if (!vsock_client_room(h->vsock)) {
        listener_watch(h, l, false);
        return false;
    }
    fd = listener_accept(h, l);
    if (fd < 0) {
        return false;
    }
    no_delay(fd, l->family);
    c = vsock_client(h->vsock, fd, l->port);
    if (!c) {
        close(fd);
        return false;
    }
    if (!watch(h, EPOLL_CTL_ADD, fd,
               EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, conn_tag(c))) {
        log_own(LOG_WARN, "cannot watch a client: %s", strerror(errno));
        vsock_event(h->vsock, c, VSOCK_EV_HUP);
    }
    return true;
}

/* A few at a time: the rest is not forgotten by epoll. */
static void clients_accept(struct host *h, struct listener *l)
{
    for (unsigned i = 0; i < HOST_ACCEPTS && l->fd >= 0 &&
                         client_accept(h, l); i++) {
        continue;
    }
}

/* The front end. */

static void front_close(struct host *h)
{
    h->front_on = false;
    vhost_user_close(&h->front);
    log_rated(LOG_INFO, "front end disconnected");
    /* Who only looked whether we are alive was none. */
    if (h->options->once && h->front.spoke) {
        h->front_gone = true;
        vsock_finish(h->vsock);
        listeners_close(h);
    }
}

static void front_accept(struct host *h)
{
    int fd = listener_accept(h, &h->front_listener);

    if (fd < 0) {
        return;
    }
    if (h->front_on && !vhost_user_input(&h->front)) {
        front_close(h);         /* it had left before the new one came */
    }
    if (h->front_on || h->front_gone) {
        log_rated(LOG_WARN, "a second front end was refused");
        close(fd);
        return;
    }
    if (!watch(h, EPOLL_CTL_ADD, fd, EPOLLIN, ON_FRONT)) {
        log_own(LOG_ERROR, "cannot watch the front end: %s",
                  strerror(errno));
        close(fd);
        return;
    }
    vhost_user_init(&h->front, fd, h->options->guest_cid, &h->device,
                    &vhost_user_ops, h);
    h->front_on = true;
    h->booted = false;
    h->app = (struct app_status){ 0 };
    log_rated(LOG_INFO, "front end connected");
}

/* The end. */

static void on_lifeline(struct host *h, uint32_t events)
{
    char unused[256];
    ssize_t r = 0;

    if (events & EPOLLIN) {
        r = read(h->options->lifeline_fd, unused, sizeof(unused));
    }
    if (r > 0 || (r < 0 && (errno == EAGAIN || errno == EINTR))) {
        return;
    }
    log_line(LOG_INFO, "the owner has gone");
    listeners_close(h);
    if (h->options->cleanup_dir) {
        cleanup_remove(&h->cleanup);
    }
    h->end = true;
}

/* One line of JSON on stderr. */
static void print_statistics(const struct host *h)
{
    const struct vsock_stats *s = vsock_stats(h->vsock);
    const struct {
        const char *name;
        uint64_t value;
    } values[] = {
        { "connections", vsock_count(h->vsock) },
        { "draining", vsock_draining(h->vsock) },
        { "reserved_bytes", vsock_reserved(h->vsock) },
        { "opened_by_guest", s->guest_opened },
        { "opened_by_host", s->host_opened },
        { "packets_from_guest", s->tx_packets },
        { "packets_to_guest", s->rx_packets },
        { "bytes_from_guest", s->bytes_to_host },
        { "bytes_to_guest", s->bytes_to_guest },
        { "credit_requests", s->credit_requests },
        { "bad_chains", h->device.bad_chains },
        { "interrupts", h->interrupts },
        { "wakeups", h->wakeups },
        { "drivers", h->drivers },
        { "wrong_heartbeats", h->wrong_heartbeats },
        { "relayed_heartbeats", h->relayed_heartbeats },
        { "refused_cid", h->refused_cid },
        { "refused_port", h->refused_port },
    };
    char *line = NULL;
    size_t size;
    FILE *f = open_memstream(&line, &size);
    const char *comma = "";

    if (!f) {
        return;
    }
    fputs("{", f);
    for (unsigned i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        fprintf(f, "\"%s\": %llu, ", values[i].name,
                (unsigned long long)values[i].value);
    }
    fputs("\"refusals\": {", f);
    for (unsigned i = 0; i < VSOCK_NOTES; i++) {
        if (s->notes[i]) {
            fprintf(f, "%s\"%s\": %llu", comma, vsock_note_name(i),
                    (unsigned long long)s->notes[i]);
            comma = ", ";
        }
    }
    fputs("}}\n", f);
    if (fclose(f) == 0) {
        log_write(line, size);
    }
    free(line);
}

static void on_signal(struct host *h)
{
    struct signalfd_siginfo info;

    if (read(h->signals, &info, sizeof(info)) != sizeof(info)) {
        return;
    }
    if (info.ssi_signo == SIGUSR1) {
        print_statistics(h);
    } else {
        log_line(LOG_INFO, "signal %u: ending", info.ssi_signo);
        h->end = true;
    }
}

/* The loop. */

/*
 * A connect in progress has ended, if it has. True: well, and the events are
 * those of a connection.
 */
static bool on_opening(struct host *h, struct vsock_conn *c, uint32_t events)
{
    int err = 0;
    socklen_t len = sizeof(err);

    if (!(events & (EPOLLOUT | EPOLLHUP | EPOLLERR))) {
        return false;
    }
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &len);
    vsock_opened(h->vsock, c, -err);
    return !err;
}

static void on_conn(struct host *h, uint64_t tag, uint32_t events)
{
    struct vsock_conn *c = vsock_get(h->vsock, (uint32_t)tag >> 8, tag >> 32);
    unsigned e = 0;

    if (!c) {
        return;                 /* gone earlier in this batch */
    }
    if (c->state == VSOCK_OPENING && !on_opening(h, c, events)) {
        return;
    }
    if (events & (EPOLLIN | EPOLLRDHUP)) {
        e |= VSOCK_EV_IN;
    }
    if (events & EPOLLOUT) {
        e |= VSOCK_EV_OUT;
    }
    if (events & (EPOLLHUP | EPOLLERR)) {
        e |= VSOCK_EV_HUP;
    }
    vsock_event(h->vsock, c, e);
}

static void on_event(struct host *h, const struct epoll_event *e)
{
    switch (e->data.u64 & 0xff) {
    case ON_CONN:
        on_conn(h, e->data.u64, e->events);
        break;
    case ON_KICK:
        break;                  /* both queues are looked at in any case */
    case ON_FRONT:
        if (h->front_on && !vhost_user_input(&h->front)) {
            front_close(h);
        }
        break;
    case ON_FRONT_LISTENER:
        front_accept(h);
        break;
    case ON_CLIENTS:
        clients_accept(h, &h->clients);
        break;
    case ON_PUBLISHED:
        clients_accept(h, &h->published[e->data.u64 >> 8]);
        break;
    case ON_SIGNAL:
        on_signal(h);
        break;
    case ON_LIFELINE:
        on_lifeline(h, e->events);
        break;
    }
}

static int64_t earlier(int64_t when, const struct listener *l)
{
    return l->rest && (when < 0 || l->rest < when) ? l->rest : when;
}

static int loop_timeout(const struct host *h)
{
    int64_t when = vsock_deadline(h->vsock);

    when = earlier(when, &h->clients);
    when = earlier(when, &h->front_listener);
    for (unsigned i = 0; i < h->options->published; i++) {
        when = earlier(when, &h->published[i]);
    }
    if (when < 0) {
        return -1;
    }
    when -= h->now;
    return when < 0 ? 0 : when > INT_MAX ? INT_MAX : when;
}

/*
 * epoll_wait(), at first awake for a moment where the last wait was that
 * short: where messages go to and fro. A moment in vain is paid for by waits
 * asleep, twice as many each time, and half as many after one that was not.
 */
static int wait_events(struct host *h, struct epoll_event *events, int timeout)
{
    bool awake = h->brisk && !h->sleeps;
    int64_t begin;
    int n = 0;

    if (!timeout || !h->can_wait_awake) {
        return epoll_wait(h->epoll, events, HOST_EVENTS, timeout);
    }
    begin = now_us();
    while (awake && !n && now_us() - begin < HOST_US_AWAKE) {
        n = epoll_wait(h->epoll, events, HOST_EVENTS, 0);
    }
    if (awake) {
        h->penalty = n ? h->penalty / 2 : 2 * h->penalty + 1;
        if (h->penalty > HOST_MAX_SLEEPS) {
            h->penalty = HOST_MAX_SLEEPS;
        }
        h->sleeps = n ? 0 : h->penalty;
    } else if (h->sleeps) {
        h->sleeps--;
    }
    if (!n) {
        n = epoll_wait(h->epoll, events, HOST_EVENTS, timeout);
    }
    h->brisk = now_us() - begin < HOST_US_AWAKE;
    return n;
}

static void loop(struct host *h)
{
    struct epoll_event events[HOST_EVENTS];
    bool more = false;

    while (!h->end) {
        int n = wait_events(h, events, more ? 0 : loop_timeout(h));

        if (n < 0 && errno != EINTR) {
            log_line(LOG_ERROR, "epoll_wait: %s", strerror(errno));
            h->status = 1;
            return;
        }
        h->wakeups++;
        h->now = now_ms();
        vsock_set_now(h->vsock, h->now);
        for (int i = 0; i < n; i++) {
            on_event(h, &events[i]);
        }
        vsock_tick(h->vsock);
        more = device_run(&h->device);
        for (unsigned i = 0; i < h->options->published; i++) {
            listener_wake(h, &h->published[i], vsock_client_room(h->vsock));
        }
        listener_wake(h, &h->clients, vsock_client_room(h->vsock));
        listener_wake(h, &h->front_listener, true);
        if (h->front_gone && !vsock_draining(h->vsock)) {
            h->end = true;
        }
    }
}

/* The start. */

/* On a single CPU nobody else could do what we wait for. */
static bool has_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) < 0 || CPU_COUNT(&set) > 1;
}

/* As many descriptors as are needed; returns for how many connections. */
static uint32_t raise_fd_limit(uint32_t conns, unsigned published)
{
    struct rlimit l;
    /* A published address has a listener, and perhaps its folder open. */
    rlim_t spare = HOST_SPARE_FDS + 2 * published;
    rlim_t want = conns + spare;

    if (getrlimit(RLIMIT_NOFILE, &l) < 0) {
        return conns;
    }
    if (l.rlim_cur < want) {
        l.rlim_cur = l.rlim_max < want ? l.rlim_max : want;
        setrlimit(RLIMIT_NOFILE, &l);
        getrlimit(RLIMIT_NOFILE, &l);
    }
    if (l.rlim_cur < want) {
        conns = l.rlim_cur > 2 * spare ? l.rlim_cur - spare
                                       : l.rlim_cur / 2;
        conns = conns ?: 1;
        log_line(LOG_WARN, "the limit of %llu open files allows %u "
                 "connections", (unsigned long long)l.rlim_cur, conns);
    }
    return conns;
}

static bool listener_start(struct host *h, struct listener *l, uint64_t tag)
{
    l->tag = tag;
    l->on = true;
    if (!watch(h, EPOLL_CTL_ADD, l->fd, EPOLLIN, tag)) {
        log_line(LOG_ERROR, "cannot watch a listener: %s", strerror(errno));
        return false;
    }
    return true;
}

/* On the path, unless a socket was handed in with the option. */
static bool open_or_take(struct host *h, struct listener *l, uint64_t tag,
                         const char *path, int fd, const char *option)
{
    return (fd < 0 ? listener_open_unix(l, path) :
                     listener_take(l, fd, option)) &&
           listener_start(h, l, tag);
}

/* AF_VSOCK is there, and with it the loopback if that is what we need. */
static bool has_vsock(uint32_t cid)
{
    struct host_address a;
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        log_line(LOG_ERROR, "--forward-cid=%u: this host has no AF_VSOCK: %s",
                 cid, strerror(errno));
        return false;
    }
    host_vsock_address(&a, cid, VMADDR_PORT_ANY);
    if (cid == VMADDR_CID_LOCAL &&
        bind(fd, (const struct sockaddr *)&a.addr, a.len) < 0) {
        log_line(LOG_ERROR, "--forward-cid=%u: this host has no vsock "
                 "loopback (%s); modprobe vsock_loopback", cid,
                 strerror(errno));
        close(fd);
        return false;
    }
    close(fd);
    return true;
}

/* Whether another address of the same name is served, or may be still. */
static bool name_served(const struct host *h, unsigned i)
{
    const struct host_options *o = h->options;
    const char *name = o->publish[i].to.text;

    /* They stand side by side. */
    for (unsigned j = i; j-- && o->publish[j].to.text == name; ) {
        if (h->published[j].fd >= 0) {
            return true;
        }
    }
    return i + 1 < o->published && o->publish[i + 1].to.text == name;
}

/* This host may lack some of a name's addresses, ::1 most often. */
static bool published_open(struct host *h, unsigned i)
{
    const struct host_route *p = &h->options->publish[i];
    struct listener *l = &h->published[i];
    int r;

    if (p->to.addr.ss_family == AF_UNIX) {
        if (!listener_open_unix(l, p->to.text)) {
            return false;
        }
    } else {
        r = listener_open(l, &p->to);
        if ((r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL) && name_served(h, i)) {
            return true;
        }
        if (r < 0) {
            log_line(LOG_ERROR, "cannot listen on %s: %s", p->to.text,
                     strerror(-r));
            return false;
        }
    }
    l->port = p->port;
    return listener_start(h, l, i << 8 | ON_PUBLISHED);
}

static bool enter_sandbox(const struct host_options *o)
{
    struct sandbox_sockets sockets = { .vsock = o->forward_cid };
    int r;

    if (!o->sandbox) {
        log_line(LOG_INFO, "no sandbox, as asked");
        return true;
    }
#ifdef SANDBOX_SANITIZED
    log_line(LOG_WARN, "no sandbox: this program was built with a sanitizer, "
             "which needs more system calls");
    return true;
#endif
    for (unsigned i = 0; i < o->routes; i++) {
        for (const struct host_address *a = &o->route[i].to; a; a = a->next) {
            sockets.inet |= a->addr.ss_family == AF_INET;
            sockets.inet6 |= a->addr.ss_family == AF_INET6;
        }
    }
    r = sandbox_available();
    if (r < 0) {
        log_line(LOG_WARN, "no sandbox: seccomp filters are not to be had "
                 "here: %s", strerror(-r));
        return true;
    }
    r = sandbox_enter(&sockets);
    if (r < 0) {
        log_line(LOG_ERROR, "cannot enter the sandbox: %s; --no-sandbox goes "
                 "on without", strerror(-r));
    }
    return r == 0;
}

static bool host_start(struct host *h)
{
    const struct host_options *o = h->options;
    struct vsock_config config = {
        .guest_cid = o->guest_cid,
        .serve_cid2 = o->serve_cid2,
        .max_conns = raise_fd_limit(o->max_conns, o->published),
        .driver_ms = o->driver_ms,
    };
    sigset_t set;

    if (getrandom(config.hash_key, sizeof(config.hash_key), 0) !=
        sizeof(config.hash_key)) {
        log_line(LOG_ERROR, "no random numbers: %s", strerror(errno));
        return false;
    }
    h->vsock = vsock_new(&config, &vsock_ops, h);
    if (!h->vsock) {
        log_line(LOG_ERROR, "no memory");
        return false;
    }
    h->can_wait_awake = has_cpus();
    vsock_set_now(h->vsock, now_ms());
    device_init(&h->device, h->vsock, &device_ops, h);

    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    h->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    h->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (h->signals < 0 || h->epoll < 0 ||
        !watch(h, EPOLL_CTL_ADD, h->signals, EPOLLIN, ON_SIGNAL)) {
        log_line(LOG_ERROR, "cannot set up events: %s", strerror(errno));
        return false;
    }
    if (o->lifeline_fd >= 0 &&
        !watch(h, EPOLL_CTL_ADD, o->lifeline_fd, EPOLLIN, ON_LIFELINE)) {
        log_line(LOG_ERROR, "--lifeline-fd=%d cannot be watched: %s",
                 o->lifeline_fd, strerror(errno));
        return false;
    }
    /* Others of this user may connect, nobody else. */
    umask(0177);
    if (o->cleanup_dir && !cleanup_open(&h->cleanup, o->cleanup_dir)) {
        return false;
    }
    if (!open_or_take(h, &h->front_listener, ON_FRONT_LISTENER, o->socket_path,
                      o->socket_fd, "--socket-fd") ||
        (o->uds_path && !open_or_take(h, &h->clients, ON_CLIENTS, o->uds_path,
                                      o->uds_fd, "--uds-fd")) ||
        (o->forward_cid && !has_vsock(o->forward_cid))) {
        return false;
    }
    for (unsigned i = 0; i < o->published; i++) {
        if (!published_open(h, i)) {
            return false;
        }
    }
    if (!enter_sandbox(o)) {
        return false;
    }
    tell(o->ready_fd, "ready\n");
    if (o->ready_fd >= 0 && o->ready_fd != o->booted_fd) {
        close(o->ready_fd);
    }
    return true;
}

int host_run(const struct host_options *options)
{
    struct host *h = calloc(1, sizeof(*h));
    int status;

    if (!h) {
        log_line(LOG_ERROR, "no memory");
        return 1;
    }
    h->options = options;
    h->epoll = h->signals = -1;
    listener_init(&h->clients);
    listener_init(&h->front_listener);
    for (unsigned i = 0; i < HOST_MAX_ROUTES; i++) {
        listener_init(&h->published[i]);
    }
    cleanup_init(&h->cleanup);
    if (host_start(h)) {
        loop(h);
    } else {
        h->status = 1;
    }
    listeners_close(h);
    cleanup_close(&h->cleanup);
    if (h->front_on) {
        front_close(h);
    }
    if (h->vsock) {
        vsock_free(h->vsock);
    }
    if (h->epoll >= 0) {
        close(h->epoll);
    }
    if (h->signals >= 0) {
        close(h->signals);
    }
    status = h->status;
    free(h);
    return status;
}
