/*
 * SPDX-License-Identifier: MIT
 *
 * metadata.c: 169.254.169.254 port 80, where a parent program looks for the
 * metadata of its EC2 instance. Only root could serve that address; a stand-in
 * serves a port of 127.0.0.1, and TCP sockets of IPv4, also by way of IPv6,
 * that want the one are connected to the other. They stay the kernel's in all
 * else, but tell the peer that was asked for.
 */

#include "socket.h"

#include <netinet/in.h>
#include <string.h>

#define METADATA_ADDRESS 0xa9fea9feu /* 169.254.169.254 */
#define METADATA_PORT 80

uint16_t vp_metadata_port;

struct place {
    uint32_t address;
    uint16_t port;
};

/* An IPv4 address, or one of IPv6 that stands for one (RFC 4291, 2.5.5.2). */
static bool get_place(const struct sockaddr_storage *a, socklen_t len,
                      struct place *p)
{
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;

    if (len >= sizeof(v4) && a->ss_family == AF_INET) {
        memcpy(&v4, a, sizeof(v4));
        p->address = ntohl(v4.sin_addr.s_addr);
        p->port = ntohs(v4.sin_port);
        return true;
    }
    if (len >= sizeof(v6) && a->ss_family == AF_INET6) {
        memcpy(&v6, a, sizeof(v6));
        memcpy(&v4.sin_addr, &v6.sin6_addr.s6_addr[12], sizeof(v4.sin_addr));
        p->address = ntohl(v4.sin_addr.s_addr);
        p->port = ntohs(v6.sin6_port);
        return IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr);
    }
    return false;
}

/* The same family, flow and scope with another address and port. */
static void set_place(struct sockaddr_storage *a, struct place p)
{
    const struct in_addr address = { htonl(p.address) };
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;

    if (a->ss_family == AF_INET) {
        memcpy(&v4, a, sizeof(v4));
        v4.sin_addr = address;
        v4.sin_port = htons(p.port);
        memcpy(a, &v4, sizeof(v4));
    } else {
        memcpy(&v6, a, sizeof(v6));
        memcpy(&v6.sin6_addr.s6_addr[12], &address, sizeof(address));
        v6.sin6_port = htons(p.port);
        memcpy(a, &v6, sizeof(v6));
    }
}

static const struct place metadata = { METADATA_ADDRESS, METADATA_PORT };

static bool replace(struct sockaddr_storage *a, socklen_t len,
                    struct place from, struct place to)
{
    struct place p;

    if (!get_place(a, len, &p) || p.address != from.address ||
        p.port != from.port) {
        return false;
    }
    set_place(a, to);
    return true;
}

bool metadata_redirects(int fd, const struct sockaddr *a, socklen_t len,
                        struct sockaddr_storage *to)
{
    const struct place here = { INADDR_LOOPBACK, vp_metadata_port };
    int type = 0;
    socklen_t size = sizeof(type);

    if (!vp_metadata_port || len > sizeof(*to)) {
        return false;
    }
    memset(to, 0, sizeof(*to));
    memcpy(to, a, len);
    return replace(to, len, metadata, here) &&
           NEXT(getsockopt)(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
           type == SOCK_STREAM;
}

int metadata_getpeername(int fd, struct sockaddr *a, socklen_t *len)
{
    const struct place here = { INADDR_LOOPBACK, vp_metadata_port };
    struct sockaddr_storage peer = { .ss_family = AF_UNSPEC };
    socklen_t size = sizeof(peer);
    int r = negative(NEXT(getpeername)(fd, (struct sockaddr *)&peer, &size));

    if (r < 0) {
        return r;
    }
    if (!a || !len) {
        return -EFAULT;
    }
    if ((int)*len < 0) {
        return -EINVAL;
    }
    replace(&peer, size, here, metadata);
    memcpy(a, &peer, *len < size ? *len : size);
    *len = size;
    return 0;
}
