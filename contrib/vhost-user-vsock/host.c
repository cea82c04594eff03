/*
 * SPDX-License-Identifier: MIT
 *
 * host.c: the process around the device: events, listeners, the front end, and
 * the end. Start, host ends of connections, heartbeat and statistics have files
 * of their own (serve.h); packets, rings and messages are vsock.c's, ring.c's
 * and vhost-user.c's.
 *
 * Sockets of connections are watched edge-triggered, once for all, and the core
 * remembers what may be read or written; so nothing has to be changed in the
 * epoll set when a connection stalls, and a hang-up cannot make the loop spin.
 * Kick descriptors are watched the same way and never read: each write to an
 * eventfd is an edge. Listeners are level-triggered and switched off while no
 * client can be taken.
 */

#include "serve.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

static int64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

/* Above 0, which the core has for "never". */
int64_t host_now_ms(void)
{
    return now_us() / 1000 + 1;
}

/*
 * By slot and generation, not by descriptor: an event may be about a connection
 * that an earlier one of the same batch has closed.
 */
uint64_t host_conn_tag(const struct vsock_conn *c)
{
    return (uint64_t)c->gen << 32 | c->slot << 8 | ON_CONN;
}

bool host_epoll(struct host *h, int op, int fd, uint32_t events, uint64_t tag)
{
    struct epoll_event e = { .events = events, .data.u64 = tag };

    return epoll_ctl(h->epoll, op, fd, &e) == 0;
}

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

    /* The VMM logs each error: none for what a guest can repeat at will. */
    if (what == RING_BROKEN) {
        vhost_user_error(&h->front, queue);
    }
    log_rated(VLOG_WARN,
              what == RING_BROKEN ?
                  "ring %u: the guest's index ran away, ring stopped" :
                  "ring %u: bad descriptor chain given back",
              queue);
}

static void host_fresh_driver(void *opaque)
{
    struct host *h = opaque;

    h->booted = false; /* a reboot: its heartbeat is told again */
    h->drivers++;
    log_rated(VLOG_INFO, "the guest's driver starts");
}

const struct device_ops host_device_ops = {
    .interrupt = host_interrupt,
    .bad_ring = host_bad_ring,
    .fresh_driver = host_fresh_driver,
};

static void host_watch(void *opaque, unsigned queue, int fd)
{
    (void)queue;
    if (!host_epoll(opaque, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, ON_KICK)) {
        log_own(VLOG_ERROR, "cannot watch a kick descriptor: %s",
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

/* Clients of one that is not watched wait in its backlog. */
static void listener_watch(struct host *h, struct listener *l, bool on)
{
    if (l->fd >= 0 && on != l->on &&
        host_epoll(h, EPOLL_CTL_MOD, l->fd, on ? EPOLLIN : 0, l->tag)) {
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
        log_own(VLOG_WARN, "cannot accept on %s: %s",
                l->path ? l->path : "a socket", strerror(errno));
        /* It stays ready, so watched it would wake us again at once. */
        listener_watch(h, l, false);
        l->rest = h->now + HOST_MS_REST;
    }
    if (fd >= 0 && !is_parent(h, &peer)) {
        log_rated(VLOG_INFO, "a client of another CID was refused");
        close(fd);
        fd = -1; /* others that wait will wake us again */
    }
    return fd;
}

/* Takes up again one that was switched off, if the reason has gone. */
static void listener_wake(struct host *h, struct listener *l, bool room)
{
    if (!l->on && room && h->now >= l->rest) {
        l->rest = 0;
        listener_watch(h, l, true);
    }
}

/* Clients. */

/* False: there is none, or no room for one. */
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
    host_no_delay(fd, l->family);
    c = vsock_client(h->vsock, fd, l->port);
    if (!c) {
        close(fd);
        return false;
    }
    if (!host_epoll(h, EPOLL_CTL_ADD, fd,
                    EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                    host_conn_tag(c))) {
        log_own(VLOG_WARN, "cannot watch a client: %s", strerror(errno));
        /* Nobody would ever tell of its events. */
        vsock_event(h->vsock, c, VSOCK_EV_HUP);
    }
    return true;
}

/* A few at a time: the rest is not forgotten by epoll. */
static void clients_accept(struct host *h, struct listener *l)
{
    for (unsigned i = 0; i < HOST_ACCEPTS && l->fd >= 0 && client_accept(h, l);
         i++) {
        continue;
    }
}

/* The front end. */

static void front_close(struct host *h)
{
    h->front_on = false;
    vhost_user_close(&h->front);
    log_rated(VLOG_INFO, "front end disconnected");
    /* Who sent no message was no VMM, but looked whether the socket answers. */
    if (h->options->once && h->front.spoke) {
        /* The guest's last bytes are still given out; see loop(). */
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
        front_close(h); /* it had left before the new one came */
    }
    if (h->front_on || h->front_gone) {
        log_rated(VLOG_WARN, "a second front end was refused");
        close(fd);
        return;
    }
    if (!host_epoll(h, EPOLL_CTL_ADD, fd, EPOLLIN, ON_FRONT)) {
        log_own(VLOG_ERROR, "cannot watch the front end: %s", strerror(errno));
        close(fd);
        return;
    }
    vhost_user_init(&h->front, fd, h->options->guest_cid, &h->device,
                    &vhost_user_ops, h);
    h->front_on = true;
    /* Another VMM is another guest, which boots and ends for itself. */
    h->booted = false;
    h->app = (struct app_status) { 0 };
    log_rated(VLOG_INFO, "front end connected");
}

/* The end. */

/* The pipe's end, or the socket's, means the owner's own. */
static void on_lifeline(struct host *h, uint32_t events)
{
    if ((events & EPOLLIN) && control_input(h)) {
        return;
    }
    log_line(VLOG_INFO, "the owner has gone");
    /* Our sockets may lie in that folder, which must be empty then. */
    listeners_close(h);
    if (h->options->cleanup_dir) {
        cleanup_remove(&h->cleanup);
    }
    h->end = true;
}

static void on_signal(struct host *h)
{
    struct signalfd_siginfo info;

    if (read(h->signals, &info, sizeof(info)) != sizeof(info)) {
        return;
    }
    if (info.ssi_signo == SIGUSR1) {
        host_statistics(h);
    } else {
        log_line(VLOG_INFO, "signal %u: ending", info.ssi_signo);
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
        return; /* gone earlier in this batch */
    }
    if (c->state == VSOCK_OPENING && !on_opening(h, c, events)) {
        return;
    }
    /* The end of one direction is found by a read, behind the last bytes. */
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
    case ON_KICK: /* both queues are looked at in any case ... */
    case ON_DUMP: /* ... and so are the dumps */
        break;
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

/* The earlier of when, which is below 0 for never, and the end of l's rest. */
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
 * epoll_wait(), at first awake where that is likely to be enough (pace.h).
 * Whoever else wants the processor has it meanwhile. The guest is asked for a
 * kick only before we sleep.
 */
static int wait_events(struct host *h, struct epoll_event *events, int timeout)
{
    int64_t now, end;

    if (!timeout) {
        return epoll_wait(h->epoll, events, HOST_EVENTS, 0);
    }
    now = now_us();
    end = now + pace_awake(&h->pace, now);
    for (; now < end; now = now_us()) {
        int n = epoll_wait(h->epoll, events, HOST_EVENTS, 0);

        if (n || device_waits(&h->device)) {
            return n;
        }
        sched_yield();
    }
    if (device_held(&h->device)) {
        timeout = PACE_US_HELD / 1000;
    }
    if (device_arm(&h->device)) {
        return 0;
    }
    return epoll_wait(h->epoll, events, HOST_EVENTS, timeout);
}

/* The queues' turn. True: there is more to do at once. */
static bool queues_run(struct host *h, int64_t began)
{
    const struct vsock_stats *s = vsock_stats(h->vsock);
    uint64_t from_guest = s->tx_packets, to_guest = s->rx_packets;
    struct pace_turn turn = { .began = began };
    bool more;

    h->device.hold = pace_holds(&h->pace, began);
    more = device_run(&h->device);
    turn.ended = now_us();
    turn.spoke = s->tx_packets != from_guest;
    turn.passed = s->rx_packets != to_guest;
    turn.bytes = s->bytes_to_host + s->bytes_to_guest;
    pace_turn(&h->pace, &turn);
    if (!pace_holds(&h->pace, turn.ended)) {
        device_settle(&h->device);
    }
    return more;
}

static void loop(struct host *h)
{
    struct epoll_event events[HOST_EVENTS];
    bool more = false;

    while (!h->end) {
        int64_t began;
        int n = wait_events(h, events, more ? 0 : loop_timeout(h));

        if (n < 0 && errno != EINTR) {
            log_line(VLOG_ERROR, "epoll_wait: %s", strerror(errno));
            h->status = 1;
            return;
        }
        h->wakeups++;
        /* One time for all that is done in this turn. */
        began = now_us();
        h->now = began / 1000 + 1;
        vsock_set_now(h->vsock, h->now);
        for (int i = 0; i < n; i++) {
            on_event(h, &events[i]);
        }
        vsock_tick(h->vsock);
        /* After the events, so that what they give fills the same turn. */
        more = queues_run(h, began);
        dumps_flush(h);
        /* Whatever has ended in it may have made room for clients. */
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

int host_run(const struct host_options *options)
{
    struct host *h = calloc(1, sizeof(*h));
    int status;

    if (!h) {
        log_line(VLOG_ERROR, "no memory");
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
    /* First, so that nobody connects to one that is on its way out. */
    listeners_close(h);
    cleanup_close(&h->cleanup);
    /* Before the core: the guest's last packets are taken from its ring. */
    if (h->front_on) {
        front_close(h);
    }
    dumps_close(h);
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
