/*
 * SPDX-License-Identifier: MIT
 *
 * The test agent's sending out of memory at or above 4 GiB of guest address,
 * without the kernel's copying: the addresses that then stand in the ring do
 * not fit 32 bits.
 */

#define _GNU_SOURCE
#include "agent-vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/errqueue.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HIGH_AREA (16 << 20)
#define PAGE 4096
#define FOUR_GIB_FRAME (1ULL << (32 - 12))

/* Kernel: Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_FRAME ((1ULL << 55) - 1)

/*
 * CHUNK_DEFAULT bytes of locked memory whose frames are all at or above 4 GiB,
 * and the lowest of these; NULL with errno (ENXIO: there are none).
 */
static uint8_t *high_chunk(uint64_t *lowest)
{
    enum { PAGES = CHUNK_DEFAULT / PAGE };
    uint64_t entries[PAGES];
    uint8_t *area =
        mmap(NULL, HIGH_AREA, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    uint8_t *found = NULL;
    int fd;

    if (area == MAP_FAILED) {
        return NULL;
    }
    fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int saved = errno;

        munmap(area, HIGH_AREA);
        errno = saved;
        return NULL;
    }
    for (size_t at = 0; !found && at < HIGH_AREA; at += CHUNK_DEFAULT) {
        size_t low = 0;

        if (pread(fd, entries, sizeof(entries),
                  (uintptr_t)(area + at) / PAGE * sizeof(entries[0])) !=
            sizeof(entries)) {
            break;
        }
        *lowest = UINT64_MAX;
        for (size_t i = 0; i < PAGES; i++) {
            uint64_t frame = entries[i] & PAGEMAP_FRAME;

            *lowest = frame < *lowest ? frame : *lowest;
            low += !(entries[i] & PAGEMAP_PRESENT) || frame < FOUR_GIB_FRAME;
        }
        if (!low) {
            found = area + at;
        }
    }
    close(fd);
    /* What is not used of the area goes back. */
    if (!found) {
        munmap(area, HIGH_AREA);
        errno = ENXIO;
        return NULL;
    }
    munmap(area, found - area);
    munmap(found + CHUNK_DEFAULT, area + HIGH_AREA - found - CHUNK_DEFAULT);
    return found;
}

/*
 * Wait until the kernel has let go of the pages of one zero-copy send.
 * 1: the device read from them; 0: the kernel copied after all; -1: errno.
 */
static int wait_sent(int fd)
{
    char control[128];
    struct msghdr msg;
    ssize_t n;

    do {
        struct pollfd p = { .fd = fd, .events = 0 };

        if (poll(&p, 1, -1) < 0) {
            return -1;
        }
        msg = (struct msghdr) {
            .msg_control = control,
            .msg_controllen = sizeof(control),
        };
        n = recvmsg(fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN && (p.revents & POLLHUP)) {
            errno = ECONNRESET;
            return -1;
        }
    } while (n < 0 && errno == EAGAIN);
    if (n < 0) {
        return -1;
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        struct sock_extended_err e;

        memcpy(&e, CMSG_DATA(c), sizeof(e));
        if (e.ee_origin == SO_EE_ORIGIN_ZEROCOPY) {
            return !(e.ee_code & SO_EE_CODE_ZEROCOPY_COPIED);
        }
    }
    errno = EPROTO;
    return -1;
}

int probe_high_source(const Args *args, Answer *a)
{
    uint64_t size = 0, seed = 0, lowest = 0, zerocopy = 0, started;
    Report r = { .mismatch = -1 };
    struct sockaddr_vm peer;
    uint8_t *chunk, *pattern;
    int fd;

    if (!parse_peer(args, &peer, a) ||
        !args_number(args, 2, INT64_MAX, &size, a) ||
        !args_number(args, 3, UINT32_MAX, &seed, a)) {
        return -EINVAL;
    }
    chunk = high_chunk(&lowest);
    if (!chunk) {
        return answer_fail(a, errno, "memory above 4 GiB: %s", strerror(errno));
    }
    fd = dial(&peer);
    if (fd < 0) {
        munmap(chunk, CHUNK_DEFAULT);
        return answer_fail(a, errno, "connect to CID %u port %u: %s",
                           peer.svm_cid, peer.svm_port, strerror(errno));
    }
    started = now_us();
    pattern = new_pattern(seed, CHUNK_DEFAULT);
    if (!pattern || setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &(int) { 1 },
                               sizeof(int)) < 0) {
        r.err = errno;
    }
    while (!r.err && r.sent < size) {
        size_t len = size - r.sent;
        ssize_t n;
        int how;

        len = len < CHUNK_DEFAULT ? len : CHUNK_DEFAULT;
        memcpy(chunk, pattern + r.sent % BLOCK, len);
        n = send(fd, chunk, len, MSG_ZEROCOPY);
        how = n < 0 ? -1 : wait_sent(fd);
        if (how < 0) {
            r.err = errno;
            break;
        }
        zerocopy += how;
        r.sent += n;
    }
    if (!r.err) {
        mode_half(fd, NULL, &r);
    }
    r.us = now_us() - started;
    close(fd);
    free(pattern);
    munmap(chunk, CHUNK_DEFAULT);
    add_report(a, &r);
    answer_printf(a, "zerocopy %" PRIu64 "\nlow-pfn %" PRIx64 "\n", zerocopy,
                  lowest);
    return 0;
}
