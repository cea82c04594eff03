/*
 * SPDX-License-Identifier: MIT
 *
 * A module whose documents tests ask for, and their judges
 *
 * The clock is the test's. A document is taken apart with libcbor's tree
 * builder, which the signer does not use; the openssl program judges chain and
 * signature, and reads certificates.
 */
#ifndef TESTS_NSM_MODULE_H
#define TESTS_NSM_MODULE_H

#include "nitro/nsm-attest.h"
#include "notation.h"

#define MODULE_ID "i-1234567890abcdef0-enc0123456789abcdef"
#define PLAIN "a1 6b 'Attestation' a0"

/* 2026-01-31 12:00:00.123 UTC = 0x019c13ec9e7b ms */
#define NOW 1769860800
#define NOW_MS (NOW * 1000LL + 123)
#define HOUR 3600
#define DAY (24 * HOUR)

extern int64_t clock_ms;
extern NsmDocumentForm form;    /* of documents of the next signer */

int64_t test_clock(void *opaque);

/* Work folder of one test; files alone lie in it. */
char *folder_new(void);
void folder_free(char *folder);
void put_file(const char *folder, const char *name,
              const void *data, size_t len);

/* Runs openssl in @folder, which must go well: stdout and stderr. */
char *openssl(const char *folder, const char *format, ...)
    G_GNUC_PRINTF(2, 3);
/* What it says of the certificate in @der, which @command calls c.der. */
char *openssl_reads(const GByteArray *der, const char *command);

typedef struct Document {
    GByteArray *raw;
    GByteArray *payload;
    uint8_t signature[96];
    GByteArray *certificate;
    GByteArray *cabundle[NSM_CHAIN_MAX];
    size_t bundled;
} Document;

void document_parse(Document *d, const uint8_t *data, size_t len);
void document_clear(Document *d);

/* One that makes its own chain. */
NsmSigner *signer_new(const char *module_id);
/* A module with PCRs a0.., a1.., a2.., whose documents @signer signs. */
void boot(NsmState *s, NsmSigner *signer, const char *module_id);
/* Both, at NOW_MS. */
NsmSigner *module_start(NsmState *s, const char *module_id);

/* Asks as a guest does, and takes the document out of the answer. */
void ask(NsmState *s, const char *request, Document *d);
/* Asks at @now in vain: an InternalError, for @reason. */
void expect_no_document(NsmState *s, int64_t now, const char *reason);

/* ASN.1 of an ECDSA signature (RFC 3279, section 2.2.3) */
GByteArray *signature_der(const uint8_t raw[96]);
/* RFC 9052, section 4.4, written down independently of the signer */
GByteArray *sig_structure(const Document *d);
/* To openssl, chain and signature are good; what is not signed is not. */
void verify(const Document *d, int64_t now);

#endif /* TESTS_NSM_MODULE_H */
