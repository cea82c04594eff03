/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Faults of an NSM, for tests of the programs that use it
 *
 * What shall go wrong is data here, and deciding which request it befalls is
 * arithmetic: no time, no randomness but the seed's, no QEMU. An NSM without
 * faults, all of this zero but the rate, behaves as if this were not there.
 * How a user sets it, and what a request then suffers, is the device's.
 */
#ifndef NITRO_NSM_FAULT_H
#define NITRO_NSM_FAULT_H

#include "nitro/nsm.h"

/* A count of requests that has no end */
#define NSM_FAULT_ALWAYS UINT32_MAX

/* NsmFaults.rate: every request */
#define NSM_FAULT_RATE_ALL 1000

typedef struct NsmFaults {
    /*
     * Which requests: of one kind (NSM_OP_NONE: of any), and of these by
     * chance so many in a thousand, always the same ones for a seed.
     */
    NsmOp kind;
    uint32_t rate;
    uint64_t seed;
    /* What they suffer: so many more are answered with InternalError, */
    uint32_t errors;
    /* and so many more answered late. */
    uint32_t delays;
    uint32_t delay_ms;
    /* The enclave dies once it has had so many more answers; 0: it does not. */
    uint32_t die_after;

    /*
     * Requests of the kind while there was a fault for it. Who sets kind, rate
     * or seed begins again with 0.
     */
    uint64_t seen;
    uint64_t requests;          /* of any kind, ever */
    uint64_t hits;              /* of these, with a fault */
} NsmFaults;

/* What one request suffers. */
typedef struct NsmFate {
    bool fails;
    uint32_t delay_ms;
    bool is_last;               /* the enclave dies with its answer */
} NsmFate;

/* nsm_fault_decide: the fate of the next request, an @op; counts it. */
NsmFate nsm_fault_decide(NsmFaults *f, NsmOp op);

/* A clock that is off by @offset_ms, and by @drift_ppm more as time goes by. */
typedef struct NsmClock {
    int64_t offset_ms;          /* as it was at @since_ms */
    int64_t since_ms;
    int32_t drift_ppm;
} NsmClock;

#define NSM_CLOCK_OFFSET_MAX (100LL * 365 * 24 * 3600 * 1000)
#define NSM_CLOCK_DRIFT_MAX 500000

/* All times in ms since 1970; @host_ms is the right one. */
int64_t nsm_clock_offset(const NsmClock *c, int64_t host_ms);
int64_t nsm_clock_now(const NsmClock *c, int64_t host_ms);
void nsm_clock_set_offset(NsmClock *c, int64_t host_ms, int64_t offset_ms);
/* The clock goes on from where it is. */
void nsm_clock_set_drift(NsmClock *c, int64_t host_ms, int32_t drift_ppm);

#endif /* NITRO_NSM_FAULT_H */
