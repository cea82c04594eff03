/*
 * SPDX-License-Identifier: MIT
 *
 * vsock backend: the connection core, with a clock and a host of our own
 *
 * What takes longer than a test may, or depends on which of many comes first.
 * Whatever the guest and the host do in any order is fuzz-vsock's.
 */
#include <glib.h>
#include <errno.h>
#include <string.h>

#include "vsock.h"

#define CID 4
#define PORT 5000
#define MAX_CONNS 4
#define NOW 1000
#define HOUR (3600 * 1000)

/* Host ends, by the guest's port. */
static struct {
    struct vsock_conn *c;
    size_t room;            /* bytes that it takes */
    size_t got;
    bool closed;
    bool cut;
} ends[16];

static struct vsock *v;
static unsigned notes[VSOCK_NOTES];
static int open_result;
static ssize_t recv_result;

static int op_open(void *opaque, struct vsock_conn *c)
{
    c->fd = c->guest_port % G_N_ELEMENTS(ends);
    ends[c->fd].c = c;
    return open_result;
}

static ssize_t op_send(void *opaque, struct vsock_conn *c,
                       const struct iovec *iov, unsigned niov)
{
    size_t n = iov->iov_len;

    n = n < ends[c->fd].room ? n : ends[c->fd].room;
    ends[c->fd].room -= n;
    ends[c->fd].got += n;
    return n ? (ssize_t)n : -EAGAIN;
}

static ssize_t op_recv(void *opaque, struct vsock_conn *c,
                       const struct iovec *iov, unsigned niov)
{
    return recv_result;
}

static void op_shutdown(void *opaque, struct vsock_conn *c, int how)
{
}

static void op_close(void *opaque, struct vsock_conn *c, bool cut)
{
    ends[c->fd].closed = true;
    ends[c->fd].cut = cut;
}

static void op_note(void *opaque, enum vsock_note note,
                    const struct vsock_conn *c, const struct vsock_hdr *h)
{
    notes[note]++;
}

static const struct vsock_ops ops = {
    .open = op_open,
    .send = op_send,
    .recv = op_recv,
    .shutdown = op_shutdown,
    .close = op_close,
    .note = op_note,
};

static void begin_with(uint32_t max_conns)
{
    const struct vsock_config config = {
        .guest_cid = CID,
        .max_conns = max_conns,
        .hash_key = { 1, 2, 3 },
    };

    memset(ends, 0, sizeof(ends));
    memset(notes, 0, sizeof(notes));
    open_result = 0;
    recv_result = -EAGAIN;
    v = vsock_new(&config, &ops, NULL);
    vsock_set_now(v, NOW);
}

static void begin(void)
{
    begin_with(MAX_CONNS);
}

static void pass(int64_t now)
{
    vsock_set_now(v, now);
    vsock_tick(v);
}

static void packet_to(uint32_t parent_port, uint32_t port, unsigned op,
                      uint32_t flags, uint32_t len)
{
    static uint8_t payload[VSOCK_MAX_PAYLOAD];
    struct iovec iov = { payload, len };
    struct vsock_hdr h = {
        .src_cid = CID, .dst_cid = VSOCK_CID_PARENT, .src_port = port,
        .dst_port = parent_port, .len = len, .type = VSOCK_TYPE_STREAM,
        .op = op,
        .flags = flags, .buf_alloc = 262144,
    };
    uint8_t raw[VSOCK_HDR_SIZE];

    vsock_hdr_encode(&h, raw);
    vsock_tx(v, raw, &iov, 1, len);
}

static void packet(uint32_t port, enum vsock_op op, uint32_t flags,
                   uint32_t len)
{
    packet_to(PORT, port, op, flags, len);
}

/* The op of what the guest gets next, or 0. */
static unsigned next_op(void)
{
    uint8_t memory[4096];
    struct iovec iov = { memory, sizeof(memory) };
    struct vsock_buf b = { &iov, 1, sizeof(memory), 0 };
    struct vsock_hdr h;

    if (!vsock_rx(v, &b, 1)) {
        return 0;
    }
    vsock_hdr_decode(&h, memory);
    return h.op;
}

static unsigned answer(void)
{
    unsigned op = next_op();

    g_assert_cmpuint(op, !=, 0);
    return op;
}

/* A stream that the guest has closed, with so much left for the host. */
static void leave(uint32_t port, uint32_t len)
{
    packet(port, VSOCK_OP_REQUEST, 0, 0);
    g_assert_cmpuint(answer(), ==, VSOCK_OP_RESPONSE);
    packet(port, VSOCK_OP_RW, 0, len);
    packet(port, VSOCK_OP_SHUTDOWN, VSOCK_OFF_BOTH, 0);
    g_assert_cmpuint(answer(), ==, VSOCK_OP_RST);
    g_assert_false(ends[port].closed);
}

static void takes(uint32_t port, size_t n)
{
    ends[port].room = n;
    vsock_event(v, ends[port].c, VSOCK_EV_OUT);
}

static void test_a_paused_host_has_time(void)
{
    begin();
    leave(1, 10000);
    g_assert_cmpuint(vsock_draining(v), ==, 1);
    pass(NOW + HOUR);
    g_assert_false(ends[1].closed);
    takes(1, 100);
    pass(NOW + 2 * HOUR);
    takes(1, 10000);
    g_assert_cmpuint(ends[1].got, ==, 10000);
    g_assert_true(ends[1].closed);
    g_assert_false(ends[1].cut);
    g_assert_cmpuint(vsock_count(v), ==, 0);
    g_assert_cmpuint(notes[VSOCK_NOTE_EVICTED], ==, 0);
    vsock_free(v);
}

/* Where the guest takes no RST the host end has the same rights. */
static void test_a_paused_host_of_a_paused_guest(void)
{
    begin();
    packet(1, VSOCK_OP_REQUEST, 0, 0);
    g_assert_cmpuint(answer(), ==, VSOCK_OP_RESPONSE);
    packet(1, VSOCK_OP_RW, 0, 5000);
    packet(1, VSOCK_OP_SHUTDOWN, VSOCK_OFF_BOTH, 0);
    pass(NOW + HOUR);
    g_assert_false(ends[1].closed);
    takes(1, 5000);
    g_assert_true(ends[1].closed);
    g_assert_false(ends[1].cut);
    g_assert_cmpuint(answer(), ==, VSOCK_OP_RST);
    vsock_free(v);
}

static void test_memory_is_kept_for_the_rest_alone(void)
{
    begin();
    leave(1, 10000);
    g_assert_cmpuint(vsock_reserved(v), ==, 10000);
    packet(2, VSOCK_OP_REQUEST, 0, 0);
    g_assert_cmpuint(vsock_reserved(v), ==, 10000 + VSOCK_WINDOW);
    takes(1, 10000);
    g_assert_cmpuint(vsock_reserved(v), ==, VSOCK_WINDOW);
    vsock_free(v);
}

static void test_the_oldest_makes_room(void)
{
    begin();
    for (uint32_t port = 1; port <= MAX_CONNS; port++) {
        leave(port, 1000);
    }
    takes(1, 10);               /* so that it is the youngest now */
    for (uint32_t i = 0; i < MAX_CONNS; i++) {
        uint32_t gone = i + 2 <= MAX_CONNS ? i + 2 : 1;

        g_assert_false(ends[gone].closed);
        packet(8 + i, VSOCK_OP_REQUEST, 0, 0);
        g_assert_cmpuint(answer(), ==, VSOCK_OP_RESPONSE);
        g_assert_true(ends[gone].cut);
        g_assert_cmpuint(notes[VSOCK_NOTE_EVICTED], ==, i + 1);
    }
    /* Who is connected stays so. */
    packet(15, VSOCK_OP_REQUEST, 0, 0);
    g_assert_cmpuint(answer(), ==, VSOCK_OP_RST);
    g_assert_cmpuint(notes[VSOCK_NOTE_TABLE_FULL], ==, 1);
    vsock_free(v);
}

static void test_clients_get_room_too(void)
{
    begin();
    for (uint32_t port = 1; port <= MAX_CONNS; port++) {
        leave(port, 1000);
    }
    g_assert_true(vsock_client_room(v));
    g_assert_nonnull(vsock_client(v, 14, -1));
    g_assert_true(ends[1].cut);
    vsock_free(v);
}

static void test_at_our_end_progress_gives_time(void)
{
    begin();
    leave(1, 1000);
    leave(2, 1000);
    pass(NOW + HOUR);
    vsock_finish(v);
    pass(NOW + HOUR + VSOCK_MS_DRAIN - 10);
    g_assert_cmpuint(vsock_draining(v), ==, 2);
    takes(2, 10);
    pass(NOW + HOUR + VSOCK_MS_DRAIN);
    g_assert_true(ends[1].cut);
    g_assert_false(ends[2].closed);
    pass(NOW + HOUR + 2 * VSOCK_MS_DRAIN - 20);
    g_assert_false(ends[2].closed);
    pass(NOW + HOUR + 2 * VSOCK_MS_DRAIN);
    g_assert_true(ends[2].cut);
    g_assert_cmpuint(notes[VSOCK_NOTE_EVICTED], ==, 2);
    vsock_free(v);
}

static void test_the_end_of_all_is_a_cut(void)
{
    begin();
    leave(1, 1000);
    vsock_free(v);
    g_assert_true(ends[1].cut);
    g_assert_cmpuint(notes[VSOCK_NOTE_EVICTED], ==, 1);
}

#define CROWD 1000

/* Who has nothing to do with a crowd does not wait for its end. */
static void test_a_crowd_ends_in_turns(void)
{
    unsigned left = CROWD, turns = 0;

    begin_with(CROWD + 1);
    packet_to(PORT + 1, 15, VSOCK_OP_REQUEST, 0, 0);
    g_assert_cmpuint(answer(), ==, VSOCK_OP_RESPONSE);
    open_result = -EAGAIN;      /* a full backlog */
    for (uint32_t port = 16; port < 16 + CROWD; port++) {
        packet(port, VSOCK_OP_REQUEST, 0, 0);
    }
    pass(NOW + VSOCK_MS_BACKLOG - 1);
    g_assert_false(vsock_rx_ready(v));
    for (pass(NOW + VSOCK_MS_BACKLOG + VSOCK_MS_RETRY); left; vsock_tick(v)) {
        unsigned before = 0;

        recv_result = 1;
        vsock_event(v, vsock_get(v, 0, 0), VSOCK_EV_IN);
        while (answer() == VSOCK_OP_RST) {
            before++;
        }
        recv_result = -EAGAIN;
        g_assert_true(vsock_rx_again(v));
        g_assert_cmpuint(next_op(), ==, 0);
        g_assert_cmpuint(before, >, 0);
        g_assert_cmpuint(before, <=, VSOCK_MAX_ENDED);
        left -= before;
        turns++;
        if (left) {
            g_assert_cmpint(vsock_deadline(v), ==,
                            NOW + VSOCK_MS_BACKLOG + VSOCK_MS_RETRY);
        }
    }
    g_assert_cmpuint(turns, <=, CROWD / VSOCK_MAX_ENDED + 1);
    g_assert_cmpuint(notes[VSOCK_NOTE_BACKLOG], ==, CROWD);
    vsock_free(v);
}

/* Connections in each state that the guest can send to. */

static struct vsock_conn *opening(void)
{
    open_result = -EINPROGRESS;
    packet(1, VSOCK_OP_REQUEST, 0, 0);
    return ends[1].c;
}

static struct vsock_conn *waiting(void)
{
    return ends[1].c = vsock_client(v, 1, 1);
}

static struct vsock_conn *requested(void)
{
    waiting();
    g_assert_cmpuint(answer(), ==, VSOCK_OP_REQUEST);
    return ends[1].c;
}

static struct vsock_conn *is_open(void)
{
    packet(1, VSOCK_OP_REQUEST, 0, 0);
    g_assert_cmpuint(answer(), ==, VSOCK_OP_RESPONSE);
    return ends[1].c;
}

static struct vsock_conn *closing(void)
{
    recv_result = 0;
    vsock_event(v, is_open(), VSOCK_EV_HUP);
    g_assert_cmpuint(answer(), ==, VSOCK_OP_SHUTDOWN);
    return ends[1].c;
}

static struct vsock_conn *reset(void)
{
    is_open();
    packet(1, VSOCK_OP_SHUTDOWN, VSOCK_OFF_BOTH, 0);
    return ends[1].c;
}

static void check_outcome(char outcome)
{
    unsigned sum = 0;

    for (unsigned i = 0; i < VSOCK_NOTES; i++) {
        sum += notes[i];
    }
    g_assert_cmpuint(sum, ==, strchr("vVuUn", outcome) ? 1 : 0);
    g_assert_cmpuint(notes[VSOCK_NOTE_VIOLATION], ==,
                     outcome == 'v' || outcome == 'V');
    g_assert_cmpuint(notes[VSOCK_NOTE_TUPLE_REUSED], ==,
                     outcome == 'u' || outcome == 'U');
    g_assert_cmpuint(notes[VSOCK_NOTE_GUEST_REFUSED], ==, outcome == 'n');
    g_assert_cmpuint(vsock_stats(v)->host_opened, ==, outcome == 'o');
    if (outcome == 'v' || outcome == 'u') {
        g_assert_cmpuint(answer(), ==, VSOCK_OP_RST);
    } else if (outcome == 'c') {
        g_assert_cmpuint(answer(), ==, VSOCK_OP_CREDIT_UPDATE);
    }
    if (strchr("-co", outcome)) {
        g_assert_cmpuint(vsock_count(v), ==, 1);
    } else {
        g_assert_cmpuint(vsock_count(v), ==, 0);
        g_assert_false(vsock_rx_ready(v));
    }
}

/*
 * For each op, from INVALID to one that nobody knows: v violation, answered by
 * RST; u tuple reused, the same; V, U without an RST, for who was not told of
 * it; g gone; n gone, refused; o open; c credit told; - nothing to be seen.
 */
static void test_each_packet_in_each_state(void)
{
    static const struct {
        struct vsock_conn *(*reach)(void);
        const char *outcome;
    } states[] = {
        { opening,   "vuvgvv--v" },
        { waiting,   "VUV-VV--V" },
        { requested, "vuonvv--v" },
        { is_open,   "vuvg---cv" },
        { closing,   "vuvg----v" },
        { reset,     "---g-----" },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(states); i++) {
        for (unsigned op = 0; states[i].outcome[op]; op++) {
            struct vsock_conn *c;

            begin();
            c = states[i].reach();
            packet_to(c->parent_port, 1, op, 0, op == VSOCK_OP_RW ? 10 : 0);
            check_outcome(states[i].outcome[op]);
            vsock_free(v);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vsock/paused-host", test_a_paused_host_has_time);
    g_test_add_func("/vsock/paused-host-and-guest",
                    test_a_paused_host_of_a_paused_guest);
    g_test_add_func("/vsock/memory-of-the-rest",
                    test_memory_is_kept_for_the_rest_alone);
    g_test_add_func("/vsock/oldest-makes-room", test_the_oldest_makes_room);
    g_test_add_func("/vsock/clients-get-room", test_clients_get_room_too);
    g_test_add_func("/vsock/finish", test_at_our_end_progress_gives_time);
    g_test_add_func("/vsock/end", test_the_end_of_all_is_a_cut);
    g_test_add_func("/vsock/crowd", test_a_crowd_ends_in_turns);
    g_test_add_func("/vsock/packets-by-state", test_each_packet_in_each_state);
    return g_test_run();
}
