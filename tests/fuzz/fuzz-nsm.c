/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: NSM requests
 *
 * Input: one byte that picks the answer buffer's size, then a request. Beyond
 * not crashing, it checks what holds for every request: the answer is one CBOR
 * item and fits, an error changes nothing, locked registers stand still,
 * and what was accepted is well-formed CBOR.
 */
#include <stdlib.h>
#include <string.h>
#include <cbor.h>

#include "nitro/nsm.h"
#include "target.h"

#define CHECK(claim)                                                    \
    do {                                                                \
        if (!(claim)) {                                                 \
            abort();                                                    \
        }                                                               \
    } while (0)

/* A document of the request's fields, so that their bytes are all read */
static NsmCode document(void *opaque, const NsmState *state,
                        const NsmAttestRequest *request,
                        uint8_t *buf, size_t cap, size_t *len,
                        const char **reason)
{
    const NsmSpan *spans[] = {
        &request->user_data, &request->nonce, &request->public_key,
    };

    *len = 0;
    for (int i = 0; i < 3; i++) {
        CHECK(spans[i]->data || spans[i]->len == 0);
        if (spans[i]->len > cap - *len) {
            return NSM_BUFFER_TOO_SMALL;
        }
        if (spans[i]->len > 0) {
            memcpy(buf + *len, spans[i]->data, spans[i]->len);
        }
        *len += spans[i]->len;
    }
    return NSM_SUCCESS;
}

static bool random_bytes(void *opaque, uint8_t *buf, size_t len)
{
    memset(buf, 0x5a, len);
    return true;
}

static bool one_item(const uint8_t *data, size_t len)
{
    struct cbor_load_result result;
    cbor_item_t *item = cbor_load(data, len, &result);

    if (!item) {
        return false;
    }
    cbor_decref(&item);
    return result.read == len;
}

/*
 * RFC 8949, appendix C. libcbor's own answer is no where it does not know what
 * a tag or a simple value is for.
 */

typedef struct Input {
    const uint8_t *p;
    const uint8_t *end;
} Input;

enum {
    MALFORMED = -1,
    MAJOR_BYTES = 2,
    MAJOR_TEXT,
    MAJOR_ARRAY,
    MAJOR_MAP,
    MAJOR_TAG,
    MAJOR_SIMPLE,
    INDEFINITE = 8,
    BREAK,
};

static int well_formed(Input *in, bool breakable);

static int well_formed_indefinite(Input *in, int major, bool breakable)
{
    int kind;

    switch (major) {
    case MAJOR_BYTES:
    case MAJOR_TEXT:
        while ((kind = well_formed(in, true)) != BREAK) {
            if (kind != major) {
                return MALFORMED;
            }
        }
        return INDEFINITE;
    case MAJOR_ARRAY:
    case MAJOR_MAP:
        while ((kind = well_formed(in, true)) != BREAK) {
            if (kind == MALFORMED ||
                (major == MAJOR_MAP && well_formed(in, false) == MALFORMED)) {
                return MALFORMED;
            }
        }
        return INDEFINITE;
    case MAJOR_SIMPLE:
        return breakable ? BREAK : MALFORMED;
    default:
        return MALFORMED;
    }
}

/* Past one item: what it is. Recurses at most once for a byte. */
static int well_formed(Input *in, bool breakable)
{
    uint64_t n, items = 0;
    int major, info;

    if (in->p == in->end) {
        return MALFORMED;
    }
    major = *in->p >> 5;
    info = *in->p++ & 0x1f;
    n = info;
    if (info == 31) {
        return well_formed_indefinite(in, major, breakable);
    }
    if (info > 27) {
        return MALFORMED;
    }
    if (info >= 24) {
        n = 0;
        for (int bytes = 1 << (info - 24); bytes > 0; bytes--) {
            if (in->p == in->end) {
                return MALFORMED;
            }
            n = n << 8 | *in->p++;
        }
    }
    if (major >= MAJOR_BYTES && major <= MAJOR_MAP &&
        n > (uint64_t)(in->end - in->p)) {
        return MALFORMED;
    }
    switch (major) {
    case MAJOR_BYTES:
    case MAJOR_TEXT:
        in->p += n;
        break;
    case MAJOR_ARRAY:
        items = n;
        break;
    case MAJOR_MAP:
        items = 2 * n;
        break;
    case MAJOR_TAG:
        items = 1;
        break;
    case MAJOR_SIMPLE:
        if (info == 24 && n < 32) {
            return MALFORMED;
        }
        break;
    default:
        break;
    }
    while (items--) {
        if (well_formed(in, false) == MALFORMED) {
            return MALFORMED;
        }
    }
    return major;
}

static bool one_well_formed(const uint8_t *data, size_t len)
{
    Input in = { .p = data, .end = data + len };

    return well_formed(&in, false) != MALFORMED && in.p == in.end;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    NsmState s, before;
    NsmResult info;
    uint8_t *req, *resp;
    size_t cap, len;

    if (size == 0) {
        return 0;
    }
    cap = data[0] < 128 ? NSM_RESPONSE_MAX : 3 * (data[0] - 128);
    data++;
    size--;

    /* Heap buffers of the exact size, for the sanitizers. */
    req = malloc(size);
    resp = malloc(cap);
    CHECK((req || size == 0) && (resp || cap == 0));
    if (size > 0) {
        memcpy(req, data, size);
    }

    nsm_init(&s, "i-0-enc0");
    CHECK(nsm_boot(&s, &(NsmBoot) { .parent_id = "i-0" }));
    nsm_set_random(&s, random_bytes, NULL);
    nsm_set_attest(&s, document, NULL);
    before = s;

    len = nsm_handle(&s, req, size, resp, cap, &info);
    CHECK(len <= cap);
    CHECK(len > 0 || cap < NSM_RESPONSE_MIN);
    CHECK(len == 0 || one_item(resp, len));
    CHECK((s.locked & before.locked) == before.locked);
    CHECK(!memcmp(s.pcr, before.pcr, NSM_PCR_PLATFORM * NSM_PCR_SIZE));
    if (info.code == NSM_SUCCESS) {
        CHECK(len > 0 && info.op != NSM_OP_NONE);
        CHECK(size <= NSM_REQUEST_MAX && one_well_formed(req, size));
    } else {
        CHECK(info.code != NSM_INTERNAL_ERROR);
        CHECK(!memcmp(&s, &before, sizeof(s)));
        CHECK(len == 0 || !memcmp(resp, "\xa1\x65" "Error", 7));
    }
    free(req);
    free(resp);
    return 0;
}
