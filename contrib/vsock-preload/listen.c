/*
 * SPDX-License-Identifier: MIT
 *
 * listen.c: serving a port of the parent, for every enclave: the socket's file,
 * and who has connected.
 */

#include "socket.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

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
    bool stale =
        fd >= 0 && lstat(un->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
        NEXT(connect)(fd, (const struct sockaddr *)un, sizeof(*un)) < 0 &&
        errno == ECONNREFUSED;

    if (fd >= 0) {
        close(fd);
    }
    return stale;
}

static int bind_path(int fd, const struct sockaddr_un *un)
{
    const struct sockaddr *a = (const struct sockaddr *)un;
    int r;

    fchmod(fd, 0600); /* the file gets it, less the umask */
    r = negative(NEXT(bind)(fd, a, sizeof(*un)));
    if (r == -EADDRINUSE && is_stale(un)) {
        unlink(un->sun_path);
        r = negative(NEXT(bind)(fd, a, sizeof(*un)));
    }
    return r;
}

/* The folder of the ports, locked against others who take away stale ones. */
static int lock_ports(void)
{
    char path[VP_FOLDER_MAX + sizeof(VSOCK_PORTS)];
    int fd;

    snprintf(path, sizeof(path), "%s" VSOCK_PORTS, vp_folder);
    for (unsigned i = 0; i < SOCK_TRIES; i++) {
        struct stat opened, named;

        if (mkdir(path, 0700) < 0 && errno != EEXIST) {
            return -errno;
        }
        fd = NEXT(open)(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
        if (fd < 0) {
            if (errno == ENOENT) {
                continue; /* removed, being empty */
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

    return address_port(&un, vp_folder, port) ? bind_path(fd, &un) :
                                                -EADDRNOTAVAIL;
}

static int bind_any(int fd)
{
    uint32_t port = sock_random_port();
    int r = -EADDRNOTAVAIL;

    for (unsigned i = 0; i < SOCK_TRIES; i++) {
        r = bind_port(fd, sock_next_port(port, i));
        if (r != -EADDRINUSE) {
            break;
        }
    }
    return r == -EADDRINUSE ? -EADDRNOTAVAIL : r;
}

int op_bind(int fd, struct address_state *s, const struct sockaddr *a,
            socklen_t len)
{
    struct sockaddr_vm vm;
    int r = s->bound || s->stage != STAGE_NEW ? -EINVAL :
                                                address_check(a, len, &vm);
    int lock;

    if (r < 0) {
        return r;
    }
    if (vm.svm_cid != VMADDR_CID_ANY && vm.svm_cid != VSOCK_CID_PARENT &&
        vm.svm_cid != VMADDR_CID_HOST) {
        return connect_elsewhere(fd, s, NEXT(bind), &vm, -EADDRNOTAVAIL);
    }
    if (vm.svm_port < SOCK_PORT_MIN && !may_have_low_ports()) {
        return -EACCES;
    }
    lock = lock_ports();
    if (lock < 0) {
        return lock;
    }
    r = vm.svm_port == VMADDR_PORT_ANY ? bind_any(fd) :
                                         bind_port(fd, vm.svm_port);
    flock(lock, LOCK_UN); /* also for a child forked meanwhile */
    close(lock);
    if (r < 0) {
        return r;
    }
    s->bound = true;
    s->bound_cid = vm.svm_cid;
    return sock_set_state(fd, s);
}

int op_accept(int fd, const struct address_state *s, struct sockaddr *a,
              socklen_t *len, int flags)
{
    struct address_state child = { .stage = STAGE_CONNECTED,
                                   .connect_ms = s->connect_ms };
    struct address_pair p;
    struct sockaddr_vm vm;
    int r = negative(NEXT(accept4)(fd, NULL, NULL, flags));
    int err;

    if (r < 0) {
        return r;
    }
    err = sock_set_state(r, &child);
    if (err == 0 && a) {
        if (!sock_peer_pair(r, &p)) {
            p.here = (struct address) { VMADDR_CID_ANY, VMADDR_PORT_ANY };
        }
        vm = address_vm(p.here.cid, p.here.port);
        err = sock_copy_address(&vm, a, len);
    }
    if (err < 0) {
        close(r);
        return err;
    }
    return r;
}
