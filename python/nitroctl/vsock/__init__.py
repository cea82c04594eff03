# SPDX-License-Identifier: MIT
"""An enclave's vsock as seen from its parent: sockets, pipes, parent programs, and port forwarding."""
