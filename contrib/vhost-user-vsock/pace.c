/*
 * SPDX-License-Identifier: MIT
 *
 * pace.c: how the serving loop waits. A moment awake in vain is paid for by
 * waits asleep, twice as many each time, and half as many after one that was
 * not.
 */

#include "pace.h"

int64_t pace_awake(struct pace *p, int64_t now)
{
    int64_t left = p->since + PACE_US_AWAKE - now;

    if (!p->can_wait_awake || !p->brisk || !p->message || p->sleeps ||
        left <= 0) {
        return 0;
    }
    p->awake = true;
    return left;
}

void pace_turn(struct pace *p, const struct pace_turn *t)
{
    if (!t->spoke && !t->passed) {
        return;
    }
    p->brisk = t->began - p->since < PACE_US_AWAKE;
    if (p->awake) {
        p->penalty = p->brisk ? p->penalty / 2 : 2 * p->penalty + 1;
        if (p->penalty > PACE_MAX_SLEEPS) {
            p->penalty = PACE_MAX_SLEEPS;
        }
        p->sleeps = p->brisk ? 0 : p->penalty;
    } else if (p->sleeps) {
        p->sleeps--;
    }
    p->awake = false;
    p->since = t->ended;
    p->message = t->bytes - p->bytes <= PACE_MESSAGE;
    p->bytes = t->bytes;
    if (t->spoke) {
        p->dialogue = t->began - p->spoke < PACE_US_HELD;
        p->spoke = t->began;
    }
}

bool pace_holds(const struct pace *p, int64_t now)
{
    return p->dialogue && now - p->spoke < PACE_US_HELD;
}
