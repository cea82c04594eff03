/*
 * SPDX-License-Identifier: MIT
 *
 * nsm-chain-verdict: what the NSM says of certificate chains
 *
 * For cross-checks with other readers: takes lines "CHAIN KEY SECONDS" of two
 * PEM files and a time, and answers each with the fault's name, or "ok".
 */
#include <stdio.h>
#include <glib.h>

#include "nitro/nsm-attest.h"

static int64_t fixed_clock(void *opaque)
{
    return *(gint64 *)opaque;
}

int main(void)
{
    char line[1024], chain[512], key[512];
    gint64 now;

    while (fgets(line, sizeof(line), stdin)) {
        NsmSignerOptions options = {
            .cert_chain = chain,
            .cert_key = key,
            .clock = fixed_clock,
            .clock_opaque = &now,
        };
        NsmSignerError err;

        if (sscanf(line, "%511s %511s %" G_GINT64_FORMAT, chain, key,
                   &now) != 3) {
            fprintf(stderr, "nsm-chain-verdict: not CHAIN KEY SECONDS: %s\n",
                    line);
            return 2;
        }
        now *= 1000;
        nsm_signer_free(nsm_signer_new(&options, "i-0-enc0000000000000001",
                                       &err));
        printf("%s\t%s\n", nsm_signer_fault_name(err.fault),
               err.fault == NSM_SIGNER_OK ? "" : err.text);
        fflush(stdout);
    }
    return 0;
}
