/*
 * SPDX-License-Identifier: MIT
 *
 * preload.c: AF_VSOCK for a parent program on a host that has none, by
 * LD_PRELOAD. A socket of AF_VSOCK is a unix socket, connected to the backend
 * of an enclave or bound where all backends look; the calls here translate
 * addresses, options and errors. Data and events pass by the kernel alone:
 * neither read() nor poll() is replaced. Not for programs that make system
 * calls without libc.
 *
 * All that is to be known of a socket is kept with it by the kernel: names of
 * the socket and its peer, and a number in SO_MAX_PACING_RATE, which means
 * nothing to a unix socket. So dup(), fork(), exec() and the sending of
 * descriptors need no care, and no lock is held anywhere.
 *
 * What the kernel answers in each case was looked up with the kernel's own
 * AF_VSOCK; tests compare the two where there are both.
 */

#include "address.h"
#include "../vhost-user-vsock/vsock.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* By their names alone, so that no macro or attribute of libc's interferes. */
#define CALL(name) __asm__(#name) __attribute__((visibility("default")))

/* A socket of this SO_SNDBUF is full with VSOCK_OPEN_SIZE bytes. */
#define FULL_SNDBUF 65536
/* Ports that are tried where any will do. */
#define TRIES 1000
#define PORT_MIN 1024
/* Of the backend's own choice from here on, for clients that say CONNECT. */
#define PORT_END (1u << 30)
/* Our addresses in names of 108 bytes, by way of a slash and ten digits. */
#define FOLDER_MAX 108
#define DEVICE "/dev/vsock"

static char folder[FOLDER_MAX];
static _Atomic int usual_sndbuf;

/* What we stand before: libc's calls, or those of another such library. */
#define CALLS(X)                                                              \
    X(int, socket, (int, int, int))                                           \
    X(int, bind, (int, const struct sockaddr *, socklen_t))                   \
    X(int, connect, (int, const struct sockaddr *, socklen_t))                \
    X(int, accept, (int, struct sockaddr *, socklen_t *))                     \
    X(int, accept4, (int, struct sockaddr *, socklen_t *, int))               \
    X(int, getsockname, (int, struct sockaddr *, socklen_t *))                \
    X(int, getpeername, (int, struct sockaddr *, socklen_t *))                \
    X(int, getsockopt, (int, int, int, void *, socklen_t *))                  \
    X(int, setsockopt, (int, int, int, const void *, socklen_t))              \
    X(ssize_t, recvfrom,                                                      \
      (int, void *, size_t, int, struct sockaddr *, socklen_t *))             \
    X(ssize_t, __recvfrom_chk,                                                \
      (int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *))     \
    X(ssize_t, recvmsg, (int, struct msghdr *, int))                          \
    X(int, ioctl, (int, unsigned long, void *))                               \
    X(int, open, (const char *, int, mode_t))                                 \
    X(int, open64, (const char *, int, mode_t))                               \
    X(int, __open_2, (const char *, int))                                     \
    X(int, __open64_2, (const char *, int))                                   \
    X(int, openat, (int, const char *, int, mode_t))                          \
    X(int, openat64, (int, const char *, int, mode_t))

#define MEMBER(type, name, arguments) __typeof__(type arguments) * name;
static struct {
    CALLS(MEMBER)
} next;

#define FIND(type, name, arguments) \
    *(void **)&next.name = dlsym(RTLD_NEXT, #name);

/* Before main(), and before that if a constructor of others needs it. */
__attribute__((constructor))
static void start(void)
{
    const char *value = getenv("NITROCTL_VSOCK_DIR");
    int saved = errno;

    if (next.openat64) {
        return;
    }
    if (value && value[0] == '/' && strlen(value) < sizeof(folder)) {
        strcpy(folder, value);
    }
    CALLS(FIND)
    errno = saved;
}

#define NEXT(name) (start(), next.name)

static int finish(int r)
{
    if (r < 0) {
        errno = -r;
        return -1;
    }
    return r;
}

static int negative(int r)
{
    return r < 0 ? -errno : r;
}

/* What the kernel keeps for us. */

static bool get_state(int fd, struct address_state *s)
{
    uint64_t word = 0;
    socklen_t len = sizeof(word);
    int saved = errno;
    int r = NEXT(getsockopt)(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &word, &len);

    errno = saved;
    return r == 0 && len == sizeof(word) && address_unpack(word, s);
}

static int set_state(int fd, const struct address_state *s)
{
    uint64_t word = address_pack(s);

    return negative(NEXT(setsockopt)(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &word,
                                     sizeof(word)));
}

static bool is_ours(int fd, struct address_state *s)
{
    return get_state(fd, s) && s->stage != STAGE_DEVICE;
}

static int make_socket(int flags, const struct address_state *s)
{
    int fd = NEXT(socket)(AF_UNIX, SOCK_STREAM | flags, 0);
    int r;

    if (fd < 0) {
        return -errno;
    }
    r = set_state(fd, s);
    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

static bool is_blocking(int fd)
{
    return !(fcntl(fd, F_GETFL) & O_NONBLOCK);
}

/* The program's descriptor is another socket from now on, with its flags. */
static int replace(int fd, int by)
{
    static const int timeouts[] = { SO_RCVTIMEO, SO_SNDTIMEO };
    int flags = fcntl(fd, F_GETFD), status = fcntl(fd, F_GETFL), r;
    struct timeval tv;

    if (flags < 0 || status < 0) {
        return -errno;
    }
    for (unsigned i = 0; i < 2; i++) {
        socklen_t len = sizeof(tv);

        if (NEXT(getsockopt)(fd, SOL_SOCKET, timeouts[i], &tv, &len) == 0) {
            NEXT(setsockopt)(by, SOL_SOCKET, timeouts[i], &tv, len);
        }
    }
    fcntl(by, F_SETFL, status);
    r = dup3(by, fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0);
    return r < 0 ? -errno : 0;
}

/*
 * A unix socket can be bound and connected once. One that has to be again is
 * replaced by a new one.
 */
static int renew(int fd, struct address_state *s)
{
    int by, r;

    s->stage = STAGE_NEW;
    by = make_socket(SOCK_CLOEXEC, s);
    if (by < 0) {
        return by;
    }
    r = replace(fd, by);
    close(by);
    return r;
}

/* Time. */

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000ull + t.tv_nsec / 1000000;
}

/* Milliseconds to go; not above 0: none. */
static int32_t until_ms(uint32_t until)
{
    return until - (uint32_t)now_ms();
}

/* Addresses. */

static int copy_address(const struct sockaddr_vm *vm, struct sockaddr *a,
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

/* The pair of addresses of a socket that we have connected. */
static bool own_pair(int fd, struct address_pair *p)
{
    struct sockaddr_un un;
    socklen_t len;

    return own_name(fd, &un, &len) && address_from_name(&un, len, p);
}

static bool own_port(int fd, uint32_t *port)
{
    struct sockaddr_un un;
    socklen_t len;

    return own_name(fd, &un, &len) && address_from_path(&un, len, port);
}

/*
 * The enclave's pair, of a socket that was accepted. Who has no such name is a
 * program on this host.
 */
static bool peer_pair(int fd, struct address_pair *p)
{
    struct sockaddr_un un;
    socklen_t len;

    if (!peer_name(fd, &un, &len)) {
        return false;
    }
    if (!address_from_name(&un, len, p)) {
        p->here = (struct address) { VMADDR_CID_LOCAL, VMADDR_PORT_ANY };
        p->there = (struct address) { ADDRESS_CID_PARENT, VMADDR_PORT_ANY };
        own_port(fd, &p->there.port);
    }
    return true;
}

/* Where any port will do, one and those after it are tried. */
static uint32_t random_port(void)
{
    uint32_t port;

    return getrandom(&port, sizeof(port), GRND_NONBLOCK) < 0 ? getpid() * 7919u
                                                             : port;
}

static uint32_t next_port(uint32_t port, unsigned i)
{
    return PORT_MIN + (port + i) % (PORT_END - PORT_MIN);
}

/* Connecting. */

/* What poll() says now. */
static short events_of(int fd, short wanted)
{
    struct pollfd p = { .fd = fd, .events = wanted };

    return poll(&p, 1, 0) == 1 ? p.revents : 0;
}

static void connected(int fd, struct address_state *s)
{
    int size = usual_sndbuf;

    s->stage = STAGE_CONNECTED;
    set_state(fd, s);
    if (size) {
        NEXT(setsockopt)(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    }
}

/*
 * SO_ERROR, made negative, while the outcome has not been seen. A refusal and a
 * backend that has waited long enough are one error of a unix socket; by now
 * the time has passed or not.
 */
static int take_outcome(int fd, struct address_state *s)
{
    struct address_pair p;
    int err = 0;
    socklen_t len = sizeof(err);

    NEXT(getsockopt)(fd, SOL_SOCKET, SO_ERROR, &err, &len);
    if (err == ECONNRESET && own_pair(fd, &p) && until_ms(p.until) <= 0) {
        return -ETIMEDOUT;
    }
    if (!err && events_of(fd, POLLOUT) & POLLOUT) {
        connected(fd, s);
    }
    return -err;
}

static int wait_outcome(int fd, struct address_state *s)
{
    struct pollfd p = { .fd = fd, .events = POLLOUT };
    struct address_pair pair;
    int32_t ms;
    int r;

    if (!own_pair(fd, &pair)) {
        return -ECONNRESET;
    }
    ms = until_ms(pair.until);
    r = negative(poll(&p, 1, ms > 0 ? ms + 1 : 0));  /* never early */
    if (r == 0) {
        shutdown(fd, SHUT_RDWR);
        return -ETIMEDOUT;
    }
    return r < 0 ? r : take_outcome(fd, s);
}

/* A name for our end, whose port nobody else has. */
static int bind_name(int fd, struct address_pair *p, bool any)
{
    struct sockaddr_un un;
    socklen_t len;
    uint32_t port = any ? random_port() : p->here.port;
    int r;

    for (unsigned i = 0; i < TRIES; i++) {
        p->here.port = any ? next_port(port, i) : port;
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
    int n = snprintf(line, sizeof(line), "OPEN %u %u %u\n", p->there.port,
                     p->here.port, ms);
    struct iovec iov[] = {
        { line, n }, { (void *)zeros, VSOCK_OPEN_SIZE - n },
    };
    struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };

    return sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT) == VSOCK_OPEN_SIZE ?
           0 : -ECONNRESET;
}

/* Makes a socket that can be connected, and gives it a name. */
static int prepare(int fd, struct address_state *s, struct address_pair *p)
{
    struct address_pair failed;
    struct sockaddr_un un;
    int r = 0;

    p->here = (struct address) { VMADDR_CID_ANY, 0 };
    if (own_port(fd, &p->here.port)) {
        if (address_port(&un, folder, p->here.port)) {
            unlink(un.sun_path);        /* it will not listen */
        }
        r = renew(fd, s);
    } else if (own_pair(fd, &failed)) {
        p->here.port = failed.here.port;
        r = renew(fd, s);
    }
    if (s->bound) {
        p->here.cid = s->bound_cid;
    }
    return r < 0 ? r : bind_name(fd, p, !s->bound);
}

static int connect_enclave(int fd, struct address_state *s,
                           const struct sockaddr_un *un,
                           struct address_pair *p)
{
    static const int full = FULL_SNDBUF;
    int now = 0, r;
    socklen_t len = sizeof(now);

    if (p->there.port == VMADDR_PORT_ANY) {
        return -ECONNRESET;
    }
    r = prepare(fd, s, p);
    if (r < 0) {
        return r;
    }
    if (NEXT(getsockopt)(fd, SOL_SOCKET, SO_SNDBUF, &now, &len) == 0 &&
        now != 2 * full) {
        usual_sndbuf = now / 2;         /* the kernel doubles it */
    }
    NEXT(setsockopt)(fd, SOL_SOCKET, SO_SNDBUF, &full, sizeof(full));
    s->stage = STAGE_CONNECTING;
    r = set_state(fd, s);
    if (r < 0) {
        return r;
    }
    r = negative(NEXT(connect)(fd, (const struct sockaddr *)un, sizeof(*un)));
    if (r == 0) {
        r = send_open(fd, p, s->connect_ms);
    }
    if (r < 0) {
        /* Nobody there any more, or too many; AF_VSOCK knows no such words. */
        return r == -ECONNREFUSED || r == -EAGAIN || r == -ENOENT ?
               -ECONNRESET : r;
    }
    return is_blocking(fd) ? wait_outcome(fd, s) : -EINPROGRESS;
}

/* No enclave of ours is meant: the kernel may know better. */
static int elsewhere(int fd, const struct address_state *s,
                     __typeof__(next.connect) call,
                     const struct sockaddr_vm *vm, int none)
{
    struct timeval tv = {
        s->connect_ms / 1000, s->connect_ms % 1000 * 1000
    };
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
        moved = replace(fd, by);
    }
    close(by);
    return moved < 0 ? moved : r;
}

static int connect_ours(int fd, struct address_state *s,
                        const struct sockaddr *a, socklen_t len)
{
    struct sockaddr_vm vm;
    struct sockaddr_un un, home;
    struct address_pair p;
    int listening = 0, r;
    socklen_t size = sizeof(listening);

    if (s->stage == STAGE_CONNECTING) {
        short events = events_of(fd, POLLOUT);

        if (!events) {
            return is_blocking(fd) ? wait_outcome(fd, s) : -EALREADY;
        }
        if (!(events & (POLLHUP | POLLERR))) {
            connected(fd, s);
        }
    }
    if (s->stage == STAGE_CONNECTED) {
        return -EISCONN;
    }
    NEXT(getsockopt)(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
    r = listening ? -EINVAL : address_check(a, len, &vm);
    if (r < 0) {
        return r;
    }
    /* An enclave that is starting has its folder, and nobody listens yet. */
    if (!address_home(&home, folder, vm.svm_cid) ||
        !address_enclave(&un, folder, vm.svm_cid) ||
        access(home.sun_path, F_OK) < 0) {
        return elsewhere(fd, s, NEXT(connect), &vm, -ENODEV);
    }
    p.there = (struct address) { vm.svm_cid, vm.svm_port };
    p.until = now_ms() + s->connect_ms;
    return connect_enclave(fd, s, &un, &p);
}

/* Listening. */

static bool may_have_low_ports(void)
{
    struct __user_cap_header_struct head = {
        .version = _LINUX_CAPABILITY_VERSION_3,
    };
    struct __user_cap_data_struct data[2] = { { 0 }, { 0 } };

    return syscall(SYS_capget, &head, data) == 0 &&
           data[0].effective & 1u << CAP_NET_BIND_SERVICE;
}

/*
 * A socket file without a server, and nothing else. Asked with a socket of
 * another type, which is refused for that if somebody is there, and is no
 * client to him.
 */
static bool is_stale(const struct sockaddr_un *un)
{
    int fd = NEXT(socket)(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct stat st;
    bool stale = fd >= 0 && lstat(un->sun_path, &st) == 0 &&
                 S_ISSOCK(st.st_mode) &&
                 NEXT(connect)(fd, (const struct sockaddr *)un,
                               sizeof(*un)) < 0 && errno == ECONNREFUSED;

    if (fd >= 0) {
        close(fd);
    }
    return stale;
}

static int bind_path(int fd, const struct sockaddr_un *un)
{
    const struct sockaddr *a = (const struct sockaddr *)un;
    int r = negative(NEXT(bind)(fd, a, sizeof(*un)));

    if (r == -EADDRINUSE && is_stale(un)) {
        unlink(un->sun_path);
        r = negative(NEXT(bind)(fd, a, sizeof(*un)));
    }
    return r;
}

/* The folder of the ports, locked against others who take away stale ones. */
static int lock_ports(void)
{
    char path[FOLDER_MAX + sizeof("/ports")];
    int fd;

    snprintf(path, sizeof(path), "%s/ports", folder);
    for (unsigned i = 0; i < TRIES; i++) {
        struct stat opened, named;

        if (mkdir(path, 0700) < 0 && errno != EEXIST) {
            return -errno;
        }
        fd = NEXT(open)(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
        if (fd < 0) {
            if (errno == ENOENT) {
                continue;               /* removed, being empty */
            }
            return -errno;
        }
        while (flock(fd, LOCK_EX) < 0 && errno == EINTR) {
            continue;
        }
        if (fstat(fd, &opened) == 0 && stat(path, &named) == 0 &&
            opened.st_ino == named.st_ino) {
            return fd;
        }
        close(fd);
    }
    return -EADDRNOTAVAIL;
}

static int bind_port(int fd, uint32_t port)
{
    struct sockaddr_un un;

    return address_port(&un, folder, port) ? bind_path(fd, &un)
                                           : -EADDRNOTAVAIL;
}

static int bind_any(int fd)
{
    uint32_t port = random_port();
    int r = -EADDRNOTAVAIL;

    for (unsigned i = 0; i < TRIES; i++) {
        r = bind_port(fd, next_port(port, i));
        if (r != -EADDRINUSE) {
            break;
        }
    }
    return r == -EADDRINUSE ? -EADDRNOTAVAIL : r;
}

static int bind_ours(int fd, struct address_state *s, const struct sockaddr *a,
                     socklen_t len)
{
    struct sockaddr_vm vm;
    int r = s->bound || s->stage != STAGE_NEW ? -EINVAL :
                                                address_check(a, len, &vm);
    int lock;

    if (r < 0) {
        return r;
    }
    if (vm.svm_cid != VMADDR_CID_ANY && vm.svm_cid != ADDRESS_CID_PARENT &&
        vm.svm_cid != VMADDR_CID_HOST) {
        return elsewhere(fd, s, NEXT(bind), &vm, -EADDRNOTAVAIL);
    }
    if (vm.svm_port < PORT_MIN && !may_have_low_ports()) {
        return -EACCES;
    }
    lock = lock_ports();
    if (lock < 0) {
        return lock;
    }
    r = vm.svm_port == VMADDR_PORT_ANY ? bind_any(fd)
                                       : bind_port(fd, vm.svm_port);
    flock(lock, LOCK_UN);       /* also for a child forked meanwhile */
    close(lock);
    if (r < 0) {
        return r;
    }
    s->bound = true;
    s->bound_cid = vm.svm_cid;
    return set_state(fd, s);
}

static int accept_ours(int fd, const struct address_state *s,
                       struct sockaddr *a, socklen_t *len, int flags)
{
    struct address_state child = {
        .stage = STAGE_CONNECTED, .connect_ms = s->connect_ms
    };
    struct address_pair p;
    struct sockaddr_vm vm;
    int r = negative(NEXT(accept4)(fd, NULL, NULL, flags));
    int err;

    if (r < 0) {
        return r;
    }
    err = set_state(r, &child);
    if (err == 0 && a) {
        if (!peer_pair(r, &p)) {
            p.here = (struct address) { VMADDR_CID_ANY, VMADDR_PORT_ANY };
        }
        vm = address_vm(p.here.cid, p.here.port);
        err = copy_address(&vm, a, len);
    }
    if (err < 0) {
        close(r);
        return err;
    }
    return r;
}

/* Names. */

static int getsockname_ours(int fd, const struct address_state *s,
                            struct sockaddr *a, socklen_t *len)
{
    struct sockaddr_vm vm = address_vm(VMADDR_CID_ANY, VMADDR_PORT_ANY);
    struct address_pair p;
    uint32_t port;

    if (own_pair(fd, &p)) {
        vm = address_vm(p.here.cid, p.here.port);
    } else if (s->bound && own_port(fd, &port)) {
        vm = address_vm(s->bound_cid, port);
    } else if (s->stage == STAGE_CONNECTED && peer_pair(fd, &p)) {
        vm = address_vm(p.there.cid, p.there.port);
    }
    return copy_address(&vm, a, len);
}

static int getpeername_ours(int fd, const struct address_state *s,
                            struct sockaddr *a, socklen_t *len)
{
    struct sockaddr_vm vm;
    struct address_pair p;

    if (own_pair(fd, &p)) {
        short events = events_of(fd, POLLOUT);

        if (s->stage != STAGE_CONNECTED &&
            (!events || events & (POLLHUP | POLLERR))) {
            return -ENOTCONN;
        }
        vm = address_vm(p.there.cid, p.there.port);
    } else if (s->stage == STAGE_CONNECTED && peer_pair(fd, &p)) {
        vm = address_vm(p.here.cid, p.here.port);
    } else {
        return -ENOTCONN;
    }
    return copy_address(&vm, a, len);
}

/* Options. */

static int copy_value(const void *from, size_t size, bool whole, void *value,
                      socklen_t *len)
{
    if (!value || !len) {
        return -EFAULT;
    }
    if ((int)*len < 0 || (whole && *len < size)) {
        return -EINVAL;
    }
    *len = *len < size ? *len : size;
    memcpy(value, from, *len);
    return 0;
}

static int get_vsock_option(const struct address_state *s, int option,
                            void *value, socklen_t *len)
{
    struct timeval tv = {
        s->connect_ms / 1000, s->connect_ms % 1000 * 1000
    };
    uint64_t size = VSOCK_WINDOW;

    switch (option) {
    case SO_VM_SOCKETS_BUFFER_MIN_SIZE:
        size = 128;
        /* fall through */
    case SO_VM_SOCKETS_BUFFER_SIZE:
    case SO_VM_SOCKETS_BUFFER_MAX_SIZE:
        return copy_value(&size, sizeof(size), true, value, len);
    case SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD:
    case SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW:
        return copy_value(&tv, sizeof(tv), true, value, len);
    default:
        return -ENOPROTOOPT;
    }
}

static int set_vsock_option(int fd, struct address_state *s, int option,
                            const void *value, socklen_t len)
{
    struct timeval tv;

    switch (option) {
    case SO_VM_SOCKETS_BUFFER_SIZE:
    case SO_VM_SOCKETS_BUFFER_MIN_SIZE:
    case SO_VM_SOCKETS_BUFFER_MAX_SIZE:
        /* The backend's window is what it is. */
        return len < sizeof(uint64_t) ? -EINVAL : 0;
    case SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD:
    case SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW:
        break;
    default:
        return -ENOPROTOOPT;
    }
    if (len < sizeof(tv)) {
        return -EINVAL;
    }
    if (!value) {
        return -EFAULT;
    }
    memcpy(&tv, value, sizeof(tv));
    if (tv.tv_sec < 0 || tv.tv_usec >= 1000000) {
        return -ERANGE;
    }
    if (tv.tv_sec >= ADDRESS_CONNECT_MS_MAX / 1000) {
        s->connect_ms = ADDRESS_CONNECT_MS_MAX;
    } else {
        s->connect_ms = tv.tv_sec * 1000 +
                        (tv.tv_usec > 0 ? (tv.tv_usec + 999) / 1000 : 0);
    }
    s->connect_ms = s->connect_ms ?: ADDRESS_CONNECT_MS;
    return set_state(fd, s);
}

/* Of SOL_SOCKET, those that a unix socket would answer otherwise. */
static bool is_special(int option)
{
    return option == SO_DOMAIN || option == SO_ERROR;
}

static int get_socket_option(int fd, struct address_state *s, int option,
                             void *value, socklen_t *len)
{
    int answer = AF_VSOCK;

    if (option == SO_ERROR) {
        if (s->stage != STAGE_CONNECTING) {
            return negative(NEXT(getsockopt)(fd, SOL_SOCKET, option, value,
                                             len));
        }
        answer = -take_outcome(fd, s);
    }
    return copy_value(&answer, sizeof(answer), false, value, len);
}

/* The device, which tells this host's CID and nothing else. */

static bool is_device(const char *path)
{
    return folder[0] && path && strcmp(path, DEVICE) == 0;
}

static int open_device(int flags)
{
    struct address_state s = { .stage = STAGE_DEVICE };

    return make_socket(flags & O_CLOEXEC ? SOCK_CLOEXEC : 0, &s);
}

/* The calls. */

int vp_socket(int family, int type, int protocol) CALL(socket);
int vp_socket(int family, int type, int protocol)
{
    const int flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
    struct address_state s = {
        .stage = STAGE_NEW, .connect_ms = ADDRESS_CONNECT_MS
    };

    start();
    if (family != AF_VSOCK || !folder[0] || (type & ~flags) != SOCK_STREAM) {
        return NEXT(socket)(family, type, protocol);
    }
    if (protocol && protocol != AF_VSOCK) {
        return finish(-EPROTONOSUPPORT);
    }
    return finish(make_socket(type & flags, &s));
}

int vp_bind(int fd, const struct sockaddr *a, socklen_t len) CALL(bind);
int vp_bind(int fd, const struct sockaddr *a, socklen_t len)
{
    struct address_state s;

    if (!a || !is_ours(fd, &s)) {
        return NEXT(bind)(fd, a, len);
    }
    return finish(bind_ours(fd, &s, a, len));
}

int vp_connect(int fd, const struct sockaddr *a, socklen_t len) CALL(connect);
int vp_connect(int fd, const struct sockaddr *a, socklen_t len)
{
    struct address_state s;

    if (!a || len < sizeof(a->sa_family) ||
        (a->sa_family != AF_VSOCK && a->sa_family != AF_UNIX) ||
        !is_ours(fd, &s)) {
        return NEXT(connect)(fd, a, len);
    }
    return finish(connect_ours(fd, &s, a, len));
}

int vp_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags)
    CALL(accept4);
int vp_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags)
{
    struct address_state s;

    if (!is_ours(fd, &s)) {
        return NEXT(accept4)(fd, a, len, flags);
    }
    return finish(accept_ours(fd, &s, a, len, flags));
}

int vp_accept(int fd, struct sockaddr *a, socklen_t *len) CALL(accept);
int vp_accept(int fd, struct sockaddr *a, socklen_t *len)
{
    struct address_state s;

    if (!is_ours(fd, &s)) {
        return NEXT(accept)(fd, a, len);
    }
    return finish(accept_ours(fd, &s, a, len, 0));
}

int vp_getsockname(int fd, struct sockaddr *a, socklen_t *len)
    CALL(getsockname);
int vp_getsockname(int fd, struct sockaddr *a, socklen_t *len)
{
    struct address_state s;

    if (!is_ours(fd, &s)) {
        return NEXT(getsockname)(fd, a, len);
    }
    return finish(getsockname_ours(fd, &s, a, len));
}

int vp_getpeername(int fd, struct sockaddr *a, socklen_t *len)
    CALL(getpeername);
int vp_getpeername(int fd, struct sockaddr *a, socklen_t *len)
{
    struct address_state s;

    if (!is_ours(fd, &s)) {
        return NEXT(getpeername)(fd, a, len);
    }
    return finish(getpeername_ours(fd, &s, a, len));
}

int vp_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
    CALL(getsockopt);
int vp_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
    struct address_state s;

    if (level == AF_VSOCK && is_ours(fd, &s)) {
        return finish(get_vsock_option(&s, option, value, len));
    }
    if (level == SOL_SOCKET && is_special(option) && is_ours(fd, &s)) {
        return finish(get_socket_option(fd, &s, option, value, len));
    }
    return NEXT(getsockopt)(fd, level, option, value, len);
}

int vp_setsockopt(int fd, int level, int option, const void *value,
                  socklen_t len) CALL(setsockopt);
int vp_setsockopt(int fd, int level, int option, const void *value,
                  socklen_t len)
{
    struct address_state s;

    if (level == AF_VSOCK && is_ours(fd, &s)) {
        return finish(set_vsock_option(fd, &s, option, value, len));
    }
    return NEXT(setsockopt)(fd, level, option, value, len);
}

/* AF_VSOCK names no sender of a stream's bytes; AF_UNIX does. */
static void hide_sender(int fd, ssize_t r, const struct sockaddr *a,
                        socklen_t *len)
{
    struct address_state s;

    if (r >= 0 && a && len && *len && is_ours(fd, &s)) {
        *len = 0;
    }
}

ssize_t vp_recvfrom(int fd, void *buf, size_t n, int flags,
                    struct sockaddr *a, socklen_t *len) CALL(recvfrom);
ssize_t vp_recvfrom(int fd, void *buf, size_t n, int flags,
                    struct sockaddr *a, socklen_t *len)
{
    ssize_t r = NEXT(recvfrom)(fd, buf, n, flags, a, len);

    hide_sender(fd, r, a, len);
    return r;
}

ssize_t vp_recvfrom_chk(int fd, void *buf, size_t n, size_t size, int flags,
                        struct sockaddr *a, socklen_t *len)
    CALL(__recvfrom_chk);
ssize_t vp_recvfrom_chk(int fd, void *buf, size_t n, size_t size, int flags,
                        struct sockaddr *a, socklen_t *len)
{
    ssize_t r = NEXT(__recvfrom_chk)(fd, buf, n, size, flags, a, len);

    hide_sender(fd, r, a, len);
    return r;
}

ssize_t vp_recvmsg(int fd, struct msghdr *m, int flags) CALL(recvmsg);
ssize_t vp_recvmsg(int fd, struct msghdr *m, int flags)
{
    ssize_t r = NEXT(recvmsg)(fd, m, flags);

    if (r >= 0) {
        hide_sender(fd, r, m->msg_name, &m->msg_namelen);
    }
    return r;
}

int vp_ioctl(int fd, unsigned long request, ...) CALL(ioctl);
int vp_ioctl(int fd, unsigned long request, ...)
{
    struct address_state s;
    va_list list;
    void *argument;

    va_start(list, request);
    argument = va_arg(list, void *);
    va_end(list);
    if (request == IOCTL_VM_SOCKETS_GET_LOCAL_CID && get_state(fd, &s)) {
        if (s.stage != STAGE_DEVICE) {
            return finish(-ENOTTY);
        }
        *(unsigned *)argument = ADDRESS_CID_PARENT;
        return 0;
    }
    return NEXT(ioctl)(fd, request, argument);
}

static mode_t mode_of(int flags, va_list list)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ?
           va_arg(list, mode_t) : 0;
}

#define OPEN(name)                                                            \
    int vp_##name(const char *path, int flags, ...) CALL(name);               \
    int vp_##name(const char *path, int flags, ...)                           \
    {                                                                         \
        va_list list;                                                         \
        mode_t mode;                                                          \
                                                                              \
        va_start(list, flags);                                                \
        mode = mode_of(flags, list);                                          \
        va_end(list);                                                         \
        start();                                                              \
        return is_device(path) ? finish(open_device(flags))                   \
                               : NEXT(name)(path, flags, mode);               \
    }

#define OPEN_CHECKED(name)                                                    \
    int vp_##name(const char *path, int flags) CALL(name);                    \
    int vp_##name(const char *path, int flags)                                \
    {                                                                         \
        start();                                                              \
        return is_device(path) ? finish(open_device(flags))                   \
                               : NEXT(name)(path, flags);                     \
    }

#define OPEN_AT(name)                                                         \
    int vp_##name(int at, const char *path, int flags, ...) CALL(name);       \
    int vp_##name(int at, const char *path, int flags, ...)                   \
    {                                                                         \
        va_list list;                                                         \
        mode_t mode;                                                          \
                                                                              \
        va_start(list, flags);                                                \
        mode = mode_of(flags, list);                                          \
        va_end(list);                                                         \
        start();                                                              \
        return is_device(path) ? finish(open_device(flags))                   \
                               : NEXT(name)(at, path, flags, mode);           \
    }

OPEN(open)
OPEN(open64)
OPEN_CHECKED(__open_2)
OPEN_CHECKED(__open64_2)
OPEN_AT(openat)
OPEN_AT(openat64)
