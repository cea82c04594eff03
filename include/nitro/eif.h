/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Enclave Image Format (EIF): parse, check, measure, verify, load.
 *
 * What it is: the public interface of the EIF core.  Plain C on glib, gnutls,
 * libcbor and zlib; it knows nothing of QEMU, prints nothing and never exits.
 * Everything works on buffers but eif_load(), which reads a file once.
 *
 * How a machine loads: eif_load() reads, judges and measures the file while it
 * puts kernel and initramfs where EifMemory.place() says, once the sizes and
 * the kernel's header are known: straight into the guest's memory, or, for a
 * boot loader that wants files, into memfds (eif_load_memfds()).  Nothing of
 * the guest may run before it has returned, and nothing after it has failed.
 *
 * What it is not: a builder or a signer of images.
 *
 * Sources of the facts: the EIF specification of the AWS Nitro Enclaves image
 * format repository (layout, validity rules, measurements), RFC 8949 (CBOR),
 * RFC 9052 and 9053 (COSE_Sign1, ECDSA algorithms), and Linux's boot protocols
 * (Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst).
 *
 * Order of the checks.  A file that is wrong in several ways is refused for
 * the first of them in this order, whichever function does the work:
 *
 *   1. header       file-too-short (under 548 bytes), bad-magic, bad-version,
 *                   bad-arch, section-count; then for each slot in order
 *                   section-offset, section-beyond-file; then trailing-bytes
 *   2. sections     for each section header in order: section-size-mismatch,
 *                   section-type, then by type duplicate-kernel,
 *                   duplicate-cmdline, ramdisk-before-kernel,
 *                   duplicate-signature, signature-too-large,
 *                   duplicate-metadata
 *   3. counts       no-kernel, no-cmdline, no-metadata (version 4)
 *   4. sizes *      kernel-too-large, cmdline-too-long (over EIF_CMDLINE_MAX),
 *                   initramfs-too-large (over what could ever fit)
 *   5. data         crc-mismatch, cmdline-nul
 *   6. kernel *     x86_64: kernel-not-bzimage, kernel-setup-size
 *                   aarch64: kernel-not-image, kernel-text-offset,
 *                   kernel-image-size
 *   7. placement *  cmdline-too-long, kernel-too-large (needs more memory than
 *                   there is), initramfs-too-large
 *   8. signature    signature-malformed (envelope, then COSE_Sign1, then its
 *                   payload), signature-certificate, signature-invalid,
 *                   signature-index, signature-pcr0,
 *                   signature-not-yet-valid, signature-expired
 *
 * An overlay, which is no part of the file, is looked at between 4 and 5
 * (overlay-too-large), after 5 (overlay-not-cpio, overlay-misaligned) and
 * after 7 (overlay-too-large).
 *
 * Steps marked * are boot rules: EifOptions.file_rules_only leaves them out,
 * since a file may be described or signed without being booted; only
 * eif_load() keeps to step 4 in any case, as it has to hold the data.  Nothing
 * is allocated for the file's data before steps 1 to 4 have passed.
 */

#ifndef NITRO_EIF_H
#define NITRO_EIF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* File layout, in bytes.  All numbers in the file are big-endian. */
#define EIF_HEADER_SIZE         548
#define EIF_SECTION_HEADER_SIZE 12
#define EIF_CRC_OFFSET          544     /* the four bytes the CRC leaves out */
#define EIF_MIN_SECTIONS        2
#define EIF_MAX_SECTIONS        32
#define EIF_MIN_VERSION         2
#define EIF_MAX_VERSION         4
#define EIF_FLAG_AARCH64        0x0001  /* the only flag with a meaning */
#define EIF_SIGNATURE_MAX       32768   /* of a signature section's data */

/* QEMU's loader counts the bytes of a kernel in an int and copies them. */
#define EIF_KERNEL_LIMIT        (1ULL << 30)    /* first size refused */
/*
 * Kernels take 2047 bytes (COMMAND_LINE_SIZE less its NUL).  The bound only
 * keeps a hostile file from choosing how much is held.
 */
#define EIF_CMDLINE_MAX         65536
/*
 * The x86 boot protocol has 32 bits for the size of an initramfs.  That of
 * arm64 has 64, but no enclave's comes near this.
 */
#define EIF_INITRAMFS_LIMIT     0xffffffffULL   /* first size refused */
/* The kernel looks for an archive of its own at multiples of this. */
#define EIF_INITRD_ALIGN        4

#define EIF_DIGEST_SIZE         48      /* SHA-384; also a PCR's size */

/* What the kernel and the programs in an image are for; the header has it. */
typedef enum EifArch {
    EIF_ARCH_ANY = 0,   /* only where one is asked for */
    EIF_ARCH_X86_64,
    EIF_ARCH_AARCH64,
} EifArch;

/* "x86_64", "aarch64"; "any". */
const char *eif_arch_name(EifArch arch);

/* Section types. */
enum {
    EIF_SECTION_KERNEL = 1,
    EIF_SECTION_CMDLINE = 2,
    EIF_SECTION_RAMDISK = 3,
    EIF_SECTION_SIGNATURE = 4,
    EIF_SECTION_METADATA = 5,
};

/* One per reason to refuse a file; eif_rule_name() gives the kebab-case. */
typedef enum EifRule {
    EIF_OK = 0,
    EIF_ERR_IO,
    EIF_ERR_FILE_TOO_SHORT,
    EIF_ERR_BAD_MAGIC,
    EIF_ERR_BAD_VERSION,
    EIF_ERR_BAD_ARCH,
    EIF_ERR_SECTION_COUNT,
    EIF_ERR_SECTION_OFFSET,         /* before the previous one ends */
    EIF_ERR_SECTION_BEYOND_FILE,    /* or beyond 64 bits */
    EIF_ERR_TRAILING_BYTES,
    EIF_ERR_SECTION_SIZE_MISMATCH,  /* header's array against section header */
    EIF_ERR_SECTION_TYPE,
    EIF_ERR_DUPLICATE_KERNEL,
    EIF_ERR_NO_KERNEL,
    EIF_ERR_DUPLICATE_CMDLINE,
    EIF_ERR_NO_CMDLINE,
    EIF_ERR_RAMDISK_BEFORE_KERNEL,
    EIF_ERR_DUPLICATE_SIGNATURE,
    EIF_ERR_SIGNATURE_TOO_LARGE,
    EIF_ERR_DUPLICATE_METADATA,
    EIF_ERR_NO_METADATA,
    EIF_ERR_CRC_MISMATCH,
    EIF_ERR_CMDLINE_NUL,
    EIF_ERR_CMDLINE_TOO_LONG,
    EIF_ERR_KERNEL_TOO_LARGE,
    EIF_ERR_KERNEL_NOT_BZIMAGE,
    EIF_ERR_KERNEL_SETUP_SIZE,
    EIF_ERR_KERNEL_NOT_IMAGE,
    EIF_ERR_KERNEL_TEXT_OFFSET,
    EIF_ERR_KERNEL_IMAGE_SIZE,
    EIF_ERR_INITRAMFS_TOO_LARGE,
    EIF_ERR_SIGNATURE_MALFORMED,
    EIF_ERR_SIGNATURE_CERTIFICATE,  /* unreadable, or a key we cannot use */
    EIF_ERR_SIGNATURE_INVALID,
    EIF_ERR_SIGNATURE_INDEX,        /* signs another register than PCR0 */
    EIF_ERR_SIGNATURE_PCR0,         /* signs another image's PCR0 */
    EIF_ERR_SIGNATURE_NOT_YET_VALID,
    EIF_ERR_SIGNATURE_EXPIRED,
    EIF_ERR_OVERLAY_NOT_CPIO,       /* of these it is the overlay's fault */
    EIF_ERR_OVERLAY_MISALIGNED,
    EIF_ERR_OVERLAY_TOO_LARGE,
    EIF_RULE_COUNT
} EifRule;

/*
 * Why something was refused.  @text is one full sentence with the offending
 * value, without a final stop or line end, and never holds bytes of the file
 * as they are.  Every function that takes an EifError wants one and writes it
 * only when it fails.
 */
typedef struct EifError {
    EifRule rule;
    char text[320];
} EifError;

/* "section-offset" for EIF_ERR_SECTION_OFFSET; "ok" for EIF_OK. */
const char *eif_rule_name(EifRule rule);

/* ---- Layout: eif-format.c ---- */

typedef struct EifSection {
    uint16_t type;      /* EIF_SECTION_*; 0 until its header was parsed */
    uint64_t offset;    /* of the 12-byte section header in the file */
    uint64_t size;      /* of the data, which follow the header at once */
} EifSection;

typedef struct EifLayout {
    uint64_t file_size;
    uint16_t version;           /* 2, 3 or 4 */
    uint16_t flags;             /* reserved bits are kept, and ignored */
    EifArch arch;               /* of @flags; never EIF_ARCH_ANY */
    uint64_t default_mem;       /* bytes; a hint that no loader follows */
    uint64_t default_cpus;
    uint32_t crc32;             /* as the header has it */
    unsigned n_sections;
    EifSection section[EIF_MAX_SECTIONS];       /* in file order */
    uint64_t gap_bytes;         /* before and between them, in no PCR */
    /* Filled by eif_parse_section(); index into @section, -1: none. */
    int kernel;
    int cmdline;
    int signature;
    int metadata;
    unsigned n_ramdisks;
    uint64_t ramdisk_bytes;     /* of all ramdisks together */
} EifLayout;

/*
 * Steps 1 to 3 of the order above.  @buf: the first @len bytes of a file of
 * @file_size bytes, at least EIF_HEADER_SIZE of them unless the file is
 * shorter; @arch: the only one that will do, or EIF_ARCH_ANY.  Then
 * eif_parse_section() for each i from 0 to n_sections - 1 with the 12 bytes at
 * section[i].offset, then eif_layout_finish().
 */
bool eif_parse_header(EifLayout *l, const uint8_t *buf, size_t len,
                      uint64_t file_size, EifArch arch, EifError *err);
bool eif_parse_section(EifLayout *l, unsigned i, const uint8_t *hdr12,
                       EifError *err);
bool eif_layout_finish(const EifLayout *l, EifError *err);

/* ---- What a boot loader must know first: eif-boot.c, eif-boot-arm64.c ---- */

/* Bytes that eif_check_kernel() looks at: of a bzImage, through init_size. */
#define EIF_KERNEL_HEADER_SIZE 0x264
/* Of an arm64 Image, the whole header. */
#define EIF_ARM64_HEADER_SIZE 64

/* The fields of the other architecture are zero. */
typedef struct EifKernel {
    EifArch arch;
    uint32_t cmdline_size;      /* longest command line, NUL not counted */
    /* x86_64 */
    uint16_t protocol;          /* boot protocol, 0x20f is 2.15 */
    uint32_t setup_bytes;       /* boot sector and real-mode code */
    uint64_t payload_bytes;     /* the rest, loaded at 1 MiB */
    uint32_t init_size;         /* memory needed from where it decompresses */
    uint64_t pref_address;
    uint32_t alignment;
    bool relocatable;
    uint32_t initrd_max;        /* highest address of the initramfs' bytes */
    /* aarch64 */
    uint64_t text_offset;       /* as the header has it; see below */
    uint64_t memory;            /* needed from where it is loaded */
} EifKernel;

/*
 * x86_64: is this a bzImage of boot protocol 2.10 (Linux 2.6.31) or later with
 * a sane setup size?  aarch64: is it an uncompressed Image of Linux 3.17 or
 * later, with a text_offset of whole pages?
 *
 * @hdr: its first @hdr_len bytes, the smaller of @size and
 * EIF_KERNEL_HEADER_SIZE at least; @size: of the whole image.
 */
bool eif_check_kernel(EifArch arch, const uint8_t *hdr, size_t hdr_len,
                      uint64_t size, EifKernel *out, EifError *err);

/*
 * Will the kernel take a command line of @cmdline_len bytes (all additions
 * included, NUL not counted), and does an initramfs of @initramfs_size bytes
 * (0: none) fit below @lowmem, clear of the memory that the kernel starts in?
 * @lowmem: the guest's RAM that a boot loader may use, in bytes from its
 * start; x86_64: what is below 4 GiB, aarch64: EIF_ARM64_WINDOW at most.
 * 0: the initramfs is not checked.
 */
bool eif_check_placement(const EifKernel *k, uint64_t cmdline_len,
                         uint64_t initramfs_size, uint64_t lowmem,
                         EifError *err);

/* Where things go on x86_64, in guest addresses. */
typedef struct EifX86Places {
    uint64_t kernel;            /* what comes after the setup code */
    uint64_t initramfs;         /* its size is 0: means nothing */
} EifX86Places;

/* For what eif_check_placement() found good, with the same @lowmem, not 0. */
void eif_x86_places(const EifKernel *k, uint64_t initramfs_size,
                    uint64_t lowmem, EifX86Places *out);

/* Kernel and initramfs have to lie within so much (booting.rst, 32 GiB). */
#define EIF_ARM64_WINDOW        (32ULL << 30)
/* What the device tree gets, at the end of that (booting.rst). */
#define EIF_ARM64_DTB_SIZE      (2ULL << 20)
/*
 * The kernel lies at its text_offset from the start of RAM.  Linux has written
 * 0 there since 5.8 and means: at any multiple of 2 MiB.  AWS takes the 0 as
 * it is, and such an image does not start there; here it lies at 2 MiB, where
 * AWS's own build of Linux asks to be.
 */
#define EIF_ARM64_TEXT_OFFSET   (2ULL << 20)

/* Where things go, in bytes from the start of RAM. */
typedef struct EifArm64Places {
    uint64_t kernel;
    uint64_t initramfs;         /* its size is 0: means nothing */
    uint64_t dtb;
} EifArm64Places;

/* For what eif_check_placement() found good, with the same @lowmem, not 0. */
void eif_arm64_places(const EifKernel *k, uint64_t initramfs_size,
                      uint64_t lowmem, EifArm64Places *out);

/* ---- Signature section: eif-signature.c, eif-certificate.c ---- */

/*
 * A decoded signature section and its certificate.  Pointers lead into memory
 * that eif_signature_clear() frees; the section's bytes are not needed after
 * the parse.  Its memory is bounded by a few times the section's size.
 */
typedef struct EifSignature {
    uint8_t *bytes;             /* both byte strings, one after the other */
    const uint8_t *pem;
    size_t pem_len;
    const uint8_t *cose;
    size_t cose_len;
    /* Set by eif_signature_cose() */
    const uint8_t *protected_hdr;
    size_t protected_len;
    const uint8_t *payload;
    size_t payload_len;
    const uint8_t *raw;         /* r || s */
    size_t raw_len;
    int alg;                    /* COSE: -7 ES256, -35 ES384, -36 ES512 */
    uint64_t register_index;
    uint8_t register_value[EIF_DIGEST_SIZE];
    /* Set by eif_signature_certificate() */
    uint8_t *der;
    size_t der_len;
    const uint8_t *point;       /* the key: x || y */
    int key_alg;                /* the alg that the key's curve asks for */
    int64_t not_before;         /* seconds since 1970, both inclusive */
    int64_t not_after;
    uint8_t pcr8[EIF_DIGEST_SIZE];
} EifSignature;

/*
 * In this order: eif_signature_parse() decodes the section's envelope into two
 * byte strings, eif_signature_cose() the one that is a COSE_Sign1, and
 * eif_signature_certificate() the other.  eif_signature_clear() in the end,
 * also after a failure.
 *
 * All of the CBOR must use definite lengths, and each of the four documents in
 * a section (envelope, COSE_Sign1, protected header, payload) must end where
 * its bytes end.  Integers need not be minimal.  Map keys may come in any
 * order, unknown ones are skipped, known ones must be there once.
 *
 *   envelope    array of one element or more, of which the first counts: map
 *               of "signing_certificate" and "signature", both arrays of
 *               integers below 256 (byte strings are refused, as AWS does)
 *   COSE_Sign1  with tag 18 or without: array of protected header (byte
 *               string), unprotected header (a map, ignored), payload (byte
 *               string), signature (byte string)
 *   protected   map with 1 (alg): -7, -35 or -36
 *   payload     map with "register_index", an unsigned integer, and
 *               "register_value", an array of 48 integers below 256
 */
bool eif_signature_parse(EifSignature *s, const uint8_t *buf, size_t len,
                         EifError *err);
bool eif_signature_cose(EifSignature *s, EifError *err);
/*
 * Read the first certificate of the PEM text: key, dates, PCR8.  Which texts
 * and certificates are good is in docs/eif.md.
 */
bool eif_signature_certificate(EifSignature *s, EifError *err);
/*
 * After both of the above: is it signed with the certificate's key, does it
 * sign this PCR0, and is @now (seconds since 1970) within the certificate's
 * dates?  Nothing else of the certificate matters; it may sign itself.
 */
bool eif_signature_verify(const EifSignature *s,
                          const uint8_t pcr0[EIF_DIGEST_SIZE],
                          int64_t now, EifError *err);
void eif_signature_clear(EifSignature *s);

/* ---- Measurement: eif-measure.c ---- */

/*
 * PCR = SHA384(48 zero bytes || SHA384(content)).  PCR0: kernel, command line
 * and ramdisks; PCR1: kernel, command line, first ramdisk; PCR2: the other
 * ramdisks; PCR8: the signing certificate's DER bytes, zero if unsigned.
 * Section data only, in file order.
 */
typedef struct EifMeasurements {
    uint8_t pcr0[EIF_DIGEST_SIZE];
    uint8_t pcr1[EIF_DIGEST_SIZE];
    uint8_t pcr2[EIF_DIGEST_SIZE];
    uint8_t pcr8[EIF_DIGEST_SIZE];
    bool has_pcr8;
} EifMeasurements;

/* ---- Whole files: eif-check.c (buffer), eif-load.c (descriptor) ---- */

typedef enum EifSignaturePolicy {
    EIF_SIGNATURE_VERIFY = 0,   /* as AWS: a bad signature refuses the file */
    EIF_SIGNATURE_IGNORE,       /* ... is a warning; PCR8 if it can be read */
} EifSignaturePolicy;

typedef struct EifOptions {
    EifArch arch;               /* the only one that will do */
    EifSignaturePolicy signature;
    int64_t now;                /* seconds since 1970, for the certificate */
    bool file_rules_only;       /* leave out the steps marked * above */
    uint64_t cmdline_extra;     /* bytes that will be appended to the EIF's */
    uint64_t lowmem;            /* as in eif_check_placement(); 0: unknown */
} EifOptions;

/*
 * Judge and measure a whole file in memory: the same verdict, rule for rule,
 * as eif_load().  @warning (may be NULL): what EIF_SIGNATURE_IGNORE let pass,
 * rule EIF_OK if nothing.
 */
bool eif_check(const uint8_t *buf, size_t len, const EifOptions *opt,
               EifMeasurements *out, EifError *warning, EifError *err);

/*
 * Where the time of eif_load() went, in microseconds.  The three threads work
 * side by side, so the parts add up to more than @total.
 */
typedef struct EifTimes {
    uint64_t total;
    uint64_t read;              /* reader: file to where it belongs */
    uint64_t crc;               /* reader: CRC-32, and an overlay's check */
    uint64_t reader_wait;       /* reader: for the hashing threads */
    uint64_t pcr0;              /* hashing kernel, command line, ramdisks */
    uint64_t pcr2;              /* hashing the ramdisks after the first */
    uint64_t signature;
} EifTimes;

typedef struct EifImage {
    EifLayout layout;
    EifMeasurements pcr;        /* with the extra initrd, if there is one */
    EifKernel kernel;           /* zero with file_rules_only */
    uint64_t kernel_size;       /* with its setup code */
    uint64_t initramfs_size;
    char *cmdline;              /* NUL-terminated, no NUL within */
    size_t cmdline_len;
    bool is_signed;
    EifError signature_warning; /* rule EIF_OK unless the policy let one pass */
    EifTimes times;
} EifImage;

/*
 * Where the parts of an image go: host memory that nobody else looks at while
 * eif_load() runs.  It is written once and read by the digests: what lies
 * there afterwards is what was measured.
 */
typedef struct EifPlaces {
    uint8_t *setup;             /* the kernel's first kernel.setup_bytes, */
    uint8_t *kernel;            /* and the rest of its kernel_size */
    uint8_t *initramfs;         /* initramfs_size; NULL will do for 0 */
} EifPlaces;

typedef struct EifMemory {
    /*
     * Called once, after step 4, when steps 6 and 7 are known to pass: of
     * @image there are layout, kernel, kernel_size, initramfs_size and
     * cmdline_len.  kernel.setup_bytes is 0, and the kernel in one piece, for
     * aarch64 and with file_rules_only.  eif_x86_places() or
     * eif_arm64_places() tells the guest's addresses.  False: @err, and
     * eif_load() fails with it.
     */
    bool (*place)(void *opaque, const EifImage *image, EifPlaces *places,
                  EifError *err);
    void *opaque;
} EifMemory;

/*
 * Load the EIF in @fd, a regular file, read from its start without moving the
 * file position, to where @memory says.  Every byte is read once; verdict,
 * measurement and what is loaded come from that one copy, so a file that is
 * changed meanwhile is either refused or loaded as it was measured.  What is
 * refused may lie there in part.
 *
 * @initrd_fd (-1: none): a regular file, appended to the initramfs at the next
 * multiple of EIF_INITRD_ALIGN and measured like an application ramdisk: last
 * in PCR0 and in PCR2, also where the file has no ramdisk of its own; the
 * padding is not measured, and the signature is checked against the PCR0 of
 * the file alone.
 *
 * @overlay_fd (-1: none): a regular file of newc archives, appended in the same
 * way after all else, checked while it is read, and measured nowhere: the
 * caller has to see to it that nobody takes @out->pcr for what runs.
 *
 * Host memory beyond @memory's: less than 32 MiB.
 * Threads: two for the time of the call, with all signals blocked.
 *
 * On success the caller owns @out: eif_image_clear().  On failure @out holds
 * nothing.
 */
bool eif_load(int fd, int initrd_fd, int overlay_fd, const EifOptions *opt,
              const EifMemory *memory, EifImage *out, EifError *err);
/* Free; harmless on a zeroed or cleared image. */
void eif_image_clear(EifImage *image);

/* ---- For boot loaders that want files: eif-memfd.c ---- */

typedef struct EifMemfds {
    int kernel;                 /* -1: there is none */
    int initramfs;              /* -1: there is no ramdisk */
} EifMemfds;

/*
 * eif_load() into memfds, which are sealed on success: kernel with its setup
 * code, and initramfs.  The caller owns @fds: eif_memfds_close().  On failure
 * there are none.
 */
bool eif_load_memfds(int fd, int initrd_fd, int overlay_fd,
                     const EifOptions *opt, EifMemfds *fds, EifImage *out,
                     EifError *err);
void eif_memfds_close(EifMemfds *fds);

/* ---- What no PCR has: eif-overlay.c ---- */

/*
 * Would Linux find an init= or rdinit= in @text, which is added to a command
 * line?  Also true where one stands in quotes or behind "--", and does nothing.
 */
bool eif_cmdline_names_init(const char *text);

#endif /* NITRO_EIF_H */
