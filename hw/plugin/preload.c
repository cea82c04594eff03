/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The plugin leaves LD_PRELOAD as its launcher found it
 *
 * The launcher put the plugin first. The programs that QEMU starts get what
 * the user had: they have none of the symbols that the plugin needs. Plain C:
 * it runs before main(), and is tested without QEMU.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static void __attribute__((constructor)) nitro_plugin_leave_preload(void)
{
    const char *value = getenv("LD_PRELOAD");
    Dl_info own;
    size_t len;

    if (!value || !dladdr(nitro_plugin_leave_preload, &own)) {
        return;
    }
    len = strlen(own.dli_fname);
    if (strncmp(value, own.dli_fname, len)) {
        return;
    }
    if (value[len] == ':') {
        char *rest = strdup(value + len + 1);

        if (rest) {
            setenv("LD_PRELOAD", rest, 1);
            free(rest);
        }
    } else if (!value[len]) {
        unsetenv("LD_PRELOAD");
    }
}
