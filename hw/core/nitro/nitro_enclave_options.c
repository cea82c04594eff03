/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board: its options
 *
 * What the user can say, and what is wrong with it before anything is made of
 * it. What the options do is in the other files, and the boards'.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "chardev/char.h"
#include "chardev/char-socket.h"
#include "hw/boards.h"
#include "io/channel.h"
#include "nitro/eif.h"
#include "nitro/nsm.h"
#include "nitro/qemu-compat.h"
#include "nitro_enclave.h"

/* The id's tail "-enc" and 16 digits have to fit the NSM's module id too. */
#define PARENT_ID_MAX (NSM_MODULE_ID_MAX - 20)
/* IAM: the longest ARN of a role is its 64 + 512 characters and a prefix. */
#define PARENT_ROLE_MAX 1024

/* These names are measured or certified: no blanks, nothing but ASCII. */
static bool check_name(const char *option, const char *value, size_t max,
                       Error **errp)
{
    size_t len = value ? strlen(value) : 0;
    size_t i;

    if (!value) {
        return true;
    }
    if (!len || len > max) {
        error_setg(errp, "%s='%.*s%s' has %zu characters: 1 to %zu "
                   "are allowed", option, 32, value, len > 32 ? "..." : "",
                   len, max);
        return false;
    }
    for (i = 0; i < len; i++) {
        if (value[i] <= ' ' || value[i] > '~') {
            error_setg(errp, "%s has a byte 0x%02x at position %zu: "
                       "only printable ASCII without space is allowed",
                       option, (unsigned char)value[i], i);
            return false;
        }
    }
    return true;
}

/*
 * An init that the user names is as good as another ramdisk. The machine's own
 * command line is still the user's when this is asked first, and has the
 * image's, which was measured, later: so the answer is kept.
 */
bool nitro_enclave_unmeasured(NitroEnclaveMachineState *nems)
{
    return nems->overlay || nems->other_init;
}

static bool check_keep_pcrs(NitroEnclaveMachineState *nems, Error **errp)
{
    if (!nems->keep_pcrs) {
        return true;
    }
    if (nems->debug_mode) {
        error_setg(errp, "overlay-keep-pcrs=on keeps the PCRs that "
                   "debug-mode=on has zero: leave one of them out");
        return false;
    }
    if (!nitro_enclave_unmeasured(nems)) {
        error_setg(errp, "overlay-keep-pcrs=on is for an enclave that is not "
                   "measured: give overlay=FILE, or leave it out");
        return false;
    }
    return true;
}

/*
 * vhost-user passes descriptors. One that was given as a descriptor itself,
 * fd=N, has no such feature set; the channel that was made of it has.
 */
static bool is_unix_socket(Chardev *chr)
{
    Object *obj = object_dynamic_cast(OBJECT(chr), TYPE_CHARDEV_SOCKET);
    QIOChannel *ioc = obj ? SOCKET_CHARDEV(obj)->ioc : NULL;

    return qemu_chr_has_feature(chr, QEMU_CHAR_FEATURE_FD_PASS) ||
           (ioc && qio_channel_has_feature(ioc, QIO_CHANNEL_FEATURE_FD_PASS));
}

Chardev *nitro_enclave_check_options(NitroEnclaveMachineState *nems,
                                     Error **errp)
{
    MachineState *machine = MACHINE(nems);
    const char *hint = "-chardev socket,id=c,path=SOCKET and "
                       "-machine vsock=c, with vhost-user-vsock listening "
                       "on SOCKET";
    Chardev *chr;

    if (!nems->vsock) {
        error_setg(errp, "nitro-enclave needs the option vsock: "
                   "use %s", hint);
        return NULL;
    }
    chr = qemu_chr_find(nems->vsock);
    if (!chr) {
        error_setg(errp, "vsock: no chardev '%s': use %s",
                   nems->vsock, hint);
        return NULL;
    }
    if (!is_unix_socket(chr)) {
        error_setg(errp, "vsock: chardev '%s' is not a unix socket: "
                   "use %s", nems->vsock, hint);
        return NULL;
    }
    if (!machine->kernel_filename) {
        error_setg(errp, "nitro-enclave needs an enclave image: "
                   "use -kernel FILE.eif");
        return NULL;
    }
    if (machine->firmware) {
        error_setg(errp, "-bios is not supported by nitro-enclave: it would "
                   "run before the image, and nobody measures it");
        return NULL;
    }
    if (!nitro_enclave_check_board(nems, errp)) {
        return NULL;
    }
    if (machine->dtb) {
        error_setg(errp, "-dtb is not supported by nitro-enclave: "
                   "the guest would run on data that nobody measured");
        return NULL;
    }
    if (!check_name(NITRO_ENCLAVE_ID, nems->id, NSM_MODULE_ID_MAX, errp) ||
        !check_name(NITRO_ENCLAVE_PARENT_ID, nems->parent_id, PARENT_ID_MAX,
                    errp) ||
        !check_name(NITRO_ENCLAVE_PARENT_ROLE, nems->parent_role,
                    PARENT_ROLE_MAX, errp)) {
        return NULL;
    }
    nems->other_init = machine->kernel_cmdline &&
                       eif_cmdline_names_init(machine->kernel_cmdline);
    return check_keep_pcrs(nems, errp) ? chr : NULL;
}

#define NITRO_ENCLAVE_STRING(member)                                    \
    static char *nitro_enclave_get_##member(Object *obj, Error **errp)  \
    {                                                                   \
        return g_strdup(NITRO_ENCLAVE_MACHINE(obj)->member);            \
    }                                                                   \
                                                                        \
    static void nitro_enclave_set_##member(Object *obj, const char *value, \
                                           Error **errp)                \
    {                                                                   \
        g_free(NITRO_ENCLAVE_MACHINE(obj)->member);                     \
        NITRO_ENCLAVE_MACHINE(obj)->member = g_strdup(value);           \
    }

NITRO_ENCLAVE_STRING(vsock)
NITRO_ENCLAVE_STRING(id)
NITRO_ENCLAVE_STRING(parent_role)
NITRO_ENCLAVE_STRING(parent_id)
NITRO_ENCLAVE_STRING(cert_chain)
NITRO_ENCLAVE_STRING(cert_key)
NITRO_ENCLAVE_STRING(overlay)

static bool nitro_enclave_get_debug_mode(Object *obj, Error **errp)
{
    return NITRO_ENCLAVE_MACHINE(obj)->debug_mode;
}

static void nitro_enclave_set_debug_mode(Object *obj, bool value,
                                         Error **errp)
{
    NITRO_ENCLAVE_MACHINE(obj)->debug_mode = value;
}

static bool nitro_enclave_get_keep_pcrs(Object *obj, Error **errp)
{
    return NITRO_ENCLAVE_MACHINE(obj)->keep_pcrs;
}

static void nitro_enclave_set_keep_pcrs(Object *obj, bool value, Error **errp)
{
    NITRO_ENCLAVE_MACHINE(obj)->keep_pcrs = value;
}

static bool nitro_enclave_get_unmeasured(Object *obj, Error **errp)
{
    return nitro_enclave_unmeasured(NITRO_ENCLAVE_MACHINE(obj));
}

static const QEnumLookup eif_signature_lookup = {
    .array = (const char *const[]) {
        [EIF_SIGNATURE_VERIFY] = "verify",
        [EIF_SIGNATURE_IGNORE] = "ignore",
    },
    .size = 2,
};

static int nitro_enclave_get_eif_signature(Object *obj, Error **errp)
{
    return NITRO_ENCLAVE_MACHINE(obj)->eif_signature;
}

static void nitro_enclave_set_eif_signature(Object *obj, int value,
                                            Error **errp)
{
    NITRO_ENCLAVE_MACHINE(obj)->eif_signature = value;
}

static int nitro_enclave_get_document_form(Object *obj, Error **errp)
{
    return NITRO_ENCLAVE_MACHINE(obj)->document_form;
}

static void nitro_enclave_set_document_form(Object *obj, int value,
                                            Error **errp)
{
    NITRO_ENCLAVE_MACHINE(obj)->document_form = value;
}

void nitro_enclave_free_options(Object *obj)
{
    NitroEnclaveMachineState *nems = NITRO_ENCLAVE_MACHINE(obj);

    g_free(nems->vsock);
    g_free(nems->id);
    g_free(nems->parent_role);
    g_free(nems->parent_id);
    g_free(nems->cert_chain);
    g_free(nems->cert_key);
    g_free(nems->overlay);
}

static void add_unmeasured_options(ObjectClass *oc)
{
    object_class_property_add_str(oc, NITRO_ENCLAVE_OVERLAY,
                                  nitro_enclave_get_overlay,
                                  nitro_enclave_set_overlay);
    object_class_property_set_description(oc, NITRO_ENCLAVE_OVERLAY,
        "Unmeasured newc cpio after the image's ramdisks: PCR0, 1, 2, 8 zero");

    object_class_property_add_bool(oc, NITRO_ENCLAVE_KEEP_PCRS,
                                   nitro_enclave_get_keep_pcrs,
                                   nitro_enclave_set_keep_pcrs);
    object_class_property_set_description(oc, NITRO_ENCLAVE_KEEP_PCRS,
        "Image's PCRs although unmeasured; its documents' issuer says so");

    object_class_property_add_bool(oc, NITRO_ENCLAVE_UNMEASURED,
                                   nitro_enclave_get_unmeasured, NULL);
    object_class_property_set_description(oc, NITRO_ENCLAVE_UNMEASURED,
        "Whether something runs that no PCR has (read-only)");
}

void nitro_enclave_add_options(ObjectClass *oc)
{
    object_class_property_add_str(oc, NITRO_ENCLAVE_VSOCK,
                                  nitro_enclave_get_vsock,
                                  nitro_enclave_set_vsock);
    object_class_property_set_description(oc, NITRO_ENCLAVE_VSOCK,
        "Chardev of the vhost-user-vsock backend (required)");

    object_class_property_add_str(oc, NITRO_ENCLAVE_ID,
                                  nitro_enclave_get_id,
                                  nitro_enclave_set_id);
    object_class_property_set_description(oc, NITRO_ENCLAVE_ID,
        "Enclave id, the NSM's module_id (default: PARENT-ID-enc<16 digits>)");

    object_class_property_add_str(oc, NITRO_ENCLAVE_PARENT_ROLE,
                                  nitro_enclave_get_parent_role,
                                  nitro_enclave_set_parent_role);
    object_class_property_set_description(oc, NITRO_ENCLAVE_PARENT_ROLE,
        "IAM role ARN of the parent instance, for PCR3 (default: PCR3 zero)");

    object_class_property_add_str(oc, NITRO_ENCLAVE_PARENT_ID,
                                  nitro_enclave_get_parent_id,
                                  nitro_enclave_set_parent_id);
    object_class_property_set_description(oc, NITRO_ENCLAVE_PARENT_ID,
        "Instance id of the parent, for PCR4 (default: PCR4 zero)");

    object_class_property_add_str(oc, NITRO_ENCLAVE_CERT_CHAIN,
                                  nitro_enclave_get_cert_chain,
                                  nitro_enclave_set_cert_chain);
    object_class_property_set_description(oc, NITRO_ENCLAVE_CERT_CHAIN,
        "PEM file: CA certificates, root first (default: an ephemeral chain)");

    object_class_property_add_str(oc, NITRO_ENCLAVE_CERT_KEY,
                                  nitro_enclave_get_cert_key,
                                  nitro_enclave_set_cert_key);
    object_class_property_set_description(oc, NITRO_ENCLAVE_CERT_KEY,
        "PEM file: private key of the last certificate in cert-chain");

    object_class_property_add_bool(oc, NITRO_ENCLAVE_DEBUG_MODE,
                                   nitro_enclave_get_debug_mode,
                                   nitro_enclave_set_debug_mode);
    object_class_property_set_description(oc, NITRO_ENCLAVE_DEBUG_MODE,
        "Keep PCR0, PCR1, PCR2 and PCR8 zero, as AWS's debug mode does");

    object_class_property_add_enum(oc, NITRO_ENCLAVE_EIF_SIGNATURE,
                                   "EifSignaturePolicy",
                                   &eif_signature_lookup,
                                   nitro_enclave_get_eif_signature,
                                   nitro_enclave_set_eif_signature);
    object_class_property_set_description(oc, NITRO_ENCLAVE_EIF_SIGNATURE,
        "verify: refuse an image with a bad signature (default); ignore: warn");

    object_class_property_add_enum(oc, NITRO_ENCLAVE_DOCUMENT_FORM,
                                   "NsmDocumentForm",
                                   &nitro_document_form_lookup,
                                   nitro_enclave_get_document_form,
                                   nitro_enclave_set_document_form);
    object_class_property_set_description(oc, NITRO_ENCLAVE_DOCUMENT_FORM,
        "Shape of attestation documents: AWS's of 2025 (default), or 2023");
    add_unmeasured_options(oc);
}
