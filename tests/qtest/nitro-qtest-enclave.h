/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An enclave for the qtests of the nitro-enclave board
 *
 * The image is made here, around a kernel that is nothing but a boot header;
 * the vsock backend is a thread that knows as much vhost-user as QEMU asks for
 * before a driver comes.
 */
#ifndef NITRO_QTEST_ENCLAVE_H
#define NITRO_QTEST_ENCLAVE_H

#include "nitro-qtest.h"

/* ---- the vsock backend ---- */

#define PROTOCOL_F_MQ (1ULL << 0)
#define PROTOCOL_F_REPLY_ACK (1ULL << 3)
#define PROTOCOL_F_CONFIG (1ULL << 9)

typedef struct Backend {
    char *dir;
    char *path;
    int listener;
    uint64_t protocol_features;
    GThread *thread;
} Backend;

void backend_start(Backend *b, uint64_t protocol_features);
void backend_stop(Backend *b);

/* ---- the enclave image (AWS EIF specification; all big-endian) ---- */

#define EIF_HEADER 548
#define EIF_CRC 544
#define EIF_OFFSETS 28
#define EIF_SIZES 284

#define CMDLINE "console=ttyS0 panic=1"
#define RAMDISK_1 "INITINIT"
#define RAMDISK_2 "APPLAPPLAPPL!"

/* A newc archive with a trailer alone; C's own zero completes its padding. */
#define OVERLAY                                             \
    "070701" "00000000" "00000000" "00000000" "00000000"    \
    "00000001" "00000000" "00000000" "00000000" "00000000"  \
    "00000000" "00000000" "0000000B" "00000000"             \
    "TRAILER!!!\0\0\0"

#define SETUP_BYTES 1024
#define KERNEL_BYTES 8192

/* A bzImage, or an arm64 Image, as far as its header goes. */
void make_kernel(uint8_t kernel[KERNEL_BYTES]);
/* That kernel, @cmdline, metadata and both ramdisks. */
GByteArray *make_eif(const uint8_t *kernel, const char *cmdline);

/* ---- an enclave: image and backend ---- */

typedef struct Enclave {
    Backend backend;
    char *eif;
    char *chardev;              /* "-chardev ..." */
    uint8_t kernel[KERNEL_BYTES];
} Enclave;

/* The name of a new file with @data. */
char *write_temporary(const void *data, size_t len);
/* With an image of the test's, */
void enclave_init_eif(Enclave *e, GByteArray *eif);
/* or with a good one. */
void enclave_init(Enclave *e);
/* @machine: ",OPTION=VALUE..." for -M; @args: the rest of the command line. */
QTestState *enclave_start(Enclave *e, const char *machine, const char *args);
void enclave_clear(Enclave *e);

/* Where a kernel finds its boot parameters; fields as in zero-page.rst. */
#define BOOT_PARAMS 0x10000

/* ---- its registers, as GLib computes them ---- */

#define TRANSPORT_NSM 1

extern const char enclave_zero_pcr[];
/* PCR = SHA384(48 zero bytes || @data), in hex; to be freed. */
char *enclave_extend_zero(const void *data, size_t len);
/* PCR @index, and whether it is locked: 0 to 15 are. */
void enclave_expect_pcr(NsmQueue *q, uint8_t index, const char *expected);
/* Those of the image of enclave_init(), with "EXTRA" as -initrd or without. */
void enclave_expect_measured(Enclave *e, QTestState *qts, bool extra,
                             const char *pcr3, const char *pcr4);

#endif /* NITRO_QTEST_ENCLAVE_H */
