/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for the nitro-enclave board
 *
 * What the board makes of its options and of an EIF, seen from outside: RAM,
 * fw_cfg, transports, the NSM's registers, how it ends. No guest runs. Digests
 * are computed with GLib, which the code under test does not use for them.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "tests/qtest/libqos/fw_cfg.h"
#include "standard-headers/linux/qemu_fw_cfg.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "nitro-qtest-enclave.h"

#define TRANSPORT_VSOCK 0

static void test_help(void)
{
    static const char *const options[] = {
        "vsock=", "id=", "parent-role=", "parent-id=", "cert-chain=",
        "cert-key=", "debug-mode=", "eif-signature=", "document-form=",
        "overlay=", "overlay-keep-pcrs=",
    };
    g_autofree char *out = NULL, *err = NULL;
    int i;

    g_assert_cmpint(nitro_qemu_run("-M nitro-enclave,help", &out, &err), ==,
                    0);
    for (i = 0; i < ARRAY_SIZE(options); i++) {
        g_autofree char *start = g_strdup_printf("\n  %s", options[i]);
        const char *line = strstr(out, start);

        g_assert_nonnull(line);
        g_assert_true(g_regex_match_simple("^\\n  \\S+ +- \\w{3}", line, 0, 0));
    }
}

static void check_only_backend(QTestState *qts, const char *id, uint64_t size)
{
    QDict *resp = qtest_qmp(qts, "{ 'execute': 'query-memdev' }");
    QList *list = qdict_get_qlist(resp, "return");
    QDict *memdev = qobject_to(QDict, qlist_peek(list));

    g_assert_cmpuint(qlist_size(list), ==, 1);
    g_assert_cmpstr(qdict_get_str(memdev, "id"), ==, id);
    g_assert_cmpuint(qdict_get_int(memdev, "size"), ==, size);
    g_assert_true(qdict_get_bool(memdev, "share"));
    qobject_unref(resp);
}

static void test_ram_shared(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "-m 128M");
    check_only_backend(qts, "nitro-enclave.ram", 128 * MiB);
    qtest_quit(qts);
    enclave_clear(&e);

    enclave_init(&e);
    qts = enclave_start(&e, ",memory-backend=mine", "-m 64M "
                        "-object memory-backend-memfd,id=mine,size=64M,"
                        "share=on");
    check_only_backend(qts, "mine", 64 * MiB);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* 4 GiB: three below the devices, one above. */
static void test_ram_above_4g(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "-m 4G");
    /* RAM from 1 MiB and from 4 GiB on. */
    g_assert_cmpuint(qtest_readb(qts, BOOT_PARAMS + 0x1e8), ==, 6);
    g_assert_cmphex(qtest_readq(qts, BOOT_PARAMS + 0x2d0 + 68), ==,
                    3 * GiB - 1 * MiB);
    g_assert_cmphex(qtest_readq(qts, BOOT_PARAMS + 0x2d0 + 100), ==, 4 * GiB);
    g_assert_cmphex(qtest_readq(qts, BOOT_PARAMS + 0x2d0 + 108), ==, 1 * GiB);
    qtest_writeq(qts, 3 * GiB - 8, 0x1122334455667788);
    qtest_writeq(qts, 5 * GiB - 8, 0x99aabbccddeeff00);
    g_assert_cmphex(qtest_readq(qts, 3 * GiB - 8), ==, 0x1122334455667788);
    g_assert_cmphex(qtest_readq(qts, 5 * GiB - 8), ==, 0x99aabbccddeeff00);
    qtest_quit(qts);
    enclave_clear(&e);
}

static void test_devices(const void *opaque)
{
    QTestState *qts;
    Enclave e;
    int i;

    enclave_init(&e);
    qts = enclave_start(&e, opaque, "");
    for (i = 0; i < NITRO_TRANSPORTS; i++) {
        uint64_t base = NITRO_TRANSPORT(i);

        g_assert_cmphex(qtest_readl(qts, base + VIRTIO_MMIO_MAGIC_VALUE), ==,
                        0x74726976);
        g_assert_cmpuint(qtest_readl(qts, base + VIRTIO_MMIO_VERSION), ==, 2);
        g_assert_cmpuint(qtest_readl(qts, base + VIRTIO_MMIO_DEVICE_ID), ==,
                         i == TRANSPORT_VSOCK ? 19 :
                         i == TRANSPORT_NSM ? 33 : 0);
    }
    g_assert_cmpuint(qtest_readq(qts, NITRO_TRANSPORT(TRANSPORT_VSOCK) +
                                 VIRTIO_MMIO_CONFIG), ==, 4);
    qtest_quit(qts);
    enclave_clear(&e);
}

static uint32_t fw_cfg_u32(QFWCFG *fw_cfg, uint16_t key)
{
    return qfw_cfg_get_u32(fw_cfg, key);
}

static void check_memory(QTestState *qts, uint64_t address,
                         const void *expected, size_t size)
{
    g_autofree uint8_t *data = g_malloc(size);

    qtest_memread(qts, address, data, size);
    g_assert_cmpmem(data, size, expected, size);
}

/* The ROM: at the reset vector, and below 1 MiB with the MP table in it. */
static void check_rom(QTestState *qts, unsigned int cpus)
{
    uint8_t low[0x10000], high[sizeof(low)];
    unsigned int i, sum = 0;

    qtest_memread(qts, 0xf0000, low, sizeof(low));
    qtest_memread(qts, 4 * GiB - sizeof(high), high, sizeof(high));
    g_assert_cmpmem(low, sizeof(low), high, sizeof(high));
    g_assert_cmphex(high[0xfff0], !=, 0);
    g_assert_cmpmem(low, 4, "_MP_", 4);
    g_assert_cmphex(ldl_le_p(low + 4), ==, 0xf0010);
    g_assert_cmpmem(low + 16, 4, "PCMP", 4);
    for (i = 0; i < lduw_le_p(low + 20); i++) {
        sum += low[16 + i];
    }
    g_assert_cmpuint(sum % 256, ==, 0);
    /* CPUs come first, and this many of them. */
    for (i = 0; i < cpus; i++) {
        g_assert_cmpmem(low + 60 + 20 * i, 2, ((uint8_t[]) { 0, i }), 2);
    }
    g_assert_cmpuint(low[60 + 20 * cpus], ==, 1);
}

/* What the kernel will find: the parts of the image, and the additions. */
static void test_boot_data(void)
{
    static const char extra[] = "EXTRA";
    /* RAMDISK_2 ends at 21 bytes; an archive begins at a multiple of 4. */
    static const char initramfs[] = RAMDISK_1 RAMDISK_2 "\0\0\0" "EXTRA";
    static const char first[] = " virtio_mmio.device=512@0xfeb00000:5";
    static const char second[] = " virtio_mmio.device=512@0xfeb00200:6";
    g_autofree char *initrd = write_temporary(extra, strlen(extra));
    g_autofree char *args = g_strdup_printf("-append quiet -initrd %s",
                                            initrd);
    uint8_t page[4096];
    char cmdline[512];
    QTestState *qts;
    Enclave e;
    int reset;

    enclave_init(&e);
    qts = enclave_start(&e, "", args);
    /* The same after a reset, where that is no end. */
    for (reset = 0; reset < 2; reset++) {
        qtest_memread(qts, BOOT_PARAMS, page, sizeof(page));
        g_assert_cmphex(ldl_le_p(page + 0x214), ==, 1 * MiB);
        check_memory(qts, 1 * MiB, e.kernel + SETUP_BYTES,
                     KERNEL_BYTES - SETUP_BYTES);

        /* At the top of 512 MiB less a byte, on a page border. */
        g_assert_cmphex(ldl_le_p(page + 0x218), ==, 512 * MiB - 4096);
        g_assert_cmpuint(ldl_le_p(page + 0x21c), ==, sizeof(initramfs) - 1);
        check_memory(qts, 512 * MiB - 4096, initramfs, sizeof(initramfs) - 1);

        qtest_memread(qts, ldl_le_p(page + 0x228), cmdline, sizeof(cmdline));
        g_assert_cmpuint(strnlen(cmdline, sizeof(cmdline)), ==,
                         strlen(CMDLINE " quiet") + strlen(first) +
                         strlen(second));
        g_assert_true(g_str_has_prefix(cmdline,
                                       CMDLINE " quiet virtio_mmio"));
        g_assert_nonnull(strstr(cmdline, first));
        g_assert_nonnull(strstr(cmdline, second));

        /* The header's fields are the kernel's own; then e820. */
        g_assert_cmpmem(page + 0x1f1, 0x1f, e.kernel + 0x1f1, 0x1f);
        g_assert_cmphex(ldq_le_p(page + 0x258), ==, 16 * MiB);
        g_assert_cmpuint(page[0x1e8], ==, 5);
        g_assert_cmphex(ldq_le_p(page + 0x2d0 + 3 * 20), ==, 1 * MiB);
        g_assert_cmphex(ldq_le_p(page + 0x2d0 + 3 * 20 + 8), ==, 511 * MiB);
        g_assert_cmpuint(ldl_le_p(page + 0x2d0 + 3 * 20 + 16), ==, 1);
        check_rom(qts, 1);

        qtest_qmp_assert_success(qts, "{ 'execute': 'set-action',"
                                 " 'arguments': { 'reboot': 'reset' } }");
        qtest_qmp_assert_success(qts, "{ 'execute': 'system_reset' }");
        qtest_qmp_eventwait(qts, "RESET");
    }
    qtest_quit(qts);
    enclave_clear(&e);
    unlink(initrd);
}

/* Devices of the user's are announced as well, unless nothing is to be. */
static void test_boot_cmdline(void)
{
    static const char third[] = " virtio_mmio.device=512@0xfeb00e00:12";
    char cmdline[512];
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "-device nitro-nsm-device");
    qtest_memread(qts, 0x20000, cmdline, sizeof(cmdline));
    g_assert_cmpuint(strnlen(cmdline, sizeof(cmdline)), <, sizeof(cmdline));
    g_assert_nonnull(strstr(cmdline, third));
    qtest_quit(qts);
    enclave_clear(&e);

    enclave_init(&e);
    qts = enclave_start(&e, ",auto-kernel-cmdline=off", "");
    check_memory(qts, 0x20000, CMDLINE, strlen(CMDLINE) + 1);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* With ACPI the devices are in its tables, not on the command line. */
static void test_boot_data_acpi(void)
{
    char data[256];
    uint32_t size;
    QFWCFG *fw_cfg;
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, ",acpi=on", "");
    fw_cfg = pc_fw_cfg_init(qts);
    size = fw_cfg_u32(fw_cfg, FW_CFG_CMDLINE_SIZE);
    g_assert_cmpuint(size, <=, sizeof(data));
    qfw_cfg_get(fw_cfg, FW_CFG_CMDLINE_DATA, data, size);
    g_assert_cmpmem(data, size, CMDLINE, strlen(CMDLINE) + 1);
    pc_fw_cfg_uninit(fw_cfg);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* Lines of the IOAPIC: 5 and 6, or from 16 on with ACPI. */
static void test_irq(const void *opaque)
{
    const char *machine = opaque;
    int nsm_irq = *machine ? 17 : 6;
    QTestState *qts;
    uint8_t resp[64];
    NsmQueue q;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, machine, "");
    qtest_irq_intercept_in(qts, "/machine/ioapic");
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    nsm_desc(&q, 0, NSM_BUF(0), 0, 0, 0);
    nsm_desc(&q, 1, NSM_BUF(1), sizeof(resp), VRING_DESC_F_WRITE, 0);
    nsm_avail(&q, 0);
    nsm_avail(&q, 1);
    g_assert_false(qtest_get_irq(qts, nsm_irq));
    nsm_kick(&q);
    nsm_expect_used(&q, 0, 0);
    g_assert_true(qtest_get_irq(qts, nsm_irq));
    g_assert_true(nsm_interrupt(&q));
    g_assert_false(qtest_get_irq(qts, nsm_irq));
    qtest_quit(qts);
    enclave_clear(&e);
}

static void test_pcr(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    enclave_expect_measured(&e, qts, false, enclave_zero_pcr, enclave_zero_pcr);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* printf %s ROLE | (head -c48 /dev/zero; cat) | sha384sum, and the id's */
static void test_pcr_parent(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, ",parent-id=i-1234567890abcdef0,"
                        "parent-role=arn:aws:iam::123456789012:role/Webserver",
                        "-append ignored");
    enclave_expect_measured(&e, qts, false,
        "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75"
        "329dccd99aa5f6ef4fc1f1a452e315b9e98f9e312e6921e6",
        "08f996b5d43e047a9eb51e7f548bfee7e164fd7dc8f65541"
        "f2ac09d6545ac812719327281c401a67a10fcba87ae79ce0");
    qtest_quit(qts);
    enclave_clear(&e);
}

/* -initrd is measured like an application's ramdisk. */
static void test_pcr_initrd(void)
{
    g_autofree char *initrd = write_temporary("EXTRA", 5);
    g_autofree char *args = g_strdup_printf("-initrd %s", initrd);
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", args);
    enclave_expect_measured(&e, qts, true, enclave_zero_pcr, enclave_zero_pcr);
    qtest_quit(qts);
    enclave_clear(&e);
    unlink(initrd);
}

/* Debug mode hides the image, not the parent: PCR3 and PCR4 stay. */
static void test_pcr_debug(void)
{
    g_autofree char *pcr4 = enclave_extend_zero("i-1", 3);
    QTestState *qts;
    NsmQueue q;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, ",debug-mode=on,parent-id=i-1", "");
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    enclave_expect_pcr(&q, 0, enclave_zero_pcr);
    enclave_expect_pcr(&q, 1, enclave_zero_pcr);
    enclave_expect_pcr(&q, 2, enclave_zero_pcr);
    enclave_expect_pcr(&q, 4, pcr4);
    qtest_quit(qts);
    enclave_clear(&e);
}

static char *qom_get_str(QTestState *qts, const char *path,
                         const char *property)
{
    QDict *resp = qtest_qmp(qts, "{ 'execute': 'qom-get', 'arguments': {"
                            " 'path': %s, 'property': %s } }", path, property);
    char *value = g_strdup(qdict_get_str(resp, "return"));

    qobject_unref(resp);
    return value;
}

static void check_id(const char *machine, const char *pattern)
{
    g_autofree char *id = NULL;
    uint8_t resp[0x3000];
    QTestState *qts;
    size_t len;
    NsmQueue q;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, machine, "");
    id = qom_get_str(qts, "/machine", "id");
    g_assert_true(g_regex_match_simple(pattern, id, 0, 0));
    nsm_queue_start(&q, qts, TRANSPORT_NSM);
    len = nsm_command(&q, BYTES("\x6b" "DescribeNSM"), resp, sizeof(resp));
    g_assert_nonnull(memmem(resp, len, id, strlen(id)));
    qtest_quit(qts);
    enclave_clear(&e);
}

static void test_id(void)
{
    check_id("", "^i-0{16}-enc[0-9a-f]{16}$");
    check_id(",parent-id=i-1234567890abcdef0",
             "^i-1234567890abcdef0-enc[0-9a-f]{16}$");
    check_id(",id=hello-world", "^hello-world$");
}

static void test_cpus(void)
{
    g_autofree char *type = NULL;
    QTestState *qts;
    QDict *resp;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "-smp 2");
    resp = qtest_qmp(qts, "{ 'execute': 'query-cpus-fast' }");
    g_assert_cmpuint(qlist_size(qdict_get_qlist(resp, "return")), ==, 2);
    qobject_unref(resp);
    check_rom(qts, 2);
    type = qom_get_str(qts, "/machine/unattached/device[0]", "type");
    g_assert_cmpstr(type, ==, "max-x86_64-cpu");
    qtest_quit(qts);
    enclave_clear(&e);
}

static void check_ends(QTestState *qts, const char *reason)
{
    QDict *event = qtest_qmp_eventwait_ref(qts, "SHUTDOWN");

    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(event, "data"), "reason"),
                    ==, reason);
    qobject_unref(event);
    qtest_set_expected_status(qts, 0);
    qtest_wait_qemu(qts);
    qtest_quit(qts);
}

/* reboot=k: the port takes the command, and QEMU ends, orderly. */
static void test_reset_port(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    /* Bit 1 clear: room for a command; bit 0 set: see the board. */
    g_assert_cmphex(qtest_inb(qts, 0x64) & 3, ==, 1);
    /* Other commands, to turn the mouse on and to read a port, do nothing. */
    qtest_outb(qts, 0x64, 0xa8);
    qtest_outb(qts, 0x64, 0xd0);
    qtest_outb(qts, 0x64, 0xff);
    g_assert_cmphex(qtest_inb(qts, 0x64) & 3, ==, 1);
    qtest_outb(qts, 0x64, 0xfe);
    check_ends(qts, "guest-reset");
    enclave_clear(&e);
}

static void test_system_reset(void)
{
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    qtest_qmp_assert_success(qts, "{ 'execute': 'system_reset' }");
    check_ends(qts, "host-qmp-system-reset");
    enclave_clear(&e);
}

static void test_migration_refused(void)
{
    QTestState *qts;
    QDict *error;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    error = qtest_qmp_assert_failure_ref(qts, "{ 'execute': 'migrate',"
        " 'arguments': { 'uri': 'unix:/nonexistent' } }");
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"),
                            "vhost-user-vsock"));
    qobject_unref(error);
    qtest_quit(qts);
    enclave_clear(&e);
}

/* The machine tells the names that the user gave, not the ones it passed on. */
static void test_names(void)
{
    g_autofree char *kernel = NULL, *append = NULL;
    QTestState *qts;
    Enclave e;

    enclave_init(&e);
    qts = enclave_start(&e, "", "");
    kernel = qom_get_str(qts, "/machine", "kernel");
    g_assert_cmpstr(kernel, ==, e.eif);
    append = qom_get_str(qts, "/machine", "append");
    g_assert_cmpstr(append, ==, CMDLINE);
    qtest_quit(qts);
    enclave_clear(&e);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/nitro-enclave/help", test_help);
    qtest_add_func("/nitro-enclave/ram/shared", test_ram_shared);
    qtest_add_func("/nitro-enclave/ram/above-4g", test_ram_above_4g);
    qtest_add_data_func("/nitro-enclave/devices", "", test_devices);
    qtest_add_data_func("/nitro-enclave/devices/acpi", ",acpi=on",
                        test_devices);
    qtest_add_func("/nitro-enclave/boot-data", test_boot_data);
    qtest_add_func("/nitro-enclave/boot-data/cmdline", test_boot_cmdline);
    qtest_add_func("/nitro-enclave/boot-data/acpi", test_boot_data_acpi);
    qtest_add_data_func("/nitro-enclave/irq", "", test_irq);
    qtest_add_data_func("/nitro-enclave/irq/acpi", ",acpi=on", test_irq);
    qtest_add_func("/nitro-enclave/pcr/image", test_pcr);
    qtest_add_func("/nitro-enclave/pcr/parent", test_pcr_parent);
    qtest_add_func("/nitro-enclave/pcr/initrd", test_pcr_initrd);
    qtest_add_func("/nitro-enclave/pcr/debug", test_pcr_debug);
    qtest_add_func("/nitro-enclave/id", test_id);
    qtest_add_func("/nitro-enclave/cpus", test_cpus);
    qtest_add_func("/nitro-enclave/reset/port", test_reset_port);
    qtest_add_func("/nitro-enclave/reset/qmp", test_system_reset);
    qtest_add_func("/nitro-enclave/migration", test_migration_refused);
    qtest_add_func("/nitro-enclave/names", test_names);

    return g_test_run();
}
