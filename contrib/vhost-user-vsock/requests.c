/*
 * SPDX-License-Identifier: MIT
 *
 * requests.c: what the front end's messages ask for. A request that we do not
 * know or cannot carry out is logged, refused if an answer is wanted, and
 * survived.
 */

#include "log.h"
#include "requests.h"

#include <string.h>

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

/* The payload as a fixed structure; false: wrong size, logged. */
static bool read_payload(const struct message *m, void *to, size_t size)
{
    if (m->size != size) {
        log_rated(VLOG_WARN, "request %u has %u bytes of payload, not %zu",
                  m->request, m->size, size);
        return false;
    }
    memcpy(to, m->payload, size);
    return true;
}

static bool check_queue(const struct message *m, uint64_t queue)
{
    if (queue >= QUEUES) {
        log_rated(VLOG_WARN, "request %u for queue %llu; there are %u",
                  m->request, (unsigned long long)queue, QUEUES);
        return false;
    }
    return true;
}

/* Requests that are carried out. True: done. */

static bool set_features(struct vhost_user *u, const struct message *m)
{
    uint64_t f;

    if (!read_payload(m, &f, sizeof(f))) {
        return false;
    }
    if (f & ~FEATURES) {
        log_rated(VLOG_WARN, "features 0x%llx were not offered",
                  (unsigned long long)(f & ~FEATURES));
        return false;
    }
    u->features = f;
    device_set_event_idx(u->device, f & F_EVENT_IDX);
    for (unsigned i = 0; i < QUEUES && !(f & F_PROTOCOL_FEATURES); i++) {
        /* There is no message to enable a queue then. */
        device_enable(u->device, i, true);
    }
    return true;
}

static bool set_protocol_features(struct vhost_user *u, const struct message *m)
{
    uint64_t f;

    if (!read_payload(m, &f, sizeof(f))) {
        return false;
    }
    if (f & ~PROTOCOL_FEATURES) {
        log_rated(VLOG_WARN, "protocol features 0x%llx were not offered",
                  (unsigned long long)(f & ~PROTOCOL_FEATURES));
        return false;
    }
    u->protocol = f;
    return true;
}

static bool set_mem_table(struct vhost_user *u, const struct message *m)
{
    struct guest_mem mem = { 0 };
    struct table_entry e;
    uint32_t count;

    if (m->size < 8) {
        log_rated(VLOG_WARN, "memory table of %u bytes", m->size);
        return false;
    }
    memcpy(&count, m->payload, sizeof(count));
    if (count > GUEST_MEM_MAX_REGIONS || count != u->nfds ||
        m->size < 8 + count * sizeof(e)) {
        log_rated(VLOG_WARN, "memory table of %u regions, %u files, %u bytes",
                  count, u->nfds, m->size);
        return false;
    }
    /* All or none: until here the device has the old table. */
    for (uint32_t i = 0; i < count; i++) {
        int r;

        memcpy(&e, m->payload + 8 + i * sizeof(e), sizeof(e));
        r = guest_mem_add(&mem, u->fds[i], e.guest, e.user, e.size, e.offset);
        if (r < 0) {
            log_rated(VLOG_WARN,
                      "cannot map memory region %u (guest address "
                      "0x%llx, 0x%llx bytes): %s",
                      i, (unsigned long long)e.guest,
                      (unsigned long long)e.size, strerror(-r));
            guest_mem_clear(&mem);
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
        log_rated(VLOG_WARN, "queue size %u is no power of two up to %u", p[1],
                  RING_MAX_SIZE);
        return false;
    }
    device_set_size(u->device, p[0], p[1]);
    return true;
}

static bool set_vring_addr(struct vhost_user *u, const struct message *m)
{
    struct vring_addr a;

    if (!read_payload(m, &a, sizeof(a)) || !check_queue(m, a.index)) {
        return false;
    }
    if (!device_set_addresses(u->device, a.index, a.desc, a.avail, a.used)) {
        log_rated(VLOG_WARN, "ring %u is not in the guest's memory", a.index);
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
    /* A packed ring's index has 32 bits; ours are split rings. */
    if (p[1] > UINT16_MAX) {
        log_rated(VLOG_WARN, "ring index %u has more than 16 bits", p[1]);
        return false;
    }
    device_set_base(u->device, p[0], p[1]);
    return true;
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
    *fd = -1; /* the flag's meaning: none from now on */
    if (p & VRING_NO_FD) {
        return true;
    }
    if (u->nfds != 1) {
        log_rated(VLOG_WARN, "request %u with %u descriptors", m->request,
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
    vhost_user_set_kick(u, queue, fd);
    if (fd < 0) {
        /* By the protocol we would have to poll the ring then: we do not. */
        log_rated(VLOG_WARN, "ring %u without a kick descriptor", queue);
        return false;
    }
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
    vhost_user_set_fd(&u->call[queue], fd);
    if (device_usable(u->device, queue)) {
        /* Interrupts so far may have gone to the old descriptor. */
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
    vhost_user_set_fd(&u->err[queue], fd);
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

static bool set_owner(struct vhost_user *u, const struct message *m)
{
    (void)u, (void)m;
    return true;
}

/* Deprecated; where it is still sent, it means to disable all rings. */
static bool reset_owner(struct vhost_user *u, const struct message *m)
{
    (void)m;
    for (unsigned i = 0; i < QUEUES; i++) {
        device_enable(u->device, i, false);
    }
    return true;
}

static bool set_config(struct vhost_user *u, const struct message *m)
{
    (void)u, (void)m;
    log_rated(VLOG_WARN, "config space cannot be written");
    return false;
}

/* Requests that are questions. False: disconnect. */

static bool reply_u64(struct vhost_user *u, const struct message *m,
                      uint64_t value)
{
    return vhost_user_reply(u, m, &value, sizeof(value));
}

static bool get_features(struct vhost_user *u, const struct message *m)
{
    return reply_u64(u, m, FEATURES);
}

static bool get_protocol_features(struct vhost_user *u, const struct message *m)
{
    return reply_u64(u, m, PROTOCOL_FEATURES);
}

static bool get_queue_num(struct vhost_user *u, const struct message *m)
{
    return reply_u64(u, m, QUEUES);
}

/* Answers in any case: the front end waits without a limit. */
static bool get_vring_base(struct vhost_user *u, const struct message *m)
{
    uint32_t p[2] = { 0, 0 };

    if (read_payload(m, p, sizeof(p)) && check_queue(m, p[0])) {
        p[1] = device_stop(u->device, p[0]);
        vhost_user_set_kick(u, p[0], -1);
        vhost_user_set_fd(&u->call[p[0]], -1);
    }
    return vhost_user_reply(u, m, p, sizeof(p));
}

/* Same size back with the bytes filled in, or size 0 for an error. */
static bool get_config(struct vhost_user *u, const struct message *m)
{
    uint8_t out[CONFIG_HEADER + CONFIG_SIZE];
    uint8_t space[CONFIG_SIZE];
    uint32_t p[3];

    /* The whole config space of a vsock is the CID. */
    for (unsigned i = 0; i < CONFIG_SIZE; i++) {
        space[i] = u->guest_cid >> 8 * i;
    }
    /* Without even the header there is nothing that could be sent back. */
    if (m->size < CONFIG_HEADER) {
        return vhost_user_reply(u, m, NULL, 0);
    }
    memcpy(p, m->payload, sizeof(p));
    if (p[0] > CONFIG_SIZE || p[1] > CONFIG_SIZE - p[0] ||
        m->size != CONFIG_HEADER + p[1]) {
        log_rated(VLOG_WARN, "config space has %u bytes, asked for %u at %u",
                  CONFIG_SIZE, p[1], p[0]);
        return vhost_user_reply(u, m, NULL, 0);
    }
    memcpy(out, p, sizeof(p));
    memcpy(out + CONFIG_HEADER, space + p[0], p[1]);
    return vhost_user_reply(u, m, out, m->size);
}

/* What is asked for, by the request's number. */
static const struct {
    bool (*answer)(struct vhost_user *u, const struct message *m);
    bool (*carry_out)(struct vhost_user *u, const struct message *m);
} requests[] = {
    [GET_FEATURES] = { .answer = get_features },
    [SET_FEATURES] = { .carry_out = set_features },
    [SET_OWNER] = { .carry_out = set_owner },
    [RESET_OWNER] = { .carry_out = reset_owner },
    [SET_MEM_TABLE] = { .carry_out = set_mem_table },
    [SET_VRING_NUM] = { .carry_out = set_vring_num },
    [SET_VRING_ADDR] = { .carry_out = set_vring_addr },
    [SET_VRING_BASE] = { .carry_out = set_vring_base },
    [GET_VRING_BASE] = { .answer = get_vring_base },
    [SET_VRING_KICK] = { .carry_out = set_vring_kick },
    [SET_VRING_CALL] = { .carry_out = set_vring_call },
    [SET_VRING_ERR] = { .carry_out = set_vring_err },
    [GET_PROTOCOL_FEATURES] = { .answer = get_protocol_features },
    [SET_PROTOCOL_FEATURES] = { .carry_out = set_protocol_features },
    [GET_QUEUE_NUM] = { .answer = get_queue_num },
    [SET_VRING_ENABLE] = { .carry_out = set_vring_enable },
    [GET_CONFIG] = { .answer = get_config },
    [SET_CONFIG] = { .carry_out = set_config },
};

#define REQUESTS (sizeof(requests) / sizeof(requests[0]))

bool vhost_user_handle(struct vhost_user *u, const struct message *m)
{
    bool done = false;

    if (m->request < REQUESTS && requests[m->request].answer) {
        return requests[m->request].answer(u, m);
    }
    if (m->request < REQUESTS && requests[m->request].carry_out) {
        done = requests[m->request].carry_out(u, m);
    } else {
        log_rated(VLOG_WARN, "unknown request %u from the front end",
                  m->request);
    }
    /* Unasked for, it would be taken for the answer to the next question. */
    if ((m->flags & FLAG_NEED_REPLY) && (u->protocol & PF_REPLY_ACK)) {
        return reply_u64(u, m, !done);
    }
    return true;
}
