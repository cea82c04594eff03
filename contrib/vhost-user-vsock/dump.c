/*
 * SPDX-License-Identifier: MIT
 *
 * dump.c: packets on their way into files and pipes that the owner has handed
 * in (control.c). What a packet looks like there is pcap.c's business.
 *
 * A file is written to as it is; a pipe or socket must not make us wait, so
 * what its reader does not take waits in a buffer, and when that is full,
 * packets are dropped, and counted. A record is there as a whole or not at all,
 * whatever ends the dump: its limit, its reader, an error, or its owner.
 */

#include "pcap.h"
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct dump {
    uint32_t id; /* 0: this place is free */
    int fd;
    bool file;
    uint32_t snaplen;
    uint64_t limit;
    uint64_t bytes; /* written, or still to be */
    uint64_t packets;
    uint64_t dropped;
    const char *over; /* why it ends once its buffer is empty, or NULL */
    size_t head, used;
    uint8_t *buf; /* HOST_DUMP_BUFFER bytes */
};

struct dumps {
    uint32_t last_id;
    struct dump dump[HOST_MAX_DUMPS];
};

static void counts(const struct dump *d, char *text, size_t size)
{
    snprintf(text, size,
             "\"packets\": %llu, \"dropped\": %llu, \"bytes\": %llu",
             (unsigned long long)d->packets, (unsigned long long)d->dropped,
             (unsigned long long)d->bytes);
}

static void release(struct host *h, struct dump *d, const char *why)
{
    char text[128];
    bool left = false;

    counts(d, text, sizeof(text));
    control_event(h,
                  "{\"event\": \"dump-ended\", \"dump\": %u, \"why\": \"%s\", "
                  "%s}",
                  d->id, why, text);
    if (!d->file) {
        /* Closing is not enough: the owner may have the same file open. */
        host_epoll(h, EPOLL_CTL_DEL, d->fd, 0, 0);
    }
    close(d->fd);
    free(d->buf);
    d->id = 0;
    for (unsigned i = 0; i < HOST_MAX_DUMPS; i++) {
        left |= h->dumps->dump[i].id;
    }
    vsock_tap(h->vsock, left);
}

/* As far as it is taken now; false: that was its end. */
static bool flush(struct host *h, struct dump *d)
{
    while (d->used) {
        ssize_t n = write(d->fd, d->buf + d->head, d->used);

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            if (d->file) {
                continue;
            }
            return true;
        }
        if (n <= 0) {
            release(h, d,
                    n < 0 && errno == EPIPE ? "its reader has gone" :
                    n < 0                   ? strerror(errno) :
                                              "nothing is taken");
            return false;
        }
        d->head += n;
        d->used -= n;
    }
    d->head = 0;
    if (d->over) {
        release(h, d, d->over);
        return false;
    }
    return true;
}

/* Room for size bytes behind what is there, or NULL: drop it. */
static uint8_t *place(struct host *h, struct dump *d, size_t size)
{
    if (d->head + d->used + size > HOST_DUMP_BUFFER && !flush(h, d)) {
        return NULL;
    }
    if (d->used + size > HOST_DUMP_BUFFER) {
        d->dropped++;
        return NULL;
    }
    if (d->head + d->used + size > HOST_DUMP_BUFFER) {
        memmove(d->buf, d->buf + d->head, d->used);
        d->head = 0;
    }
    return d->buf + d->head + d->used;
}

void dump_packet(void *opaque, const struct pcap_packet *p)
{
    struct host *h = opaque;
    struct timespec t;
    uint64_t usec;

    clock_gettime(CLOCK_REALTIME, &t);
    usec = t.tv_sec * 1000000ull + t.tv_nsec / 1000;
    for (unsigned i = 0; i < HOST_MAX_DUMPS; i++) {
        struct dump *d = &h->dumps->dump[i];
        size_t size = pcap_record_size(p, d->snaplen);
        uint8_t *to;

        if (!d->id || d->over) {
            continue;
        }
        if (size > d->limit - d->bytes) {
            d->over = "its limit is reached";
            continue;
        }
        to = place(h, d, size);
        if (to) {
            pcap_record(to, p, d->snaplen, usec);
            d->used += size;
            d->bytes += size;
            d->packets++;
        }
    }
}

void dumps_flush(struct host *h)
{
    for (unsigned i = 0; h->dumps && i < HOST_MAX_DUMPS; i++) {
        if (h->dumps->dump[i].id) {
            flush(h, &h->dumps->dump[i]);
        }
    }
}

/* NULL, or what is wrong with it: we must never have to wait for it. */
static const char *unfit(int fd, bool *file)
{
    int flags = fcntl(fd, F_GETFL);
    struct stat st;

    if (flags < 0 || fstat(fd, &st) < 0 || (flags & O_ACCMODE) == O_RDONLY) {
        return "the descriptor cannot be written to";
    }
    *file = S_ISREG(st.st_mode);
    if (!*file && !S_ISFIFO(st.st_mode) && !S_ISSOCK(st.st_mode)) {
        return "the descriptor is neither a file nor a pipe nor a socket";
    }
    if (!*file && !(flags & O_NONBLOCK)) {
        return "a pipe or socket must have O_NONBLOCK";
    }
    return NULL;
}

const char *dump_start(struct host *h, int fd, uint32_t snaplen, uint64_t limit,
                       uint32_t *id)
{
    struct dump *d = NULL;
    const char *wrong;
    bool file;

    if (!h->dumps) {
        h->dumps = calloc(1, sizeof(*h->dumps));
    }
    for (unsigned i = 0; h->dumps && i < HOST_MAX_DUMPS && !d; i++) {
        if (!h->dumps->dump[i].id) {
            d = &h->dumps->dump[i];
        }
    }
    if (!d) {
        return h->dumps ? "there are as many dumps as can be" : "no memory";
    }
    wrong = unfit(fd, &file);
    if (wrong) {
        return wrong;
    }
    *d = (struct dump) {
        .fd = fd,
        .file = file,
        .snaplen = snaplen,
        .limit = limit,
        .buf = malloc(HOST_DUMP_BUFFER),
    };
    if (!d->buf) {
        return "no memory";
    }
    /* Who takes more again says so; a file always does. */
    if (!file &&
        !host_epoll(h, EPOLL_CTL_ADD, fd, EPOLLOUT | EPOLLET, ON_DUMP)) {
        free(d->buf);
        return "the descriptor cannot be watched";
    }
    d->id = ++h->dumps->last_id ?: ++h->dumps->last_id;
    pcap_file_header(d->buf, snaplen);
    d->used = d->bytes = PCAP_FILE_HDR_SIZE;
    *id = d->id;
    vsock_tap(h->vsock, true);
    return NULL;
}

bool dump_stop(struct host *h, uint32_t id, char *text, size_t size)
{
    for (unsigned i = 0; h->dumps && id && i < HOST_MAX_DUMPS; i++) {
        struct dump *d = &h->dumps->dump[i];

        if (d->id == id) {
            d->over = "stopped";
            counts(d, text, size);
            flush(h, d);
            return true;
        }
    }
    return false;
}

void dumps_close(struct host *h)
{
    for (unsigned i = 0; h->dumps && i < HOST_MAX_DUMPS; i++) {
        struct dump *d = &h->dumps->dump[i];

        if (d->id && !d->over) {
            d->over = "the backend ends";
        }
        /* Who takes nothing now has no more time. */
        if (d->id && flush(h, d)) {
            release(h, d, d->over);
        }
    }
    free(h->dumps);
}
