/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM attestation: one certificate, taken apart
 *
 * X.509 v3 (RFC 5280, section 4) in DER (X.690, section 10). gnutls forgives
 * what other libraries do not: dates that no calendar has, strings of the
 * wrong characters, extensions that it does not know. What it has imported
 * passes through here before anything is issued under it. Who issued whom is
 * nsm-chain-load.c's business.
 *
 * Every element is read once, inside of what it is in; nothing recurses.
 */
#include <stdarg.h>
#include <string.h>
#include <glib.h>

#include "nsm-cert.h"

enum {
    BOOLEAN = 0x01, INTEGER = 0x02, BIT_STRING = 0x03, OCTET_STRING = 0x04,
    OID = 0x06, UTF8 = 0x0c, PRINTABLE = 0x13, IA5 = 0x16, UTC_TIME = 0x17,
    GENERALIZED_TIME = 0x18, SEQUENCE = 0x30, SET = 0x31, CONTEXT_0 = 0xa0,
    CONTEXT_3 = 0xa3,
};

#define SERIAL_MAX 20           /* RFC 5280, section 4.1.2.2 */
#define OID_MAX 32
#define OID_ARC_MAX 9           /* bytes */
#define EXTENSIONS_MAX 32       /* more do not fit 1024 bytes with the rest */

/* AlgorithmIdentifier of ecdsa-with-SHA384 (RFC 5758, section 3.2) */
static const uint8_t ecdsa_sha384[] = {
    6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3,
};
/* SubjectPublicKeyInfo of P-384 (RFC 5480, section 2), but for the point */
static const uint8_t p384[] = {
    0x30, 0x10, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1,
    6, 5, 0x2b, 0x81, 4, 0, 0x22, 3, 0x62, 0, 4,
};
#define P384_SIZE (sizeof(p384) + 96)

/* In DER, without heads */
static const uint8_t basic_constraints[] = { 0x55, 0x1d, 19 };
static const uint8_t key_usage[] = { 0x55, 0x1d, 15 };
static const uint8_t name_constraints[] = { 0x55, 0x1d, 30 };

#define MALFORMED "is no X.509 certificate in DER: "

/* What is left of the content of a constructed value */
typedef struct Reader {
    const uint8_t *p;
    const uint8_t *end;
    NsmCertFault *fault;
} Reader;

static bool G_GNUC_PRINTF(2, 3) refuse(const Reader *r, const char *format,
                                       ...)
{
    va_list args;

    va_start(args, format);
    g_vsnprintf(r->fault->text, sizeof(r->fault->text), format, args);
    va_end(args);
    return false;
}

static bool is(NsmDer der, const void *data, size_t len)
{
    return der.len == len && !memcmp(der.data, data, len);
}

/* The tag of the next element, or -1. */
static int next_tag(const Reader *r)
{
    return r->p < r->end ? *r->p : -1;
}

static bool at_end(const Reader *r, const char *what)
{
    return r->p == r->end ||
        refuse(r, MALFORMED "%s has something behind it", what);
}

/* The content of the next element; @whole, unless NULL: with its head. */
static bool take(Reader *r, int tag, const char *what, NsmDer *content,
                 NsmDer *whole)
{
    const uint8_t *p = r->p;
    size_t len;

    if (r->end - p < 2 || *p != tag) {
        return refuse(r, MALFORMED "%s is not where it must be", what);
    }
    len = p[1];
    p += 2;
    if (len & 0x80) {
        size_t bytes = len & 0x7f, shortest;

        if (bytes < 1 || bytes > 2 || bytes > (size_t)(r->end - p)) {
            return refuse(r, MALFORMED "%s has a bad length", what);
        }
        shortest = bytes == 1 ? 0x80 : 0x100;
        for (len = 0; bytes > 0; bytes--) {
            len = len << 8 | *p++;
        }
        if (len < shortest) {
            return refuse(r, MALFORMED "%s has a length that is not the "
                          "shortest", what);
        }
    }
    if (len > (size_t)(r->end - p)) {
        return refuse(r, MALFORMED "%s is longer than what it is in", what);
    }
    *content = (NsmDer) { p, len };
    if (whole) {
        *whole = (NsmDer) { r->p, p + len - r->p };
    }
    r->p = p + len;
    return true;
}

/* The same, to be read on. */
static bool enter(Reader *r, int tag, const char *what, Reader *inside)
{
    NsmDer content;

    if (!take(r, tag, what, &content, NULL)) {
        return false;
    }
    *inside = (Reader) {
        content.data, content.data + content.len, r->fault,
    };
    return true;
}

/* An integer of any length that is not negative */
static bool take_integer(Reader *r, const char *what, NsmDer *out)
{
    if (!take(r, INTEGER, what, out, NULL)) {
        return false;
    }
    if (out->len == 0 ||
        (out->len > 1 && out->data[0] == 0 && out->data[1] < 0x80)) {
        return refuse(r, MALFORMED "%s is no integer in DER", what);
    }
    if (out->data[0] & 0x80) {
        return refuse(r, "has a negative %s", what);
    }
    if (out->data[0] == 0 && out->len > 1) {
        out->data++;
        out->len--;
    }
    return true;
}

static bool take_oid(Reader *r, const char *what, NsmDer *out)
{
    size_t size = 0;
    bool good;

    if (!take(r, OID, what, out, NULL)) {
        return false;
    }
    good = out->len >= 1 && out->len <= OID_MAX &&
        !(out->data[out->len - 1] & 0x80);
    for (size_t i = 0; good && i < out->len; i++) {
        size++;
        good = size <= OID_ARC_MAX && !(size == 1 && out->data[i] == 0x80);
        size = out->data[i] & 0x80 ? size : 0;
    }
    return good || refuse(r, MALFORMED "%s has no object identifier", what);
}

/* Dotted; what does not fit @buf is left out. */
static const char *oid_text(NsmDer oid, char *buf, size_t cap)
{
    uint64_t arc = 0;
    bool first = true;
    size_t len = 0;

    buf[0] = '\0';
    for (size_t i = 0; i < oid.len; i++) {
        arc = arc << 7 | (oid.data[i] & 0x7f);
        if (oid.data[i] & 0x80) {
            continue;
        }
        if (first) {
            unsigned root = MIN(arc / 40, 2);

            len = g_snprintf(buf, cap, "%u", root);
            arc -= 40 * root;
            first = false;
        }
        len = MIN(len, cap - 1);
        len += g_snprintf(buf + len, cap - len, ".%" G_GUINT64_FORMAT, arc);
        arc = 0;
    }
    return buf;
}

static bool string_good(int tag, NsmDer s)
{
    static const char marks[] = " '()+,-./:=?";

    if (s.len == 0 || memchr(s.data, 0, s.len)) {
        return false;
    }
    if (tag == UTF8) {
        return g_utf8_validate((const char *)s.data, s.len, NULL);
    }
    for (size_t i = 0; i < s.len; i++) {
        uint8_t c = s.data[i];

        if (tag == PRINTABLE ? !g_ascii_isalnum(c) && !strchr(marks, c) :
            c >= 0x80) {
            return false;
        }
    }
    return true;
}

/* Name: a list of sets of pairs, an identifier and a string */
static bool take_name(Reader *r, const char *what, NsmDer *out)
{
    Reader parts = *r, values, pair;
    NsmDer content, oid;

    if (!enter(&parts, SEQUENCE, what, &values) ||
        !take(r, SEQUENCE, what, &content, out)) {
        return false;
    }
    parts = values;
    if (next_tag(&parts) < 0) {
        return refuse(r, "has an empty %s", what);
    }
    while (next_tag(&parts) >= 0) {
        if (!enter(&parts, SET, what, &values)) {
            return false;
        }
        if (next_tag(&values) < 0) {
            return refuse(r, MALFORMED "its %s has an empty part", what);
        }
        while (next_tag(&values) >= 0) {
            int tag;

            if (!enter(&values, SEQUENCE, what, &pair) ||
                !take_oid(&pair, what, &oid)) {
                return false;
            }
            tag = next_tag(&pair);
            if (tag != UTF8 && tag != PRINTABLE && tag != IA5) {
                return refuse(r, "has a string in its %s that is no "
                              "UTF8String, PrintableString or IA5String",
                              what);
            }
            if (!take(&pair, tag, what, &content, NULL) ||
                !at_end(&pair, what)) {
                return false;
            }
            if (!string_good(tag, content)) {
                return refuse(r, "has a string in its %s whose characters "
                              "are not of its type", what);
            }
        }
    }
    return true;
}

static bool take_time(Reader *r, const char *what, int64_t *out)
{
    int tag = next_tag(r), part[7];     /* century, year, month, ... */
    g_autoptr(GDateTime) date = NULL;
    size_t parts = tag == UTC_TIME ? 6 : 7;
    NsmDer text;

    if (tag != UTC_TIME && tag != GENERALIZED_TIME) {
        return refuse(r, MALFORMED "%s is no time", what);
    }
    if (!take(r, tag, what, &text, NULL)) {
        return false;
    }
    if (text.len != 2 * parts + 1 || text.data[2 * parts] != 'Z') {
        return refuse(r, "has a %s that is not written as RFC 5280 has it",
                      what);
    }
    for (size_t i = 0; i < parts; i++) {
        int high = g_ascii_digit_value(text.data[2 * i]);
        int low = g_ascii_digit_value(text.data[2 * i + 1]);

        if (high < 0 || low < 0) {
            return refuse(r, "has a %s that is not written as RFC 5280 has "
                          "it", what);
        }
        part[i + 7 - parts] = 10 * high + low;
    }
    if (tag == UTC_TIME) {
        part[0] = part[1] >= 50 ? 19 : 20;
    }
    /* GLib's own check lets the year 0 through to a warning. */
    if (part[0] || part[1]) {
        date = g_date_time_new_utc(100 * part[0] + part[1], part[2], part[3],
                                   part[4], part[5], part[6]);
    }
    if (!date) {
        return refuse(r, "has a %s that no calendar has: %02d%02d%.10s", what,
                      part[0], part[1], text.data + text.len - 11);
    }
    *out = g_date_time_to_unix(date);
    return true;
}

/* BIT STRING in DER: unused bits are zero. */
static bool take_bits(Reader *r, const char *what, unsigned *unused,
                      NsmDer *out)
{
    if (!take(r, BIT_STRING, what, out, NULL)) {
        return false;
    }
    if (out->len == 0 || out->data[0] > 7 ||
        (out->data[0] && out->len < 2)) {
        return refuse(r, MALFORMED "%s is no bit string", what);
    }
    *unused = out->data[0];
    if (*unused && out->data[out->len - 1] & ((1u << *unused) - 1)) {
        return refuse(r, MALFORMED "%s is no bit string in DER", what);
    }
    out->data++;
    out->len--;
    return true;
}

static bool read_constraints(Reader *r, NsmCert *cert)
{
    const char *what = "BasicConstraints";
    NsmDer value;
    Reader inner;

    cert->has_constraints = true;
    if (!enter(r, SEQUENCE, what, &inner) || !at_end(r, what)) {
        return false;
    }
    if (next_tag(&inner) == BOOLEAN) {
        if (!take(&inner, BOOLEAN, what, &value, NULL)) {
            return false;
        }
        if (value.len != 1 || value.data[0] != 0xff) {
            return refuse(r, MALFORMED "%s is not in DER", what);
        }
        cert->ca = true;
    }
    if (next_tag(&inner) >= 0) {
        if (!take_integer(&inner, "path length", &value)) {
            return false;
        }
        /* More than any chain has is all the same. */
        cert->path_length = value.len > 1 ? 255 : value.data[0];
    }
    return at_end(&inner, what);
}

static bool read_usage(Reader *r, NsmCert *cert)
{
    unsigned unused;
    NsmDer bits;

    cert->has_usage = true;
    if (!take_bits(r, "KeyUsage", &unused, &bits) || !at_end(r, "KeyUsage")) {
        return false;
    }
    if (bits.len > 2) {
        return refuse(r, MALFORMED "KeyUsage has too many bits");
    }
    cert->cert_sign = bits.len > 0 && bits.data[0] & 0x04;
    return true;
}

static bool read_extension(Reader *r, NsmCert *cert, NsmDer *oid)
{
    const char *what = "an extension";
    bool critical, constraints, usage;
    Reader extension, content;
    char text[80];
    NsmDer value;

    if (!enter(r, SEQUENCE, what, &extension) ||
        !take_oid(&extension, what, oid)) {
        return false;
    }
    critical = next_tag(&extension) == BOOLEAN;
    if (critical) {
        if (!take(&extension, BOOLEAN, what, &value, NULL)) {
            return false;
        }
        if (value.len != 1 || value.data[0] != 0xff) {
            return refuse(r, MALFORMED "an extension is not in DER");
        }
    }
    if (!enter(&extension, OCTET_STRING, what, &content) ||
        !at_end(&extension, what)) {
        return false;
    }
    constraints = is(*oid, basic_constraints, sizeof(basic_constraints));
    usage = is(*oid, key_usage, sizeof(key_usage));
    if (is(*oid, name_constraints, sizeof(name_constraints))) {
        r->fault->extension = true;
        return refuse(r, "has name constraints (2.5.29.30), which are not "
                      "supported in these chains");
    }
    if (critical && !constraints && !usage) {
        r->fault->extension = true;
        return refuse(r, "has a critical extension that is not known here: "
                      "%s", oid_text(*oid, text, sizeof(text)));
    }
    if (constraints) {
        cert->constraints_critical = critical;
        return read_constraints(&content, cert);
    }
    return !usage || read_usage(&content, cert);
}

static bool read_extensions(Reader *r, NsmCert *cert)
{
    NsmDer seen[EXTENSIONS_MAX];
    char text[80];
    size_t count;

    for (count = 0; next_tag(r) >= 0; count++) {
        if (count == EXTENSIONS_MAX) {
            return refuse(r, "has more than %d extensions", EXTENSIONS_MAX);
        }
        if (!read_extension(r, cert, &seen[count])) {
            return false;
        }
        for (size_t i = 0; i < count; i++) {
            if (is(seen[i], seen[count].data, seen[count].len)) {
                return refuse(r, "has the extension %s twice",
                              oid_text(seen[i], text, sizeof(text)));
            }
        }
    }
    return count > 0 ||
        refuse(r, MALFORMED "it has no extension in the list of them");
}

/* TBSCertificate, up to the subject */
static bool read_head(Reader *r, NsmCert *cert, NsmDer *algorithm)
{
    Reader version, validity;
    NsmDer number;

    if (next_tag(r) != CONTEXT_0) {
        return refuse(r, "is of version 1, not 3");
    }
    if (!enter(r, CONTEXT_0, "the version", &version) ||
        !take_integer(&version, "version", &number) ||
        !at_end(&version, "the version")) {
        return false;
    }
    if (number.len != 1) {
        return refuse(r, "is of version unknown, not 3");
    }
    if (number.data[0] != 2) {
        return refuse(r, "is of version %d, not 3", number.data[0] + 1);
    }
    if (!take_integer(r, "serial number", &number)) {
        return false;
    }
    if (number.len == 1 && number.data[0] == 0) {
        return refuse(r, "has a serial number of zero");
    }
    if (number.len > SERIAL_MAX) {
        return refuse(r, "has a serial number of more than %d bytes",
                      SERIAL_MAX);
    }
    return take(r, SEQUENCE, "the signature's algorithm", algorithm, NULL) &&
        take_name(r, "issuer", &cert->issuer) &&
        enter(r, SEQUENCE, "the validity", &validity) &&
        take_time(&validity, "first date", &cert->begin) &&
        take_time(&validity, "last date", &cert->end) &&
        at_end(&validity, "the validity");
}

bool nsm_cert_parse(NsmCert *cert, const uint8_t *der, size_t len,
                    NsmCertFault *fault)
{
    Reader outer = { der, der + len, fault }, whole, signed_part, r, list;
    NsmDer inside, outside, signature, key, content;
    unsigned unused;

    *cert = (NsmCert) { .path_length = -1 };
    *fault = (NsmCertFault) { .extension = false };
    if (!enter(&outer, SEQUENCE, "the certificate", &whole) ||
        !at_end(&outer, "the certificate")) {
        return false;
    }
    signed_part = whole;
    if (!take(&whole, SEQUENCE, "the signed part", &content, &cert->tbs) ||
        !take(&whole, SEQUENCE, "the signature's algorithm", &outside,
              NULL) ||
        !take_bits(&whole, "the signature", &unused, &signature)) {
        return false;
    }
    if (unused) {
        return refuse(&whole, MALFORMED "the signature has no whole bytes");
    }
    if (!at_end(&whole, "the signature") ||
        !enter(&signed_part, SEQUENCE, "the signed part", &r) ||
        !read_head(&r, cert, &inside) ||
        !take_name(&r, "subject", &cert->subject) ||
        !take(&r, SEQUENCE, "the public key", &key, NULL)) {
        return false;
    }
    cert->ecdsa_sha384 = is(inside, ecdsa_sha384, sizeof(ecdsa_sha384)) &&
        is(outside, ecdsa_sha384, sizeof(ecdsa_sha384));
    cert->p384 = key.len == P384_SIZE && !memcmp(key.data, p384, sizeof(p384));
    if (next_tag(&r) == CONTEXT_3) {
        Reader explicit;

        if (!enter(&r, CONTEXT_3, "the extensions", &explicit) ||
            !enter(&explicit, SEQUENCE, "the extensions", &list) ||
            !read_extensions(&list, cert) ||
            !at_end(&explicit, "the extensions")) {
            return false;
        }
    }
    return at_end(&r, "the extensions");
}
