/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The plugin: our board and device in a QEMU that was built without them
 *
 * A shared object, preloaded into the distribution's QEMU by our launcher
 * (contrib/plugin), with the same files in it that a tree build compiles into
 * QEMU. It uses QEMU's own structures, so it fits one build of QEMU only: the
 * one whose source and configuration its headers come from. What can be
 * compared with the running QEMU is compared here, before the first of our
 * types exists; a QEMU that differs ends with one line and status 1.
 *
 * The constructors, which run before main(), only queue things. QEMU calls
 * the migration initialisers after those that register its types, and before
 * it looks at its command line's machine.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-control.h"
#include "qemu/module.h"
#include "qemu-version.h"
#include "chardev/char.h"
#include "chardev/char-socket.h"
#include "hw/boards.h"
#include "hw/sysbus.h"
#include "hw/virtio/vhost-user-vsock.h"
#include "hw/virtio/virtio-mmio.h"
#ifdef TARGET_I386
#include "hw/i386/microvm.h"
#include "hw/i386/x86.h"
#include "target/i386/cpu.h"
#else
#include "target/arm/cpu.h"
#endif
#include "nitro/qemu-compat.h"
#include "../core/nitro/nitro_enclave.h"

static struct {
    const TypeInfo *types;
    size_t n;
} added[4];
static size_t added_num;

void nitro_plugin_add_types(const TypeInfo *types, size_t n)
{
    assert(added_num < ARRAY_SIZE(added));
    added[added_num].types = types;
    added[added_num++].n = n;
}

/*
 * How QEMU's record of a type begins, since QOM exists and in all series that
 * the compat header names. There is no accessor.
 */
typedef struct TypeRecord {
    const char *name;
    size_t class_size;
    size_t instance_size;
} TypeRecord;

#define SIZES(type, Instance, Class) { type, sizeof(Instance), sizeof(Class) }

/* All types that ours derive from, embed, or look into; parents first. */
static const struct {
    const char *name;
    size_t instance_size;
    size_t class_size;
} our_sizes[] = {
    SIZES(TYPE_OBJECT, Object, ObjectClass),
    SIZES(TYPE_DEVICE, DeviceState, DeviceClass),
    SIZES(TYPE_BUS, BusState, BusClass),
    SIZES(TYPE_SYS_BUS_DEVICE, SysBusDevice, SysBusDeviceClass),
    SIZES(TYPE_MEMORY_REGION, MemoryRegion, MemoryRegionClass),
    SIZES(TYPE_MEMORY_BACKEND, HostMemoryBackend, HostMemoryBackendClass),
    SIZES(TYPE_CHARDEV, Chardev, ChardevClass),
    SIZES(TYPE_CHARDEV_SOCKET, SocketChardev, ChardevClass),
    SIZES(TYPE_CPU, CPUState, CPUClass),
    SIZES(TYPE_MACHINE, MachineState, MachineClass),
#ifdef TARGET_I386
    SIZES(TYPE_X86_CPU, X86CPU, X86CPUClass),
    SIZES(TYPE_X86_MACHINE, X86MachineState, X86MachineClass),
    SIZES(TYPE_MICROVM_MACHINE, MicrovmMachineState, MicrovmMachineClass),
    SIZES(TYPE_MC146818_RTC, NitroRtcState, DeviceClass),
#else
    SIZES(TYPE_ARM_CPU, ARMCPU, ARMCPUClass),
#endif
    SIZES(TYPE_VIRTIO_BUS, VirtioBusState, VirtioBusClass),
    SIZES(TYPE_VIRTIO_MMIO, VirtIOMMIOProxy, SysBusDeviceClass),
    SIZES(TYPE_VIRTIO_DEVICE, VirtIODevice, VirtioDeviceClass),
    SIZES(TYPE_VHOST_USER_VSOCK, VHostUserVSock, VirtioDeviceClass),
};

/* Not error_report(): the monitors that it looks for are not set up yet. */
static G_NORETURN void G_GNUC_PRINTF(1, 2) refuse(const char *fmt, ...)
{
    g_autofree char *qemu = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *why = NULL;
    va_list ap;

    va_start(ap, fmt);
    why = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s: the nitro-enclave plugin does not fit this QEMU: %s; "
            "rebuild it: nitroctl build --plugin --qemu %s\n",
            g_get_prgname() ?: "qemu", why, qemu ?: "PATH");
    exit(1);
}

static void check_version(void)
{
    VersionInfo *v = qmp_query_version(&error_fatal);
    g_autofree char *found =
        g_strdup_printf("%" PRId64 ".%" PRId64 ".%" PRId64 " %s",
                        v->qemu->major, v->qemu->minor, v->qemu->micro,
                        v->package);
    g_autofree char *expected =
        g_strdup_printf("%d.%d.%d %s", QEMU_VERSION_MAJOR, QEMU_VERSION_MINOR,
                        QEMU_VERSION_MICRO, QEMU_PKGVERSION);

    if (strcmp(found, expected)) {
        refuse("it was built for %s, this is %s", expected, found);
    }
    qapi_free_VersionInfo(v);
}

static void check_sizes(void)
{
    size_t i;

    for (i = 0; i < ARRAY_SIZE(our_sizes); i++) {
        /* Of a class that exists, sizes left to the parent are filled in. */
        ObjectClass *oc = object_class_by_name(our_sizes[i].name);
        const TypeRecord *type;

        if (!oc) {
            refuse("it has no type %s", our_sizes[i].name);
        }
        type = (const TypeRecord *)oc->type;
        if (strcmp(type->name, our_sizes[i].name)) {
            refuse("its record of type %s has another layout",
                   our_sizes[i].name);
        }
        if (type->instance_size != our_sizes[i].instance_size) {
            refuse("an object of type %s was expected to have %zu bytes, "
                   "and has %zu", type->name, our_sizes[i].instance_size,
                   type->instance_size);
        }
        if (type->class_size != our_sizes[i].class_size) {
            refuse("the class of type %s was expected to have %zu bytes, "
                   "and has %zu", type->name, our_sizes[i].class_size,
                   type->class_size);
        }
    }
}

static void nitro_plugin_init(void)
{
    size_t i;

    check_version();
    if (object_class_by_name(TYPE_NITRO_ENCLAVE_MACHINE)) {
        fprintf(stderr, "%s: this QEMU has a machine nitro-enclave of its own, "
                "which the plugin does not replace: start it without\n",
                g_get_prgname() ?: "qemu");
        exit(1);
    }
    check_sizes();
    for (i = 0; i < added_num; i++) {
        type_register_static_array(added[i].types, added[i].n);
    }
}

migration_init(nitro_plugin_init)
