/*
 * SPDX-License-Identifier: MIT
 *
 * Kernel modules, for kernels that have something as modules.
 */

#ifndef GUEST_MODULES_H
#define GUEST_MODULES_H

/* What the enclave's devices need; before the heartbeat.  Dies on failure. */
void modules_load(void);

/* What Linux will not ask for; after the heartbeat, in the first ramdisk. */
void modules_load_late(void);

/* From now on the kernel gets what it asks for; in the application's root. */
void modules_serve(void);

/* The answer to the kernel that asks: the helper's exit status. */
int modules_answer(char **argv);

#endif
