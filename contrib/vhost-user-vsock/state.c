/*
 * SPDX-License-Identifier: MIT
 *
 * state.c: the states of a connection, and which follows which. What a packet
 * means in each is in from-guest.c.
 *
 *    guest: REQUEST            a client connects
 *         |                           |
 *         v                           v
 *    +-OPENING-+                   CLIENT ------ gone, late, no line ---> FREE
 *    |    |  ^ | backlog full,        | its line, or none is wanted
 *    |    |  +-+ next address         v
 *    |    | host end is there      WAITING ----- gone, late ------------> FREE
 *    |    |                           | REQUEST is in the ring
 *    |    v                           v
 *    |  OPEN <------ RESPONSE --- REQUESTED
 *    |    | |                         |
 *    |    | | host has shut           |
 *    |    | | both ways               |
 *    |    | +------> CLOSING          |
 *    |    |             |             | gone, late
 *    |    | guest has   | guest has   |
 *    |    | shut both   | too, late   |
 *    |    v             v             |
 *    +> RESET <-----------------------+
 *  late,  |
 *  nobody | RST is in the ring
 *  there  +------ the host has all ------------------------------> FREE
 *         v
 *       DRAIN --- it has, has gone, or its room is wanted -------> FREE
 *
 * Besides: a packet that the state does not allow leads to RESET; an RST of the
 * guest, or a new start of its driver, to FREE, or from OPEN and RESET to DRAIN
 * where the host has not got all. When the guest has gone, WAITING is FREE too.
 */

#include "core.h"

#include <assert.h>

#define TO(state) (1u << VSOCK_##state)

static const struct {
    unsigned next; /* itself beside these: its host end closed */
    bool hashed;
    bool client;
} states[VSOCK_STATES] = {
    [VSOCK_FREE] = { .next = TO(CLIENT) | TO(OPENING) },
    [VSOCK_CLIENT] = { .next = TO(WAITING) | TO(FREE), .client = true },
    [VSOCK_OPENING] = { .next = TO(OPEN) | TO(RESET) | TO(FREE),
                        .hashed = true },
    [VSOCK_WAITING] = { .next = TO(REQUESTED) | TO(FREE),
                        .hashed = true,
                        .client = true },
    [VSOCK_REQUESTED] = { .next = TO(OPEN) | TO(RESET) | TO(FREE),
                          .hashed = true,
                          .client = true },
    [VSOCK_OPEN] = { .next = TO(CLOSING) | TO(RESET) | TO(DRAIN) | TO(FREE),
                     .hashed = true },
    [VSOCK_CLOSING] = { .next = TO(RESET) | TO(FREE), .hashed = true },
    [VSOCK_RESET] = { .next = TO(DRAIN) | TO(FREE), .hashed = true },
    [VSOCK_DRAIN] = { .next = TO(FREE) },
};

bool conn_is_hashed(const struct vsock_conn *c)
{
    return states[c->state].hashed;
}

bool conn_is_client(const struct vsock_conn *c)
{
    return states[c->state].client;
}

bool conn_is_draining(const struct vsock_conn *c)
{
    return c->host && (c->state == VSOCK_RESET || c->state == VSOCK_DRAIN);
}

void conn_state(struct vsock *v, struct vsock_conn *c, enum vsock_state state,
                bool host)
{
    bool drained = conn_is_draining(c);

    /*
     * No packet and no client can make this fail: each caller has looked at the
     * state, and what a packet may lead to is a table (from-guest.c). It stays
     * for the day when a caller is wrong: a connection that stands in the table
     * or in a list when it should not is memory for whoever finds it, and to
     * end here is less than that. test-vsock sends every packet in every state,
     * fuzz-vsock any events in any order.
     */
    assert(state == c->state || (states[c->state].next >> state & 1));
    v->clients -= conn_is_client(c);
    c->state = state;
    c->host = host;
    v->clients += conn_is_client(c);
    if (drained && !conn_is_draining(c)) {
        TAILQ_REMOVE(&v->drains, c, drain);
        v->draining--;
    } else if (!drained && conn_is_draining(c)) {
        TAILQ_INSERT_TAIL(&v->drains, c, drain);
        v->draining++;
    }
}
