/*
 * SPDX-License-Identifier: MIT
 *
 * The tools agent's commands: a program in the application's root, with a
 * terminal or with three pipes, joined to a connection (tools-protocol.h).
 *
 * Nothing here blocks but poll: what the command does not read must not keep a
 * signal from it, nor what the host does not read.
 */

#define _GNU_SOURCE
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROOT TOOLS_PROC "/1/root"
#define PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define ENVIRON_MAX 131072
#define VARIABLES_MAX 4096
#define PIECE 32768

/* How long a connection waits for the application to start, in 20 ms. */
#define WAIT_TURNS 1500

/* --- What the command finds ---------------------------------------------- */

static bool init_has_moved(void)
{
    struct stat ours, theirs;

    return stat("/", &ours) == 0 && stat(ROOT "/.", &theirs) == 0 &&
           (ours.st_dev != theirs.st_dev || ours.st_ino != theirs.st_ino);
}

/*
 * Wait until init has changed its root and started the application; 0 where it
 * does not, as one that is not made for enclaves.
 */
static pid_t await_application(void)
{
    const struct timespec pause = { .tv_nsec = 20000000 };
    pid_t found = 0;

    for (int i = 0; i < WAIT_TURNS && !found; i++) {
        found = init_has_moved() ? application_pid() : 0;
        if (!found) {
            nanosleep(&pause, NULL);
        }
    }
    return found;
}

static char *variables[VARIABLES_MAX + 1];
static size_t variable_count;

static void set_variable(char *text)
{
    size_t len = strcspn(text, "=") + 1;

    for (size_t i = 0; i < variable_count; i++) {
        if (!strncmp(variables[i], text, len)) {
            variables[i] = text;
            return;
        }
    }
    if (variable_count < VARIABLES_MAX) {
        variables[variable_count++] = text;
    }
}

/* The application's environment, and what the request says over it. */
static void set_environment(pid_t application, const Request *request)
{
    static char text[ENVIRON_MAX];
    char name[32];
    ssize_t len = 0;

    set_variable((char *)"PATH=" PATH);
    set_variable((char *)"HOME=/");
    snprintf(name, sizeof(name), "%d/environ", application);
    if (application) {
        len = read_proc(name, text, sizeof(text));
    }
    for (char *at = text; len > 0 && at < text + len; at += strlen(at) + 1) {
        if (strchr(at, '=')) {
            set_variable(at);
        }
    }
    for (size_t i = 0; i < request->variables; i++) {
        set_variable((char *)request->variable[i]);
    }
}

/* --- The command's process ----------------------------------------------- */

static void say_error(const char *what)
{
    dprintf(STDERR_FILENO, "nitroctl: %s: %s\n", what, strerror(errno));
}

static void __attribute__((noreturn)) become(const Request *request,
                                             int busybox)
{
    static const char *const shell[] = { "sh", NULL };
    char *const *argv = (char *const *)(request->words ? request->word : shell);
    bool ours = !request->words || request->flags & TOOLS_BUSYBOX;
    int err = ENOENT;

    environ = variables;
    if (!ours) {
        execvp(argv[0], argv);
        err = errno;
        ours = err == ENOENT && !strchr(argv[0], '/');
    }
    if (ours) {
        /* From outside the root: an image needs to have no program at all. */
        syscall(SYS_execveat, busybox, "", argv, variables, AT_EMPTY_PATH);
        err = errno;
    }
    errno = err;
    say_error(argv[0]);
    _exit(err == ENOENT ? 127 : 126);
}

typedef struct Command {
    pid_t pid;
    int in, out, err; /* our ends; -1: closed, or not there */
} Command;

/* The ends that the command gets, and ours in @c. */
static bool make_terminal(Command *c, int theirs[3], const Request *request)
{
    struct winsize size = { request->rows, request->columns, 0, 0 };
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    int unlock = 0;

    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0) {
        return false;
    }
    theirs[0] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (theirs[0] < 0) {
        return false;
    }
    theirs[1] = theirs[2] = theirs[0];
    ioctl(master, TIOCSWINSZ, &size);
    c->in = c->out = master;
    return true;
}

static bool make_pipes(Command *c, int theirs[3])
{
    int in[2], out[2], err[2];

    if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 ||
        pipe2(err, O_CLOEXEC) < 0) {
        return false;
    }
    theirs[0] = in[0];
    theirs[1] = out[1];
    theirs[2] = err[1];
    c->in = in[1];
    c->out = out[0];
    c->err = err[0];
    return true;
}

static bool start(Command *c, const Request *request, int busybox)
{
    bool tty = request->flags & TOOLS_TTY;
    int theirs[3];
    sigset_t none;

    if (!(tty ? make_terminal(c, theirs, request) : make_pipes(c, theirs))) {
        return false;
    }
    c->pid = fork();
    if (c->pid == 0) {
        setsid();
        for (int i = 0; i < 3; i++) {
            dup2(theirs[i], i);
        }
        if (tty) {
            ioctl(STDIN_FILENO, TIOCSCTTY, 0);
        }
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        signal(SIGPIPE, SIG_DFL);
        become(request, busybox);
    }
    for (int i = 0; i < (tty ? 1 : 3); i++) {
        close(theirs[i]);
    }
    fcntl(c->in, F_SETFL, O_NONBLOCK);
    fcntl(c->out, F_SETFL, O_NONBLOCK);
    if (c->err >= 0) {
        fcntl(c->err, F_SETFL, O_NONBLOCK);
    }
    return c->pid > 0;
}

/* --- Its connection ------------------------------------------------------ */

typedef struct Session {
    int sock, children; /* children: a signalfd */
    bool tty;
    Command command;
    bool ended;
    int status;
    uint8_t received[4 + TOOLS_FRAME_MAX];
    size_t received_len;
    uint8_t input[TOOLS_FRAME_MAX]; /* of an 'i' */
    size_t input_at, input_len;
    bool input_ends, acknowledge;
    uint8_t output[FRAME_HEAD + PIECE]; /* a frame on its way */
    size_t output_at, output_len;
} Session;

static void close_end(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

static void close_input(Session *s)
{
    s->input_at = s->input_len = 0;
    if (!s->tty) {
        close_end(&s->command.in);
    }
}

static bool obey(Session *s, const Frame *f)
{
    switch (f->kind) {
    case 'i':
        if (s->input_len || s->input_ends || s->acknowledge) {
            return false; /* out of its turn */
        }
        memcpy(s->input, f->data, f->len);
        s->input_at = 0;
        s->input_len = f->len;
        s->acknowledge = true;
        return true;
    case 'e':
        s->input_ends = true;
        return true;
    case 'w':
        if (f->len == 4) {
            struct winsize size = { f->data[0] | f->data[1] << 8,
                                    f->data[2] | f->data[3] << 8, 0, 0 };

            ioctl(s->command.out, TIOCSWINSZ, &size);
        }
        return f->len == 4;
    case 's':
        if (f->len == 1 && !s->ended) {
            kill(-s->command.pid, f->data[0]);
        }
        return f->len == 1;
    default:
        return false;
    }
}

/* False: the host is gone, or does not keep to the protocol. */
static bool receive(Session *s)
{
    Frame frame;
    ssize_t n = recv(s->sock, s->received + s->received_len,
                     sizeof(s->received) - s->received_len, MSG_DONTWAIT);

    if (n <= 0) {
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    s->received_len += n;
    while ((n = frame_take(s->received, s->received_len, &frame)) > 0) {
        if (!obey(s, &frame)) {
            return false;
        }
        s->received_len -= n;
        memmove(s->received, s->received + n, s->received_len);
    }
    return n == 0;
}

static void feed(Session *s)
{
    ssize_t n = write(s->command.in, s->input + s->input_at,
                      s->input_len - s->input_at);

    if (n > 0) {
        s->input_at += n;
        if (s->input_at == s->input_len) {
            s->input_at = s->input_len = 0;
        }
    } else if (errno != EAGAIN && errno != EINTR) {
        close_input(s); /* it does not want any more */
    }
}

static void put_frame(Session *s, uint8_t kind, size_t len)
{
    frame_head(s->output, kind, len);
    s->output_at = 0;
    s->output_len = FRAME_HEAD + len;
}

/* From one of the command's ends into a frame; at its end, that is closed. */
static void take_output(Session *s, int *fd, uint8_t kind)
{
    ssize_t n = read(*fd, s->output + FRAME_HEAD, PIECE);

    if (n > 0) {
        put_frame(s, kind, n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        if (s->tty && s->command.in == *fd) {
            s->command.in = -1;
        }
        close_end(fd);
    }
}

static bool transmit(Session *s)
{
    ssize_t n = send(s->sock, s->output + s->output_at,
                     s->output_len - s->output_at, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n > 0) {
        s->output_at += n;
        if (s->output_at == s->output_len) {
            s->output_len = 0;
        }
        return true;
    }
    return errno == EAGAIN || errno == EINTR;
}

static void note_end(Session *s)
{
    struct signalfd_siginfo info;

    while (read(s->children, &info, sizeof(info)) > 0) {
        ;
    }
    if (!s->ended && waitpid(s->command.pid, &s->status, WNOHANG) > 0) {
        s->ended = true;
    }
}

/* With nothing on its way: what goes next, if anything does. */
static void fill_output(Session *s)
{
    if (s->acknowledge && !s->input_len) {
        s->acknowledge = false;
        put_frame(s, 'a', 0);
        return;
    }
    if (s->command.out >= 0) {
        take_output(s, &s->command.out, 'o');
    }
    if (!s->output_len && s->command.err >= 0) {
        take_output(s, &s->command.err, 'r');
    }
}

/* One wait, and what it was for.  False: the host is gone. */
static bool turn(Session *s)
{
    struct pollfd p[] = {
        { s->sock, POLLIN | (s->output_len ? POLLOUT : 0), 0 },
        { s->children, POLLIN, 0 },
        { s->output_len ? -1 : s->command.out, POLLIN, 0 },
        { s->output_len ? -1 : s->command.err, POLLIN, 0 },
        { s->input_len ? s->command.in : -1, POLLOUT, 0 },
    };

    if (poll(p, 5, -1) < 0) {
        return errno == EINTR;
    }
    if (p[1].revents) {
        note_end(s);
    }
    if (p[0].revents & ~POLLOUT && !receive(s)) {
        return false;
    }
    if (s->input_len && s->command.in < 0) {
        close_input(s);
    } else if (p[4].revents && s->input_len) {
        feed(s);
    }
    if (s->input_ends && !s->input_len) {
        close_input(s);
    }
    if (!s->output_len) {
        fill_output(s);
    }
    return !s->output_len || transmit(s);
}

static void carry(Session *s)
{
    /* It has ended, and all that it said has been taken. */
    while (!s->ended || s->output_len || s->command.out >= 0 ||
           s->command.err >= 0) {
        if (!turn(s)) {
            if (!s->ended) {
                kill(-s->command.pid, SIGHUP);
            }
            return;
        }
        /* Its children may hold its pipes for as long as they like. */
        if (s->ended && !s->output_len) {
            fill_output(s);
            if (!s->output_len) {
                break;
            }
        }
    }
    fcntl(s->sock, F_SETFL, 0);
    send_frame(s->sock, 'x',
               (uint8_t[]) { WIFSIGNALED(s->status),
                             WIFSIGNALED(s->status) ? WTERMSIG(s->status) :
                                                      WEXITSTATUS(s->status) },
               2);
}

void exec_run(int sock, const Request *request, int busybox)
{
    static Session s;
    sigset_t child;

    s.sock = sock;
    s.tty = request->flags & TOOLS_TTY;
    s.command = (Command) { 0, -1, -1, -1 };
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    signal(SIGPIPE, SIG_IGN);
    s.children = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    if (s.children < 0) {
        send_failure(sock, errno, "signalfd");
        return;
    }
    set_environment(await_application(), request);
    if (chdir(ROOT "/.") < 0 || chroot(".") < 0 || chdir("/") < 0) {
        send_failure(sock, errno, "the application's root");
        return;
    }
    if (!start(&s.command, request, busybox)) {
        send_failure(sock, errno, s.tty ? "a terminal" : "the command");
        return;
    }
    carry(&s);
}
