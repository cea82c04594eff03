/*
 * SPDX-License-Identifier: MIT
 *
 * qemu-system-x86_64 or -aarch64 with the nitro-enclave plugin: checks, exec
 *
 * Starts the QEMU that the plugin was built for with the plugin preloaded,
 * and with the very arguments given here. Before that it makes sure that the
 * dynamic linker can neither fail nor ignore the plugin: QEMU's file has the
 * build-id that the plugin was built for, and no privileges are raised by
 * starting it. It is no wrapper: nothing of it is left once QEMU runs.
 *
 * Compiled by nitroctl, with what its manifest says:
 *   NITRO_QEMU      path of the QEMU
 *   NITRO_BUILD_ID  its GNU build-id, in small hex
 *   NITRO_VERSION   its package and version, for people
 *   NITRO_TREE      what else to do, for people
 * The plugin is ../lib/nitro-enclave.so, as seen from this program.
 *
 * Formats: elf(5); the note of the build-id is described in "ELF Note
 * Sections" of the GNU linker's --build-id.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define PLUGIN "/lib/nitro-enclave.so"
#define REBUILD "nitroctl build --plugin --qemu " NITRO_QEMU

/* More than any linker writes; a file that has more is not looked at. */
#define PROGRAM_HEADERS_MAX 64
#define NOTES_MAX 4096

static void __attribute__((noreturn, format(printf, 1, 2))) die(
    const char *format, ...)
{
    va_list ap;

    fprintf(stderr, "%s (nitro-enclave): ", program_invocation_short_name);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

/* The build-id among the notes of one segment, as hex; false: not there. */
static int find_note(const unsigned char *notes, size_t len, char *hex,
                     size_t size)
{
    size_t at = 0;

    while (len - at >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr note;
        size_t name, desc;

        memcpy(&note, notes + at, sizeof(note));
        at += sizeof(note);
        name = ((size_t)note.n_namesz + 3) & ~(size_t)3;
        desc = ((size_t)note.n_descsz + 3) & ~(size_t)3;
        if (name > len - at || desc > len - at - name) {
            return 0;
        }
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
            !memcmp(notes + at, ELF_NOTE_GNU, 4) && note.n_descsz < size / 2) {
            size_t i;

            for (i = 0; i < note.n_descsz; i++) {
                snprintf(hex + 2 * i, 3, "%02x", notes[at + name + i]);
            }
            return 1;
        }
        at += name + desc;
    }
    return 0;
}

static int read_build_id(int fd, char *hex, size_t size)
{
    Elf64_Ehdr file;
    Elf64_Phdr headers[PROGRAM_HEADERS_MAX];
    size_t i;

    if (pread(fd, &file, sizeof(file), 0) != sizeof(file) ||
        memcmp(file.e_ident, ELFMAG, SELFMAG) ||
        file.e_ident[EI_CLASS] != ELFCLASS64 ||
        file.e_phentsize != sizeof(*headers) ||
        file.e_phnum > PROGRAM_HEADERS_MAX || file.e_phoff > INT32_MAX) {
        return 0;
    }
    if (pread(fd, headers, file.e_phnum * sizeof(*headers),
              (off_t)file.e_phoff) !=
        (ssize_t)(file.e_phnum * sizeof(*headers))) {
        return 0;
    }
    for (i = 0; i < file.e_phnum; i++) {
        unsigned char notes[NOTES_MAX];
        const Elf64_Phdr *h = &headers[i];

        if (h->p_type == PT_NOTE && h->p_filesz <= sizeof(notes) &&
            h->p_offset <= INT32_MAX &&
            pread(fd, notes, h->p_filesz, (off_t)h->p_offset) ==
                (ssize_t)h->p_filesz &&
            find_note(notes, h->p_filesz, hex, size)) {
            return 1;
        }
    }
    return 0;
}

static void check_qemu(void)
{
    char id[2 * 64 + 1] = "";
    struct stat st;
    int fd = open(NITRO_QEMU, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st)) {
        die("%s: %s. The plugin is for %s there; install it again, or %s",
            NITRO_QEMU, strerror(errno), NITRO_VERSION, NITRO_TREE);
    }
    if (!read_build_id(fd, id, sizeof(id)) || strcmp(id, NITRO_BUILD_ID)) {
        die("%s has changed: the plugin was built for %s, build-id %s; found "
            "%s. Rebuild it: %s",
            NITRO_QEMU, NITRO_VERSION, NITRO_BUILD_ID, *id ? id : "none",
            REBUILD);
    }
    if (st.st_mode & (S_ISUID | S_ISGID)) {
        die("%s is set%s: the dynamic linker preloads nothing into such a "
            "program. Take that off, or %s",
            NITRO_QEMU, st.st_mode & S_ISUID ? "uid" : "gid", NITRO_TREE);
    }
    if (fgetxattr(fd, "security.capability", NULL, 0) > 0) {
        die("%s has file capabilities: the dynamic linker preloads nothing "
            "into such a program. Take them off (setcap -r), or %s",
            NITRO_QEMU, NITRO_TREE);
    }
    if (getauxval(AT_SECURE) || getuid() != geteuid() ||
        getgid() != getegid()) {
        die("user %u runs with the rights of %u: the dynamic linker preloads "
            "nothing then. Start it as one user, or %s",
            (unsigned)getuid(), (unsigned)geteuid(), NITRO_TREE);
    }
    close(fd);
}

/* LD_PRELOAD: the plugin, then what was there; the plugin undoes it. */
static void preload_plugin(void)
{
    static char value[PATH_MAX + 64];
    const char *before = getenv("LD_PRELOAD");
    ssize_t n = readlink("/proc/self/exe", value, PATH_MAX);
    char *slash = NULL;
    char *all = value;
    int i;

    if (n > 0 && n < PATH_MAX) {
        value[n] = '\0';
        for (i = 0; i < 2 && (slash = strrchr(value, '/')); i++) {
            *slash = '\0';
        }
    }
    if (!slash) {
        die("/proc/self/exe does not say where this program is");
    }
    strcpy(slash, PLUGIN);
    if (access(value, R_OK)) {
        die("%s: %s. Rebuild it: %s", value, strerror(errno), REBUILD);
    }
    if (strpbrk(value, ": ")) {
        die("%s: the dynamic linker takes no path with a space or a colon "
            "in LD_PRELOAD; set XDG_CACHE_HOME to another folder",
            value);
    }
    if (before && asprintf(&all, "%s:%s", value, before) < 0) {
        die("no memory");
    }
    if (setenv("LD_PRELOAD", all, 1)) {
        die("no memory");
    }
}

int main(int argc, char **argv)
{
    (void)argc;
    check_qemu();
    preload_plugin();
    execv(NITRO_QEMU, argv);
    die("%s: %s", NITRO_QEMU, strerror(errno));
}
