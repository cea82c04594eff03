/*
 * SPDX-License-Identifier: MIT
 *
 * routes.c: the options that say which port is which address: TCP services and
 * unix sockets that are ports of the parent, and addresses on this host that
 * are ports of the guest. Names are looked up here, once; nothing is opened.
 */

#include "options.h"
#include "vsock.h"

#include <linux/vm_sockets.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

static struct host_route *new_route(struct host_route *table, unsigned *count,
                                    const char *option)
{
    if (*count == HOST_MAX_ROUTES) {
        wrong("%s more than %d times", option, HOST_MAX_ROUTES);
    }
    return &table[(*count)++];
}

static struct host_route *new_published(struct host_options *o,
                                        const char *option, uint32_t port)
{
    struct host_route *r = new_route(o->publish, &o->published, option);

    r->port = port;
    return r;
}

static uint32_t port_number(const char *option, const char *text)
{
    return option_number(option, text, 0, VSOCK_PORT_ANY - 1);
}

/* PORT=WHAT; cuts the text, returns WHAT. */
static char *port_and(const char *option, char *text, uint32_t *port)
{
    char *equals = strchr(text, '=');

    if (!equals) {
        wrong("%s=%s has no \"=\"", option, text);
    }
    *equals = 0;
    *port = port_number(option, text);
    return equals + 1;
}

/* Addresses. */

static void unix_address(struct host_address *a, const char *option,
                         const char *path)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&a->addr;

    if (!*path || strlen(path) > VSOCK_MAX_PATH) {
        wrong("%s: \"%s\" has %zu bytes; a unix socket's path has 1 to %d",
              option, path, strlen(path), VSOCK_MAX_PATH);
    }
    un->sun_family = AF_UNIX;
    strcpy(un->sun_path, path);
    a->text = path;
    a->len = sizeof(*un);
}

/* HOST:PORT or [HOST]:PORT, looked up now: all its addresses. */
static struct addrinfo *tcp_addresses(const char *option, const char *text,
                                      bool passive)
{
    const struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0),
    };
    /* The last one: an IPv6 address has more of them. */
    const char *colon = strrchr(text, ':');
    char host[256];
    struct addrinfo *found;
    int len, r;

    if (!colon || colon == text || colon - text >= (int)sizeof(host)) {
        wrong("%s: \"%s\" is not HOST:PORT", option, text);
    }
    option_number(option, colon + 1, 1, 65535);
    len = colon - text;
    if (*text == '[' && colon[-1] == ']') {
        text++;
        len -= 2;
    }
    snprintf(host, sizeof(host), "%.*s", len, text);
    r = getaddrinfo(host, colon + 1, &hints, &found);
    if (r) {
        wrong("%s: %s: %s", option, host, gai_strerror(r));
    }
    return found;
}

/* Two lines of /etc/hosts may say the same. */
static bool is_new(const struct addrinfo *all, const struct addrinfo *a)
{
    for (; all != a; all = all->ai_next) {
        if (all->ai_addrlen == a->ai_addrlen &&
            !memcmp(all->ai_addr, a->ai_addr, a->ai_addrlen)) {
            return false;
        }
    }
    return true;
}

static void tcp_address(struct host_address *a, const struct addrinfo *found,
                        const char *text)
{
    memcpy(&a->addr, found->ai_addr, found->ai_addrlen);
    a->len = found->ai_addrlen;
    a->text = text;
}

/* Ports of the parent. */

/* One address that will do is enough: they are tried in turn, see dial.c. */
static void proxy_addresses(struct host_address *a, const char *option,
                            const char *text)
{
    struct addrinfo *found = tcp_addresses(option, text, false);

    tcp_address(a, found, text);
    for (const struct addrinfo *f = found->ai_next; f; f = f->ai_next) {
        if (!is_new(found, f)) {
            continue;
        }
        a->next = calloc(1, sizeof(*a));
        if (!a->next) {
            wrong("%s: no memory", option);
        }
        a = a->next;
        tcp_address(a, f, text);
    }
    freeaddrinfo(found);
}

static struct host_route *parent_route(struct host_options *o,
                                       const char *option, char **text)
{
    struct host_route *r = new_route(o->route, &o->routes, option);

    *text = port_and(option, *text, &r->port);
    for (unsigned i = 0; i + 1 < o->routes; i++) {
        if (o->route[i].port == r->port) {
            wrong("%s: port %u is given twice", option, r->port);
        }
    }
    return r;
}

void route_proxy(struct host_options *o, const char *option, char *text)
{
    struct host_route *r = parent_route(o, option, &text);

    proxy_addresses(&r->to, option, text);
}

void route_listen_port(struct host_options *o, const char *option, char *text)
{
    struct host_route *r = parent_route(o, option, &text);

    unix_address(&r->to, option, text);
}

/* Addresses that are ports of the guest. */

void route_connect_port(struct host_options *o, const char *option, char *text)
{
    struct host_route *r = new_route(o->publish, &o->published, option);

    unix_address(&r->to, option, port_and(option, text, &r->port));
}

void route_publish(struct host_options *o, const char *option, char *text)
{
    /* The last one: a path may have more of them. */
    char *equals = strrchr(text, '=');
    struct addrinfo *found;
    struct host_route *r;
    uint32_t port;

    if (!equals) {
        wrong("%s=%s is not ADDR=PORT", option, text);
    }
    *equals = 0;
    port = port_number(option, equals + 1);
    if (strchr(text, '/')) {
        unix_address(&new_published(o, option, port)->to, option, text);
        return;
    }
    /* Whoever may connect expects to reach each of the name's addresses. */
    found = tcp_addresses(option, text, true);
    for (const struct addrinfo *f = found; f; f = f->ai_next) {
        if (!is_new(found, f)) {
            continue;
        }
        r = new_published(o, option, port);
        r->to.shared = found->ai_next;
        tcp_address(&r->to, f, text);
    }
    freeaddrinfo(found);
}

/* PORT+PORT..., whose addresses routes_complete() makes. */
void route_forward_listen(struct host_options *o, const char *option,
                          char *text)
{
    do {
        struct host_route *r = new_route(o->publish, &o->published, option);

        r->port = port_number(option, strsep(&text, "+"));
    } while (text);
}

void routes_complete(struct host_options *o)
{
    for (unsigned i = 0; i < o->published; i++) {
        struct host_route *r = &o->publish[i];

        if (!r->to.len) {
            if (!o->forward_cid) {
                wrong("--forward-listen needs --forward-cid");
            }
            /* Where others can reach us as well, they are sent away. */
            host_vsock_address(&r->to,
                               o->forward_cid == VMADDR_CID_LOCAL ?
                                   VMADDR_CID_LOCAL :
                                   VMADDR_CID_ANY,
                               r->port);
        }
        for (unsigned j = 0; j < i; j++) {
            if (!memcmp(&o->publish[j].to.addr, &r->to.addr,
                        sizeof(r->to.addr))) {
                wrong("%s is published twice", r->to.text);
            }
        }
    }
}
