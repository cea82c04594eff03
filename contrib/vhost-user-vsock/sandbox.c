/*
 * SPDX-License-Identifier: MIT
 *
 * sandbox.c: a seccomp allow-list of system calls, written out by hand: the
 * process makes some thirty, and a library for that would be one more thing
 * to have at run time. It cannot look at paths: what may be connected to, or
 * removed, is not its business.
 *
 * The list holds what the program calls between "ready" and its end, what C
 * libraries make of that (versions differ in fstat(), machines in poll() and
 * epoll_wait(), and malloc() in how it takes and returns memory), and what a
 * dying process needs. Nothing on it opens a file, makes or changes a process,
 * listens, or makes memory executable.
 */

#include "sandbox.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif

/* SANDBOX_ARCH, what the kernel calls this machine, is the build's to know. */
#ifndef SANDBOX_ARCH

int sandbox_available(void)
{
    return -ENOSYS;
}

int sandbox_enter(const struct sandbox_sockets *sockets)
{
    return -ENOSYS;
}

#else

/* Calls that are let through, the frequent ones first. */
static const int allowed[] = {
    /* the loop, kicks and interrupts, connections */
    SYS_readv,
    SYS_writev,
    SYS_write,
#ifdef SYS_epoll_wait
    SYS_epoll_wait,
#endif
    SYS_epoll_pwait,
    SYS_sched_yield,
    SYS_read,
    SYS_epoll_ctl,
    SYS_accept4,
    SYS_close,
    SYS_socket, /* guarded */
    SYS_bind,   /* our end's name, before a connect */
    SYS_connect,
    SYS_shutdown,
    SYS_getsockopt, /* guarded */
    SYS_setsockopt, /* guarded */
    SYS_recvfrom,
    /* the front end: messages and the guest's memory */
    SYS_recvmsg,
    SYS_sendto,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_mmap, /* guarded */
    SYS_munmap,
    SYS_madvise,
    /* malloc and free; it takes no other way to memory */
    SYS_brk,
    SYS_mremap,
    SYS_mprotect, /* guarded */
    SYS_getrandom,
    SYS_futex,
/* lines to standard error, "booted" */
#ifdef SYS_poll
    SYS_poll,
#endif
    SYS_ppoll,
    SYS_clock_gettime, /* where the vDSO has no clock */
    SYS_gettimeofday,
    /* the end: sockets and a supervisor's folder, by open descriptors */
    SYS_unlinkat,
    SYS_getdents64,
    SYS_fcntl, /* guarded */
    SYS_lseek,
    SYS_exit_group,
    SYS_exit,
    /* stopping and going on, dying by abort() */
    SYS_restart_syscall,
    SYS_rt_sigreturn,
    SYS_rt_sigprocmask,
    SYS_getpid,
    SYS_gettid,
    SYS_tgkill, /* guarded */
    SYS_tkill,  /* guarded */
    SYS_prctl,  /* guarded */
};

#define MAX_VALUES 4
#define MAX_CODE 256

/* An argument of a call must, under the mask, be one of these. */
struct guard {
    int call;
    unsigned argument;
    uint32_t mask;
    unsigned count;
    uint32_t values[MAX_VALUES];
};

struct program {
    unsigned count;
    struct sock_filter code[MAX_CODE];
};

static void put(struct program *p, uint16_t code, uint8_t yes, uint8_t no,
                uint32_t k)
{
    if (p->count < MAX_CODE) {
        p->code[p->count] = (struct sock_filter) { code, yes, no, k };
    }
    p->count++;
}

static void put_load(struct program *p, size_t offset)
{
    put(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, offset);
}

static void put_return(struct program *p, uint32_t what)
{
    put(p, BPF_RET | BPF_K, 0, 0, what);
}

/*
 * Goes on behind it with the call's number loaded, for another call and if
 * all is well. The low half of an argument is looked at; all are ints, or
 * flags of which only low bits have a meaning.
 */
static void put_guard(struct program *p, const struct guard *g)
{
    put(p, BPF_JMP | BPF_JEQ | BPF_K, 0, g->count + 4, g->call);
    put_load(p, offsetof(struct seccomp_data, args[g->argument]));
    put(p, BPF_ALU | BPF_AND | BPF_K, 0, 0, g->mask);
    for (unsigned i = 0; i < g->count; i++) {
        put(p, BPF_JMP | BPF_JEQ | BPF_K, g->count - i, 0, g->values[i]);
    }
    put_return(p, SECCOMP_RET_TRAP);
    put_load(p, offsetof(struct seccomp_data, nr));
}

static void put_program(struct program *p,
                        const struct sandbox_sockets *sockets)
{
    struct guard families = { SYS_socket, 0, UINT32_MAX, 1, { AF_UNIX } };
    const struct guard guards[] = {
        /* the type; the rest of the bits are SOCK_NONBLOCK and the like */
        { SYS_socket, 1, 0xf, 1, { SOCK_STREAM } },
        /* one option each: the level alone would let in dozens */
        { SYS_setsockopt, 1, UINT32_MAX, 1, { IPPROTO_TCP } },
        { SYS_setsockopt, 2, UINT32_MAX, 1, { TCP_NODELAY } },
        { SYS_getsockopt, 1, UINT32_MAX, 1, { SOL_SOCKET } },
        { SYS_getsockopt, 2, UINT32_MAX, 1, { SO_ERROR } },
        { SYS_mmap, 2, PROT_EXEC, 1, { 0 } },
        { SYS_mprotect, 2, PROT_EXEC, 1, { 0 } },
        { SYS_fcntl, 1, UINT32_MAX, 3, { F_GETFD, F_GETFL, F_SETFD } },
        { SYS_tgkill, 0, UINT32_MAX, 1, { getpid() } },
        { SYS_tkill, 0, UINT32_MAX, 1, { getpid() } },
        /* malloc() calls its areas by name where it is told to */
        { SYS_prctl, 0, UINT32_MAX, 1, { PR_SET_VMA } },
    };

    if (sockets->inet) {
        families.values[families.count++] = AF_INET;
    }
    if (sockets->inet6) {
        families.values[families.count++] = AF_INET6;
    }
    if (sockets->vsock) {
        families.values[families.count++] = AF_VSOCK;
    }
    put_load(p, offsetof(struct seccomp_data, arch));
    put(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, SANDBOX_ARCH);
    put_return(p, SECCOMP_RET_KILL);
    put_load(p, offsetof(struct seccomp_data, nr));
    put_guard(p, &families);
    for (unsigned i = 0; i < sizeof(guards) / sizeof(guards[0]); i++) {
        put_guard(p, &guards[i]);
    }
    for (unsigned i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++) {
        put(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, allowed[i]);
        put_return(p, SECCOMP_RET_ALLOW);
    }
    put_return(p, SECCOMP_RET_TRAP);
}

/* The call has not been made. Says which it was, and ends. */
static void on_forbidden(int signal, siginfo_t *info, void *context)
{
    log_line(VLOG_ERROR,
             "system call %d (of architecture 0x%x) is not for "
             "this process; if that is a bug, --no-sandbox goes on without",
             info->si_syscall, info->si_arch);
    /* The signal is blocked here, so the kernel ends us by it. */
    syscall(SYS_ptrace, 0, 0, 0, 0);
    _exit(1);
}

/*
 * A kernel with filters looks for ours at address 0 and says EFAULT. One
 * without says EINVAL or ENOSYS, a container that forbids them EPERM. The
 * answer to the real filter could not be told from an error in it.
 */
int sandbox_available(void)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        return -errno;
    }
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, NULL) < 0 &&
        errno != EFAULT) {
        return -errno;
    }
    return 0;
}

int sandbox_enter(const struct sandbox_sockets *sockets)
{
    struct sigaction action = {
        .sa_sigaction = on_forbidden,
        .sa_flags = SA_SIGINFO,
    };
    struct program p = { 0 };
    struct sock_fprog filter = { .filter = p.code };
    unsigned flags = 0;

    put_program(&p, sockets);
    if (p.count > MAX_CODE) {
        return -E2BIG;
    }
    filter.len = p.count;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, NULL) < 0 ||
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        return -errno;
    }
#ifdef SECCOMP_FILTER_FLAG_SPEC_ALLOW
    /*
     * Nobody's code but ours runs here, so the mitigations that kernels before
     * 5.16 add for a process that runs foreign code would only make it slow.
     */
    flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter) == 0) {
        return 0;
    }
    flags = 0;
#endif
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter) < 0 ?
               -errno :
               0;
}

#endif
