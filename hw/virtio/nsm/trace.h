/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "trace/trace-nitro_overlay_hw_virtio_nsm.h"
