/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nitro Secure Module (NSM): the device's logic, without a device
 *
 * This is the public interface of the NSM core: a bank of 32 platform
 * configuration registers (PCRs) and the request/response protocol that a
 * guest speaks through /dev/nsm. Bytes in, bytes out: no I/O, no QEMU type,
 * no global state, no call that can end the process. Virtqueues, migration
 * and tracing belong to the device around it; signing belongs to the hook
 * of nsm_set_attest().
 *
 * Sources of the facts: the request and response types published with the
 * AWS Nitro Enclaves NSM API (CBOR, RFC 8949, in serde's externally tagged
 * form), the limits of the guest driver (Linux drivers/misc/nsm.c), and the
 * AWS user guide for the meaning of the PCRs.
 *
 * Nothing here locks: calls on one NsmState must not overlap.
 */
#ifndef NITRO_NSM_H
#define NITRO_NSM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Registers: SHA-384 values with the indices 0..31. */
#define NSM_PCR_COUNT 32
#define NSM_PCR_SIZE 48

/* PCRs 0..15 are the platform's: measured and locked before the guest runs. */
#define NSM_PCR_PLATFORM 16

/* Longest request and longest response, in bytes (the guest driver's caps). */
#define NSM_REQUEST_MAX 0x1000
#define NSM_RESPONSE_MAX 0x3000

/* The shortest error's length, in bytes: a buffer below may stay empty. */
#define NSM_RESPONSE_MIN 20

/* Longest module id; AWS's C library keeps it in 100 bytes with its NUL. */
#define NSM_MODULE_ID_MAX 99

/* Bytes in one GetRandom answer. */
#define NSM_RANDOM_SIZE 256

/* Operations, as named in requests; for traces. */
typedef enum NsmOp {
    NSM_OP_NONE,                /* the request names no operation we know */
    NSM_OP_DESCRIBE_NSM,
    NSM_OP_DESCRIBE_PCR,
    NSM_OP_EXTEND_PCR,
    NSM_OP_LOCK_PCR,
    NSM_OP_LOCK_PCRS,
    NSM_OP_ATTESTATION,
    NSM_OP_GET_RANDOM,
    NSM_OP_COUNT,
} NsmOp;

/* Results. The values are those of AWS's C API, the names go on the wire. */
typedef enum NsmCode {
    NSM_SUCCESS = 0,
    NSM_INVALID_ARGUMENT = 1,   /* known operation, wrong or missing argument */
    NSM_INVALID_INDEX = 2,      /* index >= 32, or LockPCRs range > 32 */
    NSM_INVALID_RESPONSE = 3,   /* a client library's own; never sent by us */
    NSM_READ_ONLY_INDEX = 4,    /* ExtendPCR or LockPCR of a locked PCR */
    NSM_INVALID_OPERATION = 5,  /* no decodable request, or unknown operation */
    NSM_BUFFER_TOO_SMALL = 6,   /* the answer does not fit the guest's buffer */
    NSM_INPUT_TOO_LARGE = 7,    /* request longer than NSM_REQUEST_MAX */
    NSM_INTERNAL_ERROR = 8,     /* hash, random source or signer failed */
    NSM_CODE_COUNT,
} NsmCode;

/* A run of bytes that belongs to someone else. data is NULL when absent. */
typedef struct NsmSpan {
    const uint8_t *data;
    size_t len;
} NsmSpan;

/* What the guest wants inside its attestation document; each may be absent. */
typedef struct NsmAttestRequest {
    NsmSpan user_data;
    NsmSpan nonce;
    NsmSpan public_key;
} NsmAttestRequest;

typedef struct NsmState NsmState;

/*
 * Writes one attestation document (a COSE_Sign1, RFC 9052) of at most @cap
 * bytes to @buf and its length to @len. The request's spans live only during
 * the call. Returns NSM_SUCCESS, NSM_BUFFER_TOO_SMALL or NSM_INTERNAL_ERROR;
 * on an error it may point @reason to one sentence for the log, which has to
 * stay valid until the next call.
 */
typedef NsmCode NsmAttestFn(void *opaque, const NsmState *state,
                            const NsmAttestRequest *request,
                            uint8_t *buf, size_t cap, size_t *len,
                            const char **reason);

/* Fills @buf with @len unpredictable bytes; false when it cannot. */
typedef bool NsmRandomFn(void *opaque, uint8_t *buf, size_t len);

/*
 * The enclave's NSM. Only the first three members are state of the guest;
 * they are flat so that a migration format can name them one by one:
 *
 *     pcr         uint8_t [32][48]
 *     locked      uint32_t, bit n set: PCR n is locked
 *     module_id   uint8_t [100], text with NUL
 *
 * under NSM_STATE_VERSION, which grows when that list changes. After loading
 * them from outside, nsm_state_valid() has to agree. The hooks are the
 * host's and never travel.
 *
 * Read the members freely; change them only through the functions below.
 */
#define NSM_STATE_VERSION 1

struct NsmState {
    uint8_t pcr[NSM_PCR_COUNT][NSM_PCR_SIZE];
    uint32_t locked;
    uint8_t module_id[NSM_MODULE_ID_MAX + 1];

    NsmRandomFn *random;
    void *random_opaque;
    NsmAttestFn *attest;        /* NULL: Attestation answers InternalError */
    void *attest_opaque;
};

/* For traces and logs: what a request was and how it ended. */
typedef struct NsmResult {
    NsmOp op;
    NsmCode code;               /* the verdict, even if its text did not fit */
    uint32_t number;            /* index or range of the request, else 0 */
    const char *reason;         /* a sentence (till the next call) or NULL */
} NsmResult;

/* Values measured at boot. A NULL digest or string leaves its PCR zero. */
typedef struct NsmBoot {
    const uint8_t *pcr0;        /* 48 bytes each: final values, as the EIF */
    const uint8_t *pcr1;        /* core computes them, not yet to be hashed */
    const uint8_t *pcr2;
    const uint8_t *pcr8;
    const char *parent_role;    /* IAM role ARN of the parent -> PCR3 */
    const char *parent_id;      /* instance id of the parent -> PCR4 */
    bool debug;                 /* PCR0, 1, 2 and 8 stay zero, as on AWS */
} NsmBoot;

/*
 * nsm_module_id_valid: 1..99 printable ASCII characters without space?
 *
 * Clients need a text that is not empty, and certificates carry it as a name.
 */
bool nsm_module_id_valid(const char *module_id);

/*
 * nsm_init: a fresh NSM: PCRs zero, none locked, random bytes from gnutls,
 * no attestation. @module_id must be valid. The struct is the caller's and
 * holds no resource: there is nothing to free.
 */
void nsm_init(NsmState *s, const char *module_id);

/* nsm_set_random: another random source; NULL brings gnutls's back. */
void nsm_set_random(NsmState *s, NsmRandomFn *fn, void *opaque);

/* nsm_set_attest: who makes attestation documents; NULL for nobody. */
void nsm_set_attest(NsmState *s, NsmAttestFn *fn, void *opaque);

/*
 * nsm_boot: state at the guest's first instruction: all PCRs zero but the
 * measured ones, 0..15 locked, 16..31 open. Forgets whatever was before, so
 * it may be called once more when a better measurement is known, and must not
 * be called once the guest runs. False only when the hash function fails.
 */
bool nsm_boot(NsmState *s, const NsmBoot *boot);

/*
 * nsm_pcr_extend: PCR @index = SHA384(PCR @index || data), regardless of its
 * lock: the rule for guests is in nsm_handle(). False when hashing fails;
 * the register then keeps its value.
 */
bool nsm_pcr_extend(NsmState *s, unsigned index,
                    const uint8_t *data, size_t len);

/* nsm_pcr_locked: is PCR @index (0..31) locked? */
static inline bool nsm_pcr_locked(const NsmState *s, unsigned index)
{
    return s->locked >> index & 1;
}

/* nsm_module_id: the module id as a C string. */
static inline const char *nsm_module_id(const NsmState *s)
{
    return (const char *)s->module_id;
}

/*
 * nsm_state_valid: are these members (just loaded from a migration stream)
 * ones that this NSM could have reached? Points @why to the fault if not.
 */
bool nsm_state_valid(const NsmState *s, const char **why);

/*
 * nsm_handle: serve one request.
 *
 * @req:      @req_len bytes from the guest; not read when that is longer
 *            than NSM_REQUEST_MAX (may be NULL then, and when it is 0)
 * @resp:     room for @resp_cap bytes (any size; more than NSM_RESPONSE_MAX is
 *            not used); must not overlap @req
 * @info:     what happened; may be NULL
 *
 * Returns the exact length of the answer. When a success does not fit, the
 * request has no effect and the answer is BufferTooSmall. When that, or
 * another error, is too long in turn, a shorter error's name stands in for
 * it (InternalError, at last InvalidIndex); info->code has the true one.
 * 0 is returned only when nothing fits (@resp_cap < NSM_RESPONSE_MIN).
 */
size_t nsm_handle(NsmState *s, const uint8_t *req, size_t req_len,
                  uint8_t *resp, size_t resp_cap, NsmResult *info);

/*
 * nsm_request_op: what a request asks for, NSM_OP_NONE for what is none. Its
 * arguments may be wrong all the same.
 */
NsmOp nsm_request_op(const uint8_t *req, size_t req_len);

/* nsm_refuse: the answer @code, as nsm_handle() would encode it. */
size_t nsm_refuse(NsmCode code, uint8_t *resp, size_t resp_cap);

/* Names for traces: "ExtendPCR" ("-" for none), "InvalidIndex". */
const char *nsm_op_name(NsmOp op);
const char *nsm_code_name(NsmCode code);

#endif /* NITRO_NSM_H */
