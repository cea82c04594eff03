/*
 * SPDX-License-Identifier: MIT
 *
 * The test agent's vsock streams: what is done on a connection (a mode), and
 * the two ways to get one (dial, listen).  Nothing of the agent's own frames.
 */

#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/errqueue.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define BLOCK 65521 /* the pattern's period: prime, so that no buffer fits it */
#define CHUNK_DEFAULT 65536
#define CHUNK_MAX (4 << 20)

/* --- What happened on a connection --------------------------------------- */

typedef struct Report {
    uint64_t sent, received;
    int64_t mismatch;
    int err;
    uint64_t us;
} Report;

static void add_report(Answer *a, const Report *r)
{
    answer_printf(a,
                  "sent %" PRIu64 "\nreceived %" PRIu64 "\nmismatch %" PRId64
                  "\nerrno %d\nus %" PRIu64 "\n",
                  r->sent, r->received, r->mismatch, r->err, r->us);
}

/* --- The pattern --------------------------------------------------------- */

/*
 * The pattern of @seed, long enough that @chunk bytes from any offset of the
 * first period lie in one piece.  NULL: no memory.
 */
static uint8_t *new_pattern(uint32_t seed, size_t chunk)
{
    uint8_t *pattern = malloc(BLOCK + chunk);
    uint32_t x = seed;

    if (!pattern) {
        return NULL;
    }
    for (size_t i = 0; i < BLOCK; i++) {
        x = x * 1664525 + 1013904223;
        pattern[i] = x >> 24;
    }
    for (size_t done = BLOCK; done < BLOCK + chunk;) {
        size_t n = BLOCK + chunk - done;

        n = n < BLOCK ? n : BLOCK;
        memcpy(pattern + done, pattern, n);
        done += n;
    }
    return pattern;
}

/* Offset in @data of the first byte that differs from @want; @n: none. */
static size_t first_difference(const uint8_t *data, const uint8_t *want,
                               size_t n)
{
    size_t i = 0;

    if (memcmp(data, want, n) == 0) {
        return n;
    }
    while (data[i] == want[i]) {
        i++;
    }
    return i;
}

/* --- Modes --------------------------------------------------------------- */

typedef struct Mode Mode;

/* A mode's work: fills the report but for `us`; leaves the socket open. */
typedef void ModeFn(int fd, const Mode *mode, Report *r);

struct Mode {
    const char *name;
    size_t min, max; /* number of arguments */
    ModeFn *run;
    bool tells; /* a listener sends the report to its peer */
    uint64_t arg[3];
};

/* Read to the end; compare with @pattern unless it is NULL. */
static void read_to_end(int fd, const uint8_t *pattern, Report *r)
{
    uint8_t *data = malloc(CHUNK_DEFAULT);
    ssize_t n;

    if (!data) {
        r->err = ENOMEM;
        return;
    }
    while ((n = read(fd, data, CHUNK_DEFAULT)) > 0) {
        if (pattern && r->mismatch < 0) {
            size_t same =
                first_difference(data, pattern + r->received % BLOCK, n);

            if (same < (size_t)n) {
                r->mismatch = r->received + same;
            }
        }
        r->received += n;
    }
    if (n < 0 && !r->err) {
        r->err = errno;
    }
    free(data);
}

/* Send @size bytes of @pattern and shut down our sending side. */
static void send_pattern(int fd, const uint8_t *pattern, uint64_t size,
                         size_t chunk, Report *r)
{
    while (r->sent < size) {
        uint64_t left = size - r->sent;
        ssize_t n =
            write(fd, pattern + r->sent % BLOCK, left < chunk ? left : chunk);

        if (n < 0) {
            r->err = errno;
            return;
        }
        r->sent += n;
    }
    if (shutdown(fd, SHUT_WR) < 0) {
        r->err = errno;
    }
}

static void mode_echo(int fd, const Mode *mode, Report *r)
{
    uint8_t *data = malloc(CHUNK_DEFAULT);
    ssize_t n = -1;

    (void)mode;
    errno = ENOMEM;
    while (data && (n = read(fd, data, CHUNK_DEFAULT)) > 0) {
        r->received += n;
        if (!write_full(fd, data, n)) {
            n = -1;
            break;
        }
        r->sent += n;
    }
    if (n < 0) {
        r->err = errno;
    } else {
        shutdown(fd, SHUT_WR);
    }
    free(data);
}

static void mode_sink(int fd, const Mode *mode, Report *r)
{
    uint8_t *pattern = new_pattern(mode->arg[0], CHUNK_DEFAULT);

    if (!pattern) {
        r->err = ENOMEM;
        return;
    }
    read_to_end(fd, pattern, r);
    free(pattern);
}

static void mode_source(int fd, const Mode *mode, Report *r)
{
    size_t chunk = mode->arg[2];
    uint8_t *pattern = new_pattern(mode->arg[1], chunk);

    if (!pattern) {
        r->err = ENOMEM;
        return;
    }
    send_pattern(fd, pattern, mode->arg[0], chunk, r);
    if (!r->err) {
        read_to_end(fd, NULL, r);
    }
    free(pattern);
}

struct Sending {
    int fd;
    const Mode *mode;
    const uint8_t *pattern;
    Report report;
};

static void *send_thread(void *opaque)
{
    struct Sending *s = opaque;

    send_pattern(s->fd, s->pattern, s->mode->arg[0], s->mode->arg[2],
                 &s->report);
    return NULL;
}

static void mode_both(int fd, const Mode *mode, Report *r)
{
    size_t chunk = mode->arg[2];
    struct Sending s = {
        .fd = fd,
        .mode = mode,
        .pattern = new_pattern(mode->arg[1],
                               chunk > CHUNK_DEFAULT ? chunk : CHUNK_DEFAULT),
    };
    pthread_t thread;

    r->err =
        s.pattern ? pthread_create(&thread, NULL, send_thread, &s) : ENOMEM;
    if (!r->err) {
        read_to_end(fd, s.pattern, r);
        pthread_join(thread, NULL);
        r->sent = s.report.sent;
        r->err = s.report.err ? s.report.err : r->err;
    }
    free((void *)s.pattern);
}

static void mode_count(int fd, const Mode *mode, Report *r)
{
    (void)mode;
    read_to_end(fd, NULL, r);
}

static void mode_sleep(int fd, const Mode *mode, Report *r)
{
    poll(NULL, 0, mode->arg[0]);
    read_to_end(fd, NULL, r);
}

static void mode_half(int fd, const Mode *mode, Report *r)
{
    (void)mode;
    if (shutdown(fd, SHUT_WR) < 0) {
        r->err = errno;
        return;
    }
    read_to_end(fd, NULL, r);
}

static void mode_hold(int fd, const Mode *mode, Report *r)
{
    /* Only errors and the end of the whole connection wake us. */
    struct pollfd p = { .fd = fd, .events = 0 };

    (void)mode;
    (void)r;
    poll(&p, 1, -1);
}

static void mode_drop(int fd, const Mode *mode, Report *r)
{
    (void)fd;
    (void)mode;
    (void)r;
}

static void mode_pingpong(int fd, const Mode *mode, Report *r)
{
    uint8_t byte = 0;

    for (uint64_t i = 0; i < mode->arg[0]; i++) {
        if (!write_full(fd, &byte, 1)) {
            r->err = errno;
            return;
        }
        r->sent++;
        if (!read_full(fd, &byte, 1)) {
            r->err = errno;
            return;
        }
        r->received++;
    }
}

static void mode_messages(int fd, const Mode *mode, Report *r)
{
    size_t size = mode->arg[0];
    uint8_t *zeros = calloc(1, size ? size : 1);

    if (!zeros) {
        r->err = ENOMEM;
        return;
    }
    for (uint64_t i = 0; !r->err && i < mode->arg[1]; i++) {
        if (write_full(fd, zeros, size)) {
            r->sent += size;
        } else {
            r->err = errno;
        }
    }
    free(zeros);
    if (!r->err) {
        mode_half(fd, mode, r);
    }
}

/* The numbers in arg[] are the defaults. */
static const Mode modes[] = {
    { "both", 2, 3, mode_both, false, { 0, 0, CHUNK_DEFAULT } },
    { "count", 0, 0, mode_count, true, { 0 } },
    { "drop", 0, 0, mode_drop, false, { 0 } },
    { "echo", 0, 0, mode_echo, false, { 0 } },
    { "half", 0, 0, mode_half, false, { 0 } },
    { "hold", 0, 0, mode_hold, false, { 0 } },
    { "messages", 2, 2, mode_messages, false, { 0 } },
    { "pingpong", 1, 1, mode_pingpong, false, { 0 } },
    { "sink", 1, 1, mode_sink, true, { 0 } },
    { "sleep", 1, 1, mode_sleep, true, { 0 } },
    { "source", 2, 3, mode_source, false, { 0, 0, CHUNK_DEFAULT } },
};

/* The mode that the arguments from @first on name. */
static bool parse_mode(const Args *args, size_t first, Mode *mode, Answer *a)
{
    size_t n = args->n - first - 1;

    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (strcmp(modes[i].name, args->v[first])) {
            continue;
        }
        *mode = modes[i];
        if (n < mode->min || n > mode->max) {
            answer_fail(a, EINVAL,
                        "mode %s takes %zu to %zu arguments, not "
                        "%zu",
                        mode->name, mode->min, mode->max, n);
            return false;
        }
        for (size_t k = 0; k < n; k++) {
            /* Only a chunk has a limit of its own. */
            uint64_t max = k == 2 ? CHUNK_MAX : INT64_MAX;

            if (!args_number(args, first + 1 + k, max, &mode->arg[k], a)) {
                return false;
            }
        }
        if (mode->max == 3 && mode->arg[2] == 0) {
            answer_fail(a, EINVAL, "a chunk of 0 bytes");
            return false;
        }
        return true;
    }
    answer_fail(a, EINVAL, "no such mode: %s", args->v[first]);
    return false;
}

static void run_mode(int fd, const Mode *mode, Report *r)
{
    uint64_t started = now_us();

    *r = (Report) { .mismatch = -1 };
    mode->run(fd, mode, r);
    r->us = now_us() - started;
}

/* --- Dialling ------------------------------------------------------------ */

/* CID and PORT from arguments 0 and 1. */
static bool parse_peer(const Args *args, struct sockaddr_vm *peer, Answer *a)
{
    uint64_t cid = 0, port = 0;

    if (!args_number(args, 0, UINT32_MAX, &cid, a) ||
        !args_number(args, 1, UINT32_MAX, &port, a)) {
        return false;
    }
    *peer = (struct sockaddr_vm) {
        .svm_family = AF_VSOCK,
        .svm_cid = cid,
        .svm_port = port,
    };
    return true;
}

/* A connected socket, or -1 with errno. */
static int dial(const struct sockaddr_vm *peer)
{
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 &&
        connect(fd, (const struct sockaddr *)peer, sizeof(*peer)) < 0) {
        int saved = errno;

        close(fd);
        errno = saved;
        fd = -1;
    }
    return fd;
}

static int probe_connect(const Args *args, Answer *a)
{
    struct sockaddr_vm peer, own = { .svm_port = 0 };
    socklen_t len = sizeof(own);
    uint64_t started, us, ms = 0;
    int fd, err = 0;

    if (!parse_peer(args, &peer, a) ||
        !args_number(args, 2, UINT32_MAX, &ms, a)) {
        return -EINVAL;
    }
    fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return answer_fail(a, errno, "socket: %s", strerror(errno));
    }
    if (args->n > 2) {
        struct timeval t = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        if (setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &t,
                       sizeof(t)) < 0) {
            err = answer_fail(a, errno, "connect timeout: %s", strerror(errno));
            close(fd);
            return err;
        }
    }
    started = now_us();
    if (connect(fd, (struct sockaddr *)&peer, sizeof(peer)) < 0) {
        err = errno;
    }
    us = now_us() - started;
    getsockname(fd, (struct sockaddr *)&own, &len);
    close(fd);
    answer_printf(a, "errno %d\nus %" PRIu64 "\nport %u\n", err, us,
                  own.svm_port);
    return 0;
}

static int probe_dial(const Args *args, Answer *a)
{
    struct sockaddr_vm peer;
    Report report;
    Mode mode;
    int fd;

    if (!parse_peer(args, &peer, a) || !parse_mode(args, 2, &mode, a)) {
        return -EINVAL;
    }
    fd = dial(&peer);
    if (fd < 0) {
        return answer_fail(a, errno, "connect to CID %u port %u: %s",
                           peer.svm_cid, peer.svm_port, strerror(errno));
    }
    run_mode(fd, &mode, &report);
    close(fd);
    add_report(a, &report);
    return 0;
}

/* --- Listening ----------------------------------------------------------- */

typedef struct Listener {
    struct Listener *next;
    uint32_t port;
    int fd, stop; /* stop: an eventfd */
    pthread_t thread;
    Mode mode;
} Listener;

static Listener *listeners;
static pthread_mutex_t listeners_lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct Connection {
    int fd;
    Mode mode;
} Connection;

static void *serve_connection(void *opaque)
{
    Connection *c = opaque;
    Report report;

    run_mode(c->fd, &c->mode, &report);
    if (c->mode.tells) {
        Answer text = { 0 };

        add_report(&text, &report);
        /* The peer may be gone: then nobody misses it. */
        write_full(c->fd, text.data, text.len);
        free(text.data);
    }
    close(c->fd);
    free(c);
    return NULL;
}

static void *serve_listener(void *opaque)
{
    Listener *l = opaque;
    struct pollfd p[] = {
        { .fd = l->fd, .events = POLLIN },
        { .fd = l->stop, .events = POLLIN },
    };

    while (poll(p, 2, -1) > 0 && !p[1].revents) {
        Connection *c;
        int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0) {
            continue; /* it went away before we came */
        }
        c = malloc(sizeof(*c));
        if (c) {
            *c = (Connection) { fd, l->mode };
        }
        if (!c || !start_thread(serve_connection, c)) {
            fprintf(stderr, "agent: port %u: %s\n", l->port, strerror(errno));
            free(c);
            close(fd);
        }
    }
    return NULL;
}

static void close_listener(Listener *l)
{
    if (l->fd >= 0) {
        close(l->fd);
    }
    if (l->stop >= 0) {
        close(l->stop);
    }
    free(l);
}

static int start_listener(const Args *args, const Mode *mode, Answer *a)
{
    Listener *l;
    uint64_t port = 0;
    int err;

    if (!args_number(args, 0, UINT32_MAX - 1, &port, a)) {
        return -EINVAL;
    }
    l = calloc(1, sizeof(*l));
    if (!l) {
        return answer_fail(a, ENOMEM, "listener");
    }
    l->mode = *mode;
    l->port = port;
    l->stop = eventfd(0, EFD_CLOEXEC);
    l->fd = vsock_listen(&l->port);
    err = l->fd < 0 || l->stop < 0 ? errno : 0;
    if (!err) {
        err = pthread_create(&l->thread, NULL, serve_listener, l);
    }
    if (err) {
        close_listener(l);
        return answer_fail(a, err, "listen on port %" PRIu64 ": %s", port,
                           strerror(err));
    }
    pthread_mutex_lock(&listeners_lock);
    l->next = listeners;
    listeners = l;
    pthread_mutex_unlock(&listeners_lock);
    answer_printf(a, "port %u\n", l->port);
    return 0;
}

static int probe_listen(const Args *args, Answer *a)
{
    Mode mode;

    return parse_mode(args, 1, &mode, a) ? start_listener(args, &mode, a) :
                                           -EINVAL;
}

static int probe_echo_listen(const Args *args, Answer *a)
{
    char *echo[] = { args->v[0], (char *)"echo" };
    Args with_mode = { echo, 2 };

    return probe_listen(&with_mode, a);
}

static int probe_unlisten(const Args *args, Answer *a)
{
    uint64_t port = 0;
    Listener **at, *l;

    if (!args_number(args, 0, UINT32_MAX, &port, a)) {
        return -EINVAL;
    }
    pthread_mutex_lock(&listeners_lock);
    at = &listeners;
    while (*at && (*at)->port != port) {
        at = &(*at)->next;
    }
    l = *at;
    if (l) {
        *at = l->next;
    }
    pthread_mutex_unlock(&listeners_lock);
    if (!l) {
        return answer_fail(a, ENOENT, "no listener on port %" PRIu64, port);
    }
    eventfd_write(l->stop, 1);
    pthread_join(l->thread, NULL);
    close_listener(l);
    answer_printf(a, "port %" PRIu64 "\n", port);
    return 0;
}

/* --- Sending out of high memory ------------------------------------------ */

#define HIGH_AREA (16 << 20)
#define PAGE 4096
#define FOUR_GIB_FRAME (1ULL << (32 - 12))

/* Kernel: Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_FRAME ((1ULL << 55) - 1)

/*
 * CHUNK_DEFAULT bytes of locked memory whose frames are all at or above 4 GiB,
 * and the lowest of these; NULL with errno (ENXIO: there are none).
 */
static uint8_t *high_chunk(uint64_t *lowest)
{
    enum { PAGES = CHUNK_DEFAULT / PAGE };
    uint64_t entries[PAGES];
    uint8_t *area =
        mmap(NULL, HIGH_AREA, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    uint8_t *found = NULL;
    int fd;

    if (area == MAP_FAILED) {
        return NULL;
    }
    fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int saved = errno;

        munmap(area, HIGH_AREA);
        errno = saved;
        return NULL;
    }
    for (size_t at = 0; !found && at < HIGH_AREA; at += CHUNK_DEFAULT) {
        size_t low = 0;

        if (pread(fd, entries, sizeof(entries),
                  (uintptr_t)(area + at) / PAGE * sizeof(entries[0])) !=
            sizeof(entries)) {
            break;
        }
        *lowest = UINT64_MAX;
        for (size_t i = 0; i < PAGES; i++) {
            uint64_t frame = entries[i] & PAGEMAP_FRAME;

            *lowest = frame < *lowest ? frame : *lowest;
            low += !(entries[i] & PAGEMAP_PRESENT) || frame < FOUR_GIB_FRAME;
        }
        if (!low) {
            found = area + at;
        }
    }
    close(fd);
    /* What is not used of the area goes back. */
    if (!found) {
        munmap(area, HIGH_AREA);
        errno = ENXIO;
        return NULL;
    }
    munmap(area, found - area);
    munmap(found + CHUNK_DEFAULT, area + HIGH_AREA - found - CHUNK_DEFAULT);
    return found;
}

/*
 * Wait until the kernel has let go of the pages of one zero-copy send.
 * 1: the device read from them; 0: the kernel copied after all; -1: errno.
 */
static int wait_sent(int fd)
{
    char control[128];
    struct msghdr msg;
    ssize_t n;

    do {
        struct pollfd p = { .fd = fd, .events = 0 };

        if (poll(&p, 1, -1) < 0) {
            return -1;
        }
        msg = (struct msghdr) {
            .msg_control = control,
            .msg_controllen = sizeof(control),
        };
        n = recvmsg(fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN && (p.revents & POLLHUP)) {
            errno = ECONNRESET;
            return -1;
        }
    } while (n < 0 && errno == EAGAIN);
    if (n < 0) {
        return -1;
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        struct sock_extended_err e;

        memcpy(&e, CMSG_DATA(c), sizeof(e));
        if (e.ee_origin == SO_EE_ORIGIN_ZEROCOPY) {
            return !(e.ee_code & SO_EE_CODE_ZEROCOPY_COPIED);
        }
    }
    errno = EPROTO;
    return -1;
}

static int probe_high_source(const Args *args, Answer *a)
{
    uint64_t size = 0, seed = 0, lowest = 0, zerocopy = 0, started;
    Report r = { .mismatch = -1 };
    struct sockaddr_vm peer;
    uint8_t *chunk, *pattern;
    int fd;

    if (!parse_peer(args, &peer, a) ||
        !args_number(args, 2, INT64_MAX, &size, a) ||
        !args_number(args, 3, UINT32_MAX, &seed, a)) {
        return -EINVAL;
    }
    chunk = high_chunk(&lowest);
    if (!chunk) {
        return answer_fail(a, errno, "memory above 4 GiB: %s", strerror(errno));
    }
    fd = dial(&peer);
    if (fd < 0) {
        munmap(chunk, CHUNK_DEFAULT);
        return answer_fail(a, errno, "connect to CID %u port %u: %s",
                           peer.svm_cid, peer.svm_port, strerror(errno));
    }
    started = now_us();
    pattern = new_pattern(seed, CHUNK_DEFAULT);
    if (!pattern || setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &(int) { 1 },
                               sizeof(int)) < 0) {
        r.err = errno;
    }
    while (!r.err && r.sent < size) {
        size_t len = size - r.sent;
        ssize_t n;
        int how;

        len = len < CHUNK_DEFAULT ? len : CHUNK_DEFAULT;
        memcpy(chunk, pattern + r.sent % BLOCK, len);
        n = send(fd, chunk, len, MSG_ZEROCOPY);
        how = n < 0 ? -1 : wait_sent(fd);
        if (how < 0) {
            r.err = errno;
            break;
        }
        zerocopy += how;
        r.sent += n;
    }
    if (!r.err) {
        mode_half(fd, NULL, &r);
    }
    r.us = now_us() - started;
    close(fd);
    free(pattern);
    munmap(chunk, CHUNK_DEFAULT);
    add_report(a, &r);
    answer_printf(a, "zerocopy %" PRIu64 "\nlow-pfn %" PRIx64 "\n", zerocopy,
                  lowest);
    return 0;
}

const Probe vsock_probes[] = {
    { "connect", 2, 3, probe_connect },
    { "dial", 3, 6, probe_dial },
    { "echo-listen", 1, 1, probe_echo_listen },
    { "high-source", 4, 4, probe_high_source },
    { "listen", 2, 5, probe_listen },
    { "unlisten", 1, 1, probe_unlisten },
    { NULL, 0, 0, NULL },
};
