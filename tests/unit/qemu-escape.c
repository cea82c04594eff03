/*
 * SPDX-License-Identifier: MIT
 *
 * qemu-escape: stands in for a QEMU that a guest has broken out of
 *
 * Tries what such a guest would, one thing after the other, and says on
 * standard output, which is the console, what came of each:
 *
 *   NAME: done              it could
 *   NAME: ERROR             it could not, and why
 *
 * What it aims at is in the environment, made by the test:
 *   ESCAPE_HOME    a folder with the files "secret", "victim" and "tool",
 *                  a script
 *   ESCAPE_SOCKET  the path of a unix socket that somebody listens on;
 *                  ESCAPE_ABSTRACT the name of an abstract one
 *   ESCAPE_PORT    a TCP port of 127.0.0.1 where somebody listens
 *   ESCAPE_EIF     what it may read
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *home;
static pid_t victim;

static const char *in_home(const char *name)
{
    static char paths[4][4096];
    static unsigned next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof(paths[0]), "%s/%s", home, name);
    return path;
}

static bool opens(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);

    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

static bool of_victim(const char *name)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/%s", victim, name);
    return opens(path, O_RDONLY);
}

static bool ended_well(pid_t pid)
{
    int status;

    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

static bool connects(int family, const void *address, socklen_t len)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && connect(fd, address, len) == 0;
    int error = errno;

    if (fd >= 0) {
        close(fd);
    }
    errno = error;
    return good;
}

static bool read_secret(void)
{
    return opens(in_home("secret"), O_RDONLY);
}
static bool list_home(void)
{
    return opens(home, O_RDONLY | O_DIRECTORY);
}
static bool write_secret(void)
{
    return opens(in_home("secret"), O_WRONLY);
}
static bool make_file(void)
{
    return opens(in_home("n"), O_WRONLY | O_CREAT);
}
static bool make_folder(void)
{
    return mkdir(in_home("folder"), 0700) == 0;
}
static bool cut_file(void)
{
    return truncate(in_home("secret"), 5) == 0;
}
static bool change_mode(void)
{
    return chmod(in_home("secret"), 0644) == 0;
}
static bool rename_it(void)
{
    return rename(in_home("victim"), in_home("renamed")) == 0;
}

static bool remove_it(void)
{
    return unlink(in_home("renamed")) == 0;
}
static bool link_it(void)
{
    return symlink(in_home("secret"), in_home("link")) == 0;
}

static bool change_times(void)
{
    return utimensat(AT_FDCWD, in_home("secret"), NULL, 0) == 0;
}

static bool change_owner(void)
{
    return chown(in_home("secret"), getuid(), getgid()) == 0;
}

static bool watch_home(void)
{
    int fd = inotify_init1(IN_CLOEXEC);

    return fd >= 0 && inotify_add_watch(fd, home, IN_ALL_EVENTS) >= 0;
}

static bool read_passwd(void)
{
    return opens("/etc/passwd", O_RDONLY);
}
static bool make_in_tmp(void)
{
    return opens("/tmp", O_WRONLY | O_TMPFILE);
}

static bool fork_it(void)
{
    pid_t pid = fork();

    if (pid == 0) {
        _exit(0);
    }
    return ended_well(pid);
}

static bool spawn_by_clone3(void)
{
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal;
        uint64_t stack, stack_size, tls;
    } args = { .exit_signal = SIGCHLD };
    pid_t pid = syscall(SYS_clone3, &args, sizeof(args));

    if (pid == 0) {
        _exit(0);
    }
    return ended_well(pid);
}

static bool spawn_a_shell(void)
{
    pid_t pid = vfork();

    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", "exit 0", (char *)NULL);
        _exit(1);
    }
    return ended_well(pid);
}

static bool become_a_tool(void)
{
    /* Not for good: where it may, only whether it may is looked at. */
    int fd = open(in_home("tool"), O_PATH | O_CLOEXEC);

    return fd >= 0 && faccessat(fd, "", X_OK, AT_EMPTY_PATH) == 0 &&
           opens(in_home("tool"), O_RDONLY);
}

static bool connect_unix(void)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", getenv("ESCAPE_SOCKET"));
    return connects(AF_UNIX, &a, sizeof(a));
}

static bool connect_abstract(void)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    const char *name = getenv("ESCAPE_ABSTRACT");
    int n = snprintf(a.sun_path + 1, sizeof(a.sun_path) - 1, "%s", name);

    return connects(AF_UNIX, &a,
                    offsetof(struct sockaddr_un, sun_path) + 1 + n);
}

static bool connect_tcp(void)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET,
        .sin_port = htons(atoi(getenv("ESCAPE_PORT"))),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };

    return connects(AF_INET, &a, sizeof(a));
}

static bool signal_it(void)
{
    return kill(victim, 0) == 0;
}
static bool signal_by_pidfd(void)
{
    int fd = syscall(SYS_pidfd_open, victim, 0);

    return fd >= 0 && syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0;
}

static bool read_environment(void)
{
    return of_victim("environ");
}
static bool read_command(void)
{
    return of_victim("cmdline");
}

static bool new_namespace(void)
{
    return unshare(CLONE_FILES) == 0;
}
static bool use_io_uring(void)
{
    char params[120] = { 0 };

    return syscall(SYS_io_uring_setup, 1, params) >= 0 || errno == ENOSYS;
}

static bool limit_another(void)
{
    struct rlimit l;

    return syscall(SYS_prlimit64, victim, RLIMIT_CORE, NULL, &l) == 0;
}

static bool dump_core(void)
{
    struct rlimit l;

    errno = EPERM;
    return getrlimit(RLIMIT_CORE, &l) == 0 && l.rlim_cur > 1;
}

static bool new_privileges(void)
{
    char line[256];
    FILE *f = fopen("/proc/self/status", "re");
    bool none = false;

    while (f && fgets(line, sizeof(line), f)) {
        none |= !strcmp(line, "NoNewPrivs:\t1\n");
    }
    if (f) {
        fclose(f);
    }
    errno = EPERM;
    return !none;
}

/* What QEMU does. */

static bool read_eif(void)
{
    return opens(getenv("ESCAPE_EIF"), O_RDONLY);
}
static bool use_null(void)
{
    return opens("/dev/null", O_RDWR);
}
static bool load_library(void)
{
    return opens("/usr/lib", O_RDONLY);
}
static bool read_itself(void)
{
    return opens("/proc/self/maps", O_RDONLY);
}

static void *thread(void *opaque)
{
    return opaque;
}

static bool start_thread(void)
{
    pthread_t t;
    int r = pthread_create(&t, NULL, thread, NULL);

    errno = r;
    return r == 0 && pthread_join(t, NULL) == 0;
}

static bool guest_memory(void)
{
    char path[64];
    int fd = memfd_create("memory", MFD_CLOEXEC);

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return fd >= 0 && ftruncate(fd, 4096) == 0 && opens(path, O_RDWR) &&
           mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) !=
               MAP_FAILED;
}

static bool make_code(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
}

static bool signal_itself(void)
{
    return kill(getpid(), 0) == 0 && pthread_kill(pthread_self(), 0) == 0;
}

static const struct {
    const char *name;
    bool (*attempt)(void);
} attempts[] = {
    { "list-home", list_home },
    { "read-secret", read_secret },
    { "write-secret", write_secret },
    { "make-file", make_file },
    { "make-folder", make_folder },
    { "cut-file", cut_file },
    { "change-mode", change_mode },
    { "change-owner", change_owner },
    { "change-times", change_times },
    { "rename", rename_it },
    { "remove", remove_it },
    { "link", link_it },
    { "watch-home", watch_home },
    { "become-a-tool", become_a_tool },
    { "read-passwd", read_passwd },
    { "make-in-tmp", make_in_tmp },
    { "fork", fork_it },
    { "clone3", spawn_by_clone3 },
    { "spawn-a-shell", spawn_a_shell },
    { "connect-unix", connect_unix },
    { "connect-abstract", connect_abstract },
    { "connect-tcp", connect_tcp },
    { "signal", signal_it },
    { "signal-by-pidfd", signal_by_pidfd },
    { "read-environment", read_environment },
    { "read-command", read_command },
    { "new-namespace", new_namespace },
    { "io-uring", use_io_uring },
    { "limit-another", limit_another },
    { "dump-core", dump_core },
    { "new-privileges", new_privileges },
    { "allowed: read-eif", read_eif },
    { "allowed: use-null", use_null },
    { "allowed: libraries", load_library },
    { "allowed: read-itself", read_itself },
    { "allowed: thread", start_thread },
    { "allowed: guest-memory", guest_memory },
    { "allowed: code", make_code },
    { "allowed: signal-itself", signal_itself },
};

int main(int argc, char **argv)
{
    if (argc > 2 && strstr(argv[2], ",help")) {
        puts("cert-chain=<string>"); /* before there is a guest */
        return 0;
    }
    home = getenv("ESCAPE_HOME");
    victim = getppid();
    for (unsigned i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++) {
        bool done;

        errno = 0;
        done = attempts[i].attempt();
        printf("%s: %s\n", attempts[i].name, done ? "done" : strerror(errno));
        fflush(stdout);
    }
    return 0;
}
