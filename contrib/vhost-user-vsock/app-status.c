/*
 * SPDX-License-Identifier: MIT
 *
 * app-status.c: what an init says about its application's end, taken byte by
 * byte and put into words. The connection is host.c's business.
 */

#include "app-status.h"

#include <stdio.h>

bool app_status_take(struct app_status *s, const struct iovec *iov,
                     unsigned niov)
{
    for (unsigned i = 0; i < niov; i++) {
        const uint8_t *bytes = iov[i].iov_base;

        for (size_t k = 0; k < iov[i].iov_len && s->have < APP_STATUS_SIZE;
             k++) {
            s->said[s->have++] = bytes[k];
        }
    }
    return s->have == APP_STATUS_SIZE;
}

bool app_status_line(const struct app_status *s, char line[APP_STATUS_LINE])
{
    bool exited = s->said[0] == 'E';

    if (s->have < APP_STATUS_SIZE || (!exited && s->said[0] != 'K')) {
        return false;
    }
    snprintf(line, APP_STATUS_LINE, "%s %u\n", exited ? "exited" : "killed",
             s->said[1]);
    return true;
}
