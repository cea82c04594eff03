/*
 * SPDX-License-Identifier: MIT
 *
 * The smallest useful enclave application: says hello and prints the PCRs that
 * its NSM reports, one line "PCRn: <96 hex digits>" each, so that whoever reads
 * the console can compare them with those computed from the file.  If somebody
 * listens on the parent's vsock port 7001, it proves itself there: it reads a
 * nonce of 16 bytes, sends an attestation document with that nonce, and closes.
 * Its exit status is 0 only when the NSM answered every request.
 *
 * It knows just enough of the NSM's CBOR for that; an application of your own
 * would use a library.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

/* Linux: drivers/misc/nsm.c, include/uapi/linux/nsm.h */
struct NsmMessage {
    uint64_t request, request_len;
    uint64_t response, response_len;
};
#define NSM_IOCTL _IOWR(0x0a, 0, struct NsmMessage)
#define NSM_RESPONSE_MAX 0x3000

#define PCR_SIZE 48

#define PARENT_CID 3 /* AWS: the parent instance, seen from its enclaves */
#define VERIFIER_PORT 7001
#define NONCE_SIZE 16

/* One request and its response; the response's length, or -1 with errno. */
static ssize_t nsm(int fd, const void *request, size_t len, void *response,
                   size_t size)
{
    struct NsmMessage m = {
        .request = (uintptr_t)request,
        .request_len = len,
        .response = (uintptr_t)response,
        .response_len = size,
    };

    return ioctl(fd, NSM_IOCTL, &m) < 0 ? -1 : (ssize_t)m.response_len;
}

/*
 * {"DescribePCR": {"index": N}} and the value out of the answer
 * {"DescribePCR": {"lock": ..., "data": 48 bytes}}, whose fields may come in
 * any order: "data" and the head of a 48-byte string (58 30) precede the value.
 */
static int describe_pcr(int fd, uint8_t index, uint8_t pcr[PCR_SIZE])
{
    static const char data[] = "\x64"
                               "data\x58\x30";
    uint8_t request[] = "\xa1\x6b"
                        "DescribePCR\xa1\x65"
                        "index?";
    uint8_t response[NSM_RESPONSE_MAX];
    const uint8_t *at;
    ssize_t len;

    request[sizeof(request) - 2] = index; /* 0..23 is its own CBOR encoding */
    len = nsm(fd, request, sizeof(request) - 1, response, sizeof(response));
    if (len < 0) {
        fprintf(stderr, "hello: /dev/nsm: DescribePCR %u: %s\n", index,
                strerror(errno));
        return -1;
    }
    at = memmem(response, len, data, sizeof(data) - 1);
    if (!at || response + len - at < (ssize_t)sizeof(data) - 1 + PCR_SIZE) {
        fprintf(stderr,
                "hello: /dev/nsm: DescribePCR %u: no PCR in the "
                "answer of %zd bytes\n",
                index, len);
        return -1;
    }
    memcpy(pcr, at + sizeof(data) - 1, PCR_SIZE);
    return 0;
}

/*
 * {"Attestation": {"user_data": null, "nonce": 16 bytes, "public_key": null}}
 * and the document out of {"Attestation": {"document": bytes}}, whose head is
 * 59 and two bytes of length: documents have some thousand bytes.
 */
static ssize_t attest(int fd, const uint8_t nonce[NONCE_SIZE],
                      uint8_t response[NSM_RESPONSE_MAX], uint8_t **document)
{
    static const char head[] = "\xa1\x6b"
                               "Attestation\xa1\x68"
                               "document\x59";
    const size_t start = sizeof(head) - 1 + 2;
    uint8_t request[] = "\xa1\x6b"
                        "Attestation\xa3\x69"
                        "user_data\xf6\x65"
                        "nonce\x50"
                        "0123456789abcdef"
                        "\x6a"
                        "public_key\xf6";
    ssize_t len;

    memcpy(memmem(request, sizeof(request), "0123456789abcdef", NONCE_SIZE),
           nonce, NONCE_SIZE);
    len = nsm(fd, request, sizeof(request) - 1, response, NSM_RESPONSE_MAX);
    if (len < 0) {
        fprintf(stderr, "hello: /dev/nsm: Attestation: %s\n", strerror(errno));
        return -1;
    }
    if ((size_t)len < start || memcmp(response, head, sizeof(head) - 1) ||
        start + (response[start - 2] << 8 | response[start - 1]) !=
            (size_t)len) {
        fprintf(stderr,
                "hello: /dev/nsm: Attestation: no document in the "
                "answer of %zd bytes\n",
                len);
        return -1;
    }
    *document = response + start;
    return len - start;
}

/* Prove ourselves to whoever listens at the parent; nobody need. */
static int meet_verifier(int nsm_fd)
{
    const struct sockaddr_vm parent = {
        .svm_family = AF_VSOCK,
        .svm_cid = PARENT_CID,
        .svm_port = VERIFIER_PORT,
    };
    uint8_t nonce[NONCE_SIZE], response[NSM_RESPONSE_MAX], *document;
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ssize_t len;

    if (fd < 0 ||
        connect(fd, (const struct sockaddr *)&parent, sizeof(parent)) < 0) {
        printf("No verifier at the parent's port %d: %s\n", VERIFIER_PORT,
               strerror(errno));
        close(fd);
        return 0;
    }
    if (recv(fd, nonce, sizeof(nonce), MSG_WAITALL) != sizeof(nonce)) {
        fprintf(stderr, "hello: the verifier sent no nonce of %d bytes\n",
                NONCE_SIZE);
        close(fd);
        return -1;
    }
    len = attest(nsm_fd, nonce, response, &document);
    for (ssize_t sent; len > 0; len -= sent, document += sent) {
        sent = send(fd, document, len, MSG_NOSIGNAL);
        if (sent < 0) {
            fprintf(stderr, "hello: the verifier went away: %s\n",
                    strerror(errno));
            len = -1;
            break;
        }
    }
    close(fd);
    if (len < 0) {
        return -1;
    }
    puts("An attestation document went to the verifier.");
    return 0;
}

int main(void)
{
    static const uint8_t shown[] = { 0, 1, 2, 3, 4, 8 };
    int fd;

    puts("Hello from the enclave!");
    fd = open("/dev/nsm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        fprintf(stderr, "hello: /dev/nsm: %s\n", strerror(errno));
        return EXIT_FAILURE;
    }
    for (size_t i = 0; i < sizeof(shown); i++) {
        uint8_t pcr[PCR_SIZE];

        if (describe_pcr(fd, shown[i], pcr) < 0) {
            return EXIT_FAILURE;
        }
        printf("PCR%u: ", shown[i]);
        for (int b = 0; b < PCR_SIZE; b++) {
            printf("%02x", pcr[b]);
        }
        putchar('\n');
    }
    if (meet_verifier(fd) < 0) {
        return EXIT_FAILURE;
    }
    close(fd);
    return EXIT_SUCCESS;
}
