/*
 * SPDX-License-Identifier: MIT
 *
 * main.c: the command line of vhost-user-vsock, and nothing else. Each option
 * is a row of one table, which --help prints as well; those about ports and
 * addresses are taken by routes.c.
 */

#include "log.h"
#include "options.h"
#include "vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/vm_sockets.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#ifndef VERSION
#define VERSION "unversioned"
#endif

void wrong(const char *fmt, ...)
{
    char text[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    /* It stays one line, whatever the option's value is. */
    log_visible(text);
    fprintf(stderr, "vhost-user-vsock: %s; see --help\n", text);
    exit(2);
}

/* Digits alone: strtoul() would take signs, spaces and what wraps. */
uint32_t option_number(const char *option, const char *text, uint32_t min,
                       uint32_t max)
{
    uint64_t n = 0;
    const char *p;

    for (p = text; *p >= '0' && *p <= '9' && n <= max; p++) {
        n = n * 10 + (*p - '0');
    }
    if (p == text || *p || n < min || n > max) {
        wrong("%s=%s is not a number from %u to %u", option, text, min, max);
    }
    return n;
}

/* What takes more than a place in struct host_options. */

static void set_vm(struct host_options *o, const char *option, char *text);

static void set_driver_timeout(struct host_options *o, const char *option,
                               char *text)
{
    o->driver_ms = option_number(option, text, 1, 3600) * 1000ll;
}

/* Its name is used at the end: what is behind the last slash. */
static void set_cleanup_dir(struct host_options *o, const char *option,
                            char *text)
{
    (void)option;
    for (size_t n = strlen(text); n > 1 && text[n - 1] == '/'; n--) {
        text[n - 1] = 0;
    }
    o->cleanup_dir = text;
}

static void set_log_level(struct host_options *o, const char *option,
                          char *text)
{
    (void)o;
    if (!log_set_level(text)) {
        wrong("%s=%s is not error, warning, info or debug", option, text);
    }
}

static void show_help(struct host_options *o, const char *option, char *text);

static void show_version(struct host_options *o, const char *option, char *text)
{
    (void)o, (void)option, (void)text;
    puts("vhost-user-vsock " VERSION);
    exit(0);
}

/* The table. */

enum kind {
    TEXT,       /* const char * */
    NUMBER,     /* uint32_t, from min to max */
    DESCRIPTOR, /* int */
    ON,         /* bool; the option has no value */
    OFF,
    CALL, /* take() knows what to do */
};

struct row {
    const char *name;
    const char *value; /* as --help calls it; NULL: it has none */
    enum kind kind;
    size_t at; /* where it goes, in struct host_options */
    uint32_t min, max;
    void (*take)(struct host_options *o, const char *option, char *text);
    const char *help; /* NULL: beside another's, see last_help */
};

#define AT(member) offsetof(struct host_options, member)

static const struct row table[] = {
    { "--socket-path", "=S", TEXT, .at = AT(socket_path),
      .help = "socket for the VMM (vhost-user); is created" },
    { "--guest-cid", "=N", NUMBER, AT(guest_cid), VSOCK_CID_PARENT + 1,
      VSOCK_CID_ANY - 1, .help = "the guest's CID, 4 to 4294967294" },
    { "--uds-path", "=P", TEXT, .at = AT(uds_path),
      .help = "socket for the host's clients; is created" },
    { "--vm", " KEY=VALUE,...", CALL, .take = set_vm,
      .help = "the three above, forward-cid and forward-listen, as\n"
              "vhost-device-vsock spells them" },
    { "--proxy", "=PORT=HOST:PORT", CALL, .take = route_proxy,
      .help = "the parent's PORT is that TCP service; HOST is looked\n"
              "up once, at the start, and its addresses are tried in\n"
              "turn; [HOST] for IPv6" },
    { "--listen-port", "=PORT=PATH", CALL, .take = route_listen_port,
      .help = "the parent's PORT is the unix socket PATH" },
    { "--publish", "=ADDR=PORT", CALL, .take = route_publish,
      .help = "clients of ADDR, HOST:PORT or a path with a slash, are\n"
              "joined to the guest's PORT without a word; is created" },
    { "--connect-port", "=PORT=PATH", CALL, .take = route_connect_port,
      .help = "the same as --publish=PATH=PORT" },
    { "--fallback-path", "=F", TEXT, .at = AT(fallback_path),
      .help = "where nobody listens on P_N, try F_N" },
    { "--forward-cid", "=N", NUMBER, AT(forward_cid), VMADDR_CID_LOCAL,
      VSOCK_CID_ANY - 1,
      .help = "where nobody listens there either, try this host's\n"
              "AF_VSOCK, CID N (1: itself); --uds-path is optional then" },
    { "--forward-listen", "=PORT+PORT...", CALL, .take = route_forward_listen,
      .help = "clients from CID N to these ports of this\n"
              "host's AF_VSOCK are joined to the guest's" },
    { "--socket-fd", "=N", DESCRIPTOR, .at = AT(socket_fd),
      .help = "listening socket instead of --socket-path" },
    { "--uds-fd", "=N", DESCRIPTOR, .at = AT(uds_fd),
      .help = "listening socket in the place of P (still needed for P_N)" },
    { "--no-cid2", NULL, OFF, .at = AT(serve_cid2),
      .help = "refuse CID 2 (served like CID 3 otherwise)" },
    { "--once", NULL, ON, .at = AT(once),
      .help = "end when the first VMM has disconnected" },
    { "--max-connections", "=N", NUMBER, AT(max_conns), 1,
      VSOCK_MAX_CONNS_LIMIT,
      .help = "at most so many at a time, 1 to 8192 (4096)" },
    { "--driver-timeout", "=S", CALL, .take = set_driver_timeout,
      .help = "seconds that clients wait for the guest's driver to\n"
              "come up, 1 to 3600 (20)" },
    { "--ready-fd", "=N", DESCRIPTOR, .at = AT(ready_fd),
      .help = "write \"ready\\n\" there once listening, and close it\n"
              "(otherwise to standard output)" },
    { "--booted-fd", "=N", DESCRIPTOR, .at = AT(booted_fd),
      .help = "write \"booted\\n\" there when a heartbeat was answered,\n"
              "once for each boot, and \"exited N\\n\" or \"killed N\\n\"\n"
              "when an init told how the application ended (otherwise\n"
              "to standard output)" },
    { "--lifeline-fd", "=N", DESCRIPTOR, .at = AT(lifeline_fd),
      .help = "remove the sockets and end when the other end of this\n"
              "pipe or socket is closed" },
    { "--cleanup-dir", "=D", CALL, .take = set_cleanup_dir,
      .help = "then also remove the files and sockets in D, and D" },
    { "--no-sandbox", NULL, OFF, .at = AT(sandbox),
      .help = "leave all system calls to the process" },
    { "--log-level", "=LEVEL", CALL, .take = set_log_level,
      .help = "error, warning (default), info or debug" },
    { "--version", NULL, CALL, .take = show_version },
    { "--help", NULL, CALL, .take = show_help },
};

#define ROWS (sizeof(table) / sizeof(table[0]))

static const char first_help[] =
    "Usage: vhost-user-vsock --socket-path=S --guest-cid=N --uds-path=P [OPTION]...\n"
    "       vhost-user-vsock --vm guest-cid=N,socket=S,uds-path=P [OPTION]...\n"
    "\n"
    "Serves the vsock device of one virtual machine through unix sockets.\n"
    "  guest -> host  a connection to CID 3, port N goes to the socket P_N\n"
    "  host -> guest  connect to P, send \"CONNECT N\\n\", read \"OK n\\n\"\n"
    "Port 9000, the boot heartbeat of an enclave, is answered here unless\n"
    "somebody listens on P_9000.\n"
    "\n";

static const char last_help[] =
    "  -v, -q               log more (twice: all), or errors only\n"
    "  --version, --help    print this and exit\n"
    "\n"
    "SIGUSR1 prints statistics, a line of JSON, on standard error.\n"
    "Exit status: 0 ended as asked (signal, --once, lifeline), 1 failed, 2 wrong\n"
    "options.\n";

static void show_help(struct host_options *o, const char *option, char *text)
{
    (void)o, (void)option, (void)text;
    fputs(first_help, stdout);
    for (unsigned i = 0; i < ROWS; i++) {
        const char *line = table[i].help;
        int width =
            line ? printf("  %s%s", table[i].name, table[i].value ?: "") : 0;

        /* Lines begin in one column; the first where there is room. */
        while (line && *line) {
            int n = strcspn(line, "\n");

            printf("%*s%.*s\n", width < 21 ? 23 - width : 2, "", n, line);
            line += n + !!line[n];
            width = 0;
        }
    }
    fputs(last_help, stdout);
    exit(0);
}

/* Taking them. */

static int descriptor(const char *option, const char *text)
{
    int fd = option_number(option, text, 0, INT32_MAX);

    if (fcntl(fd, F_GETFD) < 0) {
        wrong("%s=%d: %s", option, fd, strerror(errno));
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

static void take(struct host_options *o, const struct row *row,
                 const char *option, char *text)
{
    void *at = (char *)o + row->at;

    switch (row->kind) {
    case TEXT:
        *(const char **)at = text;
        break;
    case NUMBER:
        *(uint32_t *)at = option_number(option, text, row->min, row->max);
        break;
    case DESCRIPTOR:
        *(int *)at = descriptor(option, text);
        break;
    case ON:
    case OFF:
        *(bool *)at = row->kind == ON;
        break;
    case CALL:
        row->take(o, option, text);
        break;
    }
}

/* guest-cid=N,socket=S,uds-path=P; text is cut into pieces. */
static void set_vm(struct host_options *o, const char *option, char *text)
{
    static const struct {
        const char *key;
        const char *name; /* the option that is the same */
    } keys[] = {
        { "guest-cid", "--guest-cid" },
        { "socket", "--socket-path" },
        { "uds-path", "--uds-path" },
        { "forward-cid", "--forward-cid" },
        { "forward-listen", "--forward-listen" },
    };
    const unsigned count = sizeof(keys) / sizeof(keys[0]);
    char *save, *item;

    for (item = strtok_r(text, ",", &save); item;
         item = strtok_r(NULL, ",", &save)) {
        char *value = strchr(item, '=');
        char called[32];
        unsigned key = 0, i = 0;

        if (!value) {
            wrong("%s: \"%s\" is not KEY=VALUE", option, item);
        }
        *value++ = 0;
        while (key < count && strcmp(keys[key].key, item)) {
            key++;
        }
        if (key == count) {
            wrong("%s: unknown key \"%s\"; known are guest-cid, socket, "
                  "uds-path, forward-cid, forward-listen",
                  option, item);
        }
        while (strcmp(table[i].name, keys[key].name)) {
            i++;
        }
        snprintf(called, sizeof(called), "%s %s", option, item);
        take(o, &table[i], called, value);
    }
}

static void parse(struct host_options *o, int argc, char **argv)
{
    enum { FIRST = 256 }; /* what getopt_long() says for the first row */
    struct option options[ROWS + 1] = { { 0 } };
    int c;

    for (unsigned i = 0; i < ROWS; i++) {
        options[i] = (struct option) {
            .name = table[i].name + 2,
            .has_arg = table[i].value ? required_argument : no_argument,
            .val = FIRST + i,
        };
    }
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":vqh", options, NULL)) != -1) {
        switch (c) {
        case 'v':
            log_threshold += log_threshold < VLOG_DEBUG;
            break;
        case 'q':
            log_threshold = VLOG_ERROR;
            break;
        case 'h':
            show_help(o, "-h", NULL);
            break;
        case ':':
            wrong("%s needs a value", argv[optind - 1]);
        case '?':
            wrong("unknown option \"%s\"", argv[optind - 1]);
        default:
            take(o, &table[c - FIRST], table[c - FIRST].name, optarg);
        }
    }
    if (optind < argc) {
        wrong("unexpected argument \"%s\"", argv[optind]);
    }
}

/* Checking them: what can be seen only when all are there. */

/* Leaves it room, in a socket's address, for a suffix of so many bytes? */
static void check_path(const char *option, const char *path, unsigned suffix)
{
    size_t len;

    if (!path || !*path) {
        wrong("%s is missing", option);
    }
    len = strlen(path);
    if (len + suffix > VSOCK_MAX_PATH && suffix) {
        wrong("%s=%s has %zu bytes; with \"_\" and the longest port behind it "
              "a unix socket's path allows %u",
              option, path, len, VSOCK_MAX_PATH - suffix);
    }
    if (len > VSOCK_MAX_PATH) {
        wrong("%s=%s has %zu bytes; a unix socket's path allows %d", option,
              path, len, VSOCK_MAX_PATH);
    }
}

static void check(struct host_options *o)
{
    struct stat st;

    if (o->socket_fd < 0) {
        check_path("--socket-path", o->socket_path, 0);
    } else if (o->socket_path) {
        wrong("--socket-path and --socket-fd exclude each other");
    }
    /* Without it the parent's ports can only be those of AF_VSOCK. */
    if (o->uds_path || !o->forward_cid || o->uds_fd >= 0) {
        check_path("--uds-path", o->uds_path, VSOCK_MAX_SUFFIX);
    }
    routes_complete(o);
    if (o->fallback_path) {
        check_path("--fallback-path", o->fallback_path, VSOCK_MAX_SUFFIX);
    }
    if (!o->guest_cid) {
        wrong("--guest-cid is missing");
    }
    if (o->socket_path && o->uds_path && !strcmp(o->socket_path, o->uds_path)) {
        wrong("--socket-path and --uds-path are both %s", o->uds_path);
    }
    /* Only the end of its owner is a reason to remove a folder. */
    if (o->cleanup_dir && o->lifeline_fd < 0) {
        wrong("--cleanup-dir needs --lifeline-fd");
    }
    if (o->cleanup_dir &&
        (stat(o->cleanup_dir, &st) < 0 || !S_ISDIR(st.st_mode))) {
        wrong("--cleanup-dir=%s is not a folder", o->cleanup_dir);
    }
}

int main(int argc, char **argv)
{
    static struct host_options o = {
        .serve_cid2 = true,
        .sandbox = true,
        .max_conns = VSOCK_MAX_CONNS,
        .driver_ms = VSOCK_MS_DRIVER,
        .ready_fd = -1,
        .booted_fd = -1,
        .lifeline_fd = -1,
        .socket_fd = -1,
        .uds_fd = -1,
    };

    parse(&o, argc, argv);
    check(&o);
    return host_run(&o);
}
