# SPDX-License-Identifier: MIT
"""What runs inside arm64 enclaves, for nitroctl: kernel, init and tools, no Python."""

__version__ = "0.1.0"  # nitroctl's own
