/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * How fast this host's time stamp counter runs
 *
 * Under TCG a guest reads the host's counter. Its kernel cannot find out how
 * fast that runs where the host is busy, so the board tells it. This is only
 * the measurement, over clocks that the caller brings; no QEMU.
 */
#ifndef NITRO_TSC_H
#define NITRO_TSC_H

#include <stdint.h>

typedef struct NitroTscClocks {
    int64_t (*ns)(void *opaque);        /* monotonic */
    int64_t (*ticks)(void *opaque);     /* the counter in question */
    void *opaque;
} NitroTscClocks;

/*
 * Measures for 20 ms, or longer if the process is kept from running, and
 * returns kHz. 0: the two clocks give no frequency, since one of them stands
 * still or goes back.
 */
uint32_t nitro_tsc_khz(const NitroTscClocks *clocks);

#endif /* NITRO_TSC_H */
