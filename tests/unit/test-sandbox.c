/*
 * SPDX-License-Identifier: MIT
 *
 * vsock backend: what the sandbox allows and what it does not
 *
 * Each case is a process of its own that enters the sandbox and makes one
 * thing happen; its end says whether the kernel let it.
 */
#include <glib.h>
#include <glib/gstdio.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <time.h>
#include <unistd.h>

#include "sandbox.h"

#define UNKNOWN 100000
#define X32 0x40000000

/* What a child inherits. */
static int file, folder, listener, event, queue, tcp;
static pid_t parent;

static const struct sandbox_sockets none;
static const struct sandbox_sockets all = { true, true, true };

/* Runs it inside; returns the wait status, and what it wrote to stderr. */
static int inside(bool (*action)(void), const struct sandbox_sockets *sockets,
                  char *text, size_t size)
{
    int status, fds[2];
    ssize_t n;
    pid_t pid;

    g_assert_cmpint(pipe(fds), ==, 0);
    pid = fork();
    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        struct rlimit no_core = { 0, 0 };

        setrlimit(RLIMIT_CORE, &no_core);
        dup2(fds[1], STDERR_FILENO);
        if (sandbox_enter(sockets) < 0) {
            _exit(3);
        }
        /* Not _exit(), of which a sanitizer makes more. */
        syscall(SYS_exit_group, !action());
    }
    close(fds[1]);
    n = read(fds[0], text, size - 1);
    text[n > 0 ? n : 0] = 0;
    close(fds[0]);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    return status;
}

/* Ends by SIGSYS, after a line that names the call. */
static void forbidden(bool (*action)(void), int call)
{
    char text[512], number[32];
    int status = inside(action, &none, text, sizeof(text));

    g_assert_true(WIFSIGNALED(status));
    g_assert_cmpint(WTERMSIG(status), ==, SIGSYS);
    snprintf(number, sizeof(number), "system call %d ", call);
    g_assert_nonnull(strstr(text, number));
}

static void permitted_with(bool (*action)(void),
                           const struct sandbox_sockets *sockets)
{
    char text[512];
    int status = inside(action, sockets, text, sizeof(text));

    g_assert_cmpstr(text, ==, "");
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 0);
}

static bool make_socket(int family, int type)
{
    int fd = socket(family, type, 0);

    return fd >= 0 || errno == EAFNOSUPPORT;
}

static bool execute(void)
{
    char *argv[] = { (char *)"true", NULL };

    return execv("/bin/true", argv) == 0;
}

static bool make_process(void)
{
    return fork() >= 0;
}

static bool trace(void)
{
    return ptrace(PTRACE_ATTACH, parent, 0, 0) == 0;
}

static bool read_memory_of_others(void)
{
    char byte;
    struct iovec iov = { &byte, 1 };

    return process_vm_readv(parent, &iov, 1, &iov, 1, 0) == 1;
}

static bool open_to_write(void)
{
    return open("/tmp/no-such-file", O_WRONLY | O_CREAT, 0600) >= 0;
}

static bool open_to_read(void)
{
    return open("/etc/passwd", O_RDONLY) >= 0;
}

static bool rename_a_file(void)
{
    return syscall(SYS_renameat2, AT_FDCWD, "/tmp/no-such-file", AT_FDCWD,
                   "/tmp/neither", 0) == 0;
}

static bool change_a_mode(void)
{
    return fchmod(file, 0777) == 0;
}

static bool inet_socket(void)
{
    return make_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC);
}

static bool inet6_socket(void)
{
    return make_socket(AF_INET6, SOCK_STREAM);
}

static bool vsock_socket(void)
{
    return make_socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK);
}

static bool netlink_socket(void)
{
    return make_socket(AF_NETLINK, SOCK_STREAM);
}

static bool datagram_socket(void)
{
    return make_socket(AF_UNIX, SOCK_DGRAM);
}

static bool listen_again(void)
{
    return listen(listener, 1) == 0;
}

static bool pass_a_descriptor(void)
{
    struct msghdr m = { 0 };

    return sendmsg(listener, &m, 0) == 0;
}

static bool change_a_socket(void)
{
    const int one = 1;

    return setsockopt(listener, SOL_SOCKET, SO_KEEPALIVE, &one,
                      sizeof(one)) == 0;
}

/* The level is one that is let through, the option is not. */
static bool change_tcp(void)
{
    return setsockopt(tcp, IPPROTO_TCP, TCP_CONGESTION, "reno", 4) == 0;
}

static bool look_at_a_peer(void)
{
    struct ucred who;
    socklen_t len = sizeof(who);

    return getsockopt(listener, SOL_SOCKET, SO_PEERCRED, &who, &len) == 0;
}

static bool map_code(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_EXEC,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
}

static bool make_code(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return mprotect(p, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) == 0;
}

static bool kill_another(void)
{
    return kill(parent, 0) == 0;
}

static bool kill_a_thread_of_another(void)
{
    return syscall(SYS_tgkill, parent, parent, 0) == 0;
}

static bool kill_a_thread_alone(void)
{
    return syscall(SYS_tkill, parent, 0) == 0;
}

static bool own_a_descriptor(void)
{
    return fcntl(event, F_SETOWN, getpid()) == 0;
}

static bool change_the_process(void)
{
    return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0;
}

static bool raise_a_limit(void)
{
    struct rlimit l = { 1, 1 };

    return setrlimit(RLIMIT_CPU, &l) == 0;
}

static bool unknown_call(void)
{
    return syscall(UNKNOWN) == 0;
}

#ifdef SYS_arch_prctl           /* x86 */
static bool x32_call(void)
{
    return syscall(X32 | SYS_getpid) > 0;
}
#endif

static bool unix_socket(void)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX, .sun_path = "/none" };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    shutdown(fd, SHUT_RD);
    return connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0 &&
           errno == ENOENT && close(fd) == 0;
}

static bool events(void)
{
    const uint64_t one = 1;
    uint64_t got = 0;
    struct epoll_event e = { .events = EPOLLIN | EPOLLET };
    struct pollfd p = { event, POLLIN, 0 };

    return epoll_ctl(queue, EPOLL_CTL_ADD, event, &e) == 0 &&
           epoll_wait(queue, &e, 1, 0) == 0 && sched_yield() == 0 &&
           write(event, &one, sizeof(one)) == sizeof(one) &&
           epoll_wait(queue, &e, 1, 1000) == 1 && poll(&p, 1, 0) == 1 &&
           read(event, &got, sizeof(got)) == sizeof(got) && got == 1;
}

static bool clients(void)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    struct sockaddr_un own = { .sun_family = AF_UNIX };
    socklen_t len, four = 4;
    char byte = 'x';
    struct iovec iov = { &byte, 1 };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), peer, err = 1;

    len = offsetof(struct sockaddr_un, sun_path) + 1 +
          sprintf(a.sun_path + 1, "test-sandbox-%d", parent);
    if (bind(fd, (struct sockaddr *)&own,
             offsetof(struct sockaddr_un, sun_path) + 1 +
             sprintf(own.sun_path + 1, "test-sandbox-%d-1", parent)) < 0 ||
        connect(fd, (struct sockaddr *)&a, len) < 0) {
        return false;
    }
    peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return peer >= 0 && writev(fd, &iov, 1) == 1 &&
           recv(peer, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1 &&
           readv(peer, &iov, 1) == 1 &&
           send(peer, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1 &&
           recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) == 1 &&
           getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &four) == 0 && !err;
}

static bool tcp_no_delay(void)
{
    const int one = 1;

    return setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) == 0;
}

static bool guest_memory(void)
{
    struct stat st;
    char *p;

    if (fstat(file, &st) < 0 || st.st_size != 8192) {
        return false;
    }
    p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
             file, 0);
    if (p == MAP_FAILED || madvise(p, 8192, MADV_DONTDUMP) < 0) {
        return false;
    }
    p[8191] = 1;
    return munmap(p, 8192) == 0;
}

/* Of all sizes, so that malloc takes every way that it has. */
static bool memory(void)
{
    void *kept[64];
    void *grown = malloc(1 << 20);

    for (unsigned i = 0; i < 64; i++) {
        kept[i] = malloc((size_t)64 << i % 20);
        if (!kept[i]) {
            return false;
        }
        memset(kept[i], 1, 64);
    }
    for (unsigned i = 0; i < 64; i++) {
        free(kept[i]);
    }
    grown = realloc(grown, 64 << 20);
    ((char *)grown)[(64 << 20) - 1] = 1;
    free(grown);
    return true;
}

static bool statistics(void)
{
    char *line = NULL;
    size_t size;
    FILE *f = open_memstream(&line, &size);

    for (unsigned i = 0; i < 10000; i++) {
        fprintf(f, "%u ", i);
    }
    return fclose(f) == 0 && size > 40000 && strerror(ENOENT)[0] == 'N';
}

static bool clocks(void)
{
    struct timespec t;

    return syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t) == 0;
}

static bool remove_files(void)
{
    DIR *d = fdopendir(folder);
    struct dirent *e;
    struct stat st;
    unsigned count = 0;

    while ((e = readdir(d))) {
        if (fstatat(folder, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(st.st_mode)) {
            count += unlinkat(folder, e->d_name, 0) == 0;
        }
    }
    return count == 1 && closedir(d) == 0;
}

static void test_sockets_that_were_asked_for(void)
{
    permitted_with(inet_socket, &all);
    permitted_with(inet6_socket, &all);
    permitted_with(vsock_socket, &all);
}

#ifndef SANDBOX_SANITIZED
static bool die(void)
{
    abort();
}

/* Not by SIGSYS, which would hide what it died of. */
static void test_abort(void)
{
    char text[512];
    int status = inside(die, &none, text, sizeof(text));

    g_assert_true(WIFSIGNALED(status));
    g_assert_cmpint(WTERMSIG(status), ==, SIGABRT);
}
#endif

#define PERMITTED (-1)

static const struct row {
    const char *name;
    bool (*action)(void);
    int call;                   /* that ends it */
} rows[] = {
    { "execute", execute, SYS_execve },
    { "make-process", make_process, SYS_clone },
    { "trace", trace, SYS_ptrace },
    { "read-memory-of-others", read_memory_of_others, SYS_process_vm_readv },
    { "open-to-write", open_to_write, SYS_openat },
    { "open-to-read", open_to_read, SYS_openat },
    { "rename", rename_a_file, SYS_renameat2 },
    { "change-mode", change_a_mode, SYS_fchmod },
    { "inet-socket", inet_socket, SYS_socket },
    { "inet6-socket", inet6_socket, SYS_socket },
    { "vsock-socket", vsock_socket, SYS_socket },
    { "netlink-socket", netlink_socket, SYS_socket },
    { "datagram-socket", datagram_socket, SYS_socket },
    { "listen", listen_again, SYS_listen },
    { "pass-descriptor", pass_a_descriptor, SYS_sendmsg },
    { "change-socket", change_a_socket, SYS_setsockopt },
    { "change-tcp", change_tcp, SYS_setsockopt },
    { "look-at-peer", look_at_a_peer, SYS_getsockopt },
    { "map-code", map_code, SYS_mmap },
    { "make-code", make_code, SYS_mprotect },
    { "kill", kill_another, SYS_kill },
    { "tgkill", kill_a_thread_of_another, SYS_tgkill },
    { "tkill", kill_a_thread_alone, SYS_tkill },
    { "own-descriptor", own_a_descriptor, SYS_fcntl },
    { "change-process", change_the_process, SYS_prctl },
    { "raise-limit", raise_a_limit, SYS_prlimit64 },
    { "unknown-call", unknown_call, UNKNOWN },
#ifdef SYS_arch_prctl           /* x86 */
    { "x32-call", x32_call, X32 | SYS_getpid },
#endif
    { "unix-socket", unix_socket, PERMITTED },
    { "events", events, PERMITTED },
    { "clients", clients, PERMITTED },
    { "tcp-no-delay", tcp_no_delay, PERMITTED },
    { "guest-memory", guest_memory, PERMITTED },
    { "memory", memory, PERMITTED },
    { "statistics", statistics, PERMITTED },
    { "clocks", clocks, PERMITTED },
    { "remove-files", remove_files, PERMITTED },
};

static void run_row(const void *opaque)
{
    const struct row *r = opaque;

    if (r->call == PERMITTED) {
        permitted_with(r->action, &none);
    } else {
        forbidden(r->action, r->call);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    g_autofree char *path = g_dir_make_tmp("test-sandbox-XXXXXX", NULL);
    g_autofree char *name = g_build_filename(path, "file", NULL);
    int r;

    g_test_init(&argc, &argv, NULL);
    parent = getpid();
    file = memfd_create("memory", 0);
    g_assert_cmpint(ftruncate(file, 8192), ==, 0);
    g_assert_true(g_file_set_contents(name, "x", 1, NULL));
    folder = open(path, O_RDONLY | O_DIRECTORY);
    event = eventfd(0, EFD_NONBLOCK);
    queue = epoll_create1(0);
    tcp = socket(AF_INET, SOCK_STREAM, 0);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    r = sprintf(a.sun_path + 1, "test-sandbox-%d", parent);
    r = bind(listener, (struct sockaddr *)&a,
             offsetof(struct sockaddr_un, sun_path) + 1 + r);
    g_assert_cmpint(r, ==, 0);
    g_assert_cmpint(listen(listener, 1), ==, 0);

    if (sandbox_available() < 0) {
        puts("1..0 # SKIP this kernel has no seccomp");
        return 0;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *test = g_strdup_printf(
            "/sandbox/%s/%s", rows[i].call == PERMITTED ? "yes" : "no",
            rows[i].name);

        g_test_add_data_func(test, &rows[i], run_row);
    }
    g_test_add_func("/sandbox/sockets-that-were-asked-for",
                    test_sockets_that_were_asked_for);
#ifndef SANDBOX_SANITIZED
    /* A sanitizer makes more of it. */
    g_test_add_func("/sandbox/abort", test_abort);
#endif
    r = g_test_run();
    g_unlink(name);
    g_rmdir(path);
    return r;
}
