/*
 * SPDX-License-Identifier: MIT
 *
 * vsock-rates.c: how fast a vsock backend is, behind a front end that costs
 * next to nothing (front.c). One workload per run; figures on standard output,
 * "name value". Not a test: what is delivered is counted, not compared.
 *
 *   vsock-rates DEVICE UDS CID PARENT WORKLOAD...
 *     send SIZE SECONDS [FORM [N]]  guest to host, packets of SIZE bytes, in
 *                                one piece (whole) or as Linux has them (linux)
 *     receive SECONDS [N]        host to guest
 *     echo COUNT                 round trips of one byte
 *     connect COUNT              the guest opens and closes connections
 *     open COUNT                 connections at the same time, each echoes
 *     streams COUNT SECONDS [N]  guest to host, on so many connections
 *     pull COUNT SECONDS [N]     host to guest, on so many connections
 *                                ... and on until (each) N bytes have passed
 *     crowd COUNT                round trips while so many connects wait for a
 *                                listener whose backlog is full, until they
 *                                have been refused
 *     host COUNT                 no guest (DEVICE is not used): says "ready",
 *                                echoes on so many connections, one by one
 *
 * DEVICE is the vhost-user socket, UDS the path of the host's clients, CID the
 * guest's, PARENT the one that it connects to. The guest keeps Linux's rules
 * of credit. A thread is the host's application.
 *
 * Long because guest, host and workloads share one table of connections.
 */

#include "front.h"
#include "../../contrib/vhost-user-vsock/vsock.h"

#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* As it lies in memory; both sides are little-endian. */
struct __attribute__((packed)) header {
    uint64_t src_cid;
    uint64_t dst_cid;
    uint32_t src_port;
    uint32_t dst_port;
    uint32_t len;
    uint16_t type;
    uint16_t op;
    uint32_t flags;
    uint32_t buf_alloc;
    uint32_t fwd_cnt;
};

_Static_assert(sizeof(struct header) == HEADER &&
               HEADER == VSOCK_HDR_SIZE, "a packet's header");

#define PORT 5000
/* Of connections; (guest's port + host's port) % SLOTS finds one. */
#define SLOTS 8192
/* Without news for so long a transfer has stalled. */
#define STALL_MS 10000

enum state { FREE, CONNECTING, OPEN, CLOSING };

struct conn {
    enum state state;
    uint32_t port;              /* the guest's */
    uint32_t peer;              /* the host's */
    uint64_t cid;               /* of the host */
    uint32_t tx_cnt;
    uint32_t peer_alloc;
    uint32_t peer_fwd;
    uint32_t fwd_cnt;
    uint32_t last_fwd;
    bool fresh;                 /* bytes came since the last look */
    bool end;                   /* the host sends no more */
    uint64_t received;
    uint64_t sent;
};

static struct front front;
static struct conn conns[SLOTS];
static const char *uds;
static uint64_t guest_cid, parent_cid;
static uint64_t opened, refused, received, ended;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* ---- the guest --------------------------------------------------------- */

static bool send_packet(struct conn *c, enum vsock_op op, uint32_t len,
                        uint32_t flags, bool whole)
{
    struct header h = {
        .src_cid = guest_cid, .dst_cid = c->cid,
        .src_port = c->port, .dst_port = c->peer, .len = len, .type = 1,
        .op = op, .flags = flags,
        .buf_alloc = VSOCK_WINDOW, .fwd_cnt = c->fwd_cnt,
    };

    if (!front_send(&front, &h, len, whole)) {
        return false;
    }
    c->last_fwd = c->fwd_cnt;
    return true;
}

static void must_send(struct conn *c, enum vsock_op op, uint32_t flags)
{
    while (!send_packet(c, op, 0, flags, false)) {
        if (!front_wait(&front, STALL_MS)) {
            errx(1, "the backend takes no packets");
        }
    }
}

static struct conn *slot(uint32_t port, uint32_t peer)
{
    return &conns[(port + peer) % SLOTS];
}

static struct conn *new_conn(uint64_t cid, uint32_t port, uint32_t peer)
{
    struct conn *c = slot(port, peer);

    if (c->state != FREE) {
        errx(1, "ports %u and %u meet others", port, peer);
    }
    *c = (struct conn) { .cid = cid, .port = port, .peer = peer };
    return c;
}

static struct conn *open_to(uint32_t port, uint32_t peer)
{
    struct conn *c = new_conn(parent_cid, port, peer);

    c->state = CONNECTING;
    must_send(c, VSOCK_OP_REQUEST, 0);
    return c;
}

static struct conn *open_conn(uint32_t port)
{
    return open_to(port, PORT);
}

static void handle(const struct header *h)
{
    struct conn *c = slot(h->dst_port, h->src_port);

    if (c->state == FREE || c->port != h->dst_port || c->peer != h->src_port) {
        if (h->op != VSOCK_OP_REQUEST) {
            return;
        }
        c = new_conn(h->src_cid, h->dst_port, h->src_port);
        c->state = OPEN;
        opened++;
        must_send(c, VSOCK_OP_RESPONSE, 0);
    }
    c->peer_alloc = h->buf_alloc;
    c->peer_fwd = h->fwd_cnt;
    switch (h->op) {
    case VSOCK_OP_RESPONSE:
        c->state = OPEN;
        opened++;
        break;
    case VSOCK_OP_RST:
        refused += c->state == CONNECTING;
        ended++;
        c->state = FREE;
        break;
    case VSOCK_OP_SHUTDOWN:
        if (h->flags & 2) {
            c->end = true;
        }
        if (h->flags == 3 && c->state == OPEN) {
            must_send(c, VSOCK_OP_RST, 0);
            c->state = FREE;
            ended++;
        }
        break;
    case VSOCK_OP_RW:
        c->fwd_cnt += h->len;
        c->received += h->len;
        received += h->len;
        c->fresh = true;
        break;
    case VSOCK_OP_CREDIT_REQUEST:
        must_send(c, VSOCK_OP_CREDIT_UPDATE, 0);
        break;
    }
}

/*
 * Takes what there is. A reader that is always there empties its queue each
 * time, and Linux tells the sender then. Returns the number of packets.
 */
static unsigned pump(void)
{
    static struct conn *fresh[SLOTS];
    const uint8_t *packet;
    unsigned n = 0, count = 0;
    uint32_t len;

    while (count < QUEUE_SIZE / 4 && (packet = front_receive(&front, &len))) {
        struct header h;

        memcpy(&h, packet, HEADER);
        handle(&h);
        count++;
        if (h.op == VSOCK_OP_RW) {
            struct conn *c = slot(h.dst_port, h.src_port);

            if (c->fresh && (!n || fresh[n - 1] != c)) {
                fresh[n++] = c;
            }
        }
    }
    while (n) {
        struct conn *c = fresh[--n];

        if (c->fresh && c->state == OPEN) {
            must_send(c, VSOCK_OP_CREDIT_UPDATE, 0);
        }
        c->fresh = false;
    }
    front_kick(&front);
    return count;
}

/* Until done says so; false: nothing happened for STALL_MS. */
static bool pump_until(bool (*done)(void *), void *opaque)
{
    while (!done(opaque)) {
        if (!pump() && !front_wait(&front, STALL_MS)) {
            return done(opaque);
        }
    }
    return true;
}

static uint32_t credit(const struct conn *c)
{
    uint32_t flying = c->tx_cnt - c->peer_fwd;

    return c->peer_alloc > flying ? c->peer_alloc - flying : 0;
}

/* One packet if there is credit for it. */
static bool send_data(struct conn *c, uint32_t size, bool whole)
{
    uint32_t n = credit(c);

    n = n < size ? n : size;
    if (c->state != OPEN || !n || !send_packet(c, VSOCK_OP_RW, n, 0, whole)) {
        return false;
    }
    c->tx_cnt += n;
    c->sent += n;
    return true;
}

static bool is_open(void *c)
{
    return ((struct conn *)c)->state != CONNECTING;
}

static struct conn *connected(uint32_t port)
{
    struct conn *c = open_conn(port);

    if (!pump_until(is_open, c) || c->state != OPEN) {
        errx(1, "connection refused by the backend");
    }
    return c;
}

/* ---- the host's application --------------------------------------------- */

static int listener;
static _Atomic uint64_t host_bytes;

static int unix_socket(struct sockaddr_un *a, const char *path)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    *a = (struct sockaddr_un) { .sun_family = AF_UNIX };
    if (fd < 0 || (size_t)snprintf(a->sun_path, sizeof(a->sun_path), "%s",
                                   path) >= sizeof(a->sun_path)) {
        errx(1, "%s: too long", path);
    }
    return fd;
}

static int host_bind(struct sockaddr_un *a, int port, int backlog)
{
    char path[200];
    int fd;

    snprintf(path, sizeof(path), "%s_%d", uds, port);
    unlink(path);
    fd = unix_socket(a, path);
    if (bind(fd, (struct sockaddr *)a, sizeof(*a)) < 0 ||
        listen(fd, backlog) < 0) {
        err(1, "%s", path);
    }
    return fd;
}

static void host_listen(void)
{
    struct sockaddr_un a;

    listener = host_bind(&a, PORT, 4096);
}

/* One that accepts nobody, and has no place for more. */
static void host_full(int port)
{
    struct sockaddr_un a;
    int fd = host_bind(&a, port, 0);

    do {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    } while (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    close(fd);
}

static int host_connect(void)
{
    struct sockaddr_un a;
    int fd = unix_socket(&a, uds);
    char c = 0;

    if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0 ||
        dprintf(fd, "CONNECT %d\n", PORT) < 0) {
        err(1, "%s", uds);
    }
    while (c != '\n') {
        if (read(fd, &c, 1) != 1) {
            errx(1, "%s: no OK", uds);
        }
    }
    return fd;
}

static int host_accept(void)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0) {
        err(1, "accept");
    }
    return fd;
}

static void *host_sink(void *unused)
{
    static char buf[1 << 20];
    int fd = host_accept();
    ssize_t n;

    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        host_bytes += n;
    }
    return NULL;
}

static void *host_echo(void *unused)
{
    int fd = host_accept();
    char buf[64];
    ssize_t n;

    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        if (write(fd, buf, n) != n) {
            err(1, "echo");
        }
    }
    close(fd);
    return NULL;
}

static void *host_hangup(void *unused)
{
    char c;

    for (;;) {
        int fd = host_accept();

        if (read(fd, &c, 1) < 0) {
            err(1, "read");
        }
        close(fd);
    }
    return NULL;
}

/* All connections at once: echoes what is short, takes what is not. */
static void *host_many(void *unused)
{
    static char buf[1 << 16];
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = { .events = EPOLLIN, .data.fd = listener };

    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
    while (epoll_wait(epoll, &e, 1, -1) > 0) {
        ssize_t n;

        if (e.data.fd == listener) {
            e.data.fd = host_accept();
            epoll_ctl(epoll, EPOLL_CTL_ADD, e.data.fd, &e);
            continue;
        }
        n = read(e.data.fd, buf, sizeof(buf));
        if (n <= 0) {
            close(e.data.fd);
        } else if (n < 64 && write(e.data.fd, buf, n) != n) {
            err(1, "echo");
        } else {
            host_bytes += n;
        }
    }
    return NULL;
}

static _Atomic bool host_stop;

static void *host_source(void *unused)
{
    static char buf[1 << 16];
    int fd = host_connect();
    uint64_t sent = 0;

    while (!host_stop) {
        ssize_t n = write(fd, buf, sizeof(buf));

        if (n < 0) {
            err(1, "write");
        }
        sent += n;
    }
    host_bytes = sent;
    shutdown(fd, SHUT_WR);
    return NULL;
}

/* Writes to many, each in its turn as it takes more. */
static void *host_sources(void *count)
{
    static char buf[1 << 16];
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e[64];

    for (long i = 0; i < (long)count; i++) {
        e[0].events = EPOLLOUT;
        e[0].data.fd = host_connect();
        epoll_ctl(epoll, EPOLL_CTL_ADD, e[0].data.fd, &e[0]);
    }
    while (!host_stop) {
        int n = epoll_wait(epoll, e, 64, 100);

        for (int i = 0; i < n; i++) {
            ssize_t w = send(e[i].data.fd, buf, sizeof(buf), MSG_DONTWAIT);

            host_bytes += w > 0 ? w : 0;
        }
    }
    return NULL;
}

static pthread_t start(void *(*application)(void *), void *opaque)
{
    pthread_t t;

    if (pthread_create(&t, NULL, application, opaque)) {
        errx(1, "no thread");
    }
    return t;
}

/* ---- workloads ---------------------------------------------------------- */

static void say(const char *name, double value)
{
    printf("%s %.15g\n", name, value);
}

static bool all_arrived(void *c)
{
    return host_bytes == ((struct conn *)c)->sent;
}

/* The host's application gives no event that the guest could wait for. */
static void settle(struct conn *c)
{
    double since = now();
    uint64_t seen = host_bytes;

    while (!all_arrived(c) && now() - since < STALL_MS / 1e3) {
        if (!pump()) {
            front_wait(&front, 1);
        }
        if (seen != host_bytes) {
            seen = host_bytes;
            since = now();
        }
    }
}

static void send_rate(uint32_t size, double seconds, bool whole, uint64_t least)
{
    struct conn *c;
    double begin, end;
    bool stalled = false;

    host_listen();
    start(host_sink, NULL);
    c = connected(1024);
    begin = now();
    while ((now() < begin + seconds || c->sent < least) && !stalled) {
        bool news = pump();

        while (send_data(c, size, whole)) {
            news = true;
        }
        front_kick(&front);
        stalled = !news && !front_wait(&front, STALL_MS);
    }
    settle(c);
    end = now();
    say("bytes", host_bytes);
    say("lost", c->sent - host_bytes);
    say("stalled", stalled);
    say("rate", host_bytes / (end - begin));
}


static void receive_rate(double seconds, uint64_t least)
{
    double begin = now(), end = begin + seconds;
    struct conn *c = NULL;
    pthread_t t = start(host_source, NULL);

    while (!c || !c->end) {
        if (!pump() && !front_wait(&front, STALL_MS)) {
            break;
        }
        for (unsigned i = 0; !c && i < SLOTS; i++) {
            c = conns[i].state == OPEN ? &conns[i] : NULL;
        }
        if (now() > end && received >= least) {
            host_stop = true;
        }
    }
    end = now();
    say("stalled", !c || !c->end);
    if (c && c->end) {
        pthread_join(t, NULL);
        say("lost", host_bytes - received);
    }
    say("bytes", received);
    say("rate", received / (end - begin));
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static bool echoed(void *c)
{
    return ((struct conn *)c)->received == ((struct conn *)c)->sent;
}

static double round_trip(struct conn *c)
{
    double begin = now();

    send_data(c, 1, false);
    front_kick(&front);
    if (!pump_until(echoed, c)) {
        errx(1, "no echo");
    }
    return now() - begin;
}

static void echo_time(unsigned count)
{
    double *took = calloc(count, sizeof(*took));
    struct conn *c;

    host_listen();
    start(host_echo, NULL);
    c = connected(1024);
    for (unsigned i = 0; i < count; i++) {
        took[i] = round_trip(c);
    }
    qsort(took, count, sizeof(*took), compare);
    say("median", took[count / 2]);
    say("p99", took[count * 99ul / 100]);
}

static void crowd(unsigned count)
{
    double worst = 0, before = 0, begin;
    struct conn *c;
    unsigned trips = 0;

    host_listen();
    start(host_echo, NULL);
    c = connected(1024);
    host_full(PORT + 1);
    for (begin = now(); now() < begin + 2; trips++) {
        double took = round_trip(c);

        before = took > before ? took : before;
    }
    for (unsigned i = 0; i < count; i++) {
        open_to(2000 + i, PORT + 1);
        pump();
    }
    for (trips = 0; refused < count; trips++) {
        double took = round_trip(c);

        worst = took > worst ? took : worst;
    }
    say("trips", trips);
    say("alone", before);
    say("worst", worst);
}

static bool is_free(void *c)
{
    return ((struct conn *)c)->state == FREE;
}

static void connect_rate(unsigned count)
{
    double begin;

    host_listen();
    start(host_hangup, NULL);
    begin = now();
    for (unsigned i = 0; i < count; i++) {
        struct conn *c = connected(1024 + i % 60000);

        must_send(c, VSOCK_OP_SHUTDOWN, 3);
        c->state = CLOSING;
        if (!pump_until(is_free, c)) {
            errx(1, "no RST after close");
        }
    }
    say("rate", count / (now() - begin));
}

static bool all_answered(void *count)
{
    return opened + refused == (uintptr_t)count;
}

static bool all_echoed(void *bytes)
{
    return received == (uintptr_t)bytes;
}

static void open_many(unsigned count)
{
    double begin;

    host_listen();
    start(host_many, NULL);
    begin = now();
    for (unsigned i = 0; i < count; i++) {
        open_conn(1024 + i);
        pump();
    }
    pump_until(all_answered, (void *)(uintptr_t)count);
    for (unsigned i = 0; i < count; i++) {
        while (slot(1024 + i, PORT)->state == OPEN &&
               !send_data(slot(1024 + i, PORT), 32, false)) {
            pump();
            front_wait(&front, STALL_MS);
        }
    }
    pump_until(all_echoed, (void *)(uintptr_t)(opened * 32));
    say("opened", opened);
    say("refused", refused);
    say("echoed", received / 32);
    say("seconds", now() - begin);
}

/* What the slowest has had; 0: one is not there. */
static uint64_t least_of(unsigned count, uint64_t (*bytes)(struct conn *))
{
    uint64_t least = UINT64_MAX;
    unsigned found = 0;

    for (unsigned i = 0; i < SLOTS; i++) {
        if (conns[i].state == OPEN) {
            uint64_t n = bytes(&conns[i]);

            least = n < least ? n : least;
            found++;
        }
    }
    return found == count ? least : 0;
}

/* The slowest and the fastest, of all that there are. */
static void say_fairness(unsigned count, uint64_t (*bytes)(struct conn *))
{
    uint64_t most = 0;
    unsigned found = 0;

    for (unsigned i = 0; i < SLOTS; i++) {
        if (conns[i].state == OPEN) {
            uint64_t n = bytes(&conns[i]);

            most = n > most ? n : most;
            found++;
        }
    }
    say("streams", found);
    say("least", least_of(count, bytes));
    say("most", most);
}

static uint64_t bytes_taken(struct conn *c)
{
    return c->sent;
}

static uint64_t bytes_given(struct conn *c)
{
    return c->received;
}

static void streams(unsigned count, double seconds, uint64_t least)
{
    double begin;
    bool stalled = false;
    unsigned turn = 0;

    host_listen();
    start(host_many, NULL);
    for (unsigned i = 0; i < count; i++) {
        connected(1024 + i);
    }
    begin = now();
    while ((now() < begin + seconds || least_of(count, bytes_taken) < least) &&
           !stalled) {
        bool news = pump();

        if (!front.slots) {
            front_reclaim(&front);
        }
        /* Each in its turn: what is unfair here is the backend's doing. */
        for (unsigned i = 0; i < count && front.slots; i++) {
            news |= send_data(slot(1024 + turn++ % count, PORT), 16384, false);
        }
        front_kick(&front);
        stalled = !news && !front_wait(&front, STALL_MS);
    }
    say("rate", host_bytes / (now() - begin));
    say("stalled", stalled);
    say_fairness(count, bytes_taken);
}

static void pull(unsigned count, double seconds, uint64_t least)
{
    double begin = now();
    bool stalled = false;

    start(host_sources, (void *)(uintptr_t)count);
    while ((now() < begin + seconds || least_of(count, bytes_given) < least) &&
           !stalled) {
        stalled = !pump() && !front_wait(&front, STALL_MS);
    }
    host_stop = true;
    say("rate", received / (now() - begin));
    say("stalled", stalled);
    say_fairness(count, bytes_given);
}

int main(int argc, char **argv)
{
    const char *what = argc > 6 ? argv[5] : "";

    if (argc < 7) {
        errx(2, "usage: vsock-rates DEVICE UDS CID PARENT WORKLOAD...");
    }
    uds = argv[2];
    guest_cid = atoi(argv[3]);
    parent_cid = atoi(argv[4]);
    if (!strcmp(what, "host")) {
        host_listen();
        puts("ready");
        fflush(stdout);
        for (int n = atoi(argv[6]); n; n--) {
            host_echo(NULL);
        }
        return 0;
    }
    front_open(&front, argv[1]);
    if (!strcmp(what, "send") && argc > 7) {
        send_rate(atoi(argv[6]), atof(argv[7]),
                  argc > 8 && !strcmp(argv[8], "whole"),
                  argc > 9 ? atoll(argv[9]) : 0);
    } else if (!strcmp(what, "receive")) {
        receive_rate(atof(argv[6]), argc > 7 ? atoll(argv[7]) : 0);
    } else if (!strcmp(what, "echo")) {
        echo_time(atoi(argv[6]));
    } else if (!strcmp(what, "connect")) {
        connect_rate(atoi(argv[6]));
    } else if (!strcmp(what, "crowd")) {
        crowd(atoi(argv[6]));
    } else if (!strcmp(what, "open")) {
        open_many(atoi(argv[6]));
    } else if (!strcmp(what, "streams") && argc > 7) {
        streams(atoi(argv[6]), atof(argv[7]), argc > 8 ? atoll(argv[8]) : 0);
    } else if (!strcmp(what, "pull") && argc > 7) {
        pull(atoi(argv[6]), atof(argv[7]), argc > 8 ? atoll(argv[8]) : 0);
    } else {
        errx(2, "no such workload: %s", what);
    }
    return 0;
}
