# SPDX-License-Identifier: MIT
"""What everything else stands on, and what knows nothing of enclaves: errors, processes, progress, text."""
