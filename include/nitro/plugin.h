/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Types of a plugin: registered when QEMU's own are
 *
 * The compat header includes it where our files are compiled for the plugin
 * (hw/plugin). The constructors of a preloaded object run before QEMU's, when
 * no type is there that ours could derive from; and whether ours may be
 * registered at all is known only later. So DEFINE_TYPES() hands them over.
 */
#ifndef NITRO_PLUGIN_H
#define NITRO_PLUGIN_H

#include "qom/object.h"

/* Called by constructors; @types must stay. */
void nitro_plugin_add_types(const TypeInfo *types, size_t n);

#undef DEFINE_TYPES
#define DEFINE_TYPES(types)                                             \
    static void __attribute__((constructor)) nitro_plugin_add_##types(void) \
    {                                                                   \
        nitro_plugin_add_types(types, ARRAY_SIZE(types));               \
    }

#endif /* NITRO_PLUGIN_H */
