/*
 * SPDX-License-Identifier: MIT
 *
 * front.c: see front.h. Not a test: it trusts the backend.
 */

#include "front.h"

#include <err.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct avail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[QUEUE_SIZE];
    uint16_t used_event;
};

struct used {
    uint16_t flags;
    uint16_t idx;
    struct {
        uint32_t id;
        uint32_t len;
    } ring[QUEUE_SIZE];
    uint16_t avail_event;
};

enum { DESC_NEXT = 1, DESC_WRITE = 2 };

/* Guest RAM: a page for each part of a queue, then the buffers. */
#define PART 16384
#define RX_AT (6 * PART)
#define TX_AT (RX_AT + QUEUE_SIZE * 4096)
#define TX_STRIDE (MAX_PAYLOAD + 4096)
#define RAM_SIZE (TX_AT + TX_SLOTS * TX_STRIDE)

enum message {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    SET_VRING_ENABLE = 18,
};

#define F_EVENT_IDX (1ull << 29)
#define F_PROTOCOL (1ull << 30)
#define F_VERSION_1 (1ull << 32)
#define PF_MQ (1ull << 0)
#define PF_CONFIG (1ull << 9)

static void say(struct front *f, enum message request, const void *payload,
                uint32_t size, int fd)
{
    uint32_t header[3] = { request, 1, size };
    struct iovec iov[2] = { { header, sizeof(header) },
                            { (void *)payload, size } };
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { 0 };
    struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };

    if (fd >= 0) {
        struct cmsghdr *c = &control.align;

        m.msg_control = &control;
        m.msg_controllen = sizeof(control);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    if (sendmsg(f->fd, &m, 0) != (ssize_t)(sizeof(header) + size)) {
        err(1, "vhost-user message %d", request);
    }
}

static void say_u64(struct front *f, enum message request, uint64_t value,
                    int fd)
{
    say(f, request, &value, sizeof(value), fd);
}

static uint64_t ask_u64(struct front *f, enum message request)
{
    struct __attribute__((packed)) {
        uint32_t header[3];
        uint64_t value;
    } answer;

    say(f, request, NULL, 0, -1);
    if (recv(f->fd, &answer, sizeof(answer), MSG_WAITALL) != sizeof(answer)) {
        errx(1, "no answer to vhost-user message %d", request);
    }
    return answer.value;
}

static void queue_start(struct front *f, struct queue *q, uint32_t i)
{
    struct {
        uint32_t index;
        uint32_t num;
    } num = { i, QUEUE_SIZE }, base = { i, 0 }, on = { i, 1 };
    struct {
        uint32_t index;
        uint32_t flags;
        uint64_t desc;
        uint64_t used;
        uint64_t avail;
        uint64_t log;
    } addr = { i, 0, (uintptr_t)q->desc, (uintptr_t)q->used,
               (uintptr_t)q->avail, 0 };

    say(f, SET_VRING_NUM, &num, sizeof(num), -1);
    say(f, SET_VRING_BASE, &base, sizeof(base), -1);
    say(f, SET_VRING_ADDR, &addr, sizeof(addr), -1);
    say_u64(f, SET_VRING_CALL, i, q->call);
    say_u64(f, SET_VRING_KICK, i, q->kick);
    say(f, SET_VRING_ENABLE, &on, sizeof(on), -1);
}

static void queue_init(struct queue *q, uint8_t *at)
{
    q->desc = (struct desc *)at;
    q->avail = (struct avail *)(at + PART);
    q->used = (struct used *)(at + 2 * PART);
    q->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    q->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}

static void queue_offer(struct queue *q, uint16_t head)
{
    q->avail->ring[q->next++ % QUEUE_SIZE] = head;
}

/* 2.7.13: the buffers become visible, and are announced if asked for. */
static void queue_show(struct queue *q)
{
    uint64_t one = 1;
    uint16_t event;

    if (q->kicked == q->next) {
        return;
    }
    __atomic_store_n(&q->avail->idx, q->next, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    event = __atomic_load_n(&q->used->avail_event, __ATOMIC_RELAXED);
    if ((uint16_t)(q->next - event - 1) < (uint16_t)(q->next - q->kicked) &&
        write(q->kick, &one, sizeof(one)) < 0) {
        err(1, "kick");
    }
    q->kicked = q->next;
}

/* The next chain that was given back, or -1. */
static int queue_take(struct queue *q, uint32_t *len)
{
    if (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) == q->last) {
        return -1;
    }
    *len = q->used->ring[q->last % QUEUE_SIZE].len;
    return q->used->ring[q->last++ % QUEUE_SIZE].id;
}

/* Asks for an interrupt; false: there is news already. */
static bool queue_arm(struct queue *q)
{
    q->avail->used_event = q->last;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&q->used->idx, __ATOMIC_RELAXED) == q->last;
}

void front_open(struct front *f, const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    struct {
        uint32_t count;
        uint32_t pad;
        uint64_t guest;
        uint64_t size;
        uint64_t user;
        uint64_t offset;
    } table = { 1, 0, 0, RAM_SIZE, 0, 0 };

    memset(f, 0, sizeof(*f));
    f->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(a.sun_path, path, sizeof(a.sun_path) - 1);
    if (connect(f->fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        err(1, "%s", path);
    }
    f->memory = memfd_create("ram", MFD_CLOEXEC);
    if (f->memory < 0 || ftruncate(f->memory, RAM_SIZE) < 0) {
        err(1, "memory");
    }
    f->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
                  f->memory, 0);
    if (f->ram == MAP_FAILED) {
        err(1, "memory");
    }
    memset(f->ram + RX_AT, 0x5a, RAM_SIZE - RX_AT);
    queue_init(&f->rx, f->ram);
    queue_init(&f->tx, f->ram + 3 * PART);

    if (~ask_u64(f, GET_FEATURES) & (F_EVENT_IDX | F_PROTOCOL)) {
        errx(1, "%s lacks features", path);
    }
    ask_u64(f, GET_PROTOCOL_FEATURES);
    say_u64(f, SET_PROTOCOL_FEATURES, PF_MQ | PF_CONFIG, -1);
    say(f, SET_OWNER, NULL, 0, -1);
    say_u64(f, SET_FEATURES, F_VERSION_1 | F_EVENT_IDX | F_PROTOCOL, -1);
    table.user = (uintptr_t)f->ram;
    say(f, SET_MEM_TABLE, &table, sizeof(table), f->memory);
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        f->rx.desc[i] = (struct desc) {
            .addr = RX_AT + i * 4096, .len = RX_BUFFER, .flags = DESC_WRITE,
        };
        queue_offer(&f->rx, i);
    }
    while (f->slots < TX_SLOTS) {
        f->slot[f->slots] = f->slots;
        f->slots++;
    }
    queue_start(f, &f->rx, 0);
    queue_start(f, &f->tx, 1);
    ask_u64(f, GET_FEATURES);   /* all of the above has been done */
    queue_show(&f->rx);
}

void front_reclaim(struct front *f)
{
    uint32_t len;
    int head;

    while ((head = queue_take(&f->tx, &len)) >= 0) {
        f->slot[f->slots++] = head / TX_PIECES;
    }
}

bool front_send(struct front *f, const void *header, uint32_t len, bool whole)
{
    /* Above this Linux puts the payload into fragments of 32 KiB. */
    uint32_t most = whole || len <= 32404 ? MAX_PAYLOAD : 32768;
    struct desc *d;
    uint64_t at;
    uint16_t head;

    if (!f->slots) {
        front_reclaim(f);
        if (!f->slots) {
            return false;
        }
    }
    head = f->slot[--f->slots] * TX_PIECES;
    d = &f->tx.desc[head];
    at = TX_AT + (uint64_t)head / TX_PIECES * TX_STRIDE;
    memcpy(f->ram + at, header, HEADER);
    *d = (struct desc) { .addr = at, .len = HEADER };
    at += 4096;
    for (uint32_t piece; len; len -= piece) {
        piece = len < most ? len : most;
        d->flags = DESC_NEXT;
        d->next = d + 1 - f->tx.desc;
        *++d = (struct desc) { .addr = at, .len = piece };
        at += piece;
    }
    queue_offer(&f->tx, head);
    return true;
}

void front_kick(struct front *f)
{
    queue_show(&f->tx);
}

const uint8_t *front_receive(struct front *f, uint32_t *len)
{
    int head;

    /* As Linux does: when half of them are gone. */
    if ((uint16_t)(f->rx.next - f->rx.kicked) >= QUEUE_SIZE / 2) {
        queue_show(&f->rx);
    }
    head = queue_take(&f->rx, len);
    if (head < 0) {
        queue_show(&f->rx);
        return NULL;
    }
    /* Shown by a later call: whoever asked for this one reads it first. */
    queue_offer(&f->rx, head);
    return f->ram + RX_AT + head * 4096;
}

bool front_wait(struct front *f, int milliseconds)
{
    struct pollfd p[2] = { { .fd = f->rx.call, .events = POLLIN },
                           { .fd = f->tx.call, .events = POLLIN } };
    uint64_t count;
    bool quiet = queue_arm(&f->rx);

    front_kick(f);
    if (!f->slots) {
        quiet &= queue_arm(&f->tx);
    }
    if (!quiet) {
        return true;
    }
    if (poll(p, 2, milliseconds) <= 0) {
        return false;
    }
    for (unsigned i = 0; i < 2; i++) {
        if (p[i].revents && read(p[i].fd, &count, sizeof(count)) < 0) {
            err(1, "interrupt");
        }
    }
    return true;
}
