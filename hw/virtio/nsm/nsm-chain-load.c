/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM attestation: the user's certificates
 *
 * Reads a chain and its key from PEM files and checks them as a verifier of
 * documents would (RFC 5280, section 6.1, narrowed to P-384 and SHA-384), so
 * that a fault shows at the start and not in the first document.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <glib.h>

#include "nsm-cert.h"
#include "nsm-chain.h"

/* No chain of 8 certificates with comments is longer. */
#define PEM_FILE_MAX (256 * 1024)

/* The whole file, to be freed with g_free(). */
static bool read_file(const char *option, const char *name,
                      gnutls_datum_t *out, NsmSignerError *err)
{
    uint8_t *data = g_malloc(PEM_FILE_MAX);
    FILE *file = fopen(name, "rb");
    size_t len = file ? fread(data, 1, PEM_FILE_MAX, file) : 0;
    bool good = false;

    if (!file || ferror(file)) {
        nsm_fail(err, NSM_SIGNER_UNREADABLE, "%s %s: cannot be read: %s",
                 option, name, g_strerror(errno));
    } else if (len == PEM_FILE_MAX) {
        nsm_fail(err, NSM_SIGNER_UNREADABLE,
                 "%s %s: longer than the %d bytes that a PEM file may have",
                 option, name, PEM_FILE_MAX - 1);
    } else {
        *out = (gnutls_datum_t) { data, len };
        good = true;
    }
    if (file) {
        fclose(file);
    }
    if (!good) {
        g_free(data);
    }
    return good;
}

/* The point of a public key on P-384; false for any other key. */
static bool point_of(gnutls_pubkey_t key, uint8_t point[2 * NSM_P384_SIZE])
{
    gnutls_datum_t part[2];
    gnutls_ecc_curve_t curve;
    bool good = true;

    if (gnutls_pubkey_get_pk_algorithm(key, NULL) != GNUTLS_PK_ECDSA ||
        gnutls_pubkey_export_ecc_raw2(key, &curve, &part[0], &part[1],
                                      GNUTLS_EXPORT_FLAG_NO_LZ) < 0) {
        return false;
    }
    memset(point, 0, 2 * NSM_P384_SIZE);
    for (int i = 0; i < 2; i++) {
        if (curve != GNUTLS_ECC_CURVE_SECP384R1 ||
            part[i].size > NSM_P384_SIZE) {
            good = false;
        } else {
            memcpy(point + (i + 1) * NSM_P384_SIZE - part[i].size,
                   part[i].data, part[i].size);
        }
        gnutls_free(part[i].data);
    }
    return good;
}

static bool load_key(NsmChain *chain, const char *name,
                     uint8_t point[2 * NSM_P384_SIZE], NsmSignerError *err)
{
    gnutls_datum_t pem = { NULL, 0 };
    gnutls_pubkey_t public = NULL;
    bool good = false;
    unsigned bits = 0;
    int ret;

    if (!read_file("cert-key", name, &pem, err)) {
        return false;
    }
    ret = gnutls_privkey_init(&chain->key);
    if (ret >= 0) {
        ret = gnutls_privkey_import_x509_raw(chain->key, &pem,
                                             GNUTLS_X509_FMT_PEM, NULL,
                                             GNUTLS_PKCS_PLAIN);
    }
    gnutls_memset(pem.data, 0, pem.size);
    g_free(pem.data);
    if (ret < 0) {
        return nsm_fail(err, NSM_SIGNER_KEY_MALFORMED, "cert-key %s: no "
                        "private key in PEM without a password: %s",
                        name, gnutls_strerror(ret));
    }
    ret = gnutls_pubkey_init(&public);
    if (ret >= 0) {
        ret = gnutls_pubkey_import_privkey(public, chain->key, 0, 0);
    }
    if (ret < 0) {
        nsm_fail_crypto(err, "derive a public key", ret);
    } else if (!point_of(public, point)) {
        ret = gnutls_privkey_get_pk_algorithm(chain->key, &bits);
        nsm_fail(err, NSM_SIGNER_KEY_TYPE,
                 "cert-key %s: the key (%s, %u bits) is not on P-384 "
                 "(secp384r1)", name, gnutls_pk_get_name(ret), bits);
    } else {
        good = true;
    }
    gnutls_pubkey_deinit(public);
    return good;
}

/* Which certificate of which file a message is about */
typedef struct Where {
    const char *file;
    const NsmChain *chain;
    size_t index;
} Where;

static bool G_GNUC_PRINTF(4, 5) fail_at(const Where *at, NsmSignerError *err,
                                        NsmSignerFault fault,
                                        const char *format, ...)
{
    gnutls_datum_t dn = { NULL, 0 };
    char what[200];
    va_list args;

    va_start(args, format);
    g_vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    if (gnutls_x509_crt_get_dn3(at->chain->cert[at->index], &dn, 0) < 0) {
        dn.data = NULL;
    }
    for (unsigned i = 0; dn.data && i < dn.size; i++) {
        /* A name may hold anything, and ends on somebody's terminal. */
        dn.data[i] = g_ascii_isprint(dn.data[i]) ? dn.data[i] : '?';
    }
    nsm_fail(err, fault, "cert-chain %s: certificate %zu of %zu (%.100s) %s",
             at->file, at->index + 1, at->chain->count,
             dn.data ? (char *)dn.data : "without a readable name", what);
    gnutls_free(dn.data);
    return false;
}

static bool signature_good(gnutls_x509_crt_t cert, const NsmDer *tbs,
                           gnutls_pubkey_t issuer)
{
    uint8_t bytes[2 * NSM_P384_SIZE + 16];      /* DER of two integers */
    size_t size = sizeof(bytes);
    gnutls_datum_t signature = { bytes, 0 };
    const gnutls_datum_t part = { (uint8_t *)tbs->data, tbs->len };

    if (gnutls_x509_crt_get_signature(cert, (char *)bytes, &size) < 0) {
        return false;
    }
    signature.size = size;
    return gnutls_pubkey_verify_data2(issuer, GNUTLS_SIGN_ECDSA_SHA384, 0,
                                      &part, &signature) >= 0;
}

/*
 * Checks certificate @at->index, read into @own, and takes its point. @key is
 * its key; @issuer and @issuer_key are those of the one before it, or its own
 * for the root.
 */
static bool check_certificate(const Where *at, const NsmCert *own,
                              gnutls_pubkey_t key, const NsmCert *issuer,
                              gnutls_pubkey_t issuer_key, int64_t now,
                              uint8_t point[2 * NSM_P384_SIZE],
                              NsmSignerError *err)
{
    const NsmChain *chain = at->chain;
    size_t i = at->index, below = chain->count - 1 - i;
    char text[2][NSM_TIME_TEXT];

    if (!own->p384 || !point_of(key, point)) {
        return fail_at(at, err, NSM_SIGNER_CERT_KEY,
                       "has a key that is not on P-384 (secp384r1)");
    }
    if (!own->ecdsa_sha384) {
        return fail_at(at, err, NSM_SIGNER_CERT_ALGORITHM,
                       "is not signed with ecdsa-with-SHA384");
    }
    if (own->issuer.len != issuer->subject.len ||
        memcmp(own->issuer.data, issuer->subject.data, own->issuer.len)) {
        return fail_at(at, err, NSM_SIGNER_CERT_ISSUER, i ?
                       "was not issued by the one before it: the root comes "
                       "first, the instance's certificate last" :
                       "comes first, but is no root: it was issued by "
                       "another");
    }
    if (!signature_good(chain->cert[i], &own->tbs, issuer_key)) {
        return fail_at(at, err, NSM_SIGNER_CERT_SIGNATURE,
                       "is not signed by %s",
                       i ? "the key of the one before it" : "its own key");
    }
    if (!own->has_constraints || !own->ca || !own->constraints_critical) {
        return fail_at(at, err, NSM_SIGNER_CERT_NOT_CA,
                       "is no CA: it needs critical BasicConstraints CA:TRUE");
    }
    if (!own->has_usage || !own->cert_sign) {
        return fail_at(at, err, NSM_SIGNER_CERT_KEY_USAGE,
                       "may not sign certificates: no keyCertSign in KeyUsage");
    }
    if (own->path_length >= 0 && (size_t)own->path_length < below) {
        return fail_at(at, err, NSM_SIGNER_CERT_PATH_LENGTH,
                       "allows %d CA certificates below it; there are %zu",
                       (int)own->path_length, below);
    }
    if (now < own->begin) {
        return fail_at(at, err, NSM_SIGNER_CERT_NOT_YET_VALID,
                       "is valid from %s on; it is %s",
                       nsm_time_text(own->begin, text[0]),
                       nsm_time_text(now, text[1]));
    }
    if (now >= own->end) {
        return fail_at(at, err, NSM_SIGNER_CERT_EXPIRED,
                       "expired at %s; it is %s",
                       nsm_time_text(own->end, text[0]),
                       nsm_time_text(now, text[1]));
    }
    return true;
}

static void limit_validity(NsmChain *chain, int64_t begin, int64_t end)
{
    chain->begin = MAX(chain->begin, begin);
    chain->end = MIN(chain->end, end);
}

/* Size and shape: what is known without any other certificate */
static bool read_certificate(const Where *at, NsmCert *cert,
                             NsmSignerError *err)
{
    const gnutls_datum_t *der = &at->chain->der[at->index];
    NsmCertFault fault;

    if (der->size > NSM_CERT_MAX) {
        return fail_at(at, err, NSM_SIGNER_CERT_TOO_LARGE,
                       "has %u bytes of DER; a document takes at most %d",
                       der->size, NSM_CERT_MAX);
    }
    if (!nsm_cert_parse(cert, der->data, der->size, &fault)) {
        return fail_at(at, err, fault.extension ? NSM_SIGNER_CERT_EXTENSION :
                       NSM_SIGNER_CERT_MALFORMED, "%s", fault.text);
    }
    return true;
}

static bool check_chain(NsmChain *chain, const char *file, int64_t now,
                        uint8_t point[2 * NSM_P384_SIZE], NsmSignerError *err)
{
    gnutls_pubkey_t key[NSM_CHAIN_MAX] = { NULL };
    NsmCert cert[NSM_CHAIN_MAX];
    bool good = true;

    chain->begin = INT64_MIN;
    chain->end = INT64_MAX;
    for (size_t i = 0; good && i < chain->count; i++) {
        const Where at = { .file = file, .chain = chain, .index = i };
        size_t above = i ? i - 1 : 0;
        int ret = gnutls_pubkey_init(&key[i]);

        if (ret < 0) {
            good = nsm_fail_crypto(err, "hold a public key", ret);
        } else if (!read_certificate(&at, &cert[i], err)) {
            good = false;
        } else if (gnutls_pubkey_import_x509(key[i], chain->cert[i], 0) < 0) {
            good = fail_at(&at, err, NSM_SIGNER_CERT_KEY,
                           "has a key that is not on P-384 (secp384r1)");
        } else {
            good = check_certificate(&at, &cert[i], key[i], &cert[above],
                                     key[above], now, point, err);
            limit_validity(chain, cert[i].begin, cert[i].end);
        }
    }
    for (size_t i = 0; i < chain->count; i++) {
        gnutls_pubkey_deinit(key[i]);
    }
    return good;
}

/*
 * gnutls has refused the file: say which certificate is why, if one is by our
 * rules. What it says itself names none.
 */
static bool fail_import(const gnutls_datum_t *pem, const char *name, int ret,
                        NsmSignerError *err)
{
    static const char begin[] = "-----BEGIN CERTIFICATE-----";
    const uint8_t *end = pem->data + pem->size;
    const uint8_t *p = memmem(pem->data, pem->size, begin, strlen(begin));

    for (size_t i = 1; p && i <= NSM_CHAIN_MAX; i++) {
        const gnutls_datum_t rest = { (uint8_t *)p, end - p };
        gnutls_datum_t der = { NULL, 0 };
        NsmCertFault fault;
        NsmCert cert;
        bool good;

        if (gnutls_pem_base64_decode2("CERTIFICATE", &rest, &der) < 0) {
            break;
        }
        good = nsm_cert_parse(&cert, der.data, der.size, &fault);
        gnutls_free(der.data);
        if (!good) {
            return nsm_fail(err, fault.extension ? NSM_SIGNER_CERT_EXTENSION :
                            NSM_SIGNER_CERT_MALFORMED,
                            "cert-chain %s: certificate %zu %s", name, i,
                            fault.text);
        }
        p = memmem(p + 1, end - p - 1, begin, strlen(begin));
    }
    return nsm_fail(err, NSM_SIGNER_CHAIN_MALFORMED,
                    "cert-chain %s: no list of certificates in PEM: %s",
                    name, gnutls_strerror(ret));
}

static bool load_certificates(NsmChain *chain, const char *name,
                              NsmSignerError *err)
{
    gnutls_datum_t pem = { NULL, 0 };
    gnutls_x509_crt_t *list = NULL;
    unsigned count = 0;
    size_t total = 0;
    int ret;

    if (!read_file("cert-chain", name, &pem, err)) {
        return false;
    }
    ret = gnutls_x509_crt_list_import2(&list, &count, &pem,
                                       GNUTLS_X509_FMT_PEM, 0);
    if (ret < 0 || count == 0) {
        fail_import(&pem, name, ret, err);
        g_free(pem.data);
        gnutls_free(list);
        return false;
    }
    g_free(pem.data);
    /* From here on the certificates are the chain's, or freed. */
    for (unsigned i = 0; i < count; i++) {
        if (i < NSM_CHAIN_MAX) {
            chain->cert[chain->count++] = list[i];
        } else {
            gnutls_x509_crt_deinit(list[i]);
        }
    }
    gnutls_free(list);
    if (count > NSM_CHAIN_MAX) {
        return nsm_fail(err, NSM_SIGNER_CHAIN_LENGTH,
                        "cert-chain %s: %u certificates; a chain has at most "
                        "%d", name, count, NSM_CHAIN_MAX);
    }
    for (size_t i = 0; i < chain->count; i++) {
        ret = gnutls_x509_crt_export2(chain->cert[i], GNUTLS_X509_FMT_DER,
                                      &chain->der[i]);
        if (ret < 0) {
            return nsm_fail_crypto(err, "encode a certificate", ret);
        }
        total += chain->der[i].size;
    }
    if (total > NSM_CHAIN_BYTES_MAX) {
        return nsm_fail(err, NSM_SIGNER_CHAIN_LENGTH,
                        "cert-chain %s: %zu bytes of DER in %zu certificates; "
                        "a document has room for %d",
                        name, total, chain->count, NSM_CHAIN_BYTES_MAX);
    }
    return true;
}

/* Whether an organizational unit of the certificate's name says so. */
static bool says_unmeasured(gnutls_x509_crt_t cert)
{
    bool found = false;
    int ret = 0;

    for (unsigned i = 0; !found && ret != GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE;
         i++) {
        char text[NSM_CERT_MAX + 1];
        size_t size = sizeof(text);
        g_autofree char *lower = NULL;

        ret = gnutls_x509_crt_get_dn_by_oid(
            cert, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, i, 0, text, &size);
        if (ret >= 0) {
            lower = g_ascii_strdown(text, size);
            found = memmem(lower, size, NSM_UNMEASURED,
                           strlen(NSM_UNMEASURED));
        }
    }
    return found;
}

bool nsm_chain_load(NsmChain *chain, const char *cert_file,
                    const char *key_file, bool unmeasured, int64_t now,
                    NsmSignerError *err)
{
    uint8_t key_point[2 * NSM_P384_SIZE], cert_point[2 * NSM_P384_SIZE];

    if (!load_key(chain, key_file, key_point, err) ||
        !load_certificates(chain, cert_file, err) ||
        !check_chain(chain, cert_file, now, cert_point, err)) {
        return false;
    }
    if (memcmp(key_point, cert_point, sizeof(key_point))) {
        return nsm_fail(err, NSM_SIGNER_KEY_MISMATCH,
                        "cert-key %s: not the key of the last certificate in "
                        "%s", key_file, cert_file);
    }
    if (unmeasured && !says_unmeasured(chain->cert[chain->count - 1])) {
        const Where at = {
            .file = cert_file, .chain = chain, .index = chain->count - 1,
        };

        return fail_at(&at, err, NSM_SIGNER_CERT_MEASURED,
                       "does not have the word " NSM_UNMEASURED " in an "
                       "organizational unit (OU), as what issues documents "
                       "with PCRs of another code must: take one that has");
    }
    return nsm_export_root(chain, err);
}
