/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM core: the bank of platform configuration registers
 *
 * Values, locks, boot measurement. Who may extend what is decided where
 * requests are served (nsm-core.c), not here.
 */
#include <string.h>
#include <gnutls/gnutls.h>
#include <gnutls/crypto.h>

#include "nsm-internal.h"

bool nsm_pcr_digest(const NsmState *s, unsigned index,
                    const uint8_t *data, size_t len,
                    uint8_t out[NSM_PCR_SIZE])
{
    gnutls_hash_hd_t hash;
    int ret;

    if (gnutls_hash_init(&hash, GNUTLS_DIG_SHA384) < 0) {
        return false;
    }
    ret = gnutls_hash(hash, s->pcr[index], NSM_PCR_SIZE);
    if (ret >= 0 && len > 0) {
        ret = gnutls_hash(hash, data, len);
    }
    gnutls_hash_deinit(hash, out);
    return ret >= 0;
}

bool nsm_pcr_extend(NsmState *s, unsigned index,
                    const uint8_t *data, size_t len)
{
    uint8_t value[NSM_PCR_SIZE];

    if (!nsm_pcr_digest(s, index, data, len, value)) {
        return false;
    }
    memcpy(s->pcr[index], value, NSM_PCR_SIZE);
    return true;
}

void nsm_pcr_lock_below(NsmState *s, unsigned range)
{
    s->locked |= range >= NSM_PCR_COUNT ? UINT32_MAX : (1u << range) - 1;
}

/* The parent's role and id are hashed as they are: no inner digest, no NUL. */
static bool measure_text(NsmState *s, unsigned index, const char *text)
{
    return !text ||
        nsm_pcr_extend(s, index, (const uint8_t *)text, strlen(text));
}

bool nsm_boot(NsmState *s, const NsmBoot *boot)
{
    const struct {
        unsigned index;
        const uint8_t *value;
    } image[] = {
        { 0, boot->pcr0 }, { 1, boot->pcr1 }, { 2, boot->pcr2 },
        { 8, boot->pcr8 },
    };

    memset(s->pcr, 0, sizeof(s->pcr));
    s->locked = 0;
    for (size_t i = 0; i < sizeof(image) / sizeof(image[0]); i++) {
        if (image[i].value && !boot->debug) {
            memcpy(s->pcr[image[i].index], image[i].value, NSM_PCR_SIZE);
        }
    }
    if (!measure_text(s, 3, boot->parent_role) ||
        !measure_text(s, 4, boot->parent_id)) {
        return false;
    }
    nsm_pcr_lock_below(s, NSM_PCR_PLATFORM);
    return true;
}
