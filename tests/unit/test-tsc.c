/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of the TSC's measurement
 *
 * Over a host of our own making, whose counter and clock agree and which keeps
 * the process from running when a test says so.
 */
#include <glib.h>

#include "nitro/tsc.h"

#define KHZ 2345678
#define NS_PER_S 1000000000LL

typedef struct Host {
    int64_t now;                /* in ns */
    int64_t step;               /* what a reading of a clock takes */
    unsigned reading;           /* how many there were */
    unsigned first, last;       /* during these readings ... */
    int64_t stop;               /* ... the process stops for so long */
    unsigned every;             /* and, at each so many-th, for 4 ms */
    double rate;                /* of the counter; negative: backwards */
} Host;

static void pass(Host *h)
{
    h->now += h->step;
    h->reading++;
    if (h->reading >= h->first && h->reading <= h->last) {
        h->now += h->stop;
    }
    if (h->every && h->reading % h->every == 0) {
        h->now += 4 * NS_PER_S / 1000;
    }
}

static int64_t host_ns(void *opaque)
{
    Host *h = opaque;

    pass(h);
    return h->now;
}

static int64_t host_ticks(void *opaque)
{
    Host *h = opaque;

    pass(h);
    return h->now * h->rate;
}

static uint32_t measure(Host h)
{
    const NitroTscClocks clocks = { host_ns, host_ticks, &h };

    h.now = 123 * NS_PER_S;
    h.step = h.step ?: 40;
    h.rate = h.rate ?: KHZ / 1e6;
    return nitro_tsc_khz(&clocks);
}

/* 50 ms in five minutes are 166 parts in a million; ten are left for this. */
static void check_khz(uint32_t khz)
{
    g_assert_cmpuint(khz, >=, KHZ - KHZ / 100000);
    g_assert_cmpuint(khz, <=, KHZ + KHZ / 100000);
}

static void test_quiet(void)
{
    check_khz(measure((Host) { 0 }));
    check_khz(measure((Host) { .step = 1000 }));
}

/* A stop of 2^32 ns, to the nanosecond and around it. */
static void test_stopped(void)
{
    /* What is left to reach it depends on when in the window it comes. */
    for (int64_t ms = 0; ms <= 20; ms++) {
        for (int64_t more = -40; more <= 40; more++) {
            check_khz(measure((Host) { .first = 60, .last = 60, .stop =
                                       (1LL << 32) - ms * 1000000 + more }));
        }
    }
    check_khz(measure((Host) { .first = 60, .last = 60,
                               .stop = 3600 * NS_PER_S }));
}

/* Another process runs in between, wherever that hits. */
static void test_preempted(void)
{
    for (unsigned at = 1; at < 200; at++) {
        check_khz(measure((Host) { .first = at, .last = at,
                                   .stop = 10 * NS_PER_S / 1000 }));
    }
    for (unsigned every = 4; every < 100; every++) {
        check_khz(measure((Host) { .every = every }));
    }
}

static void test_no_frequency(void)
{
    g_assert_cmpuint(measure((Host) { .rate = 0.000000000001 }), ==, 0);
    g_assert_cmpuint(measure((Host) { .rate = -1 }), ==, 0);
    g_assert_cmpuint(measure((Host) { .rate = 5000 }), ==, 0);
}

static int64_t always_one(void *opaque)
{
    return 1;
}

static void test_clock_stands_still(void)
{
    const NitroTscClocks clocks = { always_one, always_one, NULL };

    g_assert_cmpuint(nitro_tsc_khz(&clocks), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/tsc/quiet", test_quiet);
    g_test_add_func("/tsc/stopped", test_stopped);
    g_test_add_func("/tsc/preempted", test_preempted);
    g_test_add_func("/tsc/no-frequency", test_no_frequency);
    g_test_add_func("/tsc/clock-stands-still", test_clock_stands_still);
    return g_test_run();
}
