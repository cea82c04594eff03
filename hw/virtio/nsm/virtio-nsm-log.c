/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nitro Secure Module as a virtio device: its log
 *
 * A line for every request that was served, to the chardev that the property
 * "log" names. The bytes are the guest's and the module's, in hexadecimal:
 * what they mean is for the reader to say, who has less to lose. The format
 * is in docs/machine.md.
 *
 * A reader that is slow or gone costs the guest nothing: what the chardev does
 * not take is kept up to a limit, and beyond it whole lines are dropped and
 * counted. The next line that is written tells how many.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "chardev/char-fe.h"
#include "nitro/qemu-compat.h"
#include "virtio-nsm-internal.h"

#define LOG_VERSION 1

/* Bytes that wait for the chardev, at most. */
#define LOG_PENDING_MAX (1024 * 1024)

static void log_flush(NsmLog *log);

static gboolean log_writable(void *do_not_use, GIOCondition condition,
                             void *opaque)
{
    NsmLog *log = opaque;

    log->watch = 0;
    log_flush(log);
    return G_SOURCE_REMOVE;
}

/* Begin with an empty log again: half a line is of no use to a new reader. */
static void log_forget(NsmLog *log)
{
    g_string_truncate(log->pending, 0);
    log->lines = 0;
}

static void log_flush(NsmLog *log)
{
    while (log->pending->len > 0) {
        int n = qemu_chr_fe_write(&log->chr, (uint8_t *)log->pending->str,
                                  MIN(log->pending->len, 65536));

        if (n < 0 && errno != EAGAIN) {
            log->dropped += log->lines;
            log_forget(log);
            return;
        }
        if (n <= 0) {
            /* 0 from a chardev that cannot tell: the next line tries again */
            if (!log->watch) {
                log->watch = qemu_chr_fe_add_watch(&log->chr,
                                                   G_IO_OUT | G_IO_HUP,
                                                   log_writable, log);
            }
            return;
        }
        g_string_erase(log->pending, 0, n);
    }
    log->lines = 0;
}

static void put_hex(GString *out, const uint8_t *data, size_t len)
{
    static const char digits[] = "0123456789abcdef";
    size_t i;

    g_string_append_c(out, ' ');
    if (!len) {
        g_string_append_c(out, '-');
    }
    for (i = 0; i < len; i++) {
        g_string_append_c(out, digits[data[i] >> 4]);
        g_string_append_c(out, digits[data[i] & 15]);
    }
}

void nsm_log_write(NsmLog *log, const NsmServed *served)
{
    /* A line of the longest request and answer has some 32 KiB. */
    if (log->pending->len >= LOG_PENDING_MAX) {
        log->dropped++;
        log->dropped_ever++;
        return;
    }
    g_string_append_printf(log->pending,
                           "%d %" PRId64 " %" PRId64 " %" PRIu64 " %s %zu",
                           LOG_VERSION, served->arrived_us, served->took_us,
                           log->dropped,
                           *served->faults ? served->faults : "-",
                           served->request_len);
    put_hex(log->pending, served->request,
            served->request_len <= NSM_REQUEST_MAX ? served->request_len : 0);
    put_hex(log->pending, served->answer, served->answer_len);
    g_string_append_c(log->pending, '\n');
    log->lines++;
    log->dropped = 0;
    log_flush(log);
}

void nsm_log_close(NsmLog *log)
{
    if (!nsm_log_is_open(log)) {
        return;
    }
    if (log->watch) {
        g_source_remove(log->watch);
        log->watch = 0;
    }
    qemu_chr_fe_deinit(&log->chr, false);
    g_string_free(log->pending, true);
    log->pending = NULL;
    g_free(log->chardev);
    log->chardev = NULL;
    log->lines = log->dropped = 0;
}

static char *get_log(Object *obj, Error **errp)
{
    const NsmLog *log = &NITRO_NSM(obj)->log;

    return g_strdup(log->chardev ?: "");
}

static void set_log(Object *obj, const char *value, Error **errp)
{
    NsmLog *log = &NITRO_NSM(obj)->log;
    Chardev *chr;

    if (!*value) {
        nsm_log_close(log);
        return;
    }
    chr = qemu_chr_find(value);
    if (!chr) {
        error_setg(errp, "log: no chardev '%s'", value);
        return;
    }
    if (nsm_log_is_open(log)) {
        error_setg(errp, "log: it goes to chardev '%s'; close that first, "
                   "with an empty value", log->chardev);
        return;
    }
    if (!qemu_chr_fe_init(&log->chr, chr, errp)) {
        return;
    }
    log->chardev = g_strdup(value);
    log->pending = g_string_new(NULL);
}

static void get_dropped(Object *obj, Visitor *v, const char *name,
                        void *opaque, Error **errp)
{
    visit_type_uint64(v, name, &NITRO_NSM(obj)->log.dropped_ever, errp);
}

void nsm_log_add_property(ObjectClass *oc)
{
    object_class_property_add_str(oc, "log", get_log, set_log);
    object_class_property_set_description(oc, "log",
        "Chardev that gets a line for each request; empty: none");
    object_class_property_add(oc, "log-dropped", "uint64", get_dropped, NULL,
                              NULL, NULL);
    object_class_property_set_description(oc, "log-dropped",
        "Lines that were dropped, as nobody read them in time");
}
