/*
 * SPDX-License-Identifier: MIT
 *
 * The EIF core's verdict on files, for cross-checks with other readers.  Not a
 * test by itself and not for users.
 *
 *   eif-verdict [--structure] [--ignore-signature] [--now SECONDS]
 *               [--arch ARCH] [--lowmem BYTES] [--load]
 *
 * Reads frames from standard input, each a little-endian u32 length and a
 * file's bytes, and answers each with one line:
 *
 *   ok PCR0 PCR1 PCR2 PCR8      in hex; PCR8 is "-" if there is none
 *   RULE text
 *
 * --structure leaves out the boot rules (kernel, placement); --arch takes
 * images for x86_64 or aarch64 alone; --load judges by the loader instead of
 * the checker.  Ends at the end of its input.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <glib.h>

#include "nitro/eif.h"

#define FRAME_MAX   (1u << 30)

static bool arch_of(const char *name, EifArch *arch)
{
    for (int i = EIF_ARCH_ANY; i <= EIF_ARCH_AARCH64; i++) {
        if (!strcmp(eif_arch_name(i), name)) {
            *arch = i;
            return true;
        }
    }
    return false;
}

static void print_hex(const uint8_t *p)
{
    putchar(' ');
    for (int i = 0; i < EIF_DIGEST_SIZE; i++) {
        printf("%02x", p[i]);
    }
}

static void answer(bool ok, const EifMeasurements *m, const EifError *err)
{
    if (ok) {
        fputs("ok", stdout);
        print_hex(m->pcr0);
        print_hex(m->pcr1);
        print_hex(m->pcr2);
        if (m->has_pcr8) {
            print_hex(m->pcr8);
        } else {
            fputs(" -", stdout);
        }
    } else {
        printf("%s %s", eif_rule_name(err->rule), err->text);
    }
    putchar('\n');
    fflush(stdout);
}

static bool load(const uint8_t *data, size_t len, const EifOptions *opt,
                 EifMeasurements *m, EifError *err)
{
    EifImage image;
    EifMemfds fds;
    bool ok;
    int fd = memfd_create("eif", MFD_CLOEXEC);

    if (fd < 0 || (len && write(fd, data, len) != (ssize_t)len)) {
        perror("memfd");
        exit(1);
    }
    ok = eif_load_memfds(fd, -1, -1, opt, &fds, &image, err);
    *m = image.pcr;
    eif_image_clear(&image);
    eif_memfds_close(&fds);
    close(fd);
    return ok;
}

/* False at the end of the input; exits if it ends within a frame. */
static bool read_frame(uint8_t **data, uint32_t *len)
{
    uint8_t head[4];
    size_t n = fread(head, 1, sizeof(head), stdin);

    if (n == 0) {
        return false;
    }
    *len = (uint32_t)head[3] << 24 | head[2] << 16 | head[1] << 8 | head[0];
    if (n != sizeof(head) || *len > FRAME_MAX) {
        fprintf(stderr, "eif-verdict: not a frame\n");
        exit(1);
    }
    *data = g_malloc(*len);
    if (fread(*data, 1, *len, stdin) != *len) {
        fprintf(stderr, "eif-verdict: a frame of %u bytes breaks off\n",
                (unsigned)*len);
        exit(1);
    }
    return true;
}

int main(int argc, char **argv)
{
    gboolean structure = FALSE, ignore = FALSE, use_load = FALSE;
    gint64 now = time(NULL), lowmem = 0;
    g_autofree char *arch = g_strdup("any");
    const GOptionEntry entries[] = {
        { "structure", 0, 0, G_OPTION_ARG_NONE, &structure,
          "Leave out the boot rules", NULL },
        { "ignore-signature", 0, 0, G_OPTION_ARG_NONE, &ignore,
          "A bad signature is no reason to refuse", NULL },
        { "now", 0, 0, G_OPTION_ARG_INT64, &now,
          "The time for certificates, since 1970", "SECONDS" },
        { "arch", 0, 0, G_OPTION_ARG_STRING, &arch,
          "The machine's architecture", "ARCH" },
        { "lowmem", 0, 0, G_OPTION_ARG_INT64, &lowmem,
          "The guest's memory below 4 GiB", "BYTES" },
        { "load", 0, 0, G_OPTION_ARG_NONE, &use_load,
          "Use the loader", NULL },
        { NULL, 0, 0, 0, NULL, NULL, NULL },
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) gerr = NULL;
    EifOptions opt = { 0 };
    uint8_t *data;
    uint32_t len;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &gerr) || argc > 1) {
        fprintf(stderr, "eif-verdict: %s\n",
                gerr ? gerr->message : "takes no arguments");
        return 2;
    }
    if (!arch_of(arch, &opt.arch)) {
        fprintf(stderr, "eif-verdict: --arch is x86_64 or aarch64\n");
        return 2;
    }
    opt.file_rules_only = structure;
    opt.signature = ignore ? EIF_SIGNATURE_IGNORE : EIF_SIGNATURE_VERIFY;
    opt.now = now;
    opt.lowmem = lowmem;

    while (read_frame(&data, &len)) {
        EifMeasurements m;
        EifError err;
        bool ok = use_load ? load(data, len, &opt, &m, &err)
                           : eif_check(data, len, &opt, &m, NULL, &err);

        answer(ok, &m, &err);
        g_free(data);
    }
    return ferror(stdin) ? 1 : 0;
}
