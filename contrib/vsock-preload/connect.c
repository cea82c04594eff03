/*
 * SPDX-License-Identifier: MIT
 *
 * connect.c: connecting to an enclave's backend, and how that ended.
 */

#include "socket.h"

#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A socket of this SO_SNDBUF is full with VSOCK_OPEN_SIZE bytes. */
#define FULL_SNDBUF 65536

/*
 * Descriptors of this process that were to be connected and have not been seen
 * to be: a bit each, for numbers modulo PENDING. No more than a hint, lest
 * every write() ask the kernel: what the kernel keeps is what counts.
 */
#define PENDING 65536u

static _Atomic uint64_t pending[PENDING / 64];

static void set_pending(int fd, bool on)
{
    uint64_t bit = 1ull << (unsigned)fd % 64;
    _Atomic uint64_t *word = &pending[(unsigned)fd % PENDING / 64];

    if (on) {
        atomic_fetch_or(word, bit);
    } else {
        atomic_fetch_and(word, ~bit);
    }
}

static bool is_pending(int fd)
{
    return pending[(unsigned)fd % PENDING / 64] >> (unsigned)fd % 64 & 1;
}

/* Connecting. */

/* The outcome is known from now on. */
static void settle(int fd, struct address_state *s, enum address_stage stage)
{
    int size = s->stage == STAGE_CONNECTING ? sock_sndbuf(fd, s) : 0;

    s->stage = stage;
    sock_set_state(fd, s);
    if (size > 0) {
        sock_set_sndbuf(fd, size);
    }
    if (stage == STAGE_CONNECTED) {
        set_pending(fd, false);
    }
}

/*
 * Nothing of the program's is in the socket before it has been seen to be
 * connected, see connect_check(): so it cannot be written to as long as the
 * backend has not answered, and has an error if it did not answer well.
 */
enum outcome connect_look(int fd, struct address_state *s)
{
    short events;

    if (s->stage == STAGE_FAILED) {
        return OUTCOME_FAILED;
    }
    if (s->stage != STAGE_CONNECTING) {
        return OUTCOME_NONE;
    }
    events = sock_events(fd, POLLOUT);
    if (events & POLLERR) {
        return OUTCOME_FAILED;
    }
    if (events & (POLLOUT | POLLHUP)) {
        settle(fd, s, STAGE_CONNECTED);
        return OUTCOME_CONNECTED;
    }
    return OUTCOME_NONE;
}

/*
 * A refusal and a backend that has waited long enough are one error of a unix
 * socket; by now the time has passed or not.
 */
int connect_outcome(int fd, struct address_state *s)
{
    struct address_pair p;
    int err = 0;
    socklen_t len = sizeof(err);

    if (connect_look(fd, s) != OUTCOME_FAILED) {
        return 0;
    }
    NEXT(getsockopt)(fd, SOL_SOCKET, SO_ERROR, &err, &len);
    if (s->stage == STAGE_CONNECTING) {
        settle(fd, s, STAGE_FAILED);
    }
    return err == ECONNRESET && sock_own_pair(fd, &p) &&
                   sock_until_ms(p.until) <= 0 ?
               -ETIMEDOUT :
               -err;
}

int connect_check(int fd)
{
    struct address_state s;
    int saved = errno;
    bool ours;

    if (fd < 0 || !is_pending(fd)) {
        return 0;
    }
    ours = sock_is_ours(fd, &s);
    if (ours && connect_look(fd, &s) != OUTCOME_CONNECTED &&
        (s.stage == STAGE_CONNECTING || s.stage == STAGE_FAILED)) {
        return -ENOTCONN;
    }
    set_pending(fd, false);
    errno = saved;
    return 0;
}

static int wait_outcome(int fd, struct address_state *s)
{
    struct pollfd p = { .fd = fd, .events = POLLOUT };
    struct address_pair pair;
    int32_t ms;
    int r;

    if (!sock_own_pair(fd, &pair)) {
        return -ECONNRESET;
    }
    ms = sock_until_ms(pair.until);
    r = negative(poll(&p, 1, ms > 0 ? ms + 1 : 0)); /* never early */
    if (r == 0) {
        NEXT(shutdown)(fd, SHUT_RDWR);
        settle(fd, s, STAGE_FAILED);
        return -ETIMEDOUT;
    }
    if (r > 0) {
        r = connect_outcome(fd, s);
        return s->stage == STAGE_CONNECTED ? 0 : r ?: -ECONNRESET;
    }
    return r;
}

/* A name for our end, whose port nobody else has. */
static int bind_name(int fd, struct address_pair *p, bool any)
{
    struct sockaddr_un un;
    socklen_t len;
    uint32_t port = any ? sock_random_port() : p->here.port;
    int r;

    for (unsigned i = 0; i < SOCK_TRIES; i++) {
        p->here.port = any ? sock_next_port(port, i) : port;
        len = address_to_name(&un, p);
        r = negative(NEXT(bind)(fd, (struct sockaddr *)&un, len));
        if (r != -EADDRINUSE) {
            return r;
        }
    }
    return -EADDRNOTAVAIL;
}

/* Tells the backend of an enclave what is wanted. */
static int send_open(int fd, const struct address_pair *p, uint32_t ms)
{
    static const char zeros[VSOCK_OPEN_SIZE];
    char line[VSOCK_MAX_LINE];
    int n = snprintf(line, sizeof(line), VSOCK_LINE_OPEN, p->there.port,
                     p->here.port, ms);
    struct iovec iov[] = {
        { line, n },
        { (void *)zeros, VSOCK_OPEN_SIZE - n },
    };
    struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };

    return NEXT(sendmsg)(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT) ==
                   VSOCK_OPEN_SIZE ?
               0 :
               -ECONNRESET;
}

/* Makes a socket that can be connected, and gives it a name. */
static int prepare(int fd, struct address_state *s, struct address_pair *p)
{
    struct address_pair failed;
    struct sockaddr_un un;
    int r = 0;

    p->here = (struct address) { VMADDR_CID_ANY, 0 };
    if (sock_own_port(fd, &p->here.port)) {
        if (address_port(&un, vp_folder, p->here.port)) {
            unlink(un.sun_path); /* it will not listen */
        }
        r = sock_renew(fd, s);
    } else if (sock_own_pair(fd, &failed)) {
        p->here.port = failed.here.port;
        r = sock_renew(fd, s);
    }
    if (s->bound) {
        p->here.cid = s->bound_cid;
    }
    return r < 0 ? r : bind_name(fd, p, !s->bound);
}

static int connect_enclave(int fd, struct address_state *s,
                           const struct sockaddr_un *un, struct address_pair *p)
{
    static const int full = FULL_SNDBUF;
    int r;

    if (p->there.port == VMADDR_PORT_ANY) {
        return -ECONNRESET;
    }
    r = prepare(fd, s, p);
    if (r < 0) {
        return r;
    }
    sock_keep_sndbuf(fd, sock_sndbuf(fd, s));
    set_pending(fd, true);
    s->stage = STAGE_CONNECTING;
    r = sock_set_state(fd, s);
    if (r < 0) {
        return r;
    }
    NEXT(setsockopt)(fd, SOL_SOCKET, SO_SNDBUF, &full, sizeof(full));
    r = negative(NEXT(connect)(fd, (const struct sockaddr *)un, sizeof(*un)));
    if (r == 0) {
        r = send_open(fd, p, s->connect_ms);
    }
    if (r < 0) {
        settle(fd, s, STAGE_FAILED);
        /* Nobody there any more, or too many; AF_VSOCK knows no such words. */
        return r == -ECONNREFUSED || r == -EAGAIN || r == -ENOENT ?
                   -ECONNRESET :
                   r;
    }
    return sock_is_blocking(fd) ? wait_outcome(fd, s) : -EINPROGRESS;
}

int connect_elsewhere(int fd, const struct address_state *s,
                      __typeof__(vp_next.connect) call,
                      const struct sockaddr_vm *vm, int none)
{
    struct timeval tv = { s->connect_ms / 1000, s->connect_ms % 1000 * 1000 };
    int by = NEXT(socket)(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r, moved = 0;

    if (by < 0) {
        return none;
    }
    NEXT(setsockopt)(by, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &tv,
                     sizeof(tv));
    fcntl(by, F_SETFL, fcntl(fd, F_GETFL));
    r = negative(call(by, (const struct sockaddr *)vm, sizeof(*vm)));
    if (r == 0 || r == -EINPROGRESS) {
        moved = sock_replace(fd, s, by);
    }
    close(by);
    return moved < 0 ? moved : r;
}

int op_connect(int fd, struct address_state *s, const struct sockaddr *a,
               socklen_t len)
{
    struct sockaddr_vm vm;
    struct sockaddr_un un, home;
    struct address_pair p;
    int listening = 0, r;
    socklen_t size = sizeof(listening);

    if (connect_look(fd, s) == OUTCOME_NONE && s->stage == STAGE_CONNECTING) {
        return sock_is_blocking(fd) ? wait_outcome(fd, s) : -EALREADY;
    }
    if (s->stage == STAGE_CONNECTED || s->stage == STAGE_SHUT) {
        return s->stage == STAGE_CONNECTED ? -EISCONN : -EINVAL;
    }
    NEXT(getsockopt)(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
    r = listening ? -EINVAL : address_check(a, len, &vm);
    if (r < 0) {
        return r;
    }
    /* An enclave that is starting has its vp_folder, and nobody listens yet. */
    if (!address_home(&home, vp_folder, vm.svm_cid) ||
        !address_enclave(&un, vp_folder, vm.svm_cid) ||
        access(home.sun_path, F_OK) < 0) {
        return connect_elsewhere(fd, s, NEXT(connect), &vm, -ENODEV);
    }
    p.there = (struct address) { vm.svm_cid, vm.svm_port };
    p.until = sock_now_ms() + s->connect_ms;
    return connect_enclave(fd, s, &un, &p);
}

/* The kernel forgets who the peer is as soon as one direction is closed. */
int op_shutdown(int fd, struct address_state *s, int how)
{
    int r;

    if (how >= SHUT_RD && how <= SHUT_RDWR &&
        (s->stage == STAGE_NEW || connect_look(fd, s) == OUTCOME_FAILED)) {
        return -ENOTCONN;
    }
    r = negative(NEXT(shutdown)(fd, how));
    if (r == 0) {
        settle(fd, s, STAGE_SHUT);
    }
    return r;
}
