/*
 * SPDX-License-Identifier: MIT
 *
 * NSM attestation: chains given as files
 *
 * They are made here with gnutls, with one fault each, and one exact complaint
 * is expected; what a good one signs is given to the openssl program. What is
 * in documents is test-nsm-attest's subject. The clock is the test's.
 *
 * Long because all of it stands on one maker of chains.
 */
#include <glib/gstdio.h>
#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/x509.h>

#include "nsm-module.h"

/* A path length of 0, where 0 means no change */
#define PATH_ZERO (-99)

typedef struct Level {
    int curve;                  /* gnutls_ecc_curve_t */
    int digest;                 /* gnutls_digest_algorithm_t */
    const char *issuer;         /* NULL: the one above */
    bool foreign_key;           /* not signed by the key above */
    bool not_ca;
    bool no_constraints;
    bool not_critical;
    bool no_usage;
    const char *extension;      /* identifier of a critical one */
    int usage;
    int path_length;
    int64_t begin;
    int64_t end;
    int padding;                /* of the subject, in bytes */
    const char *unit;           /* in the subject */
} Level;

static void chain_defaults(Level *levels, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        levels[i] = (Level) {
            .curve = GNUTLS_ECC_CURVE_SECP384R1,
            .digest = GNUTLS_DIG_SHA384,
            .usage = GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN,
            .path_length = i == 0 ? -1 : (int)(count - 1 - i),
            .begin = NOW - DAY,
            .end = NOW + DAY,
        };
    }
}

static gnutls_x509_privkey_t new_key(int curve)
{
    gnutls_x509_privkey_t key;

    g_assert_cmpint(gnutls_x509_privkey_init(&key), ==, 0);
    g_assert_cmpint(gnutls_x509_privkey_generate(
        key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(curve), 0), ==, 0);
    return key;
}

static gnutls_x509_crt_t new_certificate(const Level *level, size_t i,
                                         gnutls_x509_privkey_t key)
{
    /* {CA:TRUE}, for one that is not critical */
    static const uint8_t constraints[] = { 0x30, 3, 1, 1, 0xff };
    g_autofree char *name = g_strdup_printf("level %zu", i);
    gnutls_x509_crt_t cert;
    uint8_t serial = i + 1;

    g_assert_cmpint(gnutls_x509_crt_init(&cert), ==, 0);
    gnutls_x509_crt_set_version(cert, 3);
    gnutls_x509_crt_set_serial(cert, &serial, 1);
    gnutls_x509_crt_set_activation_time(cert, level->begin);
    gnutls_x509_crt_set_expiration_time(cert, level->end);
    gnutls_x509_crt_set_key(cert, key);
    g_assert_cmpint(gnutls_x509_crt_set_dn_by_oid(
        cert, GNUTLS_OID_X520_COMMON_NAME, 0, name, strlen(name)), ==, 0);
    if (level->unit) {
        g_assert_cmpint(gnutls_x509_crt_set_dn_by_oid(
            cert, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, 0, level->unit,
            strlen(level->unit)), ==, 0);
    }
    for (int left = level->padding; left > 0; left -= 60) {
        g_autofree char *text = g_strnfill(MIN(left, 60), 'p');

        g_assert_cmpint(gnutls_x509_crt_set_dn_by_oid(
            cert, GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, 0,
            text, strlen(text)), ==, 0);
    }
    if (level->not_critical) {
        gnutls_x509_crt_set_extension_by_oid(cert, "2.5.29.19", constraints,
                                             sizeof(constraints), 0);
    } else if (!level->no_constraints) {
        gnutls_x509_crt_set_basic_constraints(
            cert, !level->not_ca, level->not_ca ? -1 : level->path_length);
    }
    if (!level->no_usage) {
        gnutls_x509_crt_set_key_usage(cert, level->usage);
    }
    if (level->extension) {
        gnutls_x509_crt_set_extension_by_oid(cert, level->extension, "\5", 2,
                                             1);
    }
    return cert;
}

/* Writes chain.pem and key.pem into @folder. */
static void chain_write(const char *folder, const Level *levels, size_t count)
{
    g_autoptr(GString) pem = g_string_new("");
    gnutls_x509_privkey_t key[16], foreign;
    gnutls_x509_crt_t cert[16];
    gnutls_datum_t out;

    foreign = new_key(GNUTLS_ECC_CURVE_SECP384R1);
    for (size_t i = 0; i < count; i++) {
        const Level *level = &levels[i];
        gnutls_x509_crt_t issuer;

        key[i] = new_key(level->curve);
        cert[i] = new_certificate(level, i, key[i]);
        issuer = i ? cert[i - 1] : cert[i];
        if (level->issuer) {
            issuer = new_certificate(level, 77, foreign);
            gnutls_x509_crt_set_issuer_dn(issuer, level->issuer, NULL);
        }
        g_assert_cmpint(gnutls_x509_crt_sign2(
            cert[i], issuer,
            level->foreign_key ? foreign : key[i ? i - 1 : 0],
            level->digest, 0), ==, 0);
        if (level->issuer) {
            gnutls_x509_crt_deinit(issuer);
        }
        g_assert_cmpint(gnutls_x509_crt_export2(
            cert[i], GNUTLS_X509_FMT_PEM, &out), ==, 0);
        g_string_append(pem, (char *)out.data);
        gnutls_free(out.data);
    }
    put_file(folder, "chain.pem", pem->str, pem->len);
    g_assert_cmpint(gnutls_x509_privkey_export2_pkcs8(
        key[count - 1], GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, &out),
        ==, 0);
    put_file(folder, "key.pem", out.data, out.size);
    gnutls_free(out.data);
    for (size_t i = 0; i < count; i++) {
        gnutls_x509_crt_deinit(cert[i]);
        gnutls_x509_privkey_deinit(key[i]);
    }
    gnutls_x509_privkey_deinit(foreign);
}

static NsmSigner *chain_load(const char *folder, NsmSignerError *err)
{
    g_autofree char *chain = g_build_filename(folder, "chain.pem", NULL);
    g_autofree char *key = g_build_filename(folder, "key.pem", NULL);
    const NsmSignerOptions options = {
        .cert_chain = chain, .cert_key = key, .clock = test_clock,
    };

    clock_ms = NOW_MS;
    return nsm_signer_new(&options, MODULE_ID, err);
}

/* The files in @folder are refused for @fault, in words that have @words. */
static void expect_fault(const char *folder, NsmSignerFault fault,
                         const char *words)
{
    NsmSignerError err;
    NsmSigner *signer = chain_load(folder, &err);

    g_assert_null(signer);
    g_test_message("%s: %s", nsm_signer_fault_name(err.fault), err.text);
    g_assert_cmpstr(nsm_signer_fault_name(err.fault), ==,
                    nsm_signer_fault_name(fault));
    if (!strstr(err.text, words) || !strstr(err.text, folder)) {
        g_error("'%s' is not in: %s", words, err.text);
    }
}

static void test_chain_file(void)
{
    static const size_t counts[] = { 1, 2, 4, 8 };
    Level levels[8];

    for (unsigned n = 0; n < G_N_ELEMENTS(counts); n++) {
        char *folder = folder_new();
        NsmSignerError err;
        NsmSigner *signer;
        Document d;
        NsmState s;

        chain_defaults(levels, counts[n]);
        chain_write(folder, levels, counts[n]);
        signer = chain_load(folder, &err);
        if (!signer) {
            g_error("%s", err.text);
        }
        g_assert_cmpint(err.fault, ==, NSM_SIGNER_OK);
        boot(&s, signer, MODULE_ID);
        ask(&s, PLAIN, &d);
        g_assert_cmpuint(d.bundled, ==, counts[n]);
        verify(&d, NOW);
        document_clear(&d);

        /* Its dates bind, to the last second that openssl accepts. */
        clock_ms = (NOW + DAY) * 1000LL - 1;
        ask(&s, PLAIN, &d);
        verify(&d, NOW + DAY - 1);
        document_clear(&d);
        expect_no_document(&s, NOW + DAY,
                           "chain ended at 2026-02-01 12:00:00 UTC");
        expect_no_document(&s, NOW - DAY - 1,
                           "chain begins at 2026-01-30 12:00:00 UTC");
        clock_ms = (NOW - DAY) * 1000LL;
        ask(&s, PLAIN, &d);
        document_clear(&d);
        nsm_signer_free(signer);
        folder_free(folder);
    }
}

/* The shortest life in the chain is the chain's. */
static void test_chain_dates(void)
{
    char *folder = folder_new();
    Level levels[4];
    NsmSignerError err;
    NsmSigner *signer;
    NsmState s;

    chain_defaults(levels, 4);
    levels[1].end = NOW + 100;
    levels[2].begin = NOW;
    chain_write(folder, levels, 4);
    signer = chain_load(folder, &err);
    g_assert_nonnull(signer);
    boot(&s, signer, MODULE_ID);
    expect_no_document(&s, NOW + 101, "ended at 2026-01-31 12:01:40 UTC");
    expect_no_document(&s, NOW - 1, "begins at 2026-01-31 12:00:00 UTC");
    nsm_signer_free(signer);
    folder_free(folder);
}

/* Under one issuer, in one second, for one module: numbers still differ. */
static void test_chain_serials(void)
{
    char *folder = folder_new();
    uint8_t serial[2][20] = { { 0 } };
    Level levels[4];

    chain_defaults(levels, 4);
    chain_write(folder, levels, 4);
    for (int i = 0; i < 2; i++) {
        size_t size = sizeof(serial[i]);
        gnutls_x509_crt_t cert;
        NsmSignerError err;
        NsmSigner *signer = chain_load(folder, &err);
        NsmState s;
        Document d;

        g_assert_nonnull(signer);
        boot(&s, signer, MODULE_ID);
        ask(&s, PLAIN, &d);
        gnutls_x509_crt_init(&cert);
        g_assert_cmpint(gnutls_x509_crt_import(
            cert,
            &(gnutls_datum_t) { d.certificate->data, d.certificate->len },
            GNUTLS_X509_FMT_DER), ==, 0);
        g_assert_cmpint(gnutls_x509_crt_get_serial(cert, serial[i], &size),
                        ==, 0);
        gnutls_x509_crt_deinit(cert);
        document_clear(&d);
        nsm_signer_free(signer);
    }
    g_assert_cmpint(memcmp(serial[0], serial[1], sizeof(serial[0])), !=, 0);
    folder_free(folder);
}


/* What is not zero in @change is the change. */
static void level_change(Level *level, const Level *change)
{
    level->curve = change->curve ?: level->curve;
    level->digest = change->digest ?: level->digest;
    level->usage = change->usage ?: level->usage;
    level->path_length = change->path_length ?: level->path_length;
    if (change->path_length == PATH_ZERO) {
        level->path_length = 0;
    }
    level->begin = change->begin ?: level->begin;
    level->end = change->end ?: level->end;
    level->foreign_key = change->foreign_key;
    level->not_ca = change->not_ca;
    level->no_constraints = change->no_constraints;
    level->not_critical = change->not_critical;
    level->no_usage = change->no_usage;
    level->padding = change->padding;
    level->extension = change->extension;
}

typedef struct CertificateFault {
    NsmSignerFault fault;
    unsigned level;
    Level change;
    const char *words;
} CertificateFault;

static const CertificateFault certificate_faults[] = {
    { NSM_SIGNER_CERT_KEY, 0, { .curve = GNUTLS_ECC_CURVE_SECP256R1 },
      "certificate 1 of 4 (CN=level 0) has a key that is not on P-384" },
    { NSM_SIGNER_CERT_KEY, 2, { .curve = GNUTLS_ECC_CURVE_SECP521R1 },
      "certificate 3 of 4 (CN=level 2) has a key" },
    { NSM_SIGNER_CERT_ALGORITHM, 1, { .digest = GNUTLS_DIG_SHA256 },
      "certificate 2 of 4 (CN=level 1) is not signed with ecdsa-with-" },
    { NSM_SIGNER_CERT_SIGNATURE, 0, { .foreign_key = true },
      "certificate 1 of 4 (CN=level 0) is not signed by its own key" },
    { NSM_SIGNER_CERT_SIGNATURE, 3, { .foreign_key = true },
      "certificate 4 of 4 (CN=level 3) is not signed by the key of the" },
    { NSM_SIGNER_CERT_NOT_CA, 3, { .not_ca = true }, "is no CA" },
    { NSM_SIGNER_CERT_NOT_CA, 1, { .no_constraints = true }, "is no CA" },
    { NSM_SIGNER_CERT_NOT_CA, 2, { .not_critical = true }, "critical" },
    { NSM_SIGNER_CERT_KEY_USAGE, 2, { .no_usage = true }, "keyCertSign" },
    { NSM_SIGNER_CERT_KEY_USAGE, 3,
      { .usage = GNUTLS_KEY_DIGITAL_SIGNATURE }, "keyCertSign" },
    { NSM_SIGNER_CERT_PATH_LENGTH, 1, { .path_length = 1 },
      "certificate 2 of 4 (CN=level 1) allows 1 CA certificates below it; "
      "there are 2" },
    { NSM_SIGNER_CERT_PATH_LENGTH, 2, { .path_length = PATH_ZERO },
      "allows 0 CA certificates below it; there are 1" },
    { NSM_SIGNER_CERT_NOT_YET_VALID, 2, { .begin = NOW + 1 },
      "is valid from 2026-01-31 12:00:01 UTC on; it is 2026-01-31 12:00" },
    { NSM_SIGNER_CERT_EXPIRED, 0, { .end = NOW },
      "certificate 1 of 4 (CN=level 0) expired at 2026-01-31 12:00:00" },
    { NSM_SIGNER_CERT_EXPIRED, 3, { .end = NOW - 1 },
      "certificate 4 of 4 (CN=level 3) expired" },
    { NSM_SIGNER_CERT_EXTENSION, 2, { .extension = "1.3.6.1.4.1.99999.1" },
      "certificate 3 of 4 (CN=level 2) has a critical extension that is "
      "not known here: 1.3.6.1.4.1.99999.1" },
    { NSM_SIGNER_CERT_EXTENSION, 0, { .extension = "2.5.29.30" },
      "has name constraints (2.5.29.30)" },
    { NSM_SIGNER_CERT_TOO_LARGE, 3, { .padding = 700 },
      "bytes of DER; a document takes at most 1024" },
    { NSM_SIGNER_LEAF_TOO_LARGE, 3, { .padding = 480 },
      "shorten the instance CA's name" },
};

static void test_certificate_faults(void)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(certificate_faults); i++) {
        const CertificateFault *row = &certificate_faults[i];
        char *folder = folder_new();
        Level levels[4];

        chain_defaults(levels, 4);
        level_change(&levels[row->level], &row->change);
        chain_write(folder, levels, 4);
        if (row->fault == NSM_SIGNER_LEAF_TOO_LARGE) {
            /* It is not a file's fault alone, and names none. */
            NsmSignerError err;

            g_assert_null(chain_load(folder, &err));
            g_assert_cmpint(err.fault, ==, row->fault);
            g_assert_nonnull(strstr(err.text, row->words));
        } else {
            expect_fault(folder, row->fault, row->words);
        }
        folder_free(folder);
    }
}

/* Puts the PEM blocks of chain.pem into another order, or leaves some out. */
static void chain_reorder(const char *folder, const int *order, size_t count)
{
    static const char end[] = "-----END CERTIFICATE-----\n";
    g_autofree char *path = g_build_filename(folder, "chain.pem", NULL);
    g_autoptr(GString) out = g_string_new("");
    g_autofree char *text = NULL;
    g_auto(GStrv) blocks = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    blocks = g_strsplit(text, end, 0);
    for (size_t i = 0; i < count; i++) {
        g_string_append(out, blocks[order[i]]);
        g_string_append(out, end);
    }
    put_file(folder, "chain.pem", out->str, out->len);
}

static void test_order_faults(void)
{
    static const struct {
        int order[4];
        size_t count;
        NsmSignerFault fault;
        const char *words;
    } rows[] = {
        { { 3, 2, 1, 0 }, 4, NSM_SIGNER_CERT_ISSUER,
          "certificate 1 of 4 (CN=level 3) comes first, but is no root" },
        { { 1, 2, 3 }, 3, NSM_SIGNER_CERT_ISSUER,
          "certificate 1 of 3 (CN=level 1) comes first, but is no root" },
        { { 0, 2, 3 }, 3, NSM_SIGNER_CERT_ISSUER,
          "certificate 2 of 3 (CN=level 2) was not issued by the one before" },
        { { 0, 2, 1, 3 }, 4, NSM_SIGNER_CERT_ISSUER,
          "certificate 2 of 4 (CN=level 2) was not issued by the one before" },
        { { 0, 1, 2 }, 3, NSM_SIGNER_KEY_MISMATCH,
          "not the key of the last certificate" },
        { { 0 }, 0, NSM_SIGNER_CHAIN_MALFORMED, "no list of certificates" },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        char *folder = folder_new();
        Level levels[4];

        chain_defaults(levels, 4);
        chain_write(folder, levels, 4);
        chain_reorder(folder, rows[i].order, rows[i].count);
        expect_fault(folder, rows[i].fault, rows[i].words);
        folder_free(folder);
    }
}

/* One file without the other */
static void test_options(void)
{
    NsmSignerOptions options = { .clock = test_clock };
    NsmSignerError err;

    options.cert_chain = "chain.pem";
    g_assert_null(nsm_signer_new(&options, MODULE_ID, &err));
    g_assert_cmpint(err.fault, ==, NSM_SIGNER_OPTIONS);
    options.cert_chain = NULL;
    options.cert_key = "key.pem";
    g_assert_null(nsm_signer_new(&options, MODULE_ID, &err));
    g_assert_cmpint(err.fault, ==, NSM_SIGNER_OPTIONS);
    g_assert_nonnull(strstr(err.text, "go together"));
}

/* The key's other form is fine, too. */
static void test_sec1(void)
{
    char *folder = folder_new();
    NsmSignerError err;
    NsmSigner *signer;
    Level levels[4];

    chain_defaults(levels, 4);
    chain_write(folder, levels, 4);
    g_free(openssl(folder, "ec -in key.pem -out sec1.pem"));
    g_free(openssl(folder, "ec -in sec1.pem -out key.pem"));
    signer = chain_load(folder, &err);
    g_assert_nonnull(signer);
    nsm_signer_free(signer);
    folder_free(folder);
}

#define PEM_GARBAGE "-----BEGIN CERTIFICATE-----\nAAAA\n"
#define PEM_END "-----END CERTIFICATE-----\n"

/* One of two good files replaced: by openssl, by a text, by nothing. */
typedef struct FileCase {
    const char *file;
    const char *openssl;        /* writes it */
    const char *text;
    size_t blank_lines;         /* behind the text */
    bool folder;                /* by a folder */
    NsmSignerFault fault;
    const char *words;
} FileCase;

static const FileCase file_cases[] = {
    { "key.pem", .openssl = "pkcs8 -topk8 -passout pass:secret -in good.pem "
      "-out key.pem", .fault = NSM_SIGNER_KEY_MALFORMED,
      .words = "without a password" },
    { "key.pem", .text = PEM_GARBAGE PEM_END,
      .fault = NSM_SIGNER_KEY_MALFORMED, .words = "no private key in PEM" },
    { "key.pem", .openssl = "ecparam -genkey -noout -name prime256v1 "
      "-out key.pem", .fault = NSM_SIGNER_KEY_TYPE,
      .words = "(EC/ECDSA, 256 bits) is not on" },
    { "key.pem", .openssl = "genpkey -algorithm RSA -out key.pem",
      .fault = NSM_SIGNER_KEY_TYPE, .words = "(RSA, " },
    { "key.pem", .openssl = "ecparam -genkey -noout -name secp384r1 "
      "-out key.pem", .fault = NSM_SIGNER_KEY_MISMATCH,
      .words = "not the key of the last" },
    { "key.pem", .text = "", .blank_lines = 300 * 1024,
      .fault = NSM_SIGNER_UNREADABLE, .words = "longer than" },
    { "key.pem", .fault = NSM_SIGNER_UNREADABLE,
      .words = "key.pem: cannot be read: No" },
    { "chain.pem", .text = PEM_GARBAGE PEM_END,
      .fault = NSM_SIGNER_CERT_MALFORMED,
      .words = "chain.pem: certificate 1 is no X.509 certificate in DER" },
    { "chain.pem", .text = PEM_GARBAGE, .fault = NSM_SIGNER_CHAIN_MALFORMED,
      .words = "no list of certificates" },
    { "chain.pem", .text = "", .fault = NSM_SIGNER_CHAIN_MALFORMED,
      .words = "no list of certificates" },
    { "chain.pem", .text = "", .blank_lines = 300 * 1024,
      .fault = NSM_SIGNER_UNREADABLE, .words = "longer than" },
    { "chain.pem", .fault = NSM_SIGNER_UNREADABLE,
      .words = "cannot be read: No such" },
    { "chain.pem", .folder = true, .fault = NSM_SIGNER_UNREADABLE,
      .words = "cannot be read: Is a dir" },
};

static void test_file_faults(void)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(file_cases); i++) {
        const FileCase *c = &file_cases[i];
        char *folder = folder_new();
        g_autofree char *path = g_build_filename(folder, c->file, NULL);
        Level levels[4];

        chain_defaults(levels, 4);
        chain_write(folder, levels, 4);
        g_free(openssl(folder, "pkey -in key.pem -out good.pem"));
        g_assert_cmpint(g_unlink(path), ==, 0);
        if (c->openssl) {
            g_free(openssl(folder, "%s", c->openssl));
        } else if (c->text) {
            g_autoptr(GString) text = g_string_new(c->text);

            for (size_t n = 0; n < c->blank_lines; n++) {
                g_string_append_c(text, '\n');
            }
            put_file(folder, c->file, text->str, text->len);
        } else if (c->folder) {
            g_assert_cmpint(g_mkdir(path, 0700), ==, 0);
        }
        expect_fault(folder, c->fault, c->words);
        if (c->folder) {
            g_assert_cmpint(g_rmdir(path), ==, 0);
        }
        folder_free(folder);
    }
}

/* More certificates than a document takes, and more bytes */
static void test_chain_length(void)
{
    char *folder = folder_new();
    Level levels[9];

    chain_defaults(levels, 9);
    chain_write(folder, levels, 9);
    expect_fault(folder, NSM_SIGNER_CHAIN_LENGTH,
                 "9 certificates; a chain has at most 8");
    chain_defaults(levels, 8);
    for (int i = 0; i < 8; i++) {
        levels[i].padding = 120;
    }
    chain_write(folder, levels, 8);
    expect_fault(folder, NSM_SIGNER_CHAIN_LENGTH, "a document has room for");
    folder_free(folder);
}

/* The longest chain, all registers, the longest request: it still fits. */
static void test_largest(void)
{
    g_autoptr(GByteArray) req = notation(
        "a1 6b 'Attestation' a1 69 'user_data' 590fe5");
    char *folder = folder_new();
    char longest[100];
    uint8_t out[NSM_RESPONSE_MAX];
    Level levels[6];
    NsmSignerError err;
    NsmSigner *signer;
    NsmResult info;
    size_t len, total = 0;
    NsmState s;
    Document d;

    /* The leaf is near its limit when its issuer's name is. */
    chain_defaults(levels, 6);
    for (int i = 0; i < 6; i++) {
        levels[i].padding = i < 5 ? 170 : 330;
    }
    chain_write(folder, levels, 6);
    signer = chain_load(folder, &err);
    if (!signer) {
        g_error("%s", err.text);
    }
    memset(longest, 'm', 99);
    longest[99] = '\0';
    boot(&s, signer, longest);
    s.locked = UINT32_MAX;
    notation_fill(req, 0x55, 4069);
    g_assert_cmpuint(req->len, ==, NSM_REQUEST_MAX);
    len = nsm_handle(&s, req->data, req->len, out, sizeof(out), &info);
    if (info.code != NSM_SUCCESS) {
        g_error("%s", info.reason);
    }
    document_parse(&d, out + 26, len - 26);
    verify(&d, NOW);
    for (size_t i = 0; i < d.bundled; i++) {
        total += d.cabundle[i]->len;
    }
    /*
     * What the certificates could still have grown would fit as well: three
     * bytes of head for each of the two more that are allowed.
     */
    g_assert_cmpuint(len + (NSM_CHAIN_BYTES_MAX - total) +
                     (NSM_CERT_MAX - d.certificate->len) +
                     3 * (NSM_CHAIN_MAX - d.bundled), <=, NSM_RESPONSE_MAX);
    document_clear(&d);
    nsm_signer_free(signer);
    folder_free(folder);
}

/*
 * Documents with PCRs of another code: the last certificate says so in an
 * organizational unit, or none is issued.
 */
static void test_unmeasured(void)
{
    static const struct {
        int level;
        const char *unit;
        bool good;
    } rows[] = {
        { 3, "Local, not AWS, unmeasured", true },
        { 3, "UNMEASURED", true },
        { 3, "measured", false },
        { 3, NULL, false },
        { 2, "unmeasured", false },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        char *folder = folder_new();
        g_autofree char *chain = g_build_filename(folder, "chain.pem", NULL);
        g_autofree char *key = g_build_filename(folder, "key.pem", NULL);
        NsmSignerOptions options = {
            .cert_chain = chain, .cert_key = key, .unmeasured = true,
            .clock = test_clock,
        };
        NsmSignerError err;
        NsmSigner *signer;
        Level levels[4];

        chain_defaults(levels, 4);
        levels[3].padding = 70;         /* other units beside it */
        levels[rows[i].level].unit = rows[i].unit;
        chain_write(folder, levels, 4);
        clock_ms = NOW_MS;
        signer = nsm_signer_new(&options, MODULE_ID, &err);
        g_assert_cmpstr(nsm_signer_fault_name(err.fault), ==,
                        rows[i].good ? "ok" : "certificate-measured");
        g_assert_cmpint(!!signer, ==, rows[i].good);
        nsm_signer_free(signer);
        /* Whoever runs what was measured may have such a name. */
        options.unmeasured = false;
        signer = nsm_signer_new(&options, MODULE_ID, &err);
        g_assert_nonnull(signer);
        nsm_signer_free(signer);
        folder_free(folder);
    }
}

static void test_fault_names(void)
{
    for (int i = 0; i < NSM_SIGNER_FAULT_COUNT; i++) {
        const char *name = nsm_signer_fault_name(i);

        g_assert_true(g_regex_match_simple("^[a-z]+(-[a-z]+)*$", name, 0, 0));
        for (int j = 0; j < i; j++) {
            g_assert_cmpstr(name, !=, nsm_signer_fault_name(j));
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nsm-chain/file", test_chain_file);
    g_test_add_func("/nsm-chain/dates", test_chain_dates);
    g_test_add_func("/nsm-chain/serials", test_chain_serials);
    g_test_add_func("/nsm-chain/certificates",
                    test_certificate_faults);
    g_test_add_func("/nsm-chain/order", test_order_faults);
    g_test_add_func("/nsm-chain/files", test_file_faults);
    g_test_add_func("/nsm-chain/options", test_options);
    g_test_add_func("/nsm-chain/sec1", test_sec1);
    g_test_add_func("/nsm-chain/length", test_chain_length);
    g_test_add_func("/nsm-chain/largest", test_largest);
    g_test_add_func("/nsm-chain/unmeasured", test_unmeasured);
    g_test_add_func("/nsm-chain/fault-names", test_fault_names);
    return g_test_run();
}
