/*
 * SPDX-License-Identifier: MIT
 *
 * requests.h: what the two files of the vhost-user protocol share: messages,
 * which vhost-user.c reads and writes, and what they ask for, which requests.c
 * does.
 */

#ifndef REQUESTS_H
#define REQUESTS_H

#include "vhost-user.h"

/* Of a message. */
enum {
    FLAG_VERSION_MASK = 3,
    FLAG_VERSION = 1,
    FLAG_REPLY = 4,
    FLAG_NEED_REPLY = 8,
};

struct message {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
    const uint8_t *payload;
};

/* vhost-user.c: false: the front end does not take it. */
bool vhost_user_reply(struct vhost_user *u, const struct message *m,
                      const void *payload, uint32_t size);
/* Instead of one that is there, which is closed; -1: none. */
void vhost_user_set_fd(int *fd, int by);
void vhost_user_set_kick(struct vhost_user *u, unsigned queue, int by);

/* requests.c: does what is asked, and answers; false: disconnect. */
bool vhost_user_handle(struct vhost_user *u, const struct message *m);

#endif
