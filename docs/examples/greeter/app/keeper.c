/*
 * SPDX-License-Identifier: MIT
 *
 * An enclave application that keeps a secret: KMS decrypts it for this enclave
 * alone, and the parent, which carries every byte of that, never sees it.
 * One request a connection on vsock port 5000, "NAME VALUE" lines and an empty
 * one:
 *
 *     region, access-key, secret-key, session-token    the parent's credentials
 *     ciphertext BASE64                                the encrypted secret
 *     sign TEXT                                        what is to be signed
 *
 * The answer is the HMAC-SHA-256 of TEXT under the secret, or "error: ...".
 *
 * decrypt() is what an SDK for Nitro Enclaves does: a document with the public
 * key of a pair that was made at the start, Decrypt over TLS through the
 * parent's port 8000, and the answer opened with the private key.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>
#include <openssl/cms.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#define PARENT_CID 3
#define KMS_PORT 8000
#define PORT 5000
#define CA_FILE "/etc/ssl/certs/ca-certificates.crt"
#define SIZE 32768

/* <linux/nsm.h>, which is younger than many a distribution's headers */
struct nsm_raw {
    uint64_t request, request_len, response, response_len;
};
#define NSM_IOCTL_RAW _IOWR(0x0A, 0, struct nsm_raw)

struct request {
    char region[64], access_key[128], secret_key[128], session_token[2048];
    char ciphertext[SIZE / 4], sign[1024];
};

static const char *problem = "none";

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

/*
 * {"Attestation": {"user_data": null, "nonce": null, "public_key": key}} in
 * CBOR, and the document out of {"Attestation": {"document": bytes}}.
 */
static size_t attest(const uint8_t *key, size_t len, uint8_t *document)
{
    static uint8_t response[0x3000];
    static const char name[] = "\x68" "document\x59";
    uint8_t request[1024];
    uint8_t *at = request, *found;
    struct nsm_raw raw = { .request = (uintptr_t)request };
    int nsm = open("/dev/nsm", O_RDWR);
    size_t size = 0;

    at = mempcpy(at, "\xa1\x6b" "Attestation" "\xa3\x69" "user_data\xf6", 25);
    at = mempcpy(at, "\x65" "nonce\xf6" "\x6a" "public_key\x59", 19);
    *at++ = len >> 8;
    *at++ = len & 0xff;
    at = mempcpy(at, key, len);
    raw.request_len = at - request;
    raw.response = (uintptr_t)response;
    raw.response_len = sizeof(response);
    if (nsm >= 0 && ioctl(nsm, NSM_IOCTL_RAW, &raw) == 0) {
        found = memmem(response, raw.response_len, name, sizeof(name) - 1);
        if (found) {
            found += sizeof(name) - 1;
            size = found[0] << 8 | found[1];
            memcpy(document, found + 2, size);
        }
    }
    close(nsm);
    return size;
}

static void hex(char *text, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        sprintf(text + 2 * i, "%02x", data[i]);
    }
}

static void sha256_hex(char *text, const char *data)
{
    uint8_t digest[32];

    EVP_Digest(data, strlen(data), digest, NULL, EVP_sha256(), NULL);
    hex(text, digest, sizeof(digest));
}

static void hmac(uint8_t *mac, const void *key, size_t len, const char *text)
{
    const uint8_t *data = (const uint8_t *)text;

    HMAC(EVP_sha256(), key, len, data, strlen(text), mac, NULL);
}

/* AWS Signature Version 4: the request's lines from the Host header on. */
static void sign(const struct request *r, const char *host, const char *body,
                 char *lines, size_t size)
{
    char date[32], day[16], scope[128], hash[65], text[8192], signed_by[65];
    char key[160];
    uint8_t mac[32];
    time_t now = time(NULL);
    static const char names[] =
        "content-type;host;x-amz-date;x-amz-security-token;x-amz-target";

    strftime(date, sizeof(date), "%Y%m%dT%H%M%SZ", gmtime(&now));
    strftime(day, sizeof(day), "%Y%m%d", gmtime(&now));
    snprintf(scope, sizeof(scope), "%s/%s/kms/aws4_request", day, r->region);
    sha256_hex(hash, body);
    snprintf(text, sizeof(text),
             "POST\n/\n\ncontent-type:application/x-amz-json-1.1\nhost:%s\n"
             "x-amz-date:%s\nx-amz-security-token:%s\n"
             "x-amz-target:TrentService.Decrypt\n\n%s\n%s",
             host, date, r->session_token, names, hash);
    sha256_hex(hash, text);
    snprintf(text, sizeof(text), "AWS4-HMAC-SHA256\n%s\n%s\n%s", date, scope,
             hash);
    snprintf(key, sizeof(key), "AWS4%s", r->secret_key);
    hmac(mac, key, strlen(key), day);
    hmac(mac, mac, sizeof(mac), r->region);
    hmac(mac, mac, sizeof(mac), "kms");
    hmac(mac, mac, sizeof(mac), "aws4_request");
    hmac(mac, mac, sizeof(mac), text);
    hex(signed_by, mac, sizeof(mac));
    snprintf(lines, size,
             "Host: %s\r\nContent-Type: application/x-amz-json-1.1\r\n"
             "X-Amz-Date: %s\r\nX-Amz-Security-Token: %s\r\n"
             "X-Amz-Target: TrentService.Decrypt\r\n"
             "Authorization: AWS4-HMAC-SHA256 Credential=%s/%s, "
             "SignedHeaders=%s, Signature=%s\r\n",
             host, date, r->session_token, r->access_key, scope, names,
             signed_by);
}

/* KMS's whole answer to `request`, over TLS; false for none. */
static bool ask(const char *host, const char *request, char *answer)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    int fd = vsock(PARENT_CID, KMS_PORT, connect), n = 1, len = 0;
    SSL *tls = SSL_new(context);

    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_set_verify(tls, SSL_VERIFY_PEER, NULL);
    SSL_set_tlsext_host_name(tls, host);
    SSL_set1_host(tls, host);
    SSL_set_fd(tls, fd);
    if (fd < 0) {
        problem = "the parent serves no port 8000";
    } else if (!SSL_CTX_load_verify_file(context, CA_FILE) ||
               SSL_connect(tls) != 1) {
        problem = "KMS has no certificate that this image trusts";
    } else if (SSL_write(tls, request, strlen(request)) > 0) {
        while (n > 0 && len < SIZE - 1) {
            n = SSL_read(tls, answer + len, SIZE - 1 - len);
            len += n > 0 ? n : 0;
        }
    }
    answer[len] = 0;
    SSL_free(tls);
    SSL_CTX_free(context);
    close(fd);
    return len > 0;
}

/* What KMS has encrypted for us, opened: the secret's length, 0 for none. */
static size_t opened(EVP_PKEY *key, char *answer, uint8_t *secret, size_t size)
{
    static const char name[] = "\"CiphertextForRecipient\"";
    uint8_t *der = (uint8_t *)answer;
    const uint8_t *at = der;
    char *begin = strstr(answer, name), *end;
    BIO *out = BIO_new(BIO_s_mem());
    CMS_ContentInfo *cms;
    int len = 0;

    if (!begin) {
        begin = strstr(answer, "\r\n\r\n");
        problem = begin ? begin + 4 : "KMS said nothing";
        return 0;
    }
    begin += sizeof(name) - 1;
    begin += strcspn(begin, "\"");
    begin += *begin == '"';
    end = strchr(begin, '"');
    len = EVP_DecodeBlock(der, (uint8_t *)begin, end ? end - begin : 0);
    cms = len > 0 ? d2i_CMS_ContentInfo(NULL, &at, len) : NULL;
    len = 0;
    problem = "KMS's answer is not for this enclave";
    if (cms && CMS_decrypt(cms, key, NULL, NULL, out, 0)) {
        len = BIO_read(out, secret, size);
    }
    CMS_ContentInfo_free(cms);
    BIO_free(out);
    return len > 0 ? len : 0;
}

static size_t decrypt(const struct request *r, EVP_PKEY *key, uint8_t *secret,
                      size_t size)
{
    static char body[SIZE], lines[8192], request[2 * SIZE], answer[SIZE];
    static uint8_t document[0x3000];
    static char encoded[0x3000 * 4 / 3 + 4];
    char host[128];
    uint8_t *public = NULL;
    int len = i2d_PUBKEY(key, &public);
    size_t found = attest(public, len, document);

    EVP_EncodeBlock((uint8_t *)encoded, document, found);
    snprintf(body, sizeof(body),
             "{\"CiphertextBlob\":\"%s\",\"Recipient\":{"
             "\"KeyEncryptionAlgorithm\":\"RSAES_OAEP_SHA_256\","
             "\"AttestationDocument\":\"%s\"}}", r->ciphertext, encoded);
    snprintf(host, sizeof(host), "kms.%s.amazonaws.com", r->region);
    sign(r, host, body, lines, sizeof(lines));
    snprintf(request, sizeof(request),
             "POST / HTTP/1.1\r\n%sContent-Length: %zu\r\n"
             "Connection: close\r\n\r\n%s", lines, strlen(body), body);
    found = ask(host, request, answer) ? opened(key, answer, secret, size) : 0;
    OPENSSL_free(public);
    return found;
}

/* The request's lines, up to an empty one. */
static void read_request(FILE *in, struct request *r)
{
    static char line[SIZE];
    const struct {
        const char *name;
        char *value;
        size_t size;
    } fields[] = {
        { "region", r->region, sizeof(r->region) },
        { "access-key", r->access_key, sizeof(r->access_key) },
        { "secret-key", r->secret_key, sizeof(r->secret_key) },
        { "session-token", r->session_token, sizeof(r->session_token) },
        { "ciphertext", r->ciphertext, sizeof(r->ciphertext) },
        { "sign", r->sign, sizeof(r->sign) },
    };

    memset(r, 0, sizeof(*r));
    while (fgets(line, sizeof(line), in) && line[0] != '\n') {
        char *value = strchr(line, ' ');

        if (!value) {
            continue;
        }
        *value++ = 0;
        value[strcspn(value, "\n")] = 0;
        for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
            if (!strcmp(line, fields[i].name)) {
                snprintf(fields[i].value, fields[i].size, "%s", value);
            }
        }
    }
}

int main(void)
{
    static struct request r;
    uint8_t secret[4096], mac[32];
    char text[65];
    EVP_PKEY *key;
    int fd, server = vsock(VMADDR_CID_ANY, PORT, bind);

    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (server < 0 || listen(server, 16) < 0) {
        perror("vsock");
        return 1;
    }
    printf("keeper: listening\n");
    key = EVP_RSA_gen(2048);  /* takes a while; who connects meanwhile waits */
    while ((fd = accept(server, NULL, NULL)) >= 0) {
        FILE *parent = fdopen(fd, "r");
        size_t len;

        read_request(parent, &r);
        len = decrypt(&r, key, secret, sizeof(secret));
        if (len) {
            hmac(mac, secret, len, r.sign);
            hex(text, mac, sizeof(mac));
            dprintf(fd, "%s\n", text);
        } else {
            dprintf(fd, "error: %s\n", problem);
        }
        explicit_bzero(secret, sizeof(secret));
        fclose(parent);
    }
    perror("accept");
    return 1;
}
