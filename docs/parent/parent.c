/*
 * SPDX-License-Identifier: MIT
 *
 * A parent program without AF_VSOCK, for any libc, static or not: it asks the
 * enclave's port and is asked on one of its own, over unix sockets.
 *
 *   cc -static -o parent parent.c
 *   ./parent PATH INTO FROM
 *
 * PATH is what `nitroctl run` prints behind "vsock", INTO a port on which the
 * enclave listens, FROM one of CID 3 that the enclave connects to.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static struct sockaddr_un address(const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };

    if (strlen(path) >= sizeof(a.sun_path)) {
        fprintf(stderr, "%s: too long for a unix socket\n", path);
        exit(1);
    }
    strcpy(a.sun_path, path);
    return a;
}

/* In place of connect() to the enclave's CID and this port. */
static int connect_enclave(const char *path, unsigned port)
{
    struct sockaddr_un a = address(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char line[32];
    size_t n = 0;

    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        fail(path);
    }
    dprintf(fd, "CONNECT %u\n", port);
    do {
        /* One byte at a time: what follows the line is the enclave's. */
        if (n == sizeof(line) || read(fd, line + n, 1) != 1) {
            fprintf(stderr, "nobody listens on port %u\n", port);
            exit(1);
        }
    } while (line[n++] != '\n');
    return fd;
}

/* In place of bind() to CID 3 and this port, and listen(). */
static int listen_to_enclave(const char *path, unsigned port)
{
    struct sockaddr_un a;
    char name[sizeof(a.sun_path) + 16];
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(name, sizeof(name), "%s_%u", path, port);
    a = address(name);
    unlink(name);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 ||
        listen(fd, 16) < 0) {
        fail(name);
    }
    return fd;
}

static void show_all(int fd)
{
    char data[4096];
    ssize_t n;

    while ((n = read(fd, data, sizeof(data))) > 0) {
        fwrite(data, 1, (size_t)n, stdout);
    }
    fflush(stdout);
    close(fd);
}

int main(int argc, char **argv)
{
    int listener, fd;

    if (argc != 4) {
        fprintf(stderr, "usage: %s PATH INTO FROM\n", argv[0]);
        return 2;
    }
    listener = listen_to_enclave(argv[1], (unsigned)atoi(argv[3]));
    fd = connect_enclave(argv[1], (unsigned)atoi(argv[2]));
    dprintf(fd, "hello from the parent\n");
    shutdown(fd, SHUT_WR);
    show_all(fd);
    show_all(accept(listener, NULL, NULL));
    return 0;
}
