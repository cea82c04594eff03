/*
 * SPDX-License-Identifier: MIT
 *
 * When the vsock backend waits awake, and when it holds the guest's buffers:
 * a clock of the test's own, no waiting.
 */
#include "pace.h"

#include <glib.h>

static int64_t clock_us = 1000000;
static uint64_t bytes;

/* An event after so long, and the turn that deals with it. */
static void turn(struct pace *p, int64_t wait, bool spoke, bool passed,
                 uint64_t more)
{
    struct pace_turn t = { .began = clock_us + wait,
                           .ended = clock_us + wait + 3,
                           .spoke = spoke,
                           .passed = passed,
                           .bytes = bytes += more };

    pace_turn(p, &t);
    clock_us = t.ended;
}

static int64_t awake(struct pace *p)
{
    return pace_awake(p, clock_us);
}

static void test_brisk(void)
{
    struct pace p = { .can_wait_awake = true };

    g_assert_cmpint(awake(&p), ==, 0);
    turn(&p, 5000, true, false, 1);
    g_assert_cmpint(awake(&p), ==, 0);
    turn(&p, PACE_US_AWAKE - 1, false, true, 1);
    g_assert_cmpint(awake(&p), ==, PACE_US_AWAKE);
    /* What passes no packet does not begin the wait anew. */
    turn(&p, 47, false, false, 0);
    g_assert_cmpint(awake(&p), ==, PACE_US_AWAKE - 50);
    turn(&p, PACE_US_AWAKE, false, false, 0);
    g_assert_cmpint(awake(&p), ==, 0);

    p = (struct pace) { .can_wait_awake = false };
    turn(&p, 1, true, true, 1);
    turn(&p, 1, true, true, 1);
    g_assert_cmpint(awake(&p), ==, 0);
}

static void test_streams_sleep(void)
{
    struct pace p = { .can_wait_awake = true };

    turn(&p, 1, true, false, 0);
    turn(&p, 1, true, false, PACE_MESSAGE);
    g_assert_cmpint(awake(&p), >, 0);
    turn(&p, 1, true, false, PACE_MESSAGE + 1);
    g_assert_cmpint(awake(&p), ==, 0);
    /* Bytes that went without a packet, from a buffer, are of a stream too. */
    turn(&p, 1, true, false, 1);
    g_assert_cmpint(awake(&p), >, 0);
    turn(&p, 1, false, false, PACE_MESSAGE);
    turn(&p, 1, true, false, 1);
    g_assert_cmpint(awake(&p), ==, 0);
}

/* How many of so many waits begin awake, where each second one is in vain. */
static unsigned in_vain(struct pace *p, unsigned waits)
{
    unsigned n = 0;

    while (waits--) {
        turn(p, 1, true, false, 1);
        n += awake(p) > 0;
        turn(p, PACE_US_AWAKE + 1, true, false, 1);
    }
    return n;
}

static void test_vain_ones_are_paid_for(void)
{
    struct pace p = { .can_wait_awake = true };
    unsigned n;

    turn(&p, 1, true, false, 1);
    in_vain(&p, 1000);
    n = in_vain(&p, 100 * PACE_MAX_SLEEPS);
    /* One in so many waits is; here half of all could be. */
    g_assert_cmpuint(n, <=, 2 * 100 + 2);
    g_assert_cmpuint(n, >, 0);
    /* And it recovers: one that was not in vain, then half the price. */
    for (unsigned i = 0; i < 2 * PACE_MAX_SLEEPS; i++) {
        turn(&p, 1, true, false, 1);
        awake(&p);
    }
    g_assert_cmpint(awake(&p), >, 0);
}

static void test_holds(void)
{
    struct pace p = { 0 };

    g_assert_false(pace_holds(&p, clock_us));
    turn(&p, 0, true, false, 1);
    g_assert_false(pace_holds(&p, clock_us));
    turn(&p, PACE_US_HELD / 2, true, false, 1);
    g_assert_true(pace_holds(&p, clock_us));
    /* What goes to the guest neither ends nor prolongs it. */
    turn(&p, PACE_US_HELD / 2, false, true, 1);
    g_assert_true(pace_holds(&p, clock_us));
    turn(&p, PACE_US_HELD / 2, false, true, 1);
    g_assert_false(pace_holds(&p, clock_us));
    turn(&p, 0, true, false, 1);
    g_assert_false(pace_holds(&p, clock_us));
    turn(&p, 0, true, false, 1);
    g_assert_true(pace_holds(&p, clock_us));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/pace/brisk", test_brisk);
    g_test_add_func("/pace/streams-sleep", test_streams_sleep);
    g_test_add_func("/pace/vain", test_vain_ones_are_paid_for);
    g_test_add_func("/pace/holds", test_holds);
    return g_test_run();
}
