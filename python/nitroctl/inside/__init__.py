# SPDX-License-Identifier: MIT
"""Inside a running enclave that was started with `--tools`: what its agent is asked for."""
