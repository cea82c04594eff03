/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: certificates of a chain
 *
 * Input: a certificate in DER. Beyond not crashing, it checks that what was
 * accepted lies within the input, where it can, and that a refusal says why.
 */
#include <stdlib.h>
#include <string.h>

#include "../../hw/virtio/nsm/nsm-cert.h"
#include "target.h"

#define CHECK(claim)                                                    \
    do {                                                                \
        if (!(claim)) {                                                 \
            abort();                                                    \
        }                                                               \
    } while (0)

static bool within(NsmDer part, NsmDer whole)
{
    return part.data > whole.data && part.len > 0 &&
        part.len < whole.len &&
        (size_t)(part.data - whole.data) <= whole.len - part.len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const NsmDer input = { data, size };
    NsmCertFault fault;
    NsmCert cert;

    if (!nsm_cert_parse(&cert, data, size, &fault)) {
        size_t len = strnlen(fault.text, sizeof(fault.text));

        CHECK(len > 0 && len < sizeof(fault.text));
        return 0;
    }
    CHECK(within(cert.tbs, input));
    CHECK(within(cert.issuer, cert.tbs));
    CHECK(within(cert.subject, cert.tbs));
    CHECK(cert.issuer.data < cert.subject.data);
    /* The years 1 to 9999 */
    CHECK(cert.begin >= -62135596800 && cert.begin < 253402300800);
    CHECK(cert.end >= -62135596800 && cert.end < 253402300800);
    CHECK(cert.path_length >= -1 && cert.path_length <= 255);
    CHECK(cert.has_constraints || !cert.ca);
    CHECK(cert.has_usage || !cert.cert_sign);
    return 0;
}
