/*
 * SPDX-License-Identifier: MIT
 *
 * What every call answers on an AF_VSOCK socket in one of its states, a line
 * for each: part of vsock-parent. Each call has a socket of its own, so that
 * none sees what another did.
 */
#include "vsock-states.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static struct sockaddr_vm target;

static const char *word(int r)
{
    return r < 0 ? strerror(errno) : "0";
}

static void do_getsockname(int fd)
{
    struct sockaddr_vm vm = { 0 };
    socklen_t len = sizeof(vm);
    int r = getsockname(fd, (struct sockaddr *)&vm, &len);

    printf("%s, CID %d, a port: %d", word(r), (int)vm.svm_cid,
           vm.svm_port != VMADDR_PORT_ANY);
}

static void do_getpeername(int fd)
{
    struct sockaddr_vm vm = { 0 };
    socklen_t len = sizeof(vm);
    int r = getpeername(fd, (struct sockaddr *)&vm, &len);

    printf("%s, the target: %d", word(r), vm.svm_port == target.svm_port);
}

static int get(int fd, int option)
{
    int value = -1;
    socklen_t len = sizeof(value);

    return getsockopt(fd, SOL_SOCKET, option, &value, &len) < 0 ? -errno
                                                                 : value;
}

static void do_error(int fd)
{
    int first = get(fd, SO_ERROR);

    printf("%s, then %s", strerror(first), strerror(get(fd, SO_ERROR)));
}

/* Sizes against those of a socket that nothing was done to. */
static void do_sizes(int fd)
{
    static const int options[] = { SO_SNDBUF, SO_RCVBUF };
    static const int sizes[] = { 10000, 1, 1 << 30 };
    int fresh = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    for (unsigned i = 0; i < 2; i++) {
        printf("%s%d", i ? "; " : "",
               get(fd, options[i]) == get(fresh, options[i]));
        for (unsigned k = 0; k < 3; k++) {
            int r = setsockopt(fd, SOL_SOCKET, options[i], &sizes[k],
                               sizeof(int));

            setsockopt(fresh, SOL_SOCKET, options[i], &sizes[k], sizeof(int));
            printf(", %s %d", word(r),
                   get(fd, options[i]) == get(fresh, options[i]));
        }
        printf(", %s", word(setsockopt(fd, SOL_SOCKET, options[i], sizes, 2)));
    }
    close(fresh);
}

static void do_size_before_and_after(int fd)
{
    static const int size = 30000;
    int r = setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));

    printf("%s, %d", word(r), get(fd, SO_SNDBUF));
    connect(fd, (struct sockaddr *)&target, sizeof(target));
    printf(", %d", get(fd, SO_SNDBUF));
}

static void do_options(int fd)
{
    uint64_t rate = 0;
    socklen_t len = sizeof(rate);
    struct { int pid; int uid; int gid; } who = { 1, 1, 1 };
    int rates = getsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, &len);

    printf("domain %d, type %d, protocol %d, accepts %d, rate %d %llx, CPU %d",
           get(fd, SO_DOMAIN), get(fd, SO_TYPE), get(fd, SO_PROTOCOL),
           get(fd, SO_ACCEPTCONN), rates, (unsigned long long)rate,
           get(fd, SO_INCOMING_CPU));
    len = sizeof(who);
    printf(", peer %s", word(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who,
                                        &len)));
    printf(" %d %d %d", who.pid, who.uid, who.gid);
}

static void do_set_rate(int fd)
{
    uint64_t rate = 1000000;

    printf("%s", word(setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate,
                                 sizeof(rate))));
    printf(", domain %d", get(fd, SO_DOMAIN));
}

static void do_unsent(int fd)
{
    int n = -1, r = ioctl(fd, SIOCOUTQ, &n);

    printf("%s, some: %d", word(r), n > 0);
}

static void do_poll(int fd)
{
    struct pollfd p = {
        .fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP | POLLPRI
    };
    int r = poll(&p, 1, 0);

    printf("%s,%s%s%s%s%s", word(r), p.revents & POLLIN ? " IN" : "",
           p.revents & POLLOUT ? " OUT" : "", p.revents & POLLHUP ? " HUP" : "",
           p.revents & POLLERR ? " ERR" : "",
           p.revents & POLLRDHUP ? " RDHUP" : "");
}

static void do_write(int fd)
{
    printf("%s", word(write(fd, "x", 1)));
}

static void do_writev(int fd)
{
    struct iovec iov = { (void *)"x", 1 };

    printf("%s", word(writev(fd, &iov, 1)));
}

static void do_send(int fd)
{
    printf("%s", word(send(fd, "x", 1, MSG_NOSIGNAL)));
}

static void do_sendto(int fd)
{
    printf("%s", word(sendto(fd, "x", 1, MSG_NOSIGNAL, NULL, 0)));
    printf(", to the target: %s",
           word(sendto(fd, "x", 1, MSG_NOSIGNAL, (struct sockaddr *)&target,
                       sizeof(target))));
}

static void do_sendmsg(int fd)
{
    struct iovec iov = { (void *)"x", 1 };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

    printf("%s", word(sendmsg(fd, &m, MSG_NOSIGNAL)));
}

static void do_read(int fd)
{
    char c;

    printf("%s", word(read(fd, &c, 1)));
}

static void do_readv(int fd)
{
    char c;
    struct iovec iov = { &c, 1 };

    printf("%s", word(readv(fd, &iov, 1)));
}

static void do_recv(int fd)
{
    char c;

    printf("%s", word(recv(fd, &c, 1, 0)));
    printf(", error then %s", strerror(get(fd, SO_ERROR)));
}

static void do_recvfrom(int fd)
{
    char c;
    struct sockaddr_vm vm;
    socklen_t len = sizeof(vm);

    printf("%s", word(recvfrom(fd, &c, 1, 0, (struct sockaddr *)&vm, &len)));
}

static void do_recvmsg(int fd)
{
    char c;
    struct iovec iov = { &c, 1 };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

    printf("%s", word(recvmsg(fd, &m, 0)));
}

static int again(int fd)
{
    return connect(fd, (struct sockaddr *)&target, sizeof(target));
}

static void do_connect(int fd)
{
    printf("%s", word(again(fd)));
}

static void do_bind(int fd)
{
    struct sockaddr_vm vm = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY,
        .svm_port = VMADDR_PORT_ANY,
    };

    printf("%s", word(bind(fd, (struct sockaddr *)&vm, sizeof(vm))));
}

static void do_listen(int fd)
{
    printf("%s", word(listen(fd, 1)));
}

static void do_accept(int fd)
{
    printf("%s", word(accept(fd, NULL, NULL)));
}

static void do_shutdown(int fd)
{
    printf("%s, ", word(shutdown(fd, 7)));
    printf("%s, ", word(shutdown(fd, SHUT_WR)));
    do_getpeername(fd);
    printf(", ");
    do_write(fd);
    printf(", again %s", word(again(fd)));
}

static const struct {
    const char *name;
    void (*call)(int fd);
} calls[] = {
    { "getsockname", do_getsockname },
    { "getpeername", do_getpeername },
    { "SO_ERROR", do_error },
    { "sizes", do_sizes },
    { "a size across connect", do_size_before_and_after },
    { "options", do_options },
    { "a pacing rate", do_set_rate },
    { "unsent", do_unsent },
    { "poll", do_poll },
    { "write", do_write },
    { "writev", do_writev },
    { "send", do_send },
    { "sendto", do_sendto },
    { "sendmsg", do_sendmsg },
    { "read", do_read },
    { "readv", do_readv },
    { "recv", do_recv },
    { "recvfrom", do_recvfrom },
    { "recvmsg", do_recvmsg },
    { "connect", do_connect },
    { "bind", do_bind },
    { "listen", do_listen },
    { "accept", do_accept },
    { "shutdown", do_shutdown },
};

static int reach(const char *state)
{
    struct sockaddr_vm any = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY,
        .svm_port = VMADDR_PORT_ANY,
    };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct pollfd p = { .fd = fd, .events = POLLOUT };

    if (fd < 0) {
        return -1;
    }
    if (!strcmp(state, "bound") || !strcmp(state, "listening")) {
        bind(fd, (struct sockaddr *)&any, sizeof(any));
    }
    if (!strcmp(state, "listening")) {
        listen(fd, 1);
    }
    if (!strcmp(state, "connecting") || !strcmp(state, "ended") ||
        !strcmp(state, "seen") || !strcmp(state, "full")) {
        again(fd);
    }
    if (!strcmp(state, "ended") || !strcmp(state, "seen") ||
        !strcmp(state, "full")) {
        poll(&p, 1, 30000);
    }
    if (!strcmp(state, "seen")) {
        get(fd, SO_ERROR);
    }
    if (!strcmp(state, "full")) {
        static const char zeros[4096];
        unsigned before, sent = 0;

        /* Until nothing has gone on its way to the peer for a while, either. */
        do {
            ssize_t n;

            before = sent;
            while ((n = write(fd, zeros, sizeof(zeros))) > 0) {
                sent += n;
            }
            poll(NULL, 0, 100);
        } while (sent != before);
    }
    return fd;
}

int vsock_states(const char *state, const struct sockaddr_vm *vm)
{
    signal(SIGPIPE, SIG_IGN);
    target = *vm;
    for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        int fd = reach(state);

        if (fd < 0) {
            return 1;
        }
        printf("%s: ", calls[i].name);
        calls[i].call(fd);
        printf("\n");
        close(fd);
    }
    return 0;
}
