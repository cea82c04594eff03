/*
 * SPDX-License-Identifier: MIT
 *
 * The test agent's probes of the machine and the kernel: CPUs, memory, devices,
 * files, programs.  No vsock and no NSM requests here.
 */

#define _GNU_SOURCE
#include "agent.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <x86intrin.h>
#endif

/* Leaves room for the head of any answer, and for a line before a file. */
#define ANSWER_MAX (FRAME_MAX - 64)
#define VIRTIO_DEVICES "/sys/bus/virtio/devices"

/* --- Files --------------------------------------------------------------- */

/* Append all that comes from @fd, as far as it fits; the rest is drained. */
static bool add_all(Answer *a, int fd)
{
    char block[4096];
    ssize_t n;

    while ((n = read(fd, block, sizeof(block))) > 0) {
        size_t room = ANSWER_MAX - a->len;

        answer_add(a, block, (size_t)n < room ? (size_t)n : room);
    }
    return n == 0;
}

static int add_file(Answer *a, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int err = 0;

    if (fd < 0 || !add_all(a, fd)) {
        err = answer_fail(a, errno, "%s: %s", path, strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    return err;
}

static int write_file(Answer *a, const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int err = 0;

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) {
        err = answer_fail(a, errno, "%s: %s", path, strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    return err;
}

static int not_hidden(const struct dirent *e)
{
    return strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
}

/* Call @each for every entry of a folder, sorted; -1 with errno. */
static int for_entries(const char *path, Answer *a,
                       void (*each)(Answer *a, const char *name))
{
    struct dirent **entries;
    int n = scandir(path, &entries, not_hidden, alphasort);

    for (int i = 0; i < n; i++) {
        if (each) {
            each(a, entries[i]->d_name);
        }
        free(entries[i]);
    }
    if (n >= 0) {
        free(entries);
    }
    return n;
}

static int probe_cat(const Args *args, Answer *a)
{
    return add_file(a, args->v[0]);
}

static void add_name(Answer *a, const char *name)
{
    answer_printf(a, "%s\n", name);
}

static int probe_ls(const Args *args, Answer *a)
{
    if (for_entries(args->v[0], a, add_name) < 0) {
        return answer_fail(a, errno, "%s: %s", args->v[0], strerror(errno));
    }
    return 0;
}

static int probe_write(const Args *args, Answer *a)
{
    return write_file(a, args->v[0], args->v[1]);
}

static int probe_cmdline(const Args *args, Answer *a)
{
    int err = add_file(a, "/proc/cmdline");

    (void)args;
    if (!err && a->len && a->data[a->len - 1] == '\n') {
        a->len--;
    }
    return err;
}

/* --- Machine ------------------------------------------------------------- */

static int probe_bind(const Args *args, Answer *a)
{
    struct sockaddr_in addr = { .sin_family = AF_INET };
    int fd;

    if (inet_pton(AF_INET, args->v[0], &addr.sin_addr) != 1) {
        return answer_fail(a, EINVAL, "no IPv4 address: %s", args->v[0]);
    }
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return answer_fail(a, errno, "socket: %s", strerror(errno));
    }
    answer_printf(a, "errno %d\n",
                  bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ? errno :
                                                                         0);
    close(fd);
    return 0;
}

static int probe_clock(const Args *args, Answer *a)
{
    struct timespec t;
    uint64_t uptime = now_us();

    (void)args;
    clock_gettime(CLOCK_REALTIME, &t);
    answer_printf(a, "us %" PRIu64 "\nuptime %" PRIu64 "\nsource ",
                  t.tv_sec * UINT64_C(1000000) + t.tv_nsec / 1000, uptime);
    return add_file(a, "/sys/devices/system/clocksource/clocksource0/"
                       "current_clocksource");
}

static int probe_uname(const Args *args, Answer *a)
{
    struct utsname u;

    (void)args;
    uname(&u);
    answer_printf(a, "%s\n%s\n%s\n%s\n", u.sysname, u.release, u.version,
                  u.machine);
    return 0;
}

static int probe_cpus(const Args *args, Answer *a)
{
    (void)args;
    answer_printf(a, "%ld", sysconf(_SC_NPROCESSORS_ONLN));
    return 0;
}

static int probe_mem(const Args *args, Answer *a)
{
    unsigned long total = 0, available = 0;
    uint64_t high = 0;
    char line[256];
    FILE *f = fopen("/proc/meminfo", "re");

    (void)args;
    if (!f) {
        return answer_fail(a, errno, "/proc/meminfo: %s", strerror(errno));
    }
    while (fgets(line, sizeof(line), f)) {
        sscanf(line, "MemTotal: %lu", &total);
        sscanf(line, "MemFree: %lu", &available);
    }
    fclose(f);
    f = fopen("/proc/iomem", "re");
    if (!f) {
        return answer_fail(a, errno, "/proc/iomem: %s", strerror(errno));
    }
    while (fgets(line, sizeof(line), f)) {
        uint64_t start, end;
        int name = 0;

        /* Lines that are not indented: the parts of a range have their own. */
        if (line[0] != ' ' &&
            sscanf(line, "%" SCNx64 "-%" SCNx64 " : %n", &start, &end, &name) ==
                2 &&
            name && !strncmp(line + name, "System RAM", 10) &&
            end >= 1ULL << 32) {
            /* On arm64 one range begins below 4 GiB and ends above. */
            start = start < 1ULL << 32 ? 1ULL << 32 : start;
            high += (end + 1 - start) / 1024;
        }
    }
    fclose(f);
    answer_printf(a, "total %lu\nfree %lu\nhigh %" PRIu64 "\n", total,
                  available, high);
    return 0;
}

/* The last part of what a symbolic link in /sys leads to, "-" without one. */
static void link_name(char name[NAME_MAX + 1], const char *path, int up)
{
    char real[PATH_MAX];
    const char *last;

    strcpy(name, "-");
    if (!realpath(path, real)) {
        return;
    }
    while (up--) {
        *strrchr(real, '/') = '\0';
    }
    last = strrchr(real, '/');
    if (last && strlen(last + 1) <= NAME_MAX) {
        strcpy(name, last + 1);
    }
}

static int virtio_id(const char *device)
{
    char path[PATH_MAX];
    int id = -1;
    FILE *f;

    snprintf(path, sizeof(path), VIRTIO_DEVICES "/%s/device", device);
    f = fopen(path, "re");
    if (f) {
        if (fscanf(f, "%i", &id) != 1) {
            id = -1;
        }
        fclose(f);
    }
    return id;
}

static void virtio_driver(char name[NAME_MAX + 1], const char *device)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), VIRTIO_DEVICES "/%s/driver", device);
    link_name(name, path, 0);
}

static void add_virtio(Answer *a, const char *device)
{
    char path[PATH_MAX], transport[NAME_MAX + 1], driver[NAME_MAX + 1];

    snprintf(path, sizeof(path), VIRTIO_DEVICES "/%s", device);
    link_name(transport, path, 1);
    virtio_driver(driver, device);
    answer_printf(a, "%s %d %s %s\n", device, virtio_id(device), transport,
                  driver);
}

static int probe_devices(const Args *args, Answer *a)
{
    (void)args;
    if (for_entries(VIRTIO_DEVICES, a, add_virtio) < 0) {
        return answer_fail(a, errno, VIRTIO_DEVICES ": %s", strerror(errno));
    }
    return 0;
}

static int probe_buses(const Args *args, Answer *a)
{
    int pci = for_entries("/sys/bus/pci/devices", a, NULL);
    int block = for_entries("/sys/block", a, NULL);
    int net = for_entries("/sys/class/net", a, NULL);

    (void)args;
    if (net > 0 && access("/sys/class/net/lo", F_OK) == 0) {
        net--;
    }
    /* A kernel without the subsystem has no folder, and none of its devices. */
    answer_printf(a, "pci %d\nblock %d\nnet %d\n", pci < 0 ? 0 : pci,
                  block < 0 ? 0 : block, net < 0 ? 0 : net);
    return 0;
}

/* The name of the virtio device with this id; false if there is none. */
static bool find_virtio(int id, char name[NAME_MAX + 1])
{
    struct dirent **entries;
    int n = scandir(VIRTIO_DEVICES, &entries, not_hidden, alphasort);
    bool found = false;

    for (int i = 0; i < n; i++) {
        if (!found && virtio_id(entries[i]->d_name) == id) {
            found = true;
            strcpy(name, entries[i]->d_name);
        }
        free(entries[i]);
    }
    if (n >= 0) {
        free(entries);
    }
    return found;
}

static int probe_rebind(const Args *args, Answer *a)
{
    char path[PATH_MAX], driver[PATH_MAX];
    char device[NAME_MAX + 1], transport[NAME_MAX + 1];
    uint64_t id = 0;
    int err;

    if (!args_number(args, 0, UINT16_MAX, &id, a)) {
        return -EINVAL;
    }
    if (!find_virtio(id, device)) {
        return answer_fail(a, ENODEV, "no virtio device with id %" PRIu64, id);
    }
    snprintf(path, sizeof(path), VIRTIO_DEVICES "/%s", device);
    link_name(transport, path, 1);
    snprintf(path, sizeof(path), VIRTIO_DEVICES "/%s/../driver", device);
    if (!realpath(path, driver)) {
        return answer_fail(a, errno, "%s: %s", path, strerror(errno));
    }
    snprintf(path, sizeof(path), "%.*s/unbind", PATH_MAX - 8, driver);
    err = write_file(a, path, transport);
    if (err) {
        return err;
    }
    snprintf(path, sizeof(path), "%.*s/bind", PATH_MAX - 8, driver);
    err = write_file(a, path, transport);
    if (err) {
        return err;
    }
    if (!find_virtio(id, device)) {
        return answer_fail(a, ENODEV, "the device did not come back");
    }
    virtio_driver(driver, device);
    answer_printf(a, "device %s\ndriver %s\n", device, driver);
    return 0;
}

static int probe_hwrng(const Args *args, Answer *a)
{
    uint8_t bytes[4096];
    uint64_t n = 0;
    int fd, err = 0;

    if (!args_number(args, 0, sizeof(bytes), &n, a)) {
        return -EINVAL;
    }
    fd = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || !read_full(fd, bytes, n)) {
        err = answer_fail(a, errno ? errno : EIO, "/dev/hwrng: %s",
                          strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    for (uint64_t i = 0; !err && i < n; i++) {
        answer_printf(a, "%02x", bytes[i]);
    }
    return err;
}

/* --- Instructions -------------------------------------------------------- */

#ifdef __x86_64__
typedef struct V2 {
    uint32_t sse3, ssse3, sse4_1, sse4_2;
    uint64_t popcnt;
    uint32_t cx16;
} V2;

/* One instruction of each extension, on values the compiler cannot foresee. */
__attribute__((target("sse4.2,popcnt,cx16"), noinline))
/* clang-format off */
static void run_v2(V2 *v)
/* clang-format on */
{
    static const char digits[] = "123456789";
    volatile float ones = 1, twos = 2;           /* volatile: no folding */
    volatile int minus = -7, six = 6, seven = 7; /* volatile: no folding */
    volatile uint64_t bits = 0xff00ff00ff00ff00; /* volatile: no folding */
    unsigned __int128 wide = 1, old = 1;
    __m128 sums = _mm_set_ps(ones, twos, ones, twos);
    uint32_t crc = ~0U;
    bool swapped;

    v->sse3 = _mm_cvtss_f32(_mm_hadd_ps(sums, sums));
    v->ssse3 = _mm_cvtsi128_si32(_mm_abs_epi32(_mm_set1_epi32(minus)));
    v->sse4_1 = _mm_cvtsi128_si32(
        _mm_mullo_epi32(_mm_set1_epi32(six), _mm_set1_epi32(seven)));
    for (const char *c = digits; *c; c++) {
        crc = _mm_crc32_u8(crc, *c);
    }
    v->sse4_2 = ~crc;
    v->popcnt = _mm_popcnt_u64(bits);
    __asm__ volatile("lock cmpxchg16b %1"
                     : "=@ccz"(swapped), "+m"(wide), "+A"(old)
                     : "b"(2ULL), "c"(0ULL)
                     : "memory");
    v->cx16 = swapped && wide == 2;
}

static int probe_v2(const Args *args, Answer *a)
{
    int status, pipes[2];
    bool got;
    pid_t pid;
    V2 v;

    (void)args;
    if (pipe2(pipes, O_CLOEXEC) < 0) {
        return answer_fail(a, errno, "pipe: %s", strerror(errno));
    }
    pid = fork();
    if (pid < 0) {
        return answer_fail(a, errno, "fork: %s", strerror(errno));
    }
    if (pid == 0) {
        run_v2(&v);
        _exit(!write_full(pipes[1], &v, sizeof(v)));
    }
    close(pipes[1]);
    got = read_full(pipes[0], &v, sizeof(v));
    close(pipes[0]);
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGILL) {
        return answer_fail(a, EILSEQ, "illegal instruction");
    }
    if (!got || status) {
        return answer_fail(a, EIO, "the child ended with status 0x%x", status);
    }
    answer_printf(a,
                  "sse3 %u\nssse3 %u\nsse4.1 %u\nsse4.2 %08x\n"
                  "popcnt %" PRIu64 "\ncx16 %u\n",
                  v.sse3, v.ssse3, v.sse4_1, v.sse4_2, v.popcnt, v.cx16);
    return 0;
}
#else
static int probe_v2(const Args *args, Answer *a)
{
    (void)args;
    return answer_fail(a, ENOSYS, "this is no x86-64 CPU");
}
#endif

/* --- The process --------------------------------------------------------- */

static long own_cid(void)
{
    unsigned cid;
    int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
    long result = -1;

    if (fd >= 0) {
        if (ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) == 0) {
            result = cid;
        }
        close(fd);
    }
    return result;
}

static int probe_id(const Args *args, Answer *a)
{
    (void)args;
    answer_printf(a, "pid %d\nppid %d\nsid %d\nuid %d\ngid %d\ncid %ld\n",
                  getpid(), getppid(), getsid(0), getuid(), getgid(),
                  own_cid());
    return 0;
}

static int probe_env(const Args *args, Answer *a)
{
    (void)args;
    for (char **e = environ; *e; e++) {
        answer_printf(a, "%s\n", *e);
    }
    return 0;
}

static int probe_args(const Args *args, Answer *a)
{
    (void)args;
    for (int i = 0; i < agent_argc; i++) {
        answer_printf(a, "%s\n", agent_argv[i]);
    }
    return 0;
}

static int probe_cwd(const Args *args, Answer *a)
{
    char path[PATH_MAX];

    (void)args;
    if (!getcwd(path, sizeof(path))) {
        return answer_fail(a, errno, "getcwd: %s", strerror(errno));
    }
    answer_printf(a, "%s", path);
    return 0;
}

static int probe_print(const Args *args, Answer *a)
{
    (void)a;
    printf("%s\n", args->v[0]);
    return 0;
}

static int probe_sleep(const Args *args, Answer *a)
{
    uint64_t ms = 0;

    if (!args_number(args, 0, UINT32_MAX, &ms, a)) {
        return -EINVAL;
    }
    poll(NULL, 0, ms);
    return 0;
}

static int probe_exec(const Args *args, Answer *a)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t ignored; /* by us, not by other programs */
    char *argv[64] = { NULL };
    Answer output = { 0 };
    int status, pipes[2];
    pid_t pid;

    /* The probe's most arguments leave room for the NULL. */
    memcpy(argv, args->v, args->n * sizeof(*argv));
    if (pipe2(pipes, O_CLOEXEC) < 0) {
        return answer_fail(a, errno, "pipe: %s", strerror(errno));
    }
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, pipes[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, pipes[1], STDERR_FILENO);
    sigemptyset(&ignored);
    sigaddset(&ignored, SIGPIPE);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigdefault(&attr, &ignored);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF);
    errno = posix_spawnp(&pid, argv[0], &files, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    close(pipes[1]);
    if (errno) {
        close(pipes[0]);
        return answer_fail(a, errno, "%s: %s", argv[0], strerror(errno));
    }
    add_all(&output, pipes[0]);
    close(pipes[0]);
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) {
        answer_printf(a, "signal %d\n", WTERMSIG(status));
    } else {
        answer_printf(a, "status %d\n", WEXITSTATUS(status));
    }
    answer_add(a, output.data, output.len);
    free(output.data);
    return 0;
}

const Probe machine_probes[] = {
    { "args", 0, 0, probe_args },       { "bind", 1, 1, probe_bind },
    { "buses", 0, 0, probe_buses },     { "cat", 1, 1, probe_cat },
    { "clock", 0, 0, probe_clock },     { "cmdline", 0, 0, probe_cmdline },
    { "cpus", 0, 0, probe_cpus },       { "cwd", 0, 0, probe_cwd },
    { "devices", 0, 0, probe_devices }, { "env", 0, 0, probe_env },
    { "exec", 1, 62, probe_exec },      { "hwrng", 1, 1, probe_hwrng },
    { "id", 0, 0, probe_id },           { "ls", 1, 1, probe_ls },
    { "mem", 0, 0, probe_mem },         { "print", 1, 1, probe_print },
    { "rebind", 1, 1, probe_rebind },   { "sleep", 1, 1, probe_sleep },
    { "uname", 0, 0, probe_uname },     { "v2", 0, 0, probe_v2 },
    { "write", 2, 2, probe_write },     { NULL, 0, 0, NULL },
};
