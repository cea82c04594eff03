/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The one place where the QEMU series that we build with differ
 *
 * The device, the board, the plugin and the qtests include it, after
 * qemu/osdep.h. It holds what changed its name or its shape between series,
 * never logic of ours; the cores know no QEMU and need none of it. The rest
 * is written for 10.0.
 */
#ifndef NITRO_QEMU_COMPAT_H
#define NITRO_QEMU_COMPAT_H

#define NITRO_QEMU_SERIES (QEMU_VERSION_MAJOR * 100 + QEMU_VERSION_MINOR)

#if NITRO_QEMU_SERIES != 702 && NITRO_QEMU_SERIES != 1000 && \
    NITRO_QEMU_SERIES != 1002
#error "this series of QEMU has no entry in nitro/qemu-compat.h yet"
#endif

/* ---- qtests: no header of the emulator's ---- */
#ifdef NITRO_QTEST

/* 7.2 does not tell a board of -mem-path: there it is without effect. */
#define NITRO_REFUSES_MEM_PATH (NITRO_QEMU_SERIES >= 1000)

#if NITRO_QEMU_SERIES < 1000
#include "qapi/qmp/qdict.h"
#include "qapi/qmp/qlist.h"
#include "tests/qtest/libqtest.h"

static inline void qtest_system_reset(QTestState *qts)
{
    qtest_qmp_assert_success(qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(qts, "RESET");
}

/* 7.2's own cannot be followed by qtest_quit(). */
static inline void nitro_qtest_wait_qemu(QTestState *qts)
{
    while (qtest_probe_child(qts)) {
        g_usleep(10 * 1000);
    }
}
#define qtest_wait_qemu nitro_qtest_wait_qemu

/* The member @key, a dictionary, of the answer to a QMP command. */
static inline QDict *G_GNUC_PRINTF(3, 0)
nitro_qtest_answer(QTestState *qts, const char *key, const char *fmt,
                   va_list ap)
{
    QDict *response = qtest_vqmp(qts, fmt, ap);
    QDict *answer;

    g_assert(qdict_haskey(response, key));
    answer = qdict_get_qdict(response, key);
    qobject_ref(answer);
    qobject_unref(response);
    return answer;
}

static inline QDict *G_GNUC_PRINTF(2, 3)
qtest_qmp_assert_success_ref(QTestState *qts, const char *fmt, ...)
{
    QDict *answer;
    va_list ap;

    va_start(ap, fmt);
    answer = nitro_qtest_answer(qts, "return", fmt, ap);
    va_end(ap);
    return answer;
}

static inline QDict *G_GNUC_PRINTF(2, 3)
qtest_qmp_assert_failure_ref(QTestState *qts, const char *fmt, ...)
{
    QDict *answer;
    va_list ap;

    va_start(ap, fmt);
    answer = nitro_qtest_answer(qts, "error", fmt, ap);
    va_end(ap);
    return answer;
}
#else
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#endif

#else /* !NITRO_QTEST */

#include "qapi/error.h"
#include "hw/boards.h"
#include "hw/qdev-properties.h"
#include "hw/rtc/mc146818rtc.h"
#if NITRO_QEMU_SERIES < 1000
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "sysemu/cpu-timers.h"
#include "sysemu/hostmem.h"
#include "sysemu/reset.h"
#include "sysemu/runstate.h"
#include "sysemu/runstate-action.h"
#include "sysemu/tcg.h"
#else
#if NITRO_QEMU_SERIES < 1002
#include "exec/address-spaces.h"
#include "exec/memory.h"
#else
#include "exec/icount.h"
#include "system/address-spaces.h"
#include "system/memory.h"
#endif
#include "system/cpu-timers.h"
#include "system/hostmem.h"
#include "system/reset.h"
#include "system/runstate.h"
#include "system/runstate-action.h"
#include "system/tcg.h"
#endif

/* The PC's clock, in CMOS. */
#if NITRO_QEMU_SERIES < 1000
typedef RTCState NitroRtcState;
#else
typedef MC146818RtcState NitroRtcState;
#endif

/* What a device has of a chardev: 10.2 renamed it. */
#include "chardev/char-fe.h"
#if NITRO_QEMU_SERIES < 1002
typedef CharBackend NitroCharFrontend;
#else
typedef CharFrontend NitroCharFrontend;
#endif

/* What class_init takes, and interfaces: they became const in 10.1. */
#if NITRO_QEMU_SERIES < 1001
typedef void NitroClassData;
typedef InterfaceInfo NitroInterfaceInfo;
#else
typedef const void NitroClassData;
typedef const InterfaceInfo NitroInterfaceInfo;
#endif

#ifndef TYPE_MEMORY_BACKEND_MEMFD
#define TYPE_MEMORY_BACKEND_MEMFD "memory-backend-memfd"
#endif

/*
 * A board's own default RAM: @create makes the backend with id @id, and links
 * it to the machine. 10.0 calls it before the board's init. 7.2 has no such
 * hook and would make memory of its own, but leaves a board alone whose class
 * has no default RAM id: its init has to call nitro_machine_need_ram().
 */
typedef bool NitroCreateRam(MachineState *machine, const char *path,
                            Error **errp);

static inline void nitro_machine_class_set_ram(MachineClass *mc,
                                               const char *id,
                                               NitroCreateRam *create)
{
#if NITRO_QEMU_SERIES < 1000
    mc->default_ram_id = NULL;
#else
    mc->default_ram_id = id;
    mc->create_default_memdev = create;
#endif
}

static inline bool nitro_machine_need_ram(MachineState *machine,
                                          NitroCreateRam *create,
                                          Error **errp)
{
#if NITRO_QEMU_SERIES < 1000
    if (!machine->ram && !machine->memdev && machine->ram_size) {
        if (!create(machine, NULL, errp)) {
            return false;
        }
        machine->ram = machine_consume_memdev(machine, machine->memdev);
    }
#endif
    return true;
}

/* A device's properties, an array of them; 7.2 wants an end mark instead. */
#if NITRO_QEMU_SERIES < 1000
static inline void nitro_device_class_set_props(DeviceClass *dc,
                                                const Property *props,
                                                size_t n)
{
    Property *list = g_new0(Property, n + 1);

    memcpy(list, props, n * sizeof(*list));
    device_class_set_props(dc, list);
}
#define device_class_set_props(dc, props) \
    nitro_device_class_set_props(dc, props, ARRAY_SIZE(props))
#endif

/* A cache that holds nothing, and may be destroyed; new in 8.2. */
#if NITRO_QEMU_SERIES < 1000
static inline void address_space_cache_init_empty(MemoryRegionCache *cache)
{
    memset(cache, 0, sizeof(*cache));
}
#endif

/* ---- the board for aarch64: its files say so before they include this ---- */
#ifdef NITRO_ARM_BOARD

#if NITRO_QEMU_SERIES < 1000
#include "hw/char/serial.h"
#include "sysemu/device_tree.h"
#include "sysemu/kvm.h"
#include "sysemu/sysemu.h"
#else
#include "hw/char/serial-mm.h"
#include "qobject/qlist.h"
#include "system/device_tree.h"
#include "system/kvm.h"
#include "system/system.h"
#endif

/* The GIC's redistributors: one region, of @cpus. Arrays changed in 8.2. */
static inline void nitro_gic_set_redistributors(DeviceState *gic,
                                                unsigned int cpus)
{
#if NITRO_QEMU_SERIES < 1000
    qdev_prop_set_uint32(gic, "len-redist-region-count", 1);
    qdev_prop_set_uint32(gic, "redist-region-count[0]", cpus);
#else
    QList *counts = qlist_new();

    qlist_append_int(counts, cpus);
    qdev_prop_set_array(gic, "redist-region-count", counts);
#endif
}

/* What 10.1 and later ask of a machine that this target offers. */
#if NITRO_QEMU_SERIES >= 1001
#include "hw/arm/machines-qom.h"
#endif
static G_GNUC_UNUSED NitroInterfaceInfo nitro_arm_interfaces[] = {
#if NITRO_QEMU_SERIES >= 1001
    { TYPE_TARGET_AARCH64_MACHINE },
#endif
    { }
};

#endif /* NITRO_ARM_BOARD */

#ifdef NITRO_PLUGIN
#include "nitro/plugin.h"
#endif

#endif /* !NITRO_QTEST */

#endif /* NITRO_QEMU_COMPAT_H */
