/*
 * SPDX-License-Identifier: MIT
 *
 * ports.c: what each port has carried: connections, refusals, bytes. A guest
 * chooses its ports, so the table has an end; what comes later is counted
 * together.
 */

#include "core.h"

/* The port's row, or that of all others. */
static struct vsock_port *find(struct vsock *v, uint32_t port, bool of_guest)
{
    unsigned i;

    for (i = 0; i < v->port_count; i++) {
        struct vsock_port *p = &v->ports[i];

        if (p->port == port && p->of_guest == of_guest) {
            return p;
        }
    }
    if (i == VSOCK_MAX_PORTS) {
        return &v->ports[VSOCK_MAX_PORTS];
    }
    v->port_count++;
    v->ports[i] = (struct vsock_port) { .port = port, .of_guest = of_guest };
    return &v->ports[i];
}

void port_begin(struct vsock *v, struct vsock_conn *c, uint32_t port,
                bool of_guest)
{
    c->of_guest = of_guest;
    c->port = find(v, port, of_guest) - v->ports;
}

static void tell(struct vsock *v, const struct vsock_port *p, bool refused)
{
    /* Of those that are counted together none is the first. */
    if (v->ops->port && p != &v->ports[VSOCK_MAX_PORTS]) {
        v->ops->port(v->opaque, p, refused);
    }
}

void port_opened(struct vsock *v, struct vsock_conn *c)
{
    struct vsock_port *p = &v->ports[c->port];

    c->counted = true;
    p->open++;
    if (!p->connections++) {
        tell(v, p, false);
    }
}

void port_closed(struct vsock *v, struct vsock_conn *c)
{
    if (c->counted) {
        v->ports[c->port].open--;
        c->counted = false;
    }
}

/* Has c been refused by this? Then it was never open. */
static bool refuses(const struct vsock_conn *c, enum vsock_note why)
{
    switch (why) {
    case VSOCK_NOTE_FAULT:
        return c->state == VSOCK_OPENING || c->state == VSOCK_WAITING;
    case VSOCK_NOTE_NO_LISTENER:
    case VSOCK_NOTE_BACKLOG:
        return c->state == VSOCK_OPENING;
    case VSOCK_NOTE_GUEST_REFUSED:
    case VSOCK_NOTE_GUEST_SILENT:
        return conn_is_client(c) && c->state != VSOCK_CLIENT;
    default:
        return false;
    }
}

void port_noted(struct vsock *v, const struct vsock_conn *c,
                enum vsock_note why)
{
    struct vsock_port *p;

    if (!c || !refuses(c, why)) {
        return;
    }
    p = &v->ports[c->port];
    if (!p->refused++ || p->why != why) {
        p->why = why;
        tell(v, p, true);
    }
}

const struct vsock_port *vsock_ports(const struct vsock *v, unsigned *count)
{
    *count = v->port_count;
    return v->ports;
}

const struct vsock_port *vsock_other_ports(const struct vsock *v)
{
    return &v->ports[VSOCK_MAX_PORTS];
}
