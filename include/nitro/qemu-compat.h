/*
 * The one place where the QEMU series that we build with differ
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The device, the board and nothing else include it, after qemu/osdep.h.
 * It holds what changed its name or its shape between series, never logic of
 * ours; the cores know no QEMU and need none of it. Written for 10.0.
 */
#ifndef NITRO_QEMU_COMPAT_H
#define NITRO_QEMU_COMPAT_H

#if QEMU_VERSION_MAJOR < 10
#error "this series of QEMU has no entry in nitro/qemu-compat.h yet"
#endif

#include "system/cpu-timers.h"
#include "system/hostmem.h"
#include "system/reset.h"
#include "system/runstate.h"
#include "system/runstate-action.h"
#include "system/tcg.h"
#include "exec/memory.h"
#include "exec/address-spaces.h"

/* What class_init takes: it became const in 10.1. */
#if QEMU_VERSION_MAJOR > 10 || \
    (QEMU_VERSION_MAJOR == 10 && QEMU_VERSION_MINOR >= 1)
typedef const void NitroClassData;
#else
typedef void NitroClassData;
#endif

#endif /* NITRO_QEMU_COMPAT_H */
