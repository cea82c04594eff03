/*
 * SPDX-License-Identifier: MIT
 *
 * An enclave application: greets whoever connects to vsock port 5000, in the
 * words that its parent serves on port 9001 ("Hello", if nobody does), and
 * proves what it is.  One request a connection, one line:
 *
 *     greet NAME       the greeting, a line
 *     attest HEXNONCE  an attestation document with this nonce
 *
 * All that is special about an enclave is here: AF_VSOCK, the parent's CID and
 * /dev/nsm.  An application of more than a page takes AWS's NSM library.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define PARENT_CID 3
#define CONFIG_PORT 9001
#define PORT 5000
#define NONCE_MAX 64

/* <linux/nsm.h>, which is younger than many a distribution's headers */
struct nsm_raw {
    uint64_t request, request_len, response, response_len;
};
#define NSM_IOCTL_RAW _IOWR(0x0A, 0, struct nsm_raw)

static int vsock(unsigned cid, unsigned port,
                 int (*use)(int, const struct sockaddr *, socklen_t))
{
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port,
    };
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (fd >= 0 && use(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void write_all(int fd, const void *data, size_t size)
{
    const char *at = data;

    while (size) {
        ssize_t n = write(fd, at, size);

        if (n <= 0) {
            return;
        }
        at += n;
        size -= n;
    }
}

/* A line of at most size - 1 bytes, without its end. */
static char *read_line(int fd, char *line, size_t size)
{
    size_t len = 0;

    while (len < size - 1 && read(fd, line + len, 1) == 1 &&
           line[len] != '\n') {
        len++;
    }
    line[len] = 0;
    return line;
}

/*
 * {"Attestation": {"user_data": null, "nonce": bytes, "public_key": null}} in
 * CBOR, and the document out of {"Attestation": {"document": bytes}}.
 */
static void attest(int fd, const uint8_t *nonce, size_t len)
{
    static uint8_t response[0x3000];
    static const char key[] = "\x68" "document\x59";
    uint8_t request[128];
    struct nsm_raw raw = { .request = (uintptr_t)request };
    uint8_t *at = request, *document;
    int nsm = open("/dev/nsm", O_RDWR);
    size_t size;

    at = mempcpy(at, "\xa1\x6b" "Attestation" "\xa3\x69" "user_data\xf6", 25);
    at = mempcpy(at, "\x65" "nonce\x58", 7);
    *at++ = len;
    at = mempcpy(at, nonce, len);
    at = mempcpy(at, "\x6a" "public_key\xf6", 12);
    raw.request_len = at - request;
    raw.response = (uintptr_t)response;
    raw.response_len = sizeof(response);
    if (nsm < 0 || ioctl(nsm, NSM_IOCTL_RAW, &raw) < 0) {
        perror("/dev/nsm");
    } else {
        document = memmem(response, raw.response_len, key, sizeof(key) - 1);
        if (document) {
            document += sizeof(key) - 1;
            size = document[0] << 8 | document[1];
            write_all(fd, document + 2, size);
        }
    }
    close(nsm);
}

static void serve(int fd, const char *greeting)
{
    char line[256], answer[600];
    uint8_t nonce[NONCE_MAX];
    size_t len = 0;

    read_line(fd, line, sizeof(line));
    printf("asked: %s\n", line);
    if (!strncmp(line, "greet ", 6)) {
        snprintf(answer, sizeof(answer), "%s, %s!\n", greeting, line + 6);
        write_all(fd, answer, strlen(answer));
    } else if (!strncmp(line, "attest ", 7)) {
        while (len < NONCE_MAX &&
               sscanf(line + 7 + 2 * len, "%2hhx", nonce + len) == 1) {
            len++;
        }
        attest(fd, nonce, len);
    }
}

int main(void)
{
    char greeting[256] = "Hello";
    int fd, server;

    setvbuf(stdout, NULL, _IOLBF, 0);
    fd = vsock(PARENT_CID, CONFIG_PORT, connect);
    if (fd >= 0) {
        read_line(fd, greeting, sizeof(greeting));
        close(fd);
    }
    server = vsock(VMADDR_CID_ANY, PORT, bind);
    if (server < 0 || listen(server, 16) < 0) {
        perror("vsock");
        return 1;
    }
    printf("greeter: listening\n");
    while ((fd = accept(server, NULL, NULL)) >= 0) {
        serve(fd, greeting);
        close(fd);
    }
    perror("accept");
    return 1;
}
