/*
 * SPDX-License-Identifier: MIT
 *
 * nsm-document: one attestation document, without an enclave
 *
 * For tests of verifiers, and for the bench: asks an NSM core with a signer for
 * a document and writes it to stdout, as the guest would get it. With --rate,
 * prints how many it makes per second, next to bare signatures.
 */
#include <stdio.h>
#include <string.h>
#include <glib.h>
#include <gnutls/abstract.h>

#include "nitro/nsm-attest.h"

static char *chain_file, *key_file, *root_file;
static char *module_id = "i-1234567890abcdef0-enc0123456789abcdef";
static char *hex[3];            /* user_data, nonce, public_key */
static GByteArray *field[3];
static gint64 at = -1;
static int rate;
static gboolean debug;

static const GOptionEntry entries[] = {
    { "cert-chain", 0, 0, G_OPTION_ARG_FILENAME, &chain_file,
      "Chain in PEM, root first (default: an ephemeral one)", "FILE" },
    { "cert-key", 0, 0, G_OPTION_ARG_FILENAME, &key_file,
      "Key of its last certificate", "FILE" },
    { "root", 0, 0, G_OPTION_ARG_FILENAME, &root_file,
      "Write the chain's root there, in PEM", "FILE" },
    { "module-id", 0, 0, G_OPTION_ARG_STRING, &module_id,
      "Module id", "ID" },
    { "user-data", 0, 0, G_OPTION_ARG_STRING, &hex[0], "Field", "HEX" },
    { "nonce", 0, 0, G_OPTION_ARG_STRING, &hex[1], "Field", "HEX" },
    { "public-key", 0, 0, G_OPTION_ARG_STRING, &hex[2], "Field", "HEX" },
    { "at", 0, 0, G_OPTION_ARG_INT64, &at,
      "The signer's clock, ms since 1970 (default: now)", "MS" },
    { "debug", 0, 0, G_OPTION_ARG_NONE, &debug,
      "PCR0, 1 and 2 are zero", NULL },
    { "rate", 0, 0, G_OPTION_ARG_INT, &rate,
      "Measure N documents instead of writing one", "N" },
    { .long_name = NULL }
};

static int64_t fixed_clock(void *opaque)
{
    return *(gint64 *)opaque;
}

static bool unhex(const char *text, GByteArray *out)
{
    for (; *text; text += 2) {
        int high = g_ascii_xdigit_value(text[0]);
        int low = g_ascii_xdigit_value(text[1]);
        uint8_t byte = high << 4 | low;

        if (high < 0 || low < 0) {
            return false;
        }
        g_byte_array_append(out, &byte, 1);
    }
    return true;
}

/*
 * Documents and bare signatures in turns, so that the load of the machine hits
 * both alike.
 */
static bool measure(const NsmState *s, const NsmAttestRequest *request)
{
    uint8_t buf[NSM_RESPONSE_MAX], digest[48] = { 1 };
    gnutls_datum_t hash = { digest, sizeof(digest) }, signature = { NULL, 0 };
    gint64 documents = 0, signatures = 0;
    gnutls_privkey_t key;
    const char *reason;
    bool good = true;
    size_t len;

    gnutls_privkey_init(&key);
    gnutls_privkey_generate(
        key, GNUTLS_PK_ECDSA,
        GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP384R1), 0);
    for (int i = 0; good && i < rate; i++) {
        gint64 start = g_get_monotonic_time(), middle;

        good = s->attest(s->attest_opaque, s, request, buf, sizeof(buf), &len,
                         &reason) == NSM_SUCCESS;
        middle = g_get_monotonic_time();
        good = good && gnutls_privkey_sign_hash(key, GNUTLS_DIG_SHA384, 0,
                                                &hash, &signature) >= 0;
        documents += middle - start;
        signatures += g_get_monotonic_time() - middle;
        gnutls_free(signature.data);
    }
    gnutls_privkey_deinit(key);
    if (good) {
        printf("documents/s  %.0f\nsignatures/s %.0f\n",
               rate * 1e6 / documents, rate * 1e6 / signatures);
    }
    return good;
}

/* The options' fields */
static bool read_fields(NsmAttestRequest *request)
{
    NsmSpan *spans[] = {
        &request->user_data, &request->nonce, &request->public_key,
    };

    for (int i = 0; i < 3; i++) {
        if (!hex[i]) {
            continue;
        }
        field[i] = g_byte_array_sized_new(NSM_REQUEST_MAX);
        if (!unhex(hex[i], field[i])) {
            fprintf(stderr, "nsm-document: not hex: %s\n", hex[i]);
            return false;
        }
        *spans[i] = (NsmSpan) { field[i]->data, field[i]->len };
    }
    return true;
}

static bool write_document(NsmSigner *signer, const NsmState *s,
                           const NsmAttestRequest *request)
{
    uint8_t buf[NSM_RESPONSE_MAX];
    const char *reason = NULL;
    size_t len = 0;

    if (nsm_signer_attest(signer, s, request, buf, sizeof(buf), &len,
                          &reason) != NSM_SUCCESS) {
        fprintf(stderr, "nsm-document: %s\n", reason);
        return false;
    }
    if (fwrite(buf, 1, len, stdout) != len || fflush(stdout)) {
        perror("nsm-document");
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context =
        g_option_context_new("- write one attestation document");
    g_autoptr(GError) gerror = NULL;
    NsmSignerOptions options = { 0 };
    NsmAttestRequest request = { 0 };
    uint8_t pcr[3][NSM_PCR_SIZE];
    NsmBoot boot = {
        .pcr0 = pcr[0], .pcr1 = pcr[1], .pcr2 = pcr[2],
        .parent_id = "i-1234567890abcdef0",
    };
    NsmSignerError err;
    NsmSigner *signer;
    NsmState s;
    int status = 1;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &gerror)) {
        fprintf(stderr, "nsm-document: %s\n", gerror->message);
        return 2;
    }
    if (!nsm_module_id_valid(module_id)) {
        fprintf(stderr, "nsm-document: no module id: %s\n", module_id);
        return 2;
    }
    for (int i = 0; i < 3; i++) {
        memset(pcr[i], 0xa0 + i, NSM_PCR_SIZE);
    }
    if (!read_fields(&request)) {
        return 2;
    }
    options.cert_chain = chain_file;
    options.cert_key = key_file;
    if (at >= 0) {
        options.clock = fixed_clock;
        options.clock_opaque = &at;
    }
    signer = nsm_signer_new(&options, module_id, &err);
    if (!signer) {
        fprintf(stderr, "%s: %s\n", nsm_signer_fault_name(err.fault), err.text);
        return 1;
    }
    nsm_init(&s, module_id);
    nsm_set_attest(&s, nsm_signer_attest, signer);
    boot.debug = debug;
    if (!nsm_boot(&s, &boot)) {
        fprintf(stderr, "nsm-document: cannot hash\n");
    } else if (root_file &&
               !g_file_set_contents(root_file, nsm_signer_root(signer), -1,
                                    &gerror)) {
        fprintf(stderr, "nsm-document: %s\n", gerror->message);
    } else if (rate > 0) {
        status = !measure(&s, &request);
    } else {
        status = !write_document(signer, &s, &request);
    }
    nsm_signer_free(signer);
    return status;
}
