/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nitro Secure Module as a virtio device: the guest's queue and QEMU's side
 *
 * What it is: commands, properties, migration and traces. What a request means
 * is the NSM core's business (nitro/nsm.h), how the ring is read and written
 * virtio-nsm-ring.c's.
 *
 * A command is two descriptor chains: the request, which the device reads,
 * then the response, which it writes. Both are completed before the one
 * interrupt that follows, the request first with length 0, then the response
 * with the exact length of the answer; the Linux driver insists on that.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/guest-random.h"
#include "qemu/module.h"
#include "qemu/timer.h"
#include "hw/qdev-properties.h"
#include "hw/virtio/virtio.h"
#include "migration/vmstate.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ids.h"
#include "nitro/qemu-compat.h"
#include "virtio-nsm-internal.h"
#include "trace.h"

/* Two would do for the driver; more let a guest queue several commands. */
#define NSM_QUEUE_SIZE 64

/*
 * Copies the request to s->request. Returns its length, which may be more than
 * NSM_REQUEST_MAX: then it was not copied.
 */
static size_t nsm_fetch(NitroNsm *s, const NitroNsmChain *req)
{
    size_t len = MIN(req->out_len, NSM_REQUEST_MAX + 1);

    if (len <= NSM_REQUEST_MAX && len &&
        !nsm_chain_copy(VIRTIO_DEVICE(s), req, s->request, len, false)) {
        nsm_queue_refuse(req->head, "request is not in RAM");
        return 0;
    }
    return len;
}

static void nsm_log_served(NitroNsm *s, NsmOp op, size_t req_len,
                           size_t answer_len)
{
    g_autoptr(GString) faults = g_string_new(NULL);
    const NsmServed served = {
        .arrived_us = s->arrived_us,
        .took_us = g_get_real_time() - s->arrived_us,
        .request = s->request,
        .request_len = req_len,
        .answer = s->response,
        .answer_len = answer_len,
        .faults = (nsm_faults_name(s, op, &s->fate, faults), faults->str),
    };

    nsm_log_write(&s->log, &served);
}

/*
 * Answers the request of @req_len bytes in s->request. Returns the number of
 * bytes written to @resp.
 */
static uint32_t nsm_serve(NitroNsm *s, size_t req_len,
                          const NitroNsmChain *resp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    size_t cap = MIN(resp->in_len, NSM_RESPONSE_MAX);
    NsmResult info = { .code = NSM_INTERNAL_ERROR, .reason = "a fault" };
    size_t len;

    if (s->fate.fails) {
        info.op = nsm_request_op(s->request, req_len);
        len = nsm_refuse(info.code, s->response, cap);
    } else {
        len = nsm_handle(&s->nsm, s->request, req_len, s->response, cap,
                         &info);
    }
    trace_nitro_nsm_request(resp->head, nsm_op_name(info.op), info.number,
                            req_len, cap, len, nsm_code_name(info.code));
    if (info.code != NSM_SUCCESS) {
        trace_nitro_nsm_refused(resp->head, nsm_op_name(info.op), info.number,
                                nsm_code_name(info.code),
                                info.reason ? info.reason : "-");
    }
    if (!nsm_chain_copy(vdev, resp, s->response, len, true)) {
        nsm_queue_refuse(resp->head, "response buffer is not in RAM");
        len = 0;
    }
    if (nsm_log_is_open(&s->log)) {
        nsm_log_served(s, info.op, req_len, len);
    }
    return len;
}

/* What the next request shall suffer. False: its answer has to wait. */
static bool nsm_decide(NitroNsm *s, size_t req_len)
{
    NsmOp kind = s->faults.kind;

    if (s->is_decided) {
        return true;            /* it has waited */
    }
    if (kind != NSM_OP_NONE) {
        kind = nsm_request_op(s->request, req_len);
    }
    s->fate = nsm_fault_decide(&s->faults, kind);
    s->arrived_us = g_get_real_time();
    s->is_decided = true;
    if (s->fate.delay_ms) {
        timer_mod(s->late, qemu_clock_get_ms(QEMU_CLOCK_VIRTUAL) +
                  s->fate.delay_ms);
        return false;
    }
    return true;
}

/* The request was answered; the next one has a fate of its own. */
static void nsm_forget(NitroNsm *s)
{
    if (s->fate.is_last) {
        s->is_dead = true;
        qemu_system_shutdown_request(SHUTDOWN_CAUSE_HOST_ERROR);
    }
    s->fate = (NsmFate) { .fails = false };
    s->is_decided = false;
}

static void nsm_late(void *opaque)
{
    virtio_queue_notify(VIRTIO_DEVICE(opaque), NSM_QUEUE);
}

/* Give a chain back that has no place in the protocol. */
static void nsm_give_back(NitroNsm *s, NsmRing *ring,
                          const NitroNsmChain *chain)
{
    uint32_t len = 0;

    if (chain->fault) {
        nsm_queue_refuse(chain->head, chain->fault);
    } else if (chain->in_num) {
        nsm_queue_refuse(chain->head, "response buffer without a request");
        s->arrived_us = g_get_real_time();
        len = nsm_serve(s, 0, chain);
    } else {
        nsm_queue_refuse(chain->head, "request without a response buffer");
    }
    nsm_ring_complete(ring, chain->head, len);
}

/*
 * Serves every command that is in the queue now, also before DRIVER_OK: the
 * driver's hwrng asks for random bytes while it is still being probed, and
 * waits for them. A request whose response buffer has yet to come stays in
 * the queue. What arrives later comes with a kick of its own, so that a busy
 * guest cannot keep QEMU in here. One whose answer shall be late stays there
 * with all behind it: kicks do nothing until its timer is over.
 */
static void nsm_handle_output(VirtIODevice *vdev, VirtQueue *vq)
{
    NitroNsm *s = NITRO_NSM(vdev);
    NitroNsmChain *req = &s->chain[0];
    NitroNsmChain *resp = &s->chain[1];
    NsmRing ring;
    uint16_t first, end;

    if (s->is_dead || timer_pending(s->late)) {
        return;
    }
    if (!nsm_ring_map(&ring, vdev)) {
        nsm_queue_refuse(0, "the queue has no valid size or is not in RAM");
        return;
    }
    first = ring.next;
    end = nsm_ring_avail_idx(&ring);
    trace_nitro_nsm_kick(first, end);

    if ((uint16_t)(end - first) > ring.num) {
        nsm_queue_refuse(0, "more chains than the queue can hold: all dropped");
        ring.next = end;
        nsm_ring_publish(&ring);
    }
    while (ring.next != end && !s->is_dead) {
        nsm_ring_read(&ring, ring.next, req);
        if (req->fault || req->in_num) {
            nsm_give_back(s, &ring, req);
            nsm_ring_publish(&ring);
            continue;
        }
        if ((uint16_t)(ring.next + 1) == end) {
            break;
        }
        nsm_ring_read(&ring, ring.next + 1, resp);
        if (resp->fault || resp->out_num) {
            nsm_give_back(s, &ring, req);
        } else {
            size_t req_len = nsm_fetch(s, req);
            uint32_t len;

            if (!nsm_decide(s, req_len)) {
                break;
            }
            len = nsm_serve(s, req_len, resp);
            nsm_ring_complete(&ring, req->head, 0);
            nsm_ring_complete(&ring, resp->head, len);
            nsm_forget(s);
        }
        nsm_ring_publish(&ring);
    }
    nsm_ring_unmap(&ring);

    if (ring.next != first) {
        virtio_queue_set_last_avail_idx(vdev, NSM_QUEUE, ring.next);
        virtio_queue_update_used_idx(vdev, NSM_QUEUE);
        virtio_notify(vdev, vq);
    }
}

/*
 * No ioeventfd: the vCPU that kicks serves the queue itself. The guest waits
 * for the answer anyway, and waking QEMU's main loop for it costs several
 * times what most commands do.
 */
static int nsm_start_ioeventfd(VirtIODevice *vdev)
{
    return 0;
}

static void nsm_stop_ioeventfd(VirtIODevice *vdev)
{
}

/* None of QEMU's ring features: the walk above is for the plain split ring. */
static uint64_t nsm_get_features(VirtIODevice *vdev, uint64_t features,
                                 Error **errp)
{
    return features & (1ULL << VIRTIO_F_VERSION_1);
}

char *nitro_nsm_new_id(const char *parent_id)
{
    uint64_t ms = g_get_real_time() / 1000;
    uint16_t low;

    qemu_guest_getrandom_nofail(&low, sizeof(low));
    return g_strdup_printf("%s-enc%016" PRIx64, parent_id, ms << 16 | low);
}

bool nitro_nsm_boot(NitroNsm *s, const NsmBoot *boot)
{
    return nsm_boot(&s->nsm, boot);
}

#define BAD_STREAM "nitro-nsm: bad migration stream: "

static bool nsm_check_loaded_size(const char *what, int num)
{
    if (nsm_queue_size_valid(num)) {
        return true;
    }
    error_report(BAD_STREAM "the queue's %s is %u, not 1 to %d", what, num,
                 VIRTQUEUE_MAX_SIZE);
    return false;
}

/*
 * Called when QEMU has read the queues from a migration stream and before it
 * maps them, in which it takes their sizes for granted.
 */
static int nsm_load_queues(VirtIODevice *vdev, QEMUFile *f, int version_id)
{
    int i;

    if (!nsm_check_loaded_size("size", virtio_queue_get_num(vdev, NSM_QUEUE))) {
        return -EINVAL;
    }
    for (i = NSM_QUEUE + 1; i < VIRTIO_QUEUE_MAX; i++) {
        if (virtio_queue_get_num(vdev, i) ||
            virtio_queue_get_desc_addr(vdev, i)) {
            error_report(BAD_STREAM "it has a queue %d, an NSM only one", i);
            return -EINVAL;
        }
    }
    return 0;
}

static int nsm_post_load(void *opaque, int version_id)
{
    NitroNsm *s = opaque;
    const char *why;

    /* What the queue's size becomes at the next reset is read after it. */
    if (!nsm_check_loaded_size("size after a reset",
                               virtio_queue_get_max_num(VIRTIO_DEVICE(s),
                                                        NSM_QUEUE))) {
        return -EINVAL;
    }
    if (!nsm_state_valid(&s->nsm, &why)) {
        error_report(BAD_STREAM "%s", why);
        return -EINVAL;
    }
    /* Faults stay behind: what waited for its answer there gets it here. */
    timer_mod(s->late, qemu_clock_get_ms(QEMU_CLOCK_VIRTUAL));
    return 0;
}

static const VMStateDescription vmstate_nitro_nsm = {
    .name = "nitro-nsm",
    .version_id = NSM_STATE_VERSION,
    .minimum_version_id = NSM_STATE_VERSION,
    .post_load = nsm_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_VIRTIO_DEVICE,
        VMSTATE_UINT8_2DARRAY(nsm.pcr, NitroNsm, NSM_PCR_COUNT, NSM_PCR_SIZE),
        VMSTATE_UINT32(nsm.locked, NitroNsm),
        VMSTATE_UINT8_ARRAY(nsm.module_id, NitroNsm, NSM_MODULE_ID_MAX + 1),
        VMSTATE_END_OF_LIST()
    },
};

static void nsm_realize(DeviceState *dev, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    NitroNsm *s = NITRO_NSM(dev);
    const NsmBoot nothing_measured = { 0 };
    const NsmSignerOptions options = {
        .cert_chain = s->cert_chain,
        .cert_key = s->cert_key,
        .form = s->document_form,
        .unmeasured = s->unmeasured,
        .clock = nsm_device_clock,
        .clock_opaque = s,
    };
    NsmSignerError err;

    if (!s->module_id) {
        s->module_id = nitro_nsm_new_id("i-0000000000000000");
    }
    if (!nsm_module_id_valid(s->module_id)) {
        error_setg(errp, "module-id '%s': wants 1 to %d printable ASCII "
                   "characters without space", s->module_id,
                   NSM_MODULE_ID_MAX);
        return;
    }
    nsm_init(&s->nsm, s->module_id);
    if (!nitro_nsm_boot(s, &nothing_measured)) {
        error_setg(errp, "gnutls cannot compute SHA-384");
        return;
    }
    s->signer = nsm_signer_new(&options, s->module_id, &err);
    if (!s->signer) {
        error_setg(errp, "%s (%s)", err.text, nsm_signer_fault_name(err.fault));
        return;
    }
    nsm_signer_set_expired(s->signer, s->expired);
    nsm_set_attest(&s->nsm, nsm_signer_attest, s->signer);
    s->late = timer_new_ms(QEMU_CLOCK_VIRTUAL, nsm_late, s);
    virtio_init(vdev, VIRTIO_ID_NITRO_SEC_MOD, 0);
    s->vq = virtio_add_queue(vdev, NSM_QUEUE_SIZE, nsm_handle_output);
}

static void nsm_unrealize(DeviceState *dev)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    NitroNsm *s = NITRO_NSM(dev);

    nsm_log_close(&s->log);
    timer_free(s->late);
    virtio_delete_queue(s->vq);
    virtio_cleanup(vdev);
    nsm_signer_free(s->signer);
    s->signer = NULL;
}

/* Of the queue alone: registers and locks last as long as the enclave does. */
static void nsm_reset(VirtIODevice *vdev)
{
    NitroNsm *s = NITRO_NSM(vdev);

    timer_del(s->late);
    s->fate = (NsmFate) { .fails = false };
    s->is_decided = false;
}

static void nsm_instance_init(Object *obj)
{
    nsm_faults_init(NITRO_NSM(obj));
}

/* What a verifier has to trust, in PEM; empty until the device is realized. */
static char *nsm_get_root_certificate(Object *obj, Error **errp)
{
    NitroNsm *s = NITRO_NSM(obj);

    return g_strdup(s->signer ? nsm_signer_root(s->signer) : "");
}

const QEnumLookup nitro_document_form_lookup = {
    .array = (const char *const[]) {
        [NSM_DOCUMENT_2025] = "2025",
        [NSM_DOCUMENT_2023] = "2023",
    },
    .size = 2,
};

static int nsm_get_document_form(Object *obj, Error **errp)
{
    return NITRO_NSM(obj)->document_form;
}

static void nsm_set_document_form(Object *obj, int value, Error **errp)
{
    NITRO_NSM(obj)->document_form = value;
}

static const Property nsm_properties[] = {
    DEFINE_PROP_STRING("module-id", NitroNsm, module_id),
    DEFINE_PROP_STRING("cert-chain", NitroNsm, cert_chain),
    DEFINE_PROP_STRING("cert-key", NitroNsm, cert_key),
    DEFINE_PROP_BOOL("unmeasured", NitroNsm, unmeasured, false),
};

static void nsm_class_init(ObjectClass *oc, NitroClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_CLASS(oc);

    dc->desc = "Nitro Secure Module";
    dc->vmsd = &vmstate_nitro_nsm;
    device_class_set_props(dc, nsm_properties);
    object_class_property_set_description(oc, "module-id",
        "Name of this module in attestation documents (default: a new one)");
    object_class_property_set_description(oc, "cert-chain",
        "PEM file: CA certificates, root first (default: an ephemeral chain)");
    object_class_property_set_description(oc, "cert-key",
        "PEM file: private key of the last certificate in cert-chain");
    object_class_property_set_description(oc, "unmeasured",
        "Issue documents under a certificate that says \"unmeasured\"");
    object_class_property_add_enum(oc, "document-form", "NsmDocumentForm",
                                   &nitro_document_form_lookup,
                                   nsm_get_document_form,
                                   nsm_set_document_form);
    object_class_property_set_description(oc, "document-form",
        "Shape of attestation documents: AWS's of 2025 (default), or 2023");
    object_class_property_add_str(oc, "root-certificate",
                                  nsm_get_root_certificate, NULL);
    object_class_property_set_description(oc, "root-certificate",
        "The chain's root in PEM, for verifiers");
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    vdc->realize = nsm_realize;
    vdc->unrealize = nsm_unrealize;
    vdc->get_features = nsm_get_features;
    vdc->load = nsm_load_queues;
    vdc->start_ioeventfd = nsm_start_ioeventfd;
    vdc->stop_ioeventfd = nsm_stop_ioeventfd;
    vdc->reset = nsm_reset;
    nsm_faults_add_properties(oc);
    nsm_log_add_property(oc);
}

static const TypeInfo nsm_types[] = {
    {
        .name = TYPE_NITRO_NSM,
        .parent = TYPE_VIRTIO_DEVICE,
        .instance_size = sizeof(NitroNsm),
        .instance_init = nsm_instance_init,
        .class_init = nsm_class_init,
    },
};

DEFINE_TYPES(nsm_types)
