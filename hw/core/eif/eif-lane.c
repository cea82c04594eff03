/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * EIF core: the loader's lanes.  A lane is a thread that follows the reader and
 * hashes what lies in its place already: one makes PCR0 and PCR1, one PCR2.
 * Why they are two is in eif-load.c.
 */

#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "eif-load.h"

/* Wait until @p holds more than @pos; 0 if there is no need any more. */
static uint64_t wait_ready(EifLoader *ld, const EifPiece *p, uint64_t pos)
{
    uint64_t n;

    g_mutex_lock(&ld->lock);
    while (p->ready == pos && !ld->stop) {
        g_cond_wait(&ld->grown, &ld->lock);
    }
    n = ld->stop ? 0 : p->ready - pos;
    g_mutex_unlock(&ld->lock);
    return n;
}

static bool lane_piece(EifLane *lane, const EifPiece *p, EifBootMeasure *boot,
                       gnutls_hash_hd_t app)
{
    uint64_t pos = 0;

    while (pos < p->size) {
        size_t n = MIN(wait_ready(lane->loader, p, pos), EIF_LOAD_CHUNK);
        int64_t t = g_get_monotonic_time();
        const uint8_t *data = p->data + pos;
        bool ok;

        if (!n) {
            return eif_fail(&lane->err, EIF_ERR_IO, "stopped");
        }
        ok = lane->app_only
            ? eif_hash_update(app, data, n, &lane->err)
            : eif_boot_measure_update(boot, p->part, data, n, &lane->err);
        eif_lap(&t, &lane->busy);
        if (!ok) {
            return false;
        }
        pos += n;
    }
    return true;
}

static void *lane_main(void *arg)
{
    EifLane *lane = arg;
    EifLoader *ld = lane->loader;
    EifBootMeasure boot = { NULL, NULL };
    gnutls_hash_hd_t app = NULL;
    bool have_file_pcr0 = lane->app_only;
    bool ok;

    ok = lane->app_only ? eif_hash_init(&app, &lane->err)
                        : eif_boot_measure_init(&boot, &lane->err);
    for (unsigned i = 0; ok && i < ld->n_pieces; i++) {
        const EifPiece *p = &ld->pieces[i];

        if (!p->measured ||
            (lane->app_only && p->part != EIF_PART_RAMDISK_APP)) {
            continue;
        }
        if (p->extra && !have_file_pcr0) {
            ok = eif_hash_pcr(boot.pcr0, lane->file_pcr0, &lane->err);
            have_file_pcr0 = true;
        }
        ok = ok && lane_piece(lane, p, &boot, app);
    }
    if (ok && !have_file_pcr0) {
        ok = eif_hash_pcr(boot.pcr0, lane->file_pcr0, &lane->err);
    }
    ok = ok && eif_hash_pcr(lane->app_only ? app : boot.pcr0, lane->pcr,
                            &lane->err);
    ok = ok && (lane->app_only ||
                eif_boot_measure_pcr1(&boot, lane->pcr1, &lane->err));
    eif_boot_measure_free(&boot);
    eif_hash_free(&app);
    lane->ok = ok;
    return NULL;
}

/* Signals are the process's affair, not these threads'. */
bool eif_lane_start(EifLane *lane, EifError *err)
{
    g_autoptr(GError) gerr = NULL;
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    lane->thread = g_thread_try_new(lane->app_only ? "eif-pcr2" : "eif-pcr0",
                                    lane_main, lane, &gerr);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!lane->thread) {
        return eif_fail(err, EIF_ERR_IO, "cannot start a thread: %s",
                        gerr->message);
    }
    return true;
}

bool eif_lane_join(EifLane *lane, EifError *err)
{
    if (!lane->thread) {
        return true;
    }
    g_thread_join(lane->thread);
    lane->thread = NULL;
    if (!lane->ok && err) {
        *err = lane->err;
    }
    return lane->ok;
}

void eif_lanes_stop(EifLoader *ld)
{
    g_mutex_lock(&ld->lock);
    ld->stop = true;
    g_cond_broadcast(&ld->grown);
    g_mutex_unlock(&ld->lock);
}
