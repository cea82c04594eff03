/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: a front end's messages, with descriptors, in any pieces
 *
 * Input: records of a byte that says which descriptors go along, two bytes of
 * length, and bytes of the stream. After each the device works. Whatever was
 * said, the end closes every descriptor that came.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "log.h"
#include "target.h"
#include "vhost-user.h"

#define MEMORY (256 * 1024)
#define ROUNDS 16               /* of the device, after a record */

#define CHECK(claim)                                                    \
    do {                                                                \
        if (!(claim)) {                                                 \
            abort();                                                    \
        }                                                               \
    } while (0)

static int watched[QUEUES] = { -1, -1 };

static void op_watch(void *opaque, unsigned queue, int fd)
{
    (void)opaque;
    CHECK(queue < QUEUES && fd >= 0 && watched[queue] < 0);
    watched[queue] = fd;
}

static void op_unwatch(void *opaque, unsigned queue, int fd)
{
    (void)opaque;
    CHECK(queue < QUEUES && watched[queue] == fd);
    watched[queue] = -1;
}

static const struct vhost_user_ops user_ops = { op_watch, op_unwatch };

static struct vhost_user user;

static void on_interrupt(void *opaque, unsigned queue)
{
    (void)opaque;
    vhost_user_interrupt(&user, queue);
}

static void on_bad_ring(void *opaque, unsigned queue, enum ring_result what)
{
    (void)opaque;
    (void)what;
    vhost_user_error(&user, queue);
}

static void on_fresh(void *opaque)
{
    (void)opaque;
}

static const struct device_ops device_ops = {
    on_interrupt, on_bad_ring, on_fresh,
};

/* Nobody is at the host's end. */

static int op_open(void *opaque, struct vsock_conn *c)
{
    (void)opaque;
    (void)c;
    return -ECONNREFUSED;
}

static void op_note(void *opaque, enum vsock_note note,
                    const struct vsock_conn *c, const struct vsock_hdr *h)
{
    (void)opaque;
    (void)note;
    (void)c;
    (void)h;
}

static void op_close(void *opaque, struct vsock_conn *c, bool cut)
{
    (void)opaque;
    (void)c;
    (void)cut;
}

static const struct vsock_ops ops = {
    .open = op_open, .note = op_note, .close = op_close,
};

/* Descriptors to send; what they hold is the same for each input. */
static struct {
    int memory;
    int small;                  /* memory, too */
    int event;
    bool used;                  /* since they were made, or made as new */
} stock = { -1, -1, -1, true };

static int memory_of(int fd, off_t size)
{
    fd = fd < 0 ? memfd_create("memory", MFD_CLOEXEC) : fd;
    CHECK(fd >= 0 && ftruncate(fd, 0) == 0 && ftruncate(fd, size) == 0);
    return fd;
}

static void fill_stock(void)
{
    uint64_t count;

    if (!stock.used) {
        return;
    }
    stock.used = false;
    stock.memory = memory_of(stock.memory, MEMORY);
    stock.small = memory_of(stock.small, 4096);
    if (stock.event < 0) {
        stock.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    CHECK(stock.event >= 0);
    CHECK(read(stock.event, &count, sizeof(count)) > 0 || errno == EAGAIN);
}

static void send_record(int to, uint8_t how, const uint8_t *data, size_t size)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(3 * sizeof(int))];
    } control = { 0 };
    struct iovec iov = { (void *)data, size };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    unsigned n = how & 3;
    int fds[3];

    for (unsigned i = 0; i < n; i++) {
        fds[i] = !(how & 4 << i) ? stock.event
                 : how & 0x20    ? stock.small
                                 : stock.memory;
    }
    if (n) {
        struct cmsghdr *c = &control.align;

        stock.used = true;
        msg.msg_control = control.buf;
        msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    }
    sendmsg(to, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* The lowest that is free: it is the same again when nothing is left open. */
static int next_descriptor(void)
{
    int fd = dup(STDERR_FILENO);

    close(fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vsock_config config = {
        .guest_cid = 4, .max_conns = 8, .driver_ms = VSOCK_MS_DRIVER,
    };
    static struct device *d;    /* large, and device_init() leaves nothing */
    struct vsock *v = vsock_new(&config, &ops, NULL);
    bool alive = true;
    int before, pair[2];

    fill_stock();
    before = next_descriptor();
    d = d ? d : malloc(sizeof(*d));
    log_threshold = VLOG_ERROR;
    CHECK(v && d);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                     pair) == 0);
    vsock_set_now(v, 1);
    device_init(d, v, &device_ops, NULL);
    vhost_user_init(&user, pair[0], 4, d, &user_ops, NULL);
    while (alive && size > 3) {
        uint8_t answers[4096];
        uint8_t how = data[0];
        size_t len = data[1] | data[2] << 8;

        data += 3;
        size -= 3;
        len = len < size ? len : size;
        if (len) {
            send_record(pair[1], how, data, len);
            data += len;
            size -= len;
            alive = vhost_user_input(&user);
        }
        for (unsigned i = 0; alive && i < ROUNDS; i++) {
            if (!device_run(d)) {
                break;          /* it has done all that there was */
            }
        }
        do {
            len = recv(pair[1], answers, sizeof(answers), MSG_DONTWAIT);
        } while ((ssize_t)len > 0);
    }
    vhost_user_close(&user);
    CHECK(watched[0] < 0 && watched[1] < 0);
    close(pair[1]);
    device_set_mem(d, &(struct guest_mem){ 0 });
    vsock_free(v);
    CHECK(next_descriptor() == before);
    return 0;
}
