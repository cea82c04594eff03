# SPDX-License-Identifier: MIT
"""What architectures are called."""

from __future__ import annotations

import pytest

from nitroctl.base import arch
from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x86_64", "x86_64"),
        ("x86-64", "x86_64"),
        ("amd64", "x86_64"),
        ("aarch64", "aarch64"),
        ("arm64", "aarch64"),
        ("riscv64", None),
        ("i686", None),
        ("armv7l", None),
        ("", None),
    ],
)
def test_names(name: str, expected: Arch | None) -> None:
    assert arch.named(name) == expected
    assert arch.host(name) == expected


def test_an_eifs_flags() -> None:
    """AWS's specification: bit 0 is the architecture, the others are reserved and not looked at."""
    assert [arch.of_flags(flags) for flags in (0, 1, 2, 3, 0xFFFE, 0xFFFF)] == [
        "x86_64", "aarch64", "x86_64", "aarch64", "x86_64", "aarch64",
    ]  # fmt: skip
    assert all(arch.of_flags(arch.facts(one).eif) == one for one in arch.ARCHES)


def test_tools_of_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert arch.default() == "aarch64"
    assert (arch.cross("aarch64"), arch.cross("x86_64")) == ("", "x86_64-linux-gnu-")
    assert arch.qemu("aarch64") == "qemu-system-aarch64"
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert arch.cross("aarch64") == "aarch64-linux-gnu-"
    with pytest.raises(NitroError, match="this host is riscv64, and enclaves are x86_64 or aarch64"):
        arch.default()
