/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: the vsock backend's connection core
 *
 * Input: a script of what the guest and the host do. Beyond not crashing, it
 * checks from outside what holds whatever they do: every byte arrives in its
 * order, nothing exceeds the credit that the guest last gave, each host end is
 * closed exactly once, packets are well-formed, memory stays below the cap.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>

#include "running.h"
#include "target.h"
#include "vsock.h"

#define CID 4
#define ENDS 64         /* host ends alive at a time */
#define TUPLES 256      /* that the guest has heard of */
#define MAX_CONNS 24
#define RX_BUFS 8

#define CHECK(claim) ((claim) ? (void)0 : abort())

/* A host socket: what it got and gives are running numbers. */
struct end {
    bool open;
    bool line_sent;     /* a client's line has been read */
    bool greeted;       /* ... and it has got its OK, or needs none */
    bool sent_off;
    char line[24];
    uint8_t next_in;
    uint8_t next_out;
    uint32_t slot;
    uint32_t gen;
};

/* What the guest knows of a tuple. */
struct tuple {
    bool used;
    uint64_t cid;
    uint32_t parent_port;
    uint32_t guest_port;
    uint8_t next_out;   /* to the host */
    uint8_t next_in;
    uint32_t received;
    uint32_t fwd_cnt;   /* as last told */
    uint32_t buf_alloc;
    bool wild;          /* the guest broke the rules: bytes mean nothing */
};

static struct {
    const uint8_t *data;
    size_t size;
    struct end ends[ENDS];
    struct tuple tuples[TUPLES];
    unsigned next_tuple;
    struct vsock *v;
    int64_t now;
    uint8_t open_result, send_result, recv_result;
    uint64_t notes;
} f;

static uint8_t byte(void)
{
    if (!f.size) {
        return 0;
    }
    f.size--;
    return *f.data++;
}

static struct tuple *find(uint64_t cid, uint32_t parent_port,
                          uint32_t guest_port)
{
    for (unsigned i = 0; i < TUPLES; i++) {
        struct tuple *t = &f.tuples[i];

        if (t->used && t->cid == cid && t->parent_port == parent_port &&
            t->guest_port == guest_port) {
            return t;
        }
    }
    return NULL;
}

/*
 * A tuple's counters, from 0 if it begins now. One that was not seen to begin
 * is wild: it may have fallen out of the table.
 */
static struct tuple *known(uint64_t cid, uint32_t parent_port,
                           uint32_t guest_port, bool begins)
{
    struct tuple *t = find(cid, parent_port, guest_port);
    bool wild = t ? t->wild : !begins;

    if (!t) {
        t = &f.tuples[f.next_tuple++ % TUPLES];
    }
    if (begins || !t->used || t->cid != cid || t->parent_port != parent_port ||
        t->guest_port != guest_port) {
        *t = (struct tuple) {
            .used = true, .cid = cid, .parent_port = parent_port,
            .guest_port = guest_port, .wild = wild,
        };
    }
    return t;
}

/* The host side. */

static struct end *end_of(const struct vsock_conn *c)
{
    CHECK(c->fd >= 0 && c->fd < ENDS && f.ends[c->fd].open);
    return &f.ends[c->fd];
}

static int new_end(void)
{
    for (int i = 0; i < ENDS; i++) {
        if (!f.ends[i].open) {
            memset(&f.ends[i], 0, sizeof(f.ends[i]));
            f.ends[i].open = true;
            return i;
        }
    }
    return -1;
}

static int op_open(void *opaque, struct vsock_conn *c)
{
    static const int results[] = {
        0, 0, 0, 0, -EAGAIN, -EINPROGRESS, -ENOENT, -ECONNREFUSED,
    };
    int r = results[f.open_result % 8];

    CHECK(opaque == &f);
    if (r == 0 || r == -EINPROGRESS) {
        c->fd = new_end();
        if (c->fd < 0) {
            return -EMFILE;
        }
        f.ends[c->fd].greeted = true;
        f.ends[c->fd].slot = c->slot;
        f.ends[c->fd].gen = c->gen;
    }
    return r;
}

static int op_instead(void *opaque, struct vsock_conn *c)
{
    CHECK(c->host && c->state == VSOCK_OPENING);
    return f.open_result & 8 ? 0 : f.open_result & 16 ? -EINPROGRESS
                                                      : -ECONNREFUSED;
}

static ssize_t op_send(void *opaque, struct vsock_conn *c,
                       const struct iovec *iov, unsigned niov)
{
    struct end *e = end_of(c);
    size_t most = SIZE_MAX, total = 0;
    struct tuple *t = find(c->parent_cid, c->parent_port, c->guest_port);

    CHECK(opaque == &f && niov > 0 && !e->sent_off);
    if (!e->greeted) {
        CHECK(niov == 1 && !memcmp(iov->iov_base, "OK ", 3));
        e->greeted = true;
        return f.send_result & 1 ? -EPIPE : (ssize_t)iov->iov_len;
    }
    switch (f.send_result % 8) {
    case 0:
    case 1:
        break;
    case 2:
        most = 1;
        break;
    case 3:
        most = 1000;
        break;
    case 4:
    case 5:
        return -EAGAIN;
    case 6:
        return -EPIPE;
    case 7:
        return f.send_result & 8 ? -ECONNRESET : 0;
    }
    for (unsigned i = 0; i < niov; i++) {
        const uint8_t *p = iov[i].iov_base;
        size_t n = MIN(iov[i].iov_len, most - total);

        if (n) {
            CHECK(!t || t->wild || runs(p, e->next_in, n));
            e->next_in = p[n - 1] + 1;
            total += n;
        }
    }
    return total;
}

static ssize_t op_recv(void *opaque, struct vsock_conn *c,
                       const struct iovec *iov, unsigned niov)
{
    struct end *e = end_of(c);
    size_t most = SIZE_MAX, total = 0;

    CHECK(opaque == &f && niov > 0);
    if (!e->line_sent && e->line[0]) {
        e->line_sent = true;
        CHECK(iov->iov_len <= strlen(e->line));
        return iov->iov_len;
    }
    switch (f.recv_result % 8) {
    case 0:
        break;
    case 1:
        most = 1;
        break;
    case 2:
        most = 5000;
        break;
    case 3:
        most = 100;
        break;
    case 4:
    case 5:
        return -EAGAIN;
    case 6:
        return 0;
    case 7:
        return -ECONNRESET;
    }
    for (unsigned i = 0; i < niov; i++) {
        uint8_t *p = iov[i].iov_base;
        size_t left = MIN(iov[i].iov_len, most - total);

        CHECK(iov[i].iov_len > 0);
        for (size_t n; left; p += n, left -= n, total += n) {
            n = MIN(left, VSOCK_MAX_PAYLOAD);
            memcpy(p, running + e->next_out, n);
            e->next_out += n;
        }
    }
    return total;
}

static ssize_t op_peek(void *opaque, struct vsock_conn *c, void *buf, size_t n)
{
    struct end *e = end_of(c);
    size_t len = strlen(e->line);

    CHECK(opaque == &f);
    if (!len) {
        return f.recv_result & 1 ? 0 : -EAGAIN;
    }
    len = len < n ? len : n;
    memcpy(buf, e->line, len);
    return len;
}

static void op_shutdown(void *opaque, struct vsock_conn *c, int how)
{
    CHECK(opaque == &f);
    CHECK(how == VSOCK_OFF_RECV || how == VSOCK_OFF_SEND);
    if (how == VSOCK_OFF_SEND) {
        end_of(c)->sent_off = true;
    }
}

static void op_close(void *opaque, struct vsock_conn *c, bool cut)
{
    CHECK(!cut || f.notes);
    CHECK(opaque == &f);
    end_of(c)->open = false;
    c->fd = -1;
}

static void op_note(void *opaque, enum vsock_note note,
                    const struct vsock_conn *c, const struct vsock_hdr *h)
{
    (void)c;
    (void)h;
    CHECK(opaque == &f && note < VSOCK_NOTES);
    CHECK(vsock_note_text(note) && vsock_note_name(note));
    f.notes++;
}

static void op_port(void *opaque, const struct vsock_port *p, bool refused)
{
    CHECK((refused ? p->refused : p->connections) && p->open <= p->connections);
}

/* As a capture has it, in exactly its size, whatever the guest has said. */
static void op_packet(void *opaque, const struct pcap_packet *p)
{
    const uint32_t snaplen = f.send_result % 2 ? 100 : VSOCK_MAX_PAYLOAD;
    uint8_t *record = malloc(pcap_record_size(p, snaplen));

    CHECK(opaque == &f && record);
    pcap_record(record, p, snaplen, 1);
    free(record);
}

static const struct vsock_ops ops = {
    op_open, op_instead, op_send, op_recv, op_peek, op_shutdown, op_close,
    op_note, op_port, NULL, op_packet,
};

/* The guest's side. */

static uint32_t parent_port(uint8_t sel)
{
    return sel & 16 ? (1u << 30) + sel % 16 : sel % 8;
}

/* One field that no guest of good will sends */
static void damage(struct vsock_hdr *h, unsigned how)
{
    switch (how) {
    case 1:
        h->src_cid = 5;
        break;
    case 2:
        h->dst_cid = 0x100000003ull;
        break;
    case 3:
        h->type = 2;
        break;
    case 4:
        h->len = 65537;
        break;
    case 5:
        h->len += 1;
        break;
    case 6:
        h->dst_port = VSOCK_PORT_ANY;
        break;
    }
}

static void guest_packet(void)
{
    static const uint32_t allocs[] = {
        262144, 65536, 4096, 100, 0, 0xFFFFFFFF, 262144, 262144,
    };
    struct vsock_hdr h = { .src_cid = CID, .type = VSOCK_TYPE_STREAM };
    uint8_t op = byte(), ports = byte(), how = byte();
    uint32_t len = byte() << 8;
    struct iovec iov[3];
    uint8_t raw[VSOCK_HDR_SIZE], *payload;
    size_t room, cut;
    struct tuple *t;
    bool good;

    len |= byte();
    h.op = op % 9;
    h.dst_cid = how & 1 ? VSOCK_CID_HOST : VSOCK_CID_PARENT;
    h.dst_port = parent_port(ports & 31);
    h.src_port = ports >> 5;
    h.flags = how >> 1 & 3;
    h.len = h.op == VSOCK_OP_RW ? (len >= 0xf000 ? 65536 : len & 0xfff) : 0;
    room = h.len;
    damage(&h, how >> 3 & 31);
    if (!vsock_tx_ready(f.v)) {
        return;
    }
    good = h.len == room && h.src_cid == CID && h.type == VSOCK_TYPE_STREAM;
    t = known(h.dst_cid, h.dst_port, h.src_port,
              good && h.op == VSOCK_OP_REQUEST);
    h.buf_alloc = allocs[op >> 5];
    h.fwd_cnt = op & 16 ? byte() * 0x01010101u : t->received;
    payload = running + t->next_out;
    if (good) {
        t->next_out += room;
        t->buf_alloc = h.buf_alloc;
        t->fwd_cnt = h.fwd_cnt;
    }
    cut = room / 3;
    iov[0] = (struct iovec) { payload, cut };
    iov[1] = (struct iovec) { payload + cut, cut };
    iov[2] = (struct iovec) { payload + 2 * cut, room - 2 * cut };
    vsock_hdr_encode(&h, raw);
    /* Empty pieces do not come out of a ring. */
    vsock_tx(f.v, raw, cut ? iov : iov + 2,
             cut ? 3 : room - 2 * cut ? 1 : 0, room);
}

static void raw_packet(void)
{
    uint8_t raw[VSOCK_HDR_SIZE], payload[16] = { 0 };
    struct iovec iov = { payload, sizeof(payload) };
    struct vsock_hdr h;

    for (unsigned i = 0; i < sizeof(raw); i++) {
        raw[i] = byte();
    }
    vsock_hdr_decode(&h, raw);
    if (byte() & 1) {
        h.src_cid = CID;
        h.dst_cid = VSOCK_CID_PARENT;
        h.type = VSOCK_TYPE_STREAM;
        vsock_hdr_encode(&h, raw);
    }
    known(h.dst_cid, h.dst_port, h.src_port, false)->wild = true;
    if (vsock_tx_ready(f.v)) {
        vsock_tx(f.v, raw, &iov, 1, sizeof(payload));
    }
}

static void take_packet(const struct vsock_buf *b, const uint8_t *data)
{
    struct vsock_hdr h;
    struct tuple *t;

    CHECK(b->used >= VSOCK_HDR_SIZE && b->used <= b->len);
    vsock_hdr_decode(&h, data);
    CHECK(h.len == b->used - VSOCK_HDR_SIZE);
    CHECK(h.op >= VSOCK_OP_REQUEST && h.op <= VSOCK_OP_CREDIT_REQUEST);
    CHECK(h.op == VSOCK_OP_RW ? h.len > 0 : h.len == 0);
    if (h.op == VSOCK_OP_RST) {
        return;
    }
    CHECK(h.dst_cid == CID && h.type == VSOCK_TYPE_STREAM);
    CHECK(h.src_cid == VSOCK_CID_PARENT || h.src_cid == VSOCK_CID_HOST);
    CHECK(h.buf_alloc > 0 && h.buf_alloc <= VSOCK_WINDOW);
    t = known(h.src_cid, h.src_port, h.dst_port, h.op == VSOCK_OP_REQUEST);
    if (h.op == VSOCK_OP_RW && !t->wild) {
        uint32_t flight = t->received - t->fwd_cnt;

        CHECK(flight + (uint64_t)h.len <= t->buf_alloc);
        CHECK(runs(data + VSOCK_HDR_SIZE, t->next_in, h.len));
        t->next_in += h.len;
        t->received += h.len;
    }
}

static void guest_takes(void)
{
    static uint8_t memory[RX_BUFS][70000];
    static const size_t sizes[] = { 3776, 45, 70000, 4140, 100, 3776, 50, 44 };
    uint8_t how = byte();
    unsigned n = 1 + how % RX_BUFS, done;
    size_t size = sizes[how >> 5];
    struct vsock_buf bufs[RX_BUFS];
    struct iovec iov[RX_BUFS][3];

    size = size == 44 ? 4000 : size;
    for (unsigned i = 0; i < n; i++) {  /* in pieces, cut in odd places */
        size_t a = how & 8 ? 44 : size / 3, b = how & 16 ? 1 : size - a - 1;

        if (size - a < 2) {
            a = 10;
            b = 20;
        }
        iov[i][0] = (struct iovec) { memory[i], a };
        iov[i][1] = (struct iovec) { memory[i] + a, b };
        iov[i][2] = (struct iovec) { memory[i] + a + b, size - a - b };
        bufs[i] = (struct vsock_buf) { iov[i], 3, size, 0 };
    }
    for (unsigned turns = 0; turns < 4 && vsock_rx_ready(f.v); turns++) {
        done = vsock_rx(f.v, bufs, n);
        CHECK(done <= n);
        for (unsigned i = 0; i < done; i++) {
            take_packet(&bufs[i], memory[i]);
        }
    }
    if (how & 4) {
        vsock_rx_again(f.v);
    }
}

/* More of the host. */

static void host_client(void)
{
    static const char *const lines[] = {
        "", "CONNECT 1\n", "CONNECT 1\nmore", "CONN", "GET /\n",
        "connect 7\r\n", "CONNECT 4294967295\n", "CONNECT 2\n",
        "OPEN 1 2 0\n", "open 2 1073741824 9\r\n", "OPEN 1 2\n", "OPEN 1 ",
        "OPEN 1 2 4294967295\n", "OPEN 7 5 2000\nmore", "OPENER",
        "OPEN 2 5 300\n",
    };
    uint8_t how = byte();
    struct vsock_conn *c;
    struct end *e;
    int fd = new_end();

    if (fd < 0) {
        return;
    }
    e = &f.ends[fd];
    strcpy(e->line, lines[how % 16]);
    e->greeted = how & 16;
    c = vsock_client(f.v, fd, how & 16 ? how % 4 : -1);
    if (!c) {
        e->open = false;
        return;
    }
    if (how & 16) {
        e->line[0] = 0;
    }
    e->slot = c->slot;
    e->gen = c->gen;
}

static void host_event(void)
{
    uint8_t which = byte(), events = byte();
    struct end *e = &f.ends[which % ENDS];
    struct vsock_conn *c = vsock_get(f.v, e->slot, e->gen);

    if (!e->open || !c) {
        return;
    }
    CHECK(c->fd == which % ENDS);
    if (events & 8) {
        vsock_opened(f.v, c, events & 16 ? -ECONNREFUSED : 0);
    } else {
        vsock_event(f.v, c, events & 7);
    }
}

static void pass_time(void)
{
    static const int steps[] = { 1, 20, 100, 1500, 2000, 5000, 10000, 31000 };

    f.now += steps[byte() % 8];
    vsock_set_now(f.v, f.now);
    vsock_tick(f.v);
    CHECK(vsock_deadline(f.v) < 0 || vsock_deadline(f.v) > f.now);
}

static void add_fault(void)
{
    uint8_t how = byte(), what = byte();
    struct vsock_fault fault = {
        .kind = how % 4, .any_port = how & 4, .port = what % 8,
        .ms = how & 8 ? 1 + what : 0, .jitter = what & 16 ? 50 : 1,
        .after = how & 16 ? what * 40 : 0, .nth = how & 32 ? 1 + what % 4 : 0,
        .times = how & 64 ? 1 : 0, .seed = what,
        .chance = VSOCK_CHANCE_ALWAYS / (how & 128 ? 2 : 1),
    };

    CHECK(vsock_fault_add(f.v, &fault) ||
          vsock_fault(f.v, VSOCK_MAX_FAULTS - 1));
}

static void driver_life(void)
{
    switch (byte() % 8) {
    case 0:
        vsock_fresh_driver(f.v);
        break;
    case 1:
        vsock_disconnect(f.v);
        break;
    case 2:
        vsock_tx_lost(f.v);
        break;
    case 3:
        vsock_finish(f.v);
        break;
    case 4:
        add_fault();
        break;
    case 5:
        CHECK(vsock_fault_clear(f.v, byte() % 4) <= VSOCK_MAX_FAULTS);
        break;
    default:
        vsock_driver_seen(f.v);
    }
}

static void act(uint8_t what)
{
    switch (what % 16) {
    case 0 ... 4:
        guest_packet();
        break;
    case 5:
        raw_packet();
        break;
    case 6 ... 8:
        guest_takes();
        break;
    case 9:
        host_client();
        break;
    case 10 ... 11:
        host_event();
        break;
    case 12:
        f.open_result = byte();
        break;
    case 13:
        f.send_result = byte();
        f.recv_result = byte();
        break;
    case 14:
        pass_time();
        break;
    case 15:
        driver_life();
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vsock_config config = {
        .guest_cid = CID,
        .max_conns = MAX_CONNS,
        .driver_ms = VSOCK_MS_DRIVER,
    };

    running_fill();
    memset(&f, 0, sizeof(f));
    f.data = data;
    f.size = size;
    config.serve_cid2 = byte() & 1;
    f.now = 1;
    f.v = vsock_new(&config, &ops, &f);
    CHECK(f.v);
    vsock_tap(f.v, true);
    vsock_set_now(f.v, f.now);
    while (f.size) {
        act(byte());
        CHECK(vsock_count(f.v) <= MAX_CONNS);
        CHECK(vsock_reserved(f.v) <= VSOCK_WINDOW_TOTAL);
    }
    vsock_free(f.v);
    for (unsigned i = 0; i < ENDS; i++) {
        CHECK(!f.ends[i].open);
    }
    return 0;
}
