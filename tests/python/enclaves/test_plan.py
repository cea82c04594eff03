# SPDX-License-Identifier: MIT
"""What an enclave is planned to be: the defaults, and what the EIF decides. No process is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enclave_fakes import write_eif
from nitroctl.base.errors import (
    EifError,
)
from nitroctl.enclaves.plan import default_boot_timeout, default_name, make_plan
from nitroctl.enclaves.request import RunRequest

GIB = 1 << 30
TRUE = Path("/bin/true")  # an executable that stands for QEMU and the backend


def request(eif: Path) -> RunRequest:
    return RunRequest(eif, qemu=TRUE, vsock_backend=TRUE, accel="tcg")


@pytest.fixture
def eif(tmp_path: Path) -> Path:
    return write_eif(tmp_path / "hello.eif")


def test_defaults(eif: Path) -> None:
    plan = make_plan(request(eif))
    asked = plan.request
    assert (plan.name, plan.memory_mib, asked.cpus, asked.cid) == ("hello", 512, 1, None)
    assert asked.instance_id == "i-0000000000000000"  # 16 zeros: PCR4 is the same on every machine
    assert asked.role is None
    assert plan.boot_timeout == 180
    assert plan.acpi is False


@pytest.mark.parametrize(
    ("size", "memory", "seconds"),
    [
        # nitro-cli's own checks of its rule, then its borders.
        (2 * GIB, 32 * GIB, 180), (10 * GIB, 32 * GIB, 270), (10 * GIB, 128 * GIB, 360),
        (1, 1, 180), (6 * GIB, 100 * GIB, 180), (6 * GIB + 1, 100 * GIB, 270), (6 * GIB, 100 * GIB + 1, 270),
    ],
)  # fmt: skip
def test_boot_timeout_is_nitro_clis(size: int, memory: int, seconds: float) -> None:
    assert default_boot_timeout(size, memory) == seconds


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("hello.eif", "hello"), ("a.eif.eif", "a"), ("hello", "hello"), ("a.eif.bin", "a.eif.bin"),
        (".eif", ".eif"), ("my app (1), über.eif", "my app (1), über"), ("a\nb\x1b[2J.eif", "a?b?[2J"),
        (os.fsdecode(b"\xff.eif"), "?"),
    ],
)  # fmt: skip
def test_default_name(file: str, name: str) -> None:
    assert default_name(Path("/x") / file) == name


def test_no_file_and_no_eif(tmp_path: Path) -> None:
    with pytest.raises(EifError, match=r"absent\.eif.*No such file") as error:
        make_plan(request(tmp_path / "absent.eif"))
    assert error.value.rule == "io"
    (tmp_path / "x.eif").write_bytes(b"MZ" * 400)
    with pytest.raises(EifError) as error:
        make_plan(request(tmp_path / "x.eif"))
    assert error.value.rule == "bad-magic"


@pytest.mark.parametrize(
    ("custom", "acpi"),
    [
        ({"nitroctl": {"acpi": True}}, True),
        ({"nitroctl": {"acpi": False}}, False),
        ({"nitroctl": {"acpi": 1}}, False),
        ({"nitroctl": [True]}, False),
        ({"acpi": True}, False),
        (None, False),
    ],
)
def test_a_kernel_that_needs_acpi_says_so_in_the_metadata(tmp_path: Path, custom: object, acpi: bool) -> None:
    assert make_plan(request(write_eif(tmp_path / "x.eif", custom))).acpi is acpi


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        (["TIOCSTI", "bpf()"], ["this image's kernel lacks, of what AWS's has: TIOCSTI, bpf()"]),
        ([1, "a", None], ["this image's kernel lacks, of what AWS's has: a"]),  # not ours, then
        ("TIOCSTI", []),
        ([], []),
    ],
)
def test_what_the_kernel_lacks_is_a_note(tmp_path: Path, lacks: object, said: list[str]) -> None:
    plan = make_plan(request(write_eif(tmp_path / "x.eif", {"nitroctl": {"lacks": lacks}})))
    assert [note for note in plan.notes if "lacks" in note] == said
