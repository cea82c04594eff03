/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * NSM core: which request a fault befalls, and a clock that is wrong
 */
#include "nitro/nsm-fault.h"

/* The @n-th number of the sequence SplitMix64 (Steele and others, 2014) */
static uint64_t number(uint64_t seed, uint64_t n)
{
    uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Takes one of @left, unless there is none. */
static bool take(uint32_t *left)
{
    if (*left == 0) {
        return false;
    }
    if (*left != NSM_FAULT_ALWAYS) {
        --*left;
    }
    return true;
}

NsmFate nsm_fault_decide(NsmFaults *f, NsmOp op)
{
    NsmFate fate = { .fails = false };

    f->requests++;
    if (f->die_after > 0) {
        fate.is_last = --f->die_after == 0;
    }
    if ((f->errors == 0 && f->delays == 0) ||
        (f->kind != NSM_OP_NONE && f->kind != op)) {
        return fate;
    }
    if (number(f->seed, f->seen++) % NSM_FAULT_RATE_ALL >= f->rate) {
        return fate;
    }
    fate.fails = take(&f->errors);
    if (take(&f->delays)) {
        fate.delay_ms = f->delay_ms;
    }
    if (fate.fails || fate.delay_ms > 0) {
        f->hits++;
    }
    return fate;
}

int64_t nsm_clock_offset(const NsmClock *c, int64_t host_ms)
{
    /* Below 2^63 for five centuries at full drift */
    return c->offset_ms + (host_ms - c->since_ms) * c->drift_ppm / 1000000;
}

int64_t nsm_clock_now(const NsmClock *c, int64_t host_ms)
{
    int64_t now = host_ms + nsm_clock_offset(c, host_ms);

    return now > 0 ? now : 0;
}

void nsm_clock_set_offset(NsmClock *c, int64_t host_ms, int64_t offset_ms)
{
    c->offset_ms = offset_ms;
    c->since_ms = host_ms;
}

void nsm_clock_set_drift(NsmClock *c, int64_t host_ms, int32_t drift_ppm)
{
    nsm_clock_set_offset(c, host_ms, nsm_clock_offset(c, host_ms));
    c->drift_ppm = drift_ppm;
}
