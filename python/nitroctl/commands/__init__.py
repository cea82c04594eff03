# SPDX-License-Identifier: MIT
"""One module per command: options and output only; the work is in the package's other modules."""
