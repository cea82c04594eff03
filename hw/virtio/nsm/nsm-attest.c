/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM attestation: documents
 *
 * Payload and COSE_Sign1 envelope, and when the enclave's certificate is
 * replaced. The certificates themselves are nsm-chain.c's.
 */
#include <string.h>
#include <time.h>
#include <glib.h>
#include <gnutls/crypto.h>

#include "nsm-chain.h"
#include "nsm-internal.h"

/*
 * Replace the enclave's certificate when so many seconds are left to it: a
 * document has to stay verifiable for a while after it was made.
 */
#define RENEW_BEFORE 3600

/* So long ago is a certificate issued that shall have expired. */
#define EXPIRED_BY (24 * 3600)

#define SIGNATURE_SIZE (2 * NSM_P384_SIZE)

/*
 * RFC 9052. COSE_Sign1 (section 4.2) begins with the protected header as a
 * byte string, {1: -35} for ES384, and an empty unprotected one ...
 */
static const uint8_t envelope[] = { 0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0 };
/* ... Sig_structure (4.4) with a text, the former and an empty external_aad. */
static const uint8_t to_sign[] = {
    0x84, 0x6a, 'S', 'i', 'g', 'n', 'a', 't', 'u', 'r', 'e', '1',
    0x44, 0xa1, 0x01, 0x38, 0x22, 0x40,
};

struct NsmSigner {
    NsmChain chain;
    NsmLeaf leaf;
    NsmDocumentForm form;
    bool expired;
    NsmClockFn *clock;
    void *clock_opaque;
    NsmSignerError err;         /* holds the reason of the last failure */
};

static int64_t host_clock(void *opaque)
{
    struct timespec now;

    (void)opaque;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

NsmSigner *nsm_signer_new(const NsmSignerOptions *options,
                          const char *module_id, NsmSignerError *err)
{
    NsmSigner *s = g_new0(NsmSigner, 1);
    int64_t now;
    bool good;

    *err = (NsmSignerError) { .fault = NSM_SIGNER_OK };
    s->form = options->form;
    s->clock = options->clock ? options->clock : host_clock;
    s->clock_opaque = options->clock_opaque;
    now = s->clock(s->clock_opaque) / 1000;

    if (!options->cert_chain != !options->cert_key) {
        err->fault = NSM_SIGNER_OPTIONS;
        g_strlcpy(err->text, "cert-chain and cert-key go together: "
                  "give both files, or none for an ephemeral chain",
                  sizeof(err->text));
        good = false;
    } else if (options->cert_chain) {
        good = nsm_chain_load(&s->chain, options->cert_chain,
                              options->cert_key, options->unmeasured, now,
                              err);
    } else {
        good = nsm_chain_make(&s->chain, module_id, s->form,
                              options->unmeasured, now, err);
    }
    if (!good || !nsm_leaf_issue(&s->leaf, &s->chain, module_id, now, err)) {
        nsm_signer_free(s);
        return NULL;
    }
    return s;
}

void nsm_signer_free(NsmSigner *s)
{
    if (s) {
        nsm_leaf_clear(&s->leaf);
        nsm_chain_clear(&s->chain);
        g_free(s);
    }
}

const char *nsm_signer_root(const NsmSigner *s)
{
    /* gnutls ends PEM with a NUL that it does not count. */
    return (const char *)s->chain.root_pem.data;
}

void nsm_signer_set_expired(NsmSigner *s, bool expired)
{
    s->expired = expired;
}

/* Makes sure that the enclave's certificate serves @module_id at @now. */
static bool refresh(NsmSigner *s, const char *module_id, int64_t now)
{
    int64_t issued = s->expired ? now - EXPIRED_BY : now;
    NsmLeaf fresh = { 0 };
    char text[NSM_TIME_TEXT];

    if (now >= s->chain.end) {
        g_snprintf(s->err.text, sizeof(s->err.text),
                   "the certificate chain ended at %s: start the enclave "
                   "again with a new one",
                   nsm_time_text(s->chain.end, text));
        return false;
    }
    if (now < s->chain.begin) {
        g_snprintf(s->err.text, sizeof(s->err.text),
                   "the certificate chain begins at %s: is the host's clock "
                   "right?", nsm_time_text(s->chain.begin, text));
        return false;
    }
    if (issued >= s->leaf.begin && issued < s->leaf.end - RENEW_BEFORE &&
        !strcmp(module_id, s->leaf.module_id)) {
        return true;
    }
    if (!nsm_leaf_issue(&fresh, &s->chain, module_id, issued, &s->err)) {
        nsm_leaf_clear(&fresh);
        return false;
    }
    nsm_leaf_clear(&s->leaf);
    s->leaf = fresh;
    return true;
}

static void put_optional(NsmWriter *w, const char *key, const NsmSpan *value)
{
    nsm_put_text(w, key);
    if (value->data) {
        nsm_put_bytes(w, value->data, value->len);
    } else {
        nsm_put_null(w);
    }
}

/* The order of real documents. Absent fields are null, not left out. */
static void put_payload(NsmWriter *w, const NsmSigner *s,
                        const NsmState *state, const NsmAttestRequest *request,
                        int64_t now_ms)
{
    if (s->form == NSM_DOCUMENT_2023) {
        nsm_put_map(w, 9);
    } else {
        nsm_put_map_begin(w);
    }
    nsm_put_text(w, "module_id");
    nsm_put_text(w, nsm_module_id(state));
    nsm_put_text(w, "digest");
    nsm_put_text(w, "SHA384");
    nsm_put_text(w, "timestamp");
    nsm_put_uint(w, now_ms);
    nsm_put_text(w, "pcrs");
    nsm_put_map(w, __builtin_popcount(state->locked));
    for (unsigned i = 0; i < NSM_PCR_COUNT; i++) {
        if (nsm_pcr_locked(state, i)) {
            nsm_put_uint(w, i);
            nsm_put_bytes(w, state->pcr[i], NSM_PCR_SIZE);
        }
    }
    nsm_put_text(w, "certificate");
    nsm_put_bytes(w, s->leaf.der.data, s->leaf.der.size);
    nsm_put_text(w, "cabundle");
    nsm_put_array(w, s->chain.count);
    for (size_t i = 0; i < s->chain.count; i++) {
        nsm_put_bytes(w, s->chain.der[i].data, s->chain.der[i].size);
    }
    put_optional(w, "public_key", &request->public_key);
    put_optional(w, "user_data", &request->user_data);
    put_optional(w, "nonce", &request->nonce);
    if (s->form != NSM_DOCUMENT_2023) {
        nsm_put_map_end(w);
    }
}

/* r or s, an integer of any length, into 48 bytes with zeros in front */
static bool put_integer(uint8_t *out, const gnutls_datum_t *integer)
{
    const uint8_t *data = integer->data;
    size_t len = integer->size;

    while (len > 0 && *data == 0) {
        data++;
        len--;
    }
    if (len > NSM_P384_SIZE) {
        return false;
    }
    memset(out, 0, NSM_P384_SIZE - len);
    memcpy(out + NSM_P384_SIZE - len, data, len);
    return true;
}

/* Signs Sig_structure with @payload, the byte string with its head, in it. */
static bool sign(gnutls_privkey_t key, const uint8_t *payload, size_t len,
                 uint8_t out[SIGNATURE_SIZE])
{
    uint8_t digest[NSM_PCR_SIZE];
    const gnutls_datum_t hash = { digest, sizeof(digest) };
    gnutls_datum_t signature = { NULL, 0 }, r = { NULL, 0 }, s = { NULL, 0 };
    gnutls_hash_hd_t hasher;
    bool good;

    if (gnutls_hash_init(&hasher, GNUTLS_DIG_SHA384) < 0) {
        return false;
    }
    good = gnutls_hash(hasher, to_sign, sizeof(to_sign)) >= 0 &&
        gnutls_hash(hasher, payload, len) >= 0;
    gnutls_hash_deinit(hasher, digest);

    good = good &&
        gnutls_privkey_sign_hash(key, GNUTLS_DIG_SHA384, 0, &hash,
                                 &signature) >= 0 &&
        gnutls_decode_rs_value(&signature, &r, &s) >= 0 &&
        put_integer(out, &r) && put_integer(out + NSM_P384_SIZE, &s);
    gnutls_free(signature.data);
    gnutls_free(r.data);
    gnutls_free(s.data);
    return good;
}

NsmCode nsm_signer_attest(void *opaque, const NsmState *state,
                          const NsmAttestRequest *request,
                          uint8_t *buf, size_t cap, size_t *len,
                          const char **reason)
{
    NsmSigner *s = opaque;
    int64_t now_ms = s->clock(s->clock_opaque);
    NsmWriter w = { .buf = buf, .cap = cap };
    NsmWriter head;
    uint8_t *space, *signature;
    size_t start;

    *reason = s->err.text;
    if (!refresh(s, nsm_module_id(state), now_ms / 1000)) {
        return NSM_INTERNAL_ERROR;
    }

    space = nsm_put_space(&w, sizeof(envelope));
    if (space) {
        memcpy(space, envelope, sizeof(envelope));
    }
    /* With a certificate inside, the payload has 256 to 65535 bytes. */
    head = w;
    nsm_put_bytes_head(&w, UINT16_MAX);
    start = w.len;
    put_payload(&w, s, state, request, now_ms);
    nsm_put_bytes_head(&head, w.len - start);
    nsm_put_bytes_head(&w, SIGNATURE_SIZE);
    signature = nsm_put_space(&w, SIGNATURE_SIZE);
    if (!signature) {
        g_strlcpy(s->err.text, "the document does not fit the guest's buffer",
                  sizeof(s->err.text));
        return NSM_BUFFER_TOO_SMALL;
    }
    g_assert(head.len == start);

    if (!sign(s->leaf.key, buf + sizeof(envelope),
              signature - 2 - (buf + sizeof(envelope)), signature)) {
        g_strlcpy(s->err.text, "gnutls could not sign the document",
                  sizeof(s->err.text));
        return NSM_INTERNAL_ERROR;
    }
    *reason = NULL;
    *len = w.len;
    return NSM_SUCCESS;
}
