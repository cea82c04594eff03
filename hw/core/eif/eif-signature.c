/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: the signature section.  Decodes the envelope and the COSE_Sign1
 * in it, and verifies.  CBOR is read in eif-cbor.c, the certificate in
 * eif-certificate.c; what a bad signature leads to is decided in eif-check.c.
 *
 * RFC 9052 section 4.2 and 4.4 (COSE_Sign1), RFC 9053 section 2.1 (ECDSA).
 */

#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <cbor.h>
#include <gnutls/abstract.h>

#include "eif-cbor.h"
#include "eif-internal.h"

#define COSE_TAG_SIGN1  18
#define COSE_LABEL_ALG  1

/* ---- The four documents ---- */

bool eif_signature_parse(EifSignature *s, const uint8_t *buf, size_t len,
                         EifError *err)
{
    static const char *const keys[] = { "signing_certificate", "signature" };
    EifCbor r = { .name = "signature section",
                 .in = { .buf = buf, .len = len }, .err = err };
    unsigned seen = 0;
    CborToken outer, map;
    size_t used = 0;

    memset(s, 0, sizeof(*s));
    if (len > EIF_SIGNATURE_MAX) {
        return eif_fail(err, EIF_ERR_SIGNATURE_TOO_LARGE,
                        "the signature has %zu bytes, at most %d are allowed",
                        len, EIF_SIGNATURE_MAX);
    }
    if (!eif_cbor_expect(&r, TOKEN_ARRAY, &outer)) {
        return false;
    }
    if (outer.value == 0) {
        return eif_cbor_malformed(&r, "the array is empty");
    }
    if (!eif_cbor_expect(&r, TOKEN_MAP, &map)) {
        return false;
    }

    s->bytes = g_malloc(len);   /* an element has at least one byte of CBOR */
    for (uint64_t i = 0; i < map.value; i++) {
        size_t n;
        int key;

        if (!eif_cbor_next_key(&r, keys, G_N_ELEMENTS(keys), &seen, &key)) {
            return false;
        }
        if (key < 0) {
            continue;
        }
        if (!eif_cbor_byte_array(&r, s->bytes + used, len - used, &n)) {
            return false;
        }
        if (key == 0) {
            s->pem = s->bytes + used;
            s->pem_len = n;
        } else {
            s->cose = s->bytes + used;
            s->cose_len = n;
        }
        used += n;
    }
    if (!eif_cbor_all_keys(&r, keys, G_N_ELEMENTS(keys), seen)) {
        return false;
    }
    for (uint64_t i = 1; i < outer.value; i++) {
        if (!eif_cbor_skip(&r)) {
            return false;
        }
    }
    return eif_cbor_at_end(&r);
}

static bool parse_protected(EifSignature *s, EifError *err)
{
    EifCbor r = { .name = "protected header of the COSE_Sign1",
                 .in = { .buf = s->protected_hdr, .len = s->protected_len },
                 .err = err };
    CborToken map, key, value;
    bool found = false;

    if (!eif_cbor_expect(&r, TOKEN_MAP, &map)) {
        return false;
    }
    for (uint64_t i = 0; i < map.value; i++) {
        size_t start = r.in.pos;

        if (!eif_cbor_next(&r, &key)) {
            return false;
        }
        if (key.kind != TOKEN_UINT || key.value != COSE_LABEL_ALG) {
            r.in.pos = start;
            if (!eif_cbor_skip(&r) || !eif_cbor_skip(&r)) {
                return false;
            }
            continue;
        }
        if (found) {
            return eif_cbor_malformed(&r, "a key comes twice");
        }
        found = true;
        if (!eif_cbor_expect(&r, TOKEN_NEGINT, &value)) {
            return false;
        }
        /* -7, -35, -36 are 6, 34, 35 on the wire. */
        if (value.value != 6 && value.value != 34 && value.value != 35) {
            return eif_cbor_malformed(&r, "the algorithm is none of ES256 (-7),"
                                      " ES384 (-35) and ES512 (-36)");
        }
        s->alg = -1 - (int)value.value;
    }
    if (!found) {
        return eif_cbor_malformed(&r, "no algorithm (label 1)");
    }
    return eif_cbor_at_end(&r);
}

static bool parse_payload(EifSignature *s, EifError *err)
{
    static const char *const keys[] = { "register_index", "register_value" };
    EifCbor r = { .name = "payload of the COSE_Sign1",
                 .in = { .buf = s->payload, .len = s->payload_len },
                 .err = err };
    unsigned seen = 0;
    CborToken map, item;

    if (!eif_cbor_expect(&r, TOKEN_MAP, &map)) {
        return false;
    }
    for (uint64_t i = 0; i < map.value; i++) {
        size_t n;
        int key;

        if (!eif_cbor_next_key(&r, keys, G_N_ELEMENTS(keys), &seen, &key)) {
            return false;
        }
        if (key == 0) {
            if (!eif_cbor_expect(&r, TOKEN_UINT, &item)) {
                return false;
            }
            s->register_index = item.value;
        } else if (key == 1) {
            if (!eif_cbor_byte_array(&r, s->register_value, EIF_DIGEST_SIZE,
                                     &n)) {
                return false;
            }
            if (n != EIF_DIGEST_SIZE) {
                return eif_cbor_malformed(
                    &r, "the register's value has not 48 bytes");
            }
        }
    }
    return eif_cbor_all_keys(&r, keys, G_N_ELEMENTS(keys), seen) &&
           eif_cbor_at_end(&r);
}

bool eif_signature_cose(EifSignature *s, EifError *err)
{
    EifCbor r = { .name = "COSE_Sign1 of the signature section",
                 .in = { .buf = s->cose, .len = s->cose_len }, .err = err };
    CborToken item;
    size_t start;

    if (!eif_cbor_next(&r, &item)) {
        return false;
    }
    if (item.kind == TOKEN_TAG) {
        if (item.value != COSE_TAG_SIGN1) {
            return eif_cbor_malformed(
                &r, "the tag is not that of COSE_Sign1 (18)");
        }
    } else {
        r.in.pos = 0;
    }
    if (!eif_cbor_expect(&r, TOKEN_ARRAY, &item)) {
        return false;
    }
    if (item.value != 4) {
        return eif_cbor_malformed(&r, "the array has not 4 elements");
    }
    if (!eif_cbor_expect(&r, TOKEN_BYTES, &item)) {
        return false;
    }
    s->protected_hdr = item.data;
    s->protected_len = item.value;
    start = r.in.pos;
    if (!eif_cbor_expect(&r, TOKEN_MAP, &item)) {
        return false;
    }
    r.in.pos = start;
    if (!eif_cbor_skip(&r) || !eif_cbor_expect(&r, TOKEN_BYTES, &item)) {
        return false;
    }
    s->payload = item.data;
    s->payload_len = item.value;
    if (!eif_cbor_expect(&r, TOKEN_BYTES, &item)) {
        return false;
    }
    s->raw = item.data;
    s->raw_len = item.value;
    return eif_cbor_at_end(&r) && parse_protected(s, err) &&
           parse_payload(s, err);
}

/* ---- Keys ---- */

static const uint8_t oid_p256[] = {
    0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07
};
static const uint8_t oid_p384[] = { 0x2b, 0x81, 0x04, 0x00, 0x22 };
static const uint8_t oid_p521[] = { 0x2b, 0x81, 0x04, 0x00, 0x23 };

static const EifCurve curves[] = {
    { oid_p256, sizeof(oid_p256), GNUTLS_ECC_CURVE_SECP256R1, -7, "ES256",
      GNUTLS_SIGN_ECDSA_SHA256, 32 },
    { oid_p384, sizeof(oid_p384), GNUTLS_ECC_CURVE_SECP384R1, -35, "ES384",
      GNUTLS_SIGN_ECDSA_SHA384, 48 },
    { oid_p521, sizeof(oid_p521), GNUTLS_ECC_CURVE_SECP521R1, -36, "ES512",
      GNUTLS_SIGN_ECDSA_SHA512, 66 },
};

const EifCurve *eif_curve_of_oid(const uint8_t *oid, size_t len)
{
    for (size_t i = 0; i < G_N_ELEMENTS(curves); i++) {
        if (curves[i].oid_len == len && memcmp(curves[i].oid, oid, len) == 0) {
            return &curves[i];
        }
    }
    return NULL;
}

static const EifCurve *curve_of_alg(int alg)
{
    for (size_t i = 0; i < G_N_ELEMENTS(curves); i++) {
        if (curves[i].alg == alg) {
            return &curves[i];
        }
    }
    return NULL;
}

int eif_curve_key(const EifSignature *s, gnutls_pubkey_t *key)
{
    const EifCurve *curve = curve_of_alg(s->key_alg);
    gnutls_datum_t x = { (unsigned char *)s->point, curve->half };
    gnutls_datum_t y = { (unsigned char *)s->point + curve->half,
                         curve->half };
    int rc = gnutls_pubkey_init(key);

    return rc < 0 ? rc : gnutls_pubkey_import_ecc_raw(*key, curve->curve, &x,
                                                      &y);
}

/* ---- Verification ---- */

/* RFC 9052 section 4.4: what is signed. */
static GByteArray *sig_structure(const EifSignature *s)
{
    /* array(4), "Signature1" */
    static const uint8_t context[] = "\x84\x6aSignature1";
    struct {
        const uint8_t *data;
        size_t len;
    } const strings[] = {
        { s->protected_hdr, s->protected_len },
        { NULL, 0 },            /* external_aad */
        { s->payload, s->payload_len },
    };
    GByteArray *out = g_byte_array_new();

    g_byte_array_append(out, context, sizeof(context) - 1);
    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++) {
        uint8_t head[9];

        g_byte_array_append(out, head,
                            cbor_encode_bytestring_start(strings[i].len, head,
                                                         sizeof(head)));
        g_byte_array_append(out, strings[i].data, strings[i].len);
    }
    return out;
}

static int verify_ecdsa(const EifSignature *s, const EifCurve *curve)
{
    g_autoptr(GByteArray) tbs = sig_structure(s);
    gnutls_datum_t data = { tbs->data, tbs->len };
    gnutls_datum_t rs[2] = {
        { (unsigned char *)s->raw, curve->half },
        { (unsigned char *)s->raw + curve->half, curve->half },
    };
    gnutls_datum_t sig = { NULL, 0 };
    gnutls_pubkey_t key = NULL;
    int rc;

    rc = gnutls_encode_rs_value(&sig, &rs[0], &rs[1]);
    if (rc >= 0) {
        rc = eif_curve_key(s, &key);
    }
    if (rc >= 0) {
        rc = gnutls_pubkey_verify_data2(key, curve->sign, 0, &data, &sig);
    }
    if (key) {
        gnutls_pubkey_deinit(key);
    }
    gnutls_free(sig.data);
    return rc;
}

static const char *utc(int64_t seconds, char *buf, size_t len)
{
    time_t t = (time_t)seconds;
    struct tm tm;

    if (!gmtime_r(&t, &tm) ||
        !strftime(buf, len, "%Y-%m-%dT%H:%M:%SZ", &tm)) {
        g_snprintf(buf, len, "%" PRId64, seconds);
    }
    return buf;
}

static void hex(const uint8_t *p, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++) {
        g_snprintf(out + 2 * i, 3, "%02x", p[i]);
    }
}

bool eif_signature_verify(const EifSignature *s,
                          const uint8_t pcr0[EIF_DIGEST_SIZE],
                          int64_t now, EifError *err)
{
    const EifCurve *curve = curve_of_alg(s->alg);
    char then_text[32], now_text[32];
    int rc;

    if (s->alg != s->key_alg) {
        return eif_fail(err, EIF_ERR_SIGNATURE_INVALID,
                        "the signature is %s (%d), but the certificate's key"
                        " is for %s (%d)", curve->alg_name, s->alg,
                        curve_of_alg(s->key_alg)->alg_name, s->key_alg);
    }
    if (s->raw_len != 2 * curve->half) {
        return eif_fail(err, EIF_ERR_SIGNATURE_INVALID,
                        "the %s signature has %zu bytes, it must have %zu",
                        curve->alg_name, s->raw_len, 2 * curve->half);
    }
    rc = verify_ecdsa(s, curve);
    if (rc < 0) {
        return eif_fail(err, EIF_ERR_SIGNATURE_INVALID,
                        "the %s signature was not made with the certificate's"
                        " key: %s", curve->alg_name, gnutls_strerror(rc));
    }
    if (s->register_index != 0) {
        return eif_fail(err, EIF_ERR_SIGNATURE_INDEX,
                        "the signature is over register %" PRIu64 ", it must"
                        " be over PCR0", s->register_index);
    }
    if (memcmp(s->register_value, pcr0, EIF_DIGEST_SIZE) != 0) {
        char signed_hex[2 * EIF_DIGEST_SIZE + 1];
        char pcr0_hex[2 * EIF_DIGEST_SIZE + 1];

        hex(s->register_value, EIF_DIGEST_SIZE, signed_hex);
        hex(pcr0, EIF_DIGEST_SIZE, pcr0_hex);
        return eif_fail(err, EIF_ERR_SIGNATURE_PCR0,
                        "the signature is over PCR0 %s, but this image has"
                        " PCR0 %s; sign it again", signed_hex, pcr0_hex);
    }
    if (now < s->not_before) {
        return eif_fail(err, EIF_ERR_SIGNATURE_NOT_YET_VALID,
                        "the signing certificate is valid from %s, now is %s",
                        utc(s->not_before, then_text, sizeof(then_text)),
                        utc(now, now_text, sizeof(now_text)));
    }
    if (now > s->not_after) {
        return eif_fail(err, EIF_ERR_SIGNATURE_EXPIRED,
                        "the signing certificate expired at %s, now is %s",
                        utc(s->not_after, then_text, sizeof(then_text)),
                        utc(now, now_text, sizeof(now_text)));
    }
    return true;
}

void eif_signature_clear(EifSignature *s)
{
    g_free(s->bytes);
    g_free(s->der);
    memset(s, 0, sizeof(*s));
}
