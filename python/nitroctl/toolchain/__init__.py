# SPDX-License-Identifier: MIT
"""Programs and kernels that have to be there: fetched, built, cached, found."""
