/*
 * SPDX-License-Identifier: MIT
 *
 * A parent program as somebody writes it for AF_VSOCK, in one of several ways:
 * what the tests of the parent programs' library run. It knows nothing of that
 * library.
 *
 *   facts                      what calls answer, a line each
 *   state STATE CID PORT       what calls answer on a socket in that state
 *   cid                        this host's, by /dev/vsock
 *   connect CID PORT TEXT      sends TEXT, ends, prints what comes back
 *   poll|epoll CID PORT TEXT   the same without blocking
 *   retry CID PORT             tries on one socket until it is connected
 *   threads CID PORT COUNT     COUNT at once, each with bytes of its own
 *   fork PORT                  each connection is echoed by a child
 *   exec PORT                  the same, by this program run anew
 *   echo FD                    that program
 */
#include "vsock-states.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *program;

static void fail(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static unsigned number(const char *text)
{
    unsigned value = 0;

    sscanf(text, "%u", &value);
    return value;
}

static struct sockaddr_vm address(const char *cid, const char *port)
{
    struct sockaddr_vm vm = {
        .svm_family = AF_VSOCK,
        .svm_cid = number(cid),
        .svm_port = number(port),
    };

    return vm;
}

static int make(int flags)
{
    int fd = socket(AF_VSOCK, SOCK_STREAM | flags, 0);

    if (fd < 0) {
        fail("socket");
    }
    return fd;
}

static int call_connect(int fd, const struct sockaddr_vm *vm)
{
    return connect(fd, (const struct sockaddr *)vm, sizeof(*vm));
}

static void print_names(int fd)
{
    struct sockaddr_vm vm;
    socklen_t len = sizeof(vm);

    if (getpeername(fd, (struct sockaddr *)&vm, &len) < 0) {
        fail("getpeername");
    }
    printf("peer %u:%u, family %u, length %u\n", vm.svm_cid, vm.svm_port,
           vm.svm_family, len);
    len = sizeof(vm);
    if (getsockname(fd, (struct sockaddr *)&vm, &len) < 0) {
        fail("getsockname");
    }
    printf("own CID %d\n", (int)vm.svm_cid);
}

static void print_rest(int fd)
{
    char buf[4096];
    ssize_t n;

    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        fwrite(buf, n, 1, stdout);
    }
    if (n < 0) {
        fail("read");
    }
    printf("\n");
}

static void talk(int fd, const char *text)
{
    print_names(fd);
    if (send(fd, text, strlen(text), 0) < 0) {
        fail("send");
    }
    if (shutdown(fd, SHUT_WR) < 0) {
        fail("shutdown");
    }
    print_rest(fd);
    close(fd);
}

static void run_connect(const char *cid, const char *port, const char *text)
{
    struct sockaddr_vm vm = address(cid, port);
    int fd = make(SOCK_CLOEXEC);

    if (call_connect(fd, &vm) < 0) {
        fail("connect");
    }
    talk(fd, text);
}

static int in_progress(const struct sockaddr_vm *vm)
{
    int fd = make(SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (call_connect(fd, vm) == 0 || errno != EINPROGRESS) {
        fail("connect did not begin");
    }
    return fd;
}

static void finish(int fd, const char *text)
{
    int err = -1;
    socklen_t len = sizeof(err);

    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0) {
        fail("SO_ERROR");
    }
    if (err) {
        errno = err;
        fail("connect");
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    talk(fd, text);
}

static void run_poll(const char *cid, const char *port, const char *text)
{
    struct sockaddr_vm vm = address(cid, port);
    struct pollfd p = { .fd = in_progress(&vm), .events = POLLOUT };

    if (poll(&p, 1, 30000) != 1) {
        fail("poll");
    }
    finish(p.fd, text);
}

static void run_epoll(const char *cid, const char *port, const char *text)
{
    struct sockaddr_vm vm = address(cid, port);
    struct epoll_event e = { .events = EPOLLIN | EPOLLOUT | EPOLLET };
    int epoll = epoll_create1(EPOLL_CLOEXEC), fd = in_progress(&vm);

    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
    do {
        if (epoll_wait(epoll, &e, 1, 30000) != 1) {
            fail("epoll_wait");
        }
    } while (!(e.events & (EPOLLOUT | EPOLLERR | EPOLLHUP)));
    finish(fd, text);
}

static void run_retry(const char *cid, const char *port)
{
    struct sockaddr_vm vm = address(cid, port);
    struct timespec pause = { .tv_nsec = 1000000 };
    int fd = make(SOCK_CLOEXEC);

    while (call_connect(fd, &vm) < 0) {
        if (errno != ECONNRESET && errno != ENODEV) {
            fail("connect");
        }
        printf("%s\n", strerror(errno));
        fflush(stdout);
        nanosleep(&pause, NULL);
    }
    talk(fd, "after all");
}

static struct sockaddr_vm thread_address;

static void *run_thread(void *opaque)
{
    unsigned seed = (uintptr_t)opaque;
    unsigned char out[20000], in[sizeof(out)];
    size_t done = 0;
    int fd = make(SOCK_CLOEXEC);

    for (size_t i = 0; i < sizeof(out); i++) {
        out[i] = rand_r(&seed);
    }
    if (call_connect(fd, &thread_address) < 0) {
        fail("connect");
    }
    if (send(fd, out, sizeof(out), 0) != sizeof(out)) {
        fail("send");
    }
    shutdown(fd, SHUT_WR);
    while (done < sizeof(in)) {
        ssize_t n = recv(fd, in + done, sizeof(in) - done, 0);

        if (n <= 0) {
            fail("recv");
        }
        done += n;
    }
    close(fd);
    return (void *)(uintptr_t)!memcmp(in, out, sizeof(in));
}

static void run_threads(const char *cid, const char *port, unsigned count)
{
    pthread_t threads[64];
    unsigned right = 0;
    void *result;

    thread_address = address(cid, port);
    for (unsigned i = 0; i < count && i < 64; i++) {
        pthread_create(&threads[i], NULL, run_thread, (void *)(uintptr_t)i);
    }
    for (unsigned i = 0; i < count && i < 64; i++) {
        pthread_join(threads[i], &result);
        right += (uintptr_t)result;
    }
    printf("%u right\n", right);
}

static void echo(int fd)
{
    char buf[4096];
    ssize_t n;

    print_names(fd);
    fflush(stdout);
    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        if (write(fd, buf, n) != n) {
            fail("write");
        }
    }
    exit(0);
}

static void run_server(const char *port, bool anew)
{
    struct sockaddr_vm vm = address("4294967295", port), peer;
    int fd = make(SOCK_CLOEXEC), one;
    socklen_t len = sizeof(peer);

    if (bind(fd, (struct sockaddr *)&vm, sizeof(vm)) < 0) {
        fail("bind");
    }
    if (listen(fd, 16) < 0) {
        fail("listen");
    }
    signal(SIGCHLD, SIG_IGN);
    printf("listening\n");
    fflush(stdout);
    while ((one = accept(fd, (struct sockaddr *)&peer, &len)) >= 0) {
        if (fork() == 0) {
            close(fd);
            if (anew) {
                char text[16];

                snprintf(text, sizeof(text), "%d", one);
                execl(program, program, "echo", text, NULL);
                fail("exec");
            }
            echo(one);
        }
        close(one);
    }
    fail("accept");
}

/* What calls answer. */

static void tell(const char *what, int r)
{
    printf("%s: %s\n", what, r < 0 ? strerror(errno) : "0");
}

#define TELL(what, fd, call) do {                                             \
        int fd = make(0);                                                     \
                                                                              \
        tell(what, call);                                                     \
        close(fd);                                                            \
    } while (0)

static int bind_vm(int fd, unsigned cid, unsigned port)
{
    struct sockaddr_vm vm = {
        .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port
    };

    return bind(fd, (struct sockaddr *)&vm, sizeof(vm));
}

static void tell_name(const char *what, int fd)
{
    struct sockaddr_vm vm = { 0 };
    socklen_t len = sizeof(vm);
    int r = getsockname(fd, (struct sockaddr *)&vm, &len);

    printf("%s: %d, CID %d, port %d, length %u\n", what, r, (int)vm.svm_cid,
           vm.svm_port == VMADDR_PORT_ANY ? -1 : vm.svm_port < 1024 ? 0 : 1,
           len);
}

static void tell_options(void)
{
    static const struct timeval times[] = {
        { 3, 0 }, { 0, 0 }, { -1, 0 }, { 1, 1000000 }, { 0, 500000 },
    };
    int fd = make(0);

    for (int option = 0; option < 10; option++) {
        for (socklen_t size = 4; size <= 16; size *= 2) {
            uint64_t value[2] = { 0 };
            socklen_t len = size;
            int r = getsockopt(fd, AF_VSOCK, option, value, &len);

            printf("option %d, %u bytes: %s, %u, %llu\n", option, size,
                   r < 0 ? strerror(errno) : "0", len,
                   (unsigned long long)value[0]);
        }
    }
    for (unsigned i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
        struct timeval tv = { 0 };
        socklen_t len = sizeof(tv);

        tell("set timeout",
             setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &times[i],
                        sizeof(times[i])));
        getsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &tv, &len);
        printf("timeout %ld s, %ld us\n", (long)tv.tv_sec, (long)tv.tv_usec);
    }
    tell("set timeout, short",
         setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, times, 8));
    tell("set size, short",
         setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, times, 4));
    tell("set what cannot be set",
         setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_TRUSTED, times, 4));
    for (unsigned i = 0; i < 3; i++) {
        static const int options[] = { SO_DOMAIN, SO_TYPE, SO_ERROR };
        int value = -1;
        socklen_t len = sizeof(value);
        int r = getsockopt(fd, SOL_SOCKET, options[i], &value, &len);

        printf("SOL_SOCKET %d: %d, %d\n", options[i], r, value);
    }
    close(fd);
}

static void tell_addresses(void)
{
    struct sockaddr_vm vm = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 7777
    };
    const struct sockaddr *a = (const struct sockaddr *)&vm;

    TELL("bind, short", fd, bind(fd, a, sizeof(vm) - 1));
    TELL("connect, short", fd, connect(fd, a, sizeof(vm) - 1));
    TELL("bind nowhere", fd, bind(fd, NULL, sizeof(vm)));
    TELL("connect nowhere", fd, connect(fd, NULL, sizeof(vm)));
    vm.svm_flags = 2;
    TELL("bind, flags", fd, bind(fd, a, sizeof(vm)));
    vm.svm_flags = 0;
    vm.svm_family = AF_UNIX;
    TELL("bind, family", fd, bind(fd, a, sizeof(vm)));
    TELL("connect, family", fd, connect(fd, a, sizeof(vm)));
    vm.svm_family = AF_INET;
    TELL("connect, other family", fd, connect(fd, a, sizeof(vm)));
    TELL("bind, other CID", fd, bind_vm(fd, 1000000, 7777));
    TELL("bind, other CID, low port", fd, bind_vm(fd, 1000000, 7));
}

static void run_facts(void)
{
    int fd = make(0), other = make(0), cid = 0;

    tell_name("new", fd);
    tell("peer of new", getpeername(fd, NULL, NULL));
    tell("listen, not bound", listen(fd, 1));
    tell("accept, not bound", accept(fd, NULL, NULL));
    tell("send, not connected", send(fd, "x", 1, MSG_NOSIGNAL));
    tell("bind to any", bind_vm(fd, VMADDR_CID_ANY, VMADDR_PORT_ANY));
    tell_name("any", fd);
    tell("bind again", bind_vm(fd, VMADDR_CID_ANY, VMADDR_PORT_ANY));
    tell("listen", listen(fd, 1));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    tell("accept", accept(fd, NULL, NULL));
    tell("peer of listening", getpeername(fd, NULL, NULL));
    {
        struct sockaddr_vm vm = { 0 };
        socklen_t len = sizeof(vm);

        getsockname(fd, (struct sockaddr *)&vm, &len);
        tell("bind to the same", bind_vm(other, VMADDR_CID_ANY, vm.svm_port));
        close(fd);
        tell("bind when it is free",
             bind_vm(other, VMADDR_CID_ANY, vm.svm_port));
        len = 4;
        tell("name, short",
             getsockname(other, (struct sockaddr *)&vm, &len));
        printf("length %u\n", len);
        len = -1;
        tell("name, negative",
             getsockname(other, (struct sockaddr *)&vm, &len));
    }
    tell("ioctl of a socket",
         ioctl(other, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid));
    close(other);
    fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    printf("flags %d %d\n", fcntl(fd, F_GETFL) & O_NONBLOCK,
           fcntl(fd, F_GETFD));
    close(fd);
    tell("protocol", socket(AF_VSOCK, SOCK_STREAM, 7));
    tell("own protocol", socket(AF_VSOCK, SOCK_STREAM, AF_VSOCK));
    tell_addresses();
    tell_options();
}

/* This host's CID, as it is asked for. */
static void run_cid(void)
{
    unsigned cid = 0;
    int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        fail("/dev/vsock");
    }
    if (ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0) {
        fail("ioctl");
    }
    printf("%u\n", cid);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";

    program = argv[0];
    if (!strcmp(mode, "facts")) {
        run_facts();
    } else if (!strcmp(mode, "state") && argc == 5) {
        struct sockaddr_vm vm = address(argv[3], argv[4]);

        return vsock_states(argv[2], &vm);
    } else if (!strcmp(mode, "cid")) {
        run_cid();
    } else if (!strcmp(mode, "connect") && argc == 5) {
        run_connect(argv[2], argv[3], argv[4]);
    } else if (!strcmp(mode, "poll") && argc == 5) {
        run_poll(argv[2], argv[3], argv[4]);
    } else if (!strcmp(mode, "epoll") && argc == 5) {
        run_epoll(argv[2], argv[3], argv[4]);
    } else if (!strcmp(mode, "retry") && argc == 4) {
        run_retry(argv[2], argv[3]);
    } else if (!strcmp(mode, "threads") && argc == 5) {
        run_threads(argv[2], argv[3], number(argv[4]));
    } else if ((!strcmp(mode, "fork") || !strcmp(mode, "exec")) && argc == 3) {
        run_server(argv[2], mode[0] == 'e');
    } else if (!strcmp(mode, "echo") && argc == 3) {
        echo(number(argv[2]));
    } else {
        fprintf(stderr, "no such way: %s\n", mode);
        return 2;
    }
    return 0;
}
