/*
 * SPDX-License-Identifier: MIT
 *
 * What `nitroctl run --tools` starts in the image's place: as PID 1 it leaves
 * an agent behind and becomes the image's own init, whichever that is, with the
 * arguments and the environment that the kernel would have given it.  The agent
 * is in tools-agent.c, and what the kernel starts for a core dump in
 * tools-core.c; both are this program.
 *
 * It mounts a /proc for the agent, below a folder that no application sees once
 * init has changed the root; it opens no console, takes no descriptor and
 * changes no signal that the image's init would notice.
 */

#define _GNU_SOURCE
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The image's own init and its arguments, each ended by NUL. */
#define NEXT TOOLS_FOLDER "/next"
#define NEXT_MAX 8192

static int become_init(void)
{
    static char text[NEXT_MAX + 1], *argv[NEXT_MAX / 2];
    size_t n = 0;
    ssize_t len;
    int fd = open(NEXT, O_RDONLY | O_CLOEXEC);

    len = fd < 0 ? -1 : read(fd, text, NEXT_MAX);
    if (len < 0) {
        perror("tools: " NEXT);
        return 1;
    }
    close(fd);
    for (char *at = text; at < text + len && n < NEXT_MAX / 2 - 1;
         at += strlen(at) + 1) {
        argv[n++] = at;
    }
    if (n) {
        execv(argv[0], argv);
    } else {
        errno = ENOENT;
    }
    fprintf(stderr, "tools: the image's init %s: %s\n", n ? argv[0] : "",
            strerror(errno));
    return 1;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "core")) {
        return core_main(argc, argv);
    }
    if (getpid() != 1) {
        fputs("tools: started by the kernel of an enclave, see `nitroctl run "
              "--tools`\n",
              stderr);
        return 2;
    }
    switch (fork()) {
    case 0:
        agent_run();
        _exit(1);
    case -1:
        perror("tools: no agent");
    }
    return become_init();
}
