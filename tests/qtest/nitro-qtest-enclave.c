/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An enclave for the qtests of the nitro-enclave board
 *
 * See the header. What vhost-user and the image look like stands here a second
 * time, apart from the code under test.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "nitro-qtest-enclave.h"

#include <sys/socket.h>
#include <sys/un.h>

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

typedef struct Message {
    uint32_t request;
    uint32_t flags;
    uint32_t size;
    uint8_t payload[4096];
} Message;

#define MESSAGE_HEADER offsetof(Message, payload)

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

void backend_start(Backend *b, uint64_t protocol_features)
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

void backend_stop(Backend *b)
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

enum { EIF_KERNEL = 1, EIF_CMDLINE, EIF_RAMDISK, EIF_SIGNATURE, EIF_METADATA };

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

#ifdef NITRO_QTEST_ARM
#define EIF_FLAGS 1

/* An Image as far as its header goes: Documentation/arch/arm64/booting.rst. */
void make_kernel(uint8_t kernel[KERNEL_BYTES])
{
    memset(kernel, 0x4b, KERNEL_BYTES);
    stq_le_p(kernel + 8, 2 * MiB);              /* text_offset */
    stq_le_p(kernel + 16, 4 * MiB);             /* image_size */
    stq_le_p(kernel + 24, 0xa);                 /* flags */
    memcpy(kernel + 56, "ARM\x64", 4);
}
#else
#define EIF_FLAGS 0

/* A bzImage as far as its header goes: Documentation/arch/x86/boot.rst. */
void make_kernel(uint8_t kernel[KERNEL_BYTES])
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
#endif

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

GByteArray *make_eif(const uint8_t *kernel, const char *cmdline)
{
    static const uint8_t header[EIF_HEADER] = {
        '.', 'e', 'i', 'f', 0, 4, 0, EIF_FLAGS
    };
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

char *write_temporary(const void *data, size_t len)
{
    char *name;
    int fd = g_file_open_tmp("nitro-enclave-XXXXXX", &name, NULL);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(write(fd, data, len), ==, len);
    close(fd);
    return name;
}

void enclave_init_eif(Enclave *e, GByteArray *eif)
{
    backend_start(&e->backend, PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK |
                  PROTOCOL_F_CONFIG);
    e->eif = write_temporary(eif->data, eif->len);
    e->chardev = g_strdup_printf("-chardev socket,id=c,path=%s",
                                 e->backend.path);
}

void enclave_init(Enclave *e)
{
    g_autoptr(GByteArray) eif = NULL;

    make_kernel(e->kernel);
    eif = make_eif(e->kernel, CMDLINE);
    enclave_init_eif(e, eif);
}

QTestState *enclave_start(Enclave *e, const char *machine, const char *args)
{
    return qtest_initf("%s-nodefaults -M nitro-enclave,vsock=c%s %s "
                       "-kernel %s %s", nitro_firmware_args(), machine,
                       e->chardev, e->eif, args);
}

void enclave_clear(Enclave *e)
{
    backend_stop(&e->backend);
    unlink(e->eif);
    g_free(e->eif);
    g_free(e->chardev);
}

/* ---- its registers ---- */

/* PCR = SHA384(48 zero bytes || @data): AWS user guide, measurements. */
char *enclave_extend_zero(const void *data, size_t len)
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
    return enclave_extend_zero(digest, len);
}

void enclave_expect_pcr(NsmQueue *q, uint8_t index, const char *expected)
{
    g_autofree char *hex = NULL;
    uint8_t pcr[48];
    bool lock;

    nsm_describe_pcr(q, index, pcr, &lock);
    hex = nitro_hex(pcr, 48);
    g_assert_cmpstr(hex, ==, expected);
    g_assert_cmpint(lock, ==, index < 16);
}

const char enclave_zero_pcr[] =
    "000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000";

void enclave_expect_measured(Enclave *e, QTestState *qts, bool extra,
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
    enclave_expect_pcr(&q, 0, pcr0);
    enclave_expect_pcr(&q, 1, pcr1);
    enclave_expect_pcr(&q, 2, pcr2);
    enclave_expect_pcr(&q, 3, pcr3);
    enclave_expect_pcr(&q, 4, pcr4);
    for (i = 5; i < 32; i++) {
        enclave_expect_pcr(&q, i, enclave_zero_pcr);
    }
}
