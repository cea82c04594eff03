/*
 * SPDX-License-Identifier: MIT
 *
 * host-address.h: an address on this host.
 */

#ifndef HOST_ADDRESS_H
#define HOST_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

/*
 * An address, unix, TCP or AF_VSOCK, as the user wrote it and as the kernel
 * wants it.
 */
struct host_address {
    struct host_address *next; /* of the same name, or NULL */
    const char *text;
    char made[32]; /* text, if it is ours: "CID N port N" */
    struct sockaddr_storage addr;
    socklen_t len;
    bool shared; /* its name has others */
};

/* A port of AF_VSOCK on this host. */
void host_vsock_address(struct host_address *a, uint32_t cid, uint32_t port);

#endif
