/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: an EIF's signature section, from its envelope to the verdict
 *
 * Alone it is tried far more often than fuzz-eif, whose inputs are whole
 * images, gets to it.
 */
#include <glib.h>

#include "nitro/eif.h"
#include "target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t pcr0[EIF_DIGEST_SIZE];
    EifSignature s = { 0 };
    EifError err = { 0 };

    if (size > EIF_SIGNATURE_MAX) {
        return 0;
    }
    if (eif_signature_parse(&s, data, size, &err)) {
        /* Each may fail, and the other is looked at all the same. */
        bool cose = eif_signature_cose(&s, &err);
        bool certificate = eif_signature_certificate(&s, &err);

        if (cose && certificate) {
            eif_signature_verify(&s, pcr0, 1700000000, &err);
            eif_signature_verify(&s, s.register_value, s.not_before, &err);
        }
    }
    eif_signature_clear(&s);
    return 0;
}
