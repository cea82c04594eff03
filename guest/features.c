/*
 * SPDX-License-Identifier: MIT
 *
 * What the kernel offers to a program, one line for each feature: its name,
 * then "ok" or "FAIL" and the reason that the kernel gave.  The application of
 * the test image "features"; root in its enclave, and it leaves traces there
 * (lo is up, devices are made).  It judges nothing: which line is right is for
 * the tests outside.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_tun.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* How this program is started again, from another place. */
#define AGAIN "again"

/* From linux/netfilter_ipv4/ip_tables.h, which does not go with net/if.h. */
#define TABLE_INFO 64
#define TABLE_INFO_SIZE 84

/* Not in every libc's headers. */
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

/* --- Sockets ------------------------------------------------------------- */

static int made(int fd)
{
    return fd < 0 ? -1 : close(fd);
}

static int netlink(int protocol)
{
    return made(socket(AF_NETLINK, SOCK_RAW, protocol));
}

static int nfnetlink(void)
{
    return netlink(NETLINK_NETFILTER);
}

static int xfrm(void)
{
    return netlink(NETLINK_XFRM);
}

static int audit(void)
{
    return netlink(NETLINK_AUDIT);
}

static int sock_diag(void)
{
    return netlink(NETLINK_SOCK_DIAG);
}

static int packet_socket(void)
{
    return made(socket(AF_PACKET, SOCK_RAW, htons(3 /* every protocol */)));
}

static int crypto_socket(void)
{
    return made(socket(AF_ALG, SOCK_SEQPACKET, 0));
}

/* What iptables asks first of a table. */
static int nat_table(int family, int level)
{
    char info[TABLE_INFO_SIZE] = "nat";
    socklen_t size = sizeof(info);
    int fd = socket(family, SOCK_RAW, IPPROTO_RAW);
    int got, saved;

    if (fd < 0) {
        return -1;
    }
    got = getsockopt(fd, level, TABLE_INFO, info, &size);
    saved = errno;
    close(fd);
    errno = saved;
    return got;
}

static int nat4(void)
{
    return nat_table(AF_INET, IPPROTO_IP);
}

static int nat6(void)
{
    return nat_table(AF_INET6, IPPROTO_IPV6);
}

/* --- Routes and devices -------------------------------------------------- */

/* Send a request to the kernel's network configuration; 0, or -1 with errno. */
static int ask_route(struct nlmsghdr *request)
{
    char reply[8192];
    const struct nlmsghdr *head = (const struct nlmsghdr *)reply;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    ssize_t got;

    if (fd < 0) {
        return -1;
    }
    got = send(fd, request, request->nlmsg_len, 0);
    if (got >= 0) {
        got = recv(fd, reply, sizeof(reply), 0);
    }
    close(fd);
    if (got < (ssize_t)sizeof(*head)) {
        return -1;
    }
    if (head->nlmsg_type == NLMSG_ERROR) {
        const struct nlmsgerr *error = NLMSG_DATA(head);

        errno = -error->error;
        return error->error ? -1 : 0;
    }
    return 0;
}

static int policy_rules(void)
{
    struct {
        struct nlmsghdr head;
        struct rtmsg body;
    } request = {
        .head = { .nlmsg_len = sizeof(request),
                  .nlmsg_type = RTM_GETRULE,
                  .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
        .body = { .rtm_family = AF_INET },
    };

    return ask_route(&request.head);
}

/* ip link add type @kind */
static int add_link(const char *kind)
{
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
        struct rtattr info;
        struct rtattr kind;
        char name[16];
    } request = {
        .head = { .nlmsg_type = RTM_NEWLINK,
                  .nlmsg_flags =
                      NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK },
        .info = { .rta_type = IFLA_LINKINFO },
        .kind = { .rta_type = IFLA_INFO_KIND },
    };
    size_t len = strlen(kind) + 1;

    memcpy(request.name, kind, len);
    request.kind.rta_len = RTA_LENGTH(len);
    request.info.rta_len = RTA_LENGTH(RTA_ALIGN(request.kind.rta_len));
    request.head.nlmsg_len =
        NLMSG_LENGTH(sizeof(request.body)) + RTA_ALIGN(request.info.rta_len);
    return ask_route(&request.head);
}

static int veth(void)
{
    return add_link("veth");
}

static int bridge(void)
{
    return add_link("bridge");
}

static int dummy(void)
{
    return add_link("dummy");
}

static int tap(void)
{
    struct ifreq device = { .ifr_name = "tap0",
                            .ifr_flags = IFF_TAP | IFF_NO_PI };
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

    return fd < 0 ? -1 : ioctl(fd, TUNSETIFF, &device);
}

static int loopback_up(void)
{
    struct ifreq device = { .ifr_name = "lo",
                            .ifr_flags = IFF_UP | IFF_RUNNING };
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    return fd < 0 ? -1 : ioctl(fd, SIOCSIFFLAGS, &device);
}

static int loopback_tcp(void)
{
    struct sockaddr_in here = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t len = sizeof(here);
    int server = socket(AF_INET, SOCK_STREAM, 0);
    int client = socket(AF_INET, SOCK_STREAM, 0);

    if (server < 0 || client < 0 ||
        bind(server, (struct sockaddr *)&here, len) < 0 ||
        listen(server, 1) < 0 ||
        getsockname(server, (struct sockaddr *)&here, &len) < 0) {
        return -1;
    }
    return connect(client, (struct sockaddr *)&here, len);
}

/* --- Namespaces ---------------------------------------------------------- */

/* unshare(@flag) in a process of its own. */
static int unshared(int flag)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        _exit(unshare(flag) < 0 ? errno : 0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) {
        return -1;
    }
    errno = WEXITSTATUS(status);
    return errno ? -1 : 0;
}

static int user_namespace(void)
{
    return unshared(CLONE_NEWUSER);
}

static int net_namespace(void)
{
    return unshared(CLONE_NEWNET);
}

static int pid_namespace(void)
{
    return unshared(CLONE_NEWPID);
}

static int cgroup_namespace(void)
{
    return unshared(CLONE_NEWCGROUP);
}

static int time_namespace(void)
{
    return unshared(CLONE_NEWTIME);
}

/* --- File systems -------------------------------------------------------- */

static int mounts(const char *type, const char *options)
{
    static const char place[] = "/run/mounted";

    if (mkdir(place, 0755) < 0 && errno != EEXIST) {
        return -1;
    }
    if (mount("none", place, type, 0, options) < 0) {
        return -1;
    }
    return umount(place);
}

static int overlay(void)
{
    static const char *const folders[] = { "/run/lower", "/run/upper",
                                           "/run/work" };

    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        mkdir(folders[i], 0755);
    }
    return mounts("overlay",
                  "lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work");
}

static int binfmt_misc(void)
{
    return mounts("binfmt_misc", "");
}

static int cgroup2(void)
{
    return mounts("cgroup2", "");
}

static int hugetlbfs(void)
{
    return mounts("hugetlbfs", "");
}

static int debugfs(void)
{
    return mounts("debugfs", "");
}

static int configfs(void)
{
    return mounts("configfs", "");
}

static int securityfs(void)
{
    return mounts("securityfs", "");
}

/* --- System calls -------------------------------------------------------- */

static int bpf(void)
{
    union bpf_attr map = { 0 };

    map.map_type = BPF_MAP_TYPE_ARRAY;
    map.key_size = map.value_size = 4;
    map.max_entries = 1;
    return syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof(map)) < 0 ? -1 : 0;
}

static int keyctl(void)
{
    return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING,
                   1) < 0 ?
               -1 :
               0;
}

static int add_key(void)
{
    return syscall(SYS_add_key, "user", "nitro", "x", 1,
                   KEY_SPEC_PROCESS_KEYRING) < 0 ?
               -1 :
               0;
}

static int fanotify(void)
{
    return made(fanotify_init(0, 0));
}

static int userfaults(void)
{
    return made(syscall(SYS_userfaultfd, 0));
}

static int io_uring(void)
{
    static char parameters[512];

    return made(syscall(SYS_io_uring_setup, 1, parameters));
}

static int seccomp(void)
{
    return prctl(PR_GET_SECCOMP);
}

static int read_process(void)
{
    char from = 1, to = 0;
    struct iovec local = { &to, 1 }, remote = { &from, 1 };

    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) < 0 ? -1 : 0;
}

#ifdef __x86_64__
/* getpid as a 32-bit program calls it; a kernel without faults the process. */
static int call_32(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        int got;

        __asm__ volatile("int $0x80" : "=a"(got) : "a"(20) : "memory");
        _exit(got <= 0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) {
        return -1;
    }
    errno = ENOSYS;
    return status ? -1 : 0;
}

static int local_descriptors(void)
{
    char table[16];

    return syscall(SYS_modify_ldt, 0, table, sizeof(table)) < 0 ? -1 : 0;
}
#endif

/* Calls that fail here in any case: it is the reason that tells. */
static int swap(void)
{
    return syscall(SYS_swapon, "/none", 0) < 0 && errno == ENOENT ? 0 : -1;
}

static int quota(void)
{
    return syscall(SYS_quotactl, 0, NULL, 0, NULL) < 0 && errno == ENOSYS ? -1 :
                                                                            0;
}

static int compare(void)
{
    return syscall(SYS_kcmp, getpid(), getpid(), 1 /* KCMP_VM */, 0, 0) < 0 ?
               -1 :
               0;
}

static int huge_pages(void)
{
    void *at = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

    /* None is set aside, which is another matter. */
    return at == MAP_FAILED && errno != ENOMEM ? -1 : 0;
}

static int secret_memory(void)
{
    return made(syscall(SYS_memfd_secret, 0));
}

/* --- Files --------------------------------------------------------------- */

static int opens(const char *path)
{
    return made(open(path, O_RDWR | O_NOCTTY | O_CLOEXEC));
}

static int ptmx(void)
{
    return opens("/dev/ptmx");
}

static int pts_ptmx(void)
{
    return opens("/dev/pts/ptmx");
}

/* A copy of this program in /tmp. */
static int run_from_tmp(void)
{
    static const char copy[] = "/tmp/features";
    static char data[1 << 16];
    int in = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    int out = open(copy, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
    ssize_t got;
    int status;
    pid_t pid;

    if (in < 0 || out < 0) {
        return -1;
    }
    while ((got = read(in, data, sizeof(data))) > 0) {
        if (write(out, data, got) != got) {
            return -1;
        }
    }
    close(out);
    close(in);
    pid = fork();
    if (pid == 0) {
        execl(copy, copy, AGAIN, NULL);
        _exit(errno);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) {
        return -1;
    }
    errno = WEXITSTATUS(status);
    return errno ? -1 : 0;
}

/* --- All ----------------------------------------------------------------- */

static const struct Feature {
    const char *name;
    int (*probe)(void); /* 0, or -1 with errno */
    const char *path;   /* or what must be there */
} features[] = {
    { "iptables nat (IPT_SO_GET_INFO)", nat4, NULL },
    { "ip6tables nat", nat6, NULL },
    { "NETLINK_NETFILTER (nft, conntrack)", nfnetlink, NULL },
    { "AF_PACKET (tcpdump, dhcp)", packet_socket, NULL },
    { "NETLINK_XFRM", xfrm, NULL },
    { "NETLINK_AUDIT", audit, NULL },
    { "NETLINK_SOCK_DIAG (ss)", sock_diag, NULL },
    { "AF_ALG", crypto_socket, NULL },
    { "ip rule (policy routing)", policy_rules, NULL },
    { "ip link add veth", veth, NULL },
    { "ip link add bridge", bridge, NULL },
    { "ip link add dummy", dummy, NULL },
    { "tap device", tap, NULL },
    { "lo up", loopback_up, NULL },
    { "tcp over 127.0.0.1", loopback_tcp, NULL },
    { "user namespace", user_namespace, NULL },
    { "net namespace", net_namespace, NULL },
    { "pid namespace", pid_namespace, NULL },
    { "cgroup namespace", cgroup_namespace, NULL },
    { "time namespace", time_namespace, NULL },
    { "overlayfs", overlay, NULL },
    { "fuse device", NULL, "/dev/fuse" },
    { "loop-control", NULL, "/dev/loop-control" },
    { "binfmt_misc", binfmt_misc, NULL },
    { "cgroup2", cgroup2, NULL },
    { "hugetlbfs", hugetlbfs, NULL },
    { "debugfs", debugfs, NULL },
    { "configfs", configfs, NULL },
    { "securityfs", securityfs, NULL },
    { "bpf()", bpf, NULL },
    { "keyctl", keyctl, NULL },
    { "add_key", add_key, NULL },
    { "fanotify_init", fanotify, NULL },
    { "userfaultfd", userfaults, NULL },
    { "io_uring_setup", io_uring, NULL },
    { "seccomp filter avail", seccomp, NULL },
    { "process_vm_readv", read_process, NULL },
#ifdef __x86_64__
    { "32-bit syscalls (int 0x80)", call_32, NULL },
    { "modify_ldt", local_descriptors, NULL },
#endif
    { "swapon (ENOENT=present)", swap, NULL },
    { "kcmp", compare, NULL },
    { "MAP_HUGETLB", huge_pages, NULL },
    { "transparent_hugepage", NULL,
      "/sys/kernel/mm/transparent_hugepage/enabled" },
    { "memfd_secret", secret_memory, NULL },
    { "quotactl", quota, NULL },
    { "/dev/mem", NULL, "/dev/mem" },
    { "/dev/hwrng", NULL, "/dev/hwrng" },
    { "/dev/nsm", NULL, "/dev/nsm" },
    { "/dev/net/tun", NULL, "/dev/net/tun" },
    { "/proc/config.gz", NULL, "/proc/config.gz" },
    { "/dev/ptmx openable", ptmx, NULL },
    { "/dev/pts/ptmx", pts_ptmx, NULL },
    { "/dev/tty0", NULL, "/dev/tty0" },
    { "/dev/rtc0", NULL, "/dev/rtc0" },
    { "exec from /tmp", run_from_tmp, NULL },
};

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], AGAIN)) {
        return 0;
    }
    for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
        const struct Feature *f = &features[i];
        bool here;

        errno = 0;
        here = (f->probe ? f->probe() : access(f->path, F_OK)) >= 0;
        printf("%-34s %s%s\n", f->name, here ? "ok" : "FAIL ",
               here ? "" : strerror(errno));
    }
    puts("features: done");
    return 0;
}
