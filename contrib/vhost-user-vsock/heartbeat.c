/*
 * SPDX-License-Identifier: MIT
 *
 * heartbeat.c: the responder of the boot heartbeat, and the taker of the
 * application's status: ports that the backend serves itself.
 */

#include "serve.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* A line to whoever waits for it; a reader that has gone is no harm. */
void host_tell(int fd, const char *line)
{
    struct pollfd p = { .fd = fd < 0 ? STDOUT_FILENO : fd, .events = POLLOUT };

    if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT) ||
        write(p.fd, line, strlen(line)) != (ssize_t)strlen(line)) {
        log_rated(VLOG_WARN,
                  "nobody reads descriptor %d: \"%.*s\" not "
                  "told",
                  p.fd, (int)strcspn(line, "\n"), line);
    }
}

static void beat_done(struct host *h)
{
    h->app.closed = true;
    if (!h->booted) {
        h->booted = true;
        host_tell(h->options->booted_fd, "booted\n");
        control_event(h, "{\"event\": \"heartbeat\"}");
    }
}

ssize_t beat_send(struct vsock_conn *c, const struct iovec *iov, unsigned niov)
{
    ssize_t n = 0;

    for (unsigned i = 0; i < niov; i++) {
        n += iov[i].iov_len;
    }
    if (c->user == BEAT_WAIT && n) {
        bool right = *(uint8_t *)iov->iov_base == HOST_HEARTBEAT_BYTE;

        c->user = right ? BEAT_ANSWER : BEAT_WRONG;
        c->answer = true;
    }
    return n;
}

ssize_t beat_recv(struct host *h, struct vsock_conn *c, const struct iovec *iov)
{
    if (c->user == BEAT_WRONG) {
        h->wrong_heartbeats++;
        return -ECONNRESET;
    }
    if (c->user != BEAT_ANSWER) {
        return -EAGAIN;
    }
    *(uint8_t *)iov->iov_base = HOST_HEARTBEAT_BYTE;
    c->user = BEAT_DONE;
    beat_done(h);
    return 1;
}

/*
 * Somebody else answers: look on as the first byte of each direction passes.
 * @n of them did, the first of them @byte.
 */
void beat_watch(struct host *h, struct vsock_conn *c, uint32_t from, ssize_t n,
                const void *byte)
{
    if (c->user != from || n <= 0) {
        return;
    }
    if (*(const uint8_t *)byte != HOST_HEARTBEAT_BYTE) {
        c->user = BEAT_NONE;
    } else if (from == BEAT_RELAY) {
        c->user = BEAT_RELAYED;
        h->relayed_heartbeats++;
    } else {
        c->user = BEAT_NONE;
        beat_done(h);
    }
}

bool status_open(struct host *h, struct vsock_conn *c)
{
    if (c->parent_port != APP_STATUS_PORT || h->app.closed) {
        return false;
    }
    h->app.closed = true;
    c->user = STATUS_WAIT;
    return true;
}

ssize_t status_send(struct host *h, struct vsock_conn *c,
                    const struct iovec *iov, unsigned niov)
{
    char line[APP_STATUS_LINE];
    ssize_t n = 0;

    for (unsigned i = 0; i < niov; i++) {
        n += iov[i].iov_len;
    }
    if (c->user == STATUS_WAIT && app_status_take(&h->app, iov, niov)) {
        c->user = STATUS_WRONG;
        if (app_status_line(&h->app, line)) {
            host_tell(h->options->booted_fd, line);
            c->user = STATUS_ANSWER;
        }
        c->answer = true;
    }
    return n;
}

ssize_t status_recv(struct host *h, struct vsock_conn *c,
                    const struct iovec *iov)
{
    if (c->user == STATUS_WRONG) {
        return -ECONNRESET;
    }
    if (c->user != STATUS_ANSWER) {
        return -EAGAIN;
    }
    *(uint8_t *)iov->iov_base = h->app.said[0];
    c->user = STATUS_DONE;
    return 1;
}
