/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nitro Secure Module as a virtio device: its faults, as properties
 *
 * They can be set at any time, also while the guest runs, and do not migrate:
 * whoever started the other QEMU sets them there. Which request a fault
 * befalls is the core's (nitro/nsm-fault.h); what it then suffers is done
 * where requests are served.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "nitro/qemu-compat.h"
#include "virtio-nsm-internal.h"

#define DELAY_MAX_MS (3600 * 1000)

static int64_t host_ms(void)
{
    return g_get_real_time() / 1000;
}

int64_t nsm_device_clock(void *opaque)
{
    NitroNsm *s = opaque;

    return nsm_clock_now(&s->clock, host_ms());
}

void nsm_faults_init(NitroNsm *s)
{
    s->faults.rate = NSM_FAULT_RATE_ALL;
}

static void put_word(GString *out, const char *word)
{
    if (out->len) {
        g_string_append_c(out, ',');
    }
    g_string_append(out, word);
}

void nsm_faults_name(const NitroNsm *s, NsmOp op, const NsmFate *fate,
                     GString *out)
{
    if (fate->fails) {
        put_word(out, "error");
    }
    if (fate->delay_ms) {
        put_word(out, "delay");
    }
    if (op == NSM_OP_ATTESTATION && !fate->fails) {
        if (s->expired) {
            put_word(out, "expired");
        }
        if (s->clock.offset_ms || s->clock.drift_ppm) {
            put_word(out, "clock");
        }
    }
    if (fate->is_last) {
        put_word(out, "die");
    }
}

/* ---- numbers ---- */

typedef struct NumberProperty {
    const char *name;
    const char *description;
    size_t offset;
    uint32_t max;
    bool restarts;              /* the chances begin again */
} NumberProperty;

#define NUMBER(member, name, max, restarts, description) \
    { name, description, offsetof(NitroNsm, faults.member), max, restarts }

static NumberProperty numbers[] = {
    NUMBER(rate, "fault-rate", NSM_FAULT_RATE_ALL, true,
           "So many in a thousand requests of the kind, by chance (1000)"),
    NUMBER(errors, "fault-errors", UINT32_MAX, false,
           "So many more get InternalError; 4294967295: all"),
    NUMBER(delays, "fault-delays", UINT32_MAX, false,
           "So many more are answered late; 4294967295: all"),
    NUMBER(delay_ms, "fault-delay-ms", DELAY_MAX_MS, false,
           "How late, in milliseconds"),
    NUMBER(die_after, "fault-die-after", UINT32_MAX, false,
           "The machine ends with the answer to that request; 0: it does not"),
};

static uint32_t *number_in(Object *obj, const NumberProperty *p)
{
    return (uint32_t *)((char *)NITRO_NSM(obj) + p->offset);
}

static void get_number(Object *obj, Visitor *v, const char *name,
                       void *opaque, Error **errp)
{
    uint32_t value = *number_in(obj, opaque);

    visit_type_uint32(v, name, &value, errp);
}

static void set_number(Object *obj, Visitor *v, const char *name,
                       void *opaque, Error **errp)
{
    const NumberProperty *p = opaque;
    uint32_t value;

    if (!visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (value > p->max) {
        error_setg(errp, "%s: %u is more than %u", name, value, p->max);
        return;
    }
    *number_in(obj, p) = value;
    if (p->restarts) {
        NITRO_NSM(obj)->faults.seen = 0;
    }
}

static void get_seed(Object *obj, Visitor *v, const char *name,
                     void *opaque, Error **errp)
{
    visit_type_uint64(v, name, &NITRO_NSM(obj)->faults.seed, errp);
}

static void set_seed(Object *obj, Visitor *v, const char *name,
                     void *opaque, Error **errp)
{
    NitroNsm *s = NITRO_NSM(obj);
    uint64_t value;

    if (visit_type_uint64(v, name, &value, errp)) {
        s->faults.seed = value;
        s->faults.seen = 0;
    }
}

static void get_count(Object *obj, Visitor *v, const char *name,
                      void *opaque, Error **errp)
{
    NitroNsm *s = NITRO_NSM(obj);
    uint64_t value = opaque ? s->faults.hits : s->faults.requests;

    visit_type_uint64(v, name, &value, errp);
}

/* ---- the kind of request ---- */

static char *get_kind(Object *obj, Error **errp)
{
    NsmOp kind = NITRO_NSM(obj)->faults.kind;

    return g_strdup(kind == NSM_OP_NONE ? "" : nsm_op_name(kind));
}

static void set_kind(Object *obj, const char *value, Error **errp)
{
    NitroNsm *s = NITRO_NSM(obj);
    int op;

    for (op = NSM_OP_NONE; op < NSM_OP_COUNT; op++) {
        if (!strcmp(value, op == NSM_OP_NONE ? "" : nsm_op_name(op))) {
            s->faults.kind = op;
            s->faults.seen = 0;
            return;
        }
    }
    error_setg(errp, "fault-kind: there is no request '%s'", value);
}

/* ---- documents ---- */

static bool get_expired(Object *obj, Error **errp)
{
    return NITRO_NSM(obj)->expired;
}

static void set_expired(Object *obj, bool value, Error **errp)
{
    NitroNsm *s = NITRO_NSM(obj);

    s->expired = value;
    if (s->signer) {
        nsm_signer_set_expired(s->signer, value);
    }
}

/* ---- the clock ---- */

static void get_offset(Object *obj, Visitor *v, const char *name,
                       void *opaque, Error **errp)
{
    int64_t value = nsm_clock_offset(&NITRO_NSM(obj)->clock, host_ms());

    visit_type_int64(v, name, &value, errp);
}

static void set_offset(Object *obj, Visitor *v, const char *name,
                       void *opaque, Error **errp)
{
    int64_t value;

    if (!visit_type_int64(v, name, &value, errp)) {
        return;
    }
    if (value < -NSM_CLOCK_OFFSET_MAX || value > NSM_CLOCK_OFFSET_MAX) {
        error_setg(errp, "%s: %" PRId64 " ms are more than a hundred years",
                   name, value);
        return;
    }
    nsm_clock_set_offset(&NITRO_NSM(obj)->clock, host_ms(), value);
}

static void get_drift(Object *obj, Visitor *v, const char *name,
                      void *opaque, Error **errp)
{
    visit_type_int32(v, name, &NITRO_NSM(obj)->clock.drift_ppm, errp);
}

static void set_drift(Object *obj, Visitor *v, const char *name,
                      void *opaque, Error **errp)
{
    int32_t value;

    if (!visit_type_int32(v, name, &value, errp)) {
        return;
    }
    if (value < -NSM_CLOCK_DRIFT_MAX || value > NSM_CLOCK_DRIFT_MAX) {
        error_setg(errp, "%s: %" PRId32 " is not within %d", name, value,
                   NSM_CLOCK_DRIFT_MAX);
        return;
    }
    nsm_clock_set_drift(&NITRO_NSM(obj)->clock, host_ms(), value);
}

void nsm_faults_add_properties(ObjectClass *oc)
{
    static bool hits = true;
    size_t i;

    object_class_property_add_str(oc, "fault-kind", get_kind, set_kind);
    object_class_property_set_description(oc, "fault-kind",
        "Requests that faults are for, such as Attestation; empty: all");
    object_class_property_add(oc, "fault-seed", "uint64", get_seed, set_seed,
                              NULL, NULL);
    object_class_property_set_description(oc, "fault-seed",
        "What fault-rate's chances are made of: the same seed, the same ones");
    for (i = 0; i < ARRAY_SIZE(numbers); i++) {
        object_class_property_add(oc, numbers[i].name, "uint32", get_number,
                                  set_number, NULL, &numbers[i]);
        object_class_property_set_description(oc, numbers[i].name,
                                              numbers[i].description);
    }
    object_class_property_add_bool(oc, "fault-expired", get_expired,
                                   set_expired);
    object_class_property_set_description(oc, "fault-expired",
        "Documents come with a certificate that has expired");
    object_class_property_add(oc, "requests", "uint64", get_count, NULL, NULL,
                              NULL);
    object_class_property_set_description(oc, "requests",
        "Requests that were answered");
    object_class_property_add(oc, "fault-hits", "uint64", get_count, NULL,
                              NULL, &hits);
    object_class_property_set_description(oc, "fault-hits",
        "Requests that failed or were late because of a fault");
    object_class_property_add(oc, "clock-offset-ms", "int64", get_offset,
                              set_offset, NULL, NULL);
    object_class_property_set_description(oc, "clock-offset-ms",
        "How far the module's clock is ahead of the host's, now");
    object_class_property_add(oc, "clock-drift-ppm", "int32", get_drift,
                              set_drift, NULL, NULL);
    object_class_property_set_description(oc, "clock-drift-ppm",
        "How much faster it runs, in millionths");
}
