/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: EIF files and signature sections.
 *
 * The input goes through the whole pipeline as it is; then with its CRC put
 * right, since no mutation would ever guess that; then as the data of a
 * signature section; and as the PEM text of a certificate.  Beyond not
 * crashing: a refusal has a rule and a text, the file rules pass whatever all
 * rules pass, and the lenient policy differs from the strict one in the
 * signature alone.
 */

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "nitro/eif.h"
#include "target.h"

#define NOW     1750000000
#define LOWMEM  (256 * 1024 * 1024)

#define CHECK(claim)                                                    \
    do {                                                                \
        if (!(claim)) {                                                 \
            abort();                                                    \
        }                                                               \
    } while (0)

static bool check(const uint8_t *data, size_t size, bool file_rules_only,
                  EifSignaturePolicy policy, EifRule *rule, EifRule *warned)
{
    EifOptions opt = {
        .signature = policy,
        .now = NOW,
        .file_rules_only = file_rules_only,
        .lowmem = LOWMEM,
    };
    EifMeasurements m;
    EifError warning, err = { EIF_OK, "" };
    bool ok = eif_check(data, size, &opt, &m, &warning, &err);

    CHECK(ok == (err.rule == EIF_OK));
    CHECK(ok || err.rule < EIF_RULE_COUNT);
    CHECK(ok || (err.text[0] && memchr(err.text, 0, sizeof(err.text))));
    *rule = err.rule;
    *warned = ok ? warning.rule : EIF_OK;
    return ok;
}

static void file(const uint8_t *data, size_t size)
{
    EifRule all, file_only, lenient, warned, none;
    bool ok = check(data, size, false, EIF_SIGNATURE_VERIFY, &all, &none);

    CHECK(none == EIF_OK);
    check(data, size, true, EIF_SIGNATURE_VERIFY, &file_only, &none);
    CHECK(!ok || file_only == EIF_OK);
    check(data, size, false, EIF_SIGNATURE_IGNORE, &lenient, &warned);
    if (lenient == EIF_OK) {
        CHECK(warned == all);
    } else {
        CHECK(lenient == all);
    }
}

static void with_crc(const uint8_t *data, size_t size)
{
    uint8_t *copy;
    uint32_t crc;

    if (size < EIF_HEADER_SIZE) {
        return;
    }
    crc = crc32(0, data, EIF_CRC_OFFSET);
    crc = crc32(crc, data + EIF_CRC_OFFSET + 4, size - EIF_CRC_OFFSET - 4);
    copy = malloc(size);
    CHECK(copy);
    memcpy(copy, data, size);
    for (int i = 0; i < 4; i++) {
        copy[EIF_CRC_OFFSET + i] = (uint8_t)(crc >> (24 - 8 * i));
    }
    file(copy, size);
    free(copy);
}

static void signature(const uint8_t *data, size_t size)
{
    uint8_t pcr0[EIF_DIGEST_SIZE] = { 0 };
    EifSignature s;
    EifError err;

    if (eif_signature_parse(&s, data, size, &err) &&
        eif_signature_cose(&s, &err) &&
        eif_signature_certificate(&s, &err)) {
        /* Over the value that it names itself, which is the longest way. */
        memcpy(pcr0, s.register_value, sizeof(pcr0));
        eif_signature_verify(&s, pcr0, NOW, &err);
    }
    eif_signature_clear(&s);
}

/* A certificate lies in its text, and its key in the certificate. */
static void certificate(const uint8_t *data, size_t size)
{
    EifSignature s = { .pem = data, .pem_len = size };
    EifError err = { EIF_OK, "" };

    if (eif_signature_certificate(&s, &err)) {
        CHECK(s.der_len > 0 && s.der_len < size);
        CHECK(s.point > s.der && s.point < s.der + s.der_len);
    } else {
        CHECK(err.rule == EIF_ERR_SIGNATURE_CERTIFICATE && err.text[0]);
    }
    eif_signature_clear(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    file(data, size);
    with_crc(data, size);
    signature(data, size);
    certificate(data, size);
    return 0;
}
