/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for the nitro-enclave board for aarch64
 *
 * What is at which address, what lies in guest memory before the first
 * instruction, the registers that it starts with, and what only this board
 * refuses. Addresses are Firecracker's; how the CPU has to begin is said in
 * Linux's Documentation/arch/arm64/booting.rst. Options, measurement and RAM
 * are compiled from the files that nitro-enclave-test tests on x86_64.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "nitro-qtest-enclave.h"

#define RAM_SIZE (64 * MiB)
/* The last 2 MiB are for the device tree, the initramfs lies before it. */
#define DTB (NITRO_RAM + RAM_SIZE - 2 * MiB)
#define INITRAMFS (DTB - 4096)
#define KERNEL (NITRO_RAM + 2 * MiB)

static QTestState *start(Enclave *e, const char *args)
{
    g_autofree char *all = g_strdup_printf("-m 64M %s", args);

    enclave_init(e);
    return enclave_start(e, "", all);
}

static void finish(Enclave *e, QTestState *qts)
{
    qtest_quit(qts);
    enclave_clear(e);
}

static void test_devices(void)
{
    static const uint32_t ids[NITRO_TRANSPORTS] = { 19, 33 };
    Enclave e;
    QTestState *qts = start(&e, "");
    int i;

    for (i = 0; i < NITRO_TRANSPORTS; i++) {
        uint64_t base = NITRO_TRANSPORT(i);

        g_assert_cmphex(qtest_readl(qts, base + VIRTIO_MMIO_MAGIC_VALUE), ==,
                        0x74726976);
        g_assert_cmpuint(qtest_readl(qts, base + VIRTIO_MMIO_VERSION), ==, 2);
        g_assert_cmpuint(qtest_readl(qts, base + VIRTIO_MMIO_DEVICE_ID), ==,
                         ids[i]);
    }
    /* ns16550a: its scratch register keeps, and it has room for a byte. */
    qtest_writeb(qts, 0x40002007, 0x5a);
    g_assert_cmphex(qtest_readb(qts, 0x40002007), ==, 0x5a);
    g_assert_cmphex(qtest_readb(qts, 0x40002005) & 0x60, ==, 0x60);
    /* PL031: the PrimeCell number, and a clock that goes. */
    g_assert_cmphex(qtest_readl(qts, 0x40001fe0), ==, 0x31);
    g_assert_cmpuint(qtest_readl(qts, 0x40001000), >, 1700000000);
    /* GICv3: the architecture in GICD_PIDR2. */
    g_assert_cmphex(qtest_readl(qts, 0x3fffffe8) & 0xf0, ==, 0x30);
    finish(&e, qts);
}

/* Is @text among the @len bytes? */
static bool holds(const uint8_t *data, size_t len, const char *text)
{
    return memmem(data, len, text, strlen(text)) != NULL;
}

static void test_memory(void)
{
    static const char extra[] = "EXTRA";
    static const char initramfs[] = RAMDISK_1 RAMDISK_2 "\0\0\0" "EXTRA";
    g_autofree char *initrd = write_temporary(extra, strlen(extra));
    g_autofree char *args = g_strdup_printf("-append quiet -smp 3 -initrd %s",
                                            initrd);
    uint8_t data[KERNEL_BYTES];
    Enclave e;
    QTestState *qts = start(&e, args);
    uint32_t size;

    qtest_memread(qts, KERNEL, data, KERNEL_BYTES);
    g_assert_cmpmem(data, KERNEL_BYTES, e.kernel, KERNEL_BYTES);
    qtest_memread(qts, INITRAMFS, data, sizeof(initramfs) - 1);
    g_assert_cmpmem(data, sizeof(initramfs) - 1, initramfs,
                    sizeof(initramfs) - 1);

    /* The header of a device tree is big-endian. */
    qtest_memread(qts, DTB, data, sizeof(data));
    g_assert_cmphex((uint32_t)ldl_be_p(data), ==, 0xd00dfeed);
    size = ldl_be_p(data + 4);
    g_assert_cmpuint(size, <, sizeof(data));
    g_assert_true(holds(data, size, CMDLINE " quiet"));
    g_assert_true(holds(data, size, "cpu@2"));
    g_assert_false(holds(data, size, "cpu@3"));
    g_assert_true(holds(data, size, "rng-seed"));
    g_assert_true(holds(data, size, "virtio_mmio@40003000"));
    unlink(initrd);
    finish(&e, qts);
}

static void test_registers(void)
{
    Enclave e;
    QTestState *qts = start(&e, "");
    g_autofree char *said = qtest_hmp(qts, "info registers");

    g_assert_nonnull(strstr(said, "PC=0000000080200000"));
    g_assert_nonnull(strstr(said, "X00=0000000083e00000"));
    g_assert_nonnull(strstr(said, "X01=0000000000000000"));
    /* EL1, interrupts masked. */
    g_assert_nonnull(strstr(said, "PSTATE=400003c5"));
    finish(&e, qts);
}

static void test_measured(void)
{
    Enclave e;
    QTestState *qts = start(&e, "");

    enclave_expect_measured(&e, qts, false, enclave_zero_pcr,
                            enclave_zero_pcr);
    finish(&e, qts);
}

static void test_reset(void)
{
    Enclave e;
    QTestState *qts = start(&e, "");

    qtest_qmp_assert_success(qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(qts, "SHUTDOWN");
    qtest_set_expected_status(qts, 0);
    qtest_wait_qemu(qts);
    finish(&e, qts);
}

static void refused(const char *args, const char *message)
{
    g_autofree char *err = NULL;
    g_autofree char *line = NULL;
    Enclave e;

    enclave_init(&e);
    line = g_strdup_printf("-nodefaults -M nitro-enclave,vsock=c %s "
                           "-kernel %s %s", e.chardev, e.eif, args);
    g_assert_cmpint(nitro_qemu_run(line, NULL, &err), ==, 1);
    if (!strstr(err, message)) {
        g_error("\"%s\" does not say \"%s\"", err, message);
    }
    enclave_clear(&e);
}

static void test_refused(void)
{
    g_autoptr(GByteArray) eif = NULL;
    g_autofree char *err = NULL, *line = NULL;
    Enclave e;

    refused("-cpu cortex-a15", "needs a 64-bit CPU; leave it out for "
            "neoverse-n1");
    refused("-smp 129", "129");
    refused("-m 1023G", "1022 GiB of memory at most");
    refused("-m 4M", "kernel-too-large");
    refused("-dtb /dev/null", "-dtb is not supported");
    refused("-bios /dev/null", "-bios is not supported");

    /* The flag says x86_64, and that is said first. */
    make_kernel(e.kernel);
    eif = make_eif(e.kernel, CMDLINE);
    eif->data[7] = 0;
    enclave_init_eif(&e, eif);
    line = g_strdup_printf("-nodefaults -M nitro-enclave,vsock=c %s "
                           "-kernel %s", e.chardev, e.eif);
    g_assert_cmpint(nitro_qemu_run(line, NULL, &err), ==, 1);
    g_assert_nonnull(strstr(err, "run it with qemu-system-x86_64"));
    enclave_clear(&e);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/nitro-enclave/devices", test_devices);
    qtest_add_func("/nitro-enclave/memory", test_memory);
    qtest_add_func("/nitro-enclave/registers", test_registers);
    qtest_add_func("/nitro-enclave/measured", test_measured);
    qtest_add_func("/nitro-enclave/reset", test_reset);
    qtest_add_func("/nitro-enclave/refused", test_refused);
    return g_test_run();
}
