/*
 * SPDX-License-Identifier: MIT
 *
 * A module whose documents tests ask for, and their judges: see nsm-module.h.
 */
#include <stdio.h>
#include <cbor.h>
#include <glib/gstdio.h>

#include "nsm-module.h"

int64_t clock_ms;
NsmDocumentForm form;

int64_t test_clock(void *opaque)
{
    return clock_ms;
}

char *folder_new(void)
{
    char *folder = g_dir_make_tmp("nsm-attest-XXXXXX", NULL);

    g_assert_nonnull(folder);
    return folder;
}

void folder_free(char *folder)
{
    GDir *dir = g_dir_open(folder, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(folder, name, NULL);

        g_assert_cmpint(g_unlink(path), ==, 0);
    }
    g_dir_close(dir);
    g_assert_cmpint(g_rmdir(folder), ==, 0);
    g_free(folder);
}

void put_file(const char *folder, const char *name,
              const void *data, size_t len)
{
    g_autofree char *path = g_build_filename(folder, name, NULL);

    g_assert_true(g_file_set_contents(path, data, len, NULL));
}

/* Runs openssl in @folder; its output, stdout and stderr. Takes the status. */
static char *openssl_status(const char *folder, int *status,
                            const char *arguments)
{
    g_autofree char *line = g_strconcat("openssl ", arguments, NULL);
    g_autoptr(GError) err = NULL;
    g_auto(GStrv) argv = NULL;
    g_autofree char *out = NULL;
    g_autofree char *errors = NULL;
    int wait_status;

    g_assert_true(g_shell_parse_argv(line, NULL, &argv, NULL));
    if (!g_spawn_sync(folder, argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL,
                      &out, &errors, &wait_status, &err)) {
        g_error("this test needs the openssl program (apt install openssl): "
                "%s", err->message);
    }
    *status = wait_status;
    return g_strconcat(out, errors, NULL);
}

char *openssl(const char *folder, const char *format, ...)
{
    g_autofree char *arguments = NULL;
    va_list args;
    char *out;
    int status;

    va_start(args, format);
    arguments = g_strdup_vprintf(format, args);
    va_end(args);
    out = openssl_status(folder, &status, arguments);
    if (status != 0) {
        g_error("openssl %s: %s", arguments, out);
    }
    return out;
}

/* Documents */

static GByteArray *bytes_of(const cbor_item_t *item)
{
    GByteArray *out = g_byte_array_new();

    g_assert_true(cbor_isa_bytestring(item));
    g_assert_true(cbor_bytestring_is_definite(item));
    g_byte_array_append(out, cbor_bytestring_handle(item),
                        cbor_bytestring_length(item));
    return out;
}

void document_parse(Document *d, const uint8_t *data, size_t len)
{
    struct cbor_load_result result;
    cbor_item_t *outer = cbor_load(data, len, &result), *map;
    g_autoptr(GByteArray) signature = NULL;

    memset(d, 0, sizeof(*d));
    d->raw = g_byte_array_append(g_byte_array_new(), data, len);
    g_assert_nonnull(outer);
    g_assert_cmpuint(result.read, ==, len);
    g_assert_true(cbor_isa_array(outer) && cbor_array_size(outer) == 4);
    d->payload = bytes_of(cbor_array_handle(outer)[2]);
    signature = bytes_of(cbor_array_handle(outer)[3]);
    g_assert_cmpuint(signature->len, ==, 96);
    memcpy(d->signature, signature->data, 96);
    cbor_decref(&outer);

    map = cbor_load(d->payload->data, d->payload->len, &result);
    g_assert_nonnull(map);
    g_assert_cmpuint(result.read, ==, d->payload->len);
    g_assert_true(cbor_isa_map(map) && cbor_map_size(map) == 9);
    d->certificate = bytes_of(cbor_map_handle(map)[4].value);
    outer = cbor_map_handle(map)[5].value;
    d->bundled = cbor_array_size(outer);
    g_assert_cmpuint(d->bundled, <=, NSM_CHAIN_MAX);
    for (size_t i = 0; i < d->bundled; i++) {
        d->cabundle[i] = bytes_of(cbor_array_handle(outer)[i]);
    }
    cbor_decref(&map);
}

void document_clear(Document *d)
{
    g_byte_array_unref(d->raw);
    g_byte_array_unref(d->payload);
    g_byte_array_unref(d->certificate);
    for (size_t i = 0; i < d->bundled; i++) {
        g_byte_array_unref(d->cabundle[i]);
    }
}

NsmSigner *signer_new(const char *module_id)
{
    const NsmSignerOptions options = { .form = form, .clock = test_clock };
    NsmSignerError err;
    NsmSigner *signer = nsm_signer_new(&options, module_id, &err);

    if (!signer) {
        g_error("%s", err.text);
    }
    return signer;
}

void boot(NsmState *s, NsmSigner *signer, const char *module_id)
{
    uint8_t pcr[3][48];

    for (int i = 0; i < 3; i++) {
        memset(pcr[i], 0xa0 + i, 48);
    }
    nsm_init(s, module_id);
    g_assert_true(nsm_boot(s, &(NsmBoot) {
        .pcr0 = pcr[0], .pcr1 = pcr[1], .pcr2 = pcr[2],
    }));
    nsm_set_attest(s, nsm_signer_attest, signer);
}

NsmSigner *module_start(NsmState *s, const char *module_id)
{
    NsmSigner *signer;

    clock_ms = NOW_MS;
    signer = signer_new(module_id);
    boot(s, signer, module_id);
    return signer;
}

void ask(NsmState *s, const char *request, Document *d)
{
    g_autoptr(GByteArray) req = notation(request);
    g_autoptr(GByteArray) head =
        notation("a1 6b 'Attestation' a1 68 'document' 59");
    uint8_t out[NSM_RESPONSE_MAX];
    NsmResult info;
    size_t len = nsm_handle(s, req->data, req->len, out, sizeof(out), &info);

    if (info.code != NSM_SUCCESS) {
        g_error("%s", info.reason);
    }
    g_assert_null(info.reason);
    g_assert_cmpmem(out, head->len, head->data, head->len);
    g_assert_cmpuint(out[head->len] << 8 | out[head->len + 1], ==,
                     len - head->len - 2);
    document_parse(d, out + head->len + 2, len - head->len - 2);
}

GByteArray *signature_der(const uint8_t raw[96])
{
    GByteArray *out = g_byte_array_new();
    uint8_t head[2] = { 0x30, 0 };

    g_byte_array_append(out, head, 2);
    for (int half = 0; half < 2; half++) {
        const uint8_t *p = raw + 48 * half;
        uint8_t len = 48;

        while (len > 1 && *p == 0) {
            p++;
            len--;
        }
        head[0] = 2;
        head[1] = len + (*p >> 7);
        g_byte_array_append(out, head, 2);
        if (*p >> 7) {
            g_byte_array_append(out, (const uint8_t *)"", 1);
        }
        g_byte_array_append(out, p, len);
    }
    out->data[1] = out->len - 2;
    return out;
}

GByteArray *sig_structure(const Document *d)
{
    GByteArray *out = notation("84 6a 'Signature1' 44 a1013822 40 59");
    uint8_t len[2] = { d->payload->len >> 8, d->payload->len };

    g_byte_array_append(out, len, 2);
    return g_byte_array_append(out, d->payload->data, d->payload->len);
}

/* Writes root.pem, chain.pem, leaf.pem, pub.pem, signed.bin, sig.der. */
static void unpack(const char *folder, const Document *d)
{
    g_autoptr(GByteArray) der = signature_der(d->signature);
    g_autoptr(GByteArray) structure = sig_structure(d);
    g_autoptr(GString) chain = g_string_new("");
    g_autofree char *public = NULL;

    put_file(folder, "leaf.der", d->certificate->data, d->certificate->len);
    g_free(openssl(folder, "x509 -inform DER -in leaf.der -out leaf.pem"));
    for (size_t i = 0; i < d->bundled; i++) {
        g_autofree char *pem = NULL;

        put_file(folder, "ca.der", d->cabundle[i]->data, d->cabundle[i]->len);
        pem = openssl(folder, "x509 -inform DER -in ca.der");
        if (i == 0) {
            put_file(folder, "root.pem", pem, strlen(pem));
        } else {
            g_string_append(chain, pem);
        }
    }
    put_file(folder, "chain.pem", chain->str, chain->len);
    public = openssl(folder, "x509 -in leaf.pem -noout -pubkey");
    put_file(folder, "pub.pem", public, strlen(public));
    put_file(folder, "signed.bin", structure->data, structure->len);
    put_file(folder, "sig.der", der->data, der->len);
}

void verify(const Document *d, int64_t now)
{
    char *folder = folder_new();
    g_autofree char *chain = NULL;
    g_autofree char *signature = NULL;
    g_autofree char *refused = NULL;
    g_autoptr(GByteArray) other = sig_structure(d);
    int status;

    unpack(folder, d);
    chain = openssl(folder, "verify -attime %" G_GINT64_FORMAT " -CAfile "
                    "root.pem %s leaf.pem", now,
                    d->bundled > 1 ? "-untrusted chain.pem" : "");
    g_assert_nonnull(strstr(chain, "leaf.pem: OK"));
    signature = openssl(folder, "dgst -sha384 -verify pub.pem -signature "
                        "sig.der signed.bin");
    g_assert_nonnull(strstr(signature, "Verified OK"));

    /* The judge does say no. */
    other->data[other->len - 1] ^= 1;
    put_file(folder, "signed.bin", other->data, other->len);
    refused = openssl_status(folder, &status, "dgst -sha384 -verify pub.pem "
                             "-signature sig.der signed.bin");
    g_assert_cmpint(status, !=, 0);
    folder_free(folder);
}

char *openssl_reads(const GByteArray *der, const char *command)
{
    char *folder = folder_new();
    char *text;

    put_file(folder, "c.der", der->data, der->len);
    text = openssl(folder, "%s", command);
    folder_free(folder);
    return text;
}

void expect_no_document(NsmState *s, int64_t now, const char *reason)
{
    g_autoptr(GByteArray) req = notation(PLAIN);
    g_autoptr(GByteArray) want = notation("a1 65 'Error' 6d 'InternalError'");
    uint8_t out[NSM_RESPONSE_MAX];
    NsmResult info;
    size_t len;

    clock_ms = now * 1000LL;
    len = nsm_handle(s, req->data, req->len, out, sizeof(out), &info);
    g_assert_cmpmem(out, len, want->data, want->len);
    g_assert_cmpint(info.code, ==, NSM_INTERNAL_ERROR);
    if (!strstr(info.reason, reason)) {
        g_error("%s", info.reason);
    }
}
