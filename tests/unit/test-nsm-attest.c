/*
 * SPDX-License-Identifier: MIT
 *
 * NSM attestation: documents and certificates
 *
 * Documents byte for byte where they are determined; the openssl program is
 * the judge of chain and signature, and reads the certificates' shape. Chains
 * given as files are made here with one fault each, and one exact complaint
 * is expected. The clock is the test's.
 */
#include <stdio.h>
#include <cbor.h>
#include <glib/gstdio.h>
#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/x509.h>

#include "nitro/nsm-attest.h"
#include "notation.h"

#define MODULE_ID "i-1234567890abcdef0-enc0123456789abcdef"

/* 2026-01-31 12:00:00.123 UTC = 0x019c13ec9e7b ms */
#define NOW 1769860800
#define NOW_MS (NOW * 1000LL + 123)
#define HOUR 3600
#define DAY (24 * HOUR)

static int64_t clock_ms;
static NsmDocumentForm form;

static int64_t test_clock(void *opaque)
{
    return clock_ms;
}

/* Work folder of one test */

static char *folder_new(void)
{
    char *folder = g_dir_make_tmp("nsm-attest-XXXXXX", NULL);

    g_assert_nonnull(folder);
    return folder;
}

static void folder_free(char *folder)
{
    GDir *dir = g_dir_open(folder, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(folder, name, NULL);

        g_assert_cmpint(g_unlink(path), ==, 0);
    }
    g_dir_close(dir);
    g_assert_cmpint(g_rmdir(folder), ==, 0);
    g_free(folder);
}

static void put_file(const char *folder, const char *name,
                     const void *data, size_t len)
{
    g_autofree char *path = g_build_filename(folder, name, NULL);

    g_assert_true(g_file_set_contents(path, data, len, NULL));
}

/* Runs openssl in @folder; its output, stdout and stderr. Takes the status. */
static char *openssl_status(const char *folder, int *status,
                            const char *arguments)
{
    g_autofree char *line = g_strconcat("openssl ", arguments, NULL);
    g_autoptr(GError) err = NULL;
    g_auto(GStrv) argv = NULL;
    g_autofree char *out = NULL;
    g_autofree char *errors = NULL;
    int wait_status;

    g_assert_true(g_shell_parse_argv(line, NULL, &argv, NULL));
    if (!g_spawn_sync(folder, argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL,
                      &out, &errors, &wait_status, &err)) {
        g_error("this test needs the openssl program (apt install openssl): "
                "%s", err->message);
    }
    *status = wait_status;
    return g_strconcat(out, errors, NULL);
}

static char *G_GNUC_PRINTF(2, 3) openssl(const char *folder,
                                         const char *format, ...)
{
    g_autofree char *arguments = NULL;
    va_list args;
    char *out;
    int status;

    va_start(args, format);
    arguments = g_strdup_vprintf(format, args);
    va_end(args);
    out = openssl_status(folder, &status, arguments);
    if (status != 0) {
        g_error("openssl %s: %s", arguments, out);
    }
    return out;
}

/* Documents */

typedef struct Document {
    GByteArray *raw;
    GByteArray *payload;
    uint8_t signature[96];
    GByteArray *certificate;
    GByteArray *cabundle[NSM_CHAIN_MAX];
    size_t bundled;
} Document;

static GByteArray *bytes_of(const cbor_item_t *item)
{
    GByteArray *out = g_byte_array_new();

    g_assert_true(cbor_isa_bytestring(item));
    g_assert_true(cbor_bytestring_is_definite(item));
    g_byte_array_append(out, cbor_bytestring_handle(item),
                        cbor_bytestring_length(item));
    return out;
}

/* Taken apart with libcbor's tree builder, which the signer does not use */
static void document_parse(Document *d, const uint8_t *data, size_t len)
{
    struct cbor_load_result result;
    cbor_item_t *outer = cbor_load(data, len, &result), *map;
    g_autoptr(GByteArray) signature = NULL;

    memset(d, 0, sizeof(*d));
    d->raw = g_byte_array_append(g_byte_array_new(), data, len);
    g_assert_nonnull(outer);
    g_assert_cmpuint(result.read, ==, len);
    g_assert_true(cbor_isa_array(outer) && cbor_array_size(outer) == 4);
    d->payload = bytes_of(cbor_array_handle(outer)[2]);
    signature = bytes_of(cbor_array_handle(outer)[3]);
    g_assert_cmpuint(signature->len, ==, 96);
    memcpy(d->signature, signature->data, 96);
    cbor_decref(&outer);

    map = cbor_load(d->payload->data, d->payload->len, &result);
    g_assert_nonnull(map);
    g_assert_cmpuint(result.read, ==, d->payload->len);
    g_assert_true(cbor_isa_map(map) && cbor_map_size(map) == 9);
    d->certificate = bytes_of(cbor_map_handle(map)[4].value);
    outer = cbor_map_handle(map)[5].value;
    d->bundled = cbor_array_size(outer);
    g_assert_cmpuint(d->bundled, <=, NSM_CHAIN_MAX);
    for (size_t i = 0; i < d->bundled; i++) {
        d->cabundle[i] = bytes_of(cbor_array_handle(outer)[i]);
    }
    cbor_decref(&map);
}

static void document_clear(Document *d)
{
    g_byte_array_unref(d->raw);
    g_byte_array_unref(d->payload);
    g_byte_array_unref(d->certificate);
    for (size_t i = 0; i < d->bundled; i++) {
        g_byte_array_unref(d->cabundle[i]);
    }
}

static NsmSigner *signer_new(const char *chain, const char *key,
                             const char *module_id)
{
    const NsmSignerOptions options = {
        .cert_chain = chain, .cert_key = key, .form = form,
        .clock = test_clock,
    };
    NsmSignerError err;
    NsmSigner *signer = nsm_signer_new(&options, module_id, &err);

    if (!signer) {
        g_error("%s", err.text);
    }
    return signer;
}

static void boot(NsmState *s, NsmSigner *signer, const char *module_id)
{
    uint8_t pcr[3][48];

    for (int i = 0; i < 3; i++) {
        memset(pcr[i], 0xa0 + i, 48);
    }
    nsm_init(s, module_id);
    g_assert_true(nsm_boot(s, &(NsmBoot) {
        .pcr0 = pcr[0], .pcr1 = pcr[1], .pcr2 = pcr[2],
    }));
    nsm_set_attest(s, nsm_signer_attest, signer);
}

/* Asks as a guest does, and takes the document out of the answer. */
static void ask(NsmState *s, const char *request, Document *d)
{
    g_autoptr(GByteArray) req = notation(request);
    g_autoptr(GByteArray) head =
        notation("a1 6b 'Attestation' a1 68 'document' 59");
    uint8_t out[NSM_RESPONSE_MAX];
    NsmResult info;
    size_t len = nsm_handle(s, req->data, req->len, out, sizeof(out), &info);

    if (info.code != NSM_SUCCESS) {
        g_error("%s", info.reason);
    }
    g_assert_null(info.reason);
    g_assert_cmpmem(out, head->len, head->data, head->len);
    g_assert_cmpuint(out[head->len] << 8 | out[head->len + 1], ==,
                     len - head->len - 2);
    document_parse(d, out + head->len + 2, len - head->len - 2);
}

#define PLAIN "a1 6b 'Attestation' a0"

/* ASN.1 of an ECDSA signature (RFC 3279, section 2.2.3) */
static GByteArray *signature_der(const uint8_t raw[96])
{
    GByteArray *out = g_byte_array_new();
    uint8_t head[2] = { 0x30, 0 };

    g_byte_array_append(out, head, 2);
    for (int half = 0; half < 2; half++) {
        const uint8_t *p = raw + 48 * half;
        uint8_t len = 48;

        while (len > 1 && *p == 0) {
            p++;
            len--;
        }
        head[0] = 2;
        head[1] = len + (*p >> 7);
        g_byte_array_append(out, head, 2);
        if (*p >> 7) {
            g_byte_array_append(out, (const uint8_t *)"", 1);
        }
        g_byte_array_append(out, p, len);
    }
    out->data[1] = out->len - 2;
    return out;
}

/* RFC 9052, section 4.4, written down independently of the signer */
static GByteArray *sig_structure(const Document *d)
{
    GByteArray *out = notation("84 6a 'Signature1' 44 a1013822 40 59");
    uint8_t len[2] = { d->payload->len >> 8, d->payload->len };

    g_byte_array_append(out, len, 2);
    return g_byte_array_append(out, d->payload->data, d->payload->len);
}

/* Writes root.pem, chain.pem, leaf.pem, pub.pem, signed.bin, sig.der. */
static void unpack(const char *folder, const Document *d)
{
    g_autoptr(GByteArray) der = signature_der(d->signature);
    g_autoptr(GByteArray) structure = sig_structure(d);
    g_autoptr(GString) chain = g_string_new("");
    g_autofree char *public = NULL;

    put_file(folder, "leaf.der", d->certificate->data, d->certificate->len);
    g_free(openssl(folder, "x509 -inform DER -in leaf.der -out leaf.pem"));
    for (size_t i = 0; i < d->bundled; i++) {
        g_autofree char *pem = NULL;

        put_file(folder, "ca.der", d->cabundle[i]->data, d->cabundle[i]->len);
        pem = openssl(folder, "x509 -inform DER -in ca.der");
        if (i == 0) {
            put_file(folder, "root.pem", pem, strlen(pem));
        } else {
            g_string_append(chain, pem);
        }
    }
    put_file(folder, "chain.pem", chain->str, chain->len);
    public = openssl(folder, "x509 -in leaf.pem -noout -pubkey");
    put_file(folder, "pub.pem", public, strlen(public));
    put_file(folder, "signed.bin", structure->data, structure->len);
    put_file(folder, "sig.der", der->data, der->len);
}

static void verify(const Document *d, int64_t now)
{
    char *folder = folder_new();
    g_autofree char *chain = NULL;
    g_autofree char *signature = NULL;
    g_autofree char *refused = NULL;
    g_autoptr(GByteArray) other = sig_structure(d);
    int status;

    unpack(folder, d);
    chain = openssl(folder, "verify -attime %" G_GINT64_FORMAT " -CAfile "
                    "root.pem %s leaf.pem", now,
                    d->bundled > 1 ? "-untrusted chain.pem" : "");
    g_assert_nonnull(strstr(chain, "leaf.pem: OK"));
    signature = openssl(folder, "dgst -sha384 -verify pub.pem -signature "
                        "sig.der signed.bin");
    g_assert_nonnull(strstr(signature, "Verified OK"));

    /* The judge does say no. */
    other->data[other->len - 1] ^= 1;
    put_file(folder, "signed.bin", other->data, other->len);
    refused = openssl_status(folder, &status, "dgst -sha384 -verify pub.pem "
                             "-signature sig.der signed.bin");
    g_assert_cmpint(status, !=, 0);
    folder_free(folder);
}

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
    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);
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

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);
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
    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);
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

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);

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

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);
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

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);
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
static void test_shape(const void *opaque)
{
#define OURS "OU = UTF8STRING:\"Local, not AWS\""
#define PLACE "C = PRINTABLESTRING:XX, ST = UTF8STRING:Local, " \
        "L = UTF8STRING:Local, O = UTF8STRING:nitroctl, " OURS ", "
#define SIGNS "X509v3 Key Usage: critical\n" \
        "                Digital Signature, Certificate Sign, CRL Sign\n"
    static const struct {
        const char *subject;            /* a regular expression */
        const char *has[4];
        const char *lacks[3];
    } levels[] = {
        { "^C = PRINTABLESTRING:XX, O = UTF8STRING:nitroctl, " OURS
          ", CN = UTF8STRING:local\\.nitro-enclaves$",
          { "Basic Constraints: critical\n                CA:TRUE\n", SIGNS,
            "Subject Key Identifier" }, { "Authority Key", "CRL Dist" } },
        { "^C = PRINTABLESTRING:XX, O = UTF8STRING:nitroctl, " OURS
          ", CN = UTF8STRING:[0-9a-f]{16}\\.local\\.nitro-enclaves$",
          { "Basic Constraints: critical\n                CA:TRUE, pathlen:2\n",
            SIGNS, "Subject Key Identifier", "Authority Key Identifier" },
          { "Alternative" } },
        { "^CN = UTF8STRING:[0-9a-f]{16}\\.zonal\\.local\\.nitro-enclaves, "
          OURS ", O = UTF8STRING:nitroctl, C = PRINTABLESTRING:XX, "
          "ST = UTF8STRING:Local, L = UTF8STRING:Local$",
          { "Basic Constraints: critical\n                CA:TRUE, pathlen:1\n",
            SIGNS, "Subject Key Identifier", "Authority Key Identifier" },
          { "Alternative" } },
        { "^" PLACE "CN = UTF8STRING:i-1234567890abcdef0\\.local\\."
          "nitro-enclaves$",
          { "Basic Constraints: critical\n                CA:TRUE, pathlen:0\n",
            "X509v3 Key Usage: critical\n                Certificate Sign\n" },
          { "Alternative" } },
        { "^" PLACE "CN = UTF8STRING:i-1234567890abcdef0-enc0123456789abcdef"
          "\\.local$",
          { "Basic Constraints: critical\n                CA:FALSE\n",
            "X509v3 Key Usage:\x20\n"
            "                Digital Signature, Non Repudiation\n" },
          { "Subject Key", "Authority Key", "Extended" } },
    };
    static const char *const extensions[] = {
        "X509v3 Basic Constraints", "X509v3 Authority Key Identifier",
        "X509v3 Subject Key Identifier", "X509v3 Key Usage",
    };
    /* Which of them, one bit each, and the bytes of the serial number */
    static const int has[] = { 0xd, 0xf, 0xf, 0xf, 0x9 };
    static const size_t serials[] = { 16, 16, 16, 20, 16 };
    char *folder = folder_new();
    NsmSigner *signer;
    NsmState s;
    Document d;

    form = GPOINTER_TO_INT(opaque);
    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);
    ask(&s, PLAIN, &d);
    g_assert_cmpuint(d.bundled, ==, 4);
    for (int i = 0; i < 5; i++) {
        int wanted = i == 3 && form == NSM_DOCUMENT_2023 ? 0x9 : has[i];
        g_autofree char *serial = NULL;
        g_autofree char *asn1 = NULL;
        const char *at;
        const GByteArray *der = i < 4 ? d.cabundle[i] : d.certificate;
        g_autofree char *text = NULL;
        g_autofree char *subject = NULL;

        g_assert_cmpuint(der->len, <=, 1024);
        put_file(folder, "c.der", der->data, der->len);
        text = openssl(folder, "x509 -inform DER -in c.der -noout -text");
        g_assert_nonnull(strstr(text, "Version: 3 (0x2)"));
        g_assert_nonnull(strstr(text, "NIST CURVE: P-384"));
        g_assert_nonnull(strstr(text, "Algorithm: ecdsa-with-SHA384"));
        at = text;
        for (int n = 0; n < 4; n++) {
            const char *next = strstr(at, extensions[n]);

            g_assert_cmpint(next != NULL, ==, wanted >> n & 1);
            at = next ? next : at;
        }
        serial = openssl(folder, "x509 -inform DER -in c.der -noout -serial");
        g_assert_cmpuint(strlen(g_strchomp(serial)), ==,
                         strlen("serial=") + 2 * serials[i]);
        asn1 = openssl(folder, "asn1parse -inform DER -in c.der");
        at = strstr(asn1, "UTCTIME");
        g_assert_true(at && strstr(at + 1, "UTCTIME"));
        for (int n = 0; n < 4 && levels[i].has[n]; n++) {
            if (!strstr(text, levels[i].has[n])) {
                g_error("level %d lacks %s in %s", i, levels[i].has[n], text);
            }
        }
        for (int n = 0; n < 3 && levels[i].lacks[n]; n++) {
            g_assert_null(strstr(text, levels[i].lacks[n]));
        }
        subject = openssl(folder, "x509 -inform DER -in c.der -noout -subject "
                          "-nameopt oneline,show_type");
        g_strchomp(subject);
        g_assert_true(g_str_has_prefix(subject, "subject="));
        if (!g_regex_match_simple(levels[i].subject, subject + 8, 0, 0)) {
            g_error("level %d: %s", i, subject);
        }
    }
    form = NSM_DOCUMENT_2025;
    document_clear(&d);
    nsm_signer_free(signer);
    folder_free(folder);
}

static void check_leaf(const char *module_id, const char *serial)
{
    char *folder = folder_new();
    g_autofree char *text = NULL;
    g_autofree char *want = g_strdup_printf(
        "^serial=%s697DEEC0\nnotBefore=Jan 31 11:59:57 2026 GMT\n"
        "notAfter=Jan 31 15:00:00 2026 GMT\n$", serial);
    NsmSigner *signer;
    NsmState s;
    Document d;

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, module_id);
    boot(&s, signer, module_id);
    ask(&s, PLAIN, &d);
    put_file(folder, "c.der", d.certificate->data, d.certificate->len);
    text = openssl(folder, "x509 -inform DER -in c.der -noout -serial -dates");
    if (!g_regex_match_simple(want, text, 0, 0)) {
        g_error("not %s: %s", want, text);
    }
    verify(&d, NOW);
    document_clear(&d);
    nsm_signer_free(signer);
    folder_free(folder);
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
    char *folder = folder_new();
    g_autofree char *id = g_strnfill(70, 'i');
    g_autofree char *cut = g_strnfill(64 - 21, 'i');
    g_autofree char *want =
        g_strconcat("CN=", cut, ".local.nitro-enclaves,", NULL);
    g_autofree char *text = NULL;
    NsmSigner *signer;
    NsmState s;
    Document d;

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, id);
    boot(&s, signer, id);
    ask(&s, PLAIN, &d);
    put_file(folder, "c.der", d.cabundle[3]->data, d.cabundle[3]->len);
    text = openssl(folder, "x509 -inform DER -in c.der -noout -subject "
                   "-nameopt RFC2253");
    g_assert_nonnull(strstr(text, want));
    document_clear(&d);
    nsm_signer_free(signer);
    folder_free(folder);
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

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);
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

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);
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
    char *folder = folder_new();
    NsmSigner *signer;
    NsmState s;
    Document d;

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, "i-0-enc0000000000000001");
    boot(&s, signer, MODULE_ID);
    ask(&s, PLAIN, &d);
    put_file(folder, "c.der", d.certificate->data, d.certificate->len);
    text = openssl(folder, "x509 -inform DER -in c.der -noout -subject "
                   "-nameopt RFC2253");
    g_assert_nonnull(strstr(text, "CN=" MODULE_ID ".local"));
    g_assert_false(renewed(&s, &d, NOW_MS));
    document_clear(&d);
    nsm_signer_free(signer);
    folder_free(folder);
}

static void expect_no_document(NsmState *s, int64_t now, const char *reason)
{
    g_autoptr(GByteArray) req = notation(PLAIN);
    g_autoptr(GByteArray) want = notation("a1 65 'Error' 6d 'InternalError'");
    uint8_t out[NSM_RESPONSE_MAX];
    NsmResult info;
    size_t len;

    clock_ms = now * 1000LL;
    len = nsm_handle(s, req->data, req->len, out, sizeof(out), &info);
    g_assert_cmpmem(out, len, want->data, want->len);
    g_assert_cmpint(info.code, ==, NSM_INTERNAL_ERROR);
    if (!strstr(info.reason, reason)) {
        g_error("%s", info.reason);
    }
}

/* Chains in files, made with gnutls, with one thing wrong in each */

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

static void test_ephemeral_end(void)
{
    NsmSigner *signer;
    NsmState s;

    clock_ms = NOW_MS;
    signer = signer_new(NULL, NULL, MODULE_ID);
    boot(&s, signer, MODULE_ID);
    expect_no_document(&s, NOW + 3651LL * DAY, "chain ended at 2036-01-29");
    nsm_signer_free(signer);
}

static void test_certificate_faults(void)
{
    static const struct {
        NsmSignerFault fault;
        unsigned level;
        Level change;           /* what is not zero in it is the change */
        const char *words;
    } rows[] = {
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

    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        const Level *change = &rows[i].change;
        char *folder = folder_new();
        Level levels[4], *level = &levels[rows[i].level];

        chain_defaults(levels, 4);
        level->curve = change->curve ? change->curve : level->curve;
        level->digest = change->digest ? change->digest : level->digest;
        level->foreign_key = change->foreign_key;
        level->not_ca = change->not_ca;
        level->no_constraints = change->no_constraints;
        level->not_critical = change->not_critical;
        level->no_usage = change->no_usage;
        level->usage = change->usage ? change->usage : level->usage;
        level->path_length = change->path_length ? change->path_length :
                             level->path_length;
        if (change->path_length == PATH_ZERO) {
            level->path_length = 0;
        }
        level->begin = change->begin ? change->begin : level->begin;
        level->end = change->end ? change->end : level->end;
        level->padding = change->padding;
        level->extension = change->extension;
        chain_write(folder, levels, 4);
        if (rows[i].fault == NSM_SIGNER_LEAF_TOO_LARGE) {
            /* It is not a file's fault alone, and names none. */
            NsmSignerError err;

            g_assert_null(chain_load(folder, &err));
            g_assert_cmpint(err.fault, ==, rows[i].fault);
            g_assert_nonnull(strstr(err.text, rows[i].words));
        } else {
            expect_fault(folder, rows[i].fault, rows[i].words);
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

static void test_file_faults(void)
{
    static const char garbage[] =
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    char *folder = folder_new();
    g_autofree char *chain = g_build_filename(folder, "chain.pem", NULL);
    g_autofree char *key = g_build_filename(folder, "key.pem", NULL);
    g_autofree char *big = g_strnfill(300 * 1024, '\n');
    gnutls_x509_privkey_t other;
    gnutls_datum_t out;
    NsmSignerOptions options = { .clock = test_clock };
    NsmSignerError err;
    NsmSigner *signer;
    Level levels[9];

    chain_defaults(levels, 4);
    chain_write(folder, levels, 4);

    /* One file without the other */
    options.cert_chain = chain;
    g_assert_null(nsm_signer_new(&options, MODULE_ID, &err));
    g_assert_cmpint(err.fault, ==, NSM_SIGNER_OPTIONS);
    options.cert_chain = NULL;
    options.cert_key = key;
    g_assert_null(nsm_signer_new(&options, MODULE_ID, &err));
    g_assert_cmpint(err.fault, ==, NSM_SIGNER_OPTIONS);
    g_assert_nonnull(strstr(err.text, "go together"));

    /* Keys: SEC 1 is fine, too. */
    g_free(openssl(folder, "ec -in key.pem -out sec1.pem"));
    g_free(openssl(folder, "pkcs8 -topk8 -nocrypt -in sec1.pem -out same.pem"));
    {
        g_autofree char *sec1 = g_build_filename(folder, "sec1.pem", NULL);

        options.cert_chain = chain;
        options.cert_key = sec1;
        signer = nsm_signer_new(&options, MODULE_ID, &err);
        g_assert_nonnull(signer);
        nsm_signer_free(signer);
    }
    g_free(openssl(folder, "pkcs8 -topk8 -passout pass:secret -in sec1.pem "
                   "-out key.pem"));
    expect_fault(folder, NSM_SIGNER_KEY_MALFORMED, "without a password");
    put_file(folder, "key.pem", garbage, strlen(garbage));
    expect_fault(folder, NSM_SIGNER_KEY_MALFORMED, "no private key in PEM");
    g_free(openssl(folder, "ecparam -genkey -noout -name prime256v1 "
                   "-out key.pem"));
    expect_fault(folder, NSM_SIGNER_KEY_TYPE, "(EC/ECDSA, 256 bits) is not on");
    g_free(openssl(folder, "genpkey -algorithm RSA -out key.pem"));
    expect_fault(folder, NSM_SIGNER_KEY_TYPE, "(RSA, ");
    other = new_key(GNUTLS_ECC_CURVE_SECP384R1);
    gnutls_x509_privkey_export2(other, GNUTLS_X509_FMT_PEM, &out);
    put_file(folder, "key.pem", out.data, out.size);
    gnutls_free(out.data);
    gnutls_x509_privkey_deinit(other);
    expect_fault(folder, NSM_SIGNER_KEY_MISMATCH, "not the key of the last");
    put_file(folder, "key.pem", big, 300 * 1024);
    expect_fault(folder, NSM_SIGNER_UNREADABLE, "longer than");
    g_assert_cmpint(g_unlink(key), ==, 0);
    expect_fault(folder, NSM_SIGNER_UNREADABLE, "key.pem: cannot be read: No");

    /* Chains */
    chain_write(folder, levels, 4);
    put_file(folder, "chain.pem", garbage, strlen(garbage));
    expect_fault(folder, NSM_SIGNER_CERT_MALFORMED,
                 "chain.pem: certificate 1 is no X.509 certificate in DER");
    put_file(folder, "chain.pem", garbage, strlen(garbage) - 26);
    expect_fault(folder, NSM_SIGNER_CHAIN_MALFORMED, "no list of certificates");
    put_file(folder, "chain.pem", "", 0);
    expect_fault(folder, NSM_SIGNER_CHAIN_MALFORMED, "no list of certificates");
    put_file(folder, "chain.pem", big, 300 * 1024);
    expect_fault(folder, NSM_SIGNER_UNREADABLE, "longer than");
    g_assert_cmpint(g_unlink(chain), ==, 0);
    expect_fault(folder, NSM_SIGNER_UNREADABLE, "cannot be read: No such");
    g_assert_cmpint(g_mkdir(chain, 0700), ==, 0);
    expect_fault(folder, NSM_SIGNER_UNREADABLE, "cannot be read: Is a dir");
    g_assert_cmpint(g_rmdir(chain), ==, 0);

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
    g_test_add_func("/nsm-attest/chain/file", test_chain_file);
    g_test_add_func("/nsm-attest/chain/dates", test_chain_dates);
    g_test_add_func("/nsm-attest/chain/serials", test_chain_serials);
    g_test_add_func("/nsm-attest/chain/certificates",
                    test_certificate_faults);
    g_test_add_func("/nsm-attest/chain/order", test_order_faults);
    g_test_add_func("/nsm-attest/chain/files", test_file_faults);
    g_test_add_func("/nsm-attest/chain/largest", test_largest);
    g_test_add_func("/nsm-attest/fault-names", test_fault_names);
    g_test_add_func("/nsm-attest/host-clock", test_host_clock);
    return g_test_run();
}
