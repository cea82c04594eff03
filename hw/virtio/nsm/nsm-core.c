/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM core: serves requests
 *
 * One decoded request in, one encoded answer out. A command that changes
 * something writes its answer first and changes the state last, so that an
 * answer that does not fit leaves no trace.
 */
#include <string.h>
#include <gnutls/gnutls.h>
#include <gnutls/crypto.h>

#include "nsm-internal.h"

/* Reported by DescribeNSM. */
#define VERSION_MAJOR 1
#define VERSION_MINOR 0
#define VERSION_PATCH 0

static const char *const code_names[NSM_CODE_COUNT] = {
    [NSM_SUCCESS] = "Success",
    [NSM_INVALID_ARGUMENT] = "InvalidArgument",
    [NSM_INVALID_INDEX] = "InvalidIndex",
    [NSM_INVALID_RESPONSE] = "InvalidResponse",
    [NSM_READ_ONLY_INDEX] = "ReadOnlyIndex",
    [NSM_INVALID_OPERATION] = "InvalidOperation",
    [NSM_BUFFER_TOO_SMALL] = "BufferTooSmall",
    [NSM_INPUT_TOO_LARGE] = "InputTooLarge",
    [NSM_INTERNAL_ERROR] = "InternalError",
};

const char *nsm_code_name(NsmCode code)
{
    return code_names[code < NSM_CODE_COUNT ? code : NSM_INTERNAL_ERROR];
}

static bool gnutls_random(void *opaque, uint8_t *buf, size_t len)
{
    (void)opaque;
    return gnutls_rnd(GNUTLS_RND_RANDOM, buf, len) >= 0;
}

bool nsm_module_id_valid(const char *module_id)
{
    size_t len = 0;

    while (len <= NSM_MODULE_ID_MAX &&
           module_id[len] > ' ' && module_id[len] <= '~') {
        len++;
    }
    return len > 0 && len <= NSM_MODULE_ID_MAX && module_id[len] == '\0';
}

void nsm_init(NsmState *s, const char *module_id)
{
    memset(s, 0, sizeof(*s));
    strncpy((char *)s->module_id, module_id, NSM_MODULE_ID_MAX);
    nsm_set_random(s, NULL, NULL);
}

void nsm_set_random(NsmState *s, NsmRandomFn *fn, void *opaque)
{
    s->random = fn ? fn : gnutls_random;
    s->random_opaque = opaque;
}

void nsm_set_attest(NsmState *s, NsmAttestFn *fn, void *opaque)
{
    s->attest = fn;
    s->attest_opaque = opaque;
}

bool nsm_state_valid(const NsmState *s, const char **why)
{
    const uint32_t platform = (1u << NSM_PCR_PLATFORM) - 1;

    if (!memchr(s->module_id, '\0', sizeof(s->module_id)) ||
        !nsm_module_id_valid(nsm_module_id(s))) {
        *why = "the module id is not 1 to 99 printable characters";
        return false;
    }
    if ((s->locked & platform) != platform) {
        *why = "a platform PCR (0..15) is not locked";
        return false;
    }
    return true;
}

/* {"Name": map of @fields entries}; those are the caller's to write. */
static void put_answer_head(NsmWriter *w, NsmOp op, size_t fields)
{
    nsm_put_map(w, 1);
    nsm_put_text(w, nsm_op_name(op));
    nsm_put_map(w, fields);
}

static NsmCode describe_nsm(const NsmState *s, NsmWriter *w)
{
    put_answer_head(w, NSM_OP_DESCRIBE_NSM, 7);
    nsm_put_text(w, "version_major");
    nsm_put_uint(w, VERSION_MAJOR);
    nsm_put_text(w, "version_minor");
    nsm_put_uint(w, VERSION_MINOR);
    nsm_put_text(w, "version_patch");
    nsm_put_uint(w, VERSION_PATCH);
    nsm_put_text(w, "module_id");
    nsm_put_text(w, nsm_module_id(s));
    nsm_put_text(w, "max_pcrs");
    nsm_put_uint(w, NSM_PCR_COUNT);
    nsm_put_text(w, "locked_pcrs");
    nsm_put_array(w, __builtin_popcount(s->locked));
    for (unsigned i = 0; i < NSM_PCR_COUNT; i++) {
        if (nsm_pcr_locked(s, i)) {
            nsm_put_uint(w, i);
        }
    }
    nsm_put_text(w, "digest");
    nsm_put_text(w, "SHA384");
    return NSM_SUCCESS;
}

static NsmCode describe_pcr(const NsmState *s, const NsmRequest *req,
                            NsmWriter *w)
{
    if (req->number >= NSM_PCR_COUNT) {
        return NSM_INVALID_INDEX;
    }
    put_answer_head(w, NSM_OP_DESCRIBE_PCR, 2);
    nsm_put_text(w, "lock");
    nsm_put_bool(w, nsm_pcr_locked(s, req->number));
    nsm_put_text(w, "data");
    nsm_put_bytes(w, s->pcr[req->number], NSM_PCR_SIZE);
    return NSM_SUCCESS;
}

static NsmCode extend_pcr(NsmState *s, const NsmRequest *req, NsmWriter *w)
{
    const NsmSpan *data = &req->span[1];
    uint8_t *value;

    if (req->number >= NSM_PCR_COUNT) {
        return NSM_INVALID_INDEX;
    }
    if (nsm_pcr_locked(s, req->number)) {
        return NSM_READ_ONLY_INDEX;
    }
    put_answer_head(w, NSM_OP_EXTEND_PCR, 1);
    nsm_put_text(w, "data");
    nsm_put_bytes_head(w, NSM_PCR_SIZE);
    value = nsm_put_space(w, NSM_PCR_SIZE);
    if (!value) {
        return NSM_BUFFER_TOO_SMALL;
    }
    if (!nsm_pcr_digest(s, req->number, data->data, data->len, value)) {
        return NSM_INTERNAL_ERROR;
    }
    memcpy(s->pcr[req->number], value, NSM_PCR_SIZE);
    return NSM_SUCCESS;
}

static NsmCode lock_pcr(NsmState *s, const NsmRequest *req, NsmWriter *w)
{
    if (req->number >= NSM_PCR_COUNT) {
        return NSM_INVALID_INDEX;
    }
    if (nsm_pcr_locked(s, req->number)) {
        return NSM_READ_ONLY_INDEX;
    }
    nsm_put_text(w, nsm_op_name(NSM_OP_LOCK_PCR));
    if (!w->overflow) {
        s->locked |= 1u << req->number;
    }
    return NSM_SUCCESS;
}

/* Unlike LockPCR, fine with PCRs that are locked already, and with none. */
static NsmCode lock_pcrs(NsmState *s, const NsmRequest *req, NsmWriter *w)
{
    if (req->number > NSM_PCR_COUNT) {
        return NSM_INVALID_INDEX;
    }
    nsm_put_text(w, nsm_op_name(NSM_OP_LOCK_PCRS));
    if (!w->overflow) {
        nsm_pcr_lock_below(s, req->number);
    }
    return NSM_SUCCESS;
}

static NsmCode get_random(const NsmState *s, NsmWriter *w)
{
    uint8_t *space;

    put_answer_head(w, NSM_OP_GET_RANDOM, 1);
    nsm_put_text(w, "random");
    nsm_put_bytes_head(w, NSM_RANDOM_SIZE);
    space = nsm_put_space(w, NSM_RANDOM_SIZE);
    if (!space) {
        return NSM_BUFFER_TOO_SMALL;
    }
    return s->random(s->random_opaque, space, NSM_RANDOM_SIZE) ?
        NSM_SUCCESS : NSM_INTERNAL_ERROR;
}

static NsmCode attestation(const NsmState *s, const NsmRequest *req,
                           NsmWriter *w, const char **reason)
{
    const NsmAttestRequest wanted = {
        .user_data = req->span[0],
        .nonce = req->span[1],
        .public_key = req->span[2],
    };
    NsmWriter head;
    uint8_t *document;
    size_t start, len = 0;
    NsmCode code;

    if (!s->attest) {
        *reason = "attestation is not available: the device has no signer";
        return NSM_INTERNAL_ERROR;
    }
    put_answer_head(w, NSM_OP_ATTESTATION, 1);
    nsm_put_text(w, "document");
    head = *w;
    /* The document is made in place, after a head for 256 to 65535 bytes. */
    nsm_put_bytes_head(w, UINT16_MAX);
    if (w->overflow) {
        return NSM_BUFFER_TOO_SMALL;
    }
    start = w->len;
    document = w->buf + start;
    code = s->attest(s->attest_opaque, s, &wanted, document, w->cap - start,
                     &len, reason);
    if (code != NSM_SUCCESS) {
        return code;
    }
    nsm_put_bytes_head(&head, len);
    if (head.len != start) {
        memmove(head.buf + head.len, document, len);
    }
    w->len = head.len + len;
    return NSM_SUCCESS;
}

static NsmCode serve(NsmState *s, const uint8_t *buf, size_t len,
                     NsmWriter *w, NsmResult *info)
{
    NsmRequest req;

    if (len > NSM_REQUEST_MAX) {
        return NSM_INPUT_TOO_LARGE;
    }
    info->code = nsm_request_decode(&req, buf, len);
    info->op = req.op;
    info->number = req.number;
    if (info->code != NSM_SUCCESS) {
        return info->code;
    }
    switch (req.op) {
    case NSM_OP_DESCRIBE_NSM:
        return describe_nsm(s, w);
    case NSM_OP_DESCRIBE_PCR:
        return describe_pcr(s, &req, w);
    case NSM_OP_EXTEND_PCR:
        return extend_pcr(s, &req, w);
    case NSM_OP_LOCK_PCR:
        return lock_pcr(s, &req, w);
    case NSM_OP_LOCK_PCRS:
        return lock_pcrs(s, &req, w);
    case NSM_OP_ATTESTATION:
        return attestation(s, &req, w, &info->reason);
    case NSM_OP_GET_RANDOM:
        return get_random(s, w);
    default:
        return NSM_INVALID_OPERATION;
    }
}

static bool put_error(NsmWriter *w, NsmCode code)
{
    w->len = 0;
    w->overflow = false;
    nsm_put_map(w, 1);
    nsm_put_text(w, "Error");
    nsm_put_text(w, nsm_code_name(code));
    return !w->overflow;
}

static NsmWriter writer(uint8_t *resp, size_t cap)
{
    return (NsmWriter) {
        .buf = resp,
        .cap = cap < NSM_RESPONSE_MAX ? cap : NSM_RESPONSE_MAX,
    };
}

/* The error, or one that is shorter, or nothing */
static size_t refuse(NsmWriter *w, NsmCode code)
{
    return put_error(w, code) ||
        put_error(w, NSM_BUFFER_TOO_SMALL) ||
        put_error(w, NSM_INTERNAL_ERROR) ||
        put_error(w, NSM_INVALID_INDEX) ? w->len : 0;
}

size_t nsm_refuse(NsmCode code, uint8_t *resp, size_t resp_cap)
{
    uint8_t nowhere[1];
    NsmWriter w = writer(resp_cap ? resp : nowhere, resp_cap);

    return refuse(&w, code);
}

NsmOp nsm_request_op(const uint8_t *req, size_t req_len)
{
    NsmRequest request;

    if (req_len > NSM_REQUEST_MAX) {
        return NSM_OP_NONE;
    }
    nsm_request_decode(&request, req, req_len);
    return request.op;
}

size_t nsm_handle(NsmState *s, const uint8_t *req, size_t req_len,
                  uint8_t *resp, size_t resp_cap, NsmResult *info)
{
    uint8_t nowhere[1];
    NsmWriter w = writer(resp_cap ? resp : nowhere, resp_cap);
    NsmResult result = { .op = NSM_OP_NONE };

    result.code = serve(s, req, req_len, &w, &result);
    if (result.code == NSM_SUCCESS && w.overflow) {
        result.code = NSM_BUFFER_TOO_SMALL;
    }
    if (info) {
        *info = result;
    }
    return result.code == NSM_SUCCESS ? w.len : refuse(&w, result.code);
}
