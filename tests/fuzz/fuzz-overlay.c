/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: overlays
 *
 * Input: a byte that says how the rest is cut into pieces, and an overlay.
 * Beyond not crashing, it checks that the verdict does not depend on the cuts,
 * that a refusal says why, and that what was accepted has what Linux looks for.
 */
#include <stdlib.h>
#include <string.h>

#include "../../hw/core/eif/eif-overlay.h"
#include "target.h"

#define CHECK(claim)                                                    \
    do {                                                                \
        if (!(claim)) {                                                 \
            abort();                                                    \
        }                                                               \
    } while (0)

static bool judge(const uint8_t *data, size_t size, size_t piece,
                  EifError *err)
{
    EifOverlay o = { 0 };

    while (size) {
        size_t n = MIN(piece, size);
        /* Of its own, so that a byte too many is seen. */
        g_autofree uint8_t *copy = g_memdup2(data, n);

        if (!eif_overlay_feed(&o, copy, n, err)) {
            return false;
        }
        data += n;
        size -= n;
    }
    return eif_overlay_end(&o, err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    EifError whole = { 0 }, cut = { 0 };
    bool good;

    if (!size) {
        return 0;
    }
    good = judge(data + 1, size - 1, size, &whole);
    CHECK(judge(data + 1, size - 1, 1 + data[0] % 128, &cut) == good);
    if (good) {
        CHECK((size - 1) % 4 == 0);
        CHECK(memmem(data + 1, size - 1, "070701", 6));
        CHECK(memmem(data + 1, size - 1, "TRAILER!!!", 11));
    } else {
        CHECK(whole.rule == EIF_ERR_OVERLAY_NOT_CPIO ||
              whole.rule == EIF_ERR_OVERLAY_MISALIGNED);
        CHECK(whole.rule == cut.rule && !strcmp(whole.text, cut.text));
        CHECK(whole.text[0] && strlen(whole.text) < sizeof(whole.text) - 1);
    }
    return 0;
}
