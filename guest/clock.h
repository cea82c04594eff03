/*
 * SPDX-License-Identifier: MIT
 *
 * The guest's clock, set from its NSM.
 */

#ifndef NITRO_GUEST_CLOCK_H
#define NITRO_GUEST_CLOCK_H

#include <stdbool.h>

/*
 * Set CLOCK_REALTIME to the time that the NSM puts into its attestation
 * documents, if the two are seen to differ.  True where there is no NSM; else
 * false with errno when it gives no time or the clock cannot be set.
 */
bool clock_from_nsm(void);

#endif
