/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the tests of the nitro-enclave board and of the NSM device share
 *
 * See the header. The queue follows the virtio 1.2 specification: 2.7 (split
 * virtqueues), 4.2 (virtio over MMIO, and 4.2.4 for its legacy interface).
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "nitro-qtest.h"

#define PAGE 4096

const char *nitro_firmware_args(void)
{
    static char *args;
    const char *folder = getenv("NITRO_QTEST_FIRMWARE");

    if (!args) {
        args = folder ? g_strdup_printf("-L %s ", folder) : g_strdup("");
    }
    return args;
}

int nitro_qemu_run(const char *args, char **out, char **err)
{
    static const char quit[] = "{\"execute\": \"qmp_capabilities\"}\n"
                               "{\"execute\": \"quit\"}\n";
    g_autofree char *line = NULL;
    g_autofree char *input = NULL;
    g_autofree char *script = NULL;
    g_autofree char *ignored = NULL;
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) gerr = NULL;
    int status;

    /* A file can be stdin without a thread that feeds it. */
    int fd = g_file_open_tmp("nitro-qtest-XXXXXX", &input, &gerr);

    g_assert_no_error(gerr);
    g_assert_cmpint(write(fd, quit, strlen(quit)), ==, strlen(quit));
    close(fd);

    script = g_strdup_printf("exec \"$0\" \"$@\" <%s", input);
    line = g_strdup_printf("%s %s -accel qtest -display none -serial none "
                           "-monitor none -qmp stdio %s",
                           getenv("QTEST_QEMU_BINARY"), nitro_firmware_args(),
                           args);
    g_test_message("%s", line);
    if (g_shell_parse_argv(line, NULL, &argv, &gerr)) {
        g_autoptr(GPtrArray) words = g_ptr_array_new();
        char **p;

        g_ptr_array_add(words, (char *)"/bin/sh");
        g_ptr_array_add(words, (char *)"-c");
        g_ptr_array_add(words, script);
        for (p = argv; *p; p++) {
            g_ptr_array_add(words, *p);
        }
        g_ptr_array_add(words, NULL);
        g_spawn_sync(NULL, (char **)words->pdata, NULL, G_SPAWN_DEFAULT,
                     NULL, NULL, out ?: &ignored, err, &status, &gerr);
    }
    g_assert_no_error(gerr);
    unlink(input);
    g_assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

QTestState *nitro_qemu_start(const char *args)
{
    return qtest_initf("%s%s", nitro_firmware_args(), args);
}

void nitro_migrate(QTestState *from, const char *uri)
{
    bool done = false;

    qtest_qmp_assert_success(from, "{ 'execute': 'migrate',"
                             "  'arguments': { 'uri': %s } }", uri);
    while (!done) {
        QDict *info = qtest_qmp_assert_success_ref(
            from, "{ 'execute': 'query-migrate' }");
        const char *status = qdict_get_str(info, "status");

        g_assert_cmpstr(status, !=, "failed");
        done = g_str_equal(status, "completed");
        qobject_unref(info);
    }
}

char *nitro_hex(const uint8_t *bytes, size_t len)
{
    GString *s = g_string_new(NULL);
    size_t i;

    for (i = 0; i < len; i++) {
        g_string_append_printf(s, "%02x", bytes[i]);
    }
    return g_string_free(s, false);
}

/* ---- the queue ---- */

static uint64_t ring_avail(void)
{
    return NSM_RING_BASE + NSM_QUEUE_NUM * sizeof(struct vring_desc);
}

static uint64_t ring_used(void)
{
    return NSM_RING_BASE + PAGE;
}

static void reg_write(NsmQueue *q, unsigned int offset, uint32_t value)
{
    qtest_writel(q->qts, q->dev.addr + offset, value);
}

void nsm_queue_init(NsmQueue *q, QTestState *qts, int n)
{
    memset(q, 0, sizeof(*q));
    q->qts = qts;
    qvirtio_mmio_init_device(&q->dev, qts, NITRO_TRANSPORT(n), PAGE);
    g_assert_cmpuint(q->dev.vdev.device_type, ==, 33);
    qtest_memset(qts, NSM_RING_BASE, 0, 2 * PAGE);

    qvirtio_reset(&q->dev.vdev);
    qvirtio_set_acknowledge(&q->dev.vdev);
    qvirtio_set_driver(&q->dev.vdev);
    qvirtio_set_features(&q->dev.vdev, q->dev.version == 2 ?
                         1ULL << VIRTIO_F_VERSION_1 : 0);

    reg_write(q, VIRTIO_MMIO_QUEUE_SEL, 0);
    g_assert_cmpuint(qtest_readl(qts, q->dev.addr +
                                 VIRTIO_MMIO_QUEUE_NUM_MAX), >=,
                     NSM_QUEUE_NUM);
    reg_write(q, VIRTIO_MMIO_QUEUE_NUM, NSM_QUEUE_NUM);
    if (q->dev.version == 2) {
        reg_write(q, VIRTIO_MMIO_QUEUE_DESC_LOW, NSM_RING_BASE);
        reg_write(q, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
        reg_write(q, VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring_avail());
        reg_write(q, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 0);
        reg_write(q, VIRTIO_MMIO_QUEUE_USED_LOW, ring_used());
        reg_write(q, VIRTIO_MMIO_QUEUE_USED_HIGH, 0);
        reg_write(q, VIRTIO_MMIO_QUEUE_READY, 1);
    } else {
        reg_write(q, VIRTIO_MMIO_QUEUE_ALIGN, PAGE);
        reg_write(q, VIRTIO_MMIO_QUEUE_PFN, NSM_RING_BASE / PAGE);
    }
}

void nsm_queue_start(NsmQueue *q, QTestState *qts, int n)
{
    nsm_queue_init(q, qts, n);
    qvirtio_set_driver_ok(&q->dev.vdev);
}

void nsm_queue_restart(NsmQueue *q)
{
    int n = (q->dev.addr - NITRO_TRANSPORT(0)) / NITRO_TRANSPORT_SIZE;

    nsm_queue_start(q, q->qts, n);
}

void nsm_desc(NsmQueue *q, unsigned int i, uint64_t addr, uint32_t len,
              uint16_t flags, uint16_t next)
{
    const struct vring_desc desc = {
        .addr = cpu_to_le64(addr),
        .len = cpu_to_le32(len),
        .flags = cpu_to_le16(flags),
        .next = cpu_to_le16(next),
    };

    qtest_memwrite(q->qts, NSM_RING_BASE + i * sizeof(desc), &desc,
                   sizeof(desc));
}

void nsm_fill(NsmQueue *q, unsigned int i, NsmBytes bytes)
{
    if (bytes.len) {
        qtest_memwrite(q->qts, NSM_BUF(i), bytes.data, bytes.len);
    }
}

void nsm_avail(NsmQueue *q, uint16_t head)
{
    uint64_t slot = offsetof(struct vring_avail, ring) +
                    q->avail_idx % NSM_QUEUE_NUM * sizeof(uint16_t);

    qtest_writew(q->qts, ring_avail() + slot, head);
    q->avail_idx++;
}

void nsm_kick(NsmQueue *q)
{
    qtest_writew(q->qts, ring_avail() + offsetof(struct vring_avail, idx),
                 q->avail_idx);
    reg_write(q, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
}

unsigned int nsm_used_count(NsmQueue *q)
{
    uint16_t idx = qtest_readw(q->qts, ring_used() +
                               offsetof(struct vring_used, idx));

    return (uint16_t)(idx - q->used_idx);
}

void nsm_used(NsmQueue *q, uint32_t *head, uint32_t *len)
{
    struct vring_used_elem elem;

    g_assert_cmpuint(nsm_used_count(q), >, 0);
    qtest_memread(q->qts, ring_used() + offsetof(struct vring_used, ring) +
                  q->used_idx % NSM_QUEUE_NUM * sizeof(elem),
                  &elem, sizeof(elem));
    q->used_idx++;
    *head = le32_to_cpu(elem.id);
    *len = le32_to_cpu(elem.len);
}

void nsm_expect_used(NsmQueue *q, uint32_t head, uint32_t len)
{
    uint32_t used_head, used_len;

    nsm_used(q, &used_head, &used_len);
    g_assert_cmpuint(used_head, ==, head);
    g_assert_cmpuint(used_len, ==, len);
}

bool nsm_interrupt(NsmQueue *q)
{
    return q->dev.vdev.bus->get_queue_isr_status(&q->dev.vdev, NULL);
}

size_t nsm_command(NsmQueue *q, NsmBytes req, void *resp, size_t cap)
{
    uint32_t head, len;

    nsm_fill(q, 0, req);
    nsm_desc(q, 0, NSM_BUF(0), req.len, 0, 0);
    nsm_desc(q, 1, NSM_BUF(1), cap, VRING_DESC_F_WRITE, 0);
    nsm_avail(q, 0);
    nsm_avail(q, 1);
    nsm_kick(q);
    nsm_expect_used(q, 0, 0);
    nsm_used(q, &head, &len);
    g_assert_cmpuint(head, ==, 1);
    g_assert_cmpuint(len, <=, cap);
    g_assert_true(nsm_interrupt(q));
    if (len) {
        qtest_memread(q->qts, NSM_BUF(1), resp, len);
    }
    return len;
}

/* What the Linux driver offers: NSM_RESPONSE_MAX_SIZE of drivers/misc/nsm.c */
#define DRIVER_RESPONSE 0x3000

void nsm_expect(NsmQueue *q, NsmBytes req, NsmBytes expected)
{
    uint8_t resp[DRIVER_RESPONSE];
    size_t len = nsm_command(q, req, resp, sizeof(resp));

    g_assert_cmpmem(resp, len, expected.data, expected.len);
}

void nsm_expect_error(NsmQueue *q, NsmBytes req, const char *code)
{
    g_autofree char *expected = g_strdup_printf(
        "\xa1\x65" "Error%c%s", (int)(0x60 + strlen(code)), code);

    nsm_expect(q, req, (NsmBytes) { expected, strlen(expected) });
}

/* Appends the CBOR of a number below 256, shortest form (RFC 8949, 4.2.1). */
static size_t put_uint(uint8_t *buf, size_t at, uint8_t value)
{
    if (value >= 24) {
        buf[at++] = 0x18;
    }
    buf[at++] = value;
    return at;
}

static size_t put_bytes(uint8_t *buf, size_t at, NsmBytes bytes)
{
    memcpy(buf + at, bytes.data, bytes.len);
    return at + bytes.len;
}

/* Checks that @p begins with @head; returns what follows it. */
static const uint8_t *skip_head(const uint8_t *p, NsmBytes head)
{
    g_assert_cmpmem(p, head.len, head.data, head.len);
    return p + head.len;
}

void nsm_describe_pcr(NsmQueue *q, uint8_t index, uint8_t pcr[48], bool *lock)
{
    /* A map's order is free in CBOR; AWS's answers carry lock, then data. */
    const NsmBytes head = BYTES("\xa1\x6b" "DescribePCR" "\xa2\x64" "lock");
    const NsmBytes tail = BYTES("\x64" "data" "\x58\x30");
    uint8_t req[64], resp[DRIVER_RESPONSE];
    const uint8_t *p = resp;
    size_t len;

    len = put_bytes(req, 0, BYTES("\xa1\x6b" "DescribePCR"
                                  "\xa1\x65" "index"));
    len = put_uint(req, len, index);
    len = nsm_command(q, (NsmBytes) { req, len }, resp, sizeof(resp));
    g_assert_cmpuint(len, ==, head.len + 1 + tail.len + 48);
    p = skip_head(p, head);
    g_assert_true(*p == 0xf4 || *p == 0xf5);
    *lock = *p++ == 0xf5;
    p = skip_head(p, tail);
    memcpy(pcr, p, 48);
}

NsmBytes nsm_req_lock_pcr(uint8_t *buf, uint8_t index)
{
    size_t len = put_bytes(buf, 0, BYTES("\xa1\x67" "LockPCR"
                                         "\xa1\x65" "index"));

    return (NsmBytes) { buf, put_uint(buf, len, index) };
}

NsmBytes nsm_req_extend_pcr(uint8_t *buf, uint8_t index, NsmBytes data)
{
    size_t len = put_bytes(buf, 0, BYTES("\xa1\x69" "ExtendPCR"
                                         "\xa2\x65" "index"));

    g_assert_cmpuint(data.len, <, 24);
    len = put_uint(buf, len, index);
    len = put_bytes(buf, len, BYTES("\x64" "data"));
    buf[len++] = 0x40 + data.len;
    return (NsmBytes) { buf, put_bytes(buf, len, data) };
}

void nsm_extend_pcr(NsmQueue *q, uint8_t index, NsmBytes data,
                    uint8_t pcr[48])
{
    const NsmBytes head = BYTES("\xa1\x69" "ExtendPCR" "\xa1\x64" "data"
                                "\x58\x30");
    uint8_t req[64], resp[DRIVER_RESPONSE];
    size_t len;

    len = nsm_command(q, nsm_req_extend_pcr(req, index, data), resp,
                      sizeof(resp));
    g_assert_cmpuint(len, ==, head.len + 48);
    memcpy(pcr, skip_head(resp, head), 48);
}

void nsm_check_alive(NsmQueue *q)
{
    bool lock;
    uint8_t pcr[48];

    nsm_describe_pcr(q, 0, pcr, &lock);
    g_assert_true(lock);
    g_assert_cmphex(q->dev.vdev.bus->get_status(&q->dev.vdev) &
                    VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
    g_assert_cmpuint(nsm_used_count(q), ==, 0);
}
