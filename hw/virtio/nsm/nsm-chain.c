/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM attestation: certificates made here
 *
 * An ephemeral chain of CA certificates, and the enclave's own certificate
 * under any chain. Reading a user's chain is nsm-chain-load.c's, signing
 * documents nsm-attest.c's.
 *
 * Certificates are X.509 v3 (RFC 5280), P-384 keys, ecdsa-with-SHA384, in the
 * shape of AWS's five levels: root, regional, zonal, instance, enclave. Ours
 * have no CRL distribution points, for nobody publishes lists for them, and
 * their names say that they are local. gnutls would write names as
 * PrintableString and KeyUsage always as critical, so both are given to it in
 * DER.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <glib.h>
#include <gnutls/crypto.h>

#include "nsm-chain.h"

/* The enclave's certificate: 3 s before its issuance to 3 h after it */
#define LEAF_BACKDATE 3
#define LEAF_LIFE (3 * 3600)

/*
 * An ephemeral chain outlives any enclave. Its start is early enough for
 * verifiers whose clock is behind.
 */
#define EPHEMERAL_BACKDATE 3600
#define EPHEMERAL_LIFE (10LL * 365 * 24 * 3600)

/* Where AWS has us-east-1.aws(.nitro-enclaves). */
#define AREA "local"
#define CA_AREA AREA ".nitro-enclaves"

/* RFC 5280, appendix A: ub-common-name */
#define COMMON_NAME_MAX 64

#define OID_KEY_USAGE "2.5.29.15"
#define OID_BASIC_CONSTRAINTS "2.5.29.19"

static const char *const fault_names[NSM_SIGNER_FAULT_COUNT] = {
    [NSM_SIGNER_OK] = "ok",
    [NSM_SIGNER_OPTIONS] = "options",
    [NSM_SIGNER_UNREADABLE] = "unreadable",
    [NSM_SIGNER_KEY_MALFORMED] = "key-malformed",
    [NSM_SIGNER_KEY_TYPE] = "key-type",
    [NSM_SIGNER_CHAIN_MALFORMED] = "chain-malformed",
    [NSM_SIGNER_CHAIN_LENGTH] = "chain-length",
    [NSM_SIGNER_CERT_TOO_LARGE] = "certificate-too-large",
    [NSM_SIGNER_CERT_MALFORMED] = "certificate-malformed",
    [NSM_SIGNER_CERT_EXTENSION] = "certificate-extension",
    [NSM_SIGNER_CERT_KEY] = "certificate-key",
    [NSM_SIGNER_CERT_ALGORITHM] = "certificate-algorithm",
    [NSM_SIGNER_CERT_ISSUER] = "certificate-issuer",
    [NSM_SIGNER_CERT_SIGNATURE] = "certificate-signature",
    [NSM_SIGNER_CERT_NOT_CA] = "certificate-not-ca",
    [NSM_SIGNER_CERT_KEY_USAGE] = "certificate-key-usage",
    [NSM_SIGNER_CERT_PATH_LENGTH] = "certificate-path-length",
    [NSM_SIGNER_CERT_NOT_YET_VALID] = "certificate-not-yet-valid",
    [NSM_SIGNER_CERT_EXPIRED] = "certificate-expired",
    [NSM_SIGNER_KEY_MISMATCH] = "key-mismatch",
    [NSM_SIGNER_CERT_MEASURED] = "certificate-measured",
    [NSM_SIGNER_LEAF_TOO_LARGE] = "leaf-too-large",
    [NSM_SIGNER_CRYPTO] = "crypto",
};

const char *nsm_signer_fault_name(NsmSignerFault fault)
{
    return fault_names[fault < NSM_SIGNER_FAULT_COUNT ? fault :
                       NSM_SIGNER_CRYPTO];
}

bool nsm_fail(NsmSignerError *err, NsmSignerFault fault,
              const char *format, ...)
{
    va_list args;

    err->fault = fault;
    va_start(args, format);
    g_vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    return false;
}

bool nsm_fail_crypto(NsmSignerError *err, const char *what, int ret)
{
    return nsm_fail(err, NSM_SIGNER_CRYPTO, "cannot %s: %s", what,
                    gnutls_strerror(ret));
}

const char *nsm_time_text(int64_t time, char buf[NSM_TIME_TEXT])
{
    time_t t = time;
    struct tm tm;

    if (!gmtime_r(&t, &tm) ||
        !strftime(buf, NSM_TIME_TEXT, "%Y-%m-%d %H:%M:%S UTC", &tm)) {
        snprintf(buf, NSM_TIME_TEXT, "%lld", (long long)time);
    }
    return buf;
}

/* The ephemeral chain */

/*
 * The parts of our names. Letters stand for them where an order is given; N,
 * the common name, is what differs. X.690 tags: countryName has to be a
 * PrintableString (RFC 5280, appendix A), the others are UTF8String.
 */
static const struct {
    char letter;
    uint8_t tag;
    const char *oid;
    const char *text;
} attributes[] = {
    { 'C', 0x13, "2.5.4.6", "XX" },     /* ISO 3166-1 leaves XX to users */
    { 'S', 0x0c, "2.5.4.8", "Local" },
    { 'L', 0x0c, "2.5.4.7", "Local" },
    { 'O', 0x0c, "2.5.4.10", "nitroctl" },
    { 'U', 0x0c, "2.5.4.11", "Local, not AWS" },
    { 'M', 0x0c, "2.5.4.11", "Local, not AWS, " NSM_UNMEASURED },
    { 'N', 0x0c, "2.5.4.3", NULL },
};

/* The subject, in the @order that AWS has at that level */
static int set_subject(gnutls_x509_crt_t cert, const char *order,
                       const char *common_name)
{
    int ret = 0;

    for (; ret >= 0 && *order; order++) {
        const char *text;
        uint8_t der[2 + 127];
        size_t len, i = 0;

        while (attributes[i].letter != *order) {
            i++;
        }
        text = attributes[i].text ? attributes[i].text : common_name;
        len = strlen(text);
        if (len > 127) {
            return GNUTLS_E_INVALID_REQUEST;
        }
        der[0] = attributes[i].tag;
        der[1] = len;
        memcpy(der + 2, text, len);
        ret = gnutls_x509_crt_set_dn_by_oid(cert, attributes[i].oid, 1,
                                            der, 2 + len);
    }
    return ret;
}

/* A new key on P-384 in @key, its public half in @cert. */
static int make_key(gnutls_x509_crt_t cert, gnutls_privkey_t *key)
{
    gnutls_pubkey_t public = NULL;
    int ret = gnutls_privkey_init(key);

    if (ret >= 0) {
        ret = gnutls_privkey_generate(
            *key, GNUTLS_PK_ECDSA,
            GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP384R1), 0);
    }
    if (ret >= 0) {
        ret = gnutls_pubkey_init(&public);
    }
    if (ret >= 0) {
        ret = gnutls_pubkey_import_privkey(public, *key, 0, 0);
    }
    if (ret >= 0) {
        ret = gnutls_x509_crt_set_pubkey(cert, public);
    }
    gnutls_pubkey_deinit(public);
    return ret;
}

static int set_dates(gnutls_x509_crt_t cert, int64_t begin, int64_t end)
{
    int ret = gnutls_x509_crt_set_activation_time(cert, begin);

    return ret < 0 ? ret : gnutls_x509_crt_set_expiration_time(cert, end);
}

/* X.690 DER by hand; @path_length < 0: no limit. */
static int set_basic_constraints(gnutls_x509_crt_t cert, int path_length)
{
    const uint8_t limited[] = { 0x30, 6, 1, 1, 0xff, 2, 1, path_length };
    const uint8_t unlimited[] = { 0x30, 3, 1, 1, 0xff };

    return gnutls_x509_crt_set_extension_by_oid(
        cert, OID_BASIC_CONSTRAINTS, path_length < 0 ? unlimited : limited,
        path_length < 0 ? sizeof(unlimited) : sizeof(limited), 1);
}

static int set_key_usage(gnutls_x509_crt_t cert, bool signs_lists)
{
    /* digitalSignature, keyCertSign, cRLSign; or keyCertSign alone */
    const uint8_t all[] = { 3, 2, 1, 0x86 }, alone[] = { 3, 2, 2, 0x04 };

    return gnutls_x509_crt_set_extension_by_oid(
        cert, OID_KEY_USAGE, signs_lists ? all : alone, sizeof(all), 1);
}

/* Authority and subject key identifiers. For the root, @issuer is NULL. */
static int set_identifiers(gnutls_x509_crt_t cert, gnutls_x509_crt_t issuer)
{
    uint8_t id[32];
    size_t size = sizeof(id);
    int ret = 0;

    if (issuer) {
        ret = gnutls_x509_crt_get_subject_key_id(issuer, id, &size, NULL);
        if (ret >= 0) {
            ret = gnutls_x509_crt_set_authority_key_id(cert, id, size);
        }
        size = sizeof(id);
    }
    if (ret >= 0) {
        ret = gnutls_x509_crt_get_key_id(cert, 0, id, &size);
    }
    return ret < 0 ? ret : gnutls_x509_crt_set_subject_key_id(cert, id, size);
}

/* A random positive serial number that fills its @size bytes */
static int set_random_serial(gnutls_x509_crt_t cert, size_t size)
{
    uint8_t serial[20];
    int ret = gnutls_rnd(GNUTLS_RND_NONCE, serial, size);

    serial[0] = (serial[0] & 0x3f) | 0x40;
    return ret < 0 ? ret : gnutls_x509_crt_set_serial(cert, serial, size);
}

/* The CA levels of our own chain, as AWS's are, from the root down */
static const struct {
    const char *order;          /* of the subject */
    int path_length;
    bool signs_lists;           /* has the other two usages */
    size_t serial_size;
} levels[] = {
    { "COUN", -1, true, 16 },   /* root */
    { "COUN", 2, true, 16 },    /* regional */
    { "NUOCSL", 1, true, 16 },  /* zonal */
    { "CSLOUN", 0, false, 20 }, /* instance */
};

#define LEVELS G_N_ELEMENTS(levels)

/* Of an instance whose enclave runs what its PCRs do not say */
static const char unmeasured_order[] = "CSLOMN";

/* The instance's id is what stands before "-enc" in the module id. */
static int ca_common_name(char name[COMMON_NAME_MAX + 1], size_t level,
                          const char *module_id)
{
    const char *suffix = "." CA_AREA;
    const char *dash = strstr(module_id, "-enc");
    int len = dash ? dash - module_id : (int)strlen(module_id);
    uint64_t number;
    int ret = gnutls_rnd(GNUTLS_RND_NONCE, &number, sizeof(number));

    switch (level) {
    case 0:
        suffix++;
        len = 0;
        break;
    case 2:
        suffix = ".zonal." CA_AREA;
        /* fall through */
    case 1:
        g_snprintf(name, COMMON_NAME_MAX + 1,
                   "%016" G_GINT64_MODIFIER "x%s", number, suffix);
        return ret;
    }
    g_snprintf(name, COMMON_NAME_MAX + 1, "%.*s%s",
               MIN(len, COMMON_NAME_MAX - (int)strlen(suffix)), module_id,
               suffix);
    return 0;
}

/* One level of our own chain: everything but key, extensions and signature */
static int describe_ca(gnutls_x509_crt_t cert, const NsmChain *chain,
                       size_t level, const char *module_id, bool unmeasured)
{
    bool last = level == LEVELS - 1;
    char name[COMMON_NAME_MAX + 1];
    int ret = gnutls_x509_crt_set_version(cert, 3);

    if (ret >= 0) {
        ret = set_random_serial(cert, levels[level].serial_size);
    }
    if (ret >= 0) {
        ret = set_dates(cert, chain->begin, chain->end);
    }
    if (ret >= 0) {
        ret = ca_common_name(name, level, module_id);
    }
    if (ret >= 0) {
        ret = set_subject(cert, last && unmeasured ? unmeasured_order :
                          levels[level].order, name);
    }
    return ret;
}

/* The next level of our own chain; @chain->key becomes its key. */
static int make_ca(NsmChain *chain, const char *module_id,
                   NsmDocumentForm form, bool unmeasured)
{
    size_t level = chain->count;
    bool identified = level < LEVELS - 1 || form != NSM_DOCUMENT_2023;
    gnutls_x509_crt_t cert, issuer;
    gnutls_privkey_t key = NULL;
    int ret = gnutls_x509_crt_init(&cert);

    if (ret < 0) {
        return ret;
    }
    chain->cert[level] = cert;
    chain->count++;
    issuer = level > 0 ? chain->cert[level - 1] : NULL;

    ret = describe_ca(cert, chain, level, module_id, unmeasured);
    if (ret >= 0) {
        ret = make_key(cert, &key);
    }
    /* In this order */
    if (ret >= 0) {
        ret = set_basic_constraints(cert, levels[level].path_length);
    }
    if (ret >= 0 && identified) {
        ret = set_identifiers(cert, issuer);
    }
    if (ret >= 0) {
        ret = set_key_usage(cert, levels[level].signs_lists);
    }
    if (ret >= 0) {
        ret = gnutls_x509_crt_privkey_sign(cert, issuer ? issuer : cert,
                                           issuer ? chain->key : key,
                                           GNUTLS_DIG_SHA384, 0);
    }
    if (ret >= 0) {
        ret = gnutls_x509_crt_export2(cert, GNUTLS_X509_FMT_DER,
                                      &chain->der[level]);
    }
    /* Nobody needs the key above any more. */
    gnutls_privkey_deinit(chain->key);
    chain->key = key;
    return ret;
}

bool nsm_export_root(NsmChain *chain, NsmSignerError *err)
{
    int ret = gnutls_x509_crt_export2(chain->cert[0], GNUTLS_X509_FMT_PEM,
                                      &chain->root_pem);

    return ret >= 0 || nsm_fail_crypto(err, "encode the root in PEM", ret);
}

bool nsm_chain_make(NsmChain *chain, const char *module_id,
                    NsmDocumentForm form, bool unmeasured, int64_t now,
                    NsmSignerError *err)
{
    chain->begin = now - EPHEMERAL_BACKDATE;
    chain->end = now + EPHEMERAL_LIFE;
    while (chain->count < LEVELS) {
        int ret = make_ca(chain, module_id, form, unmeasured);

        if (ret < 0) {
            return nsm_fail_crypto(err, "make an ephemeral chain", ret);
        }
    }
    return nsm_export_root(chain, err);
}

void nsm_chain_clear(NsmChain *chain)
{
    for (size_t i = 0; i < chain->count; i++) {
        gnutls_x509_crt_deinit(chain->cert[i]);
        gnutls_free(chain->der[i].data);
    }
    gnutls_privkey_deinit(chain->key);
    gnutls_free(chain->root_pem.data);
    memset(chain, 0, sizeof(*chain));
}

/* The enclave's certificate */

static void put_be64(uint8_t *p, uint64_t value)
{
    for (int i = 7; i >= 0; i--) {
        p[i] = value;
        value >>= 8;
    }
}

/*
 * The 64-bit number of "<instance id>-enc<16 hex digits>". An id of another
 * shape gets one made as AWS's are: milliseconds, then 16 more bits.
 */
static uint64_t enclave_number(const char *module_id, int64_t now)
{
    const char *digits = g_strrstr(module_id, "-enc");
    uint64_t number = 0;

    if (digits && strlen(digits + 4) == 16) {
        for (digits += 4; g_ascii_isxdigit(*digits); digits++) {
            number = number << 4 | g_ascii_xdigit_value(*digits);
        }
        if (*digits == '\0') {
            return number;
        }
    }
    return (uint64_t)now * 1000 << 16;
}

/*
 * Enclave number and time of issuance, 8 bytes each, after a zero that keeps
 * the number positive. The encoder drops the zeros that DER does not want.
 * The upper half of the time, which is zero on AWS, is random: two leaves of
 * one second under one issuer, from one process or two, must not have one
 * serial number (RFC 5280, section 4.1.2.2).
 */
static int set_leaf_serial(gnutls_x509_crt_t cert, const char *module_id,
                           int64_t now)
{
    uint8_t serial[1 + 8 + 8] = { 0 };
    int ret;

    put_be64(serial + 1, enclave_number(module_id, now));
    put_be64(serial + 9, now);
    ret = gnutls_rnd(GNUTLS_RND_NONCE, serial + 9, 4);
    return ret < 0 ? ret :
        gnutls_x509_crt_set_serial(cert, serial, sizeof(serial));
}

static int fill_leaf(gnutls_x509_crt_t cert, NsmLeaf *leaf,
                     const NsmChain *chain, const char *module_id, int64_t now)
{
    const uint8_t not_ca[] = { 0x30, 0 };
    /* digitalSignature, nonRepudiation */
    const uint8_t usage[] = { 3, 2, 6, 0xc0 };
    char common_name[NSM_MODULE_ID_MAX + sizeof("." AREA)];
    int ret = gnutls_x509_crt_set_version(cert, 3);

    g_snprintf(common_name, sizeof(common_name), "%s." AREA, module_id);
    if (ret >= 0) {
        ret = set_leaf_serial(cert, module_id, now);
    }
    if (ret >= 0) {
        ret = set_dates(cert, leaf->begin, leaf->end);
    }
    if (ret >= 0) {
        ret = set_subject(cert, "CSLOUN", common_name);
    }
    if (ret >= 0) {
        ret = make_key(cert, &leaf->key);
    }
    if (ret >= 0) {
        ret = gnutls_x509_crt_set_extension_by_oid(
            cert, OID_BASIC_CONSTRAINTS, not_ca, sizeof(not_ca), 1);
    }
    if (ret >= 0) {
        ret = gnutls_x509_crt_set_extension_by_oid(
            cert, OID_KEY_USAGE, usage, sizeof(usage), 0);
    }
    if (ret >= 0) {
        ret = gnutls_x509_crt_privkey_sign(cert,
                                           chain->cert[chain->count - 1],
                                           chain->key, GNUTLS_DIG_SHA384, 0);
    }
    if (ret >= 0) {
        ret = gnutls_x509_crt_export2(cert, GNUTLS_X509_FMT_DER, &leaf->der);
    }
    return ret;
}

bool nsm_leaf_issue(NsmLeaf *leaf, const NsmChain *chain,
                    const char *module_id, int64_t now, NsmSignerError *err)
{
    gnutls_x509_crt_t cert;
    int ret = gnutls_x509_crt_init(&cert);

    if (ret < 0) {
        return nsm_fail_crypto(err, "make the enclave's certificate", ret);
    }
    g_strlcpy(leaf->module_id, module_id, sizeof(leaf->module_id));
    leaf->begin = now - LEAF_BACKDATE;
    leaf->end = now + LEAF_LIFE;
    ret = fill_leaf(cert, leaf, chain, leaf->module_id, now);
    gnutls_x509_crt_deinit(cert);
    if (ret < 0) {
        return nsm_fail_crypto(err, "make the enclave's certificate", ret);
    }
    if (leaf->der.size > NSM_CERT_MAX) {
        return nsm_fail(err, NSM_SIGNER_LEAF_TOO_LARGE,
                        "the enclave's certificate would have %u bytes of DER; "
                        "a document takes at most %d: shorten the instance "
                        "CA's name", leaf->der.size, NSM_CERT_MAX);
    }
    return true;
}

void nsm_leaf_clear(NsmLeaf *leaf)
{
    gnutls_privkey_deinit(leaf->key);
    gnutls_free(leaf->der.data);
    memset(leaf, 0, sizeof(*leaf));
}
