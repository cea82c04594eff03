/*
 * SPDX-License-Identifier: MIT
 *
 * address.c: CIDs and ports as names of unix sockets, and what is known of a
 * socket as a number. Plain functions on plain buffers.
 *
 * Names come from the kernel, but whoever may connect can choose them, so they
 * are parsed as if they were hostile.
 */

#include "address.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* The bytes of a unix address before its path. */
#define UN_PATH offsetof(struct sockaddr_un, sun_path)
/* The upper 16 bits of a state; SO_MAX_PACING_RATE is all ones by default. */
#define MAGIC 0x4e56ull
#define BOUND_ANY 0x7f

/* What is still to be parsed; at is NULL after an error. */
struct rest {
    const char *at;
    const char *end;
};

static uint32_t take_number(struct rest *r)
{
    const char *start = r->at;
    uint64_t value = 0;

    while (r->at && r->at < r->end && *r->at >= '0' && *r->at <= '9') {
        value = value * 10 + (*r->at++ - '0');
        if (value > UINT32_MAX) {
            r->at = NULL;
        }
    }
    if (r->at == start) {
        r->at = NULL;
    }
    return value;
}

static void take_word(struct rest *r, const char *word)
{
    size_t n = strlen(word);

    if (!r->at || (size_t)(r->end - r->at) < n || memcmp(r->at, word, n)) {
        r->at = NULL;
    } else {
        r->at += n;
    }
}

static struct address take_address(struct rest *r)
{
    struct address a;

    a.cid = take_number(r);
    take_word(r, ":");
    a.port = take_number(r);
    take_word(r, "/");
    return a;
}

socklen_t address_to_name(struct sockaddr_un *un, const struct address_pair *p)
{
    int n;

    memset(un, 0, sizeof(*un));
    un->sun_family = AF_UNIX;
    /* At most 12 + 5 * 11 bytes. */
    n = snprintf(un->sun_path + 1, sizeof(un->sun_path) - 1,
                 VSOCK_NAME_PAIR "%" PRIu32, p->here.cid, p->here.port,
                 p->there.cid, p->there.port, p->until);
    return UN_PATH + 1 + n;
}

bool address_from_name(const struct sockaddr_un *un, socklen_t len,
                       struct address_pair *p)
{
    struct rest r;

    if (len <= UN_PATH || len > sizeof(*un) || un->sun_family != AF_UNIX ||
        un->sun_path[0]) {
        return false;
    }
    r.at = un->sun_path + 1;
    r.end = (const char *)un + len;
    take_word(&r, VSOCK_NAME_PREFIX);
    p->here = take_address(&r);
    p->there = take_address(&r);
    if (!r.at) {
        return false;
    }
    p->until = take_number(&r);
    if (r.at != r.end) {
        p->until = 0;
    }
    return true;
}

static bool __attribute__((format(printf, 2, 3))) set_path(
    struct sockaddr_un *un, const char *fmt, ...)
{
    va_list ap;
    int n;

    memset(un, 0, sizeof(*un));
    un->sun_family = AF_UNIX;
    va_start(ap, fmt);
    n = vsnprintf(un->sun_path, sizeof(un->sun_path), fmt, ap);
    va_end(ap);
    return n > 0 && (size_t)n < sizeof(un->sun_path);
}

bool address_home(struct sockaddr_un *un, const char *folder, uint32_t cid)
{
    return set_path(un, VSOCK_FOLDER_HOME, folder, cid);
}

bool address_enclave(struct sockaddr_un *un, const char *folder, uint32_t cid)
{
    return set_path(un, VSOCK_FOLDER_PATH, folder, cid);
}

bool address_port(struct sockaddr_un *un, const char *folder, uint32_t port)
{
    return set_path(un, VSOCK_FOLDER_PORT, folder, port);
}

bool address_from_path(const struct sockaddr_un *un, socklen_t len,
                       uint32_t *port)
{
    static const char part[] = VSOCK_PORTS_ALL VSOCK_PORT_MARK;
    struct rest r;

    if (len <= UN_PATH || len > sizeof(*un) || un->sun_family != AF_UNIX) {
        return false;
    }
    r.at = un->sun_path;
    r.end = un->sun_path + strnlen(un->sun_path, len - UN_PATH);
    for (const char *at = r.end;; at--) {
        if (at == un->sun_path) {
            return false;
        }
        if (at[-1] < '0' || at[-1] > '9') {
            r.at = at;
            break;
        }
    }
    if ((size_t)(r.at - un->sun_path) < strlen(part) ||
        memcmp(r.at - strlen(part), part, strlen(part))) {
        return false;
    }
    *port = take_number(&r);
    return r.at;
}

int address_check(const struct sockaddr *a, socklen_t len,
                  struct sockaddr_vm *vm)
{
    if (len < sizeof(*vm)) {
        return -EINVAL;
    }
    memcpy(vm, a, sizeof(*vm));
    if (vm->svm_family != AF_VSOCK || vm->svm_flags & ~1) {
        return -EINVAL;
    }
    return 0;
}

struct sockaddr_vm address_vm(uint32_t cid, uint32_t port)
{
    struct sockaddr_vm vm = {
        .svm_family = AF_VSOCK,
        .svm_cid = cid,
        .svm_port = port,
    };

    return vm;
}

uint64_t address_pack(const struct address_state *s)
{
    uint64_t cid =
        s->bound_cid == VMADDR_CID_ANY ? BOUND_ANY : s->bound_cid & 0x7f;

    return MAGIC << 48 | (uint64_t)s->stage << 40 | (uint64_t)s->bound << 39 |
           cid << 32 | s->connect_ms;
}

bool address_unpack(uint64_t word, struct address_state *s)
{
    uint32_t stage = word >> 40 & 0xff, cid = word >> 32 & 0x7f;

    if (word >> 48 != MAGIC || stage < STAGE_NEW || stage > STAGE_DEVICE) {
        return false;
    }
    s->stage = stage;
    s->bound = word >> 39 & 1;
    s->bound_cid = cid == BOUND_ANY ? VMADDR_CID_ANY : cid;
    s->connect_ms = word;
    return true;
}
