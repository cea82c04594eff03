# SPDX-License-Identifier: MIT
"""A QEMU for nitroctl: programs, libraries and firmware, no Python. nitroctl finds it here."""

__version__ = "0.1.0"  # nitroctl's own
