/*
 * SPDX-License-Identifier: MIT
 *
 * address.h: how the library writes down what AF_VSOCK has and unix sockets
 * have not: CIDs and ports as names of unix sockets, and what is known of a
 * socket as a number that the kernel keeps with it.
 *
 * Nothing here makes a system call. What names look like the backend knows as
 * well: ../vhost-user-vsock/agreed.h.
 */

#ifndef ADDRESS_H
#define ADDRESS_H

#include "../vhost-user-vsock/agreed.h"

#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/un.h>

struct address {
    uint32_t cid;
    uint32_t port;
};

/* The name of one end of a connection, see agreed.h. */
struct address_pair {
    struct address here;
    struct address there;
    uint32_t until; /* 0 if what is behind is no number */
};

/* Returns the length of the address. */
socklen_t address_to_name(struct sockaddr_un *un, const struct address_pair *p);
bool address_from_name(const struct sockaddr_un *un, socklen_t len,
                       struct address_pair *p);

/* FOLDER/CID, which an enclave has as long as it lives; false: too long. */
bool address_home(struct sockaddr_un *un, const char *folder, uint32_t cid);
/* FOLDER/CID/vsock, where its backend takes clients. */
bool address_enclave(struct sockaddr_un *un, const char *folder, uint32_t cid);
/* FOLDER/ports/all_PORT, where every enclave's backend looks for a port. */
bool address_port(struct sockaddr_un *un, const char *folder, uint32_t port);
/* The port in such a path. */
bool address_from_path(const struct sockaddr_un *un, socklen_t len,
                       uint32_t *port);

/* As the kernel checks it: 0 or -EINVAL. */
int address_check(const struct sockaddr *a, socklen_t len,
                  struct sockaddr_vm *vm);
struct sockaddr_vm address_vm(uint32_t cid, uint32_t port);

enum address_stage {
    STAGE_NEW = 1,    /* perhaps bound, perhaps listening */
    STAGE_CONNECTING, /* the outcome has not been seen yet */
    STAGE_CONNECTED,
    STAGE_FAILED, /* the connect has, as the program knows */
    STAGE_SHUT,   /* was connected; then shutdown() */
    STAGE_DEVICE, /* no socket, but /dev/vsock */
};

/* What the kernel keeps for us with a socket; small enough for 64 bits. */
struct address_state {
    enum address_stage stage;
    bool bound;
    uint32_t bound_cid; /* VMADDR_CID_ANY, or below 128 */
    uint32_t connect_ms;
};

#define ADDRESS_CONNECT_MS 2000 /* vsock(7)'s default */
#define ADDRESS_CONNECT_MS_MAX 1000000000

uint64_t address_pack(const struct address_state *s);
/* False: this is no number of ours. */
bool address_unpack(uint64_t word, struct address_state *s);

#endif
