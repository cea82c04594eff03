/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the tests of the nitro-enclave board and of the NSM device share
 *
 * Starting QEMU (and expecting it not to start), and a driver for the NSM's
 * queue that lets a test write any descriptor it likes. Neither knows what
 * the right answers are: expectations belong to the tests.
 */
#ifndef NITRO_QTEST_H
#define NITRO_QTEST_H

#include "tests/qtest/libqtest.h"
#include "tests/qtest/libqos/virtio-mmio.h"
#include "standard-headers/linux/virtio_ring.h"
#define NITRO_QTEST
#include "nitro/qemu-compat.h"

/* Where guest memory begins, and the transports are: docs/machine.md. */
#ifdef NITRO_QTEST_ARM
#define NITRO_RAM 0x80000000ULL
#define NITRO_TRANSPORT(n) (0x40003000 + (n) * NITRO_TRANSPORT_SIZE)
#define NITRO_TRANSPORT_SIZE 0x1000
#define NITRO_TRANSPORTS 2
#else
#define NITRO_RAM 0
#define NITRO_TRANSPORT(n) (0xfeb00000 + (n) * NITRO_TRANSPORT_SIZE)
#define NITRO_TRANSPORT_SIZE 0x200
#define NITRO_TRANSPORTS 8
#endif

/*
 * "-L FOLDER " for QEMU's firmware, which even a machine whose CPUs never run
 * wants to load: the folder in NITRO_QTEST_FIRMWARE, set by meson to that of
 * the QEMU tree. Empty where that is unset: QEMU then finds its own.
 */
const char *nitro_firmware_args(void);

/*
 * Runs QEMU with @args (words separated by blanks; a word in single quotes
 * may hold blanks) and returns its exit status, and in @err what it wrote to
 * stderr. A QEMU that starts after all is told to quit, and ends with 0.
 */
int nitro_qemu_run(const char *args, char **out, char **err);

/* Starts QEMU for a test that talks to it. */
QTestState *nitro_qemu_start(const char *args);

/* Tells @from to migrate to @uri, and waits until it has. */
void nitro_migrate(QTestState *from, const char *uri);

/* Bytes that belong to somebody else; BYTES: of a string literal, no NUL. */
typedef struct NsmBytes {
    const void *data;
    size_t len;
} NsmBytes;

#define BYTES(literal) ((NsmBytes) { (literal), sizeof(literal) - 1 })

/* The device on a machine without the board, and on which transport. */
#define NSM_LEGACY NSM_MACHINE NSM_DEVICE
#define NSM_MODERN NSM_FORCE_MODERN NSM_LEGACY
#define NSM_FORCE_MODERN "-global virtio-mmio.force-legacy=off "
#define NSM_MACHINE "-M microvm,acpi=off -m 64M -nodefaults "
#define NSM_MACHINE_RAM (64 * 1024 * 1024)
#define NSM_MODULE_ID "i-1234567890abcdef0-enc0123456789abcdef"
#define NSM_BARE_DEVICE "-device nitro-nsm-device,bus=virtio-mmio-bus.0"
#define NSM_DEVICE NSM_BARE_DEVICE ",module-id=" NSM_MODULE_ID " "
#define NSM_TRANSPORT 0

#define NSM_GET_RANDOM BYTES("\x69" "GetRandom")
#define NSM_GET_RANDOM_ANSWER 278       /* {"GetRandom": {"random": 256}} */
#define NSM_DESCRIBE_NSM BYTES("\x6b" "DescribeNSM")

/*
 * One virtqueue, driven by hand: a table of descriptors that the test fills,
 * an available ring and a used ring.
 */
#define NSM_QUEUE_NUM 16

typedef struct NsmQueue {
    QTestState *qts;
    QVirtioMMIODevice dev;
    uint16_t avail_idx;         /* chains made available */
    uint16_t used_idx;          /* chains taken back */
} NsmQueue;

/* Guest-physical: the rings, and a buffer per descriptor. */
#define NSM_RING_BASE (NITRO_RAM + 0x200000)
#define NSM_BUF_SIZE 0x4000
#define NSM_BUF(i) (NITRO_RAM + 0x210000 + (uint64_t)(i) * NSM_BUF_SIZE)

/* Transport @n up to, but without, DRIVER_OK; queue 0 is set up. */
void nsm_queue_init(NsmQueue *q, QTestState *qts, int n);
/* The same and DRIVER_OK. */
void nsm_queue_start(NsmQueue *q, QTestState *qts, int n);
/* Device reset, then init and DRIVER_OK again. */
void nsm_queue_restart(NsmQueue *q);

void nsm_desc(NsmQueue *q, unsigned int i, uint64_t addr, uint32_t len,
              uint16_t flags, uint16_t next);
/* Writes @bytes to descriptor @i's buffer, NSM_BUF(i). */
void nsm_fill(NsmQueue *q, unsigned int i, NsmBytes bytes);
/* Chain @head is available; the device is told by nsm_kick(). */
void nsm_avail(NsmQueue *q, uint16_t head);
/* The device serves the queue before this returns. */
void nsm_kick(NsmQueue *q);
/* How many chains came back that nsm_used() has not returned? */
unsigned int nsm_used_count(NsmQueue *q);
/* The next chain that came back: @head and @len as the device reports. */
void nsm_used(NsmQueue *q, uint32_t *head, uint32_t *len);
/* Expects that chain, and that length. */
void nsm_expect_used(NsmQueue *q, uint32_t head, uint32_t len);
/* Was the queue's interrupt raised? Acknowledges it. */
bool nsm_interrupt(NsmQueue *q);

/*
 * A command as the Linux driver sends it: @req in descriptor 0, room for
 * @cap bytes in descriptor 1, one kick. Checks the order in which both come
 * back and the one interrupt. Returns the length of the answer in @resp.
 */
size_t nsm_command(NsmQueue *q, NsmBytes req, void *resp, size_t cap);

/* The same with the driver's response buffer; the answer must be @expected. */
void nsm_expect(NsmQueue *q, NsmBytes req, NsmBytes expected);
/* ... must be {"Error": @code} */
void nsm_expect_error(NsmQueue *q, NsmBytes req, const char *code);
/* Commands that have to succeed, */
void nsm_describe_pcr(NsmQueue *q, uint8_t index, uint8_t pcr[48], bool *lock);
void nsm_extend_pcr(NsmQueue *q, uint8_t index, NsmBytes data,
                    uint8_t pcr[48]);
/*
 * After a bad command a good one: the device lives, is not marked as in need of
 * a reset, and has nothing more to give back. PCR0 has to be locked.
 */
void nsm_check_alive(NsmQueue *q);
/* and two requests for when they need not: in @buf, of 64 bytes at least. */
NsmBytes nsm_req_lock_pcr(uint8_t *buf, uint8_t index);
NsmBytes nsm_req_extend_pcr(uint8_t *buf, uint8_t index, NsmBytes data);

/* Bytes as lower-case hex, to be freed. */
char *nitro_hex(const uint8_t *bytes, size_t len);

#endif /* NITRO_QTEST_H */
