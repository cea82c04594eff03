# SPDX-License-Identifier: GPL-2.0-or-later
#
# The device set of a QEMU built only for enclaves: the nitro-enclave board
# and what it selects (GICv3, virtio-mmio, vhost-user-vsock, NSM).  Used with
#   configure --without-default-devices \
#       --with-devices-aarch64=../../../nitro-overlay/configs/aarch64
# Without libcbor, gnutls or vhost-user QEMU builds, but has no such board.

CONFIG_NITRO_LOCAL=y
