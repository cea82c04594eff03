/*
 * SPDX-License-Identifier: MIT
 *
 * socket.h: what is done with the sockets of a parent program, for the calls in
 * preload.c. Where a function returns an int, it is negative with an errno in
 * it after a failure; errno itself is as libc left it.
 */

#ifndef SOCKET_H
#define SOCKET_H

#include "address.h"

#include <errno.h>
#include <sys/uio.h>

/* Our addresses in names of 108 bytes, by way of a slash and ten digits. */
#define VP_FOLDER_MAX 108
/* Where the enclaves' sockets are; empty: the library does nothing. */
extern char vp_folder[VP_FOLDER_MAX];
/* Of 127.0.0.1, where EC2's metadata are; 0: they are not ours to redirect. */
extern uint16_t vp_metadata_port;

/* What we stand before: libc's calls, or those of another such library. */
#define CALLS(X)                                                            \
    X(int, socket, (int, int, int))                                         \
    X(int, bind, (int, const struct sockaddr *, socklen_t))                 \
    X(int, connect, (int, const struct sockaddr *, socklen_t))              \
    X(int, accept, (int, struct sockaddr *, socklen_t *))                   \
    X(int, accept4, (int, struct sockaddr *, socklen_t *, int))             \
    X(int, getsockname, (int, struct sockaddr *, socklen_t *))              \
    X(int, getpeername, (int, struct sockaddr *, socklen_t *))              \
    X(int, getsockopt, (int, int, int, void *, socklen_t *))                \
    X(int, setsockopt, (int, int, int, const void *, socklen_t))            \
    X(ssize_t, recvfrom,                                                    \
      (int, void *, size_t, int, struct sockaddr *, socklen_t *))           \
    X(ssize_t, __recvfrom_chk,                                              \
      (int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *))   \
    X(ssize_t, recvmsg, (int, struct msghdr *, int))                        \
    X(ssize_t, recv, (int, void *, size_t, int))                            \
    X(ssize_t, __recv_chk, (int, void *, size_t, size_t, int))              \
    X(ssize_t, read, (int, void *, size_t))                                 \
    X(ssize_t, __read_chk, (int, void *, size_t, size_t))                   \
    X(ssize_t, readv, (int, const struct iovec *, int))                     \
    X(ssize_t, write, (int, const void *, size_t))                          \
    X(ssize_t, writev, (int, const struct iovec *, int))                    \
    X(ssize_t, send, (int, const void *, size_t, int))                      \
    X(ssize_t, sendto,                                                      \
      (int, const void *, size_t, int, const struct sockaddr *, socklen_t)) \
    X(ssize_t, sendmsg, (int, const struct msghdr *, int))                  \
    X(int, shutdown, (int, int))                                            \
    X(int, ioctl, (int, unsigned long, void *))                             \
    X(int, open, (const char *, int, mode_t))                               \
    X(int, open64, (const char *, int, mode_t))                             \
    X(int, __open_2, (const char *, int))                                   \
    X(int, __open64_2, (const char *, int))                                 \
    X(int, openat, (int, const char *, int, mode_t))                        \
    X(int, openat64, (int, const char *, int, mode_t))

#define MEMBER(type, name, arguments) type(*name) arguments;
extern struct vp_next {
    CALLS(MEMBER)
} vp_next;
#undef MEMBER

/* Finds them; a constructor, for those that come before it as well. */
void vp_start(void);

#define NEXT(name) (vp_start(), vp_next.name)

static inline int negative(int r)
{
    return r < 0 ? -errno : r;
}

/* What is known of a socket. */

bool sock_state(int fd, struct address_state *s);
int sock_set_state(int fd, const struct address_state *s);
/* One of AF_VSOCK; false for all other descriptors. */
bool sock_is_ours(int fd, struct address_state *s);
int sock_make(int flags, const struct address_state *s);
bool sock_is_blocking(int fd);
/* What poll() says now. */
short sock_events(int fd, short wanted);

/* The program's descriptor is another socket from now on, with its flags. */
int sock_replace(int fd, const struct address_state *s, int by);
/*
 * A unix socket can be bound and connected once. One that has to be again is
 * replaced by a new one.
 */
int sock_renew(int fd, struct address_state *s);

/*
 * SO_SNDBUF, as the kernel tells it. While a connect is in progress the real
 * one is another, and the program's is kept in SO_INCOMING_CPU.
 */
int sock_sndbuf(int fd, const struct address_state *s);
void sock_set_sndbuf(int fd, int size);
void sock_keep_sndbuf(int fd, int size);

/* Names. */

int sock_copy_address(const struct sockaddr_vm *vm, struct sockaddr *a,
                      socklen_t *len);
/* The pair of addresses of a socket that we have connected. */
bool sock_own_pair(int fd, struct address_pair *p);
bool sock_own_port(int fd, uint32_t *port);
/*
 * The enclave's pair, of a socket that was accepted. Who has no such name is a
 * program on this host.
 */
bool sock_peer_pair(int fd, struct address_pair *p);

/* Where any port will do, one and those after it are tried. */
#define SOCK_TRIES 1000
#define SOCK_PORT_MIN 1024
uint32_t sock_random_port(void);
uint32_t sock_next_port(uint32_t port, unsigned i);

/* Milliseconds of the clock, and those that are left; not above 0: none. */
uint64_t sock_now_ms(void);
int32_t sock_until_ms(uint32_t until);

/* The calls, for a socket of ours. */

int op_connect(int fd, struct address_state *s, const struct sockaddr *a,
               socklen_t len);
/* What has become of a connect. */
enum outcome {
    OUTCOME_NONE, /* it goes on, or there is none */
    OUTCOME_CONNECTED,
    OUTCOME_FAILED,
};
enum outcome connect_look(int fd, struct address_state *s);
/* The same, but takes the error, as SO_ERROR does: it is returned negative. */
int connect_outcome(int fd, struct address_state *s);
/*
 * Before data is read or written: -ENOTCONN if this process has begun to
 * connect the descriptor, and it is not connected. Costs nothing on others.
 */
int connect_check(int fd);
/* No enclave of ours is meant: the kernel may know better, or errno is none. */
int connect_elsewhere(int fd, const struct address_state *s,
                      __typeof__(vp_next.connect) call,
                      const struct sockaddr_vm *vm, int none);

/* A connect that goes to the stand-in for EC2's metadata, and where it is. */
bool metadata_redirects(int fd, const struct sockaddr *a, socklen_t len,
                        struct sockaddr_storage *to);
int metadata_getpeername(int fd, struct sockaddr *a, socklen_t *len);

int op_bind(int fd, struct address_state *s, const struct sockaddr *a,
            socklen_t len);
int op_shutdown(int fd, struct address_state *s, int how);
int op_accept(int fd, const struct address_state *s, struct sockaddr *a,
              socklen_t *len, int flags);

int op_getsockname(int fd, const struct address_state *s, struct sockaddr *a,
                   socklen_t *len);
int op_getpeername(int fd, struct address_state *s, struct sockaddr *a,
                   socklen_t *len);
int op_get_vsock_option(const struct address_state *s, int option, void *value,
                        socklen_t *len);
int op_set_vsock_option(int fd, struct address_state *s, int option,
                        const void *value, socklen_t len);
/* Of SOL_SOCKET, those that a unix socket would answer otherwise. */
bool op_is_special(int option);
int op_get_socket_option(int fd, struct address_state *s, int option,
                         void *value, socklen_t *len);
int op_set_socket_option(int fd, const struct address_state *s, int option,
                         const void *value, socklen_t len);

#endif
