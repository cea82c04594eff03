/* SPDX-License-Identifier: MIT */
/*
 * The smallest useful enclave application: says hello and prints the PCRs that
 * its NSM reports, one line "PCRn: <96 hex digits>" each, so that whoever reads
 * the console can compare them with those computed from the file.  Its exit
 * status is 0 only when the NSM answered for every one.
 *
 * It knows just enough of the NSM's CBOR to ask for a PCR; an application of
 * your own would use a library.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Linux: drivers/misc/nsm.c, include/uapi/linux/nsm.h */
struct NsmMessage {
    uint64_t request, request_len;
    uint64_t response, response_len;
};
#define NSM_IOCTL _IOWR(0x0a, 0, struct NsmMessage)
#define NSM_RESPONSE_MAX 0x3000

#define PCR_SIZE 48

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
    static const char data[] = "\x64" "data\x58\x30";
    uint8_t request[] = "\xa1\x6b" "DescribePCR\xa1\x65" "index?";
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
        fprintf(stderr, "hello: /dev/nsm: DescribePCR %u: no PCR in the "
                "answer of %zd bytes\n", index, len);
        return -1;
    }
    memcpy(pcr, at + sizeof(data) - 1, PCR_SIZE);
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
    close(fd);
    return EXIT_SUCCESS;
}
