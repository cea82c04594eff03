/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for the NSM device: its faults, its clock and its log
 *
 * All of it as properties that are set while the device is in use, and with a
 * clock that stands still unless the test moves it. Which requests a fault
 * befalls is the subject of the unit test test-nsm-fault.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "nitro-qtest.h"

#define DEVICE NSM_MACHINE NSM_BARE_DEVICE ",id=nsm,module-id=" NSM_MODULE_ID
#define ATTESTATION BYTES("\xa1\x6b" "Attestation" "\xa0")

static void set(QTestState *qts, const char *property, int64_t value)
{
    qtest_qmp_assert_success(qts, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': 'nsm', 'property': %s,"
                             " 'value': %" PRId64 " } }", property, value);
}

static void set_text(QTestState *qts, const char *property, const char *value)
{
    qtest_qmp_assert_success(qts, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': 'nsm', 'property': %s,"
                             " 'value': %s } }", property, value);
}

static int64_t get(QTestState *qts, const char *property)
{
    QDict *answer = qtest_qmp(qts, "{ 'execute': 'qom-get', 'arguments': {"
                              " 'path': 'nsm', 'property': %s } }", property);
    int64_t value = qdict_get_int(answer, "return");

    qobject_unref(answer);
    return value;
}

static void refuse(QTestState *qts, const char *property, const char *json)
{
    g_autofree char *command = g_strdup_printf(
        "{ 'execute': 'qom-set', 'arguments': { 'path': 'nsm',"
        " 'property': '%s', 'value': %s } }", property, json);
    QDict *answer = qtest_qmp(qts, command, NULL);

    g_assert_true(qdict_haskey(answer, "error"));
    qobject_unref(answer);
}

/* Requests that fail change nothing, and those after them are served. */
static void test_errors(void)
{
    QTestState *qts = nitro_qemu_start(DEVICE);
    uint8_t before[48], after[48], req[64];
    NsmQueue q;
    bool lock;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    nsm_describe_pcr(&q, 16, before, &lock);
    set_text(qts, "fault-kind", "ExtendPCR");
    set(qts, "fault-errors", 2);
    nsm_expect_error(&q, nsm_req_extend_pcr(req, 16, BYTES("a")),
                     "InternalError");
    nsm_describe_pcr(&q, 16, after, &lock);
    g_assert_cmpmem(before, 48, after, 48);
    nsm_expect_error(&q, nsm_req_extend_pcr(req, 16, BYTES("a")),
                     "InternalError");
    nsm_extend_pcr(&q, 16, BYTES("a"), after);
    g_assert_cmpint(get(qts, "fault-errors"), ==, 0);
    g_assert_cmpint(get(qts, "fault-hits"), ==, 2);
    g_assert_cmpint(get(qts, "requests"), ==, 5);

    refuse(qts, "fault-kind", "'Extend'");
    refuse(qts, "fault-rate", "1001");
    refuse(qts, "fault-errors", "4294967296");
    refuse(qts, "fault-delay-ms", "3600001");
    refuse(qts, "clock-drift-ppm", "-500001");
    refuse(qts, "clock-offset-ms", "4000000000000");
    refuse(qts, "requests", "0");
    nsm_check_alive(&q);
    qtest_quit(qts);
}

static void submit(NsmQueue *q, unsigned int first, NsmBytes req)
{
    nsm_fill(q, first, req);
    nsm_desc(q, first, NSM_BUF(first), req.len, 0, 0);
    nsm_desc(q, first + 1, NSM_BUF(first + 1), 0x3000, VRING_DESC_F_WRITE, 0);
    nsm_avail(q, first);
    nsm_avail(q, first + 1);
    nsm_kick(q);
}

/* The answer that is late keeps back the next; a reset lets go of both. */
static void test_delay(void)
{
    QTestState *qts = nitro_qemu_start(DEVICE);
    NsmQueue q;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    set(qts, "fault-delay-ms", 500);
    set(qts, "fault-delays", 2);
    submit(&q, 2, NSM_GET_RANDOM);
    set(qts, "fault-delays", 0);
    submit(&q, 4, NSM_GET_RANDOM);
    qtest_clock_step(qts, 499 * 1000 * 1000LL);
    g_assert_cmpuint(nsm_used_count(&q), ==, 0);
    qtest_clock_step(qts, 1000 * 1000);
    nsm_expect_used(&q, 2, 0);
    nsm_expect_used(&q, 3, NSM_GET_RANDOM_ANSWER);
    nsm_expect_used(&q, 4, 0);
    nsm_expect_used(&q, 5, NSM_GET_RANDOM_ANSWER);
    g_assert_true(nsm_interrupt(&q));

    set(qts, "fault-delays", 1);
    submit(&q, 6, NSM_GET_RANDOM);
    nsm_queue_restart(&q);
    qtest_clock_step(qts, 1000 * 1000 * 1000);
    g_assert_cmpuint(nsm_used_count(&q), ==, 0);
    nsm_check_alive(&q);
    g_assert_cmpint(get(qts, "fault-hits"), ==, 2);
    qtest_quit(qts);
}

/* Faults stay behind, and so does nothing that waited for its answer. */
static void test_migration(void)
{
    g_autofree char *dir = g_dir_make_tmp("nitro-nsm-XXXXXX", NULL);
    g_autofree char *path = g_strdup_printf("%s/migrate", dir);
    g_autofree char *uri = g_strdup_printf("unix:%s", path);
    g_autofree char *incoming = g_strdup_printf(DEVICE " -incoming %s", uri);
    QTestState *from = nitro_qemu_start(DEVICE);
    QTestState *to = nitro_qemu_start(incoming);
    NsmQueue q;

    nsm_queue_start(&q, from, NSM_TRANSPORT);
    set(from, "fault-delay-ms", 500);
    set(from, "fault-delays", 2);
    submit(&q, 2, NSM_GET_RANDOM);
    nitro_migrate(from, uri);
    qtest_qmp_eventwait(to, "RESUME");
    qtest_quit(from);

    q.qts = q.dev.qts = to;
    qtest_clock_step(to, 1000 * 1000);
    nsm_expect_used(&q, 2, 0);
    nsm_expect_used(&q, 3, NSM_GET_RANDOM_ANSWER);
    nsm_interrupt(&q);
    nsm_check_alive(&q);
    g_assert_cmpint(get(to, "fault-hits"), ==, 0);
    qtest_quit(to);
    unlink(path);
    g_assert_cmpint(rmdir(dir), ==, 0);
}

/* Milliseconds since 1970 in a document */
static int64_t timestamp(NsmQueue *q)
{
    const NsmBytes key = BYTES("\x69" "timestamp\x1b");
    uint8_t resp[0x3000];
    size_t len = nsm_command(q, ATTESTATION, resp, sizeof(resp));
    const uint8_t *p = memmem(resp, len, key.data, key.len);

    g_assert_nonnull(p);
    return ldq_be_p(p + key.len);
}

static void test_clock(void)
{
    const int64_t hour = 3600 * 1000;
    QTestState *qts = nitro_qemu_start(DEVICE);
    int64_t before, stamp, after;
    NsmQueue q;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    set(qts, "clock-offset-ms", -hour / 2);
    before = g_get_real_time() / 1000;
    stamp = timestamp(&q) + hour / 2;
    after = g_get_real_time() / 1000;
    g_assert_cmpint(stamp, >=, before);
    g_assert_cmpint(stamp, <=, after);

    /* Twice as slow: what it has lost is half of what went by. */
    before = g_get_real_time() / 1000;
    set(qts, "clock-offset-ms", 0);
    set(qts, "clock-drift-ppm", -500000);
    do {
        after = g_get_real_time() / 1000;
    } while (after < before + 20);
    stamp = get(qts, "clock-offset-ms");
    g_assert_cmpint(stamp, <, 0);
    g_assert_cmpint(stamp, >=, -(g_get_real_time() / 1000 + 1 - before) / 2);
    qtest_quit(qts);
}

/* The answer to the second request is the last thing that this QEMU does. */
static void test_death(void)
{
    QTestState *qts = nitro_qemu_start(DEVICE);
    QDict *event;
    NsmQueue q;

    nsm_queue_start(&q, qts, NSM_TRANSPORT);
    set(qts, "fault-die-after", 2);
    nsm_check_alive(&q);
    submit(&q, 2, NSM_GET_RANDOM);
    event = qtest_qmp_eventwait_ref(qts, "SHUTDOWN");
    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(event, "data"), "reason"),
                    ==, "host-error");
    qobject_unref(event);
    qtest_wait_qemu(qts);
    qtest_quit(qts);
}

/* ---- the log ---- */

/* What has come, and nothing more: @fd does not wait. */
static char *read_log(int fd)
{
    GString *text = g_string_new(NULL);
    char buf[4096];
    ssize_t n;

    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        g_string_append_len(text, buf, n);
    }
    return g_string_free(text, false);
}

static int start_with_log(QTestState **qts, NsmQueue *q)
{
    g_autofree char *args = NULL;
    int pair[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
    args = g_strdup_printf(DEVICE " -chardev socket,id=log,fd=%d", pair[1]);
    *qts = nitro_qemu_start(args);
    close(pair[1]);
    g_assert_true(g_unix_set_fd_nonblocking(pair[0], true, NULL));
    nsm_queue_start(q, *qts, NSM_TRANSPORT);
    return pair[0];
}

/* One line for each request while somebody wants them, and none else. */
static void test_log(void)
{
    static const char lock[] =
        "a1674c6f636b504352a165696e64657810";   /* {"LockPCR": {"index": 16}} */
    g_autofree char *text = NULL;
    g_auto(GStrv) line = NULL;
    g_auto(GStrv) first = NULL;
    g_auto(GStrv) second = NULL;
    int64_t before, after;
    uint8_t req[64];
    QTestState *qts;
    NsmQueue q;
    int fd = start_with_log(&qts, &q);

    nsm_check_alive(&q);
    refuse(qts, "log", "'nobody'");
    set_text(qts, "log", "log");
    refuse(qts, "log", "'log'");
    before = g_get_real_time();
    nsm_expect(&q, nsm_req_lock_pcr(req, 16), BYTES("\x67" "LockPCR"));
    after = g_get_real_time();
    set(qts, "fault-errors", 1);
    nsm_expect_error(&q, nsm_req_lock_pcr(req, 16), "InternalError");
    set_text(qts, "log", "");
    nsm_check_alive(&q);

    text = read_log(fd);
    line = g_strsplit(text, "\n", -1);
    g_assert_cmpuint(g_strv_length(line), ==, 3);
    g_assert_cmpstr(line[2], ==, "");
    first = g_strsplit(line[0], " ", -1);
    g_assert_cmpuint(g_strv_length(first), ==, 8);
    g_assert_cmpstr(first[0], ==, "1");
    g_assert_cmpint(g_ascii_strtoll(first[1], NULL, 10), >=, before);
    g_assert_cmpint(g_ascii_strtoll(first[1], NULL, 10), <=, after);
    g_assert_cmpint(g_ascii_strtoll(first[2], NULL, 10), <=, after - before);
    g_assert_cmpstr(first[3], ==, "0");
    g_assert_cmpstr(first[4], ==, "-");
    g_assert_cmpstr(first[5], ==, "17");
    g_assert_cmpstr(first[6], ==, lock);
    g_assert_cmpstr(first[7], ==, "674c6f636b504352");
    second = g_strsplit(line[1], " ", -1);
    g_assert_cmpstr(second[4], ==, "error");
    g_assert_cmpstr(second[6], ==, lock);
    g_assert_cmpstr(second[7], ==, "a1654572726f726d496e7465726e616c4572726f"
                    "72");
    close(fd);
    qtest_quit(qts);
}

/* A reader that does not read, then reads, then goes: no request waits. */
static void test_slow_reader(void)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) last = NULL;
    unsigned int lines = 0;
    uint8_t resp[0x3000];
    const char *p;
    QTestState *qts;
    NsmQueue q;
    int fd = start_with_log(&qts, &q);
    unsigned int sent = 0;

    set_text(qts, "log", "log");
    while (get(qts, "log-dropped") < 3) {
        g_assert_cmpuint(nsm_command(&q, ATTESTATION, resp, sizeof(resp)), >,
                         1000);
        g_assert_cmpuint(++sent, <, 1000);
    }
    /* What was kept comes by itself, when there is room for it. */
    while (lines < sent - 3) {
        g_autofree char *more = NULL;
        GPollFD poll = { .fd = fd, .events = G_IO_IN };

        g_poll(&poll, 1, -1);
        more = read_log(fd);
        for (p = more; *p; p++) {
            lines += *p == '\n';
        }
    }
    g_assert_cmpuint(lines, ==, sent - 3);

    nsm_expect_error(&q, BYTES("?"), "InvalidOperation");
    text = read_log(fd);
    last = g_strsplit(text, " ", -1);
    g_assert_cmpuint(g_strv_length(last), ==, 8);
    g_assert_cmpstr(last[3], ==, "3");
    g_assert_cmpstr(last[6], ==, "3f");

    close(fd);
    nsm_expect_error(&q, BYTES("?"), "InvalidOperation");
    nsm_expect_error(&q, BYTES("?"), "InvalidOperation");
    nsm_check_alive(&q);
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/nsm-fault/errors", test_errors);
    qtest_add_func("/nsm-fault/delay", test_delay);
    qtest_add_func("/nsm-fault/migration", test_migration);
    qtest_add_func("/nsm-fault/clock", test_clock);
    qtest_add_func("/nsm-fault/death", test_death);
    qtest_add_func("/nsm-fault/log", test_log);
    qtest_add_func("/nsm-fault/slow-reader", test_slow_reader);

    return g_test_run();
}
