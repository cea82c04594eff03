/*
 * SPDX-License-Identifier: MIT
 *
 * PID 1 of an enclave: brings the guest up as AWS's bootstrap does, tells the
 * parent, runs the application and ends the enclave with it.  Static, started
 * by the kernel from the first ramdisk as /init, with the application's files
 * under /rootfs and its command and environment in /cmd and /env (one entry
 * per line).  Of our own, AWS's knows none of them: /cwd, where the application
 * starts; /user, the numbers of its user, group and further groups; /program,
 * the file to execute where the command's first word is no path; /cmd0 and
 * /env0, in place of the other two where a text in them has a line break.
 * Before the heartbeat it asks for a second port of the parent, which only a
 * local one serves: there it says at the end how the application ended.
 *
 * It is no service manager: one application, no shell, no network set-up (as on
 * AWS even the loopback is left down).
 *
 * Like AWS's it dies of the first thing that fails before the application runs:
 * the kernel panics, and the parent sees no heartbeat or a lost enclave.  The
 * line printed before names the step.  Beside what is said above, three things
 * differ on purpose: the clock is set from the NSM before the heartbeat, a
 * failure's line has its number, and control groups that cannot be mounted are
 * only a warning.  Kernels with modules get them (modules.c).
 *
 * With a file /as-aws in the first ramdisk only the last two remain, which an
 * application cannot meet with a kernel that has what AWS's has.
 */

#define _GNU_SOURCE
#include "clock.h"
#include "init.h"
#include "modules.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define PARENT_CID 3
#define HEARTBEAT_PORT 9000
#define HEARTBEAT 0xb7

/* Where the application's status goes; see vhost-user-vsock's app-status.h. */
#define STATUS_PORT 4294958295u
#define STATUS_MS 1000 /* for the parent's word that it has it */

/* Where commands are looked up, whatever PATH the application is given. */
#define DEFAULT_PATH "PATH=/sbin:/usr/sbin:/bin:/usr/bin"

/* In the first ramdisk: everything as AWS's init does it. */
#define AS_AWS "/as-aws"

static void __attribute__((noreturn)) end(void)
{
    /* A panic or reset would lose what the serial port has not sent yet. */
    tcdrain(STDERR_FILENO);
    _exit(1);
}

void __attribute__((noreturn)) die(const char *step)
{
    fprintf(stderr, "init: %s: %s\n", step, strerror(errno));
    end();
}

void __attribute__((noreturn)) die_about(const char *step, const char *what)
{
    fprintf(stderr, "init: %s: %s: %s\n", step, what, strerror(errno));
    end();
}

void warn_about(const char *step, const char *what)
{
    fprintf(stderr, "init: warning: %s: %s: %s\n", step, what, strerror(errno));
}

/* --- /dev and the console ------------------------------------------------ */

static void mount_dev(void)
{
    /* A kernel with DEVTMPFS_MOUNT may have been here before. */
    if (mount("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL) < 0 &&
        errno != EBUSY) {
        die_about("mount", "/dev");
    }
}

static void open_console(void)
{
    /* As AWS's: what a program writes to its standard input is refused. */
    for (int i = STDIN_FILENO; i <= STDERR_FILENO; i++) {
        int fd = open("/dev/console", i == STDIN_FILENO ? O_RDONLY : O_WRONLY);

        if (fd < 0) {
            die("open /dev/console");
        }
        if (fd != i && dup2(fd, i) < 0) {
            die("dup2");
        }
        if (fd > STDERR_FILENO) {
            close(fd);
        }
    }
}

/* --- Files of lines ------------------------------------------------------ */

/*
 * The entries of a file without the @end of each, as a NULL-terminated array
 * that lives as long as we do.  NULL with errno when it cannot be read.
 */
static char **read_entries(const char *path, char end, size_t *count)
{
    FILE *f = fopen(path, "re");
    char **lines = NULL;
    size_t n = 0;

    if (!f) {
        return NULL;
    }
    for (;;) {
        char *line = NULL;
        size_t size = 0;
        ssize_t len;

        lines = reallocarray(lines, n + 1, sizeof(*lines));
        if (!lines) {
            die_about("read", path);
        }
        len = getdelim(&line, &size, end, f);
        if (len < 0) {
            if (!feof(f)) {
                die_about("read", path);
            }
            free(line);
            break;
        }
        if (len > 0 && line[len - 1] == end) {
            line[len - 1] = '\0';
        }
        lines[n++] = line;
    }
    fclose(f);
    lines[n] = NULL;
    *count = n;
    return lines;
}

char **read_lines(const char *path, size_t *count)
{
    return read_entries(path, '\n', count);
}

/* Read one of the application's files, which then goes away. */
static char **take_entries(const char *path, char end, size_t *count)
{
    char **lines = read_entries(path, end, count);

    if (!lines) {
        die_about("the application's ramdisk lacks a file it must have", path);
    }
    if (unlink(path) < 0) {
        die_about("unlink", path);
    }
    return lines;
}

static char **take_lines(const char *path, size_t *count)
{
    return take_entries(path, '\n', count);
}

/*
 * The lines of @path; or all that is in @path0, each ended by NUL, which is
 * there beside it when something in it has a line break.
 */
static char **take_texts(const char *path, const char *path0, size_t *count)
{
    char **lines = take_lines(path, count);

    return access(path0, F_OK) < 0 ? lines : take_entries(path0, '\0', count);
}

/* The first line of a file that need not be there; it goes away too. */
static char *take_optional_line(const char *path)
{
    size_t n;
    char **lines = access(path, F_OK) == 0 ? take_lines(path, &n) : NULL;

    return lines && n ? lines[0] : NULL;
}

/* --- Heartbeat ----------------------------------------------------------- */

static int connect_parent(int fd, unsigned port)
{
    struct sockaddr_vm parent = {
        .svm_family = AF_VSOCK,
        .svm_cid = PARENT_CID,
        .svm_port = port,
    };

    return connect(fd, (struct sockaddr *)&parent, sizeof(parent));
}

static void heartbeat(void)
{
    unsigned char byte = HEARTBEAT;
    ssize_t n;
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        die("socket");
    }
    if (connect_parent(fd, HEARTBEAT_PORT) < 0) {
        die("connect");
    }
    if (write(fd, &byte, 1) != 1) {
        die("write heartbeat");
    }
    byte = 0;
    n = read(fd, &byte, 1);
    if (n == 0) {
        errno = ECONNRESET;
    }
    if (n != 1) {
        die("read heartbeat");
    }
    if (byte != HEARTBEAT) {
        fprintf(stderr, "init: received wrong heartbeat: 0x%02x\n", byte);
        end();
    }
    close(fd);
}

/* --- The application's status -------------------------------------------- */

/*
 * A connection to tell it on, or -1: a parent on AWS refuses it at once.  It is
 * opened before the heartbeat, since later ones are not believed: they could be
 * the application's.
 */
static int open_status(void)
{
    const struct timeval limit = { .tv_usec = STATUS_MS * 500 };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        return -1;
    }
    setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit,
               sizeof(limit));
    if (connect_parent(fd, STATUS_PORT) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* @status is waitpid's.  Whoever does not listen any more misses it. */
static void tell_status(int fd, int status)
{
    unsigned char said[2] = { 'E', WEXITSTATUS(status) };
    struct pollfd p = { .fd = fd, .events = POLLIN };

    if (fd < 0) {
        return;
    }
    if (WIFSIGNALED(status)) {
        said[0] = 'K';
        said[1] = WTERMSIG(status);
    }
    if (send(fd, said, sizeof(said), MSG_DONTWAIT | MSG_NOSIGNAL) ==
        sizeof(said)) {
        poll(&p, 1, STATUS_MS);
    }
}

/* --- The application's root ---------------------------------------------- */

static void enter_rootfs(void)
{
    if (mount("/rootfs", "/rootfs", NULL, MS_BIND, NULL) < 0) {
        die("mount --bind /rootfs /rootfs");
    }
    if (chdir("/rootfs") < 0) {
        die("chdir /rootfs");
    }
    if (mount(".", "/", NULL, MS_MOVE, NULL) < 0) {
        die("mount --move . /");
    }
    if (chroot(".") < 0) {
        die("chroot .");
    }
    if (chdir("/") < 0) {
        die("chdir /");
    }
}

struct Mount {
    const char *source;
    const char *target;
    const char *type;
    unsigned long flags;
    const char *data;
    bool make; /* the target is a folder of ours, not of the image */
};

static const struct Mount mounts[] = {
    { "proc", "/proc", "proc", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL, false },
    { "tmpfs", "/run", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, "mode=0755",
      false },
    { "tmpfs", "/tmp", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL, false },
    { "shm", "/dev/shm", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL,
      true },
    { "devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, NULL, true },
    { "sysfs", "/sys", "sysfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL, false },
};

static const struct {
    const char *target, *name;
} links[] = {
    { "/proc/self/fd", "/dev/fd" },
    { "/proc/self/fd/0", "/dev/stdin" },
    { "/proc/self/fd/1", "/dev/stdout" },
    { "/proc/self/fd/2", "/dev/stderr" },
};

static void mount_all(void)
{
    mount_dev();
    for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
        if (symlink(links[i].target, links[i].name) < 0 && errno != EEXIST) {
            die_about("symlink", links[i].name);
        }
    }
    for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
        const struct Mount *m = &mounts[i];

        if (m->make && mkdir(m->target, 0755) < 0 && errno != EEXIST) {
            die_about("mkdir", m->target);
        }
        if (mount(m->source, m->target, m->type, m->flags, m->data) < 0) {
            die_about("mount", m->target);
        }
    }
}

/* Mount every enabled controller of /proc/cgroups as version 1. */
static void mount_cgroups(void)
{
    static const char *const base = "/sys/fs/cgroup";
    const unsigned long flags = MS_NODEV | MS_NOSUID | MS_NOEXEC;
    size_t n;
    char **lines = read_lines("/proc/cgroups", &n);

    if (!lines) {
        warn_about("no control groups", "/proc/cgroups");
        return;
    }
    if (mount("cgroup_root", base, "tmpfs", flags, "mode=0755") < 0) {
        warn_about("mount", base);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        char name[64], path[PATH_MAX];
        unsigned enabled;

        /* name, hierarchy, number of groups, enabled; a heading with '#' */
        if (lines[i][0] == '#' ||
            sscanf(lines[i], "%63s %*u %*u %u", name, &enabled) != 2 ||
            !enabled) {
            continue;
        }
        snprintf(path, sizeof(path), "%s/%s", base, name);
        if (mkdir(path, 0555) < 0 && errno != EEXIST) {
            warn_about("mkdir", path);
            continue;
        }
        if (mount(name, path, "cgroup", flags, name) < 0) {
            warn_about("mount", path);
            rmdir(path);
        }
    }
}

/* --- The application ----------------------------------------------------- */

/* Become the user "UID GID [GROUP]...", in the application's process. */
static void become(const char *user)
{
    gid_t ids[2 + 64]; /* the user, the group, further groups */
    size_t n = 0;
    const char *at = user;
    int used;

    while (n < sizeof(ids) / sizeof(ids[0]) &&
           sscanf(at, "%u%n", &ids[n], &used) == 1) {
        at += used;
        n++;
    }
    if (n < 2 || *at) {
        errno = EINVAL;
        die_about("user", user);
    }
    if (setgroups(n - 2, ids + 2) < 0 || setgid(ids[1]) < 0 ||
        setuid(ids[0]) < 0) {
        die_about("user", user);
    }
}

struct Application {
    char **cmd, **env;
    const char *program; /* to execute, whatever cmd[0] is, which it sees */
    const char *cwd;     /* NULL: the root folder */
    const char *user;    /* NULL: root */
};

/* What to start, from the files in the ramdisk, which then go away. */
static struct Application take_application(bool as_aws)
{
    static char *no_cmd[] = { (char *)"sh", NULL };
    static char *no_env[] = { (char *)DEFAULT_PATH, NULL };
    struct Application app = { 0 };
    size_t cmds, envs;

    if (as_aws) {
        app.env = take_lines("/env", &envs);
        app.cmd = take_lines("/cmd", &cmds);
    } else {
        app.env = take_texts("/env", "/env0", &envs);
        app.cmd = take_texts("/cmd", "/cmd0", &cmds);
        app.cwd = take_optional_line("/cwd");
        app.user = take_optional_line("/user");
        app.program = take_optional_line("/program");
    }
    if (!envs) {
        app.env = no_env;
    }
    if (!cmds) {
        app.cmd = no_cmd;
    }
    if (!app.program) {
        app.program = app.cmd[0];
    }
    return app;
}

static pid_t launch(const struct Application *app)
{
    sigset_t none;
    pid_t pid = fork();

    if (pid < 0) {
        die("fork");
    }
    if (pid != 0) {
        return pid;
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (app->user) {
        become(app->user);
    }
    if (app->cwd && chdir(app->cwd) < 0) {
        die_about("working directory", app->cwd);
    }
    putenv((char *)DEFAULT_PATH);
    execvpe(app->program, app->cmd, app->env);
    fprintf(stderr, "init: execvpe: %s: %s\n", app->program, strerror(errno));
    _exit(127);
}

/* Reap whatever dies in here, until the application does: its status. */
static int wait_for(pid_t pid, bool as_aws)
{
    int status;
    pid_t got;

    do {
        got = waitpid(-1, &status, 0);
        if (got < 0) {
            die("waitpid");
        }
    } while (got != pid);

    if (as_aws) {
        if (WIFEXITED(status) && WEXITSTATUS(status)) {
            fputs("child exited with error\n", stderr);
        } else if (WIFSIGNALED(status)) {
            fputs("child exited by signal\n", stderr);
        }
    } else if (WIFEXITED(status) && WEXITSTATUS(status)) {
        fprintf(stderr, "init: child exited with error: status %d\n",
                WEXITSTATUS(status));
    } else if (WIFSIGNALED(status)) {
        fprintf(stderr, "init: child exited by signal: %d (%s)\n",
                WTERMSIG(status), strsignal(WTERMSIG(status)));
    }
    return status;
}

int main(int argc, char **argv)
{
    struct Application app;
    sigset_t all;
    int parent = -1, status;
    bool as_aws;

    if (argc > 1 && getpid() != 1) {
        return modules_answer(argv);
    }

    /* PID 1 has no use for signals; the application gets none blocked. */
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);

    mount_dev();
    open_console();
    as_aws = unlink(AS_AWS) == 0;
    modules_load();
    if (!as_aws) {
        if (!clock_from_nsm()) {
            warn_about("the clock was not set", "/dev/nsm");
        }
        parent = open_status();
    }
    heartbeat();
    app = take_application(as_aws);
    modules_load_late();

    enter_rootfs();
    mount_all();
    modules_serve();
    mount_cgroups();
    status = wait_for(launch(&app), as_aws);

    /* A reset ends an enclave, whatever the application's status was. */
    tcdrain(STDERR_FILENO);
    tell_status(parent, status);
    reboot(RB_AUTOBOOT);
    die("reboot");
}
