/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM attestation: certificates
 *
 * What nsm-attest.c gets: a chain of CA certificates, read and checked
 * (nsm-chain-load.c) or made (nsm-chain.c), and the enclave's certificates,
 * issued by its last one.
 */
#ifndef NSM_CHAIN_H
#define NSM_CHAIN_H

#include <glib.h>
#include <gnutls/abstract.h>
#include <gnutls/x509.h>

#include "nitro/nsm-attest.h"

/* P-384: bytes of a coordinate, of a scalar, and of half a signature */
#define NSM_P384_SIZE 48

typedef struct NsmChain {
    size_t count;
    gnutls_x509_crt_t cert[NSM_CHAIN_MAX];      /* root first */
    gnutls_datum_t der[NSM_CHAIN_MAX];
    gnutls_privkey_t key;                       /* of the last one */
    gnutls_datum_t root_pem;
    /*
     * Unix seconds from which and before which all of them are valid. RFC 5280
     * counts the last second in, openssl does not: nor do we.
     */
    int64_t begin;
    int64_t end;
} NsmChain;

/* The enclave's own certificate and key */
typedef struct NsmLeaf {
    char module_id[NSM_MODULE_ID_MAX + 1];
    gnutls_privkey_t key;
    gnutls_datum_t der;
    int64_t begin;
    int64_t end;
} NsmLeaf;

/*
 * All times are unix seconds. Each fills a zeroed struct, which is the
 * caller's to clear also when they fail.
 */
bool nsm_chain_load(NsmChain *chain, const char *cert_file,
                    const char *key_file, bool unmeasured, int64_t now,
                    NsmSignerError *err);
bool nsm_chain_make(NsmChain *chain, const char *module_id,
                    NsmDocumentForm form, bool unmeasured, int64_t now,
                    NsmSignerError *err);
void nsm_chain_clear(NsmChain *chain);

bool nsm_leaf_issue(NsmLeaf *leaf, const NsmChain *chain,
                    const char *module_id, int64_t now, NsmSignerError *err);
void nsm_leaf_clear(NsmLeaf *leaf);

/* Fill @err from a sentence, or from what gnutls says; always false. */
bool nsm_fail(NsmSignerError *err, NsmSignerFault fault,
              const char *format, ...) G_GNUC_PRINTF(3, 4);
bool nsm_fail_crypto(NsmSignerError *err, const char *what, int ret);
/* Fills @chain->root_pem. */
bool nsm_export_root(NsmChain *chain, NsmSignerError *err);

/* "2026-01-31 12:00:00 UTC" */
#define NSM_TIME_TEXT 40
const char *nsm_time_text(int64_t time, char buf[NSM_TIME_TEXT]);

#endif /* NSM_CHAIN_H */
