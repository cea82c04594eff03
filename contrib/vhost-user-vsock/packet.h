/*
 * SPDX-License-Identifier: MIT
 *
 * packet.h: the header of a virtio-vsock packet.
 *
 * Facts: virtio 1.2, section 5.10 (socket device).
 */

#ifndef PACKET_H
#define PACKET_H

#include <stdint.h>

#define VSOCK_HDR_SIZE 44
#define VSOCK_TYPE_STREAM 1

/* Well-known context ids, and the port that no packet may carry. */
#define VSOCK_CID_HOST 2
#define VSOCK_CID_ANY 0xFFFFFFFFu
#define VSOCK_PORT_ANY 0xFFFFFFFFu

enum vsock_op {
    VSOCK_OP_INVALID = 0,
    VSOCK_OP_REQUEST = 1,
    VSOCK_OP_RESPONSE = 2,
    VSOCK_OP_RST = 3,
    VSOCK_OP_SHUTDOWN = 4,
    VSOCK_OP_RW = 5,
    VSOCK_OP_CREDIT_UPDATE = 6,
    VSOCK_OP_CREDIT_REQUEST = 7,
};

/* Flags of VSOCK_OP_SHUTDOWN: what the sender will do no more. */
#define VSOCK_OFF_RECV 1
#define VSOCK_OFF_SEND 2
#define VSOCK_OFF_BOTH 3

/* A packet header in host byte order. */
struct vsock_hdr {
    uint64_t src_cid;
    uint64_t dst_cid;
    uint32_t src_port;
    uint32_t dst_port;
    uint32_t len;
    uint16_t type;
    uint16_t op;
    uint32_t flags;
    uint32_t buf_alloc;
    uint32_t fwd_cnt;
};

void vsock_hdr_decode(struct vsock_hdr *h, const uint8_t raw[VSOCK_HDR_SIZE]);
void vsock_hdr_encode(const struct vsock_hdr *h, uint8_t raw[VSOCK_HDR_SIZE]);

#endif
