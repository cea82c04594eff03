/*
 * SPDX-License-Identifier: MIT
 *
 * document FILE: writes an attestation document to standard output whose
 * public_key are the bytes of FILE, for scripts in an enclave, where Debian
 * has no program that asks an NSM.  Static; it checks nothing of the document.
 */

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Linux: include/uapi/linux/nsm.h */
struct message {
    uint64_t request, request_len;
    uint64_t response, response_len;
};
#define NSM_IOCTL _IOWR(0x0a, 0, struct message)

/* CBOR (RFC 8949): {"Attestation": {"public_key": bytes}}, but for the bytes */
static const char head[] = "\xa1\x6b"
                           "Attestation"
                           "\xa1\x6a"
                           "public_key"
                           "\x59";
/* and what is before the document's length in {"Attestation": {"document": */
static const char answer[] = "\xa1\x6b"
                             "Attestation"
                             "\xa1\x68"
                             "document"
                             "\x59";

int main(int argc, char **argv)
{
    static uint8_t request[4096], response[0x3000];
    struct message m = { (uintptr_t)request, 0, (uintptr_t)response,
                         sizeof(response) };
    const size_t start = sizeof(head) - 1, skip = sizeof(answer) - 1;
    int file = argc == 2 ? open(argv[1], O_RDONLY) : -1;
    int nsm = open("/dev/nsm", O_RDWR);
    ssize_t key;
    size_t size;

    if (file < 0 || nsm < 0) {
        err(1, "%s", file < 0 ? "FILE" : "/dev/nsm");
    }
    memcpy(request, head, start);
    key = read(file, request + start + 2, sizeof(request) - start - 2);
    if (key < 256) {
        errx(1, "%s is too short", argv[1]);
    }
    request[start] = key >> 8;
    request[start + 1] = key;
    m.request_len = start + 2 + key;
    if (ioctl(nsm, NSM_IOCTL, &m) < 0) {
        err(1, "NSM");
    }
    size = response[skip] << 8 | response[skip + 1];
    if (memcmp(response, answer, skip) || skip + 2 + size > m.response_len) {
        errx(1, "the NSM has refused");
    }
    return fwrite(response + skip + 2, size, 1, stdout) == 1 ? 0 : 1;
}
