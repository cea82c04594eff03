/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM core: request decoder
 *
 * Turns hostile bytes into an NsmRequest. It accepts what a Rust peer with
 * serde_cbor accepts for the published request types:
 *
 *     request   = "Name" / a1 {"Name": fields} / ["Name", fields]
 *     fields    = map by name or by position number, or array by position;
 *                 null for an operation without fields
 *     bytes     = byte string, text, or array of 0..255; strings definite or
 *                 in chunks
 *     number    = unsigned integer of any width, at most 65535
 *
 * with tags ignored everywhere, unknown fields skipped, known ones at most
 * once. The outer map has to be the single byte a1.
 *
 * Tokens are read without allocation or recursion, and nothing here adds any.
 * Every token advances the position, so work is linear in the request's length.
 */
#include <string.h>
#include <glib.h>

#include "nitro/cbor-token.h"
#include "nsm-internal.h"

/* Tokens */

typedef struct Decoder {
    CborTokens in;
    uint8_t *scratch;
    size_t scratch_used;
} Decoder;

/* Valid UTF-8? Unlike for glib, U+0000 is a character like any other. */
static bool text_valid(const uint8_t *data, size_t len)
{
    const char *p = (const char *)data;
    const char *end = p + len;

    while (p < end && !g_utf8_validate_len(p, end - p, &p)) {
        if (*p != '\0') {
            return false;
        }
        p++;
    }
    return true;
}

/* The next token as it stands; false: truncated or not CBOR. */
static bool next_token(Decoder *d, CborToken *t)
{
    return cbor_token_next(&d->in, t) == TOKEN_READ &&
           (t->kind != TOKEN_TEXT || text_valid(t->data, t->value));
}

/* The next token that is not a tag. A tag has to stand before an item. */
static bool next(Decoder *d, CborToken *t)
{
    bool tagged = false;

    while (next_token(d, t)) {
        if (t->kind != TOKEN_TAG) {
            return !tagged || t->kind != TOKEN_BREAK;
        }
        tagged = true;
    }
    return false;
}

/*
 * The next chunk of a chunked string: 1 with its bytes in @t, 0 at its end, -1
 * when malformed. Chunks are whole strings of the same kind, without tags.
 */
static int next_chunk(Decoder *d, CborTokenKind chunked, CborToken *t)
{
    CborTokenKind whole;

    if (!next_token(d, t)) {
        return -1;
    }
    if (t->kind == TOKEN_BREAK) {
        return 0;
    }
    whole = chunked == TOKEN_BYTES_CHUNKED ? TOKEN_BYTES : TOKEN_TEXT;
    return t->kind == whole ? 1 : -1;
}

/* Skipping */

typedef struct Container {
    bool open;
    bool map;
    size_t n;           /* items to come; of an open one: items seen */
} Container;

/* The end of a chunked string, of which @chunked is the beginning */
static bool skip_chunks(Decoder *d, CborTokenKind chunked)
{
    CborToken chunk;
    int more;

    do {
        more = next_chunk(d, chunked, &chunk);
    } while (more > 0);
    return more == 0;
}

/* Does a break end the container that it stands in? */
static bool may_break(const Container *c)
{
    return c->open && !(c->map && c->n % 2);
}

static void container_open(Container *c, const CborToken *t)
{
    c->open = t->kind == TOKEN_ARRAY_OPEN || t->kind == TOKEN_MAP_OPEN;
    c->map = t->kind == TOKEN_MAP || t->kind == TOKEN_MAP_OPEN;
    c->n = c->map ? 2 * t->value : t->value;
}

/* Moves past the item that starts with @t, itself @depth containers deep. */
static bool skip(Decoder *d, CborToken t, unsigned depth)
{
    Container stack[NSM_DEPTH_MAX], *inner;
    unsigned used = 0;

    for (;;) {
        switch (t.kind) {
        case TOKEN_BREAK:
            if (!used || !may_break(&stack[used - 1])) {
                return false;
            }
            used--;
            break;
        case TOKEN_BYTES_CHUNKED:
        case TOKEN_TEXT_CHUNKED:
            if (!skip_chunks(d, t.kind)) {
                return false;
            }
            break;
        case TOKEN_ARRAY:
        case TOKEN_MAP:
        case TOKEN_ARRAY_OPEN:
        case TOKEN_MAP_OPEN:
            /* No item is shorter than a byte, which also makes 2 * n safe. */
            if (depth + used >= NSM_DEPTH_MAX ||
                t.value > d->in.len - d->in.pos) {
                return false;
            }
            container_open(&stack[used++], &t);
            break;
        default:
            break;
        }

        /* An item has ended, and with it the containers that it was last in. */
        while (used && !stack[used - 1].open && stack[used - 1].n == 0) {
            used--;
        }
        if (!used) {
            return true;
        }
        if (!next(d, &t)) {
            return false;
        }
        inner = &stack[used - 1];
        if (!inner->open) {
            inner->n--;
        } else if (t.kind != TOKEN_BREAK) {
            inner->n++;
        }
    }
}

/* Is the whole input one CBOR item? */
static bool well_formed(const uint8_t *buf, size_t len)
{
    Decoder d = { .in = { .buf = buf, .len = len } };
    CborToken t;

    return next(&d, &t) && skip(&d, t, 0) && d.in.pos == d.in.len;
}

/*
 * Values. The readers below answer false for a wrong type as for malformed
 * input; nsm_request_decode() tells the two apart, once, when one failed.
 */

typedef struct Series {
    bool open;
    uint64_t left;
} Series;

static Series series(const CborToken *t)
{
    return (Series) {
        .open = t->kind == TOKEN_ARRAY_OPEN || t->kind == TOKEN_MAP_OPEN,
        .left = t->value,
    };
}

/* First token of the series' next item or key: 1, at its end: 0, else -1. */
static int series_next(Decoder *d, Series *s, CborToken *t)
{
    if (!s->open) {
        if (s->left == 0) {
            return 0;
        }
        s->left--;
    }
    if (!next(d, t)) {
        return -1;
    }
    if (t->kind == TOKEN_BREAK) {
        return s->open ? 0 : -1;
    }
    return 1;
}

static bool gather(Decoder *d, NsmSpan *out, const uint8_t *data, size_t len)
{
    /* Every byte here was at least one in the request: it always fits. */
    if (len > NSM_REQUEST_MAX - d->scratch_used) {
        return false;
    }
    memcpy(d->scratch + d->scratch_used, data, len);
    d->scratch_used += len;
    out->len += len;
    return true;
}

/* A string of either kind that starts with @t. */
static bool read_string(Decoder *d, const CborToken *t, NsmSpan *out)
{
    CborToken chunk;
    int more;

    switch (t->kind) {
    case TOKEN_BYTES:
    case TOKEN_TEXT:
        *out = (NsmSpan) { .data = t->data, .len = t->value };
        return true;
    case TOKEN_BYTES_CHUNKED:
    case TOKEN_TEXT_CHUNKED:
        *out = (NsmSpan) { .data = d->scratch + d->scratch_used };
        while ((more = next_chunk(d, t->kind, &chunk)) > 0) {
            if (!gather(d, out, chunk.data, chunk.value)) {
                return false;
            }
        }
        return more == 0;
    default:
        return false;
    }
}

/* Byte data that starts with @t: a string, or an array of small integers. */
static bool read_bytes(Decoder *d, const CborToken *t, NsmSpan *out)
{
    Series s = series(t);
    CborToken item;
    int more;

    if (t->kind != TOKEN_ARRAY && t->kind != TOKEN_ARRAY_OPEN) {
        return read_string(d, t, out);
    }
    *out = (NsmSpan) { .data = d->scratch + d->scratch_used };
    while ((more = series_next(d, &s, &item)) > 0) {
        uint8_t byte = item.value;

        if (item.kind != TOKEN_UINT || item.value > UINT8_MAX ||
            !gather(d, out, &byte, 1)) {
            return false;
        }
    }
    return more == 0;
}

/* Requests */

typedef enum FieldType {
    FIELD_NUMBER,
    FIELD_DATA,
    FIELD_OPTIONAL_DATA,
} FieldType;

typedef struct Field {
    const char *name;
    FieldType type;
} Field;

typedef struct Operation {
    const char *name;
    unsigned fields;
    Field field[NSM_FIELDS_MAX];        /* in the order of positional forms */
} Operation;

static const Operation operations[NSM_OP_COUNT] = {
    [NSM_OP_NONE] = { .name = "-" },
    [NSM_OP_DESCRIBE_NSM] = { .name = "DescribeNSM" },
    [NSM_OP_DESCRIBE_PCR] = {
        .name = "DescribePCR", .fields = 1,
        .field = { { "index", FIELD_NUMBER } },
    },
    [NSM_OP_EXTEND_PCR] = {
        .name = "ExtendPCR", .fields = 2,
        .field = { { "index", FIELD_NUMBER }, { "data", FIELD_DATA } },
    },
    [NSM_OP_LOCK_PCR] = {
        .name = "LockPCR", .fields = 1,
        .field = { { "index", FIELD_NUMBER } },
    },
    [NSM_OP_LOCK_PCRS] = {
        .name = "LockPCRs", .fields = 1,
        .field = { { "range", FIELD_NUMBER } },
    },
    [NSM_OP_ATTESTATION] = {
        .name = "Attestation", .fields = 3,
        .field = {
            { "user_data", FIELD_OPTIONAL_DATA },
            { "nonce", FIELD_OPTIONAL_DATA },
            { "public_key", FIELD_OPTIONAL_DATA },
        },
    },
    [NSM_OP_GET_RANDOM] = { .name = "GetRandom" },
};

const char *nsm_op_name(NsmOp op)
{
    return operations[op < NSM_OP_COUNT ? op : NSM_OP_NONE].name;
}

static bool span_is(const NsmSpan *span, const char *name)
{
    return span->len == strlen(name) && !memcmp(span->data, name, span->len);
}

static NsmOp find_operation(const NsmSpan *name)
{
    for (NsmOp op = NSM_OP_NONE + 1; op < NSM_OP_COUNT; op++) {
        if (span_is(name, operations[op].name)) {
            return op;
        }
    }
    return NSM_OP_NONE;
}

static bool read_field(Decoder *d, NsmRequest *req, unsigned i,
                       const CborToken *t)
{
    switch (operations[req->op].field[i].type) {
    case FIELD_NUMBER:
        if (t->kind != TOKEN_UINT || t->value > UINT16_MAX) {
            return false;
        }
        req->number = t->value;
        return true;
    case FIELD_OPTIONAL_DATA:
        if (t->kind == TOKEN_NULL) {
            return true;
        }
        /* fall through */
    case FIELD_DATA:
        return read_bytes(d, t, &req->span[i]);
    }
    return false;
}

/*
 * Which field the map key that starts with @t means: by name, or by position.
 * The number of fields stands for one that we do not know.
 */
static bool read_key(Decoder *d, const Operation *op, const CborToken *t,
                     unsigned *field)
{
    size_t scratch_used = d->scratch_used;
    NsmSpan name;
    unsigned i;

    if (t->kind == TOKEN_UINT) {
        *field = MIN(t->value, op->fields);
        return true;
    }
    if (!read_string(d, t, &name)) {
        return false;
    }
    for (i = 0; i < op->fields && !span_is(&name, op->field[i].name); i++) {
        continue;
    }
    *field = i;
    d->scratch_used = scratch_used;
    return true;
}

static bool read_fields_map(Decoder *d, NsmRequest *req, const CborToken *t,
                            unsigned depth)
{
    const Operation *op = &operations[req->op];
    bool seen[NSM_FIELDS_MAX] = { false };
    Series s = series(t);
    CborToken key, value;
    unsigned i;
    int more;

    while ((more = series_next(d, &s, &key)) > 0) {
        if (!read_key(d, op, &key, &i) || !next(d, &value)) {
            return false;
        }
        if (i == op->fields) {
            if (value.kind == TOKEN_BREAK || !skip(d, value, depth + 1)) {
                return false;
            }
            continue;
        }
        if (seen[i] || !read_field(d, req, i, &value)) {
            return false;
        }
        seen[i] = true;
    }
    for (i = 0; i < op->fields; i++) {
        if (!seen[i] && op->field[i].type != FIELD_OPTIONAL_DATA) {
            return false;
        }
    }
    return more == 0;
}

/* An array of fields has all of them, and nothing else. */
static bool read_fields_array(Decoder *d, NsmRequest *req, const CborToken *t)
{
    Series s = series(t);
    CborToken value;

    for (unsigned i = 0; i < operations[req->op].fields; i++) {
        if (series_next(d, &s, &value) <= 0 ||
            !read_field(d, req, i, &value)) {
            return false;
        }
    }
    return series_next(d, &s, &value) == 0;
}

/* What follows the operation's name, which is one container deep. */
static bool read_arguments(Decoder *d, NsmRequest *req, const CborToken *t)
{
    if (operations[req->op].fields == 0) {
        return t->kind == TOKEN_NULL;
    }
    switch (t->kind) {
    case TOKEN_MAP:
    case TOKEN_MAP_OPEN:
        return read_fields_map(d, req, t, 1);
    case TOKEN_ARRAY:
    case TOKEN_ARRAY_OPEN:
        return read_fields_array(d, req, t);
    default:
        return false;
    }
}

/*
 * The array form. Here an operation without fields has no arguments at all,
 * not even null.
 */
static bool read_array_form(Decoder *d, NsmRequest *req, Series *s)
{
    CborToken t;

    if (operations[req->op].fields > 0 &&
        (series_next(d, s, &t) <= 0 || !read_arguments(d, req, &t))) {
        return false;
    }
    return series_next(d, s, &t) == 0;
}

NsmCode nsm_request_decode(NsmRequest *req, const uint8_t *buf, size_t len)
{
    Decoder d = {
        .in = { .buf = buf, .len = len },
        .scratch = req->scratch,
    };
    CborToken outer, t;
    Series s;
    NsmSpan name;
    bool good;

    req->op = NSM_OP_NONE;
    req->number = 0;
    memset(req->span, 0, sizeof(req->span));

    if (!next(&d, &outer)) {
        return NSM_INVALID_OPERATION;
    }
    t = outer;
    s = series(&outer);
    switch (outer.kind) {
    case TOKEN_MAP:
        /* Of all heads that say 1, only the shortest ends in this byte. */
        if (outer.value != 1 || buf[d.in.pos - 1] != 0xa1 || !next(&d, &t)) {
            return NSM_INVALID_OPERATION;
        }
        break;
    case TOKEN_ARRAY:
    case TOKEN_ARRAY_OPEN:
        if (series_next(&d, &s, &t) <= 0) {
            return NSM_INVALID_OPERATION;
        }
        break;
    case TOKEN_MAP_OPEN:
        return NSM_INVALID_OPERATION;
    default:
        break;
    }
    if (!read_string(&d, &t, &name)) {
        return NSM_INVALID_OPERATION;
    }
    d.scratch_used = 0;
    req->op = find_operation(&name);
    if (req->op == NSM_OP_NONE) {
        return NSM_INVALID_OPERATION;
    }

    if (outer.kind == TOKEN_MAP) {
        good = next(&d, &t) && read_arguments(&d, req, &t);
    } else if (outer.kind == TOKEN_ARRAY || outer.kind == TOKEN_ARRAY_OPEN) {
        good = read_array_form(&d, req, &s);
    } else {
        good = operations[req->op].fields == 0;
    }
    if (good && d.in.pos == d.in.len) {
        return NSM_SUCCESS;
    }
    return well_formed(buf, len) ? NSM_INVALID_ARGUMENT : NSM_INVALID_OPERATION;
}
