/*
 * SPDX-License-Identifier: MIT
 *
 * pcap.c: packets as a capture file has them. All numbers are little-endian,
 * those of pcap too, whose magic tells.
 */

#include "pcap.h"

#include <string.h>

enum {
    AF_VSOCK_OP_UNKNOWN,
    AF_VSOCK_OP_CONNECT,
    AF_VSOCK_OP_DISCONNECT,
    AF_VSOCK_OP_CONTROL,
    AF_VSOCK_OP_PAYLOAD,
};

#define AF_VSOCK_TRANSPORT_VIRTIO 2

static uint8_t *put_le(uint8_t *p, unsigned n, uint64_t x)
{
    for (; n--; x >>= 8) {
        *p++ = x & 0xff;
    }
    return p;
}

void pcap_file_header(uint8_t out[PCAP_FILE_HDR_SIZE], uint32_t snaplen)
{
    uint8_t *p = out;

    p = put_le(p, 4, 0xa1b2c3d4);
    p = put_le(p, 2, 2);
    p = put_le(p, 2, 4);
    p = put_le(p, 8, 0);
    p = put_le(p, 4, PCAP_PACKET_HDR_SIZE + snaplen);
    put_le(p, 4, PCAP_LINKTYPE_VSOCK);
}

static uint16_t vsockmon_op(uint16_t op)
{
    switch (op) {
    case VSOCK_OP_REQUEST:
    case VSOCK_OP_RESPONSE:
        return AF_VSOCK_OP_CONNECT;
    case VSOCK_OP_RST:
    case VSOCK_OP_SHUTDOWN:
        return AF_VSOCK_OP_DISCONNECT;
    case VSOCK_OP_RW:
        return AF_VSOCK_OP_PAYLOAD;
    case VSOCK_OP_CREDIT_UPDATE:
    case VSOCK_OP_CREDIT_REQUEST:
        return AF_VSOCK_OP_CONTROL;
    default:
        return AF_VSOCK_OP_UNKNOWN;
    }
}

static size_t kept(const struct pcap_packet *p, uint32_t snaplen)
{
    return p->len < snaplen ? p->len : snaplen;
}

size_t pcap_record_size(const struct pcap_packet *p, uint32_t snaplen)
{
    return PCAP_HDR_SIZE + kept(p, snaplen);
}

void pcap_record(uint8_t *out, const struct pcap_packet *p, uint32_t snaplen,
                 uint64_t usec)
{
    size_t skip = p->skip, left = kept(p, snaplen);
    struct vsock_hdr h;

    vsock_hdr_decode(&h, p->raw);
    out = put_le(out, 4, usec / 1000000);
    out = put_le(out, 4, usec % 1000000);
    out = put_le(out, 4, PCAP_PACKET_HDR_SIZE + left);
    out = put_le(out, 4, PCAP_PACKET_HDR_SIZE + p->len);
    out = put_le(out, 8, h.src_cid);
    out = put_le(out, 8, h.dst_cid);
    out = put_le(out, 4, h.src_port);
    out = put_le(out, 4, h.dst_port);
    out = put_le(out, 2, vsockmon_op(h.op));
    out = put_le(out, 2, AF_VSOCK_TRANSPORT_VIRTIO);
    out = put_le(out, 2, VSOCK_HDR_SIZE);
    out = put_le(out, 2, 0);
    memcpy(out, p->raw, VSOCK_HDR_SIZE);
    out += VSOCK_HDR_SIZE;
    for (unsigned i = 0; left && i < p->niov; i++) {
        size_t n = p->iov[i].iov_len;

        if (skip >= n) {
            skip -= n;
            continue;
        }
        n = n - skip < left ? n - skip : left;
        memcpy(out, (const uint8_t *)p->iov[i].iov_base + skip, n);
        out += n;
        left -= n;
        skip = 0;
    }
    memset(out, 0, left); /* which nobody may count on being there */
}
