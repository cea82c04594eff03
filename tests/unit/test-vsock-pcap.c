/*
 * SPDX-License-Identifier: MIT
 *
 * Unit tests of the vsock backend's captures: each byte of a file's head and of
 * a record, written down by hand from pcap-savefile(5) and linux/vsockmon.h.
 * What tshark makes of them is in tests/python/vsock/test_vsock_dump.py.
 */

#include <glib.h>
#include <string.h>

#include "pcap.h"

static void test_head(void)
{
    static const uint8_t expected[] = {
        0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0x4c, 0x01, 0, 0, 0x0f, 0x01, 0, 0, /* 76 + 256; 271 */
    };
    uint8_t got[PCAP_FILE_HDR_SIZE];

    pcap_file_header(got, 256);
    g_assert_cmpmem(got, sizeof(got), expected, sizeof(expected));
}

static const uint8_t raw[VSOCK_HDR_SIZE] = {
    16, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x13, 0, 0,
    0x70, 0x17, 0, 0, 5, 0, 0, 0, 1, 0, 5, 0,
    0, 0, 0, 0, 0, 0, 4, 0, 7, 0, 0, 0,
};

static const uint8_t expected[] = {
    0x03, 0, 0, 0, 0x40, 0xe2, 0x01, 0, /* 3.123456 s */
    80, 0, 0, 0, 81, 0, 0, 0, /* 4 bytes of 5 */
    16, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x13, 0, 0,
    0x70, 0x17, 0, 0, 4, 0, 2, 0, 44, 0, 0, 0, /* payload, virtio, length */
    16, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x13, 0, 0,
    0x70, 0x17, 0, 0, 5, 0, 0, 0, 1, 0, 5, 0,
    0, 0, 0, 0, 0, 0, 4, 0, 7, 0, 0, 0,
    'b', 'y', 't', 'e',
};

static void test_record(void)
{
    char pieces[] = "....by.tes..";
    /* In front of the data, within it, empty, and behind it. */
    struct iovec iov[] = {
        { pieces, 4 }, { pieces, 0 }, { pieces + 4, 2 }, { pieces + 7, 5 },
    };
    struct pcap_packet p = { raw, iov, G_N_ELEMENTS(iov), 4, 5 };
    size_t size = pcap_record_size(&p, 4);
    g_autofree uint8_t *got = g_malloc(size);

    pcap_record(got, &p, 4, 3123456);
    g_assert_cmpmem(got, size, expected, sizeof(expected));
    /* Headers alone. */
    g_assert_cmpuint(pcap_record_size(&p, 0), ==, PCAP_HDR_SIZE);
    pcap_record(got, &p, 0, 3123456);
    g_assert_cmpmem(got + 16, 76, expected + 16, 76);
}

static void test_operations(void)
{
    /* By virtio's number, as Linux's own vsockmon has them. */
    static const uint8_t ops[] = { 0, 1, 1, 2, 2, 4, 3, 3, 0 };

    for (unsigned op = 0; op < G_N_ELEMENTS(ops); op++) {
        uint8_t header[VSOCK_HDR_SIZE], got[PCAP_HDR_SIZE];
        struct pcap_packet p = { .raw = header };

        memcpy(header, raw, sizeof(header));
        header[30] = op;
        pcap_record(got, &p, 0, 0);
        g_assert_cmpuint(got[16 + 24], ==, ops[op]);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vsock-pcap/head", test_head);
    g_test_add_func("/vsock-pcap/record", test_record);
    g_test_add_func("/vsock-pcap/operations", test_operations);
    return g_test_run();
}
