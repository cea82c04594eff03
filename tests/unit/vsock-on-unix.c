/*
 * SPDX-License-Identifier: MIT
 *
 * vsock backend: AF_VSOCK on a host that has none, and names with several
 * addresses, for tests
 *
 * Not a test but a part of the backend's program (the linker's --wrap) that
 * makes the socket CID:PORT of AF_VSOCK the unix socket $VSOCK_FOLDER/CID_PORT.
 * It behaves as the kernel does where the backend can tell: a connect is in
 * progress, and its end, ECONNRESET where nobody listens, comes by SO_ERROR;
 * CID 77 is no device. A client's own CID is what its name, which ends in
 * "_CID", says, else that of the loopback.
 *
 * The name many.test has the addresses that $MANY_TEST lists, with commas.
 */
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "vsock-on-unix.h"

#define NO_DEVICE 77
#define MAX_FD 4096

static bool vsock[MAX_FD], refused[MAX_FD];

static struct sockaddr_un unix_name(const struct sockaddr_vm *vm)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };

    snprintf(un.sun_path, sizeof(un.sun_path), "%s/%u_%u",
             getenv("VSOCK_FOLDER"), vm->svm_cid, vm->svm_port);
    return un;
}

int __wrap_socket(int family, int type, int protocol)
{
    int fd = __real_socket(family == AF_VSOCK ? AF_UNIX : family, type,
                           protocol);

    if (fd >= 0 && fd < MAX_FD) {
        vsock[fd] = family == AF_VSOCK;
        refused[fd] = false;
    }
    return fd;
}

int __wrap_bind(int fd, const struct sockaddr *a, socklen_t len)
{
    const struct sockaddr_vm *vm = (const struct sockaddr_vm *)a;
    struct sockaddr_un un;

    if (a->sa_family != AF_VSOCK) {
        return __real_bind(fd, a, len);
    }
    if (vm->svm_port == VMADDR_PORT_ANY) {
        return 0;
    }
    un = unix_name(vm);
    return __real_bind(fd, (struct sockaddr *)&un, sizeof(un));
}

int __wrap_connect(int fd, const struct sockaddr *a, socklen_t len)
{
    const struct sockaddr_vm *vm = (const struct sockaddr_vm *)a;
    struct sockaddr_un un;

    if (a->sa_family != AF_VSOCK) {
        return __real_connect(fd, a, len);
    }
    if (vm->svm_cid == NO_DEVICE) {
        errno = ENODEV;
        return -1;
    }
    un = unix_name(vm);
    refused[fd] = __real_connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0;
    errno = EINPROGRESS;
    return -1;
}

int __wrap_accept4(int fd, struct sockaddr *a, socklen_t *len, int flags)
{
    struct sockaddr_un un = { 0 };
    socklen_t un_len = sizeof(un);
    struct sockaddr_vm vm = {
        .svm_family = AF_VSOCK,
        .svm_cid = VMADDR_CID_LOCAL,
    };
    const char *cid;
    int r = __real_accept4(fd, (struct sockaddr *)&un, &un_len, flags);

    if (r < 0) {
        return r;
    }
    if (vsock[fd]) {
        cid = strrchr(un.sun_path, '_');
        if (cid) {
            sscanf(cid, "_%u", &vm.svm_cid);
        }
        memcpy(a, &vm, sizeof(vm));
        *len = sizeof(vm);
    } else {
        memcpy(a, &un, un_len);
        *len = un_len;
    }
    return r;
}

int __wrap_getsockopt(int fd, int level, int option, void *value,
                      socklen_t *len)
{
    int r = __real_getsockopt(fd, level, option, value, len);

    if (r == 0 && level == SOL_SOCKET && option == SO_ERROR && refused[fd]) {
        *(int *)value = ECONNRESET;
    }
    return r;
}

int __wrap_getaddrinfo(const char *name, const char *service,
                       const struct addrinfo *hints, struct addrinfo **found)
{
    const char *list = getenv("MANY_TEST");
    struct addrinfo **end = found;
    char *text, *rest, *one;
    int r = 0;

    if (!list || strcmp(name, "many.test")) {
        return __real_getaddrinfo(name, service, hints, found);
    }
    rest = text = strdup(list);
    while (!r && (one = strsep(&rest, ","))) {
        r = __real_getaddrinfo(one, service, hints, end);
        /* The C library frees a list one by one. */
        end = r ? end : &(*end)->ai_next;
    }
    free(text);
    return r;
}
