/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QTest for what the nitro-enclave board refuses
 *
 * Options, chardevs, RAM, kernels and images: QEMU ends with status 1 and one
 * line that says what is wrong. What the board makes of good ones is
 * nitro-enclave-test's subject; the rules of the image have their own tests,
 * and it is enough here that each reaches the user.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "nitro-qtest-enclave.h"

/* QEMU must end with status 1 and one line that holds @message. */
static void expect_refusal(const char *args, const char *message)
{
    g_autofree char *err = NULL;
    g_autofree char *line = g_strdup_printf("-nodefaults %s", args);
    int status = nitro_qemu_run(line, NULL, &err);
    const char *said;

    if (status != 1 || !strstr(err, message)) {
        g_test_message("status %d: %s", status, err);
    }
    g_assert_cmpint(status, ==, 1);
    g_assert_nonnull(strstr(err, message));
    said = err;
    if (g_str_has_prefix(said, "==")) {
        /* AddressSanitizer says first that it does not know coroutines. */
        said = strchr(said, '\n') + 1;
    }
    g_assert_true(strchr(said, '\n') == said + strlen(said) - 1);
}

static void test_options(void)
{
    g_autofree char *hundred = g_strnfill(100, 'x');
    g_autofree char *long_id = g_strdup_printf("id=%s", hundred);
    const struct {
        const char *option;
        const char *message;
    } bad[] = {
        { "id=", "id='' has 0 characters: 1 to 99" },
        { long_id, "has 100 characters: 1 to 99" },
        { "id='a b'", "id has a byte 0x20 at position 1" },
        { "id=\xc3\xa4", "id has a byte 0xc3 at position 0" },
        { "parent-id=", "parent-id='' has 0 characters" },
        { "parent-id='i- 0'", "parent-id has a byte 0x20 at position 2" },
        { "parent-role=", "parent-role='' has 0 characters" },
        { "parent-role='a\n'", "parent-role has a byte 0x0a at position 1" },
        { "eif-signature=maybe", "maybe" },
        { "document-form=2022", "2022" },
        { "acpi=on,ioapic2=on", "ioapic2=on is not supported" },
        { "overlay-keep-pcrs=on", "is for an enclave that is not measured" },
        { "overlay=/x,overlay-keep-pcrs=on,debug-mode=on",
          "keeps the PCRs that debug-mode=on has zero" },
        { "unmeasured=off", "unmeasured" },
        { "cert-key=/dev/null", "(options)" },
        { "cert-chain=/nonexistent,cert-key=/nonexistent", "(unreadable)" },
    };
    Enclave e;
    int i;

    expect_refusal("-M nitro-enclave", "needs the option vsock");
    expect_refusal("-M nitro-enclave,vsock=nobody", "no chardev 'nobody'");
    expect_refusal("-M nitro-enclave,vsock=n -chardev null,id=n",
                   "chardev 'n' is not a unix socket");
    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *args = NULL;

        enclave_init(&e);
        args = g_strdup_printf("-M nitro-enclave,vsock=c,%s %s -kernel %s",
                               bad[i].option, e.chardev, e.eif);
        expect_refusal(args, bad[i].message);
        enclave_clear(&e);
    }
}

/* @args follow a good machine and a good chardev. */
static void refuse_arguments(bool kernel, const char *args,
                             const char *message)
{
    g_autofree char *line = NULL;
    Enclave e;

    enclave_init(&e);
    line = g_strdup_printf("-M nitro-enclave,vsock=c %s %s %s %s", e.chardev,
                           kernel ? "-kernel" : "", kernel ? e.eif : "",
                           args);
    expect_refusal(line, message);
    enclave_clear(&e);
}

/* Each by its name, and with the overlay's, not the image's. */
static void test_overlay(void)
{
    static const char good[] = OVERLAY;
    const struct {
        const char *data;
        size_t len;
        const char *rule;
    } bad[] = {
        { "\x1f\x8b\b\0", 4, "this is gzip: unpack it (overlay-not-cpio)" },
        { good, sizeof(good) - 2, "(overlay-misaligned)" },
        { good, 112, "was cut (overlay-not-cpio)" },
        { good, 0, "(overlay-not-cpio)" },
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *file = write_temporary(bad[i].data, bad[i].len);
        g_autofree char *args = g_strdup_printf("-M overlay=%s", file);
        g_autofree char *named = g_strdup_printf("%s: ", file);

        refuse_arguments(true, args, bad[i].rule);
        if (i == 0) {
            refuse_arguments(true, args, named);
        }
        if (i == ARRAY_SIZE(bad) - 1) {
            g_assert_cmpint(truncate(file, GiB), ==, 0);
            refuse_arguments(true, args, "(overlay-too-large)");
        }
        unlink(file);
    }
    refuse_arguments(true, "-M overlay=/nonexistent",
                     "'/nonexistent': No such file or directory");
    refuse_arguments(true, "-M overlay=/dev/null",
                     "the overlay is not a regular file (io)");
}

static void test_kernel(void)
{
    refuse_arguments(false, "", "use -kernel FILE.eif");
    refuse_arguments(false, "-kernel /nonexistent.eif",
                     "'/nonexistent.eif': No such file or directory");
    refuse_arguments(true, "-initrd /nonexistent",
                     "'/nonexistent': No such file or directory");
    refuse_arguments(true, "-dtb /dev/null", "-dtb is not supported");
    refuse_arguments(true, "-bios /dev/null", "-bios is not supported");
    refuse_arguments(true, "-M acpi=on -bios /dev/null",
                     "-bios is not supported");
    refuse_arguments(true, "-smp 255", "at most 254 CPUs");
    refuse_arguments(false, "-kernel /dev/null", "(io)");
}

/* A backend that has no configuration space cannot tell the guest its CID. */
static void test_bad_backend(void)
{
    g_autofree char *args = NULL;
    Enclave e;

    enclave_init(&e);
    backend_stop(&e.backend);
    backend_start(&e.backend, PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK);
    args = g_strdup_printf("-M nitro-enclave,vsock=c "
                           "-chardev socket,id=c,path=%s -kernel %s",
                           e.backend.path, e.eif);
    expect_refusal(args, "the backend behind chardev 'c' does not serve");
    enclave_clear(&e);
}

/* What QEMU itself says when nobody listens. */
static void test_no_backend(void)
{
    refuse_arguments(true, "-chardev socket,id=d,path=/nonexistent",
                     "/nonexistent");
}

static void damage(GByteArray *eif, const char *how)
{
    uint8_t *p = eif->data;

    if (g_str_equal(how, "file-too-short")) {
        g_byte_array_set_size(eif, EIF_HEADER - 1);
    } else if (g_str_equal(how, "bad-magic")) {
        p[0] = 'E';
    } else if (g_str_equal(how, "bad-version")) {
        p[5] = 5;
    } else if (g_str_equal(how, "bad-arch")) {
        p[7] |= 1;
    } else if (g_str_equal(how, "section-offset")) {
        p[EIF_OFFSETS + 15]++;
    } else if (g_str_equal(how, "section-beyond-file")) {
        g_byte_array_set_size(eif, eif->len - 1);
    } else if (g_str_equal(how, "trailing-bytes")) {
        g_byte_array_append(eif, p, 1);
    } else if (g_str_equal(how, "crc-mismatch")) {
        p[eif->len - 1] ^= 1;
    } else {
        g_assert_not_reached();
    }
}

/* The rules of the format have their own tests; here: they reach the user. */
static void test_bad_eif(const void *opaque)
{
    const char *rule = opaque;
    g_autofree char *message = g_strdup_printf(" (%s)\n", rule);
    g_autoptr(GByteArray) eif = NULL;
    g_autofree char *args = NULL;
    Enclave e;

    make_kernel(e.kernel);
    if (g_str_equal(rule, "kernel-not-bzimage")) {
        e.kernel[0x202] = 'h';
    } else if (g_str_equal(rule, "kernel-setup-size")) {
        e.kernel[0x1f1] = 200;
    } else if (g_str_equal(rule, "kernel-too-large")) {
        stl_le_p(e.kernel + 0x260, 113 * MiB);  /* 16 MiB further up: */
    } else if (g_str_equal(rule, "initramfs-too-large")) {
        stl_le_p(e.kernel + 0x260, 112 * MiB);  /* all there is of 128 MiB */
    } else if (g_str_equal(rule, "cmdline-too-long")) {
        stl_le_p(e.kernel + 0x238, strlen(CMDLINE) + 40);
    }
    eif = make_eif(e.kernel, CMDLINE);
    if (!g_str_has_prefix(rule, "kernel-") &&
        !g_str_equal(rule, "initramfs-too-large") &&
        !g_str_equal(rule, "cmdline-too-long")) {
        damage(eif, rule);
    }
    enclave_init_eif(&e, eif);
    args = g_strdup_printf("-M nitro-enclave,vsock=c %s -kernel %s -m 128M",
                           e.chardev, e.eif);
    expect_refusal(args, message);
    enclave_clear(&e);
}

/*
 * The device entries count: a command line that the kernel would take alone
 * is refused when they no longer fit, and taken when they just do.
 */
static void test_cmdline_limit(void)
{
    static const char entries[] = " virtio_mmio.device=512@0xfeb00000:5"
                                  " virtio_mmio.device=512@0xfeb00200:6";
    int missing;

    for (missing = 0; missing < 2; missing++) {
        g_autoptr(GByteArray) eif = NULL;
        Enclave e;

        make_kernel(e.kernel);
        stl_le_p(e.kernel + 0x238,
                 strlen(CMDLINE) + strlen(" quiet") + strlen(entries) -
                 missing);
        eif = make_eif(e.kernel, CMDLINE);
        enclave_init_eif(&e, eif);
        if (missing) {
            g_autofree char *args = g_strdup_printf(
                "-M nitro-enclave,vsock=c %s -kernel %s -append quiet",
                e.chardev, e.eif);

            expect_refusal(args, "(cmdline-too-long)");
        } else {
            qtest_quit(enclave_start(&e, "", "-append quiet"));
        }
        enclave_clear(&e);
    }
}

static void test_ram_refused(void)
{
    g_autofree char *dir = g_dir_make_tmp("nitro-enclave-XXXXXX", NULL);
    g_autofree char *mem_path = g_strdup_printf("-mem-path %s", dir);

    refuse_arguments(true, "-m 64M -M memory-backend=r "
                     "-object memory-backend-memfd,id=r,size=64M,share=off",
                     "memory-backend 'r' is not shared");
    refuse_arguments(true, "-m 64M -M memory-backend=r "
                     "-object memory-backend-ram,id=r,size=64M",
                     "memory-backend 'r' is not shared");
    if (NITRO_REFUSES_MEM_PATH) {
        refuse_arguments(true, mem_path, "-mem-path is not supported");
    }
    refuse_arguments(true, "-m 64M "
                     "-object memory-backend-memfd,id=r,size=64M,share=on "
                     "-numa node,memdev=r", "-numa memdev is not supported");
    rmdir(dir);
}

int main(int argc, char **argv)
{
    static const char *const rules[] = {
        "file-too-short", "bad-magic", "bad-version", "bad-arch",
        "section-offset", "section-beyond-file", "trailing-bytes",
        "crc-mismatch", "kernel-not-bzimage", "kernel-setup-size",
        "kernel-too-large", "cmdline-too-long", "initramfs-too-large",
    };
    int i;

    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/nitro-enclave/options", test_options);
    qtest_add_func("/nitro-enclave/overlay", test_overlay);
    qtest_add_func("/nitro-enclave/kernel", test_kernel);
    qtest_add_func("/nitro-enclave/bad-backend", test_bad_backend);
    qtest_add_func("/nitro-enclave/no-backend", test_no_backend);
    for (i = 0; i < ARRAY_SIZE(rules); i++) {
        g_autofree char *path = g_strdup_printf("/nitro-enclave/eif/%s",
                                                rules[i]);

        qtest_add_data_func(path, rules[i], test_bad_eif);
    }
    qtest_add_func("/nitro-enclave/eif/cmdline-limit", test_cmdline_limit);
    qtest_add_func("/nitro-enclave/ram/refused", test_ram_refused);

    return g_test_run();
}
