/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Attestation documents for the NSM core: the signer
 *
 * A signer makes what a verifier of AWS Nitro attestation expects: an untagged
 * COSE_Sign1 (RFC 9052) with ES384, whose payload carries an X.509 chain from
 * a root down to the enclave's own certificate. The enclave's key is made in
 * this process and never leaves it. The chain is the user's, from two PEM
 * files, or an ephemeral one that this process makes for itself.
 *
 * What such a document proves is which code was measured, and that whoever
 * signed holds the chain's key. It does not prove that hardware protects
 * anything: the root is local and says so in its name.
 *
 * Sources: the payload's fields and their limits are those of AWS's
 * attestation guide (aws-nitro-enclaves-nsm-api, docs/attestation_process.md);
 * order, encodings and the certificates' shape are those of real documents.
 */
#ifndef NITRO_NSM_ATTEST_H
#define NITRO_NSM_ATTEST_H

#include "nitro/nsm.h"

/* Longest certificate in a document, in bytes of DER (AWS's guide). */
#define NSM_CERT_MAX 1024

/*
 * All certificates of a chain together, in bytes of DER. With that, a document
 * with any fields that fit a request fits an answer of NSM_RESPONSE_MAX.
 */
#define NSM_CHAIN_BYTES_MAX 5000

/* Certificates in a chain, root and instance CA included; AWS's have 4. */
#define NSM_CHAIN_MAX 8

/*
 * What can be wrong with a chain and its key, in the order of the checks. The
 * name of each, for messages and tests, is nsm_signer_fault_name()'s.
 */
typedef enum NsmSignerFault {
    NSM_SIGNER_OK,
    NSM_SIGNER_OPTIONS,         /* one of the two files without the other */
    NSM_SIGNER_UNREADABLE,      /* a file cannot be read, or is too long */
    NSM_SIGNER_KEY_MALFORMED,   /* no unencrypted private key in PEM */
    NSM_SIGNER_KEY_TYPE,        /* a key that is not on P-384 */
    NSM_SIGNER_CHAIN_MALFORMED, /* not a list of X.509 certificates in PEM */
    NSM_SIGNER_CHAIN_LENGTH,    /* too many of them, or too long together */
    NSM_SIGNER_CERT_TOO_LARGE,  /* one longer than NSM_CERT_MAX */
    NSM_SIGNER_CERT_MALFORMED,  /* one that is read in more than one way */
    NSM_SIGNER_CERT_EXTENSION,  /* an unknown critical one, or limits names */
    NSM_SIGNER_CERT_KEY,        /* one whose key is not on P-384 */
    NSM_SIGNER_CERT_ALGORITHM,  /* one not signed by ecdsa-with-SHA384 */
    NSM_SIGNER_CERT_ISSUER,     /* not issued by the one before it (itself) */
    NSM_SIGNER_CERT_SIGNATURE,  /* not signed by its issuer's key */
    NSM_SIGNER_CERT_NOT_CA,     /* no critical BasicConstraints CA:TRUE */
    NSM_SIGNER_CERT_KEY_USAGE,  /* KeyUsage without keyCertSign */
    NSM_SIGNER_CERT_PATH_LENGTH, /* more CAs below it than it allows */
    NSM_SIGNER_CERT_NOT_YET_VALID,
    NSM_SIGNER_CERT_EXPIRED,
    NSM_SIGNER_KEY_MISMATCH,    /* not the key of the last certificate */
    NSM_SIGNER_CERT_MEASURED,   /* the last one does not say "unmeasured" */
    NSM_SIGNER_LEAF_TOO_LARGE,  /* its issuer's name makes the leaf too long */
    NSM_SIGNER_CRYPTO,          /* gnutls failed at something of ours */
    NSM_SIGNER_FAULT_COUNT,
} NsmSignerFault;

typedef struct NsmSignerError {
    NsmSignerFault fault;
    char text[1024];            /* a sentence: file, certificate, value */
} NsmSignerError;

/* Milliseconds since 1970-01-01 00:00 UTC. */
typedef int64_t NsmClockFn(void *opaque);

/*
 * AWS's documents changed: since July 2024 the instance's certificate has key
 * identifiers, since April 2025 the payload is a map of indefinite length.
 */
typedef enum NsmDocumentForm {
    NSM_DOCUMENT_2025,
    NSM_DOCUMENT_2023,
} NsmDocumentForm;

/* In a certificate's name, in any case of letters; verifiers look for it. */
#define NSM_UNMEASURED "unmeasured"

typedef struct NsmSignerOptions {
    /*
     * PEM files: the chain with its root first and the instance CA last, and
     * the instance CA's private key. Both NULL: make an ephemeral chain.
     */
    const char *cert_chain;
    const char *cert_key;
    NsmDocumentForm form;
    /*
     * The PCRs do not say what runs: documents have to be issued by a
     * certificate with an organizational unit that has NSM_UNMEASURED in it.
     */
    bool unmeasured;
    NsmClockFn *clock;          /* NULL: the host's clock */
    void *clock_opaque;
} NsmSignerOptions;

typedef struct NsmSigner NsmSigner;

/*
 * nsm_signer_new: read or make a chain, check it, and issue the certificate of
 * the enclave @module_id. Returns NULL and fills @err on any fault.
 */
NsmSigner *nsm_signer_new(const NsmSignerOptions *options,
                          const char *module_id, NsmSignerError *err);

void nsm_signer_free(NsmSigner *signer);

/* nsm_signer_root: the chain's root, in PEM; lives as long as the signer. */
const char *nsm_signer_root(const NsmSigner *signer);

/*
 * nsm_signer_set_expired: from now on documents come with a certificate of the
 * enclave's that expired some twenty hours ago, or no longer do. For tests of
 * who verifies them.
 */
void nsm_signer_set_expired(NsmSigner *signer, bool expired);

/*
 * nsm_signer_attest: for nsm_set_attest(), with the NsmSigner as @opaque.
 *
 * The enclave's certificate is used for many documents and replaced, with its
 * key, an hour before it expires, and when the module id or the clock
 * has moved out of it. When the chain itself has ended there are no documents
 * any more, but InternalError with the reason.
 */
NsmAttestFn nsm_signer_attest;

/* nsm_signer_fault_name: kebab-case, such as "certificate-expired". */
const char *nsm_signer_fault_name(NsmSignerFault fault);

#endif /* NITRO_NSM_ATTEST_H */
