/*
 * SPDX-License-Identifier: MIT
 *
 * A stand-in for AWS's init: the steps that its documented behaviour consists
 * of, one after the other, and nothing of our own.  Ours is compared with it.
 * Static, /init of the first ramdisk; it says little when something fails.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define ENTRIES 64
#define PATH "PATH=/sbin:/usr/sbin:/bin:/usr/bin"

static const unsigned long strict = MS_NOSUID | MS_NODEV | MS_NOEXEC;

static void must(int done, const char *what)
{
    if (done < 0) {
        perror(what);
        _exit(1);
    }
}

static void beat(void)
{
    const struct sockaddr_vm parent = { .svm_family = AF_VSOCK,
                                        .svm_cid = 3,
                                        .svm_port = 9000 };
    unsigned char byte = 0xb7;
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    must(connect(fd, (const struct sockaddr *)&parent, sizeof(parent)),
         "connect");
    must(write(fd, &byte, 1), "write heartbeat");
    must(read(fd, &byte, 1), "read heartbeat");
    must(byte == 0xb7 ? 0 : -1, "received wrong heartbeat");
    close(fd);
}

static void lines_of(const char *path, char **entries, char *otherwise)
{
    FILE *file = fopen(path, "r");
    size_t size = 0, n = 0;

    must(file ? 0 : -1, path);
    while (n < ENTRIES - 1 && getline(&entries[n], &size, file) > 0) {
        entries[n][strcspn(entries[n], "\n")] = '\0';
        n++;
        size = 0;
    }
    free(entries[n]);
    entries[n] = NULL;
    if (n == 0) {
        entries[0] = otherwise;
    }
    fclose(file);
    must(unlink(path), path);
}

static void mount_controllers(void)
{
    char line[256], name[128], path[256];
    unsigned hierarchy, groups, enabled;
    FILE *file = fopen("/proc/cgroups", "r");

    must(mount("cgroup_root", "/sys/fs/cgroup", "tmpfs", strict, "mode=0755"),
         "cgroup_root");
    must(file ? 0 : -1, "/proc/cgroups");
    while (fgets(line, sizeof(line), file)) {
        if (line[0] != '#' &&
            sscanf(line, "%127s %u %u %u", name, &hierarchy, &groups,
                   &enabled) == 4 &&
            enabled) {
            snprintf(path, sizeof(path), "/sys/fs/cgroup/%s", name);
            must(mkdir(path, 0555), path);
            must(mount(name, path, "cgroup", strict, name), path);
        }
    }
    fclose(file);
}

static void enter(void)
{
    must(mount("/rootfs", "/rootfs", NULL, MS_BIND, NULL), "bind");
    must(chdir("/rootfs"), "chdir");
    must(mount(".", "/", NULL, MS_MOVE, NULL), "move");
    must(chroot("."), "chroot");
    must(chdir("/"), "chdir");
}

static void mount_all(void)
{
    must(mount("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL), "dev");
    must(mount("proc", "/proc", "proc", strict, NULL), "proc");
    must(symlink("/proc/self/fd", "/dev/fd"), "fd");
    must(symlink("/proc/self/fd/0", "/dev/stdin"), "stdin");
    must(symlink("/proc/self/fd/1", "/dev/stdout"), "stdout");
    must(symlink("/proc/self/fd/2", "/dev/stderr"), "stderr");
    must(mount("tmpfs", "/run", "tmpfs", strict, "mode=0755"), "run");
    must(mount("tmpfs", "/tmp", "tmpfs", strict, NULL), "tmp");
    must(mkdir("/dev/shm", 0755), "shm");
    must(mount("shm", "/dev/shm", "tmpfs", strict, NULL), "shm");
    must(mkdir("/dev/pts", 0755), "pts");
    must(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, NULL),
         "pts");
    must(mount("sysfs", "/sys", "sysfs", strict, NULL), "sys");
    mount_controllers();
}

int main(void)
{
    static char *cmd[ENTRIES], *env[ENTRIES];
    sigset_t all, before;
    int status;
    pid_t pid;

    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    /* The kernel may have mounted it. */
    mount("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL);
    must(freopen("/dev/console", "r", stdin) ? 0 : -1, "stdin");
    must(freopen("/dev/console", "w", stdout) ? 0 : -1, "stdout");
    must(freopen("/dev/console", "w", stderr) ? 0 : -1, "stderr");
    beat();
    lines_of("/env", env, PATH);
    lines_of("/cmd", cmd, "sh");

    enter();
    mount_all();
    pid = fork();
    if (pid == 0) {
        sigprocmask(SIG_SETMASK, &before, NULL);
        setsid();
        putenv(PATH);
        execvpe(cmd[0], cmd, env);
        _exit(1);
    }
    must(waitpid(pid, &status, 0), "waitpid");
    if (WIFEXITED(status) && WEXITSTATUS(status)) {
        fputs("child exited with error\n", stderr);
    } else if (WIFSIGNALED(status)) {
        fputs("child exited by signal\n", stderr);
    }
    tcdrain(STDERR_FILENO);
    reboot(RB_AUTOBOOT);
    return 1;
}
