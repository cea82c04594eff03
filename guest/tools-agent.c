/*
 * SPDX-License-Identifier: MIT
 *
 * The tools agent: a process beside the application that does what nitroctl
 * asks for (tools-protocol.h).  Each connection gets a process of its own,
 * which can die of whatever it meets.
 *
 * It stands in the first ramdisk's root, where it was started, and finds the
 * application's by way of /proc/1/root: every init that is made for enclaves
 * changes its own root to it.
 */

#define _GNU_SOURCE
#include "tools.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

#define PARENT_CID 3
#define REQUEST_SECONDS 10
#define NS 1000000000LL

/* What one process can set: its clock's tick is 10000 us give or take 10 %. */
#define PPM_MAX 100000

static pid_t agent_pid;

/* --- Frames -------------------------------------------------------------- */

static bool send_all(int sock, const uint8_t *data, size_t len)
{
    while (len) {
        ssize_t n = send(sock, data, len, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data += n;
        len -= n;
    }
    return true;
}

bool send_frame(int sock, uint8_t kind, const void *data, size_t len)
{
    uint8_t head[FRAME_HEAD];

    frame_head(head, kind, len);
    return send_all(sock, head, sizeof(head)) && send_all(sock, data, len);
}

void send_failure(int sock, int err, const char *what)
{
    uint8_t data[256] = { err, err >> 8, err >> 16, err >> 24 };
    int len = snprintf((char *)data + 4, sizeof(data) - 4, "%s: %s", what,
                       strerror(err));

    len = len < (int)sizeof(data) - 4 ? len : (int)sizeof(data) - 5;
    send_frame(sock, 'f', data, 4 + len);
}

/* --- The guest's processes ----------------------------------------------- */

ssize_t read_proc(const char *name, char *text, size_t size)
{
    char path[64];
    ssize_t len = 0, n = 1;
    int fd;

    snprintf(path, sizeof(path), TOOLS_PROC "/%s", name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    while (n > 0 && len < (ssize_t)size - 1) {
        n = read(fd, text + len, size - 1 - len);
        len += n > 0 ? n : 0;
    }
    close(fd);
    text[len] = '\0';
    return len || n == 0 ? len : -1;
}

/* As a number in /proc/PID/stat; the name before it can be anything. */
static pid_t parent_of(pid_t pid)
{
    char name[32], text[512];
    const char *at;
    int ppid;

    snprintf(name, sizeof(name), "%d/stat", pid);
    if (read_proc(name, text, sizeof(text)) <= 0) {
        return -1;
    }
    at = strrchr(text, ')');
    return at && sscanf(at, ") %*c %d", &ppid) == 1 ? ppid : -1;
}

pid_t application_pid(void)
{
    DIR *dir = opendir(TOOLS_PROC);
    struct dirent *entry;
    pid_t found = 0;

    while (dir && (entry = readdir(dir))) {
        pid_t pid = atoi(entry->d_name);

        if (pid > 0 && pid != agent_pid && (!found || pid < found) &&
            parent_of(pid) == 1) {
            found = pid;
        }
    }
    if (dir) {
        closedir(dir);
    }
    return found;
}

/* --- The clock ----------------------------------------------------------- */

static int64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * NS + t.tv_nsec;
}

static int set_clock(int64_t ns)
{
    struct timespec t = { ns / NS, ns % NS };

    return clock_settime(CLOCK_REALTIME, &t);
}

static int set_rate(int64_t ppm)
{
    /* A tick is a hundredth of a second: 1 us of it are 100 ppm. */
    struct timex t = { .modes = ADJ_TICK | ADJ_FREQUENCY,
                       .tick = 10000 + ppm / 100,
                       .freq = ppm % 100 * 65536 };

    if (ppm > PPM_MAX || ppm < -PPM_MAX) {
        errno = ERANGE;
        return -1;
    }
    return adjtimex(&t) < 0 ? -1 : 0;
}

static void clock_run(int sock, const Request *request)
{
    const char *what = request->words ? request->word[0] : "";
    int64_t value = 0, before = now();
    int done = 0, len;
    char text[64];

    errno = EINVAL;
    if (request->words > 1 && !number_parse(request->word[1], &value)) {
        done = -1;
    } else if (!strcmp(what, "set") && request->words == 2 && value >= 0) {
        done = set_clock(value);
    } else if (!strcmp(what, "shift") && request->words == 2) {
        int64_t at;

        done = __builtin_add_overflow(before, value, &at) || at < 0 ?
                   -1 :
                   set_clock(at);
    } else if (!strcmp(what, "rate") && request->words == 2) {
        done = set_rate(value);
    } else if (strcmp(what, "read") || request->words != 1) {
        done = -1;
    }
    if (done < 0) {
        send_failure(sock, errno, "the guest's clock");
        return;
    }
    len = snprintf(text, sizeof(text), "%" PRId64 " %" PRId64 "\n", before,
                   now());
    if (send_frame(sock, 'o', text, len)) {
        send_frame(sock, 'x', "\0", 2);
    }
}

/* --- Connections --------------------------------------------------------- */

/* The first frame, and nothing after it: the peer waits for our answer. */
static bool receive(int sock, uint8_t *bytes, size_t size, Frame *frame)
{
    struct timeval limit = { .tv_sec = REQUEST_SECONDS };
    size_t len = 0;
    ssize_t taken = 0;

    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    while (!taken) {
        /* Not a byte more than the frame has: the rest is for others. */
        size_t want = len < 4 ? 4 :
                                4 + (bytes[0] | bytes[1] << 8 | bytes[2] << 16 |
                                     (size_t)bytes[3] << 24);
        ssize_t n;

        if (want > size) {
            return false;
        }
        n = recv(sock, bytes + len, want - len, 0);
        if (n <= 0) {
            return false;
        }
        len += n;
        taken = frame_take(bytes, len, frame);
    }
    limit = (struct timeval) { 0 };
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    return taken > 0;
}

static void serve(int sock, int busybox)
{
    static uint8_t bytes[4 + TOOLS_FRAME_MAX];
    static Request request;
    Frame frame;

    if (!receive(sock, bytes, sizeof(bytes), &frame) ||
        !request_parse(&frame, &request)) {
        send_failure(sock, EBADMSG, "the request");
    } else if (request.version != TOOLS_VERSION) {
        send_failure(sock, EPROTONOSUPPORT, "the request");
    } else if (request.operation == 'X') {
        exec_run(sock, &request, busybox);
    } else if (request.operation == 'T') {
        top_run(sock);
    } else if (request.operation == 'C') {
        clock_run(sock, &request);
    } else {
        send_failure(sock, EOPNOTSUPP, "the request");
    }
    /* What was sent shall arrive before the connection is gone. */
    shutdown(sock, SHUT_WR);
    while (recv(sock, bytes, sizeof(bytes), 0) > 0) {
        ;
    }
}

/* A kernel with modules has no AF_VSOCK before init has loaded them. */
static void wait_for_vsock(void)
{
    static char text[16384];
    const struct timespec pause = { .tv_nsec = 20000000 };

    /* Asking for a socket would have the kernel look for a module. */
    while (read_proc("net/protocols", text, sizeof(text)) > 0 &&
           !strstr(text, "\nAF_VSOCK ")) {
        nanosleep(&pause, NULL);
    }
}

static int listen_to_parent(void)
{
    const struct sockaddr_vm any = { .svm_family = AF_VSOCK,
                                     .svm_cid = VMADDR_CID_ANY,
                                     .svm_port = TOOLS_PORT };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && (bind(fd, (const struct sockaddr *)&any, sizeof(any)) < 0 ||
                    listen(fd, 16) < 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Core dumps go to this program, whose path every root with a /proc has. */
static void take_cores(void)
{
    char pattern[64];
    int fd = open(TOOLS_PROC "/sys/kernel/core_pattern", O_WRONLY | O_CLOEXEC);

    snprintf(pattern, sizeof(pattern), "|/proc/%d/exe core %%P %%s", agent_pid);
    if (fd >= 0) {
        /* What fails here is a kernel without core dumps. */
        if (write(fd, pattern, strlen(pattern)) < 0) {
            errno = 0;
        }
        close(fd);
    }
    /* A dead program stays until its core has been read, and init with it. */
    fd = open(TOOLS_PROC "/sys/kernel/core_pipe_limit", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (write(fd, "4", 1) < 0) {
            errno = 0;
        }
        close(fd);
    }
}

/* Nothing of the console's that init has: descriptors that lead nowhere. */
static void leave_the_console(void)
{
    int nowhere = eventfd(0, 0);

    for (int fd = 0; fd <= 2; fd++) {
        if (fd != nowhere) {
            dup2(nowhere, fd);
        }
    }
    if (nowhere > 2) {
        close(nowhere);
    }
}

void agent_run(void)
{
    int busybox, listener;

    agent_pid = getpid();
    setsid();
    prctl(PR_SET_NAME, "nitroctl-tools");
    leave_the_console();
    signal(SIGCHLD, SIG_IGN); /* nobody waits for a connection's process */
    mkdir(TOOLS_PROC, 0700);
    if (mount("proc", TOOLS_PROC, "proc", 0, NULL) < 0) {
        return;
    }
    busybox = open(TOOLS_FOLDER "/busybox", O_PATH | O_CLOEXEC);
    take_cores();
    wait_for_vsock();
    listener = listen_to_parent();
    if (listener < 0) {
        return;
    }
    for (;;) {
        struct sockaddr_vm peer = { 0 };
        socklen_t len = sizeof(peer);
        int sock =
            accept4(listener, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC);

        if (sock < 0) {
            continue; /* it went away before we came */
        }
        if (peer.svm_cid == PARENT_CID && fork() == 0) {
            close(listener);
            signal(SIGCHLD, SIG_DFL);
            serve(sock, busybox);
            _exit(0);
        }
        close(sock);
    }
}
