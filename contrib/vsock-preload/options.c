/*
 * SPDX-License-Identifier: MIT
 *
 * options.c: names and options of a socket, as AF_VSOCK has them.
 */

#include "socket.h"
#include "../vhost-user-vsock/vsock.h"

#include <poll.h>
#include <string.h>
#include <sys/time.h>

/* Names. */

int op_getsockname(int fd, const struct address_state *s, struct sockaddr *a,
                   socklen_t *len)
{
    struct sockaddr_vm vm = address_vm(VMADDR_CID_ANY, VMADDR_PORT_ANY);
    struct address_pair p;
    uint32_t port;

    if (sock_own_pair(fd, &p)) {
        vm = address_vm(p.here.cid, p.here.port);
    } else if (s->bound && sock_own_port(fd, &port)) {
        vm = address_vm(s->bound_cid, port);
    } else if (s->stage == STAGE_CONNECTED && sock_peer_pair(fd, &p)) {
        vm = address_vm(p.there.cid, p.there.port);
    }
    return sock_copy_address(&vm, a, len);
}

int op_getpeername(int fd, const struct address_state *s, struct sockaddr *a,
                   socklen_t *len)
{
    struct sockaddr_vm vm;
    struct address_pair p;

    if (sock_own_pair(fd, &p)) {
        short events = sock_events(fd, POLLOUT);

        if (s->stage != STAGE_CONNECTED &&
            (!events || events & (POLLHUP | POLLERR))) {
            return -ENOTCONN;
        }
        vm = address_vm(p.there.cid, p.there.port);
    } else if (s->stage == STAGE_CONNECTED && sock_peer_pair(fd, &p)) {
        vm = address_vm(p.here.cid, p.here.port);
    } else {
        return -ENOTCONN;
    }
    return sock_copy_address(&vm, a, len);
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

int op_get_vsock_option(const struct address_state *s, int option, void *value,
                        socklen_t *len)
{
    struct timeval tv = { s->connect_ms / 1000, s->connect_ms % 1000 * 1000 };
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

int op_set_vsock_option(int fd, struct address_state *s, int option,
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
        s->connect_ms =
            tv.tv_sec * 1000 + (tv.tv_usec > 0 ? (tv.tv_usec + 999) / 1000 : 0);
    }
    s->connect_ms = s->connect_ms ?: ADDRESS_CONNECT_MS;
    return sock_set_state(fd, s);
}

bool op_is_special(int option)
{
    return option == SO_DOMAIN || option == SO_ERROR;
}

int op_get_socket_option(int fd, struct address_state *s, int option,
                         void *value, socklen_t *len)
{
    int answer = AF_VSOCK;

    if (option == SO_ERROR) {
        if (s->stage != STAGE_CONNECTING) {
            return negative(
                NEXT(getsockopt)(fd, SOL_SOCKET, option, value, len));
        }
        answer = -connect_outcome(fd, s);
    }
    return copy_value(&answer, sizeof(answer), false, value, len);
}
