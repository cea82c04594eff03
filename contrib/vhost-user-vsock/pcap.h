/*
 * SPDX-License-Identifier: MIT
 *
 * pcap.h: packets as a capture file has them: pcap, with microseconds, of
 * LINKTYPE_VSOCK. No files here, only bytes.
 *
 * Facts: pcap-savefile(5); linux/vsockmon.h; what Linux's own vsockmon calls
 * each operation (virtio_transport_deliver_tap_pkt()).
 */

#ifndef PCAP_H
#define PCAP_H

#include "packet.h"

#include <stddef.h>
#include <sys/uio.h>

#define PCAP_LINKTYPE_VSOCK 271
#define PCAP_FILE_HDR_SIZE 24
#define PCAP_RECORD_HDR_SIZE 16
/* struct af_vsockmon_hdr; behind it the header of virtio, then data. */
#define PCAP_VSOCKMON_SIZE 32
#define PCAP_PACKET_HDR_SIZE (PCAP_VSOCKMON_SIZE + VSOCK_HDR_SIZE)
/* A record without data. */
#define PCAP_HDR_SIZE (PCAP_RECORD_HDR_SIZE + PCAP_PACKET_HDR_SIZE)

/* The file's head, where a packet has at most snaplen bytes of data. */
void pcap_file_header(uint8_t out[PCAP_FILE_HDR_SIZE], uint32_t snaplen);

/* A packet, as it lies in the guest's memory. */
struct pcap_packet {
    const uint8_t *raw; /* its header: VSOCK_HDR_SIZE bytes */
    const struct iovec *iov;
    unsigned niov;
    size_t skip; /* bytes of iov before its data */
    size_t len;  /* of data, all within iov; 0 unless it is VSOCK_OP_RW */
};

/* Bytes of its record. */
size_t pcap_record_size(const struct pcap_packet *p, uint32_t snaplen);
/* Writes them. usec: since the epoch. */
void pcap_record(uint8_t *out, const struct pcap_packet *p, uint32_t snaplen,
                 uint64_t usec);

#endif
