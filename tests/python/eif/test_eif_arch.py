# SPDX-License-Identifier: MIT
"""Images of both architectures: which machine takes which, and what an arm64 kernel's header must say.

The package and the C core judge the same files; what is right is written down here, from AWS's specification
of the flags and Linux's Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eifmodel as model
import eifsigner as signer
from eifverdict import Core
from nitroctl.base.arch import ARCHES, Arch
from nitroctl.base.errors import EifError
from nitroctl.eif.boot import read_kernel
from nitroctl.eif.format import read_layout
from nitroctl.eif.measure import scan_fd
from nitroctl.eif.verify import judge

KERNELS = {"x86_64": model.bzimage(), "aarch64": model.arm64_image()}


@pytest.fixture(scope="module")
def cores() -> Iterator[dict[Arch | None, Core]]:
    """The C core for each machine, and for none in particular."""
    now = ("--now", str(int(signer.NOW.timestamp())))
    with (
        Core(*now) as any_machine,
        Core(*now, "--arch", "x86_64") as x86,
        Core(*now, "--arch", "aarch64", "--load") as arm,
    ):
        yield {None: any_machine, "x86_64": x86, "aarch64": arm}


def image(kernel: bytes, flags: int, cmdline: bytes = b"console=ttyS0") -> bytes:
    return model.pack([(model.KERNEL, kernel), (model.CMDLINE, cmdline), *model.TINY[2:]], flags=flags)


def package(data: bytes, machine: Arch | None = None) -> str:
    """The rule that a machine refuses the file by, or ok."""
    fd = os.memfd_create("eif")
    try:
        os.write(fd, data)
        read_layout(fd, len(data), only=machine)
        judge(scan_fd(fd, len(data)), signer.NOW)
    except EifError as e:
        return e.rule
    finally:
        os.close(fd)
    return "ok"


@given(flags=st.integers(0, 0xFFFF), kernel=st.sampled_from(ARCHES), machine=st.sampled_from((None, *ARCHES)))
def test_bit_0_of_the_flags_decides(
    cores: dict[Arch | None, Core], flags: int, kernel: Arch, machine: Arch | None
) -> None:
    data = image(KERNELS[kernel], flags)
    said = "aarch64" if flags % 2 else "x86_64"
    if machine not in (None, said):
        expected = "bad-arch"
    elif said == kernel:
        expected = "ok"
    else:
        expected = {"x86_64": "kernel-not-bzimage", "aarch64": "kernel-not-image"}[said]
    assert package(data, machine) == expected
    assert cores[machine].ask(data)[0] == expected


def test_the_flag_is_in_no_pcr(cores: dict[Arch | None, Core]) -> None:
    data = image(KERNELS["aarch64"], 1)
    parts = [(model.KERNEL, KERNELS["aarch64"]), (model.CMDLINE, b"console=ttyS0"), *model.TINY[2:]]
    assert cores["aarch64"].ask(data)[1:4] == list(model.measure(parts))


def arm_rule(kernel: bytes, cmdline: int) -> str:
    """What booting.rst lets a loader do with it."""
    if len(kernel) < 64 or kernel[56:60] != b"ARM\x64":
        return "kernel-not-image"
    text_offset, image_size = struct.unpack_from("<QQ", kernel, 8)
    if text_offset % 4096:
        return "kernel-text-offset"
    if image_size == 0:  # Linux before 3.17
        return "kernel-image-size"
    return "cmdline-too-long" if cmdline > 2047 else "ok"


NUMBERS = st.sampled_from((0, 1, 4095, 4096, 0x80000, 0x200000, 1 << 24, 1 << 40, 2**64 - 4096, 2**64 - 1))


@given(
    text_offset=NUMBERS | st.integers(0, 2**64 - 1),
    image_size=NUMBERS | st.integers(0, 2**64 - 1),
    poke=st.none() | st.tuples(st.integers(0, 63), st.integers(0, 255)),
    size=st.just(4096) | st.integers(0, 100),
    cmdline=st.sampled_from((0, 1, 2047, 2048)),
)
def test_headers_of_arm64_kernels(
    cores: dict[Arch | None, Core],
    text_offset: int,
    image_size: int,
    poke: tuple[int, int] | None,
    size: int,
    cmdline: int,
) -> None:
    kernel = bytearray(model.arm64_image(text_offset=text_offset, image_size=image_size))
    if poke:
        kernel[poke[0]] = poke[1]
    data = image(bytes(kernel[:size]), 1, b"x" * cmdline)
    expected = arm_rule(bytes(kernel[:size]), cmdline)
    assert package(data) == expected
    assert cores[None].ask(data)[0] == cores["aarch64"].ask(data)[0] == expected


def test_a_kernel_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    for offset, boots in ((0, False), (0x80000, True), (0x200000, True)):
        path.write_bytes(model.arm64_image(version="6.6.79-aws", text_offset=offset))
        info = read_kernel(path, "aarch64")
        assert (info.version, info.cmdline_size, info.text_offset) == ("6.6.79-aws", 2047, offset)
        assert info.boots_on_aws is boots
    path.write_bytes(model.arm64_image()[:100])
    assert read_kernel(path, "aarch64").version == "Unknown"
    for content, said in (
        (model.bzimage(), "it is an x86 bzImage"),
        (b"\x1f\x8b" + bytes(100), "like Image.gz"),
        (b"MZ\0\0zimg" + bytes(100), "EFI zboot"),
        (b"\x7fELF" + bytes(100), "not vmlinux"),
    ):
        path.write_bytes(content)
        with pytest.raises(EifError, match=said) as e:
            read_kernel(path, "aarch64")
        assert e.value.rule == "kernel-not-image"
    path.write_bytes(model.arm64_image())
    with pytest.raises(EifError, match="it is an arm64 Image"):
        read_kernel(path)
