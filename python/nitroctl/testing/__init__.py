# SPDX-License-Identifier: MIT
"""The laboratory: guests to look at from outside, the agent within, the checks that boot them."""
