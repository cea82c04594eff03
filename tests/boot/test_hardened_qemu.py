# SPDX-License-Identifier: MIT
"""The QEMU of the tree build is hardened. No guest is started."""

from __future__ import annotations

from nitroctl.toolchain import hardening, places


def test_the_trees_qemu() -> None:
    assert hardening.lacks(places.locate("qemu").resolve()) == []
