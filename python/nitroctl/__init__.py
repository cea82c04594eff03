# SPDX-License-Identifier: MIT
"""AWS Nitro Enclaves for local use.

The package's version, and nothing that costs time to import.
"""

__version__ = "0.1.0"
