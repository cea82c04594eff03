/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Where QEMU's build puts what it makes of trace-events in this folder
 */
#include "trace/trace-nitro_overlay_hw_virtio_nsm.h"
