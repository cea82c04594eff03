/*
 * SPDX-License-Identifier: MIT
 *
 * vhost-user.c: reads and answers the front end's messages. The front end is
 * the VMM and trusted, but numbers are checked before they are used as an
 * index, a length or an address. A request that we do not know or cannot
 * carry out is logged, refused if an answer is wanted, and survived; only a
 * stream that makes no sense ends the connection.
 */

#include "vhost-user.h"
#include "log.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
};

#define HEADER_SIZE 12
#define FLAG_VERSION_MASK 3u
#define FLAG_VERSION 1u
#define FLAG_REPLY 4u
#define FLAG_NEED_REPLY 8u

#define F_EVENT_IDX (1ull << 29)
#define F_PROTOCOL_FEATURES (1ull << 30)
#define F_VERSION_1 (1ull << 32)
#define FEATURES (F_EVENT_IDX | F_PROTOCOL_FEATURES | F_VERSION_1)

#define PF_MQ (1ull << 0)
#define PF_REPLY_ACK (1ull << 3)
#define PF_CONFIG (1ull << 9)
#define PROTOCOL_FEATURES (PF_MQ | PF_REPLY_ACK | PF_CONFIG)

#define VRING_INDEX_MASK 0xff
#define VRING_NO_FD 0x100
#define CONFIG_SIZE 8
#define CONFIG_HEADER 12

struct message {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
    const uint8_t *payload;
};

struct vring_addr {
    uint32_t index;
    uint32_t flags;
    uint64_t desc;
    uint64_t used;
    uint64_t avail;
    uint64_t log;
};

struct table_entry {
    uint64_t guest;
    uint64_t size;
    uint64_t user;
    uint64_t offset;
};

void vhost_user_init(struct vhost_user *u, int fd, uint64_t guest_cid,
                     struct device *d, const struct vhost_user_ops *ops,
                     void *opaque)
{
    memset(u, 0, sizeof(*u));
    u->fd = fd;
    u->guest_cid = guest_cid;
    u->device = d;
    u->ops = ops;
    u->opaque = opaque;
    for (unsigned i = 0; i < QUEUES; i++) {
        u->kick[i] = u->call[i] = u->err[i] = -1;
    }
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

static void close_kick(struct vhost_user *u, unsigned queue)
{
    if (u->kick[queue] >= 0) {
        u->ops->unwatch(u->opaque, queue, u->kick[queue]);
        close_fd(&u->kick[queue]);
    }
}

static void close_message_fds(struct vhost_user *u)
{
    while (u->nfds) {
        close(u->fds[--u->nfds]);
    }
}

void vhost_user_close(struct vhost_user *u)
{
    device_reset(u->device);
    close_message_fds(u);
    for (unsigned i = 0; i < QUEUES; i++) {
        close_kick(u, i);
        close_fd(&u->call[i]);
        close_fd(&u->err[i]);
    }
    close_fd(&u->fd);
}

static void raise_event(int fd)
{
    const uint64_t one = 1;
    ssize_t unused;

    if (fd >= 0) {
        /* It can fail only when it is full, and then it is raised already. */
        unused = write(fd, &one, sizeof(one));
        (void)unused;
    }
}

void vhost_user_interrupt(struct vhost_user *u, unsigned queue)
{
    raise_event(u->call[queue]);
}

void vhost_user_error(struct vhost_user *u, unsigned queue)
{
    raise_event(u->err[queue]);
}

/* Answers. */

static bool reply(struct vhost_user *u, const struct message *m,
                  const void *payload, uint32_t size)
{
    uint8_t out[HEADER_SIZE + VHOST_USER_MAX_PAYLOAD];
    uint32_t head[3] = { m->request, FLAG_VERSION | FLAG_REPLY, size };

    memcpy(out, head, HEADER_SIZE);
    if (size) {
        memcpy(out + HEADER_SIZE, payload, size);
    }
    size += HEADER_SIZE;
    /* It waits for the answer, so the socket has room, or it is not well. */
    if (send(u->fd, out, size, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)size) {
        log_rated(LOG_WARN, "front end does not take the answer to request %u",
                  m->request);
        return false;
    }
    return true;
}

static bool reply_u64(struct vhost_user *u, const struct message *m,
                      uint64_t value)
{
    return reply(u, m, &value, sizeof(value));
}

/* The payload as a fixed structure; false: wrong size, logged. */
static bool read_payload(const struct message *m, void *to, size_t size)
{
    if (m->size != size) {
        log_rated(LOG_WARN, "request %u has %u bytes of payload, not %zu",
                  m->request, m->size, size);
        return false;
    }
    memcpy(to, m->payload, size);
    return true;
}

static bool check_queue(const struct message *m, uint64_t queue)
{
    if (queue >= QUEUES) {
        log_rated(LOG_WARN, "request %u for queue %llu; there are %u",
                  m->request, (unsigned long long)queue, QUEUES);
        return false;
    }
    return true;
}

/* Requests. True: done. */

static bool set_features(struct vhost_user *u, const struct message *m)
{
    uint64_t f;

    if (!read_payload(m, &f, sizeof(f))) {
        return false;
    }
    if (f & ~FEATURES) {
        log_rated(LOG_WARN, "features 0x%llx were not offered",
                  (unsigned long long)(f & ~FEATURES));
        return false;
    }
    u->features = f;
    for (unsigned i = 0; i < QUEUES; i++) {
        u->device->queue[i].ring.event_idx = f & F_EVENT_IDX;
        if (!(f & F_PROTOCOL_FEATURES)) {
            /* There is no message to enable a queue then. */
            device_enable(u->device, i, true);
        }
    }
    return true;
}

static bool set_protocol_features(struct vhost_user *u,
                                  const struct message *m)
{
    uint64_t f;

    if (!read_payload(m, &f, sizeof(f))) {
        return false;
    }
    if (f & ~PROTOCOL_FEATURES) {
        log_rated(LOG_WARN, "protocol features 0x%llx were not offered",
                  (unsigned long long)(f & ~PROTOCOL_FEATURES));
        return false;
    }
    u->protocol = f;
    return true;
}

static bool set_mem_table(struct vhost_user *u, const struct message *m)
{
    struct mem mem = { 0 };
    struct table_entry e;
    uint32_t count;

    if (m->size < 8) {
        log_rated(LOG_WARN, "memory table of %u bytes", m->size);
        return false;
    }
    memcpy(&count, m->payload, sizeof(count));
    if (count > MEM_MAX_REGIONS || count != u->nfds ||
        m->size < 8 + count * sizeof(e)) {
        log_rated(LOG_WARN, "memory table of %u regions, %u files, %u bytes",
                  count, u->nfds, m->size);
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        int r;

        memcpy(&e, m->payload + 8 + i * sizeof(e), sizeof(e));
        r = mem_add(&mem, u->fds[i], e.guest, e.user, e.size, e.offset);
        if (r < 0) {
            log_rated(LOG_WARN, "cannot map memory region %u (guest address "
                      "0x%llx, 0x%llx bytes): %s", i,
                      (unsigned long long)e.guest, (unsigned long long)e.size,
                      strerror(-r));
            mem_clear(&mem);
            return false;
        }
    }
    device_set_mem(u->device, &mem);
    return true;
}

static bool set_vring_num(struct vhost_user *u, const struct message *m)
{
    uint32_t p[2];

    if (!read_payload(m, p, sizeof(p)) || !check_queue(m, p[0])) {
        return false;
    }
    if (!p[1] || p[1] > RING_MAX_SIZE || (p[1] & (p[1] - 1))) {
        log_rated(LOG_WARN, "queue size %u is no power of two up to %u", p[1],
                  RING_MAX_SIZE);
        return false;
    }
    /* The old addresses were checked against the old size. */
    ring_unmap(&u->device->queue[p[0]].ring);
    u->device->queue[p[0]].ring.num = p[1];
    device_map(u->device, p[0]);
    return true;
}

static bool set_vring_addr(struct vhost_user *u, const struct message *m)
{
    struct vring_addr a;
    struct ring *r;

    if (!read_payload(m, &a, sizeof(a)) || !check_queue(m, a.index)) {
        return false;
    }
    r = &u->device->queue[a.index].ring;
    r->desc_user = a.desc;
    r->avail_user = a.avail;
    r->used_user = a.used;
    r->has_addr = true;
    if (!device_map(u->device, a.index)) {
        log_rated(LOG_WARN, "ring %u is not in the guest's memory", a.index);
        return false;
    }
    return true;
}

static bool set_vring_base(struct vhost_user *u, const struct message *m)
{
    uint32_t p[2];

    if (!read_payload(m, p, sizeof(p)) || !check_queue(m, p[0])) {
        return false;
    }
    if (p[1] > UINT16_MAX) {
        log_rated(LOG_WARN, "ring index %u has more than 16 bits", p[1]);
        return false;
    }
    device_set_base(u->device, p[0], p[1]);
    return true;
}

/* Answers in any case: the front end waits without a limit. */
static bool get_vring_base(struct vhost_user *u, const struct message *m)
{
    uint32_t p[2] = { 0, 0 };

    if (read_payload(m, p, sizeof(p)) && check_queue(m, p[0])) {
        p[1] = device_stop(u->device, p[0]);
        close_kick(u, p[0]);
        close_fd(&u->call[p[0]]);
    }
    return reply(u, m, p, sizeof(p));
}

/* The descriptor of requests 12 to 14, or -1 if there is none. */
static bool take_fd(struct vhost_user *u, const struct message *m,
                    uint32_t *queue, int *fd)
{
    uint64_t p;

    if (!read_payload(m, &p, sizeof(p)) ||
        !check_queue(m, p & VRING_INDEX_MASK)) {
        return false;
    }
    *queue = p & VRING_INDEX_MASK;
    *fd = -1;
    if (p & VRING_NO_FD) {
        return true;
    }
    if (u->nfds != 1) {
        log_rated(LOG_WARN, "request %u with %u descriptors", m->request,
                  u->nfds);
        return false;
    }
    *fd = u->fds[0];
    u->nfds = 0;
    return true;
}

static bool set_vring_kick(struct vhost_user *u, const struct message *m)
{
    uint32_t queue;
    int fd;

    if (!take_fd(u, m, &queue, &fd)) {
        return false;
    }
    close_kick(u, queue);
    if (fd < 0) {
        log_rated(LOG_WARN, "ring %u without a kick descriptor", queue);
        return false;
    }
    u->kick[queue] = fd;
    u->ops->watch(u->opaque, queue, fd);
    device_start(u->device, queue);
    return true;
}

static bool set_vring_call(struct vhost_user *u, const struct message *m)
{
    uint32_t queue;
    int fd;

    if (!take_fd(u, m, &queue, &fd)) {
        return false;
    }
    close_fd(&u->call[queue]);
    u->call[queue] = fd;
    if (device_usable(u->device, queue)) {
        /* What was given back so far may have been told to the old one. */
        vhost_user_interrupt(u, queue);
    }
    return true;
}

static bool set_vring_err(struct vhost_user *u, const struct message *m)
{
    uint32_t queue;
    int fd;

    if (!take_fd(u, m, &queue, &fd)) {
        return false;
    }
    close_fd(&u->err[queue]);
    u->err[queue] = fd;
    return true;
}

static bool set_vring_enable(struct vhost_user *u, const struct message *m)
{
    uint32_t p[2];

    if (!read_payload(m, p, sizeof(p)) || !check_queue(m, p[0])) {
        return false;
    }
    device_enable(u->device, p[0], p[1]);
    return true;
}

static bool reset_owner(struct vhost_user *u)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        device_enable(u->device, i, false);
    }
    return true;
}

/* Same size back with the bytes filled in, or size 0 for an error. */
static bool get_config(struct vhost_user *u, const struct message *m)
{
    uint8_t out[CONFIG_HEADER + CONFIG_SIZE];
    uint8_t space[CONFIG_SIZE];
    uint32_t p[3];

    for (unsigned i = 0; i < CONFIG_SIZE; i++) {
        space[i] = u->guest_cid >> 8 * i;
    }
    if (m->size < CONFIG_HEADER) {
        return reply(u, m, NULL, 0);
    }
    memcpy(p, m->payload, sizeof(p));
    if (p[0] > CONFIG_SIZE || p[1] > CONFIG_SIZE - p[0] ||
        m->size != CONFIG_HEADER + p[1]) {
        log_rated(LOG_WARN, "config space has %u bytes, asked for %u at %u",
                  CONFIG_SIZE, p[1], p[0]);
        return reply(u, m, NULL, 0);
    }
    memcpy(out, p, sizeof(p));
    memcpy(out + CONFIG_HEADER, space + p[0], p[1]);
    return reply(u, m, out, m->size);
}

/* False: disconnect. */
static bool handle(struct vhost_user *u, const struct message *m)
{
    bool done = false;

    switch (m->request) {
    case GET_FEATURES:
        return reply_u64(u, m, FEATURES);
    case GET_PROTOCOL_FEATURES:
        return reply_u64(u, m, PROTOCOL_FEATURES);
    case GET_QUEUE_NUM:
        return reply_u64(u, m, QUEUES);
    case GET_VRING_BASE:
        return get_vring_base(u, m);
    case GET_CONFIG:
        return get_config(u, m);
    case SET_FEATURES:
        done = set_features(u, m);
        break;
    case SET_PROTOCOL_FEATURES:
        done = set_protocol_features(u, m);
        break;
    case SET_OWNER:
        done = true;
        break;
    case RESET_OWNER:
        done = reset_owner(u);
        break;
    case SET_MEM_TABLE:
        done = set_mem_table(u, m);
        break;
    case SET_VRING_NUM:
        done = set_vring_num(u, m);
        break;
    case SET_VRING_ADDR:
        done = set_vring_addr(u, m);
        break;
    case SET_VRING_BASE:
        done = set_vring_base(u, m);
        break;
    case SET_VRING_KICK:
        done = set_vring_kick(u, m);
        break;
    case SET_VRING_CALL:
        done = set_vring_call(u, m);
        break;
    case SET_VRING_ERR:
        done = set_vring_err(u, m);
        break;
    case SET_VRING_ENABLE:
        done = set_vring_enable(u, m);
        break;
    case SET_CONFIG:
        log_rated(LOG_WARN, "config space cannot be written");
        break;
    default:
        log_rated(LOG_WARN, "unknown request %u from the front end",
                  m->request);
    }
    if ((m->flags & FLAG_NEED_REPLY) && (u->protocol & PF_REPLY_ACK)) {
        return reply_u64(u, m, !done);
    }
    return true;
}

/* Reading. */

static void keep_fds(struct vhost_user *u, struct msghdr *msg)
{
    struct cmsghdr *c;

    for (c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        unsigned n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (unsigned i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
            if (u->nfds == VHOST_USER_MAX_FDS) {
                close(fd);
            } else {
                u->fds[u->nfds++] = fd;
            }
        }
    }
}

/* Up to n bytes; 0: nothing there now; -1: the end or an error. */
static ssize_t read_some(struct vhost_user *u, void *to, size_t n)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int) * VHOST_USER_MAX_FDS)];
    } control;
    struct iovec iov = { to, n };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.buf,
        .msg_controllen = sizeof(control.buf),
    };
    ssize_t r = recvmsg(u->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (r < 0) {
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    }
    if (r == 0) {
        return -1;
    }
    keep_fds(u, &msg);
    if (msg.msg_flags & MSG_CTRUNC) {
        log_rated(LOG_WARN, "front end sent more than %u descriptors at once, "
                  "or we are out of them", VHOST_USER_MAX_FDS);
        return -1;
    }
    return r;
}

bool vhost_user_input(struct vhost_user *u)
{
    for (;;) {
        size_t want = HEADER_SIZE;
        uint8_t skip[512];
        struct message m;
        uint32_t head[3];
        ssize_t r;

        if (u->got >= HEADER_SIZE) {
            memcpy(head, u->buf, sizeof(head));
            want += head[2];
        }
        if (u->got < want) {
            if (u->got < sizeof(u->buf)) {
                size_t room = sizeof(u->buf) - u->got;

                r = read_some(u, u->buf + u->got,
                              want - u->got < room ? want - u->got : room);
            } else {
                r = read_some(u, skip, want - u->got < sizeof(skip) ?
                                       want - u->got : sizeof(skip));
            }
            if (r <= 0) {
                return r == 0;
            }
            u->got += r;
            if (u->got == HEADER_SIZE) {
                memcpy(head, u->buf, sizeof(head));
                if ((head[1] & FLAG_VERSION_MASK) != FLAG_VERSION ||
                    head[2] > VHOST_USER_MAX_SKIP) {
                    log_rated(LOG_WARN, "front end sent no vhost-user message "
                              "(flags 0x%x, size %u)", head[1], head[2]);
                    return false;
                }
                want += head[2];
            }
            if (u->got < want || u->got < HEADER_SIZE) {
                continue;
            }
        }
        m = (struct message) { head[0], head[1], head[2],
                               u->buf + HEADER_SIZE };
        u->got = 0;
        u->spoke = true;
        if (m.size > VHOST_USER_MAX_PAYLOAD) {
            log_rated(LOG_WARN, "request %u has %u bytes of payload",
                      m.request, m.size);
            m.size = 0;
        }
        if (!handle(u, &m)) {
            return false;
        }
        close_message_fds(u);
    }
}
