/*
 * SPDX-License-Identifier: MIT
 *
 * A host without AF_VSOCK, by LD_PRELOAD, where the kernel has it: for tests of
 * the parent programs' library, which stands before it.
 */
#include <dlfcn.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <sys/socket.h>

int socket(int family, int type, int protocol)
{
    int (*real)(int, int, int);

    if (family == AF_VSOCK) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    *(void **)&real = dlsym(RTLD_NEXT, "socket");
    return real(family, type, protocol);
}
