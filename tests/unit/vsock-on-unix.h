/*
 * SPDX-License-Identifier: MIT
 *
 * vsock backend: the calls that the linker's --wrap replaces, for tests
 */
#ifndef VSOCK_ON_UNIX_H
#define VSOCK_ON_UNIX_H

#include <netdb.h>
#include <sys/socket.h>

int __real_socket(int family, int type, int protocol);
int __real_bind(int fd, const struct sockaddr *a, socklen_t len);
int __real_connect(int fd, const struct sockaddr *a, socklen_t len);
int __real_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags);
int __real_getsockopt(int fd, int level, int option, void *value,
                      socklen_t *len);

int __real_getaddrinfo(const char *name, const char *service,
                       const struct addrinfo *hints, struct addrinfo **found);

int __wrap_socket(int family, int type, int protocol);
int __wrap_bind(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *a, socklen_t len);
int __wrap_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags);
int __wrap_getsockopt(int fd, int level, int option, void *value,
                      socklen_t *len);
int __wrap_getaddrinfo(const char *name, const char *service,
                       const struct addrinfo *hints, struct addrinfo **found);

#endif
