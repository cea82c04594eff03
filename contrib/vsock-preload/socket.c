/*
 * SPDX-License-Identifier: MIT
 *
 * socket.c: a socket of ours, as the kernel keeps it: what is known of it, its
 * names, and how another takes its place.
 */

#include "socket.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Of the backend's own choice from here on, for clients that say CONNECT. */
#define PORT_END (1u << 30)

/* What the kernel keeps for us. */

bool sock_state(int fd, struct address_state *s)
{
    uint64_t word = 0;
    socklen_t len = sizeof(word);
    int saved = errno;
    int r = NEXT(getsockopt)(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &word, &len);

    errno = saved;
    return r == 0 && len == sizeof(word) && address_unpack(word, s);
}

int sock_set_state(int fd, const struct address_state *s)
{
    uint64_t word = address_pack(s);

    return negative(NEXT(setsockopt)(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &word,
                                     sizeof(word)));
}

bool sock_is_ours(int fd, struct address_state *s)
{
    return sock_state(fd, s) && s->stage != STAGE_DEVICE;
}

int sock_make(int flags, const struct address_state *s)
{
    int fd = NEXT(socket)(AF_UNIX, SOCK_STREAM | flags, 0);
    int r;

    if (fd < 0) {
        return -errno;
    }
    r = sock_set_state(fd, s);
    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

bool sock_is_blocking(int fd)
{
    return !(fcntl(fd, F_GETFL) & O_NONBLOCK);
}

/* The kernel doubles what is set, up to a limit that only some may exceed. */
static int set_size(int fd, int option, int force, int size)
{
    int half = size / 2;

    if (NEXT(setsockopt)(fd, SOL_SOCKET, force, &half, sizeof(half)) == 0) {
        return 0;
    }
    return negative(
        NEXT(setsockopt)(fd, SOL_SOCKET, option, &half, sizeof(half)));
}

static int get_int(int fd, int option)
{
    int value = -1;
    socklen_t len = sizeof(value);

    return NEXT(getsockopt)(fd, SOL_SOCKET, option, &value, &len) < 0 ? -1 :
                                                                        value;
}

void sock_set_sndbuf(int fd, int size)
{
    set_size(fd, SO_SNDBUF, SO_SNDBUFFORCE, size);
}

void sock_keep_sndbuf(int fd, int size)
{
    NEXT(setsockopt)(fd, SOL_SOCKET, SO_INCOMING_CPU, &size, sizeof(size));
}

int sock_sndbuf(int fd, const struct address_state *s)
{
    return get_int(fd,
                   s->stage == STAGE_CONNECTING ? SO_INCOMING_CPU : SO_SNDBUF);
}

/* What the program has set is set for the other. */
static void copy_options(int fd, const struct address_state *s, int by)
{
    static const int options[] = {
        SO_RCVTIMEO, SO_SNDTIMEO, SO_LINGER, SO_KEEPALIVE, SO_REUSEADDR,
    };
    int sizes[] = { sock_sndbuf(fd, s), get_int(fd, SO_RCVBUF) };

    for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        struct timeval value; /* the largest of their types */
        socklen_t len = sizeof(value);

        if (NEXT(getsockopt)(fd, SOL_SOCKET, options[i], &value, &len) == 0) {
            NEXT(setsockopt)(by, SOL_SOCKET, options[i], &value, len);
        }
    }
    if (sizes[0] > 0 && sizes[0] != get_int(by, SO_SNDBUF)) {
        sock_set_sndbuf(by, sizes[0]);
    }
    if (sizes[1] > 0 && sizes[1] != get_int(by, SO_RCVBUF)) {
        set_size(by, SO_RCVBUF, SO_RCVBUFFORCE, sizes[1]);
    }
}

int sock_replace(int fd, const struct address_state *s, int by)
{
    int flags = fcntl(fd, F_GETFD), status = fcntl(fd, F_GETFL), r;

    if (flags < 0 || status < 0) {
        return -errno;
    }
    copy_options(fd, s, by);
    fcntl(by, F_SETFL, status);
    r = dup3(by, fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0);
    return r < 0 ? -errno : 0;
}

int sock_renew(int fd, struct address_state *s)
{
    struct address_state old = *s;
    int by, r;

    s->stage = STAGE_NEW;
    by = sock_make(SOCK_CLOEXEC, s);
    if (by < 0) {
        return by;
    }
    r = sock_replace(fd, &old, by);
    close(by);
    return r;
}

/* Time. */

uint64_t sock_now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000ull + t.tv_nsec / 1000000;
}

int32_t sock_until_ms(uint32_t until)
{
    return until - (uint32_t)sock_now_ms();
}

/* Addresses. */

int sock_copy_address(const struct sockaddr_vm *vm, struct sockaddr *a,
                      socklen_t *len)
{
    if (!a || !len) {
        return -EFAULT;
    }
    if ((int)*len < 0) {
        return -EINVAL;
    }
    memcpy(a, vm, *len < sizeof(*vm) ? *len : sizeof(*vm));
    *len = sizeof(*vm);
    return 0;
}

static bool own_name(int fd, struct sockaddr_un *un, socklen_t *len)
{
    *len = sizeof(*un);
    return NEXT(getsockname)(fd, (struct sockaddr *)un, len) == 0;
}

static bool peer_name(int fd, struct sockaddr_un *un, socklen_t *len)
{
    *len = sizeof(*un);
    return NEXT(getpeername)(fd, (struct sockaddr *)un, len) == 0;
}

bool sock_own_pair(int fd, struct address_pair *p)
{
    struct sockaddr_un un;
    socklen_t len;

    return own_name(fd, &un, &len) && address_from_name(&un, len, p);
}

bool sock_own_port(int fd, uint32_t *port)
{
    struct sockaddr_un un;
    socklen_t len;

    return own_name(fd, &un, &len) && address_from_path(&un, len, port);
}

bool sock_peer_pair(int fd, struct address_pair *p)
{
    struct sockaddr_un un;
    socklen_t len;

    if (!peer_name(fd, &un, &len)) {
        return false;
    }
    if (!address_from_name(&un, len, p)) {
        p->here = (struct address) { VMADDR_CID_LOCAL, VMADDR_PORT_ANY };
        p->there = (struct address) { VSOCK_CID_PARENT, VMADDR_PORT_ANY };
        sock_own_port(fd, &p->there.port);
    }
    return true;
}

uint32_t sock_random_port(void)
{
    uint32_t port;

    return getrandom(&port, sizeof(port), GRND_NONBLOCK) < 0 ?
               getpid() * 7919u :
               port;
}

uint32_t sock_next_port(uint32_t port, unsigned i)
{
    return SOCK_PORT_MIN + (port + i) % (PORT_END - SOCK_PORT_MIN);
}

short sock_events(int fd, short wanted)
{
    struct pollfd p = { .fd = fd, .events = wanted };

    return poll(&p, 1, 0) == 1 ? p.revents : 0;
}
