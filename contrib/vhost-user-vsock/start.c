/*
 * SPDX-License-Identifier: MIT
 *
 * start.c: everything before "ready": limits, sockets, sandbox.
 */

#include "sandbox.h"
#include "serve.h"

#include <errno.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

/* To wait awake needs a second CPU, for whoever makes what we wait for. */
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
        conns = l.rlim_cur > 2 * spare ? l.rlim_cur - spare : l.rlim_cur / 2;
        conns = conns ?: 1;
        log_line(VLOG_WARN,
                 "the limit of %llu open files allows %u "
                 "connections",
                 (unsigned long long)l.rlim_cur, conns);
    }
    return conns;
}

static bool listener_start(struct host *h, struct listener *l, uint64_t tag)
{
    l->tag = tag;
    l->on = true;
    if (!host_epoll(h, EPOLL_CTL_ADD, l->fd, EPOLLIN, tag)) {
        log_line(VLOG_ERROR, "cannot watch a listener: %s", strerror(errno));
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
        log_line(VLOG_ERROR, "--forward-cid=%u: this host has no AF_VSOCK: %s",
                 cid, strerror(errno));
        return false;
    }
    host_vsock_address(&a, cid, VMADDR_PORT_ANY);
    if (cid == VMADDR_CID_LOCAL &&
        bind(fd, (const struct sockaddr *)&a.addr, a.len) < 0) {
        log_line(VLOG_ERROR,
                 "--forward-cid=%u: this host has no vsock "
                 "loopback (%s); modprobe vsock_loopback",
                 cid, strerror(errno));
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

    /* The addresses of one name stand side by side, before this one. */
    for (unsigned j = i; j-- && o->publish[j].to.text == name;) {
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
            log_line(VLOG_ERROR, "cannot listen on %s: %s", p->to.text,
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
        log_line(VLOG_INFO, "no sandbox, as asked");
        return true;
    }
#ifdef SANDBOX_SANITIZED
    log_line(VLOG_WARN, "no sandbox: this program was built with a sanitizer, "
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
        log_line(VLOG_WARN,
                 "no sandbox: seccomp filters are not to be had "
                 "here: %s",
                 strerror(-r));
        return true;
    }
    r = sandbox_enter(&sockets);
    if (r < 0) {
        log_line(VLOG_ERROR,
                 "cannot enter the sandbox: %s; --no-sandbox goes "
                 "on without",
                 strerror(-r));
    }
    return r == 0;
}

static bool start_core(struct host *h)
{
    const struct host_options *o = h->options;
    struct vsock_config config = {
        .guest_cid = o->guest_cid,
        .serve_cid2 = o->serve_cid2,
        .max_conns = raise_fd_limit(o->max_conns, o->published),
        .driver_ms = o->driver_ms,
    };

    if (getrandom(config.hash_key, sizeof(config.hash_key), 0) !=
        sizeof(config.hash_key)) {
        log_line(VLOG_ERROR, "no random numbers: %s", strerror(errno));
        return false;
    }
    h->vsock = vsock_new(&config, &host_vsock_ops, h);
    if (!h->vsock) {
        log_line(VLOG_ERROR, "no memory");
        return false;
    }
    h->pace.can_wait_awake = has_cpus();
    vsock_set_now(h->vsock, host_now_ms());
    device_init(&h->device, h->vsock, &host_device_ops, h);
    return true;
}

/* Signals are read like everything else, so that nothing is interrupted. */
static bool start_events(struct host *h)
{
    const struct host_options *o = h->options;
    sigset_t set;

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
        !host_epoll(h, EPOLL_CTL_ADD, h->signals, EPOLLIN, ON_SIGNAL)) {
        log_line(VLOG_ERROR, "cannot set up events: %s", strerror(errno));
        return false;
    }
    if (o->lifeline_fd >= 0) {
        control_start(h);
    }
    if (o->lifeline_fd >= 0 &&
        !host_epoll(h, EPOLL_CTL_ADD, o->lifeline_fd, EPOLLIN, ON_LIFELINE)) {
        log_line(VLOG_ERROR, "--lifeline-fd=%d cannot be watched: %s",
                 o->lifeline_fd, strerror(errno));
        return false;
    }
    return true;
}

static bool start_listeners(struct host *h)
{
    const struct host_options *o = h->options;

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
    return true;
}

/* In this order: in the sandbox nothing can be opened any more. */
bool host_start(struct host *h)
{
    const struct host_options *o = h->options;

    if (!start_core(h) || !start_events(h) || !start_listeners(h) ||
        !enter_sandbox(o)) {
        return false;
    }
    host_tell(o->ready_fd, "ready\n");
    if (o->ready_fd >= 0 && o->ready_fd != o->booted_fd) {
        close(o->ready_fd);
    }
    return true;
}
