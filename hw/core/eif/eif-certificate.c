/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: the signing certificate.  Finds it in its PEM text and reads what
 * a signature needs of it: the bytes that PCR8 measures, the key, the dates.
 * Not a path validation: a signer's certificate vouches for itself.
 *
 * Two libraries never draw the line between good and bad at the same place,
 * neither in PEM nor in X.509, and the Python package must give this verdict
 * too.  So the grammar is written down (docs/eif.md, "The certificate in a
 * signature") and read here and in python/nitroctl/eif/certificate.py in the
 * same steps; the libraries get the bare key.
 *
 * The bytes are an adversary's: all lengths are checked against what is left,
 * nothing recurses, and the one allocation has the size of the text.
 *
 * RFC 7468 (PEM, with its lax whitespace), RFC 5280 section 4.1 (certificate),
 * RFC 5480 section 2.1 (EC keys), X.690 (DER).
 */

#include <string.h>
#include <gnutls/abstract.h>
#include <gnutls/x509.h>

#include "eif-internal.h"

static bool bad(EifError *err, const char *what)
{
    return eif_fail(err, EIF_ERR_SIGNATURE_CERTIFICATE,
                    "the signing certificate %s", what);
}

/* ---- PEM ---- */

static const struct {
    const char *begin;
    const char *end;
} labels[] = {
    { "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----" },
    { "-----BEGIN X509 CERTIFICATE-----", "-----END X509 CERTIFICATE-----" },
};

typedef struct Text {
    const uint8_t *p;
    const uint8_t *end;
} Text;

static bool is_white(uint8_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r' && c != '\n');
}

/* The next line, without the whitespace at its end. */
static bool next_line(Text *t, Text *line)
{
    const uint8_t *lf;

    if (t->p == t->end) {
        return false;
    }
    lf = memchr(t->p, '\n', (size_t)(t->end - t->p));
    line->p = t->p;
    line->end = lf ? lf : t->end;
    t->p = lf ? lf + 1 : t->end;
    while (line->end > line->p && is_white(line->end[-1])) {
        line->end--;
    }
    return true;
}

static bool line_is(const Text *line, const char *text)
{
    size_t len = (size_t)(line->end - line->p);

    return len == strlen(text) && memcmp(line->p, text, len) == 0;
}

static bool line_begins(const Text *line, const char *text)
{
    return (size_t)(line->end - line->p) >= strlen(text) &&
           memcmp(line->p, text, strlen(text)) == 0;
}

static int base64_value(uint8_t c)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

typedef struct Base64 {
    uint8_t *out;
    size_t len;
    uint32_t bits;
    unsigned chars;             /* of the group of four */
    unsigned padding;
} Base64;

static bool base64_line(Base64 *b, const Text *line)
{
    for (const uint8_t *p = line->p; p < line->end; p++) {
        int value = base64_value(*p);

        if (is_white(*p)) {
            continue;
        }
        if (*p == '=' && b->chars + b->padding < 4 && b->chars >= 2) {
            b->padding++;
            continue;
        }
        if (value < 0 || b->padding) {
            return false;
        }
        b->bits = b->bits << 6 | (uint32_t)value;
        if (++b->chars == 4) {
            b->out[b->len++] = (uint8_t)(b->bits >> 16);
            b->out[b->len++] = (uint8_t)(b->bits >> 8);
            b->out[b->len++] = (uint8_t)b->bits;
            b->chars = 0;
        }
    }
    return true;
}

/* What is left of the last group; bits that come to no byte are ignored. */
static bool base64_end(Base64 *b)
{
    if (!b->chars) {
        return true;
    }
    if (b->chars + b->padding != 4) {
        return false;
    }
    b->bits <<= 6 * b->padding;
    b->out[b->len++] = (uint8_t)(b->bits >> 16);
    if (b->chars == 3) {
        b->out[b->len++] = (uint8_t)(b->bits >> 8);
    }
    return true;
}

/* The first certificate of the PEM text into der and der_len of @s. */
static bool read_pem(EifSignature *s, EifError *err)
{
    Text text = { s->pem, s->pem + s->pem_len };
    const char *end = NULL;
    Base64 b = { 0 };
    Text line;

    while (!end) {
        if (!next_line(&text, &line)) {
            return bad(err, "is not PEM text: no line of it is"
                       " -----BEGIN CERTIFICATE-----");
        }
        for (size_t i = 0; i < G_N_ELEMENTS(labels); i++) {
            if (line_is(&line, labels[i].begin)) {
                end = labels[i].end;
            }
        }
    }

    /* Room for the last group, which may have fewer characters than bytes. */
    s->der = b.out = g_malloc((size_t)(text.end - text.p) / 4 * 3 + 3);
    do {
        if (!next_line(&text, &line)) {
            return bad(err, "is not whole PEM text: its END line is missing");
        }
        if (line_begins(&line, "-----")) {
            break;
        }
        if (!base64_line(&b, &line)) {
            return bad(err, "is not PEM text: between its BEGIN and END is"
                       " other than base64");
        }
    } while (true);
    if (!line_is(&line, end)) {
        return bad(err, "is not PEM text: its END line is not that of its"
                   " BEGIN line");
    }
    if (!base64_end(&b)) {
        return bad(err, "is not PEM text: its base64 is cut off");
    }
    s->der_len = b.len;
    return true;
}

/* ---- DER ---- */

enum {
    DER_INTEGER = 0x02,
    DER_BITS = 0x03,
    DER_OID = 0x06,
    DER_UTC_TIME = 0x17,
    DER_TIME = 0x18,
    DER_SEQUENCE = 0x30,
    DER_VERSION = 0xa0,         /* [0] explicit */
    DER_ISSUER_ID = 0x81,       /* [1] implicit */
    DER_SUBJECT_ID = 0x82,
    DER_EXTENSIONS = 0xa3,      /* [3] explicit */
};

/* A value's bytes, of which the first are taken away while they are read. */
typedef struct Der {
    const uint8_t *p;
    size_t len;
} Der;

/* The next element if it has this tag, off @d and into @value. */
static bool take(Der *d, uint8_t tag, Der *value)
{
    size_t head = 2, len;

    if (d->len < 2 || d->p[0] != tag) {
        return false;
    }
    len = d->p[1];
    if (len >= 0x80) {
        size_t n = len & 0x7f;

        /* In the fewest bytes; 16 MB are more than any text gives. */
        if (n < 1 || n > 3 || d->len < 2 + n || d->p[2] == 0) {
            return false;
        }
        len = 0;
        while (head < 2 + n) {
            len = len << 8 | d->p[head++];
        }
        if (len < 0x80) {
            return false;
        }
    }
    if (len > d->len - head) {
        return false;
    }
    value->p = d->p + head;
    value->len = len;
    d->p += head + len;
    d->len -= head + len;
    return true;
}

/* As take(), of an element that may be missing. */
static bool take_optional(Der *d, uint8_t tag, Der *value)
{
    value->p = NULL;
    value->len = 0;
    return d->len == 0 || d->p[0] != tag || take(d, tag, value);
}

/* An INTEGER in the fewest bytes. */
static bool take_integer(Der *d, Der *value)
{
    return take(d, DER_INTEGER, value) && value->len &&
           (value->len == 1 ||
            !((value->p[0] == 0x00 && value->p[1] < 0x80) ||
              (value->p[0] == 0xff && value->p[1] >= 0x80)));
}

/* A BIT STRING of whole bytes, one at least; @value without the count. */
static bool take_bytes(Der *d, Der *value)
{
    if (!take(d, DER_BITS, value) || value->len < 2 || value->p[0] != 0) {
        return false;
    }
    value->p++;
    value->len--;
    return true;
}

static bool equal(const Der *a, const void *p, size_t len)
{
    return a->len == len && memcmp(a->p, p, len) == 0;
}

/* 1.2.840.10045.2.1, or "unknown" for what is too long or no OID. */
static void oid_text(const Der *oid, char *buf, size_t size)
{
    size_t used = 0, i = 0;

    while (i < oid->len) {
        uint64_t arc = 0;

        do {
            if (i == oid->len || arc >> 56) {
                g_strlcpy(buf, "unknown", size);
                return;
            }
            arc = arc << 7 | (oid->p[i] & 0x7f);
        } while (oid->p[i++] & 0x80);
        if (used == 0) {
            unsigned first = arc < 80 ? (unsigned)arc / 40 : 2;

            used = (size_t)g_snprintf(buf, size, "%u", first);
            arc -= 40 * first;
        }
        used += (size_t)g_snprintf(buf + used, size - used,
                                   ".%" G_GUINT64_FORMAT, arc);
        if (used >= size) {
            g_strlcpy(buf, "unknown", size);
            return;
        }
    }
    if (!used) {
        g_strlcpy(buf, "unknown", size);
    }
}

static bool two_digits(const uint8_t *p, unsigned max, unsigned *value)
{
    if (p[0] < '0' || p[0] > '9' || p[1] < '0' || p[1] > '9') {
        return false;
    }
    *value = (unsigned)(p[0] - '0') * 10 + (unsigned)(p[1] - '0');
    return *value <= max;
}

/* RFC 5280, 4.1.2.5: UTCTime or GeneralizedTime, in whole seconds, in UTC. */
static bool take_time(Der *d, int64_t *seconds)
{
    static const unsigned char days[] = {
        31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31
    };
    unsigned century = 0, year, month, day, hour, minute, second, length;
    int64_t y, era_days;
    Der t;

    if (take(d, DER_UTC_TIME, &t)) {
        if (t.len != 13 || !two_digits(t.p, 99, &year)) {
            return false;
        }
        century = year < 50 ? 20 : 19;
    } else if (take(d, DER_TIME, &t)) {
        if (t.len != 15 || !two_digits(t.p, 99, &century) ||
            !two_digits(t.p + 2, 99, &year)) {
            return false;
        }
        t.p += 2;
    } else {
        return false;
    }
    year += 100 * century;
    if (!year || t.p[12] != 'Z' ||
        !two_digits(t.p + 2, 12, &month) || !month ||
        !two_digits(t.p + 4, 31, &day) || !day ||
        !two_digits(t.p + 6, 23, &hour) ||
        !two_digits(t.p + 8, 59, &minute) ||
        !two_digits(t.p + 10, 59, &second)) {
        return false;
    }
    length = days[month - 1];
    if (month == 2 && year % 4 == 0 && (year % 100 || year % 400 == 0)) {
        length++;
    }
    if (day > length) {
        return false;
    }
    /* Days since 1970 in the Gregorian calendar, years beginning in March. */
    y = month <= 2 ? year - 1 : year;
    era_days = 365 * y + y / 4 - y / 100 + y / 400 +
               (153 * ((month + 9) % 12) + 2) / 5 + day - 1 - 719468;
    *seconds = ((era_days * 24 + hour) * 60 + minute) * 60 + second;
    return true;
}

/* ---- The key ---- */

static const uint8_t ec_public_key[] = {
    0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01
};

static bool bad_kind(EifError *err, const char *what, const char *oid,
                     const char *name)
{
    return eif_fail(err, EIF_ERR_SIGNATURE_CERTIFICATE,
                    "the signing certificate has a key %s %s, usable are EC"
                    " keys on P-256, P-384 and P-521", what,
                    name && strcmp(name, "Unknown") ? name : oid);
}

/* Is it a point on its curve? */
static bool check_point(const EifSignature *s, EifError *err)
{
    gnutls_pubkey_t key = NULL;
    int rc = eif_curve_key(s, &key);

    if (rc >= 0) {
        rc = gnutls_pubkey_verify_params(key);
    }
    if (key) {
        gnutls_pubkey_deinit(key);
    }
    return rc >= 0 || bad(err, "has a key that is no point on its curve");
}

/* From a SubjectPublicKeyInfo. */
static bool read_key(EifSignature *s, Der spki, EifError *err)
{
    const EifCurve *curve;
    Der alg, kind, name, point;
    char text[64];

    if (!take(&spki, DER_SEQUENCE, &alg) || !take(&alg, DER_OID, &kind) ||
        !take_bytes(&spki, &point) || spki.len) {
        return bad(err, "cannot be read: its key is not in the form of"
                   " X.509");
    }
    if (!equal(&kind, ec_public_key, sizeof(ec_public_key))) {
        oid_text(&kind, text, sizeof(text));
        return bad_kind(err, "of type", text,
                        gnutls_pk_get_name(gnutls_oid_to_pk(text)));
    }
    if (alg.len && alg.p[0] == DER_SEQUENCE) {
        return bad(err, "has a key whose curve is written out, which X.509"
                   " does not allow (RFC 5480); make the key again, with the"
                   " curve's name (openssl: -param_enc named_curve)");
    }
    if (!take(&alg, DER_OID, &name) || alg.len) {
        return bad(err, "cannot be read: its key names no curve");
    }
    curve = eif_curve_of_oid(name.p, name.len);
    if (!curve) {
        oid_text(&name, text, sizeof(text));
        return bad_kind(err, "on curve", text,
                        gnutls_ecc_curve_get_name(
                            gnutls_oid_to_ecc_curve(text)));
    }
    if (point.p[0] == 2 || point.p[0] == 3) {
        return bad(err, "has its key as a compressed point; make it again"
                   " with an uncompressed one (openssl: -conv_form"
                   " uncompressed)");
    }
    if (point.p[0] != 4 || point.len != 1 + 2 * curve->half) {
        return bad(err, "has a key that is no point on its curve");
    }
    s->key_alg = curve->alg;
    s->point = point.p + 1;
    return check_point(s, err);
}

/* ---- The certificate ---- */

static bool read_der(EifSignature *s, EifError *err)
{
    static const char *const form = "cannot be read: it is not in the form of"
                                    " X.509";
    Der der = { s->der, s->der_len };
    Der cert, tbs, outer, value, version, serial, alg, dates, spki, name, id;

    if (!take(&der, DER_SEQUENCE, &cert) || der.len ||
        !take(&cert, DER_SEQUENCE, &tbs) ||
        !take(&cert, DER_SEQUENCE, &outer) || !take_bytes(&cert, &value) ||
        cert.len || !take_optional(&tbs, DER_VERSION, &version)) {
        return bad(err, form);
    }
    if (version.p) {
        /* v2 and v3 are 1 and 2; v1 is left out (RFC 5280, 4.1.2.1) */
        if (!take_integer(&version, &value) || version.len ||
            value.len != 1 || value.p[0] < 1 || value.p[0] > 2) {
            return bad(err, "is of no known version");
        }
    }
    if (!take_integer(&tbs, &serial) || !take(&tbs, DER_SEQUENCE, &alg) ||
        !take(&tbs, DER_SEQUENCE, &name) ||
        !take(&tbs, DER_SEQUENCE, &dates) ||
        !take(&tbs, DER_SEQUENCE, &name) ||
        !take(&tbs, DER_SEQUENCE, &spki) ||
        !take_optional(&tbs, DER_ISSUER_ID, &id) ||
        !take_optional(&tbs, DER_SUBJECT_ID, &id) ||
        !take_optional(&tbs, DER_EXTENSIONS, &value) || tbs.len ||
        (value.p && (!take(&value, DER_SEQUENCE, &id) || value.len))) {
        return bad(err, form);
    }
    if (!equal(&alg, outer.p, outer.len)) {
        return bad(err, "names two different signature algorithms");
    }
    if (!take(&alg, DER_OID, &value)) {
        return bad(err, form);
    }
    if (!take_time(&dates, &s->not_before) ||
        !take_time(&dates, &s->not_after) || dates.len) {
        return bad(err, "has unreadable dates");
    }
    return read_key(s, spki, err);
}

bool eif_signature_certificate(EifSignature *s, EifError *err)
{
    return read_pem(s, err) && read_der(s, err) &&
           eif_measure_buffer(s->der, s->der_len, s->pcr8, err);
}
