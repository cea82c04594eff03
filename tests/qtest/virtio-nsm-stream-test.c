/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for the NSM device's migration stream
 *
 * Each value that the device restores is replaced in a good stream by one that
 * no QEMU writes. The stream is refused in one line, or the device serves
 * after the driver's next reset; QEMU does not crash, and a sanitizer has
 * nothing to say. How a stream is laid out is QEMU's: virtio_save() and
 * vmstate_save_state(), all big-endian. That good streams are taken is
 * virtio-nsm-test's subject.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "nitro-qtest.h"

/* Where the stream has what, in bytes from the number of queues on. */
enum {
    STATUS = -12,
    ISR = -11,
    QUEUE_SEL = -10,
    FEATURES = -8,
    CONFIG_LEN = -4,
    QUEUES = 0,
    SIZE = 4,
    ALIGN = 8,
    DESC = 12,
    LAST_AVAIL = 20,
};

/* ... and what lies elsewhere. */
typedef enum Place {
    QUEUE,                      /* the enumeration above */
    RESET_SIZE,                 /* subsection virtio/ringsize */
    RINGS,                      /* subsection virtio/virtqueues: avail, used */
    LOCKED,                     /* our own fields */
    MODULE,
} Place;

typedef struct Damage {
    Place place;
    int offset;
    size_t bytes;
    uint64_t value;
    const char *message;        /* the refusal; NULL: it may be taken */
} Damage;

#define TOO_LARGE "bad migration stream: the queue's size"

/* In the order of the stream. */
static const Damage damages[] = {
    { QUEUE, STATUS, 1, 0xff },
    { QUEUE, ISR, 1, 0xff },
    { QUEUE, QUEUE_SEL, 2, 0x0400, "" },
    { QUEUE, QUEUE_SEL, 2, 0x03ff },
    { QUEUE, FEATURES, 4, 0xffffffff },
#if NITRO_QEMU_SERIES == 1000  /* the others skip that many bytes, for ever */
    { QUEUE, CONFIG_LEN, 4, 0xffffffff, "" },
#endif
    { QUEUE, QUEUES, 4, 0x401, "" },
    { QUEUE, QUEUES, 4, 2, "" },
    { QUEUE, SIZE, 4, 0, TOO_LARGE " is 0, not 1 to 1024" },
    { QUEUE, SIZE, 4, 1025, TOO_LARGE " is 1025, not 1 to 1024" },
    { QUEUE, SIZE, 4, 8192, TOO_LARGE " is 8192, not 1 to 1024" },
    { QUEUE, SIZE, 4, 0x80000001, TOO_LARGE },
    { QUEUE, SIZE, 4, 0xffffffff, TOO_LARGE },
    { QUEUE, SIZE, 4, 1024 },
    { QUEUE, ALIGN, 4, 0 },
    { QUEUE, ALIGN, 4, 0xffffffff },
    { QUEUE, DESC, 8, 0 },
    { QUEUE, DESC, 8, NITRO_TRANSPORT(0) },
    { QUEUE, DESC, 8, UINT64_MAX - 15 },
    { QUEUE, LAST_AVAIL, 2, 0xffff, "VQ 0 size" },
    { QUEUE, LAST_AVAIL, 2, 0x8000 },
    { RINGS, 0, 8, UINT64_MAX },
    { RINGS, 8, 8, NITRO_TRANSPORT(0) },
    { RESET_SIZE, 0, 4, 0, TOO_LARGE " after a reset is 0, not 1 to 1024" },
    { RESET_SIZE, 0, 4, 8192,
      TOO_LARGE " after a reset is 8192, not 1 to 1024" },
    { LOCKED, 0, 4, 0xfffffffe, "bad migration stream: a platform PCR" },
    { LOCKED, 0, 4, 0, "bad migration stream: a platform PCR" },
    { MODULE, 0, 1, 0, "bad migration stream: the module id" },
    { MODULE, 0, 1, 0x1b, "bad migration stream: the module id" },
};

typedef struct Stream {
    char *path;
    char *data;
    gsize len;
    bool modern;
} Stream;

/* Where @what is in the stream for the only time. */
static char *find(const Stream *s, const void *what, size_t len)
{
    char *at = memmem(s->data, s->len, what, len);

    g_assert_nonnull(at);
    g_assert_null(memmem(at + 1, s->data + s->len - at - 1, what, len));
    return at;
}

static char *find_place(const Stream *s, Place place)
{
    static const char ringsize[] = "virtio/ringsize";
    static const char rings[] = "virtio/virtqueues";
    uint8_t queue[20];

    switch (place) {
    case QUEUE:
        stl_be_p(queue, 1);
        stl_be_p(queue + 4, NSM_QUEUE_NUM);
        stl_be_p(queue + 8, 4096);
        stq_be_p(queue + 12, NSM_RING_BASE);
        return find(s, queue, sizeof(queue));
    case RESET_SIZE:            /* behind the name its version */
        return find(s, ringsize, strlen(ringsize)) + strlen(ringsize) + 4;
    case RINGS:
        return find(s, rings, strlen(rings)) + strlen(rings) + 4;
    case LOCKED:
        return find(s, NSM_MODULE_ID, sizeof(NSM_MODULE_ID)) - 4;
    case MODULE:
        return find(s, NSM_MODULE_ID, sizeof(NSM_MODULE_ID));
    }
    g_assert_not_reached();
}

static const char *mode(const Stream *s)
{
    return s->modern ? NSM_FORCE_MODERN : "";
}

/* A stream of a device that has a chain in its queue and was not told. */
static void stream_save(Stream *s)
{
    g_autoptr(GError) gerr = NULL;
    g_autofree char *uri = NULL;
    g_autofree char *args = NULL;
    QTestState *qts;
    NsmQueue q;
    int fd = g_file_open_tmp("nitro-nsm-XXXXXX", &s->path, &gerr);

    g_assert_no_error(gerr);
    close(fd);
    uri = g_strdup_printf("exec:cat > %s", s->path);
    args = g_strconcat(mode(s), NSM_LEGACY, NULL);
    qts = nitro_qemu_start(args);
    nsm_queue_start(&q, qts, 0);
    nsm_desc(&q, 0, UINT64_MAX - 1, UINT32_MAX, VRING_DESC_F_NEXT, 1);
    nsm_desc(&q, 1, UINT64_MAX - 1, UINT32_MAX, 0, 0);
    nsm_avail(&q, 0);
    nitro_migrate(qts, uri);
    qtest_quit(qts);
    g_assert_true(g_file_get_contents(s->path, &s->data, &s->len, &gerr));
}

static void stream_clear(Stream *s)
{
    unlink(s->path);
    g_free(s->path);
    g_free(s->data);
}

static void stream_damage(Stream *s, const Damage *damage)
{
    g_autofree char *good = g_memdup2(s->data, s->len);
    char *at = find_place(s, damage->place) + damage->offset;
    size_t i;

    for (i = 0; i < damage->bytes; i++) {
        at[i] = damage->value >> (damage->bytes - 1 - i) * 8;
    }
    g_assert_true(g_file_set_contents(s->path, s->data, s->len, NULL));
    memcpy(s->data, good, s->len);
}

/* A QEMU that is about to load the stream; what it says goes to @err. */
static QTestState *stream_load(const Stream *s, const char *err)
{
    g_autofree char *uri = g_strdup_printf("exec:cat %s", s->path);
    g_autofree char *args = g_strdup_printf("%s" NSM_MACHINE NSM_BARE_DEVICE
                                            " -incoming defer 2>%s",
                                            mode(s), err);
    QTestState *qts = nitro_qemu_start(args);

    qtest_qmp_assert_success(qts, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': { 'uri': %s } }", uri);
    return qts;
}

/*
 * QEMU exits where it refuses, on the stack of a coroutine. A sanitizer does
 * not look there, and may take what only that stack refers to for a leak.
 */
static QTestState *stream_load_leaking(const Stream *s, const char *err)
{
    g_autofree char *user = g_strdup(g_getenv("ASAN_OPTIONS"));
    g_autofree char *options = g_strdup_printf("%s:detect_leaks=0",
                                               user ?: "");
    QTestState *qts;

    g_setenv("ASAN_OPTIONS", options, true);
    qts = stream_load(s, err);
    if (user) {
        g_setenv("ASAN_OPTIONS", user, true);
    } else {
        g_unsetenv("ASAN_OPTIONS");
    }
    return qts;
}

static void check_refused(const Stream *s, const char *message)
{
    g_autofree char *path = g_strdup_printf("%s.err", s->path);
    g_autofree char *err = NULL;
    QTestState *qts = stream_load_leaking(s, path);

    qtest_set_expected_status(qts, EXIT_FAILURE);
    qtest_wait_qemu(qts);
    qtest_quit(qts);
    g_assert_true(g_file_get_contents(path, &err, NULL, NULL));
    unlink(path);
    if (!strstr(err, message)) {
        g_test_message("%s", err);
    }
    g_assert_nonnull(strstr(err, message));
}

/* It may serve its queue or not, but it does after the driver's reset. */
static void check_taken(const Stream *s)
{
    QTestState *qts = stream_load(s, "/dev/null");
    uint8_t resp[0x3000];
    NsmQueue q = { 0 };

    qtest_qmp_eventwait(qts, "RESUME");
    qtest_writel(qts, NITRO_TRANSPORT(0) + VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    nsm_queue_start(&q, qts, 0);
    g_assert_cmpuint(nsm_command(&q, NSM_GET_RANDOM, resp, sizeof(resp)),
                     ==, NSM_GET_RANDOM_ANSWER);
    qtest_quit(qts);
}

static void test_stream(const void *opaque)
{
    Stream s = { .modern = opaque != NULL };
    int i;

    stream_save(&s);
    check_taken(&s);
    for (i = 0; i < ARRAY_SIZE(damages); i++) {
        const Damage *d = &damages[i];

        if ((d->place == RINGS || d->offset == FEATURES) && !s.modern) {
            continue;   /* not in its stream, and QEMU's own check there */
        }
        g_test_message("place %d, offset %d: 0x%" PRIx64, d->place, d->offset,
                       d->value);
        stream_damage(&s, d);
        if (d->message) {
            check_refused(&s, d->message);
        } else {
            check_taken(&s);
        }
    }
    stream_clear(&s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_data_func("/nsm/stream/legacy", NULL, test_stream);
    qtest_add_data_func("/nsm/stream/modern", "", test_stream);

    return g_test_run();
}
