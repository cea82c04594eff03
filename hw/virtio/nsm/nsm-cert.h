/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM attestation: one certificate, taken apart
 */
#ifndef NSM_CERT_H
#define NSM_CERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct NsmDer {
    const uint8_t *data;
    size_t len;
} NsmDer;

/* Spans point into the certificate. */
typedef struct NsmCert {
    NsmDer tbs;                 /* what is signed */
    NsmDer issuer;              /* Name, with its head */
    NsmDer subject;
    int64_t begin;              /* unix seconds */
    int64_t end;
    bool p384;                  /* an uncompressed key on P-384 */
    bool ecdsa_sha384;          /* says so of its signature, in both places */
    bool has_constraints;       /* BasicConstraints */
    bool constraints_critical;
    bool ca;
    int64_t path_length;        /* -1: no limit */
    bool has_usage;             /* KeyUsage */
    bool cert_sign;
} NsmCert;

/* What is wrong, such as "has the extension 2.5.29.15 twice" */
typedef struct NsmCertFault {
    bool extension;             /* one that is critical or limits names */
    char text[160];
} NsmCertFault;

/*
 * Takes @len bytes apart by rules that leave no two readings; the Python
 * package's attestation/certificate.py has the same ones, so that machine and
 * verifier give one verdict. Looks at neither key nor signature. False with
 * @fault filled otherwise.
 */
bool nsm_cert_parse(NsmCert *cert, const uint8_t *der, size_t len,
                    NsmCertFault *fault);

#endif /* NSM_CERT_H */
