/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * How fast this host's time stamp counter runs
 *
 * A core: plain C, for the board and for its unit test.
 */
#include "nitro/tsc.h"

#define WINDOW_NS (20 * 1000 * 1000)

/* Readings of both clocks; the quickest of so many tells them best. */
#define READINGS 16

typedef struct Sample {
    int64_t ns;
    int64_t ticks;
} Sample;

/*
 * Both clocks at one moment. The process may be kept from running between two
 * readings, for milliseconds on a busy host, which would be percents of the
 * window: so the counter is read between two looks at the clock, and the pair
 * of them that lies closest together counts.
 */
static Sample take_sample(const NitroTscClocks *clocks)
{
    Sample best = { 0 };
    int64_t best_took = INT64_MAX;

    for (int i = 0; i < READINGS; i++) {
        int64_t before = clocks->ns(clocks->opaque);
        int64_t ticks = clocks->ticks(clocks->opaque);
        int64_t took = clocks->ns(clocks->opaque) - before;

        if (took < best_took) {
            best_took = took;
            best.ns = before + took / 2;
            best.ticks = ticks;
        }
    }
    return best;
}

uint32_t nitro_tsc_khz(const NitroTscClocks *clocks)
{
    Sample begin = take_sample(clocks);
    Sample end;
    double khz;

    /* A clock that stands still must not keep us here. */
    for (int i = 0; i < WINDOW_NS; i++) {
        if (clocks->ns(clocks->opaque) - begin.ns >= WINDOW_NS) {
            break;
        }
    }
    end = take_sample(clocks);
    if (end.ns <= begin.ns || end.ticks <= begin.ticks) {
        return 0;
    }
    khz = (double)(end.ticks - begin.ticks) * 1e6 / (end.ns - begin.ns);
    return khz < UINT32_MAX ? (uint32_t)(khz + 0.5) : 0;
}
