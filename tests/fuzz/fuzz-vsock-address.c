/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: addresses as the library of parent programs finds them, in the
 * names of unix sockets, in sockaddrs of the program, in the kernel's number
 *
 * What is understood must be written down again as what it was.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "address.h"
#include "target.h"

#define CHECK(claim)                                                    \
    do {                                                                \
        if (!(claim)) {                                                 \
            abort();                                                    \
        }                                                               \
    } while (0)

static void check_name(const struct sockaddr_un *un, socklen_t len)
{
    struct address_pair p, again;
    struct sockaddr_un written;
    socklen_t n;

    if (address_from_name(un, len, &p)) {
        n = address_to_name(&written, &p);
        CHECK(n <= sizeof(written));
        CHECK(address_from_name(&written, n, &again));
        CHECK(again.here.cid == p.here.cid && again.here.port == p.here.port &&
              again.there.cid == p.there.cid &&
              again.there.port == p.there.port);
    }
}

static void check_path(const struct sockaddr_un *un, socklen_t len)
{
    struct sockaddr_un written;
    uint32_t port, again;

    if (address_from_path(un, len, &port)) {
        CHECK(address_port(&written, "/run", port));
        CHECK(address_from_path(&written, sizeof(written), &again));
        CHECK(again == port);
    }
}

static void check_word(uint64_t word)
{
    struct address_state s, again;

    if (address_unpack(word, &s)) {
        CHECK(address_unpack(address_pack(&s), &again));
        CHECK(s.stage == again.stage && s.bound == again.bound &&
              s.connect_ms == again.connect_ms &&
              (!s.bound || s.bound_cid == again.bound_cid));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    struct sockaddr_vm vm;
    socklen_t len = size < sizeof(un) ? size : sizeof(un);
    uint64_t word = 0;
    void *exact;
    int r;

    memcpy(&word, data, size < sizeof(word) ? size : sizeof(word));
    check_word(word);
    /* As the kernel gives names: of their length, without an end. */
    if (size > offsetof(struct sockaddr_un, sun_path)) {
        memcpy(un.sun_path, data + offsetof(struct sockaddr_un, sun_path),
               len - offsetof(struct sockaddr_un, sun_path));
        check_name(&un, len);
        check_path(&un, len);
    }
    /* As a program gives them: exactly as much memory as it says. */
    exact = malloc(size ? size : 1);
    CHECK(exact);
    memcpy(exact, data, size);
    r = address_check(exact, size, &vm);
    CHECK(r == 0 || r == -EINVAL || r == -EAFNOSUPPORT || r == -EFAULT);
    free(exact);
    return 0;
}
