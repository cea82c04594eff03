# SPDX-License-Identifier: MIT
"""An enclave's vsock as its parent sees it: sockets, pipes, parent programs, ports joined to others."""
