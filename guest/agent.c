/*
 * SPDX-License-Identifier: MIT
 *
 * The test agent: an application for test EIFs that does what a test outside
 * asks for, over vsock.  It carries raw requests to /dev/nsm, tells what the
 * guest looks like, opens and serves vsock streams, and ends the guest in every
 * way that a guest can end.  It judges nothing: answers are facts, the tests
 * outside decide.  It is root in its guest and obeys whoever connects: never
 * put it into an EIF that is more than a test.
 *
 * Started by init as the enclave's application ("/agent [PORT]"), or by the
 * kernel as PID 1 itself (then it mounts /dev, /proc and /sys and sends no
 * heartbeat).  It listens on vsock port 7000, any CID, prints the line
 *
 *     agent: listening on vsock port 7000
 *
 * on the console, and serves each connection in a thread of its own.
 *
 * Frames
 * ------
 * Both ways a frame is a u32 length (little endian, 1..1048576) and that many
 * bytes: one operation byte, then its arguments.  A client sends one frame and
 * reads one answer, as often as it likes; answers come in order.  A length out
 * of range ends the connection.  Integers are little endian.
 *
 *   request                  answer
 *   'N' request bytes        'N' response bytes: one ioctl on /dev/nsm with a
 *                            response buffer of 0x3000; exactly the bytes that
 *                            the driver reports.  Empty is allowed (a
 *                            descriptor of length zero).
 *   'n' u32 CAP, request     'n' response bytes, with a buffer of CAP bytes
 *   'P' NAME ['\n' ARG]...   'P' text, see "Probes"
 *   'X' u8 STATUS            none; the agent exits with STATUS, so that init
 *                            ends the guest
 *   'K' u8 SIGNAL            none; the agent dies of SIGNAL
 *   'Q'                      none; reboot(RB_AUTOBOOT): a machine reset
 *   'H'                      none; reboot(RB_HALT_SYSTEM): CPUs stop
 *   'C'                      none; the kernel panics (sysrq c)
 *
 * A failure is answered with 'E', u32 errno, text.  After X K Q H C the
 * connection just ends.
 *
 * Probes
 * ------
 * Arguments are text, one per line; numbers are decimal or 0x hex.  Answers are
 * text; "key value" lines end in '\n'.  Errors are 'E' frames.
 *
 *   uname            sysname, release, version, machine: one line each
 *   cmdline          the kernel command line
 *   bind ADDRESS     binds a TCP socket to any port of that IPv4 address:
 *                    "errno N" (0: bound)
 *   clock            "us N", microseconds since 1970, "uptime N", what the
 *                    kernel counted of them, "source NAME", what it counts with
 *   cpus             number of CPUs online
 *   mem              "total KIB", "free KIB", "high KIB" (RAM at or above 4 GiB
 *                    of guest address)
 *   id               "pid N", "ppid N", "sid N", "uid N", "gid N", "cid N"
 *   env              the environment, one entry per line
 *   args             argv, one entry per line
 *   cwd              the working directory
 *   devices          one line per virtio device: NAME ID TRANSPORT DRIVER, like
 *                    "virtio0 19 virtio-mmio.0 vmw_vsock_virtio_transport"; ID
 *                    decimal (19 vsock, 33 NSM), "-" without a driver
 *   buses            "pci N", "block N", "net N": how many devices of each (net
 *                    without lo)
 *   v2               runs one instruction of each extension of x86-64-v2:
 *                    "sse3 3", "ssse3 7", "sse4.1 42", "sse4.2 HEX" (CRC-32C of
 *                    "123456789"), "popcnt N" (of ff00ff00ff00ff00), "cx16 1";
 *                    E with EILSEQ if that was an illegal one
 *   cat PATH         the file's bytes (at most 1 MiB - 64)
 *   ls PATH          its entries, sorted, one per line
 *   write PATH TEXT  writes TEXT to an existing file in one write(2)
 *   exec PROGRAM [ARG]...
 *                    runs it: "status N" or "signal N", then its output (stdout
 *                    and stderr)
 *   print TEXT       TEXT and a newline on the console
 *   sleep MS         answers after MS milliseconds
 *   hwrng N          N bytes (up to 4096) of /dev/hwrng, in hex
 *   rebind ID        takes the virtio device with that id from its drivers and
 *                    gives it back: "device NAME" (its new one), "driver NAME".
 *                    The transport is unbound and bound, since that resets the
 *                    device; the NSM's driver alone leaves without a reset, and
 *                    finds its own old queue when it comes back.
 *   nsm-loop THREADS COUNT HEX
 *                    THREADS threads (up to 512), sharing one descriptor of
 *                    /dev/nsm, send the request HEX COUNT times each: "us N"
 *                    elapsed, "ok N" answers that are not an Error, "errors N"
 *                    {"Error": ...} answers, "failed N" failed ioctls,
 *                    "bytes N" of all answers, "last HEX" the first thread's
 *                    last answer
 *
 *   connect CID PORT [MS]
 *                    tries to connect (timeout MS, default the kernel's 2 s):
 *                    "errno N" (0: connected), "us N" it took, "port N" own
 *                    port.  Never an E frame for a refusal.  The connection is
 *                    closed again.
 *   dial CID PORT MODE [ARG]...
 *                    connects, runs MODE on the connection, answers with the
 *                    report of MODE; E with errno if it cannot connect
 *   listen PORT MODE [ARG]...
 *                    listens from now on, runs MODE on each connection (a
 *                    thread each), answers "port N" once listening (PORT 0:
 *                    any).  Serves until the guest ends or `unlisten`.
 *   echo-listen PORT listen PORT echo
 *   unlisten PORT    closes that listener: "port N"
 *   high-source CID PORT SIZE SEED
 *                    dials and sends as `source`, but with MSG_ZEROCOPY out of
 *                    locked pages that all lie at or above 4 GiB of guest
 *                    address (checked in /proc/self/pagemap), so that they
 *                    themselves are in the ring: the report of source and
 *                    "zerocopy N" sends of up to 64 KiB that the kernel did not
 *                    copy, "low-pfn HEX" the lowest page frame used; E with
 *                    ENXIO: there are no such pages
 *
 * Modes (arguments are further lines)
 *
 *   echo             sends back what comes; at EOF shuts down its sending side
 *                    and closes
 *   sink SEED        reads to EOF and compares with the pattern of SEED
 *   source SIZE SEED [CHUNK]
 *                    sends SIZE bytes of the pattern, CHUNK at a time (default
 *                    65536, up to 4 MiB), shuts down its sending side
 *                    (SHUT_WR), then reads to EOF
 *   both SIZE SEED [CHUNK]
 *                    source and sink of the same pattern at the same time
 *   sleep MS         reads nothing for MS milliseconds, then as `count`
 *   count            reads to EOF, whatever comes
 *   half             shuts down its sending side first, then as `count`
 *   hold             never reads; keeps the connection until the peer ends it
 *   drop             closes at once
 *   pingpong COUNT   sends 1 byte, reads 1 byte, COUNT times; then closes
 *   messages SIZE COUNT
 *                    COUNT sends of SIZE bytes of zeros each, then as `half`
 *
 * A mode's report: "sent N", "received N", "mismatch N" (offset of the first
 * byte that differs from the pattern, -1: none), "errno N" (what ended it, 0
 * for an orderly end), "us N".  For `dial` it is the probe's answer.  For a
 * listener with `sink`, `sleep` or `count`, a peer that shut down its sending
 * side reads the report as text from the connection before it closes.
 *
 * Pattern of SEED (u32): byte i of a stream is block[i mod 65521], where
 *
 *     x = SEED; for k in 0..65520: x = x * 1664525 + 1013904223 (mod 2^32);
 *                                  block[k] = x >> 24
 *
 * 65521 is prime: no buffer size divides it, so a lost or doubled buffer shows.
 */

#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define AGENT_PORT 7000

/* Streams are served by threads, tests open hundreds: small stacks. */
#define STACK_SIZE (128 * 1024)

int agent_argc;
char **agent_argv;

/* --- Helpers that all files use ------------------------------------------ */

void die(const char *what)
{
    fprintf(stderr, "agent: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

void answer_add(Answer *a, const void *data, size_t len)
{
    if (!len) {
        return;
    }
    if (a->size - a->len < len) {
        a->size = (a->len + len) * 2;
        a->data = realloc(a->data, a->size);
        if (!a->data) {
            die("answer");
        }
    }
    memcpy(a->data + a->len, data, len);
    a->len += len;
}

static void answer_vprintf(Answer *a, const char *format, va_list ap)
{
    char *text;
    int len = vasprintf(&text, format, ap);

    if (len < 0) {
        die("answer");
    }
    answer_add(a, text, len);
    free(text);
}

void answer_printf(Answer *a, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    answer_vprintf(a, format, ap);
    va_end(ap);
}

int answer_fail(Answer *a, int err, const char *format, ...)
{
    va_list ap;

    a->len = 0;
    va_start(ap, format);
    answer_vprintf(a, format, ap);
    va_end(ap);
    return -err;
}

bool args_number(const Args *args, size_t i, uint64_t max, uint64_t *value,
                 Answer *a)
{
    int64_t number;
    int len = 0;

    if (i >= args->n) {
        return true;
    }
    if (sscanf(args->v[i], "%" SCNi64 "%n", &number, &len) != 1 ||
        args->v[i][len] || number < 0 || (uint64_t)number > max) {
        answer_fail(a, EINVAL,
                    "argument %zu: not a number up to %" PRIu64 ": %s", i + 1,
                    max, args->v[i]);
        return false;
    }
    *value = number;
    return true;
}

uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ULL + t.tv_nsec / 1000;
}

bool start_thread(void *(*fn)(void *), void *arg)
{
    pthread_attr_t attr;
    pthread_t thread;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    errno = pthread_create(&thread, &attr, fn, arg);
    pthread_attr_destroy(&attr);
    return errno == 0;
}

bool read_full(int fd, void *data, size_t len)
{
    uint8_t *at = data;

    while (len) {
        ssize_t n = read(fd, at, len);

        if (n <= 0) {
            errno = n ? errno : 0;
            return false;
        }
        at += n;
        len -= n;
    }
    return true;
}

bool write_full(int fd, const void *data, size_t len)
{
    const uint8_t *at = data;

    while (len) {
        ssize_t n = write(fd, at, len);

        if (n < 0) {
            return false;
        }
        at += n;
        len -= n;
    }
    return true;
}

int vsock_listen(uint32_t *port)
{
    struct sockaddr_vm addr = {
        .svm_family = AF_VSOCK,
        .svm_cid = VMADDR_CID_ANY,
        .svm_port = *port ? *port : VMADDR_PORT_ANY,
    };
    socklen_t len = sizeof(addr);
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        return -1;
    }
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
        listen(fd, 1024) < 0 ||
        getsockname(fd, (struct sockaddr *)&addr, &len) < 0) {
        int saved = errno;

        close(fd);
        errno = saved;
        return -1;
    }
    *port = addr.svm_port;
    return fd;
}

/* --- Frames -------------------------------------------------------------- */

static uint32_t get_le32(const uint8_t b[4])
{
    return b[0] | b[1] << 8 | b[2] << 16 | (uint32_t)b[3] << 24;
}

static void put_le32(uint8_t b[4], uint32_t v)
{
    b[0] = v;
    b[1] = v >> 8;
    b[2] = v >> 16;
    b[3] = v >> 24;
}

static const Probe *find_probe(const char *name)
{
    const Probe *const tables[] = { machine_probes, vsock_probes, nsm_probes };

    for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++) {
        for (const Probe *p = tables[t]; p->name; p++) {
            if (!strcmp(p->name, name)) {
                return p;
            }
        }
    }
    return NULL;
}

/* @text: NAME and arguments, a line each, NUL-terminated; is cut up. */
static int run_probe(char *text, Answer *a)
{
    char *lines[64], *next = text;
    size_t n = 0;
    const Probe *probe;
    Args args;

    while (next) {
        char *line = strsep(&next, "\n");

        if (n == sizeof(lines) / sizeof(lines[0])) {
            return answer_fail(a, E2BIG, "more than %zu arguments", n - 1);
        }
        lines[n++] = line;
    }
    probe = find_probe(lines[0]);
    if (!probe) {
        return answer_fail(a, ENOSYS, "no such probe: %s", lines[0]);
    }
    args = (Args) { lines + 1, n - 1 };
    if (args.n < probe->min || args.n > probe->max) {
        return answer_fail(a, EINVAL, "%s takes %zu to %zu arguments, not %zu",
                           probe->name, probe->min, probe->max, args.n);
    }
    return probe->run(&args, a);
}

static void panic(void)
{
    int fd = open("/proc/sysrq-trigger", O_WRONLY);

    if (fd < 0 || write(fd, "c", 1) != 1) {
        die("/proc/sysrq-trigger");
    }
}

/*
 * Carry out one frame.  Returns 0 with the answer, -errno with a message in
 * it; does not return from what ends the agent.
 */
static int serve_frame(uint8_t *frame, size_t len, Answer *a)
{
    uint32_t size;

    switch (frame[0]) {
    case 'N':
        return nsm_once(frame + 1, len - 1, NSM_RESPONSE_MAX, a);
    case 'n':
        if (len < 5) {
            return answer_fail(a, EINVAL, "n: no room for a buffer size");
        }
        size = get_le32(frame + 1);
        if (size >= FRAME_MAX) {
            return answer_fail(a, EINVAL, "n: buffer size %u", size);
        }
        return nsm_once(frame + 5, len - 5, size, a);
    case 'P':
        frame[len] = '\0';
        return run_probe((char *)frame + 1, a);
    case 'X':
        exit(len > 1 ? frame[1] : 0);
    case 'K':
        signal(len > 1 ? frame[1] : SIGKILL, SIG_DFL);
        kill(getpid(), len > 1 ? frame[1] : SIGKILL);
        return answer_fail(a, EINVAL, "still alive");
    case 'Q':
        reboot(RB_AUTOBOOT);
        return answer_fail(a, errno, "reboot: %s", strerror(errno));
    case 'H':
        reboot(RB_HALT_SYSTEM);
        return answer_fail(a, errno, "halt: %s", strerror(errno));
    case 'C':
        panic();
        return answer_fail(a, EIO, "no panic");
    default:
        return answer_fail(a, EINVAL, "no such operation: 0x%02x", frame[0]);
    }
}

static bool send_answer(int fd, uint8_t op, int err, const Answer *a)
{
    uint8_t head[9];
    size_t head_len = err ? 9 : 5;
    size_t len = a->len;

    if (len > FRAME_MAX - 5) {
        len = FRAME_MAX - 5;
    }
    put_le32(head, head_len - 4 + len);
    head[4] = err ? 'E' : op;
    if (err) {
        put_le32(head + 5, -err);
    }
    return write_full(fd, head, head_len) && write_full(fd, a->data, len);
}

static void *serve_client(void *opaque)
{
    int fd = (intptr_t)opaque;
    uint8_t head[4], *frame = NULL;
    Answer answer = { 0 };

    while (read_full(fd, head, sizeof(head))) {
        uint32_t len = get_le32(head);
        int err;

        if (len < 1 || len > FRAME_MAX) {
            fprintf(stderr, "agent: a frame of %u bytes\n", len);
            break;
        }
        frame = realloc(frame, len + 1); /* + NUL of a probe's text */
        if (!frame) {
            die("frame");
        }
        if (!read_full(fd, frame, len)) {
            break;
        }
        answer.len = 0;
        err = serve_frame(frame, len, &answer);
        if (!send_answer(fd, frame[0], err, &answer)) {
            break;
        }
    }
    free(answer.data);
    free(frame);
    close(fd);
    return NULL;
}

/* --- Start --------------------------------------------------------------- */

/* What init would have done, as far as the probes need it. */
static void be_init(void)
{
    static const struct {
        const char *type, *target;
    } needed[] = {
        { "devtmpfs", "/dev" },
        { "proc", "/proc" },
        { "sysfs", "/sys" },
    };
    int fd;

    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        mkdir(needed[i].target, 0755);
        if (mount(needed[i].type, needed[i].target, needed[i].type, 0, NULL) &&
            errno != EBUSY) {
            die(needed[i].target);
        }
    }
    fd = open("/dev/console", O_RDWR);
    for (int i = STDIN_FILENO; i <= STDERR_FILENO; i++) {
        dup2(fd, i);
    }
}

int main(int argc, char **argv)
{
    uint32_t port = AGENT_PORT;
    int listener;

    agent_argc = argc;
    agent_argv = argv;
    if (getpid() == 1) {
        be_init(); /* the arguments are then the kernel's leftovers */
    } else if (argc > 1 && sscanf(argv[1], "%" SCNu32, &port) != 1) {
        errno = EINVAL;
        die(argv[1]);
    }
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);

    listener = vsock_listen(&port);
    if (listener < 0) {
        die("listen on vsock");
    }
    printf("agent: listening on vsock port %u\n", port);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0) {
            die("accept");
        }
        if (!start_thread(serve_client, (void *)(intptr_t)fd)) {
            die("thread");
        }
    }
}
