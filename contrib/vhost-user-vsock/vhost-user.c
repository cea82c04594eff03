/*
 * SPDX-License-Identifier: MIT
 *
 * vhost-user.c: the front end's messages in and answers out, and the
 * descriptors that they carry. The front end is the VMM and trusted, but
 * numbers are checked before they are used as an index, a length or an address.
 * Only a stream that makes no sense ends the connection; what a message asks
 * for is requests.c's business.
 */

#include "log.h"
#include "requests.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEADER_SIZE 12

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

void vhost_user_set_fd(int *fd, int by)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = by;
}

/* A descriptor that is closed while it is watched cannot be unwatched. */
void vhost_user_set_kick(struct vhost_user *u, unsigned queue, int by)
{
    if (u->kick[queue] >= 0) {
        u->ops->unwatch(u->opaque, queue, u->kick[queue]);
    }
    vhost_user_set_fd(&u->kick[queue], by);
    if (by >= 0) {
        u->ops->watch(u->opaque, queue, by);
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
    /* Before the call descriptors are closed: it may still interrupt. */
    device_reset(u->device);
    close_message_fds(u);
    for (unsigned i = 0; i < QUEUES; i++) {
        vhost_user_set_kick(u, i, -1);
        vhost_user_set_fd(&u->call[i], -1);
        vhost_user_set_fd(&u->err[i], -1);
    }
    vhost_user_set_fd(&u->fd, -1);
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

bool vhost_user_reply(struct vhost_user *u, const struct message *m,
                      const void *payload, uint32_t size)
{
    uint8_t out[HEADER_SIZE + VHOST_USER_MAX_PAYLOAD];
    uint32_t head[3] = { m->request, FLAG_VERSION | FLAG_REPLY, size };

    memcpy(out, head, HEADER_SIZE);
    if (size) {
        memcpy(out + HEADER_SIZE, payload, size);
    }
    size += HEADER_SIZE;
    /* Who waits for an answer has emptied the socket: it must have room. */
    if (send(u->fd, out, size, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)size) {
        log_rated(VLOG_WARN, "front end does not take the answer to request %u",
                  m->request);
        return false;
    }
    return true;
}

/* Reading. */

static void keep_fds(struct vhost_user *u, struct msghdr *msg)
{
    struct cmsghdr *c;

    for (c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        /* However many the kernel took: each is open, and ours to close. */
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
    /* Which of them are missing cannot be told. */
    if (msg.msg_flags & MSG_CTRUNC) {
        log_rated(VLOG_WARN,
                  "front end sent more than %u descriptors at once, "
                  "or we are out of them",
                  VHOST_USER_MAX_FDS);
        return -1;
    }
    return r;
}

/* The header's numbers; false: this is no vhost-user, or a flood. */
static bool check_header(const uint32_t head[3])
{
    if ((head[1] & FLAG_VERSION_MASK) == FLAG_VERSION &&
        head[2] <= VHOST_USER_MAX_SKIP) {
        return true;
    }
    log_rated(VLOG_WARN,
              "front end sent no vhost-user message (flags 0x%x, "
              "size %u)",
              head[1], head[2]);
    return false;
}

/*
 * Reads on at the message that has begun, and never beyond it: descriptors
 * belong to the bytes that they come with. What has no room in buf is thrown
 * away. 1: it is whole; 0: the rest is not there yet; -1: disconnect.
 */
static int read_message(struct vhost_user *u, struct message *m)
{
    uint32_t head[3];
    uint8_t skip[512];

    for (;;) {
        bool fits = u->got < sizeof(u->buf);
        size_t room = fits ? sizeof(u->buf) - u->got : sizeof(skip);
        size_t want = HEADER_SIZE;
        ssize_t r;

        if (u->got >= HEADER_SIZE) {
            memcpy(head, u->buf, sizeof(head));
            if (!check_header(head)) {
                return -1;
            }
            want += head[2];
            if (u->got == want) {
                break;
            }
        }
        want -= u->got;
        r = read_some(u, fits ? u->buf + u->got : skip,
                      want < room ? want : room);
        if (r <= 0) {
            return r;
        }
        u->got += r;
    }
    *m = (struct message) { head[0], head[1], head[2], u->buf + HEADER_SIZE };
    u->got = 0;
    return 1;
}

bool vhost_user_input(struct vhost_user *u)
{
    struct message m;
    int r;

    while ((r = read_message(u, &m)) > 0) {
        u->spoke = true;
        if (m.size > VHOST_USER_MAX_PAYLOAD) {
            log_rated(VLOG_WARN, "request %u has %u bytes of payload",
                      m.request, m.size);
            /* What needs a payload is refused, since it has none. */
            m.size = 0;
        }
        if (!vhost_user_handle(u, &m)) {
            return false;
        }
        /* Those that the request has not taken over. */
        close_message_fds(u);
    }
    return r == 0;
}
