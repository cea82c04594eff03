/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of the EIF core: the signature section.  Keys and certificates
 * are made at run time with GnuTLS; the section is written down layer by layer
 * as CBOR in hex, so that each case differs from the good one in one place.
 * Fixtures from other tools are in data/ (make-signed-eif.py).
 *
 * Long because its table of cases is, a third of it, which nobody else needs.
 */

#include <string.h>
#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/x509.h>

#include "eif-file.h"
#include "notation.h"

#define NOT_BEFORE  1700000000      /* 2023-11-14T22:13:20Z */
#define NOT_AFTER   1800000000      /* 2027-01-15T08:00:00Z */

/* ---- Keys ---- */

typedef enum Key {
    P384,
    P256,
    P521,
    OTHER_P384,
    P224,
    RSA,
    ED25519,
    N_KEYS
} Key;

static const struct {
    gnutls_pk_algorithm_t pk;
    unsigned bits;
    gnutls_digest_algorithm_t cert_hash;
    gnutls_sign_algorithm_t sign;
    const char *alg;            /* COSE, in CBOR */
    size_t half;
} kinds[N_KEYS] = {
    [P384] = { GNUTLS_PK_ECDSA,
               GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP384R1),
               GNUTLS_DIG_SHA384, GNUTLS_SIGN_ECDSA_SHA384, "3822", 48 },
    [P256] = { GNUTLS_PK_ECDSA,
               GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1),
               GNUTLS_DIG_SHA256, GNUTLS_SIGN_ECDSA_SHA256, "26", 32 },
    [P521] = { GNUTLS_PK_ECDSA,
               GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP521R1),
               GNUTLS_DIG_SHA512, GNUTLS_SIGN_ECDSA_SHA512, "3823", 66 },
    [OTHER_P384] = { GNUTLS_PK_ECDSA,
                     GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP384R1),
                     GNUTLS_DIG_SHA384, GNUTLS_SIGN_ECDSA_SHA384, "3822",
                     48 },
    [P224] = { GNUTLS_PK_ECDSA,
               GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP224R1),
               GNUTLS_DIG_SHA256, GNUTLS_SIGN_ECDSA_SHA256, "26", 28 },
    /* Never sign an image here: refused before that. */
    [RSA] = { GNUTLS_PK_RSA, 2048, GNUTLS_DIG_SHA384, 0, "3822", 48 },
    [ED25519] = { GNUTLS_PK_EDDSA_ED25519, 0, GNUTLS_DIG_SHA512, 0, "3822",
                  48 },
};

static gnutls_privkey_t keys[N_KEYS];
static GByteArray *pems[N_KEYS];
static uint8_t pcr8s[N_KEYS][EIF_DIGEST_SIZE];

static void gtls(int rc)
{
    if (rc < 0) {
        g_error("gnutls: %s", gnutls_strerror(rc));
    }
}

static void make_key(Key k)
{
    gnutls_x509_privkey_t priv;
    gnutls_x509_crt_t crt;
    gnutls_datum_t pem, der;

    gtls(gnutls_x509_privkey_init(&priv));
    gtls(gnutls_x509_privkey_generate(priv, kinds[k].pk, kinds[k].bits, 0));
    gtls(gnutls_privkey_init(&keys[k]));
    gtls(gnutls_privkey_import_x509(keys[k], priv,
                                    GNUTLS_PRIVKEY_IMPORT_COPY));
    gtls(gnutls_x509_crt_init(&crt));
    gtls(gnutls_x509_crt_set_version(crt, 3));
    gtls(gnutls_x509_crt_set_serial(crt, "\x05", 1));
    gtls(gnutls_x509_crt_set_dn(crt, "CN=signing test", NULL));
    gtls(gnutls_x509_crt_set_activation_time(crt, NOT_BEFORE));
    gtls(gnutls_x509_crt_set_expiration_time(crt, NOT_AFTER));
    gtls(gnutls_x509_crt_set_key(crt, priv));
    /* A key usage without signing does not matter either. */
    gtls(gnutls_x509_crt_set_key_usage(crt, GNUTLS_KEY_KEY_AGREEMENT));
    gtls(gnutls_x509_crt_sign2(crt, crt, priv, kinds[k].cert_hash, 0));
    gtls(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &pem));
    gtls(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_DER, &der));
    pems[k] = g_byte_array_new();
    g_byte_array_append(pems[k], pem.data, pem.size);
    expect_pcr(pcr8s[k], (Part[]) { { 0, der.data, der.size }, { 0 } });
    gnutls_free(pem.data);
    gnutls_free(der.data);
    gnutls_x509_crt_deinit(crt);
    gnutls_x509_privkey_deinit(priv);
}

/* r || s over these bytes, of the key's size. */
static GByteArray *sign(Key k, const GByteArray *tbs)
{
    size_t half = kinds[k].half;
    gnutls_datum_t data = { tbs->data, tbs->len };
    GByteArray *raw = g_byte_array_new();
    gnutls_datum_t sig, part[2];

    g_byte_array_set_size(raw, 2 * half);
    memset(raw->data, 0, raw->len);
    if (!kinds[k].sign) {
        return raw;
    }
    gtls(gnutls_privkey_sign_data2(keys[k], kinds[k].sign, 0, &data, &sig));
    gtls(gnutls_decode_rs_value(&sig, &part[0], &part[1]));
    for (int i = 0; i < 2; i++) {
        const uint8_t *p = part[i].data;
        size_t len = part[i].size;

        while (len > half) {        /* DER's sign byte */
            g_assert_cmpint(*p, ==, 0);
            p++;
            len--;
        }
        memcpy(raw->data + (i + 1) * half - len, p, len);
        gnutls_free(part[i].data);
    }
    gnutls_free(sig.data);
    return raw;
}

/* ---- Writing sections down ---- */

static char *head_hex(unsigned major, uint64_t n)
{
    if (n < 24) {
        return g_strdup_printf("%02x", (unsigned)(major << 5 | n));
    }
    g_assert_cmpuint(n, <=, 0xffff);
    return n < 256 ? g_strdup_printf("%02x%02x", major << 5 | 24, (unsigned)n)
                   : g_strdup_printf("%02x%04x", major << 5 | 25, (unsigned)n);
}

static char *bytes_hex(const GByteArray *b)
{
    g_autofree char *head = head_hex(2, b->len);
    g_autofree char *body = hex_of(b->data, b->len);

    return g_strconcat(head, body, NULL);
}

/* As AWS has them: an array of integers. */
static char *ints_hex(const uint8_t *data, size_t len)
{
    g_autofree char *head = head_hex(4, len);
    GString *s = g_string_new(head);

    for (size_t i = 0; i < len; i++) {
        g_string_append_printf(s, data[i] < 24 ? "%02x" : "18%02x", data[i]);
    }
    return g_string_free(s, FALSE);
}

/* @text with every @token replaced; takes over @by. */
static char *subst(char *text, const char *token, char *by)
{
    g_auto(GStrv) parts = g_strsplit(text, token, -1);

    g_free(text);
    text = g_strjoinv(by, parts);
    g_free(by);
    return text;
}

static GByteArray *written(char *text)
{
    GByteArray *b = notation(text);

    g_free(text);
    return b;
}

/* In the image: the content that gives its PCR0. */
#define CONTENT "KKKKc"

static void image_pcr0(uint8_t pcr0[EIF_DIGEST_SIZE])
{
    expect_pcr(pcr0, (Part[]) { { 0, CONTENT, strlen(CONTENT) }, { 0 } });
}

static GByteArray *image_with(const void *section, size_t len)
{
    const Part parts[] = {
        { EIF_SECTION_KERNEL, "KKKK", 4 },
        { EIF_SECTION_CMDLINE, "c", 1 },
        { EIF_SECTION_METADATA, "{}", 2 },
        { EIF_SECTION_SIGNATURE, section, len },
    };

    return eif_file_build(4, parts, 4);
}

/*
 * A case: the layers that differ from the good section's, in notation, with
 * the words in capitals standing for what is inside them.
 */
#define PROTECTED   "a1 01 ALG"
#define PAYLOAD     "a2 6e 'register_index' 00 6e 'register_value' PCR0"
#define COSE        "84 PROTECTED a0 PAYLOAD RAW"
#define SECTION     "81 a2 " CERTIFICATE " " SIGNED
#define CERTIFICATE "73 'signing_certificate' PEM"
#define SIGNED      "69 'signature' COSE"

typedef struct Case {
    const char *name;
    EifRule rule;
    const char *text;           /* part of the error's */
    const char *protected_hdr;
    const char *payload;
    const char *cose;
    const char *section;
    Key key;                    /* that signs; 0 is P384 */
    Key cert;                   /* whose certificate; as @key if 0 */
    void (*tweak_raw)(GByteArray *raw);
    int zero_at;                /* sign until a zero byte begins 1: r, 2: s */
    void (*tweak_pem)(GByteArray *pem);
    int64_t now;
    bool other_pcr0;
    bool no_pcr8;               /* under the lenient policy */
} Case;

static GByteArray *section_of(const Case *c)
{
    Key cert = c->cert ? c->cert : c->key;
    uint8_t pcr0[EIF_DIGEST_SIZE];
    g_autoptr(GByteArray) prot = NULL;
    g_autoptr(GByteArray) payload = NULL;
    g_autoptr(GByteArray) tbs = NULL;
    g_autoptr(GByteArray) raw = NULL;
    g_autoptr(GByteArray) cose = NULL;
    g_autoptr(GByteArray) pem = g_byte_array_new();
    char *text;

    image_pcr0(pcr0);
    if (c->other_pcr0) {
        pcr0[47] ^= 1;
    }
    text = g_strdup(c->protected_hdr ? c->protected_hdr : PROTECTED);
    prot = written(subst(text, "ALG", g_strdup(kinds[c->key].alg)));
    text = g_strdup(c->payload ? c->payload : PAYLOAD);
    text = subst(text, "INTS47", ints_hex(pcr0, 47));
    payload = written(subst(text, "PCR0", ints_hex(pcr0, sizeof(pcr0))));

    text = subst(g_strdup("84 6a 'Signature1' PROTECTED 40 PAYLOAD"),
                 "PROTECTED", bytes_hex(prot));
    tbs = written(subst(text, "PAYLOAD", bytes_hex(payload)));
    raw = sign(c->key, tbs);
    /* One of 256 begins so: DER and COSE write it differently. */
    for (int i = 0; c->zero_at; i++) {
        if (raw->data[c->zero_at == 1 ? 0 : raw->len / 2] == 0) {
            break;
        }
        g_assert_cmpint(i, <, 100000);
        g_byte_array_unref(raw);
        raw = sign(c->key, tbs);
    }
    if (c->tweak_raw) {
        c->tweak_raw(raw);
    }

    text = g_strdup(c->cose ? c->cose : COSE);
    text = subst(text, "PROTECTED", bytes_hex(prot));
    text = subst(text, "PAYLOAD", bytes_hex(payload));
    cose = written(subst(text, "RAW", bytes_hex(raw)));

    g_byte_array_append(pem, pems[cert]->data, pems[cert]->len);
    if (c->tweak_pem) {
        c->tweak_pem(pem);
    }
    text = g_strdup(c->section ? c->section : SECTION);
    text = subst(text, "PEMBYTES", bytes_hex(pem));
    text = subst(text, "PEM", ints_hex(pem->data, pem->len));
    text = subst(text, "COSEBYTES", bytes_hex(cose));
    return written(subst(text, "COSE", ints_hex(cose->data, cose->len)));
}

/* ---- Tweaks ---- */

static void flip_last(GByteArray *b)
{
    b->data[b->len - 1] ^= 1;
}

static void flip_first(GByteArray *b)
{
    b->data[0] ^= 1;
}

static void one_less(GByteArray *b)
{
    g_byte_array_set_size(b, b->len - 1);
}

static void one_more(GByteArray *b)
{
    g_byte_array_append(b, (const uint8_t *)"", 1);
}

static void all_zero(GByteArray *b)
{
    memset(b->data, 0, b->len);
}

static void all_ones(GByteArray *b)
{
    memset(b->data, 0xff, b->len);
}

static void nothing_left(GByteArray *b)
{
    g_byte_array_set_size(b, 0);
}

static void another_behind(GByteArray *b)
{
    g_byte_array_append(b, pems[OTHER_P384]->data, pems[OTHER_P384]->len);
}

static void text_before(GByteArray *b)
{
    static const char text[] = "subject=signing test\n\n";

    g_byte_array_prepend(b, (const uint8_t *)text, strlen(text));
}

static void no_pem(GByteArray *b)
{
    g_byte_array_set_size(b, 5);
}

static void half_pem(GByteArray *b)
{
    g_byte_array_set_size(b, b->len / 2);
}

static void bad_base64(GByteArray *b)
{
    memset(b->data + 100, '*', 20);
}

static void set_pem(GByteArray *b, const uint8_t *der, size_t len)
{
    gnutls_datum_t in = { (uint8_t *)der, len }, out;

    gtls(gnutls_pem_base64_encode2("CERTIFICATE", &in, &out));
    g_byte_array_set_size(b, 0);
    g_byte_array_append(b, out.data, out.size);
    gnutls_free(out.data);
}

static void not_der(GByteArray *b)
{
    set_pem(b, (const uint8_t *)"\x30\x03\x02\x01\x00", 5);
}

static void der_goes_on(GByteArray *b)
{
    gnutls_datum_t in = { b->data, b->len }, out;
    g_autofree uint8_t *longer = NULL;

    gtls(gnutls_pem_base64_decode2("CERTIFICATE", &in, &out));
    longer = g_malloc0(out.size + 1);
    memcpy(longer, out.data, out.size);
    set_pem(b, longer, out.size + 1);
    gnutls_free(out.data);
}

/* ---- The cases ---- */

#define BAD EIF_ERR_SIGNATURE_MALFORMED
#define INV EIF_ERR_SIGNATURE_INVALID
#define CRT EIF_ERR_SIGNATURE_CERTIFICATE

static const Case cases[] = {
    { .name = "p384" },
    { "p256", .key = P256 },
    { "p521", .key = P521 },
    { "r-with-leading-zero", .key = P256, .zero_at = 1 },
    { "s-with-leading-zero", .key = P256, .zero_at = 2 },
    { "first-second", .now = NOT_BEFORE },
    { "last-second", .now = NOT_AFTER },
    { "tag-18", .cose = "d2 " COSE },
    { "tag-18-long", .cose = "db 0000000000000012 " COSE },
    { "unprotected-content", .cose = "84 PROTECTED a2 04 41 00 61 'a' 80"
      " PAYLOAD RAW" },
    { "protected-more", .protected_hdr = "a3 04 41 00 01 ALG 61 'x' 80" },
    { "payload-other-order",
      .payload = "a2 6e 'register_value' PCR0 6e 'register_index' 00" },
    { "payload-more", .payload = "a5 20 f6 6e 'register_index' 00"
      " 82 01 02 a1 00 00 6e 'register_value' PCR0 61 'x' c1 fb"
      " 0000000000000000" },
    { "payload-long-integers", .payload = "ba 00000002 78 0e 'register_index'"
      " 1b 0000000000000000 79 000e 'register_value' PCR0" },
    { "other-order", .section = "81 a2 " SIGNED " " CERTIFICATE },
    { "more-keys", .section = "81 a4 61 'x' a1 00 81 80 " SIGNED " 00 f5 "
      CERTIFICATE },
    { "more-elements", .section = "83 a2 " SIGNED " " CERTIFICATE " f6 82 00"
      " a0" },
    { "more-of-every-kind", .section = "8a a2 " SIGNED " " CERTIFICATE
      " c6 00 d4 00 d8 64 00 e0 f3 f7 f8 ff f9 0000 fa 00000000" },
    { "two-certificates", .tweak_pem = another_behind },
    { "text-before-pem", .tweak_pem = text_before },

    /* envelope */
    { "section-empty", BAD, "byte 0 of 0: ends too early", .section = "",
      .no_pcr8 = true },
    { "section-integer", BAD, "an integer instead of an array",
      .section = "00", .no_pcr8 = true },
    { "section-map", BAD, "a map instead of an array", .section = "a0",
      .no_pcr8 = true },
    { "section-no-element", BAD, "the array is empty", .section = "80",
      .no_pcr8 = true },
    { "section-break", BAD, "indefinite", .section = "ff", .no_pcr8 = true },
    { "section-reserved", BAD, "this is not CBOR", .section = "1c",
      .no_pcr8 = true },
    { "section-simple-31", BAD, "this is not CBOR",
      .section = "82 a2 " SIGNED " " CERTIFICATE " f8 1f", .no_pcr8 = true },
    { "section-simple-cut", BAD, "at byte",
      .section = "82 a2 " SIGNED " " CERTIFICATE " f8", .no_pcr8 = true },
    { "section-array-in-array", BAD, "an array instead of a map",
      .section = "81 80", .no_pcr8 = true },
    { "section-head-cut", BAD, "ends within an item", .section = "99 00",
      .no_pcr8 = true },
    { "section-huge-array", BAD, "more elements than there are bytes",
      .section = "9b ffffffffffffffff 00", .no_pcr8 = true },
    { "section-huge-map", BAD, "more elements than there are bytes",
      .section = "81 bb 8000000000000000 00 00", .no_pcr8 = true },
    { "section-huge-text", BAD, "ends within an item",
      .section = "81 a2 7b ffffffffffffffff 00", .no_pcr8 = true },
    { "section-huge-bytes", BAD, "ends within an item",
      .section = "81 a2 5b 7fffffffffffffff 00", .no_pcr8 = true },
    { "section-indefinite", BAD, "byte 0 of 2: indefinite",
      .section = "9f ff", .no_pcr8 = true },
    { "section-indefinite-map", BAD, "indefinite",
      .section = "81 bf " CERTIFICATE " " SIGNED " ff", .no_pcr8 = true },
    { "section-indefinite-value", BAD, "indefinite",
      .section = "81 a3 61 'x' 9f ff " CERTIFICATE " " SIGNED,
      .no_pcr8 = true },
    { "section-byte-strings", BAD, "a byte string instead of an array",
      .section = "81 a2 73 'signing_certificate' PEMBYTES 69 'signature'"
                 " COSEBYTES", .no_pcr8 = true },
    { "section-no-signature", BAD, "no \"signature\"",
      .section = "81 a1 " CERTIFICATE, .no_pcr8 = true },
    { "section-no-certificate", BAD, "no \"signing_certificate\"",
      .section = "81 a1 " SIGNED, .no_pcr8 = true },
    { "section-key-prefix", BAD, "no \"signature\"",
      .section = "81 a2 " CERTIFICATE " 68 'signatur' COSE",
      .no_pcr8 = true },
    { "section-key-twice", BAD, "a key comes twice",
      .section = "81 a3 " CERTIFICATE " " SIGNED " " CERTIFICATE,
      .no_pcr8 = true },
    { "section-key-as-bytes", BAD, "no \"signature\"",
      .section = "81 a2 " CERTIFICATE " 49 'signature' COSE",
      .no_pcr8 = true },
    { "section-above-255", BAD, "above 255",
      .section = "81 a2 73 'signing_certificate' 81 19 0100 " SIGNED,
      .no_pcr8 = true },
    { "section-negative", BAD, "a negative integer instead of an integer",
      .section = "81 a2 73 'signing_certificate' 81 20 " SIGNED,
      .no_pcr8 = true },
    { "section-text", BAD, "a text string instead of an array",
      .section = "81 a2 73 'signing_certificate' 61 'x' " SIGNED,
      .no_pcr8 = true },
    { "section-goes-on", BAD, "goes on behind its end",
      .section = SECTION " 00", .no_pcr8 = true },
    { "section-element-missing", BAD, "ends too early",
      .section = "82 a2 " CERTIFICATE " " SIGNED, .no_pcr8 = true },
    { "section-second-broken", BAD, "more elements than there are bytes",
      .section = "82 a2 " CERTIFICATE " " SIGNED " 81", .no_pcr8 = true },
    { "section-array-too-long", BAD, "more elements than there are bytes",
      .section = "81 a2 73 'signing_certificate' 9a 00010000 00",
      .no_pcr8 = true },

    /* COSE_Sign1: the certificate is there, and counts where lenient */
    { "cose-empty", BAD, "COSE_Sign1 of the signature section, at byte 0",
      .cose = "" },
    { "cose-tag-17", BAD, "tag", .cose = "d1 " COSE },
    { "cose-tag-twice", BAD, "a tag instead of an array",
      .cose = "d2 d2 " COSE },
    { "cose-three", BAD, "not 4 elements", .cose = "83 PROTECTED a0 PAYLOAD" },
    { "cose-five", BAD, "not 4 elements",
      .cose = "85 PROTECTED a0 PAYLOAD RAW 00" },
    { "cose-goes-on", BAD, "goes on", .cose = COSE " 00" },
    { "cose-protected-map", BAD, "a map instead of a byte string",
      .cose = "84 a1 01 38 22 a0 PAYLOAD RAW" },
    { "cose-unprotected-array", BAD, "an array instead of a map",
      .cose = "84 PROTECTED 80 PAYLOAD RAW" },
    { "cose-no-payload", BAD, "a simple value or float instead of a byte",
      .cose = "84 PROTECTED a0 f6 RAW" },
    { "cose-signature-text", BAD, "a text string instead of a byte string",
      .cose = "84 PROTECTED a0 PAYLOAD 60" },
    { "protected-empty", BAD, "protected header", .protected_hdr = "" },
    { "protected-no-alg", BAD, "no algorithm", .protected_hdr = "a0" },
    { "protected-goes-on", BAD, "goes on", .protected_hdr = PROTECTED " 00" },
    { "protected-alg-37", BAD, "none of ES256",
      .protected_hdr = "a1 01 38 24" },
    { "protected-alg-wraps", BAD, "none of ES256",
      .protected_hdr = "a1 01 3b 0000000100000022" },
    { "protected-alg-positive", BAD, "an integer instead of a negative",
      .protected_hdr = "a1 01 18 22" },
    { "protected-alg-text", BAD, "a text string instead",
      .protected_hdr = "a1 01 65 'ES384'" },
    { "protected-alg-twice", BAD, "twice",
      .protected_hdr = "a2 01 ALG 01 ALG" },
    { "payload-empty", BAD, "payload of the COSE_Sign1", .payload = "" },
    { "payload-array", BAD, "an array instead of a map", .payload = "80" },
    { "payload-no-index", BAD, "no \"register_index\"",
      .payload = "a1 6e 'register_value' PCR0" },
    { "payload-no-value", BAD, "no \"register_value\"",
      .payload = "a1 6e 'register_index' 00" },
    { "payload-value-47", BAD, "has not 48 bytes",
      .payload = "a2 6e 'register_index' 00 6e 'register_value' INTS47" },
    { "payload-value-49", BAD, "too long",
      .payload = "a2 6e 'register_index' 00 6e 'register_value' 98 31"
                 " 00000000000000000000000000000000"
                 " 00000000000000000000000000000000"
                 " 00000000000000000000000000000000 00" },
    { "payload-value-bytes", BAD, "a byte string instead of an array",
      .payload = "a2 6e 'register_index' 00 6e 'register_value' 41 00" },
    { "payload-index-negative", BAD, "a negative integer",
      .payload = "a2 6e 'register_index' 20 6e 'register_value' PCR0" },
    { "payload-index-twice", BAD, "twice",
      .payload = "a3 6e 'register_index' 00 6e 'register_index' 00 6e"
                 " 'register_value' PCR0" },
    { "payload-goes-on", BAD, "goes on", .payload = PAYLOAD " 00" },

    /* certificate */
    { "pem-empty", CRT, "PEM", .tweak_pem = nothing_left, .no_pcr8 = true },
    { "pem-none", CRT, "PEM", .tweak_pem = no_pem, .no_pcr8 = true },
    { "pem-half", CRT, "PEM", .tweak_pem = half_pem, .no_pcr8 = true },
    { "pem-base64", CRT, "PEM", .tweak_pem = bad_base64, .no_pcr8 = true },
    { "der-not", CRT, "cannot be read", .tweak_pem = not_der,
      .no_pcr8 = true },
    { "der-goes-on", CRT, "cannot be read", .tweak_pem = der_goes_on,
      .no_pcr8 = true },
    { "key-rsa", CRT, "key of type RSA", .cert = RSA, .no_pcr8 = true },
    { "key-ed25519", CRT, "EdDSA", .cert = ED25519, .no_pcr8 = true },
    { "key-p224", CRT, "SECP224R1", .key = P224, .no_pcr8 = true },

    /* verification */
    { "other-key", INV, "not made with the certificate's key",
      .cert = OTHER_P384 },
    { "other-curve", INV, "the signature is ES256 (-7), but the certificate's"
      " key is for ES384 (-35)", .protected_hdr = "a1 01 26" },
    { "other-curve-key", INV, "ES384", .key = P384, .cert = P521 },
    { "raw-last-bit", INV, "ES384", .tweak_raw = flip_last },
    { "raw-first-bit", INV, "ES384", .tweak_raw = flip_first },
    { "raw-95", INV, "has 95 bytes, it must have 96", .tweak_raw = one_less },
    { "raw-97", INV, "has 97 bytes", .tweak_raw = one_more },
    { "raw-none", INV, "has 0 bytes", .tweak_raw = nothing_left },
    { "raw-zero", INV, "ES384", .tweak_raw = all_zero },
    { "raw-ones", INV, "ES384", .tweak_raw = all_ones },
    { "raw-p256", INV, "ES256", .key = P256, .tweak_raw = flip_last },
    { "raw-p521", INV, "ES512", .key = P521, .tweak_raw = flip_last },
    { "index-1", EIF_ERR_SIGNATURE_INDEX, "register 1,",
      .payload = "a2 6e 'register_index' 01 6e 'register_value' PCR0" },
    { "index-max", EIF_ERR_SIGNATURE_INDEX, "register 18446744073709551615",
      .payload = "a2 6e 'register_index' 1b ffffffffffffffff"
                 " 6e 'register_value' PCR0" },
    { "pcr0", EIF_ERR_SIGNATURE_PCR0, "but this image has PCR0",
      .other_pcr0 = true },
    { "not-yet", EIF_ERR_SIGNATURE_NOT_YET_VALID,
      "valid from 2023-11-14T22:13:20Z, now is 2023-11-14T22:13:19Z",
      .now = NOT_BEFORE - 1 },
    { "expired", EIF_ERR_SIGNATURE_EXPIRED,
      "expired at 2027-01-15T08:00:00Z, now is 2027-01-15T08:00:01Z",
      .now = NOT_AFTER + 1 },
    { "long-ago", EIF_ERR_SIGNATURE_NOT_YET_VALID, "now is 1969",
      .now = -1 },
    /* a first fault stands */
    { "pcr0-and-index", EIF_ERR_SIGNATURE_INDEX, "register 3",
      .payload = "a2 6e 'register_index' 03 6e 'register_value' PCR0",
      .other_pcr0 = true },
    { "pcr0-and-expired", EIF_ERR_SIGNATURE_PCR0, "PCR0",
      .other_pcr0 = true, .now = NOT_AFTER + 1 },
    { "raw-and-expired", INV, "ES384", .tweak_raw = flip_last,
      .now = NOT_AFTER + 1 },
    { "raw-and-payload", BAD, "payload", .tweak_raw = flip_last,
      .payload = "" },
    { "pem-and-cose", BAD, "COSE", .tweak_pem = no_pem, .cose = "",
      .no_pcr8 = true },
};

static void test_case(gconstpointer data)
{
    const Case *c = data;
    Key cert = c->cert ? c->cert : c->key;
    g_autoptr(GByteArray) section = section_of(c);
    g_autoptr(GByteArray) f = image_with(section->data, section->len);
    EifOptions opt = { .now = c->now ? c->now : NOW,
                       .file_rules_only = true };
    uint8_t pcr0[EIF_DIGEST_SIZE];
    EifMeasurements m;
    EifError err;

    judge(f, &opt, &m, &err);
    if (err.rule != c->rule || (c->text && !strstr(err.text, c->text))) {
        g_error("%s \"%s\" instead of %s \"%s\"", eif_rule_name(err.rule),
                err.text, eif_rule_name(c->rule), c->text);
    }
    if (c->rule == EIF_OK) {
        g_assert_true(m.has_pcr8);
        g_assert_cmpmem(m.pcr8, EIF_DIGEST_SIZE, pcr8s[cert],
                        EIF_DIGEST_SIZE);
    }

    /* The same under the lenient policy: a warning, measurements as ever. */
    opt.signature = EIF_SIGNATURE_IGNORE;
    g_assert_cmpint(judge(f, &opt, &m, &err), ==, EIF_OK);
    g_assert_cmpstr(eif_rule_name(err.rule), ==, eif_rule_name(c->rule));
    image_pcr0(pcr0);
    g_assert_cmpmem(m.pcr0, EIF_DIGEST_SIZE, pcr0, EIF_DIGEST_SIZE);
    g_assert_cmpint(m.has_pcr8, ==, !c->no_pcr8);
    if (m.has_pcr8) {
        g_assert_cmpmem(m.pcr8, EIF_DIGEST_SIZE, pcr8s[cert],
                        EIF_DIGEST_SIZE);
    } else {
        assert_hex(m.pcr8, EIF_DIGEST_SIZE,
                   "0000000000000000000000000000000000000000000000000000000000"
                   "00000000000000000000000000000000000000");
    }
}

/* Every cut of a good section is malformed, and none reads behind its end. */
static void test_cut(void)
{
    g_autoptr(GByteArray) section = section_of(&cases[0]);

    for (size_t len = 0; len < section->len; len++) {
        g_autofree uint8_t *copy = g_memdup2(section->data, len);
        EifSignature s;
        EifError err;

        g_assert_false(eif_signature_parse(&s, copy, len, &err));
        g_assert_cmpint(err.rule, ==, EIF_ERR_SIGNATURE_MALFORMED);
        eif_signature_clear(&s);
    }
}

/* As deep as it can be: no stack is needed for what is skipped. */
static void test_deep(void)
{
    g_autoptr(GByteArray) good = section_of(&cases[0]);
    g_autoptr(GByteArray) deep = g_byte_array_new();
    g_autoptr(GByteArray) f = NULL;
    EifOptions opt = { .now = NOW, .file_rules_only = true };
    EifMeasurements m;
    EifError err;

    g_byte_array_append(deep, (const uint8_t *)"\x82", 1);
    g_byte_array_append(deep, good->data + 1, good->len - 1);
    while (deep->len < EIF_SIGNATURE_MAX - 1) {
        g_byte_array_append(deep, (const uint8_t *)"\x81", 1);
    }
    g_byte_array_append(deep, (const uint8_t *)"\x80", 1);
    f = image_with(deep->data, deep->len);
    g_assert_cmpint(judge(f, &opt, &m, &err), ==, EIF_OK);
}

static void test_size(void)
{
    g_autofree uint8_t *zero = g_malloc0(EIF_SIGNATURE_MAX + 1);
    g_autoptr(GByteArray) at = image_with(zero, EIF_SIGNATURE_MAX);
    g_autoptr(GByteArray) over = image_with(zero, EIF_SIGNATURE_MAX + 1);
    EifOptions opt = { .now = NOW, .file_rules_only = true };
    EifMeasurements m;
    EifSignature s;
    EifError err;

    g_assert_cmpint(judge(at, &opt, &m, &err), ==,
                    EIF_ERR_SIGNATURE_MALFORMED);
    g_assert_cmpint(judge(over, &opt, &m, &err), ==,
                    EIF_ERR_SIGNATURE_TOO_LARGE);
    g_assert_nonnull(strstr(err.text, "32769"));
    /* A rule of the file's layout: the lenient policy has no say. */
    opt.signature = EIF_SIGNATURE_IGNORE;
    g_assert_cmpint(judge(over, &opt, &m, &err), ==,
                    EIF_ERR_SIGNATURE_TOO_LARGE);
    g_assert_false(eif_signature_parse(&s, zero, EIF_SIGNATURE_MAX + 1,
                                       &err));
    g_assert_cmpint(err.rule, ==, EIF_ERR_SIGNATURE_TOO_LARGE);
    eif_signature_clear(&s);
}

/* ---- Files that other tools have signed ---- */

static const struct {
    const char *name;
    const char *pcr8;
} fixtures[] = {
    { "p256", "46ea5b55625a798770913babd3188aeb15583cfcff63c0745dfc77fe589544"
      "9150c7206246d75f924fc859210f961441" },
    { "p384", "38fc832713e9b5f917ed9b278efccefe280edffb7954c1f49742ebb6da5608"
      "022272c33427c74fb03fee64638d4e6d53" },
    { "p521", "92b755076325a645eae88eb80cb59f247ce1d4bb0421617ad34c711a8cab26"
      "7964023fe11ac6adfca383e389b2b399f7" },
};

static void test_fixtures(void)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(fixtures); i++) {
        g_autofree char *name = g_strdup_printf("signed-%s.eif",
                                                fixtures[i].name);
        g_autofree char *path = g_test_build_filename(G_TEST_DIST, "data",
                                                      name, NULL);
        g_autoptr(GByteArray) f = NULL;
        g_autoptr(GError) gerr = NULL;
        EifOptions opt = { .now = NOW, .file_rules_only = true };
        EifMeasurements m;
        EifError err;
        char *data;
        gsize len;

        g_file_get_contents(path, &data, &len, &gerr);
        g_assert_no_error(gerr);
        f = g_byte_array_new_take((guint8 *)data, len);

        g_assert_cmpint(judge(f, &opt, &m, &err), ==, EIF_OK);
        assert_hex(m.pcr0, EIF_DIGEST_SIZE,
                   "9a335c3cba13893f5ed6e9e8e521211352d5a57327ad66586e64c98bcc"
                   "e968136deee39fde3b6f215fdcd23ec0f2f64e");
        g_assert_true(m.has_pcr8);
        assert_hex(m.pcr8, EIF_DIGEST_SIZE, fixtures[i].pcr8);

        /* 2041 */
        opt.now = 2240524800;
        g_assert_cmpint(judge(f, &opt, &m, &err), ==,
                        EIF_ERR_SIGNATURE_EXPIRED);

        /* Another ramdisk, the same signature. */
        opt.now = NOW;
        f->data[eif_file_section(f, 4) + 12] ^= 1;
        eif_file_fix_crc(f);
        g_assert_cmpint(judge(f, &opt, &m, &err), ==,
                        EIF_ERR_SIGNATURE_PCR0);
    }
}

int main(int argc, char **argv)
{
    int rc;

    g_test_init(&argc, &argv, NULL);
    for (unsigned k = 0; k < N_KEYS; k++) {
        make_key(k);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *path = g_strdup_printf("/eif-signature/%s",
                                                cases[i].name);

        g_test_add_data_func(path, &cases[i], test_case);
    }
    g_test_add_func("/eif-signature/cut", test_cut);
    g_test_add_func("/eif-signature/deep", test_deep);
    g_test_add_func("/eif-signature/size", test_size);
    g_test_add_func("/eif-signature/fixtures", test_fixtures);
    rc = g_test_run();
    for (unsigned k = 0; k < N_KEYS; k++) {
        gnutls_privkey_deinit(keys[k]);
        g_byte_array_unref(pems[k]);
    }
    return rc;
}
