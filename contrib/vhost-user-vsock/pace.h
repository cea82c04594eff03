/*
 * SPDX-License-Identifier: MIT
 *
 * pace.h: how the serving loop waits, and how long the guest may wait for its
 * buffers: both depend on how quickly messages go to and fro. It makes no
 * system calls; times are its caller's, in microseconds.
 */

#ifndef PACE_H
#define PACE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * The next event is waited for awake for so long. Falling asleep and being
 * woken costs a quarter of that on a virtual host, and a round trip has two of
 * each; and while we are awake the guest's kicks, which cost it an exit each,
 * are not needed. A guest without KVM answers in 100 to 200.
 */
#define PACE_US_AWAKE 200
/* Waits asleep after a vain one awake, at the most. */
#define PACE_MAX_SLEEPS 128
/* A turn of the loop that moves more is a stream's: it can as well sleep. */
#define PACE_MESSAGE 4096
/* The guest's buffers are given back no later than this. */
#define PACE_US_HELD 1000

struct pace {
    bool can_wait_awake;
    bool awake;       /* this wait has been, for a time */
    bool brisk;       /* the last wait was a short one ... */
    bool message;     /* ... and ended with few bytes */
    unsigned sleeps;  /* waits until one may be awake again ... */
    unsigned penalty; /* ... after one that was so in vain */
    int64_t since;    /* when this wait began ... */
    uint64_t bytes;   /* ... and those that had passed then */
    bool dialogue;    /* the guest spoke twice in PACE_US_HELD ... */
    int64_t spoke;    /* ... the last time then */
};

/* What a turn of the loop has done. */
struct pace_turn {
    int64_t began;
    int64_t ended;
    bool spoke;     /* packets came from the guest */
    bool passed;    /* or went to it */
    uint64_t bytes; /* all that have been in them, both ways */
};

/* Microseconds that may be waited awake from now on. */
int64_t pace_awake(struct pace *p, int64_t now);
/* After each turn. One in which no packet passed is a part of the wait. */
void pace_turn(struct pace *p, const struct pace_turn *t);
/* Whether the guest's buffers may be held back. */
bool pace_holds(const struct pace *p, int64_t now);

#endif
