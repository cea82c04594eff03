/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for the nitro-enclave board
 *
 * What the board makes of its options and of an EIF, seen from outside: exit
 * status and message, fw_cfg, transports, the NSM's registers. No guest runs.
 * The images are made here, around a kernel that is nothing but a boot header;
 * the vsock backend is a thread that knows as much vhost-user as QEMU asks
 * for before a driver comes. Digests are computed with GLib, which the code
 * under test does not use for them.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "tests/qtest/libqos/fw_cfg.h"
#include "standard-headers/linux/qemu_fw_cfg.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "nitro-qtest.h"

#include <sys/socket.h>
#include <sys/un.h>

#define TRANSPORT_VSOCK 0
#define TRANSPORT_NSM 1

/* ---- the vsock backend ---- */

enum {                          /* docs/interop/vhost-user.rst of QEMU */
    GET_FEATURES = 1,
    GET_VRING_BASE = 11,
    GET_PROTOCOL_FEATURES = 15,
    GET_QUEUE_NUM = 17,
    GET_CONFIG = 24,
};
#define FLAG_REPLY 5            /* version 1, a reply */
#define FLAG_NEED_REPLY 8
#define F_VERSION_1 (1ULL << 32)
#define F_PROTOCOL_FEATURES (1ULL << 30)
#define PROTOCOL_F_MQ (1ULL << 0)
#define PROTOCOL_F_REPLY_ACK (1ULL << 3)
#define PROTOCOL_F_CONFIG (1ULL << 9)

typedef struct Message {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
    uint8_t payload[4096];
} Message;

#define MESSAGE_HEADER offsetof(Message, payload)

typedef struct Backend {
    char *dir;
    char *path;
    int listener;
    uint64_t protocol_features;
    GThread *thread;
} Backend;

/* Reads @len bytes; descriptors that come with them are closed. */
static bool backend_read(int fd, void *buf, size_t len)
{
    while (len) {
        char control[CMSG_SPACE(16 * sizeof(int))];
        struct iovec iov = { .iov_base = buf, .iov_len = len };
        struct msghdr msg = {
            .msg_iov = &iov, .msg_iovlen = 1,
            .msg_control = control, .msg_controllen = sizeof(control),
        };
        ssize_t n = recvmsg(fd, &msg, 0);
        struct cmsghdr *c;

        if (n <= 0) {
            return false;
        }
        for (c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
            int *fds = (int *)CMSG_DATA(c);
            size_t i;

            for (i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
                close(fds[i]);
            }
        }
        buf = (char *)buf + n;
        len -= n;
    }
    return true;
}

static void backend_reply(int fd, Message *msg, uint32_t size)
{
    msg->flags = FLAG_REPLY;
    msg->size = size;
    /* QEMU may be gone already: then there is nobody to answer. */
    (void)!send(fd, msg, MESSAGE_HEADER + size, MSG_NOSIGNAL);
}

static void *backend_thread(void *opaque)
{
    Backend *b = opaque;
    int fd = accept(b->listener, NULL, NULL);
    Message msg;

    while (fd >= 0 && backend_read(fd, &msg, MESSAGE_HEADER) &&
           msg.size <= sizeof(msg.payload) &&
           backend_read(fd, msg.payload, msg.size)) {
        uint64_t value = 0;
        bool reply = true;

        switch (msg.request) {
        case GET_FEATURES:
            value = F_VERSION_1 | F_PROTOCOL_FEATURES;
            break;
        case GET_PROTOCOL_FEATURES:
            value = b->protocol_features;
            break;
        case GET_QUEUE_NUM:
            value = 2;
            break;
        case GET_CONFIG:        /* offset, size, flags, then guest_cid */
            memset(msg.payload + 12, 0, 8);
            msg.payload[12] = 4;
            backend_reply(fd, &msg, msg.size);
            continue;
        case GET_VRING_BASE:
            backend_reply(fd, &msg, 8);
            continue;
        default:
            reply = msg.flags & FLAG_NEED_REPLY;
            break;
        }
        if (reply) {
            memcpy(msg.payload, &value, sizeof(value));
            backend_reply(fd, &msg, sizeof(value));
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return NULL;
}

static void backend_start(Backend *b, uint64_t protocol_features)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    b->dir = g_dir_make_tmp("nitro-enclave-XXXXXX", NULL);
    g_assert_nonnull(b->dir);
    b->path = g_strdup_printf("%s/vsock", b->dir);
    b->protocol_features = protocol_features;
    g_assert_cmpuint(strlen(b->path), <, sizeof(addr.sun_path));
    strcpy(addr.sun_path, b->path);
    b->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(b->listener, (struct sockaddr *)&addr, sizeof(addr)),
                    ==, 0);
    g_assert_cmpint(listen(b->listener, 1), ==, 0);
    b->thread = g_thread_new("backend", backend_thread, b);
}

static void backend_stop(Backend *b)
{
    shutdown(b->listener, SHUT_RDWR);   /* wakes accept() */
    g_thread_join(b->thread);
    close(b->listener);
    unlink(b->path);
    g_assert_cmpint(rmdir(b->dir), ==, 0);
    g_free(b->path);
    g_free(b->dir);
}

/* ---- the enclave image (AWS EIF specification; all big-endian) ---- */

#define EIF_HEADER 548
#define EIF_CRC 544
#define EIF_OFFSETS 28
#define EIF_SIZES 284

enum { EIF_KERNEL = 1, EIF_CMDLINE, EIF_RAMDISK, EIF_SIGNATURE, EIF_METADATA };

#define CMDLINE "console=ttyS0 panic=1"
#define RAMDISK_1 "INITINIT"
#define RAMDISK_2 "APPLAPPLAPPL!"

#define SETUP_BYTES 1024
#define KERNEL_BYTES 8192

static void put_be(uint8_t *p, uint64_t value, int bytes)
{
    while (bytes--) {
        p[bytes] = value;
        value >>= 8;
    }
}

/* CRC-32/ISO-HDLC, bit by bit. */
static uint32_t crc32_update(uint32_t crc, const uint8_t *p, size_t len)
{
    int i;

    while (len--) {
        crc ^= *p++;
        for (i = 0; i < 8; i++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
        }
    }
    return crc;
}

/* A bzImage as far as its header goes: Documentation/arch/x86/boot.rst. */
static void make_kernel(uint8_t kernel[KERNEL_BYTES])
{
    memset(kernel, 0, KERNEL_BYTES);
    memset(kernel + SETUP_BYTES, 0x4b, KERNEL_BYTES - SETUP_BYTES);
    kernel[0x1f1] = SETUP_BYTES / 512 - 1;
    stl_le_p(kernel + 0x1f4, (KERNEL_BYTES - SETUP_BYTES) / 16);
    stw_le_p(kernel + 0x1fe, 0xaa55);
    memcpy(kernel + 0x202, "HdrS", 4);
    stw_le_p(kernel + 0x206, 0x20f);            /* protocol 2.15 */
    kernel[0x211] = 1;                          /* loaded high */
    stl_le_p(kernel + 0x22c, 0x7fffffff);       /* initrd_addr_max */
    stl_le_p(kernel + 0x230, 2 * MiB);          /* alignment */
    kernel[0x234] = 1;                          /* relocatable */
    stl_le_p(kernel + 0x238, 2047);             /* cmdline_size */
    stq_le_p(kernel + 0x258, 16 * MiB);         /* pref_address */
    stl_le_p(kernel + 0x260, 4 * MiB);          /* init_size */
}

static void eif_add(GByteArray *eif, uint16_t type, const void *data,
                    size_t len)
{
    unsigned int n = eif->data[27];
    uint8_t header[12] = { 0 };

    put_be(eif->data + EIF_OFFSETS + 8 * n, eif->len, 8);
    put_be(eif->data + EIF_SIZES + 8 * n, len, 8);
    eif->data[27]++;
    put_be(header, type, 2);
    put_be(header + 4, len, 8);
    g_byte_array_append(eif, header, sizeof(header));
    g_byte_array_append(eif, data, len);
}

static void eif_finish(GByteArray *eif)
{
    uint32_t crc = crc32_update(~0U, eif->data, EIF_CRC);

    crc = ~crc32_update(crc, eif->data + EIF_HEADER, eif->len - EIF_HEADER);
    put_be(eif->data + EIF_CRC, crc, 4);
}

static GByteArray *make_eif(const uint8_t *kernel, const char *cmdline)
{
    static const uint8_t header[EIF_HEADER] = { '.', 'e', 'i', 'f', 0, 4 };
    GByteArray *eif = g_byte_array_new();

    g_byte_array_append(eif, header, sizeof(header));
    eif_add(eif, EIF_KERNEL, kernel, KERNEL_BYTES);
    eif_add(eif, EIF_CMDLINE, cmdline, strlen(cmdline));
    eif_add(eif, EIF_METADATA, "{}", 2);
    eif_add(eif, EIF_RAMDISK, RAMDISK_1, strlen(RAMDISK_1));
    eif_add(eif, EIF_RAMDISK, RAMDISK_2, strlen(RAMDISK_2));
    eif_finish(eif);
    return eif;
}

/* ---- an enclave: image and backend ---- */

typedef struct Enclave {
    Backend backend;
    char *eif;
    char *chardev;              /* "-chardev ..." */
    uint8_t kernel[KERNEL_BYTES];
} Enclave;

static char *write_temporary(const void *data, size_t len)
{
    char *name;
    int fd = g_file_open_tmp("nitro-enclave-XXXXXX", &name, NULL);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(write(fd, data, len), ==, len);
    close(fd);
    return name;
}

static void enclave_init_eif(Enclave *e, GByteArray *eif)
{
    backend_start(&e->backend, PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK |
                  PROTOCOL_F_CONFIG);
    e->eif = write_temporary(eif->data, eif->len);
    e->chardev = g_strdup_printf("-chardev socket,id=c,path=%s",
                                 e->backend.path);
}

static void enclave_init(Enclave *e)
{
    g_autoptr(GByteArray) eif = NULL;

    make_kernel(e->kernel);
    eif = make_eif(e->kernel, CMDLINE);
    enclave_init_eif(e, eif);
}

/* @machine: ",OPTION=VALUE..." for -M; @args: the rest of the command line. */
static QTestState *enclave_start(Enclave *e, const char *machine,
                                 const char *args)
{
    return qtest_initf("%s-nodefaults -M nitro-enclave,vsock=c%s %s "
                       "-kernel %s %s", nitro_firmware_args(), machine,
                       e->chardev, e->eif, args);
}

static void enclave_clear(Enclave *e)
{
    backend_stop(&e->backend);
    unlink(e->eif);
    g_free(e->eif);
    g_free(e->chardev);
}

/* QEMU must end with status 1 and one line that holds @message. */
static void expect_refusal(const char *args, const char *message)
{
    g_autofree char *err = NULL;
    g_autofree char *line = g_strdup_printf("-nodefaults %s", args);
    int status = nitro_qemu_run(line, NULL, &err);
    const char *said;

    if (status != 1 || !strstr(err, message)) {
        g_test_message("status %d: %s", status, err);
    }
    g_assert_cmpint(status, ==, 1);
    g_assert_nonnull(strstr(err, message));
    said = err;
    if (g_str_has_prefix(said, "==")) {
        /* AddressSanitizer says first that it does not know coroutines. */
        said = strchr(said, '\n') + 1;
    }
    g_assert_true(strchr(said, '\n') == said + strlen(said) - 1);
}

/* ---- tests ---- */

static void test_help(void)
{
    static const char *const options[] = {
        "vsock=", "id=", "parent-role=", "parent-id=", "cert-chain=",
        "cert-key=", "debug-mode=", "eif-signature=", "document-form=",
    };
    g_autofree char *out = NULL, *err = NULL;
    int i;

    g_assert_cmpint(nitro_qemu_run("-M nitro-enclave,help", &out, &err), ==,
                    0);
    for (i = 0; i < ARRAY_SIZE(options); i++) {
        g_autofree char *start = g_strdup_printf("\n  %s", options[i]);
        const char *line = strstr(out, start);

        g_assert_nonnull(line);
        g_assert_true(g_regex_match_simple("^\\n  \\S+ +- \\w{3}", line, 0, 0));
    }
}

static void test_options(void)
{
    g_autofree char *hundred = g_strnfill(100, 'x');
    g_autofree char *long_id = g_strdup_printf("id=%s", hundred);
    const struct {
        const char *option;
        const char *message;
    } bad[] = {
        { "id=", "id='' has 0 characters: 1 to 99" },
        { long_id, "has 100 characters: 1 to 99" },
        { "id='a b'", "id has a byte 0x20 at position 1" },
        { "id=\xc3\xa4", "id has a byte 0xc3 at position 0" },
        { "parent-id=", "parent-id='' has 0 characters" },
        { "parent-id='i- 0'", "parent-id has a byte 0x20 at position 2" },
        { "parent-role=", "parent-role='' has 0 characters" },
        { "parent-role='a\n'", "parent-role has a byte 0x0a at position 1" },
        { "eif-signature=maybe", "maybe" },
        { "document-form=2022", "2022" },
        { "acpi=on,ioapic2=on", "ioapic2=on is not supported" },
        { "cert-key=/dev/null", "(options)" },
        { "cert-chain=/nonexistent,cert-key=/nonexistent", "(unreadable)" },
    };
    Enclave e;
    int i;

    expect_refusal("-M nitro-enclave", "needs the option vsock");
    expect_refusal("-M nitro-enclave,vsock=nobody", "no chardev 'nobody'");
    expect_refusal("-M nitro-enclave,vsock=n -chardev null,id=n",
                   "chardev 'n' is not a unix socket");
    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *args = NULL;

        enclave_init(&e);
        args = g_strdup_printf("-M nitro-enclave,vsock=c,%s %s -kernel %s",
                               bad[i].option, e.chardev, e.eif);
        expect_refusal(args, bad[i].message);
        enclave_clear(&e);
    }
}

/* @args follow a good machine and a good chardev. */
static void refuse_arguments(bool kernel, const char *args,
                             const char *message)
{
    g_autofree char *line = NULL;
    Enclave e;

    enclave_init(&e);
    line = g_strdup_printf("-M nitro-enclave,vsock=c %s %s %s %s", e.chardev,
                           kernel ? "-kernel" : "", kernel ? e.eif : "",
                           args);
    expect_refusal(line, message);
    enclave_clear(&e);
}

static void test_kernel(void)
{
    refuse_arguments(false, "", "use -kernel FILE.eif");
    refuse_arguments(false, "-kernel /nonexistent.eif",
                     "'/nonexistent.eif': No such file or directory");
    refuse_arguments(true, "-initrd /nonexistent",
                     "'/nonexistent': No such file or directory");
    refuse_arguments(true, "-dtb /dev/null", "-dtb is not supported");
    refuse_arguments(false, "-kernel /dev/null", "(io)");
}

/* A backend that has no configuration space cannot tell the guest its CID. */
static void test_bad_backend(void)
{
    g_autofree char *args = NULL;
    Enclave e;

    enclave_init(&e);
    backend_stop(&e.backend);
    backend_start(&e.backend, PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK);
    args = g_strdup_printf("-M nitro-enclave,vsock=c "
                           "-chardev socket,id=c,path=%s -kernel %s",
                           e.backend.path, e.eif);
    expect_refusal(args, "the backend behind chardev 'c' does not serve");
    enclave_clear(&e);
}

/* What QEMU itself says when nobody listens. */
static void test_no_backend(void)
{
    refuse_arguments(true, "-chardev socket,id=d,path=/nonexistent",
                     "/nonexistent");
}

static void damage(GByteArray *eif, const char *how)
{
    uint8_t *p = eif->data;

    if (g_str_equal(how, "file-too-short")) {
        g_byte_array_set_size(eif, EIF_HEADER - 1);
    } else if (g_str_equal(how, "bad-magic")) {
        p[0] = 'E';
    } else if (g_str_equal(how, "bad-version")) {
        p[5] = 5;
    } else if (g_str_equal(how, "bad-arch")) {
        p[7] |= 1;
    } else if (g_str_equal(how, "section-offset")) {
        p[EIF_OFFSETS + 15]++;
    } else if (g_str_equal(how, "section-beyond-file")) {
        g_byte_array_set_size(eif, eif->len - 1);
    } else if (g_str_equal(how, "trailing-bytes")) {
        g_byte_array_append(eif, p, 1);
    } else if (g_str_equal(how, "crc-mismatch")) {
        p[eif->len - 1] ^= 1;
    } else {
        g_assert_not_reached();
    }
}

/* The rules of the format have their own tests; here: they reach the user. */
static void test_bad_eif(const void *opaque)
{
    const char *rule = opaque;
    g_autofree char *message = g_strdup_printf(" (%s)\n", rule);
    g_autoptr(GByteArray) eif = NULL;
    g_autofree char *args = NULL;
    Enclave e;

    make_kernel(e.kernel);
    if (g_str_equal(rule, "kernel-not-bzimage")) {
        e.kernel[0x202] = 'h';
    } else if (g_str_equal(rule, "kernel-setup-size")) {
        e.kernel[0x1f1] = 200;
    } else if (g_str_equal(rule, "kernel-too-large")) {
        stl_le_p(e.kernel + 0x260, 113 * MiB);  /* 16 MiB further up: */
    } else if (g_str_equal(rule, "initramfs-too-large")) {
        stl_le_p(e.kernel + 0x260, 112 * MiB);  /* all there is of 128 MiB */
    } else if (g_str_equal(rule, "cmdline-too-long")) {
        stl_le_p(e.kernel + 0x238, strlen(CMDLINE) + 40);
    }
    eif = make_eif(e.kernel, CMDLINE);
    if (!g_str_has_prefix(rule, "kernel-") &&
        !g_str_equal(rule, "initramfs-too-large") &&
        !g_str_equal(rule, "cmdline-too-long")) {
        damage(eif, rule);
    }
    enclave_init_eif(&e, eif);
    args = g_strdup_printf("-M nitro-enclave,vsock=c %s -kernel %s -m 128M",
                           e.chardev, e.eif);
    expect_refusal(args, message);
    enclave_clear(&e);
}

/*
 * The device entries count: a command line that the kernel would take alone
 * is refused when they no longer fit, and taken when they just do.
 */
static void test_cmdline_limit(void)
{
    static const char entries[] = " virtio_mmio.device=512@0xfeb00000:5"
                                  " virtio_mmio.device=512@0xfeb00200:6";
    int missing;

    for (missing = 0; missing < 2; missing++) {
        g_autoptr(GByteArray) eif = NULL;
        Enclave e;

        make_kernel(e.kernel);
        stl_le_p(e.kernel + 0x238,
                 strlen(CMDLINE) + strlen(" quiet") + strlen(entries) -
                 missing);
        eif = make_eif(e.kernel, CMDLINE);
        enclave_init_eif(&e, eif);
        if (missing) {
            g_autofree char *args = g_strdup_printf(
                "-M nitro-enclave,vsock=c %s -kernel %s -append quiet",
                e.chardev, e.eif);

            expect_refusal(args, "(cmdline-too-long)");
        } else {
            qtest_quit(enclave_start(&e, "", "-append quiet"));
        }
        enclave_clear(&e);
    }
}

static void test_ram_refused(void)
{
    g_autofree char *dir = g_dir_make_tmp("nitro-enclave-XXXXXX", NULL);
    g_autofree char *mem_path = g_strdup_printf("-mem-path %s", dir);

    refuse_arguments(true, "-m 64M -M memory-backend=r "
                     "-object memory-backend-memfd,id=r,size=64M,share=off",
                     "memory-backend 'r' is not shared");
    refuse_arguments(true, "-m 64M -M memory-backend=r "
                     "-object memory-backend-ram,id=r,size=64M",
                     "memory-backend 'r' is not shared");
    if (NITRO_REFUSES_MEM_PATH) {
        refuse_arguments(true, mem_path, "-mem-path is not supported");
    }
    refuse_arguments(true, "-m 64M "
                     "-object memory-backend-memfd,id=r,size=64M,share=on "
                     "-numa node,memdev=r", "-numa memdev is not supported");
    rmdir(dir);
}

static void check_only_backend(QTestState *qts, const char *id, uint64_t size)
{
    QDict *resp = qtest_qmp(qts, "{ 'execute': 'query-memdev' }");
    QList *list = qdict_get_qlist(resp, "return");
    QDict *memdev = qobject_to(QDict, qlist_peek(list));

    g_assert_cmpuint(qlist_size(list), ==, 1);
    g_assert_cmpstr(qdict_get_str(memdev, "id"), ==, id);
    g_assert_cmpuint(qdict_get_int(memdev, "size"), ==, size);
    g_assert_true(qdict_get_bool(memdev, "share"));
    qobject_unref(resp);
}

static void test_ram_shared(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "-m 128M");
    check_only_backend(qts, "nitro-enclave.ram", 128 * MiB);
    qtest_quit(qts);
    enclave_clear(&e);

    enclave_init(&e);
    qts = enclave_start(&e, ",memory-backend=mine", "-m 64M "
                        "-object memory-backend-memfd,id=mine,size=64M,"
                        "share=on");
    check_only_backend(qts, "mine", 64 * MiB);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* 4 GiB: three below the devices, one above. */
static void test_ram_above_4g(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "-m 4G");
    qtest_writeq(qts, 3 * GiB - 8, 0x1122334455667788);
    qtest_writeq(qts, 5 * GiB - 8, 0x99aabbccddeeff00);
    g_assert_cmphex(qtest_readq(qts, 3 * GiB - 8), ==, 0x1122334455667788);
    g_assert_cmphex(qtest_readq(qts, 5 * GiB - 8), ==, 0x99aabbccddeeff00);
    qtest_quit(qts);
    enclave_clear(&e);
}

static void test_devices(const void *opaque)
{
    QTestState *qts;
    Enclave e;
    int i;

    enclave_init(&e);
    qts = enclave_start(&e, opaque, "");
    for (i = 0; i < NITRO_TRANSPORTS; i++) {
        uint64_t base = NITRO_TRANSPORT(i);

        g_assert_cmphex(qtest_readl(qts, base + VIRTIO_MMIO_MAGIC_VALUE), ==,
                        0x74726976);
        g_assert_cmpuint(qtest_readl(qts, base + VIRTIO_MMIO_VERSION), ==, 2);
        g_assert_cmpuint(qtest_readl(qts, base + VIRTIO_MMIO_DEVICE_ID), ==,
                         i == TRANSPORT_VSOCK ? 19 :
                         i == TRANSPORT_NSM ? 33 : 0);
    }
    g_assert_cmpuint(qtest_readq(qts, NITRO_TRANSPORT(TRANSPORT_VSOCK) +
                                 VIRTIO_MMIO_CONFIG), ==, 4);
    qtest_quit(qts);
    enclave_clear(&e);
}

static uint32_t fw_cfg_u32(QFWCFG *fw_cfg, uint16_t key)
{
    return qfw_cfg_get_u32(fw_cfg, key);
}

/* What the firmware will find: the parts of the image, and the additions. */
static void test_boot_data(void)
{
    static const char extra[] = "EXTRA";
    /* RAMDISK_2 ends at 21 bytes; an archive begins at a multiple of 4. */
    static const char initramfs[] = RAMDISK_1 RAMDISK_2 "\0\0\0" "EXTRA";
    static const char first[] = " virtio_mmio.device=512@0xfeb00000:5";
    static const char second[] = " virtio_mmio.device=512@0xfeb00200:6";
    g_autofree char *initrd = write_temporary(extra, strlen(extra));
    g_autofree char *args = g_strdup_printf("-append quiet -initrd %s",
                                            initrd);
    uint8_t data[KERNEL_BYTES];
    uint32_t size;
    QFWCFG *fw_cfg;
    QTestState *qts;
    Enclave e;
    char *p;

    enclave_init(&e);
    qts = enclave_start(&e, "", args);
    fw_cfg = pc_fw_cfg_init(qts);

    size = fw_cfg_u32(fw_cfg, FW_CFG_KERNEL_SIZE);
    g_assert_cmpuint(size, ==, KERNEL_BYTES - SETUP_BYTES);
    qfw_cfg_get(fw_cfg, FW_CFG_KERNEL_DATA, data, size);
    g_assert_cmpmem(data, size, e.kernel + SETUP_BYTES, size);

    size = fw_cfg_u32(fw_cfg, FW_CFG_INITRD_SIZE);
    g_assert_cmpuint(size, ==, sizeof(initramfs) - 1);
    qfw_cfg_get(fw_cfg, FW_CFG_INITRD_DATA, data, size);
    g_assert_cmpmem(data, size, initramfs, size);

    size = fw_cfg_u32(fw_cfg, FW_CFG_CMDLINE_SIZE);
    g_assert_cmpuint(size, <, sizeof(data));
    qfw_cfg_get(fw_cfg, FW_CFG_CMDLINE_DATA, data, size);
    g_assert_cmpuint(size, ==, strlen(CMDLINE " quiet") + strlen(first) +
                     strlen(second) + 1);
    g_assert_cmpuint(data[size - 1], ==, 0);
    p = (char *)data;
    g_assert_true(g_str_has_prefix(p, CMDLINE " quiet virtio_mmio"));
    g_assert_nonnull(strstr(p, first));
    g_assert_nonnull(strstr(p, second));

    pc_fw_cfg_uninit(fw_cfg);
    qtest_quit(qts);
    enclave_clear(&e);
    unlink(initrd);
}

/* With ACPI the devices are in its tables, not on the command line. */
static void test_boot_data_acpi(void)
{
    char data[256];
    uint32_t size;
    QFWCFG *fw_cfg;
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, ",acpi=on", "");
    fw_cfg = pc_fw_cfg_init(qts);
    size = fw_cfg_u32(fw_cfg, FW_CFG_CMDLINE_SIZE);
    g_assert_cmpuint(size, <=, sizeof(data));
    qfw_cfg_get(fw_cfg, FW_CFG_CMDLINE_DATA, data, size);
    g_assert_cmpmem(data, size, CMDLINE, strlen(CMDLINE) + 1);
    pc_fw_cfg_uninit(fw_cfg);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* Lines of the IOAPIC: 5 and 6, or from 16 on with ACPI. */
static void test_irq(const void *opaque)
{
    const char *machine = opaque;
    int nsm_irq = *machine ? 17 : 6;
    QTestState *qts;
    uint8_t resp[64];
    NsmQueue q;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, machine, "");
    qtest_irq_intercept_in(qts, "/machine/ioapic");
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    nsm_desc(&q, 0, NSM_BUF(0), 0, 0, 0);
    nsm_desc(&q, 1, NSM_BUF(1), sizeof(resp), VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 0);
    nsm_avail(&q, 1);
    g_assert_false(qtest_get_irq(qts, nsm_irq));
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    g_assert_true(qtest_get_irq(qts, nsm_irq));
    g_assert_true(nsm_interrupt(&q));
    g_assert_false(qtest_get_irq(qts, nsm_irq));
    qtest_quit(qts);
    enclave_clear(&e);
}

/* PCR = SHA384(48 zero bytes || @data): AWS user guide, measurements. */
static char *extend_zero(const void *data, size_t len)
{
    static const uint8_t zero[48];
    GChecksum *sum = g_checksum_new(G_CHECKSUM_SHA384);
    char *hex;

    g_checksum_update(sum, zero, sizeof(zero));
    g_checksum_update(sum, data, len);
    hex = g_strdup(g_checksum_get_string(sum));
    g_checksum_free(sum);
    return hex;
}

/* The same of SHA384(parts one after the other). */
static char *measure(const NsmBytes *part, int n)
{
    GChecksum *sum = g_checksum_new(G_CHECKSUM_SHA384);
    uint8_t digest[48];
    gsize len = sizeof(digest);

    while (n--) {
        g_checksum_update(sum, part->data, part->len);
        part++;
    }
    g_checksum_get_digest(sum, digest, &len);
    g_checksum_free(sum);
    return extend_zero(digest, len);
}

static void expect_pcr(NsmQueue *q, uint8_t index, const char *expected)
{
    g_autofree char *hex = NULL;
    uint8_t pcr[48];
    bool lock;

    nsm_describe_pcr(q, index, pcr, &lock);
    hex = nitro_hex(pcr, 48);
    g_assert_cmpstr(hex, ==, expected);
    g_assert_cmpint(lock, ==, index < 16);
}

static const char zero_pcr[] =
    "000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000";

static void check_measured(Enclave *e, QTestState *qts, bool extra,
                           const char *pcr3, const char *pcr4)
{
    const NsmBytes part[] = {
        { e->kernel, KERNEL_BYTES }, BYTES(CMDLINE), BYTES(RAMDISK_1),
        BYTES(RAMDISK_2), BYTES("EXTRA"),
    };
    g_autofree char *pcr0 = measure(part, 4 + extra);
    g_autofree char *pcr1 = measure(part, 3);
    g_autofree char *pcr2 = measure(part + 3, 1 + extra);
    NsmQueue q;
    int i;

    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    expect_pcr(&q, 0, pcr0);
    expect_pcr(&q, 1, pcr1);
    expect_pcr(&q, 2, pcr2);
    expect_pcr(&q, 3, pcr3);
    expect_pcr(&q, 4, pcr4);
    for (i = 5; i < 32; i++) {
        expect_pcr(&q, i, zero_pcr);
    }
}

static void test_pcr(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    check_measured(&e, qts, false, zero_pcr, zero_pcr);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* printf %s ROLE | (head -c48 /dev/zero; cat) | sha384sum, and the id's */
static void test_pcr_parent(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, ",parent-id=i-1234567890abcdef0,"
                        "parent-role=arn:aws:iam::123456789012:role/Webserver",
                        "-append ignored");
    check_measured(&e, qts, false,
        "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75"
        "329dccd99aa5f6ef4fc1f1a452e315b9e98f9e312e6921e6",
        "08f996b5d43e047a9eb51e7f548bfee7e164fd7dc8f65541"
        "f2ac09d6545ac812719327281c401a67a10fcba87ae79ce0");
    qtest_quit(qts);
    enclave_clear(&e);
}

/* -initrd is measured like an application's ramdisk. */
static void test_pcr_initrd(void)
{
    g_autofree char *initrd = write_temporary("EXTRA", 5);
    g_autofree char *args = g_strdup_printf("-initrd %s", initrd);
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", args);
    check_measured(&e, qts, true, zero_pcr, zero_pcr);
    qtest_quit(qts);
    enclave_clear(&e);
    unlink(initrd);
}

/* Debug mode hides the image, not the parent: PCR3 and PCR4 stay. */
static void test_pcr_debug(void)
{
    g_autofree char *pcr4 = extend_zero("i-1", 3);
    QTestState *qts;
    NsmQueue q;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, ",debug-mode=on,parent-id=i-1", "");
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    expect_pcr(&q, 0, zero_pcr);
    expect_pcr(&q, 1, zero_pcr);
    expect_pcr(&q, 2, zero_pcr);
    expect_pcr(&q, 4, pcr4);
    qtest_quit(qts);
    enclave_clear(&e);
}

static char *qom_get_str(QTestState *qts, const char *path,
                         const char *property)
{
    QDict *resp = qtest_qmp(qts, "{ 'execute': 'qom-get', 'arguments': {"
                            " 'path': %s, 'property': %s } }", path, property);
    char *value = g_strdup(qdict_get_str(resp, "return"));

    qobject_unref(resp);
    return value;
}

static void check_id(const char *machine, const char *pattern)
{
    g_autofree char *id = NULL;
    uint8_t resp[0x3000];
    QTestState *qts;
    size_t len;
    NsmQueue q;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, machine, "");
    id = qom_get_str(qts, "/machine", "id");
    g_assert_true(g_regex_match_simple(pattern, id, 0, 0));
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    len = nsm_command(&q, BYTES("\x6b" "DescribeNSM"), resp, sizeof(resp));
    g_assert_nonnull(memmem(resp, len, id, strlen(id)));
    qtest_quit(qts);
    enclave_clear(&e);
}

static void test_id(void)
{
    check_id("", "^i-0{16}-enc[0-9a-f]{16}$");
    check_id(",parent-id=i-1234567890abcdef0",
             "^i-1234567890abcdef0-enc[0-9a-f]{16}$");
    check_id(",id=hello-world", "^hello-world$");
}

static void test_cpus(void)
{
    g_autofree char *type = NULL;
    QTestState *qts;
    QDict *resp;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "-smp 2");
    resp = qtest_qmp(qts, "{ 'execute': 'query-cpus-fast' }");
    g_assert_cmpuint(qlist_size(qdict_get_qlist(resp, "return")), ==, 2);
    qobject_unref(resp);
    type = qom_get_str(qts, "/machine/unattached/device[0]", "type");
    g_assert_cmpstr(type, ==, "max-x86_64-cpu");
    qtest_quit(qts);
    enclave_clear(&e);
}

static void check_ends(QTestState *qts, const char *reason)
{
    QDict *event = qtest_qmp_eventwait_ref(qts, "SHUTDOWN");

    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(event, "data"), "reason"),
                    ==, reason);
    qobject_unref(event);
    qtest_set_expected_status(qts, 0);
    qtest_wait_qemu(qts);
    qtest_quit(qts);
}

/* reboot=k: the port takes the command, and QEMU ends, orderly. */
static void test_reset_port(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    /* Bit 1 clear: room for a command; bit 0 set: see the board. */
    g_assert_cmphex(qtest_inb(qts, 0x64) & 3, ==, 1);
    /* Other commands, to turn the mouse on and to read a port, do nothing. */
    qtest_outb(qts, 0x64, 0xa8);
    qtest_outb(qts, 0x64, 0xd0);
    qtest_outb(qts, 0x64, 0xff);
    g_assert_cmphex(qtest_inb(qts, 0x64) & 3, ==, 1);
    qtest_outb(qts, 0x64, 0xfe);
    check_ends(qts, "guest-reset");
    enclave_clear(&e);
}

static void test_system_reset(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    qtest_qmp_assert_success(qts, "{ 'execute': 'system_reset' }");
    check_ends(qts, "host-qmp-system-reset");
    enclave_clear(&e);
}

static void test_migration_refused(void)
{
    QTestState *qts;
    QDict *error;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    error = qtest_qmp_assert_failure_ref(qts, "{ 'execute': 'migrate',"
        " 'arguments': { 'uri': 'unix:/nonexistent' } }");
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"),
                            "vhost-user-vsock"));
    qobject_unref(error);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* The machine tells the names that the user gave, not the ones it passed on. */
static void test_names(void)
{
    g_autofree char *kernel = NULL, *append = NULL;
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    kernel = qom_get_str(qts, "/machine", "kernel");
    g_assert_cmpstr(kernel, ==, e.eif);
    append = qom_get_str(qts, "/machine", "append");
    g_assert_cmpstr(append, ==, CMDLINE);
    qtest_quit(qts);
    enclave_clear(&e);
}

int main(int argc, char **argv)
{
    static const char *const rules[] = {
        "file-too-short", "bad-magic", "bad-version", "bad-arch",
        "section-offset", "section-beyond-file", "trailing-bytes",
        "crc-mismatch", "kernel-not-bzimage", "kernel-setup-size",
        "kernel-too-large", "cmdline-too-long", "initramfs-too-large",
    };
    int i;

    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/nitro-enclave/help", test_help);
    qtest_add_func("/nitro-enclave/options", test_options);
    qtest_add_func("/nitro-enclave/kernel", test_kernel);
    qtest_add_func("/nitro-enclave/bad-backend", test_bad_backend);
    qtest_add_func("/nitro-enclave/no-backend", test_no_backend);
    for (i = 0; i < ARRAY_SIZE(rules); i++) {
        g_autofree char *path = g_strdup_printf("/nitro-enclave/eif/%s",
                                                rules[i]);

        qtest_add_data_func(path, rules[i], test_bad_eif);
    }
    qtest_add_func("/nitro-enclave/eif/cmdline-limit", test_cmdline_limit);
    qtest_add_func("/nitro-enclave/ram/refused", test_ram_refused);
    qtest_add_func("/nitro-enclave/ram/shared", test_ram_shared);
    qtest_add_func("/nitro-enclave/ram/above-4g", test_ram_above_4g);
    qtest_add_data_func("/nitro-enclave/devices", "", test_devices);
    qtest_add_data_func("/nitro-enclave/devices/acpi", ",acpi=on",
                        test_devices);
    qtest_add_func("/nitro-enclave/boot-data", test_boot_data);
    qtest_add_func("/nitro-enclave/boot-data/acpi", test_boot_data_acpi);
    qtest_add_data_func("/nitro-enclave/irq", "", test_irq);
    qtest_add_data_func("/nitro-enclave/irq/acpi", ",acpi=on", test_irq);
    qtest_add_func("/nitro-enclave/pcr/image", test_pcr);
    qtest_add_func("/nitro-enclave/pcr/parent", test_pcr_parent);
    qtest_add_func("/nitro-enclave/pcr/initrd", test_pcr_initrd);
    qtest_add_func("/nitro-enclave/pcr/debug", test_pcr_debug);
    qtest_add_func("/nitro-enclave/id", test_id);
    qtest_add_func("/nitro-enclave/cpus", test_cpus);
    qtest_add_func("/nitro-enclave/reset/port", test_reset_port);
    qtest_add_func("/nitro-enclave/reset/qmp", test_system_reset);
    qtest_add_func("/nitro-enclave/migration", test_migration_refused);
    qtest_add_func("/nitro-enclave/names", test_names);

    return g_test_run();
}
