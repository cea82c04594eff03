/*
 * SPDX-License-Identifier: MIT
 *
 * Names and numbers in which the parent programs' library keeps what AF_VSOCK
 * has and unix sockets have not: there and back, and what nobody has written.
 */
#include "address.h"

#include <errno.h>
#include <glib.h>
#include <stddef.h>
#include <string.h>

#define PATH offsetof(struct sockaddr_un, sun_path)

static struct sockaddr_un named(const char *name, size_t n, socklen_t *len)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };

    g_assert_cmpuint(n, <=, sizeof(un.sun_path));
    memcpy(un.sun_path, name, n);
    *len = PATH + n;
    return un;
}

static void test_names(void)
{
    static const struct address_pair pairs[] = {
        { { 3, 1024 }, { 16, 5000 }, 1 },
        { { UINT32_MAX, UINT32_MAX }, { UINT32_MAX, UINT32_MAX }, UINT32_MAX },
        { { 0, 0 }, { 0, 0 }, 0 },
    };
    struct sockaddr_un un;
    struct address_pair p;
    socklen_t len;

    for (unsigned i = 0; i < G_N_ELEMENTS(pairs); i++) {
        memset(&p, 0xee, sizeof(p));
        len = address_to_name(&un, &pairs[i]);
        g_assert_cmpuint(len, <=, sizeof(un));
        g_assert_true(address_from_name(&un, len, &p));
        g_assert_cmpmem(&p, sizeof(p), &pairs[i], sizeof(p));
    }
}

/* As the backend's manual has it. */
static void test_names_of_the_backend(void)
{
    static const char name[] = "\0nitro-vsock/16:1025/3:5000/1234-17";
    struct address_pair p;
    socklen_t len;
    struct sockaddr_un un = named(name, sizeof(name) - 1, &len);

    g_assert_true(address_from_name(&un, len, &p));
    g_assert_cmpuint(p.here.cid, ==, 16);
    g_assert_cmpuint(p.here.port, ==, 1025);
    g_assert_cmpuint(p.there.cid, ==, 3);
    g_assert_cmpuint(p.there.port, ==, 5000);
    g_assert_cmpuint(p.until, ==, 0);
}

static void test_foreign_names(void)
{
#define NAME(s) { s, sizeof(s) - 1 }
    static const struct {
        const char *text;
        size_t n;
    } names[] = {
        NAME(""), NAME("\0"), NAME("\0x"), NAME("nitro-vsock/16:1/3:2/"),
        NAME("\0nitro-vsock/"), NAME("\0nitro-vsock/16:1/3:2"),
        NAME("\0nitro-vsock/16:1"), NAME("\0nitro-vsock/16/3/4"),
        NAME("\0nitro-vsock/:1/3:2/"), NAME("\0nitro-vsock/16:/3:2/"),
        NAME("\0nitro-vsock/-1:1/3:2/"), NAME("\0nitro-vsock/ 1:1/3:2/"),
        NAME("\0nitro-vsock/4294967296:1/3:2/"),
        NAME("\0nitro-vsock/99999999999999999999999:1/3:2/"),
        NAME("\0nitro-vsock/16:1/3:4294967296/"),
        NAME("\0nitro-vsocks/16:1/3:2/"), NAME("\0\0nitro-vsock/16:1/3:2/"),
    };
    struct address_pair p;
    struct sockaddr_un un;
    socklen_t len;

    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        un = named(names[i].text, names[i].n, &len);
        g_assert_false(address_from_name(&un, len, &p));
    }
    un = named("\0nitro-vsock/16:1/3:2/", 22, &len);
    g_assert_true(address_from_name(&un, len, &p));
    g_assert_false(address_from_name(&un, 0, &p));
    g_assert_false(address_from_name(&un, sizeof(un) + 1, &p));
    un.sun_family = AF_VSOCK;
    g_assert_false(address_from_name(&un, len, &p));
    /* Every prefix, so that nothing is read behind the end. */
    for (socklen_t n = 0; n < len; n++) {
        g_autofree void *exact = g_memdup2(&un, MAX(n, PATH));

        g_assert_false(address_from_name(exact, n, &p));
    }
#undef NAME
}

static void test_paths(void)
{
    char folder[sizeof(((struct sockaddr_un *)0)->sun_path) + 1];
    struct sockaddr_un un;
    uint32_t port;

    g_assert_true(address_home(&un, "/run/nitroctl", 16));
    g_assert_cmpstr(un.sun_path, ==, "/run/nitroctl/16");
    g_assert_true(address_enclave(&un, "/run/nitroctl", 16));
    g_assert_cmpstr(un.sun_path, ==, "/run/nitroctl/16/vsock");
    g_assert_true(address_port(&un, "/run/nitroctl", UINT32_MAX - 1));
    g_assert_cmpstr(un.sun_path, ==, "/run/nitroctl/ports/all_4294967294");
    g_assert_true(address_from_path(&un, sizeof(un), &port));
    g_assert_cmpuint(port, ==, UINT32_MAX - 1);
    g_assert_true(address_from_path(&un, PATH + 34, &port));
    g_assert_cmpuint(port, ==, UINT32_MAX - 1);

    /* "/ports/all_7" has 12 bytes, and a zero must follow. */
    memset(folder, 'f', sizeof(folder));
    folder[95] = 0;
    g_assert_true(address_port(&un, folder, 7));
    folder[95] = 'f';
    folder[96] = 0;
    g_assert_false(address_port(&un, folder, 7));
    folder[96] = 'f';
    folder[sizeof(folder) - 1] = 0;
    g_assert_false(address_enclave(&un, folder, 7));
}

static void test_foreign_paths(void)
{
    static const char *const paths[] = {
        "", "/", "/run/16/vsock", "/run/ports/all_", "/run/ports/all_x",
        "/run/ports/all_4294967296", "ports/all_7", "7", "_7", "/all_7",
        "/run/ports/all_7 ", "/run/16/vsock_7",
    };
    struct sockaddr_un un;
    socklen_t len;
    uint32_t port;

    for (unsigned i = 0; i < G_N_ELEMENTS(paths); i++) {
        un = named(paths[i], strlen(paths[i]), &len);
        g_assert_false(address_from_path(&un, len, &port));
    }
    un = named("\0/run/ports/all_7", 17, &len);
    g_assert_false(address_from_path(&un, len, &port));
}

/* The answers are those that Linux 6.18 gave to the same addresses. */
static void test_check(void)
{
    struct sockaddr_vm vm, in = {
        .svm_family = AF_VSOCK, .svm_cid = 16, .svm_port = 5000
    };
    const struct sockaddr *a = (const struct sockaddr *)&in;

    g_assert_cmpint(address_check(a, sizeof(in), &vm), ==, 0);
    g_assert_cmpuint(vm.svm_cid, ==, 16);
    g_assert_cmpuint(vm.svm_port, ==, 5000);
    g_assert_cmpint(address_check(a, 128, &vm), ==, 0);
    g_assert_cmpint(address_check(a, sizeof(in) - 1, &vm), ==, -EINVAL);
    in.svm_flags = 1;
    g_assert_cmpint(address_check(a, sizeof(in), &vm), ==, 0);
    in.svm_flags = 2;
    g_assert_cmpint(address_check(a, sizeof(in), &vm), ==, -EINVAL);
    in.svm_flags = 0;
    in.svm_reserved1 = 1;
    g_assert_cmpint(address_check(a, sizeof(in), &vm), ==, 0);
    in.svm_family = AF_UNIX;
    g_assert_cmpint(address_check(a, sizeof(in), &vm), ==, -EINVAL);
}

static void test_states(void)
{
    static const struct address_state states[] = {
        { STAGE_NEW, false, 0, 2000 },
        { STAGE_NEW, true, VMADDR_CID_ANY, UINT32_MAX },
        { STAGE_CONNECTING, true, VSOCK_CID_PARENT, 0 },
        { STAGE_CONNECTED, true, VMADDR_CID_HOST, ADDRESS_CONNECT_MS_MAX },
        { STAGE_DEVICE, false, 0, 0 },
    };
    struct address_state s;

    for (unsigned i = 0; i < G_N_ELEMENTS(states); i++) {
        uint64_t word = address_pack(&states[i]);

        g_assert_true(address_unpack(word, &s));
        g_assert_cmpint(s.stage, ==, states[i].stage);
        g_assert_cmpint(s.bound, ==, states[i].bound);
        g_assert_cmpuint(s.bound_cid, ==, states[i].bound_cid);
        g_assert_cmpuint(s.connect_ms, ==, states[i].connect_ms);
        g_assert_false(address_unpack(word ^ 1ull << 48, &s));
        g_assert_false(address_unpack(word | 0xf0ull << 40, &s));
        g_assert_false(address_unpack(word & ~(0xffull << 40), &s));
    }
    /* What a socket has by default, and what programs set. */
    g_assert_false(address_unpack(UINT64_MAX, &s));
    g_assert_false(address_unpack(UINT32_MAX, &s));
    g_assert_false(address_unpack(0, &s));
    g_assert_false(address_unpack(125000000, &s));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vsock-address/names", test_names);
    g_test_add_func("/vsock-address/names-of-the-backend",
                    test_names_of_the_backend);
    g_test_add_func("/vsock-address/foreign-names", test_foreign_names);
    g_test_add_func("/vsock-address/paths", test_paths);
    g_test_add_func("/vsock-address/foreign-paths", test_foreign_paths);
    g_test_add_func("/vsock-address/check", test_check);
    g_test_add_func("/vsock-address/states", test_states);
    return g_test_run();
}
