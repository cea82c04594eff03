/*
 * SPDX-License-Identifier: MIT
 *
 * preload.c: AF_VSOCK for a parent program on a host that has none, by
 * LD_PRELOAD. A socket of AF_VSOCK is a unix socket, connected to the backend
 * of an enclave or bound where all backends look; the calls here translate
 * addresses, options and errors. Data and events pass by the kernel alone:
 * poll() is not replaced, and read() and write() only look at sockets that this
 * process has begun to connect. Not for programs that make system calls without
 * libc.
 *
 * All that is to be known of a socket is kept with it by the kernel: names of
 * the socket and its peer, and numbers in SO_MAX_PACING_RATE and, while it
 * connects, SO_INCOMING_CPU, which mean nothing to a unix socket. So dup(),
 * fork(), exec() and the sending of descriptors need no care, and no lock is
 * held anywhere.
 *
 * Beside that, one address of IPv4 is another where the parent command has said
 * so: metadata.c.
 *
 * What the kernel answers in each case was looked up with the kernel's own
 * AF_VSOCK; tests compare the two where there are both.
 */

#include "socket.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* By their names alone, so that no macro or attribute of libc's interferes. */
#define CALL(name) __asm__(#name) __attribute__((visibility("default")))

#define DEVICE "/dev/vsock"

char vp_folder[VP_FOLDER_MAX];
struct vp_next vp_next;

/* 0 for what is none. */
static uint16_t port_of(const char *text)
{
    uint32_t value = 0;

    if (!text) {
        return 0;
    }
    for (; *text; text++) {
        if (*text < '0' || *text > '9') {
            return 0;
        }
        value = value * 10 + (*text - '0');
        if (value > UINT16_MAX) {
            return 0;
        }
    }
    return value;
}

#define FIND(type, name, arguments) \
    *(void **)&vp_next.name = dlsym(RTLD_NEXT, #name);

/* Before main(), and before that if a constructor of others needs it. */
__attribute__((constructor)) void vp_start(void)
{
    const char *value = getenv("NITROCTL_VSOCK_DIR");
    int saved = errno;

    if (vp_next.openat64) {
        return;
    }
    if (value && value[0] == '/' && strlen(value) < sizeof(vp_folder)) {
        strcpy(vp_folder, value);
        vp_metadata_port = port_of(getenv("NITROCTL_METADATA_PORT"));
    }
    CALLS(FIND)
    errno = saved;
}

static int finish(int r)
{
    if (r < 0) {
        errno = -r;
        return -1;
    }
    return r;
}

/* The device, which tells this host's CID and nothing else. */

static bool is_device(const char *path)
{
    return vp_folder[0] && path && strcmp(path, DEVICE) == 0;
}

static int open_device(int flags)
{
    struct address_state s = { .stage = STAGE_DEVICE };

    return sock_make(flags & O_CLOEXEC ? SOCK_CLOEXEC : 0, &s);
}

/* The calls. */

int vp_socket(int family, int type, int protocol) CALL(socket);
int vp_socket(int family, int type, int protocol)
{
    const int flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
    struct address_state s = { .stage = STAGE_NEW,
                               .connect_ms = ADDRESS_CONNECT_MS };

    vp_start();
    if (family != AF_VSOCK || !vp_folder[0] || (type & ~flags) != SOCK_STREAM) {
        return NEXT(socket)(family, type, protocol);
    }
    if (protocol && protocol != AF_VSOCK) {
        return finish(-EPROTONOSUPPORT);
    }
    return finish(sock_make(type & flags, &s));
}

int vp_bind(int fd, const struct sockaddr *a, socklen_t len) CALL(bind);
int vp_bind(int fd, const struct sockaddr *a, socklen_t len)
{
    struct address_state s;

    if (!a || !sock_is_ours(fd, &s)) {
        return NEXT(bind)(fd, a, len);
    }
    return finish(op_bind(fd, &s, a, len));
}

int vp_connect(int fd, const struct sockaddr *a, socklen_t len) CALL(connect);
int vp_connect(int fd, const struct sockaddr *a, socklen_t len)
{
    struct address_state s;
    struct sockaddr_storage to;

    vp_start();
    if (a && metadata_redirects(fd, a, len, &to)) {
        return NEXT(connect)(fd, (struct sockaddr *)&to, len);
    }
    if (!a || len < sizeof(a->sa_family) ||
        (a->sa_family != AF_VSOCK && a->sa_family != AF_UNIX) ||
        !sock_is_ours(fd, &s)) {
        return NEXT(connect)(fd, a, len);
    }
    return finish(op_connect(fd, &s, a, len));
}

int vp_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags)
    CALL(accept4);
int vp_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags)
{
    struct address_state s;

    if (!sock_is_ours(fd, &s)) {
        return NEXT(accept4)(fd, a, len, flags);
    }
    return finish(op_accept(fd, &s, a, len, flags));
}

int vp_accept(int fd, struct sockaddr *a, socklen_t *len) CALL(accept);
int vp_accept(int fd, struct sockaddr *a, socklen_t *len)
{
    struct address_state s;

    if (!sock_is_ours(fd, &s)) {
        return NEXT(accept)(fd, a, len);
    }
    return finish(op_accept(fd, &s, a, len, 0));
}

int vp_getsockname(int fd, struct sockaddr *a, socklen_t *len)
    CALL(getsockname);
int vp_getsockname(int fd, struct sockaddr *a, socklen_t *len)
{
    struct address_state s;

    if (!sock_is_ours(fd, &s)) {
        return NEXT(getsockname)(fd, a, len);
    }
    return finish(op_getsockname(fd, &s, a, len));
}

int vp_getpeername(int fd, struct sockaddr *a, socklen_t *len)
    CALL(getpeername);
int vp_getpeername(int fd, struct sockaddr *a, socklen_t *len)
{
    struct address_state s;

    if (!sock_is_ours(fd, &s)) {
        return vp_metadata_port ? finish(metadata_getpeername(fd, a, len)) :
                                  NEXT(getpeername)(fd, a, len);
    }
    return finish(op_getpeername(fd, &s, a, len));
}

int vp_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
    CALL(getsockopt);
int vp_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
    struct address_state s;

    if (level == AF_VSOCK && sock_is_ours(fd, &s)) {
        return finish(op_get_vsock_option(&s, option, value, len));
    }
    if (level == SOL_SOCKET && op_is_special(option) && sock_is_ours(fd, &s)) {
        return finish(op_get_socket_option(fd, &s, option, value, len));
    }
    return NEXT(getsockopt)(fd, level, option, value, len);
}

int vp_setsockopt(int fd, int level, int option, const void *value,
                  socklen_t len) CALL(setsockopt);
int vp_setsockopt(int fd, int level, int option, const void *value,
                  socklen_t len)
{
    struct address_state s;

    if (level == AF_VSOCK && sock_is_ours(fd, &s)) {
        return finish(op_set_vsock_option(fd, &s, option, value, len));
    }
    if (level == SOL_SOCKET && op_is_special(option) && sock_is_ours(fd, &s)) {
        return finish(op_set_socket_option(fd, &s, option, value, len));
    }
    return NEXT(setsockopt)(fd, level, option, value, len);
}

int vp_shutdown(int fd, int how) CALL(shutdown);
int vp_shutdown(int fd, int how)
{
    struct address_state s;

    if (!sock_is_ours(fd, &s)) {
        return NEXT(shutdown)(fd, how);
    }
    return finish(op_shutdown(fd, &s, how));
}

/*
 * Data is the kernel's business. These calls are only here for sockets that are
 * not connected: those that are about to be, which have a peer already, and new
 * ones, for which a unix socket has another error.
 */

/* AF_VSOCK names no sender of a stream's bytes; AF_UNIX does. */
static ssize_t received(int fd, ssize_t r, const struct sockaddr *a,
                        socklen_t *len)
{
    struct address_state s;

    if (r < 0) {
        if (errno == EINVAL && sock_is_ours(fd, &s) && s.stage == STAGE_NEW) {
            errno = ENOTCONN;
        }
    } else if (a && len && *len && sock_is_ours(fd, &s)) {
        *len = 0;
    }
    return r;
}

ssize_t vp_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *a,
                    socklen_t *len) CALL(recvfrom);
ssize_t vp_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *a,
                    socklen_t *len)
{
    int r = connect_check(fd);

    return r < 0 ?
               finish(r) :
               received(fd, NEXT(recvfrom)(fd, buf, n, flags, a, len), a, len);
}

ssize_t vp_recvfrom_chk(int fd, void *buf, size_t n, size_t size, int flags,
                        struct sockaddr *a, socklen_t *len)
    CALL(__recvfrom_chk);
ssize_t vp_recvfrom_chk(int fd, void *buf, size_t n, size_t size, int flags,
                        struct sockaddr *a, socklen_t *len)
{
    int r = connect_check(fd);

    return r < 0 ?
               finish(r) :
               received(fd,
                        NEXT(__recvfrom_chk)(fd, buf, n, size, flags, a, len),
                        a, len);
}

ssize_t vp_recvmsg(int fd, struct msghdr *m, int flags) CALL(recvmsg);
ssize_t vp_recvmsg(int fd, struct msghdr *m, int flags)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) :
                   received(fd, NEXT(recvmsg)(fd, m, flags), m->msg_name,
                            &m->msg_namelen);
}

ssize_t vp_recv(int fd, void *buf, size_t n, int flags) CALL(recv);
ssize_t vp_recv(int fd, void *buf, size_t n, int flags)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) :
                   received(fd, NEXT(recv)(fd, buf, n, flags), NULL, NULL);
}

ssize_t vp_recv_chk(int fd, void *buf, size_t n, size_t size, int flags)
    CALL(__recv_chk);
ssize_t vp_recv_chk(int fd, void *buf, size_t n, size_t size, int flags)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) :
                   received(fd, NEXT(__recv_chk)(fd, buf, n, size, flags), NULL,
                            NULL);
}

ssize_t vp_read(int fd, void *buf, size_t n) CALL(read);
ssize_t vp_read(int fd, void *buf, size_t n)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) : received(fd, NEXT(read)(fd, buf, n), NULL, NULL);
}

ssize_t vp_read_chk(int fd, void *buf, size_t n, size_t size) CALL(__read_chk);
ssize_t vp_read_chk(int fd, void *buf, size_t n, size_t size)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) :
                   received(fd, NEXT(__read_chk)(fd, buf, n, size), NULL, NULL);
}

ssize_t vp_readv(int fd, const struct iovec *iov, int n) CALL(readv);
ssize_t vp_readv(int fd, const struct iovec *iov, int n)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) :
                   received(fd, NEXT(readv)(fd, iov, n), NULL, NULL);
}

ssize_t vp_write(int fd, const void *buf, size_t n) CALL(write);
ssize_t vp_write(int fd, const void *buf, size_t n)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) : NEXT(write)(fd, buf, n);
}

ssize_t vp_writev(int fd, const struct iovec *iov, int n) CALL(writev);
ssize_t vp_writev(int fd, const struct iovec *iov, int n)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) : NEXT(writev)(fd, iov, n);
}

ssize_t vp_send(int fd, const void *buf, size_t n, int flags) CALL(send);
ssize_t vp_send(int fd, const void *buf, size_t n, int flags)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) : NEXT(send)(fd, buf, n, flags);
}

/* An address is no good before the connect, either. */
static int check_to(int fd, bool address)
{
    int r = connect_check(fd);

    return r == -ENOTCONN && address ? -EOPNOTSUPP : r;
}

ssize_t vp_sendto(int fd, const void *buf, size_t n, int flags,
                  const struct sockaddr *a, socklen_t len) CALL(sendto);
ssize_t vp_sendto(int fd, const void *buf, size_t n, int flags,
                  const struct sockaddr *a, socklen_t len)
{
    int r = check_to(fd, a && len);

    return r < 0 ? finish(r) : NEXT(sendto)(fd, buf, n, flags, a, len);
}

ssize_t vp_sendmsg(int fd, const struct msghdr *m, int flags) CALL(sendmsg);
ssize_t vp_sendmsg(int fd, const struct msghdr *m, int flags)
{
    int r = connect_check(fd);

    return r < 0 ? finish(r) : NEXT(sendmsg)(fd, m, flags);
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
    if (request == IOCTL_VM_SOCKETS_GET_LOCAL_CID && sock_state(fd, &s)) {
        if (s.stage != STAGE_DEVICE) {
            return finish(-ENOTTY);
        }
        *(unsigned *)argument = VSOCK_CID_PARENT;
        return 0;
    }
    if (request == SIOCOUTQ && sock_is_ours(fd, &s)) {
        connect_look(fd, &s);
        if (s.stage == STAGE_NEW) {
            return finish(-EOPNOTSUPP);
        }
        if (s.stage == STAGE_CONNECTING || s.stage == STAGE_FAILED) {
            *(int *)argument = 0; /* what is there is the library's */
            return 0;
        }
    }
    return NEXT(ioctl)(fd, request, argument);
}

static mode_t mode_of(int flags, va_list list)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ?
               va_arg(list, mode_t) :
               0;
}

#define OPEN(name)                                              \
    int vp_##name(const char *path, int flags, ...) CALL(name); \
    int vp_##name(const char *path, int flags, ...)             \
    {                                                           \
        va_list list;                                           \
        mode_t mode;                                            \
                                                                \
        va_start(list, flags);                                  \
        mode = mode_of(flags, list);                            \
        va_end(list);                                           \
        vp_start();                                             \
        return is_device(path) ? finish(open_device(flags)) :   \
                                 NEXT(name)(path, flags, mode); \
    }

#define OPEN_CHECKED(name)                                    \
    int vp_##name(const char *path, int flags) CALL(name);    \
    int vp_##name(const char *path, int flags)                \
    {                                                         \
        vp_start();                                           \
        return is_device(path) ? finish(open_device(flags)) : \
                                 NEXT(name)(path, flags);     \
    }

#define OPEN_AT(name)                                                   \
    int vp_##name(int at, const char *path, int flags, ...) CALL(name); \
    int vp_##name(int at, const char *path, int flags, ...)             \
    {                                                                   \
        va_list list;                                                   \
        mode_t mode;                                                    \
                                                                        \
        va_start(list, flags);                                          \
        mode = mode_of(flags, list);                                    \
        va_end(list);                                                   \
        vp_start();                                                     \
        return is_device(path) ? finish(open_device(flags)) :           \
                                 NEXT(name)(at, path, flags, mode);     \
    }

OPEN(open)
OPEN(open64)
OPEN_CHECKED(__open_2)
OPEN_CHECKED(__open64_2)
OPEN_AT(openat)
OPEN_AT(openat64)
