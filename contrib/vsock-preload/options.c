/*
 * SPDX-License-Identifier: MIT
 *
 * options.c: names and options of a socket, as AF_VSOCK has them.
 */

#include "socket.h"

#include <string.h>
#include <sys/time.h>
#include <unistd.h>

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
    } else if ((s->stage == STAGE_CONNECTED || s->stage == STAGE_SHUT) &&
               sock_peer_pair(fd, &p)) {
        vm = address_vm(p.there.cid, p.there.port);
    }
    return sock_copy_address(&vm, a, len);
}

int op_getpeername(int fd, struct address_state *s, struct sockaddr *a,
                   socklen_t *len)
{
    struct sockaddr_vm vm;
    struct address_pair p;

    connect_look(fd, s);
    if (s->stage != STAGE_CONNECTED) {
        return -ENOTCONN;
    }
    if (sock_own_pair(fd, &p)) {
        vm = address_vm(p.there.cid, p.there.port);
    } else if (sock_peer_pair(fd, &p)) {
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
    return option == SO_DOMAIN || option == SO_ERROR || option == SO_SNDBUF ||
           option == SO_SNDBUFFORCE || option == SO_PEERCRED ||
           option == SO_MAX_PACING_RATE || option == SO_INCOMING_CPU;
}

int op_get_socket_option(int fd, struct address_state *s, int option,
                         void *value, socklen_t *len)
{
    /* Of whom the kernel knows nothing. */
    static const struct ucred nobody = { 0, -1, -1 };
    static const uint64_t no_rate = UINT64_MAX;
    int answer = -1;

    switch (option) {
    case SO_DOMAIN:
        answer = AF_VSOCK;
        break;
    case SO_ERROR:
        if (s->stage != STAGE_CONNECTING) {
            return negative(
                NEXT(getsockopt)(fd, SOL_SOCKET, option, value, len));
        }
        answer = -connect_outcome(fd, s);
        break;
    case SO_SNDBUF:
        answer = sock_sndbuf(fd, s);
        break;
    case SO_PEERCRED:
        return copy_value(&nobody, sizeof(nobody), false, value, len);
    case SO_MAX_PACING_RATE:
        return copy_value(&no_rate,
                          len && *len >= sizeof(no_rate) ? sizeof(no_rate) : 4,
                          false, value, len);
    case SO_INCOMING_CPU:
        break;
    default:
        return negative(NEXT(getsockopt)(fd, SOL_SOCKET, option, value, len));
    }
    return copy_value(&answer, sizeof(answer), false, value, len);
}

/* What the kernel makes of a size, on a socket that is nobody's. */
static int keep_size(int fd, int option, const void *value, socklen_t len)
{
    static const struct address_state fresh = { .stage = STAGE_NEW };
    int by = sock_make(SOCK_CLOEXEC, &fresh), r;

    if (by < 0) {
        return by;
    }
    r = negative(NEXT(setsockopt)(by, SOL_SOCKET, option, value, len));
    if (r == 0) {
        sock_keep_sndbuf(fd, sock_sndbuf(by, &fresh));
    }
    close(by);
    return r;
}

int op_set_socket_option(int fd, const struct address_state *s, int option,
                         const void *value, socklen_t len)
{
    switch (option) {
    case SO_SNDBUF:
    case SO_SNDBUFFORCE:
        if (s->stage == STAGE_CONNECTING) {
            return keep_size(fd, option, value, len);
        }
        break;
    case SO_MAX_PACING_RATE:
    case SO_INCOMING_CPU:
        /* Ours; AF_VSOCK itself does nothing by them. */
        return len < sizeof(int) ? -EINVAL : 0;
    }
    return negative(NEXT(setsockopt)(fd, SOL_SOCKET, option, value, len));
}
