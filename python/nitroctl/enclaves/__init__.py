# SPDX-License-Identifier: MIT
"""Enclaves that run: what was asked for, how it is started and watched, what is left of it."""
