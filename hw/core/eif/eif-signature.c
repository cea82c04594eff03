/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * EIF core: the signature section.  Decodes the envelope and the COSE_Sign1
 * in it, and verifies.  The certificate is read in eif-certificate.c; what a
 * bad signature leads to is decided in eif-check.c.
 *
 * The bytes are an adversary's.  CBOR is read item by item through next_item()
 * alone, which asks libcbor's streaming decoder for one head at a time; there
 * is no tree, no recursion, and no count of the document is believed beyond
 * the number of bytes that are left (an element takes one byte at least).
 *
 * RFC 8949 (CBOR), RFC 9052 section 4.2 and 4.4 (COSE_Sign1), RFC 9053 section
 * 2.1 (ECDSA).
 */

#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <cbor.h>
#include <gnutls/abstract.h>

#include "eif-internal.h"

#define COSE_TAG_SIGN1  18
#define COSE_LABEL_ALG  1

/* ---- One guarded way into CBOR ---- */

typedef enum ItemKind {
    ITEM_UINT,
    ITEM_NEGINT,        /* -1 - value */
    ITEM_BYTES,
    ITEM_TEXT,
    ITEM_ARRAY,         /* value elements follow */
    ITEM_MAP,           /* value pairs follow */
    ITEM_TAG,           /* one item follows */
    ITEM_SIMPLE,        /* also floats */
    ITEM_INDEFINITE,    /* start or end of one */
} ItemKind;

static const char *const kind_names[] = {
    [ITEM_UINT] = "an integer",
    [ITEM_NEGINT] = "a negative integer",
    [ITEM_BYTES] = "a byte string",
    [ITEM_TEXT] = "a text string",
    [ITEM_ARRAY] = "an array",
    [ITEM_MAP] = "a map",
    [ITEM_TAG] = "a tag",
    [ITEM_SIMPLE] = "a simple value or float",
    [ITEM_INDEFINITE] = "an indefinite length",
};

typedef struct Item {
    ItemKind kind;
    uint64_t value;
    const uint8_t *data;        /* strings: value bytes */
} Item;

typedef struct Reader {
    const char *name;           /* of the document, for errors */
    const uint8_t *buf;
    size_t len;
    size_t pos;
    size_t item_pos;            /* where the last item began */
    EifError *err;
} Reader;

static void on_uint8(void *ctx, uint8_t v)
{
    *(Item *)ctx = (Item) { ITEM_UINT, v, NULL };
}

static void on_uint16(void *ctx, uint16_t v)
{
    *(Item *)ctx = (Item) { ITEM_UINT, v, NULL };
}

static void on_uint32(void *ctx, uint32_t v)
{
    *(Item *)ctx = (Item) { ITEM_UINT, v, NULL };
}

static void on_uint64(void *ctx, uint64_t v)
{
    *(Item *)ctx = (Item) { ITEM_UINT, v, NULL };
}

static void on_negint8(void *ctx, uint8_t v)
{
    *(Item *)ctx = (Item) { ITEM_NEGINT, v, NULL };
}

static void on_negint16(void *ctx, uint16_t v)
{
    *(Item *)ctx = (Item) { ITEM_NEGINT, v, NULL };
}

static void on_negint32(void *ctx, uint32_t v)
{
    *(Item *)ctx = (Item) { ITEM_NEGINT, v, NULL };
}

static void on_negint64(void *ctx, uint64_t v)
{
    *(Item *)ctx = (Item) { ITEM_NEGINT, v, NULL };
}

/* size_t up to libcbor 0.8, uint64_t later: one type where we run. */
static void on_bytes(void *ctx, cbor_data data, size_t len)
{
    *(Item *)ctx = (Item) { ITEM_BYTES, len, data };
}

static void on_text(void *ctx, cbor_data data, size_t len)
{
    *(Item *)ctx = (Item) { ITEM_TEXT, len, data };
}

static void on_array(void *ctx, size_t n)
{
    *(Item *)ctx = (Item) { ITEM_ARRAY, n, NULL };
}

static void on_map(void *ctx, size_t n)
{
    *(Item *)ctx = (Item) { ITEM_MAP, n, NULL };
}

static void on_tag(void *ctx, uint64_t v)
{
    *(Item *)ctx = (Item) { ITEM_TAG, v, NULL };
}

static void on_float(void *ctx, float v)
{
    *(Item *)ctx = (Item) { ITEM_SIMPLE, 0, NULL };
}

static void on_double(void *ctx, double v)
{
    *(Item *)ctx = (Item) { ITEM_SIMPLE, 0, NULL };
}

static void on_bool(void *ctx, bool v)
{
    *(Item *)ctx = (Item) { ITEM_SIMPLE, 0, NULL };
}

static void on_simple(void *ctx)
{
    *(Item *)ctx = (Item) { ITEM_SIMPLE, 0, NULL };
}

static void on_indefinite(void *ctx)
{
    *(Item *)ctx = (Item) { ITEM_INDEFINITE, 0, NULL };
}

static const struct cbor_callbacks item_callbacks = {
    .uint8 = on_uint8,
    .uint16 = on_uint16,
    .uint32 = on_uint32,
    .uint64 = on_uint64,
    .negint8 = on_negint8,
    .negint16 = on_negint16,
    .negint32 = on_negint32,
    .negint64 = on_negint64,
    .byte_string_start = on_indefinite,
    .byte_string = on_bytes,
    .string = on_text,
    .string_start = on_indefinite,
    .indef_array_start = on_indefinite,
    .array_start = on_array,
    .indef_map_start = on_indefinite,
    .map_start = on_map,
    .tag = on_tag,
    .float2 = on_float,
    .float4 = on_float,
    .float8 = on_double,
    .undefined = on_simple,
    .null = on_simple,
    .boolean = on_bool,
    .indef_break = on_indefinite,
};

static bool malformed(Reader *r, const char *what)
{
    return eif_fail(r->err, EIF_ERR_SIGNATURE_MALFORMED,
                    "the %s, at byte %zu of %zu: %s", r->name, r->item_pos,
                    r->len, what);
}

/*
 * Heads that are well-formed, but an error to libcbor up to 0.10 because IANA
 * has or had no meaning for them: tags 6 to 20 (18 is COSE_Sign1's) and simple
 * values.  Their length; 0: not one of them.
 */
static size_t head_unknown_to_libcbor(const uint8_t *p, size_t len,
                                      Item *item)
{
    if (*p >= 0xc0 && *p <= 0xd7) {
        *item = (Item) { ITEM_TAG, *p & 0x1f, NULL };
        return 1;
    }
    if (*p >= 0xe0 && *p <= 0xf3) {
        *item = (Item) { ITEM_SIMPLE, 0, NULL };
        return 1;
    }
    if (*p == 0xf8 && len > 1 && p[1] >= 32) {
        *item = (Item) { ITEM_SIMPLE, 0, NULL };
        return 2;
    }
    return 0;
}

static bool next_item(Reader *r, Item *item)
{
    struct cbor_decoder_result res;
    size_t head;

    r->item_pos = r->pos;
    if (r->pos == r->len) {
        return malformed(r, "ends too early");
    }
    head = head_unknown_to_libcbor(r->buf + r->pos, r->len - r->pos, item);
    if (head) {
        r->pos += head;
        return true;
    }
    res = cbor_stream_decode(r->buf + r->pos, r->len - r->pos,
                             &item_callbacks, item);
    if (res.status != CBOR_DECODER_FINISHED) {
        return malformed(r, res.status == CBOR_DECODER_NEDATA
                            ? "ends within an item" : "this is not CBOR");
    }
    r->pos += res.read;
    if (item->kind == ITEM_INDEFINITE) {
        return malformed(r, "indefinite lengths are not allowed");
    }
    if ((item->kind == ITEM_ARRAY || item->kind == ITEM_MAP) &&
        item->value > r->len - r->pos) {
        return malformed(r, "has more elements than there are bytes");
    }
    return true;
}

static bool expect(Reader *r, ItemKind kind, Item *item)
{
    if (!next_item(r, item)) {
        return false;
    }
    if (item->kind != kind) {
        g_autofree char *what = g_strdup_printf("%s instead of %s",
                                                kind_names[item->kind],
                                                kind_names[kind]);

        return malformed(r, what);
    }
    return true;
}

/* Over one whole item.  Counts what is still to come, so needs no stack. */
static bool skip_item(Reader *r)
{
    uint64_t todo = 1;
    Item item;

    while (todo) {
        if (!next_item(r, &item)) {
            return false;
        }
        todo--;
        switch (item.kind) {
        case ITEM_ARRAY:
            todo += item.value;
            break;
        case ITEM_MAP:
            todo += 2 * item.value;
            break;
        case ITEM_TAG:
            todo++;
            break;
        default:
            break;
        }
    }
    return true;
}

static bool at_end(Reader *r)
{
    if (r->pos != r->len) {
        r->item_pos = r->pos;
        return malformed(r, "goes on behind its end");
    }
    return true;
}

/* An array of integers below 256 as bytes; @cap: room at @dest. */
static bool byte_array(Reader *r, uint8_t *dest, size_t cap, size_t *len)
{
    Item array, item;

    if (!expect(r, ITEM_ARRAY, &array)) {
        return false;
    }
    if (array.value > cap) {
        return malformed(r, "the array is too long");
    }
    for (uint64_t i = 0; i < array.value; i++) {
        if (!expect(r, ITEM_UINT, &item)) {
            return false;
        }
        if (item.value > UINT8_MAX) {
            return malformed(r, "an integer above 255 in an array of bytes");
        }
        dest[i] = (uint8_t)item.value;
    }
    *len = array.value;
    return true;
}

/*
 * The next key of a map: its place in @keys, or -1 after skipping the pair
 * because the key is none of them.  @seen: a bit per key, for the one that
 * comes twice.
 */
static bool next_key(Reader *r, const char *const *keys, unsigned n_keys,
                     unsigned *seen, int *key)
{
    size_t start = r->pos;
    Item item;

    if (!next_item(r, &item)) {
        return false;
    }
    for (unsigned i = 0; item.kind == ITEM_TEXT && i < n_keys; i++) {
        if (item.value != strlen(keys[i]) ||
            memcmp(item.data, keys[i], item.value) != 0) {
            continue;
        }
        if (*seen & 1u << i) {
            return malformed(r, "a key comes twice");
        }
        *seen |= 1u << i;
        *key = (int)i;
        return true;
    }
    *key = -1;
    r->pos = start;
    return skip_item(r) && skip_item(r);
}

static bool all_keys(Reader *r, const char *const *keys, unsigned n_keys,
                     unsigned seen)
{
    for (unsigned i = 0; i < n_keys; i++) {
        if (!(seen & 1u << i)) {
            g_autofree char *what = g_strdup_printf("no \"%s\"", keys[i]);

            return malformed(r, what);
        }
    }
    return true;
}

/* ---- The four documents ---- */

bool eif_signature_parse(EifSignature *s, const uint8_t *buf, size_t len,
                         EifError *err)
{
    static const char *const keys[] = { "signing_certificate", "signature" };
    Reader r = { .name = "signature section", .buf = buf, .len = len,
                 .err = err };
    unsigned seen = 0;
    Item outer, map;
    size_t used = 0;

    memset(s, 0, sizeof(*s));
    if (len > EIF_SIGNATURE_MAX) {
        return eif_fail(err, EIF_ERR_SIGNATURE_TOO_LARGE,
                        "the signature has %zu bytes, at most %d are allowed",
                        len, EIF_SIGNATURE_MAX);
    }
    if (!expect(&r, ITEM_ARRAY, &outer)) {
        return false;
    }
    if (outer.value == 0) {
        return malformed(&r, "the array is empty");
    }
    if (!expect(&r, ITEM_MAP, &map)) {
        return false;
    }

    s->bytes = g_malloc(len);   /* an element has at least one byte of CBOR */
    for (uint64_t i = 0; i < map.value; i++) {
        size_t n;
        int key;

        if (!next_key(&r, keys, G_N_ELEMENTS(keys), &seen, &key)) {
            return false;
        }
        if (key < 0) {
            continue;
        }
        if (!byte_array(&r, s->bytes + used, len - used, &n)) {
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
    if (!all_keys(&r, keys, G_N_ELEMENTS(keys), seen)) {
        return false;
    }
    for (uint64_t i = 1; i < outer.value; i++) {
        if (!skip_item(&r)) {
            return false;
        }
    }
    return at_end(&r);
}

static bool parse_protected(EifSignature *s, EifError *err)
{
    Reader r = { .name = "protected header of the COSE_Sign1",
                 .buf = s->protected_hdr, .len = s->protected_len,
                 .err = err };
    Item map, key, value;
    bool found = false;

    if (!expect(&r, ITEM_MAP, &map)) {
        return false;
    }
    for (uint64_t i = 0; i < map.value; i++) {
        size_t start = r.pos;

        if (!next_item(&r, &key)) {
            return false;
        }
        if (key.kind != ITEM_UINT || key.value != COSE_LABEL_ALG) {
            r.pos = start;
            if (!skip_item(&r) || !skip_item(&r)) {
                return false;
            }
            continue;
        }
        if (found) {
            return malformed(&r, "a key comes twice");
        }
        found = true;
        if (!expect(&r, ITEM_NEGINT, &value)) {
            return false;
        }
        /* -7, -35, -36 are 6, 34, 35 on the wire. */
        if (value.value != 6 && value.value != 34 && value.value != 35) {
            return malformed(&r, "the algorithm is none of ES256 (-7), ES384"
                             " (-35) and ES512 (-36)");
        }
        s->alg = -1 - (int)value.value;
    }
    if (!found) {
        return malformed(&r, "no algorithm (label 1)");
    }
    return at_end(&r);
}

static bool parse_payload(EifSignature *s, EifError *err)
{
    static const char *const keys[] = { "register_index", "register_value" };
    Reader r = { .name = "payload of the COSE_Sign1", .buf = s->payload,
                 .len = s->payload_len, .err = err };
    unsigned seen = 0;
    Item map, item;

    if (!expect(&r, ITEM_MAP, &map)) {
        return false;
    }
    for (uint64_t i = 0; i < map.value; i++) {
        size_t n;
        int key;

        if (!next_key(&r, keys, G_N_ELEMENTS(keys), &seen, &key)) {
            return false;
        }
        if (key == 0) {
            if (!expect(&r, ITEM_UINT, &item)) {
                return false;
            }
            s->register_index = item.value;
        } else if (key == 1) {
            if (!byte_array(&r, s->register_value, EIF_DIGEST_SIZE, &n)) {
                return false;
            }
            if (n != EIF_DIGEST_SIZE) {
                return malformed(&r, "the register's value has not 48 bytes");
            }
        }
    }
    return all_keys(&r, keys, G_N_ELEMENTS(keys), seen) && at_end(&r);
}

bool eif_signature_cose(EifSignature *s, EifError *err)
{
    Reader r = { .name = "COSE_Sign1 of the signature section",
                 .buf = s->cose, .len = s->cose_len, .err = err };
    Item item;
    size_t start;

    if (!next_item(&r, &item)) {
        return false;
    }
    if (item.kind == ITEM_TAG) {
        if (item.value != COSE_TAG_SIGN1) {
            return malformed(&r, "the tag is not that of COSE_Sign1 (18)");
        }
    } else {
        r.pos = 0;
    }
    if (!expect(&r, ITEM_ARRAY, &item)) {
        return false;
    }
    if (item.value != 4) {
        return malformed(&r, "the array has not 4 elements");
    }
    if (!expect(&r, ITEM_BYTES, &item)) {
        return false;
    }
    s->protected_hdr = item.data;
    s->protected_len = item.value;
    start = r.pos;
    if (!expect(&r, ITEM_MAP, &item)) {
        return false;
    }
    r.pos = start;
    if (!skip_item(&r) || !expect(&r, ITEM_BYTES, &item)) {
        return false;
    }
    s->payload = item.data;
    s->payload_len = item.value;
    if (!expect(&r, ITEM_BYTES, &item)) {
        return false;
    }
    s->raw = item.data;
    s->raw_len = item.value;
    return at_end(&r) && parse_protected(s, err) && parse_payload(s, err);
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
