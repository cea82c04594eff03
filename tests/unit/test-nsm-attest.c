/*
 * SPDX-License-Identifier: MIT
 *
 * NSM attestation: documents and certificates
 *
 * Documents byte for byte where they are determined; the openssl program is
 * the judge of chain and signature, and reads the certificates' shape. Chains
 * given as files are test-nsm-chain's subject.
 */
#include <gnutls/abstract.h>
#include <gnutls/x509.h>

#include "nsm-module.h"

static void append_bstr16(GByteArray *out, const GByteArray *data)
{
    uint8_t head[3] = { 0x59, data->len >> 8, data->len };

    g_assert_cmpuint(data->len, >=, 256);
    g_byte_array_append(out, head, 3);
    g_byte_array_append(out, data->data, data->len);
}

static void append_notation(GByteArray *out, const char *text)
{
    g_autoptr(GByteArray) bytes = notation(text);

    g_byte_array_append(out, bytes->data, bytes->len);
}

static void test_document(const void *opaque)
{
    NsmSigner *signer;
    g_autoptr(GByteArray) want = NULL;
    g_autoptr(GByteArray) whole = NULL;
    const uint8_t head[] = { 0x58, 0x60 };
    Document d;
    NsmState s;

    form = GPOINTER_TO_INT(opaque);
    signer = module_start(&s, MODULE_ID);
    ask(&s, PLAIN, &d);

    want = notation(form == NSM_DOCUMENT_2023 ? "a9" : "bf");
    append_notation(want, "69 'module_id' 7827 '" MODULE_ID "'"
                    " 66 'digest' 66 'SHA384'"
                    " 69 'timestamp' 1b 0000019c13ec9e7b 64 'pcrs' b0");
    for (uint8_t i = 0; i < 16; i++) {
        g_byte_array_append(want, &i, 1);
        append_notation(want, "5830");
        notation_fill(want, i < 3 ? 0xa0 + i : 0, 48);
    }
    append_notation(want, "6b 'certificate'");
    append_bstr16(want, d.certificate);
    append_notation(want, "68 'cabundle' 84");
    g_assert_cmpuint(d.bundled, ==, 4);
    for (int i = 0; i < 4; i++) {
        append_bstr16(want, d.cabundle[i]);
    }
    append_notation(want,
                    "6a 'public_key' f6 69 'user_data' f6 65 'nonce' f6");
    if (form != NSM_DOCUMENT_2023) {
        append_notation(want, "ff");
    }
    form = NSM_DOCUMENT_2025;
    g_assert_cmpmem(d.payload->data, d.payload->len, want->data, want->len);

    whole = notation("84 44 a1013822 a0");
    append_bstr16(whole, want);
    g_byte_array_append(whole, head, 2);
    g_byte_array_append(whole, d.signature, 96);
    g_assert_cmpmem(d.raw->data, d.raw->len, whole->data, whole->len);

    verify(&d, NOW);
    document_clear(&d);
    nsm_signer_free(signer);
}

static void test_fields(void)
{
    static const struct {
        const char *request;
        const char *tail;
    } rows[] = {
        { "a1 6b 'Attestation' a3 69 'user_data' 42 0102 65 'nonce' 41 03"
          " 6a 'public_key' 43 040506",
          "6a 'public_key' 43 040506 69 'user_data' 42 0102"
          " 65 'nonce' 41 03 ff" },
        { "a1 6b 'Attestation' a1 65 'nonce' 40",
          "6a 'public_key' f6 69 'user_data' f6 65 'nonce' 40 ff" },
        { "a1 6b 'Attestation' a1 69 'user_data' 5f 41 07 42 0809 ff",
          "6a 'public_key' f6 69 'user_data' 43 070809 65 'nonce' f6 ff" },
    };
    NsmSigner *signer;
    Document d;
    NsmState s;

    signer = module_start(&s, MODULE_ID);
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GByteArray) tail = notation(rows[i].tail);

        ask(&s, rows[i].request, &d);
        g_assert_cmpuint(d.payload->len, >, tail->len);
        g_assert_cmpmem(d.payload->data + d.payload->len - tail->len,
                        tail->len, tail->data, tail->len);
        verify(&d, NOW);
        document_clear(&d);
    }
    nsm_signer_free(signer);
}

/* What nsm-check asks for: 1024 bytes in each field */
static void test_long_fields(void)
{
    static const char *const names[] = {
        "69 'user_data' 590400", "65 'nonce' 590400", "6a 'public_key' 590400",
    };
    static const int order[] = { 2, 0, 1 };
    g_autoptr(GByteArray) req = notation("a1 6b 'Attestation' a3");
    g_autoptr(GByteArray) tail = g_byte_array_new();
    uint8_t out[NSM_RESPONSE_MAX];
    NsmSigner *signer;
    NsmResult info;
    Document d;
    NsmState s;
    size_t len;

    for (int i = 0; i < 3; i++) {
        append_notation(req, names[i]);
        notation_fill(req, 0x80 + i, 1024);
        append_notation(tail, names[order[i]]);
        notation_fill(tail, 0x80 + order[i], 1024);
    }
    append_notation(tail, "ff");
    signer = module_start(&s, MODULE_ID);
    len = nsm_handle(&s, req->data, req->len, out, sizeof(out), &info);
    g_assert_cmpint(info.code, ==, NSM_SUCCESS);
    document_parse(&d, out + 26, len - 26);
    g_assert_cmpmem(d.payload->data + d.payload->len - tail->len, tail->len,
                    tail->data, tail->len);
    verify(&d, NOW);
    document_clear(&d);
    nsm_signer_free(signer);
}

/* Locked registers join, in order; debug enclaves have zeros but sign. */
static void test_pcrs(void)
{
    g_autoptr(GByteArray) some = notation("64 'pcrs' b2");
    g_autoptr(GByteArray) all = notation("64 'pcrs' b820");
    g_autoptr(GByteArray) zeros = notation("64 'pcrs' b0");
    NsmSigner *signer;
    Document d;
    NsmState s;

    signer = module_start(&s, MODULE_ID);

    g_assert_true(nsm_pcr_extend(&s, 20, (const uint8_t *)"x", 1));
    s.locked |= 1u << 20 | 1u << 31;
    for (uint8_t i = 0; i < 32; i++) {
        uint8_t head[] = { 0x18, i, 0x58, 0x30 };

        if (i < 16 || i == 20 || i == 31) {
            g_byte_array_append(some, i < 24 ? head + 1 : head, i < 24 ? 1 : 2);
            g_byte_array_append(some, head + 2, 2);
            g_byte_array_append(some, s.pcr[i], 48);
        }
        g_byte_array_append(all, i < 24 ? head + 1 : head, i < 24 ? 1 : 2);
        g_byte_array_append(all, head + 2, 2);
        g_byte_array_append(all, s.pcr[i], 48);
    }
    append_notation(some, "6b 'certificate'");
    append_notation(all, "6b 'certificate'");
    ask(&s, PLAIN, &d);
    g_assert_nonnull(memmem(d.payload->data, d.payload->len,
                            some->data, some->len));
    document_clear(&d);

    s.locked = UINT32_MAX;
    ask(&s, PLAIN, &d);
    g_assert_nonnull(memmem(d.payload->data, d.payload->len,
                            all->data, all->len));
    verify(&d, NOW);
    document_clear(&d);

    g_assert_true(nsm_boot(&s, &(NsmBoot) { .pcr0 = s.pcr[0], .debug = true }));
    for (uint8_t i = 0; i < 16; i++) {
        g_byte_array_append(zeros, &i, 1);
        append_notation(zeros, "5830");
        notation_fill(zeros, 0, 48);
    }
    ask(&s, PLAIN, &d);
    g_assert_nonnull(memmem(d.payload->data, d.payload->len,
                            zeros->data, zeros->len));
    verify(&d, NOW);
    document_clear(&d);
    nsm_signer_free(signer);
}

static void test_capacities(void)
{
    g_autoptr(GByteArray) req = notation(PLAIN);
    NsmSigner *signer;
    NsmResult info;
    NsmState s;
    size_t full;
    uint8_t out[NSM_RESPONSE_MAX];

    signer = module_start(&s, MODULE_ID);
    full = nsm_handle(&s, req->data, req->len, out, sizeof(out), NULL);
    for (size_t cap = 0; cap <= full; cap++) {
        uint8_t *exact = g_malloc(cap);
        size_t len = nsm_handle(&s, req->data, req->len, exact, cap, &info);

        if (cap == full) {
            g_assert_cmpint(info.code, ==, NSM_SUCCESS);
            g_assert_cmpuint(len, ==, full);
        } else {
            g_assert_cmpint(info.code, ==, NSM_BUFFER_TOO_SMALL);
            g_assert_cmpuint(len, ==, MIN(cap, 22) < 20 ? 0 : MIN(cap, 22));
        }
        g_free(exact);
    }
    nsm_signer_free(signer);
}

/* r and s that begin with zero bytes are padded: one document in 128. */
static void test_many_signatures(void)
{
    gnutls_x509_crt_t cert;
    gnutls_pubkey_t key;
    NsmSigner *signer;
    NsmState s;
    Document d;
    int short_ones = 0;

    signer = module_start(&s, MODULE_ID);
    ask(&s, PLAIN, &d);
    gnutls_x509_crt_init(&cert);
    gnutls_pubkey_init(&key);
    g_assert_cmpint(gnutls_x509_crt_import(
        cert, &(gnutls_datum_t) { d.certificate->data, d.certificate->len },
        GNUTLS_X509_FMT_DER), ==, 0);
    g_assert_cmpint(gnutls_pubkey_import_x509(key, cert, 0), ==, 0);
    document_clear(&d);

    for (int i = 0; i < 5000 && short_ones < 4; i++) {
        g_autoptr(GByteArray) structure = NULL;
        g_autoptr(GByteArray) der = NULL;
        gnutls_datum_t data, signature;

        ask(&s, PLAIN, &d);
        structure = sig_structure(&d);
        der = signature_der(d.signature);
        data = (gnutls_datum_t) { structure->data, structure->len };
        signature = (gnutls_datum_t) { der->data, der->len };
        g_assert_cmpint(gnutls_pubkey_verify_data2(
            key, GNUTLS_SIGN_ECDSA_SHA384, 0, &data, &signature), >=, 0);
        short_ones += d.signature[0] == 0 || d.signature[48] == 0;
        document_clear(&d);
    }
    g_assert_cmpint(short_ones, ==, 4);
    gnutls_pubkey_deinit(key);
    gnutls_x509_crt_deinit(cert);
    nsm_signer_free(signer);
}

/* What openssl reads in each certificate of our own chain */

#define OURS "OU = UTF8STRING:\"Local, not AWS\""
#define PLACE "C = PRINTABLESTRING:XX, ST = UTF8STRING:Local, " \
    "L = UTF8STRING:Local, O = UTF8STRING:nitroctl, " OURS ", "
#define SIGNS "X509v3 Key Usage: critical\n" \
    "                Digital Signature, Certificate Sign, CRL Sign\n"
static const struct {
    const char *subject;        /* a regular expression */
    int extensions;             /* which of those below, one bit each */
    size_t serial;              /* bytes of its number */
    const char *has[4];
    const char *lacks[3];
} levels[] = {
    { "^C = PRINTABLESTRING:XX, O = UTF8STRING:nitroctl, " OURS
      ", CN = UTF8STRING:local\\.nitro-enclaves$", 0xd, 16,
      { "Basic Constraints: critical\n                CA:TRUE\n", SIGNS,
        "Subject Key Identifier" }, { "Authority Key", "CRL Dist" } },
    { "^C = PRINTABLESTRING:XX, O = UTF8STRING:nitroctl, " OURS
      ", CN = UTF8STRING:[0-9a-f]{16}\\.local\\.nitro-enclaves$", 0xf, 16,
      { "Basic Constraints: critical\n                CA:TRUE, pathlen:2\n",
        SIGNS, "Subject Key Identifier", "Authority Key Identifier" },
      { "Alternative" } },
    { "^CN = UTF8STRING:[0-9a-f]{16}\\.zonal\\.local\\.nitro-enclaves, "
      OURS ", O = UTF8STRING:nitroctl, C = PRINTABLESTRING:XX, "
      "ST = UTF8STRING:Local, L = UTF8STRING:Local$", 0xf, 16,
      { "Basic Constraints: critical\n                CA:TRUE, pathlen:1\n",
        SIGNS, "Subject Key Identifier", "Authority Key Identifier" },
      { "Alternative" } },
    { "^" PLACE "CN = UTF8STRING:i-1234567890abcdef0\\.local\\."
      "nitro-enclaves$", 0xf, 20,
      { "Basic Constraints: critical\n                CA:TRUE, pathlen:0\n",
        "X509v3 Key Usage: critical\n                Certificate Sign\n" },
      { "Alternative" } },
    { "^" PLACE "CN = UTF8STRING:i-1234567890abcdef0-enc0123456789abcdef"
      "\\.local$", 0x9, 16,
      { "Basic Constraints: critical\n                CA:FALSE\n",
        "X509v3 Key Usage:\x20\n"
        "                Digital Signature, Non Repudiation\n" },
      { "Subject Key", "Authority Key", "Extended" } },
};

static const char *const extensions[] = {
    "X509v3 Basic Constraints", "X509v3 Authority Key Identifier",
    "X509v3 Subject Key Identifier", "X509v3 Key Usage",
};

/* In this order, and no others of them */
static void check_extensions(const char *text, int wanted)
{
    for (int n = 0; n < 4; n++) {
        const char *next = strstr(text, extensions[n]);

        g_assert_cmpint(next != NULL, ==, wanted >> n & 1);
        text = next ? next : text;
    }
}

static void check_shape(const GByteArray *der, int i)
{
    g_autofree char *text = openssl_reads(
        der, "x509 -inform DER -in c.der -noout -text");
    g_autofree char *serial = openssl_reads(
        der, "x509 -inform DER -in c.der -noout -serial");
    g_autofree char *asn1 = openssl_reads(der,
                                          "asn1parse -inform DER -in c.der");
    g_autofree char *subject = openssl_reads(
        der, "x509 -inform DER -in c.der -noout -subject "
        "-nameopt oneline,show_type");
    const char *date;

    g_assert_cmpuint(der->len, <=, 1024);
    g_assert_nonnull(strstr(text, "Version: 3 (0x2)"));
    g_assert_nonnull(strstr(text, "NIST CURVE: P-384"));
    g_assert_nonnull(strstr(text, "Algorithm: ecdsa-with-SHA384"));
    check_extensions(text, i == 3 && form == NSM_DOCUMENT_2023 ?
                     0x9 : levels[i].extensions);
    g_assert_cmpuint(strlen(g_strchomp(serial)), ==,
                     strlen("serial=") + 2 * levels[i].serial);
    date = strstr(asn1, "UTCTIME");
    g_assert_true(date && strstr(date + 1, "UTCTIME"));
    for (int n = 0; n < 4 && levels[i].has[n]; n++) {
        if (!strstr(text, levels[i].has[n])) {
            g_error("level %d lacks %s in %s", i, levels[i].has[n], text);
        }
    }
    for (int n = 0; n < 3 && levels[i].lacks[n]; n++) {
        g_assert_null(strstr(text, levels[i].lacks[n]));
    }
    g_strchomp(subject);
    g_assert_true(g_str_has_prefix(subject, "subject="));
    if (!g_regex_match_simple(levels[i].subject, subject + 8, 0, 0)) {
        g_error("level %d: %s", i, subject);
    }
}

static void test_shape(const void *opaque)
{
    NsmSigner *signer;
    NsmState s;
    Document d;

    form = GPOINTER_TO_INT(opaque);
    signer = module_start(&s, MODULE_ID);
    ask(&s, PLAIN, &d);
    g_assert_cmpuint(d.bundled, ==, 4);
    for (int i = 0; i < 5; i++) {
        check_shape(i < 4 ? d.cabundle[i] : d.certificate, i);
    }
    form = NSM_DOCUMENT_2025;
    document_clear(&d);
    nsm_signer_free(signer);
}

static void check_leaf(const char *module_id, const char *serial)
{
    g_autofree char *text = NULL;
    g_autofree char *want = g_strdup_printf(
        "^serial=%s697DEEC0\nnotBefore=Jan 31 11:59:57 2026 GMT\n"
        "notAfter=Jan 31 15:00:00 2026 GMT\n$", serial);
    NsmSigner *signer;
    NsmState s;
    Document d;

    signer = module_start(&s, module_id);
    ask(&s, PLAIN, &d);
    text = openssl_reads(d.certificate, "x509 -inform DER -in c.der -noout "
                         "-serial -dates");
    if (!g_regex_match_simple(want, text, 0, 0)) {
        g_error("not %s: %s", want, text);
    }
    verify(&d, NOW);
    document_clear(&d);
    nsm_signer_free(signer);
}

#define RANDOM "[0-9A-F]{8}"

/* The enclave's number, 4 bytes, the second of issuance 0x697deec0; dates */
static void test_leaf(void)
{
    char longest[100];

    check_leaf(MODULE_ID, "0123456789ABCDEF" RANDOM);
    /* As integers: no zeros in front, never negative. */
    check_leaf("i-0-enc0000000000000080", "80" RANDOM);
    check_leaf("i-0-enc0000000000000000", "[0-9A-F]{0,8}");
    check_leaf("i-0-encffffffffffffffff", "FFFFFFFFFFFFFFFF" RANDOM);
    /* Without a number: (ms << 16) */
    check_leaf("hello-world", "019C13EC9E000000" RANDOM);
    check_leaf("i-0-enc123", "019C13EC9E000000" RANDOM);
    check_leaf("i-0-encx123456789abcdef", "019C13EC9E000000" RANDOM);
    memset(longest, 'x', 99);
    longest[99] = '\0';
    check_leaf(longest, "019C13EC9E000000" RANDOM);
}

/* An instance id that is too long for a common name is cut, not its suffix. */
static void test_long_name(void)
{
    g_autofree char *id = g_strnfill(70, 'i');
    g_autofree char *cut = g_strnfill(64 - 21, 'i');
    g_autofree char *want =
        g_strconcat("CN=", cut, ".local.nitro-enclaves,", NULL);
    g_autofree char *text = NULL;
    NsmSigner *signer;
    NsmState s;
    Document d;

    signer = module_start(&s, id);
    ask(&s, PLAIN, &d);
    text = openssl_reads(d.cabundle[3], "x509 -inform DER -in c.der -noout "
                         "-subject -nameopt RFC2253");
    g_assert_nonnull(strstr(text, want));
    document_clear(&d);
    nsm_signer_free(signer);
}

static void test_root(void)
{
    char *folder = folder_new();
    g_autofree char *der = NULL;
    g_autofree char *path = g_build_filename(folder, "root.der", NULL);
    NsmSigner *signer;
    const char *pem;
    gsize len;
    NsmState s;
    Document d;

    signer = module_start(&s, MODULE_ID);
    ask(&s, PLAIN, &d);
    pem = nsm_signer_root(signer);
    g_assert_true(g_str_has_prefix(pem, "-----BEGIN CERTIFICATE-----\n"));
    g_assert_true(g_str_has_suffix(pem, "-----END CERTIFICATE-----\n"));
    put_file(folder, "root.pem", pem, strlen(pem));
    g_free(openssl(folder, "x509 -in root.pem -outform DER -out root.der"));
    g_assert_true(g_file_get_contents(path, &der, &len, NULL));
    g_assert_cmpmem(der, len, d.cabundle[0]->data, d.cabundle[0]->len);
    document_clear(&d);
    nsm_signer_free(signer);
    folder_free(folder);
}

static bool same_bytes(const GByteArray *a, const GByteArray *b)
{
    return a->len == b->len && !memcmp(a->data, b->data, a->len);
}

/* Is the certificate at @now_ms another one than @d's? Then it becomes @d's. */
static bool renewed(NsmState *s, Document *d, int64_t now_ms)
{
    Document later;
    bool other;

    clock_ms = now_ms;
    ask(s, PLAIN, &later);
    other = !same_bytes(d->certificate, later.certificate);
    verify(&later, now_ms / 1000);
    /* Only the enclave's certificate ever changes. */
    for (int i = 0; i < 4; i++) {
        g_assert_true(same_bytes(d->cabundle[i], later.cabundle[i]));
    }
    document_clear(d);
    *d = later;
    return other;
}

static void test_renewal(void)
{
    NsmSigner *signer;
    NsmState s;
    Document d;

    signer = module_start(&s, MODULE_ID);
    ask(&s, PLAIN, &d);
    g_assert_false(renewed(&s, &d, NOW_MS + 1));
    g_assert_false(renewed(&s, &d, (NOW + 2 * HOUR) * 1000LL - 1));
    g_assert_true(renewed(&s, &d, (NOW + 2 * HOUR) * 1000LL));
    g_assert_false(renewed(&s, &d, (NOW + 4 * HOUR) * 1000LL - 1));
    g_assert_true(renewed(&s, &d, (NOW + 300 * DAY) * 1000LL));
    /* The clock goes back: a little, and out of the certificate. */
    g_assert_false(renewed(&s, &d, (NOW + 300 * DAY - 3) * 1000LL));
    g_assert_true(renewed(&s, &d, (NOW + 300 * DAY - 4) * 1000LL));
    g_assert_true(renewed(&s, &d, NOW_MS));
    document_clear(&d);
    nsm_signer_free(signer);
}

/* After migration, the state that arrives has another module id. */
static void test_module_id(void)
{
    g_autofree char *text = NULL;
    NsmSigner *signer;
    NsmState s;
    Document d;

    clock_ms = NOW_MS;
    signer = signer_new("i-0-enc0000000000000001");
    boot(&s, signer, MODULE_ID);
    ask(&s, PLAIN, &d);
    text = openssl_reads(d.certificate, "x509 -inform DER -in c.der -noout "
                         "-subject -nameopt RFC2253");
    g_assert_nonnull(strstr(text, "CN=" MODULE_ID ".local"));
    g_assert_false(renewed(&s, &d, NOW_MS));
    document_clear(&d);
    nsm_signer_free(signer);
}

/* Without a clock of ours, the host's */
static void test_host_clock(void)
{
    const NsmSignerOptions options = { 0 };
    NsmSignerError err;
    NsmSigner *signer = nsm_signer_new(&options, MODULE_ID, &err);
    int64_t before = g_get_real_time() / 1000, after, stamp = 0;
    g_autoptr(GByteArray) head = notation("69 'timestamp' 1b");
    const uint8_t *p;
    NsmState s;
    Document d;

    g_assert_nonnull(signer);
    boot(&s, signer, MODULE_ID);
    ask(&s, PLAIN, &d);
    after = g_get_real_time() / 1000;
    p = memmem(d.payload->data, d.payload->len, head->data, head->len);
    g_assert_nonnull(p);
    for (int i = 0; i < 8; i++) {
        stamp = stamp << 8 | p[head->len + i];
    }
    g_assert_cmpint(stamp, >=, before);
    g_assert_cmpint(stamp, <=, after);
    verify(&d, stamp / 1000);
    document_clear(&d);
    nsm_signer_free(signer);
}

static void test_ephemeral_end(void)
{
    NsmSigner *signer;
    NsmState s;

    signer = module_start(&s, MODULE_ID);
    expect_no_document(&s, NOW + 3651LL * DAY, "chain ended at 2036-01-29");
    nsm_signer_free(signer);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/nsm-attest/document",
                         GINT_TO_POINTER(NSM_DOCUMENT_2025), test_document);
    g_test_add_data_func("/nsm-attest/document/2023",
                         GINT_TO_POINTER(NSM_DOCUMENT_2023), test_document);
    g_test_add_func("/nsm-attest/fields", test_fields);
    g_test_add_func("/nsm-attest/long-fields", test_long_fields);
    g_test_add_func("/nsm-attest/pcrs", test_pcrs);
    g_test_add_func("/nsm-attest/capacities", test_capacities);
    g_test_add_func("/nsm-attest/many-signatures", test_many_signatures);
    g_test_add_data_func("/nsm-attest/shape",
                         GINT_TO_POINTER(NSM_DOCUMENT_2025), test_shape);
    g_test_add_data_func("/nsm-attest/shape/2023",
                         GINT_TO_POINTER(NSM_DOCUMENT_2023), test_shape);
    g_test_add_func("/nsm-attest/leaf", test_leaf);
    g_test_add_func("/nsm-attest/long-name", test_long_name);
    g_test_add_func("/nsm-attest/root", test_root);
    g_test_add_func("/nsm-attest/renewal", test_renewal);
    g_test_add_func("/nsm-attest/module-id", test_module_id);
    g_test_add_func("/nsm-attest/ephemeral-end", test_ephemeral_end);
    g_test_add_func("/nsm-attest/host-clock", test_host_clock);
    return g_test_run();
}
