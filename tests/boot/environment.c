/*
 * SPDX-License-Identifier: MIT
 *
 * Says what an application finds where init has started it, one fact a line:
 * mounts, modes, limits, variables, descriptors, signals, session.  Left out is
 * what is another one in each boot.  Then it fails, with status 3.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>

#define PATH_SIZE 1024

/* The lines of a file that begin with one of @keys; all without keys. */
static void show_file(const char *path, const char *const *keys)
{
    char line[4096];
    FILE *file = fopen(path, "r");

    if (!file) {
        printf("%s: %s\n", path, strerror(errno));
        return;
    }
    while (fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        for (size_t i = 0; !keys || keys[i]; i++) {
            if (!keys || !strncmp(line, keys[i], strlen(keys[i]))) {
                printf("%s: %s\n", path, line);
                break;
            }
        }
    }
    fclose(file);
}

/* Without the numbers of mounts and devices. */
static void show_mounts(void)
{
    char line[4096], root[PATH_SIZE], at[PATH_SIZE];
    int used;
    FILE *file = fopen("/proc/self/mountinfo", "r");

    while (file && fgets(line, sizeof(line), file)) {
        if (sscanf(line, "%*d %*d %*s %1023s %1023s %n", root, at, &used) ==
            2) {
            printf("mount: %s %s %s", root, at, line + used);
        }
    }
    if (file) {
        fclose(file);
    }
}

static void show_path(const char *path)
{
    char target[PATH_SIZE] = "";
    struct stat s;

    if (lstat(path, &s) < 0) {
        printf("path: %s: %s\n", path, strerror(errno));
        return;
    }
    if (S_ISLNK(s.st_mode)) {
        ssize_t len = readlink(path, target, sizeof(target) - 1);

        target[len < 0 ? 0 : len] = '\0';
    }
    printf("path: %s %o %u:%u %lx %s\n", path, s.st_mode, s.st_uid, s.st_gid,
           (unsigned long)s.st_rdev, target);
}

static int no_dots(const struct dirent *e)
{
    return strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
}

static void show_folder(const char *folder)
{
    struct dirent **entries;
    int n = scandir(folder, &entries, no_dots, alphasort);

    show_path(folder);
    for (int i = 0; i < n; i++) {
        char path[PATH_SIZE];

        snprintf(path, sizeof(path), "%s/%s", strcmp(folder, "/") ? folder : "",
                 entries[i]->d_name);
        show_path(path);
    }
}

static void show_descriptors(void)
{
    for (int fd = 0; fd < 1024; fd++) {
        char path[64], target[PATH_SIZE];
        int flags = fcntl(fd, F_GETFL);
        ssize_t len;

        if (flags < 0) {
            continue;
        }
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        len = readlink(path, target, sizeof(target) - 1);
        target[len < 0 ? 0 : len] = '\0';
        printf("descriptor: %d %s %o %o\n", fd, target, flags,
               fcntl(fd, F_GETFD));
    }
}

/* Of PID 1: what each is, without numbers. */
static void show_init(void)
{
    struct dirent **entries;
    int n = scandir("/proc/1/fd", &entries, no_dots, versionsort);

    for (int i = 0; i < n; i++) {
        char path[PATH_SIZE], target[PATH_SIZE];
        ssize_t len;

        snprintf(path, sizeof(path), "/proc/1/fd/%s", entries[i]->d_name);
        len = readlink(path, target, sizeof(target) - 1);
        target[len < 0 ? 0 : len] = '\0';
        target[strcspn(target, "[")] = '\0';
        printf("init's descriptor: %s %s\n", entries[i]->d_name, target);
    }
}

static void show_processes(void)
{
    struct dirent **entries;
    int n = scandir("/proc", &entries, no_dots, versionsort);
    int programs = 0;

    for (int i = 0; i < n; i++) {
        char path[PATH_SIZE], target[8];

        snprintf(path, sizeof(path), "/proc/%s/exe", entries[i]->d_name);
        programs += readlink(path, target, sizeof(target)) > 0 &&
                    strcmp(entries[i]->d_name, "self") &&
                    strcmp(entries[i]->d_name, "thread-self");
    }
    printf("processes: %d\n", programs);
}

static void show_limits(void)
{
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit;

        getrlimit(i, &limit);
        printf("limit: %d %lld %lld\n", i, (long long)limit.rlim_cur,
               (long long)limit.rlim_max);
    }
    printf("nice: %d, policy %d\n", getpriority(PRIO_PROCESS, 0),
           sched_getscheduler(0));
    printf("personality: %x\n", personality(0xffffffff));
}

static void show_session(void)
{
    struct termios terminal;
    int fd = open("/dev/tty", O_RDWR);

    printf("session: %d %d\n", getsid(0) == getpid(), getpgrp() == getpid());
    printf("controlling terminal: %s\n", fd < 0 ? strerror(errno) : "yes");
    printf("terminal: %d %d %d\n", isatty(0), isatty(1), isatty(2));
    if (tcgetattr(0, &terminal) == 0) {
        printf("terminal: %x %x %x %x\n", terminal.c_iflag, terminal.c_oflag,
               terminal.c_cflag, terminal.c_lflag);
    }
}

static void show_host(void)
{
    struct ifreq lo = { .ifr_name = "lo" };
    struct utsname name;

    uname(&name);
    printf("host: %s %s\n", name.nodename, name.domainname);
    ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCGIFFLAGS, &lo);
    printf("lo: %x\n", lo.ifr_flags);
}

static void show_start(char **argv)
{
    char cwd[PATH_SIZE];

    for (; *argv; argv++) {
        printf("argument: %s\n", *argv);
    }
    for (char **e = environ; *e; e++) {
        printf("variable: %s\n", *e);
    }
    printf("folder: %s\n", getcwd(cwd, sizeof(cwd)));
}

int main(int argc, char **argv)
{
    static const char *const folders[] = {
        "/",    "/dev", "/dev/shm", "/dev/pts",
        "/run", "/tmp", "/sys",     "/sys/fs/cgroup",
    };
    static const char *const own[] = { "Umask",    "Uid",  "Gid", "Groups",
                                       "Sig",      "Shd",  "Cap", "NoNewPrivs",
                                       "Seccomp:", "PPid", NULL };
    static const char *const init[] = { "Sig",   "Shd",  "Cap",
                                        "Umask", "Name", NULL };
    static const char *const files[] = {
        "/proc/1/cmdline",
        "/proc/self/cgroup",
        "/proc/self/coredump_filter",
        "/proc/self/oom_score_adj",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
    };

    (void)argc;
    show_start(argv);
    show_mounts();
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        show_folder(folders[i]);
    }
    show_descriptors();
    show_init();
    show_processes();
    show_limits();
    show_file("/proc/self/status", own);
    show_file("/proc/1/status", init);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        show_file(files[i], NULL);
    }
    show_session();
    show_host();
    puts("environment: done");
    fflush(stdout);
    return 3;
}
