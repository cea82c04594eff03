/*
 * SPDX-License-Identifier: MIT
 *
 * main.c: the command line of vhost-user-vsock, and nothing else.
 */

#include "host.h"
#include "log.h"
#include "vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#ifndef VERSION
#define VERSION "unversioned"
#endif

static const char help[] =
"Usage: vhost-user-vsock --socket-path=S --guest-cid=N --uds-path=P [OPTION]...\n"
"       vhost-user-vsock --vm guest-cid=N,socket=S,uds-path=P [OPTION]...\n"
"\n"
"Serves the vsock device of one virtual machine through unix sockets.\n"
"  guest -> host  a connection to CID 3, port N goes to the socket P_N\n"
"  host -> guest  connect to P, send \"CONNECT N\\n\", read \"OK n\\n\"\n"
"Port 9000, the boot heartbeat of an enclave, is answered here unless\n"
"somebody listens on P_9000.\n"
"\n"
"  --socket-path=S      socket for the VMM (vhost-user); is created\n"
"  --guest-cid=N        the guest's CID, 4 to 4294967294\n"
"  --uds-path=P         socket for the host's clients; is created\n"
"  --vm KEY=VALUE,...   the three above, forward-cid and forward-listen, as\n"
"                       vhost-device-vsock spells them\n"
"  --proxy=PORT=HOST:PORT  the parent's PORT is that TCP service; HOST is looked\n"
"                       up once, at the start, and its addresses are tried in\n"
"                       turn; [HOST] for IPv6\n"
"  --listen-port=PORT=PATH   the parent's PORT is the unix socket PATH\n"
"  --publish=ADDR=PORT  clients of ADDR, HOST:PORT or a path with a slash, are\n"
"                       joined to the guest's PORT without a word; is created\n"
"  --connect-port=PORT=PATH  the same as --publish=PATH=PORT\n"
"  --fallback-path=F    where nobody listens on P_N, try F_N\n"
"  --forward-cid=N      where nobody listens there either, try this host's\n"
"                       AF_VSOCK, CID N (1: itself); --uds-path is optional then\n"
"  --forward-listen=PORT+PORT...  clients from CID N to these ports of this\n"
"                       host's AF_VSOCK are joined to the guest's\n"
"  --socket-fd=N        listening socket instead of --socket-path\n"
"  --uds-fd=N           listening socket in the place of P (still needed for P_N)\n"
"  --no-cid2            refuse CID 2 (served like CID 3 otherwise)\n"
"  --once               end when the first VMM has disconnected\n"
"  --max-connections=N  at most so many at a time, 1 to 8192 (4096)\n"
"  --driver-timeout=S   seconds that clients wait for the guest's driver to\n"
"                       come up, 1 to 3600 (20)\n"
"  --ready-fd=N         write \"ready\\n\" there once listening, and close it\n"
"                       (otherwise to standard output)\n"
"  --booted-fd=N        write \"booted\\n\" there when a heartbeat was answered,\n"
"                       once for each boot, and \"exited N\\n\" or \"killed N\\n\"\n"
"                       when an init told how the application ended (otherwise\n"
"                       to standard output)\n"
"  --lifeline-fd=N      remove the sockets and end when the other end of this\n"
"                       pipe or socket is closed\n"
"  --cleanup-dir=D      then also remove the files and sockets in D, and D\n"
"  --no-sandbox         leave all system calls to the process\n"
"  -v, -q               log more (twice: all), or errors only\n"
"  --log-level=LEVEL    error, warning (default), info or debug\n"
"  --version, --help    print this and exit\n"
"\n"
"SIGUSR1 prints statistics, a line of JSON, on standard error.\n"
"Exit status: 0 ended as asked (signal, --once, lifeline), 1 failed, 2 wrong\n"
"options.\n";

static void __attribute__((noreturn, format(printf, 1, 2)))
wrong(const char *fmt, ...)
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

static uint32_t number(const char *option, const char *text, uint32_t min,
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

static int descriptor(const char *option, const char *text)
{
    int fd = number(option, text, 0, INT32_MAX);

    if (fcntl(fd, F_GETFD) < 0) {
        wrong("%s=%d: %s", option, fd, strerror(errno));
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

static void guest_cid(struct host_options *o, const char *option,
                      const char *text)
{
    o->guest_cid = number(option, text, VSOCK_CID_PARENT + 1,
                          VSOCK_CID_ANY - 1);
}

/* Without the slashes at its end. */
static const char *folder(char *path)
{
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--) {
        path[n - 1] = 0;
    }
    return path;
}

static struct host_route *new_route(struct host_route *table, unsigned *count,
                                    const char *option)
{
    if (*count == HOST_MAX_ROUTES) {
        wrong("%s more than %d times", option, HOST_MAX_ROUTES);
    }
    return &table[(*count)++];
}

static void forward_cid(struct host_options *o, const char *option,
                        const char *text)
{
    o->forward_cid = number(option, text, VMADDR_CID_LOCAL,
                            VSOCK_CID_ANY - 1);
}

/* PORT+PORT...; text is cut into pieces. */
static void forward_listen(struct host_options *o, const char *option,
                           char *text)
{
    char *port;

    do {
        port = strsep(&text, "+");
        new_route(o->publish, &o->published, option)->port =
            number(option, port, 0, VSOCK_PORT_ANY - 1);
    } while (text);
}

/* The parent's CID is known only when all options are. */
static void published_addresses(struct host_options *o)
{
    for (unsigned i = 0; i < o->published; i++) {
        struct host_route *r = &o->publish[i];

        if (!r->to.len) {
            if (!o->forward_cid) {
                wrong("--forward-listen needs --forward-cid");
            }
            /* Where others can reach us as well, they are sent away. */
            host_vsock_address(&r->to, o->forward_cid == VMADDR_CID_LOCAL ?
                                       VMADDR_CID_LOCAL : VMADDR_CID_ANY,
                               r->port);
        }
        for (unsigned j = 0; j < i; j++) {
            if (!memcmp(&o->publish[j].to.addr, &r->to.addr,
                        sizeof(r->to.addr))) {
                wrong("%s is published twice", r->to.text);
            }
        }
    }
}

/* --vm guest-cid=N,socket=S,uds-path=P; text is cut into pieces. */
static void vm_option(struct host_options *o, char *text)
{
    char *save, *item;

    for (item = strtok_r(text, ",", &save); item;
         item = strtok_r(NULL, ",", &save)) {
        char *value = strchr(item, '=');

        if (!value) {
            wrong("--vm: \"%s\" is not KEY=VALUE", item);
        }
        *value++ = 0;
        if (!strcmp(item, "guest-cid")) {
            guest_cid(o, "--vm guest-cid", value);
        } else if (!strcmp(item, "socket")) {
            o->socket_path = value;
        } else if (!strcmp(item, "uds-path")) {
            o->uds_path = value;
        } else if (!strcmp(item, "forward-cid")) {
            forward_cid(o, "--vm forward-cid", value);
        } else if (!strcmp(item, "forward-listen")) {
            forward_listen(o, "--vm forward-listen", value);
        } else {
            wrong("--vm: unknown key \"%s\"; known are guest-cid, socket, "
                  "uds-path, forward-cid, forward-listen", item);
        }
    }
}

static void unix_address(struct host_address *a, const char *option,
                         const char *path)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&a->addr;

    if (!*path || strlen(path) > HOST_MAX_PATH) {
        wrong("%s: \"%s\" has %zu bytes; a unix socket's path has 1 to %d",
              option, path, strlen(path), HOST_MAX_PATH);
    }
    un->sun_family = AF_UNIX;
    strcpy(un->sun_path, path);
    a->text = path;
    a->len = sizeof(*un);
}

/* HOST:PORT or [HOST]:PORT, looked up now: all its addresses. */
static struct addrinfo *tcp_addresses(const char *option, const char *text,
                                      bool passive)
{
    const struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0),
    };
    const char *colon = strrchr(text, ':');
    char host[256];
    struct addrinfo *found;
    int len, r;

    if (!colon || colon == text || colon - text >= (int)sizeof(host)) {
        wrong("%s: \"%s\" is not HOST:PORT", option, text);
    }
    number(option, colon + 1, 1, 65535);
    len = colon - text;
    if (*text == '[' && colon[-1] == ']') {
        text++;
        len -= 2;
    }
    snprintf(host, sizeof(host), "%.*s", len, text);
    r = getaddrinfo(host, colon + 1, &hints, &found);
    if (r) {
        wrong("%s: %s: %s", option, host, gai_strerror(r));
    }
    return found;
}

/* Two lines of /etc/hosts may say the same. */
static bool is_new(const struct addrinfo *all, const struct addrinfo *a)
{
    for (; all != a; all = all->ai_next) {
        if (all->ai_addrlen == a->ai_addrlen &&
            !memcmp(all->ai_addr, a->ai_addr, a->ai_addrlen)) {
            return false;
        }
    }
    return true;
}

static void tcp_address(struct host_address *a, const struct addrinfo *found,
                        const char *text)
{
    memcpy(&a->addr, found->ai_addr, found->ai_addrlen);
    a->len = found->ai_addrlen;
    a->text = text;
}

static void proxy_address(struct host_address *a, const char *text)
{
    struct addrinfo *found = tcp_addresses("--proxy", text, false);

    tcp_address(a, found, text);
    for (const struct addrinfo *f = found->ai_next; f; f = f->ai_next) {
        if (!is_new(found, f)) {
            continue;
        }
        a->next = calloc(1, sizeof(*a));
        if (!a->next) {
            wrong("--proxy: no memory");
        }
        a = a->next;
        tcp_address(a, f, text);
    }
    freeaddrinfo(found);
}

/* PORT=WHAT; cuts the text, returns WHAT. */
static char *port_and(const char *option, char *text, uint32_t *port)
{
    char *equals = strchr(text, '=');

    if (!equals) {
        wrong("%s=%s has no \"=\"", option, text);
    }
    *equals = 0;
    *port = number(option, text, 0, VSOCK_PORT_ANY - 1);
    return equals + 1;
}

static struct host_route *parent_route(struct host_options *o,
                                       const char *option, char **text)
{
    struct host_route *r = new_route(o->route, &o->routes, option);

    *text = port_and(option, *text, &r->port);
    for (unsigned i = 0; i + 1 < o->routes; i++) {
        if (o->route[i].port == r->port) {
            wrong("%s: port %u is given twice", option, r->port);
        }
    }
    return r;
}

static void publish_option(struct host_options *o, char *text)
{
    char *equals = strrchr(text, '=');
    struct addrinfo *found;
    struct host_route *r;
    uint32_t port;

    if (!equals) {
        wrong("--publish=%s is not ADDR=PORT", text);
    }
    *equals = 0;
    port = number("--publish", equals + 1, 0, VSOCK_PORT_ANY - 1);
    if (strchr(text, '/')) {
        r = new_route(o->publish, &o->published, "--publish");
        r->port = port;
        unix_address(&r->to, "--publish", text);
        return;
    }
    found = tcp_addresses("--publish", text, true);
    for (const struct addrinfo *f = found; f; f = f->ai_next) {
        if (!is_new(found, f)) {
            continue;
        }
        r = new_route(o->publish, &o->published, "--publish");
        r->port = port;
        r->to.shared = found->ai_next;
        tcp_address(&r->to, f, text);
    }
    freeaddrinfo(found);
}

static void check_path(const char *option, const char *path, unsigned suffix)
{
    size_t len;

    if (!path || !*path) {
        wrong("%s is missing", option);
    }
    len = strlen(path);
    if (len + suffix > HOST_MAX_PATH && suffix) {
        wrong("%s=%s has %zu bytes; with \"_\" and the longest port behind it "
              "a unix socket's path allows %u", option, path, len,
              HOST_MAX_PATH - suffix);
    }
    if (len > HOST_MAX_PATH) {
        wrong("%s=%s has %zu bytes; a unix socket's path allows %d", option,
              path, len, HOST_MAX_PATH);
    }
}

int main(int argc, char **argv)
{
    enum {
        SOCKET_PATH = 256, GUEST_CID, UDS_PATH, VM, NO_CID2, ONCE, MAX_CONNS,
        DRIVER_TIMEOUT, PROXY, LISTEN_PORT, PUBLISH, CONNECT_PORT,
        FALLBACK, FORWARD_CID, FORWARD_LISTEN, SOCKET_FD, UDS_FD, READY_FD,
        BOOTED_FD, LIFELINE_FD, CLEANUP_DIR, NO_SANDBOX, LOG_LEVEL,
        SHOW_VERSION, SHOW_HELP,
    };
    static const struct option long_options[] = {
        { "socket-path", required_argument, NULL, SOCKET_PATH },
        { "guest-cid", required_argument, NULL, GUEST_CID },
        { "uds-path", required_argument, NULL, UDS_PATH },
        { "vm", required_argument, NULL, VM },
        { "no-cid2", no_argument, NULL, NO_CID2 },
        { "once", no_argument, NULL, ONCE },
        { "max-connections", required_argument, NULL, MAX_CONNS },
        { "driver-timeout", required_argument, NULL, DRIVER_TIMEOUT },
        { "proxy", required_argument, NULL, PROXY },
        { "listen-port", required_argument, NULL, LISTEN_PORT },
        { "publish", required_argument, NULL, PUBLISH },
        { "connect-port", required_argument, NULL, CONNECT_PORT },
        { "fallback-path", required_argument, NULL, FALLBACK },
        { "forward-cid", required_argument, NULL, FORWARD_CID },
        { "forward-listen", required_argument, NULL, FORWARD_LISTEN },
        { "socket-fd", required_argument, NULL, SOCKET_FD },
        { "uds-fd", required_argument, NULL, UDS_FD },
        { "ready-fd", required_argument, NULL, READY_FD },
        { "booted-fd", required_argument, NULL, BOOTED_FD },
        { "lifeline-fd", required_argument, NULL, LIFELINE_FD },
        { "cleanup-dir", required_argument, NULL, CLEANUP_DIR },
        { "no-sandbox", no_argument, NULL, NO_SANDBOX },
        { "log-level", required_argument, NULL, LOG_LEVEL },
        { "version", no_argument, NULL, SHOW_VERSION },
        { "help", no_argument, NULL, SHOW_HELP },
        { NULL, 0, NULL, 0 },
    };
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
    struct host_route *route;
    struct stat st;
    char *text;
    int c;

    opterr = 0;
    while ((c = getopt_long(argc, argv, ":vqh", long_options, NULL)) != -1) {
        switch (c) {
        case SOCKET_PATH:
            o.socket_path = optarg;
            break;
        case GUEST_CID:
            guest_cid(&o, "--guest-cid", optarg);
            break;
        case UDS_PATH:
            o.uds_path = optarg;
            break;
        case VM:
            vm_option(&o, optarg);
            break;
        case NO_CID2:
            o.serve_cid2 = false;
            break;
        case ONCE:
            o.once = true;
            break;
        case MAX_CONNS:
            o.max_conns = number("--max-connections", optarg, 1,
                                 VSOCK_MAX_CONNS_LIMIT);
            break;
        case DRIVER_TIMEOUT:
            o.driver_ms = number("--driver-timeout", optarg, 1, 3600) * 1000ll;
            break;
        case PROXY:
            text = optarg;
            route = parent_route(&o, "--proxy", &text);
            proxy_address(&route->to, text);
            break;
        case LISTEN_PORT:
            text = optarg;
            route = parent_route(&o, "--listen-port", &text);
            unix_address(&route->to, "--listen-port", text);
            break;
        case PUBLISH:
            publish_option(&o, optarg);
            break;
        case CONNECT_PORT:
            route = new_route(o.publish, &o.published, "--connect-port");
            text = port_and("--connect-port", optarg, &route->port);
            unix_address(&route->to, "--connect-port", text);
            break;
        case FALLBACK:
            o.fallback_path = optarg;
            break;
        case FORWARD_CID:
            forward_cid(&o, "--forward-cid", optarg);
            break;
        case FORWARD_LISTEN:
            forward_listen(&o, "--forward-listen", optarg);
            break;
        case SOCKET_FD:
            o.socket_fd = descriptor("--socket-fd", optarg);
            break;
        case UDS_FD:
            o.uds_fd = descriptor("--uds-fd", optarg);
            break;
        case READY_FD:
            o.ready_fd = descriptor("--ready-fd", optarg);
            break;
        case BOOTED_FD:
            o.booted_fd = descriptor("--booted-fd", optarg);
            break;
        case LIFELINE_FD:
            o.lifeline_fd = descriptor("--lifeline-fd", optarg);
            break;
        case CLEANUP_DIR:
            o.cleanup_dir = folder(optarg);
            break;
        case NO_SANDBOX:
            o.sandbox = false;
            break;
        case LOG_LEVEL:
            if (!log_set_level(optarg)) {
                wrong("--log-level=%s is not error, warning, info or debug",
                      optarg);
            }
            break;
        case 'v':
            log_threshold += log_threshold < LOG_DEBUG;
            break;
        case 'q':
            log_threshold = LOG_ERROR;
            break;
        case SHOW_VERSION:
            puts("vhost-user-vsock " VERSION);
            return 0;
        case SHOW_HELP:
        case 'h':
            fputs(help, stdout);
            return 0;
        case ':':
            wrong("%s needs a value", argv[optind - 1]);
        default:
            wrong("unknown option \"%s\"", argv[optind - 1]);
        }
    }
    if (optind < argc) {
        wrong("unexpected argument \"%s\"", argv[optind]);
    }
    if (o.socket_fd < 0) {
        check_path("--socket-path", o.socket_path, 0);
    } else if (o.socket_path) {
        wrong("--socket-path and --socket-fd exclude each other");
    }
    if (o.uds_path || !o.forward_cid || o.uds_fd >= 0) {
        check_path("--uds-path", o.uds_path, HOST_MAX_SUFFIX);
    }
    published_addresses(&o);
    if (o.fallback_path) {
        check_path("--fallback-path", o.fallback_path, HOST_MAX_SUFFIX);
    }
    if (!o.guest_cid) {
        wrong("--guest-cid is missing");
    }
    if (o.socket_path && o.uds_path && !strcmp(o.socket_path, o.uds_path)) {
        wrong("--socket-path and --uds-path are both %s", o.uds_path);
    }
    if (o.cleanup_dir && o.lifeline_fd < 0) {
        wrong("--cleanup-dir needs --lifeline-fd");
    }
    if (o.cleanup_dir && (stat(o.cleanup_dir, &st) < 0 ||
                          !S_ISDIR(st.st_mode))) {
        wrong("--cleanup-dir=%s is not a folder", o.cleanup_dir);
    }
    return host_run(&o);
}
