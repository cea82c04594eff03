/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * AWS Nitro Enclave board for x86: a boot without a firmware
 */
#ifndef NITRO_ENCLAVE_BOOT_H
#define NITRO_ENCLAVE_BOOT_H

#include "nitro/boot.h"
#include "../core/nitro/nitro_enclave.h"

/* From before the image is loaded until the machine is complete. */
typedef struct NitroEnclaveBoot {
    NitroEnclaveMachineState *nems;
    EifMemory memory;           /* for eif_load(): the guest's */
    uint64_t lowmem;
    uint8_t *setup;             /* the kernel's setup code, for its header */
    uint32_t cmdline_size;
    uint64_t initramfs;
    uint64_t initramfs_size;
    Notifier done;
} NitroEnclaveBoot;

/* @lowmem: as in EifOptions. */
NitroEnclaveBoot *nitro_enclave_boot_new(NitroEnclaveMachineState *nems,
                                         uint64_t lowmem);
void nitro_enclave_boot_free(NitroEnclaveBoot *boot);

/*
 * The parent's init, after the image was loaded to @boot->memory. The rest is
 * done when the machine is complete, and @boot freed then.
 */
bool nitro_enclave_boot_init(NitroEnclaveBoot *boot, Error **errp);

#endif /* NITRO_ENCLAVE_BOOT_H */
