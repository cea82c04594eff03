/*
 * SPDX-License-Identifier: MIT
 *
 * Kernel modules.  What the enclave's own devices need is named in the first
 * ramdisk's file /modules, a path a line in loading order, and is /nsm.ko in
 * AWS's; all of it is loaded before the heartbeat and deleted.
 *
 * What a program may want besides is named in /modules.demand, a line each:
 *
 *     late PATH                  loaded after the heartbeat: no kernel asks
 *     node NAME MAJOR MINOR      a character device that stands below /dev
 *                                before its driver is there
 *     need NAME PATH...          loaded in this order when the kernel asks for
 *                                NAME, a pattern as in a module's aliases
 *
 * A kernel asks by starting the program that /proc/sys/kernel/modprobe names,
 * as modprobe -q -- NAME.  That is this program again: PID 1's own executable,
 * which nothing in the application's root can hide, and the ramdisk through a
 * descriptor that PID 1 keeps.  What is not known here is left to the
 * application's own /sbin/modprobe, which a kernel starts by itself.
 *
 * No module is looked for anywhere else, and none is unloaded.
 */

#define _GNU_SOURCE
#include "modules.h"
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MODULE_LIST "/modules"
#define NSM_MODULE "/nsm.ko"
#define DEMAND_LIST "/modules.demand"

/* Where PID 1 keeps the first ramdisk's root, and how the helper finds it. */
#define RAMDISK_FD 100
#define RAMDISK "/proc/1/fd/100"
#define HELPER "/proc/1/exe"
#define MODPROBE "/sbin/modprobe"

/* linux/module.h: the kernel unpacks it. */
#define MODULE_INIT_COMPRESSED_FILE 4

static int insert(const char *path)
{
    const char *end = strrchr(path, '.');
    int flags = end && strcmp(end, ".ko") ? MODULE_INIT_COMPRESSED_FILE : 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int got, saved;

    if (fd < 0) {
        return -1;
    }
    got = syscall(SYS_finit_module, fd, "", flags);
    saved = errno;
    close(fd);
    errno = saved;
    return got < 0 && errno != EEXIST ? -1 : 0;
}

/* Insert a module and delete its file. */
static int consume(const char *path)
{
    if (insert(path) < 0) {
        return -1;
    }
    if (unlink(path) < 0) {
        die_about("unlink", path);
    }
    return 0;
}

void modules_load(void)
{
    size_t n;
    char **list = read_lines(MODULE_LIST, &n);

    if (!list && errno != ENOENT) {
        die_about("read", MODULE_LIST);
    }
    if (list) {
        for (size_t i = 0; i < n; i++) {
            if (consume(list[i]) < 0) {
                die_about("failed to insert module", list[i]);
            }
        }
        unlink(MODULE_LIST);
    }
    if (access(NSM_MODULE, F_OK) < 0 && errno == ENOENT) {
        return;
    }
    if (consume(NSM_MODULE) < 0) {
        die("failed to insert nsm driver");
    }
}

/* --- On demand ----------------------------------------------------------- */

/* The words of @line after its first, if that is @kind; else NULL. */
static char *words_of(char *line, const char *kind)
{
    size_t len = strlen(kind);

    return !strncmp(line, kind, len) && line[len] == ' ' ? line + len + 1 :
                                                           NULL;
}

static char **demands;
static size_t demand_count;

void modules_load_late(void)
{
    int fd;

    demands = read_lines(DEMAND_LIST, &demand_count);
    if (!demands) {
        if (errno != ENOENT) {
            warn_about("read", DEMAND_LIST);
        }
        return;
    }
    for (size_t i = 0; i < demand_count; i++) {
        const char *path = words_of(demands[i], "late");

        /* Some are for a hypervisor that is not below us. */
        if (path && insert(path) < 0 && errno != ENODEV &&
            errno != EOPNOTSUPP) {
            warn_about("module", path);
        }
    }
    fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || dup3(fd, RAMDISK_FD, O_CLOEXEC) < 0) {
        die_about("open", "/");
    }
    close(fd);
}

static void make_node(const char *words)
{
    char name[64], path[PATH_MAX];
    unsigned major, minor;
    char *slash;

    if (sscanf(words, "%63s %u %u", name, &major, &minor) != 3) {
        errno = EINVAL;
        warn_about("device", words);
        return;
    }
    snprintf(path, sizeof(path), "/dev/%s", name);
    slash = strrchr(path + strlen("/dev/"), '/');
    if (slash) {
        *slash = '\0';
        mkdir(path, 0755);
        *slash = '/';
    }
    if (mknod(path, S_IFCHR | 0600, makedev(major, minor)) < 0 &&
        errno != EEXIST) {
        warn_about("mknod", path);
    }
}

void modules_serve(void)
{
    static const char setting[] = "/proc/sys/kernel/modprobe";
    int fd;

    if (!demands) {
        return;
    }
    for (size_t i = 0; i < demand_count; i++) {
        const char *words = words_of(demands[i], "node");

        if (words) {
            make_node(words);
        }
    }
    fd = open(setting, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, HELPER, strlen(HELPER)) < 0) {
        warn_about("modules cannot be loaded on demand", setting);
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* --- The helper ---------------------------------------------------------- */

/* Like modprobe, which takes - for _. */
static void plain(char *name)
{
    for (; *name; name++) {
        if (*name == '-') {
            *name = '_';
        }
    }
}

/* Insert what @words names: a pattern that fits already, then paths. */
static int insert_all(char *words)
{
    char *rest, path[PATH_MAX];
    int failed = 0;

    strtok_r(words, " ", &rest);
    for (char *word; (word = strtok_r(NULL, " ", &rest));) {
        snprintf(path, sizeof(path), RAMDISK "%s", word);
        failed |= insert(path) < 0;
    }
    return failed;
}

int modules_answer(char **argv)
{
    char *name = NULL, **list;
    size_t n;
    int found = 0, failed = 0;

    for (size_t i = 1; argv[i] && !name; i++) {
        if (argv[i][0] != '-') {
            name = strdup(argv[i]);
        }
    }
    list = read_lines(RAMDISK DEMAND_LIST, &n);
    if (!name || !list) {
        return 1;
    }
    plain(name);
    for (size_t i = 0; i < n; i++) {
        char *words = words_of(list[i], "need");
        char *pattern = words ? strndup(words, strcspn(words, " ")) : NULL;

        if (pattern && !fnmatch(pattern, name, 0)) {
            found = 1;
            failed |= insert_all(words);
        }
        free(pattern);
    }
    free(name);
    if (!found) {
        argv[0] =
            (char *)MODPROBE; /* by which some programs know what they are */
        execv(MODPROBE, argv);
        return 1;
    }
    return failed;
}
