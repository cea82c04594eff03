/*
 * SPDX-License-Identifier: MIT
 *
 * packet.c: the header of a virtio-vsock packet as bytes, and back.
 */

#include "packet.h"

static uint64_t get_le(const uint8_t *p, unsigned n)
{
    uint64_t x = 0;

    while (n--) {
        x = x << 8 | p[n];
    }
    return x;
}

static void put_le(uint8_t *p, unsigned n, uint64_t x)
{
    for (; n--; x >>= 8) {
        *p++ = x & 0xff;
    }
}

void vsock_hdr_decode(struct vsock_hdr *h, const uint8_t raw[VSOCK_HDR_SIZE])
{
    h->src_cid = get_le(raw, 8);
    h->dst_cid = get_le(raw + 8, 8);
    h->src_port = get_le(raw + 16, 4);
    h->dst_port = get_le(raw + 20, 4);
    h->len = get_le(raw + 24, 4);
    h->type = get_le(raw + 28, 2);
    h->op = get_le(raw + 30, 2);
    h->flags = get_le(raw + 32, 4);
    h->buf_alloc = get_le(raw + 36, 4);
    h->fwd_cnt = get_le(raw + 40, 4);
}

void vsock_hdr_encode(const struct vsock_hdr *h, uint8_t raw[VSOCK_HDR_SIZE])
{
    put_le(raw, 8, h->src_cid);
    put_le(raw + 8, 8, h->dst_cid);
    put_le(raw + 16, 4, h->src_port);
    put_le(raw + 20, 4, h->dst_port);
    put_le(raw + 24, 4, h->len);
    put_le(raw + 28, 2, h->type);
    put_le(raw + 30, 2, h->op);
    put_le(raw + 32, 4, h->flags);
    put_le(raw + 36, 4, h->buf_alloc);
    put_le(raw + 40, 4, h->fwd_cnt);
}
