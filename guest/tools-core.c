/*
 * SPDX-License-Identifier: MIT
 *
 * What the kernel starts when a program dumps core: the core on its standard
 * input goes to the parent over vsock, after the program's own file and some
 * lines about both (tools-protocol.h).  It runs in the application's root, as
 * every helper of the kernel once init has changed to it.
 */

#define _GNU_SOURCE
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PARENT_CID 3
#define PROGRAM_MAX (512 << 20)
#define PIECE 65536

static int dial(void)
{
    const struct sockaddr_vm parent = { .svm_family = AF_VSOCK,
                                        .svm_cid = PARENT_CID,
                                        .svm_port = TOOLS_CORE_PORT };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 &&
        connect(fd, (const struct sockaddr *)&parent, sizeof(parent)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool write_full(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

        if (n <= 0 && errno != EINTR) {
            return false;
        }
        data += n > 0 ? n : 0;
        len -= n > 0 ? n : 0;
    }
    return true;
}

/* At most @limit bytes, or all that there is. */
static bool copy(int from, int to, off_t limit)
{
    static char piece[PIECE];

    while (limit > 0) {
        size_t want = limit < PIECE ? limit : PIECE;
        ssize_t n = read(from, piece, want);

        if (n == 0) {
            break;
        }
        if (n < 0 && errno != EINTR) {
            return false;
        }
        if (n > 0 && !write_full(to, piece, n)) {
            return false;
        }
        limit -= n > 0 ? n : 0;
    }
    return true;
}

/* The program's file stays as long as it is, or we could not tell its size. */
static bool send_program(int sock, int program, off_t size)
{
    static const char zeros[PIECE];
    struct stat st;

    if (!size) {
        return true;
    }
    if (!copy(program, sock, size)) {
        return false;
    }
    /* Whoever made it shorter meanwhile: the stream keeps to its word. */
    size -= lseek(program, 0, SEEK_CUR);
    while (size > 0 && fstat(program, &st) == 0) {
        size_t n = size < PIECE ? size : PIECE;

        if (!write_full(sock, zeros, n)) {
            return false;
        }
        size -= n;
    }
    return true;
}

int core_main(int argc, char **argv)
{
    char path[64], link[2048], head[TOOLS_CORE_HEAD_MAX];
    ssize_t len = 0;
    struct stat st = { 0 };
    int sock, program = -1, pid = argc > 2 ? atoi(argv[2]) : 0;

    if (argc != 4 || pid <= 0) {
        return 2;
    }
    sock = dial();
    if (sock < 0) {
        return 1;
    }
    snprintf(path, sizeof(path), "/proc/%d/exe", pid);
    len = readlink(path, link, sizeof(link) - 1);
    len = len < 0 ? 0 : len;
    for (ssize_t i = 0; i < len; i++) {
        if (link[i] == '\n') {
            link[i] = '?'; /* it would end our line */
        }
    }
    link[len] = '\0';
    program = open(path, O_RDONLY | O_CLOEXEC);
    if (program < 0 || fstat(program, &st) < 0 || st.st_size > PROGRAM_MAX) {
        st.st_size = 0;
    }
    len = snprintf(head, sizeof(head),
                   "version %d\npid %d\nsignal %d\nprogram %s\nsize %lld\n\n",
                   TOOLS_VERSION, pid, atoi(argv[3]), link,
                   (long long)st.st_size);
    if (!write_full(sock, head, len) ||
        !send_program(sock, program, st.st_size) ||
        !copy(STDIN_FILENO, sock, INT64_MAX)) {
        return 1;
    }
    shutdown(sock, SHUT_WR);
    /* The host has it all when it closes; init may reset the guest then. */
    while (recv(sock, head, sizeof(head), 0) > 0) {
        ;
    }
    return 0;
}
