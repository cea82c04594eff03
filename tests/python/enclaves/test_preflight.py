# SPDX-License-Identifier: MIT
"""What is refused before anything starts, rule by rule, and what a look at an EIF costs. No process runs."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import eifmodel as model
import eifsigner as signer
from enclave_fakes import write_eif
from nitroctl.base.errors import EifError, EnclaveError, NitroError, UsageError
from nitroctl.enclaves import preflight
from nitroctl.enclaves.plan import make_plan
from nitroctl.enclaves.preflight import Host, MemoryRefused, check
from nitroctl.enclaves.request import RunRequest

TRUE = Path("/bin/true")
ROOMY = Host(available_mib=1 << 20, cpus=256)
MIB = 1 << 20


def request(eif: Path, **more: Any) -> RunRequest:
    programs = {"qemu": TRUE, "vsock_backend": TRUE, "accel": "tcg"}
    return RunRequest(eif, **{**programs, **more})


@pytest.fixture
def eif(tmp_path: Path) -> Path:
    return write_eif(tmp_path / "hello.eif")


def sections(
    kernel: bytes = model.bzimage(), cmdline: bytes = b"console=ttyS0", *more: tuple[int, bytes]
) -> list[tuple[int, bytes]]:
    return [(model.KERNEL, kernel), (model.CMDLINE, cmdline), (model.METADATA, model.TINY_METADATA), *more]


def sparse(path: Path, size: int) -> Path:
    """An EIF of `size` bytes, its last section a ramdisk that is one hole. Its checksum is wrong."""
    head = model.pack(sections(model.bzimage(), b"c", (model.RAMDISK, b"")))
    count, length = 4, size - len(head)
    patched = bytearray(head)
    struct.pack_into(">Q", patched, 284 + 8 * (count - 1), length)
    struct.pack_into(">Q", patched, len(head) - 8, length)
    path.write_bytes(patched)
    os.truncate(path, size)
    return path


# ---- values


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cid": 0}, "context ID 0 is reserved; use one from 4"),
        ({"cid": 1}, "context ID 1 is reserved"),
        ({"cid": 2}, "context ID 2 is reserved"),
        ({"cid": 3}, "context ID 3 is reserved"),
        ({"cid": 0xFFFFFFFF}, "context ID 4294967295 is reserved"),
        ({"cid": 1 << 32}, "context ID 4294967296 is reserved"),
        ({"cid": -1}, "context ID -1 is reserved"),
        ({"cpus": 0}, "0 CPUs are too few; an enclave has at least 1"),
        ({"cpus": -1}, "-1 CPUs are too few"),
        ({"cpus": 256}, "256 CPUs are too many; .* at most 255"),
        ({"cpus": 255}, r"255 CPUs are too many: the machine of this image \(x86_64\) has at most 254"),
        ({"name": ""}, "1 to 255"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "a\0b"}, "printable"),
        ({"name": "a" * 256}, "1 to 255"),
        ({"boot_timeout": 0.0}, "boot timeout of 0 s"),
        ({"boot_timeout": -1.0}, "boot timeout of -1 s"),
        ({"boot_timeout": float("nan")}, "boot timeout of nan s"),
        ({"boot_timeout": float("inf")}, "boot timeout of inf s is no limit"),
        ({"ca_days": 0}, "certificates for 0 days cannot be had; 1 to "),
        ({"instance_id": ""}, "the instance ID '' must have 1 to 79"),
        ({"instance_id": "i" * 80}, "1 to 79 characters"),
        ({"instance_id": "i 1"}, "without spaces"),
        ({"role": "arn:é"}, "the role 'arn:é' must have 1 to 1024"),
        ({"role": "a" * 1025}, "the role 'a{80}' must have 1 to 1024"),
        ({"append": "a\0b"}, "not printable"),
        ({"append": "a\nb"}, "not printable"),
        ({"memory": 0}, "0 MiB of memory are too little; an enclave has at least 64 MiB"),
        ({"memory": 63}, "63 MiB of memory are too little"),
        ({"memory": 63, "memory_check": False}, "at least 64 MiB"),
    ],
)
def test_requests_refused(eif: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        check(request(eif, **more))
    assert error.value.exit_status == 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        {"cid": 4}, {"cid": 0xFFFFFFFE}, {"cpus": 1}, {"cpus": 254}, {"name": "a" * 255}, {"memory": 64},
        {"instance_id": "i" * 79}, {"role": "a" * 1024}, {"append": "quiet a=é"}, {"boot_timeout": 0.1},
    ],
)  # fmt: skip
def test_the_last_values_that_are_good(eif: Path, more: dict[str, Any]) -> None:
    assert check(request(eif, **more), host=ROOMY).notes == ()


# ---- memory


@pytest.mark.parametrize(
    ("size", "refused", "granted", "needed"),
    [
        (100 * MIB, 399, 400, 400),
        (100 * MIB + 1, 400, 401, 404),  # nitro-cli's message rounds the EIF up to whole MiB first
        (17 * MIB, 67, 68, 68),
    ],
)
def test_memory_is_four_times_the_eif(
    tmp_path: Path, size: int, refused: int, granted: int, needed: int
) -> None:
    eif = sparse(tmp_path / "x.eif", size)
    message = f"^{refused} MiB of memory .* 4 times its size, {needed} MiB"
    with pytest.raises(MemoryRefused, match=message) as error:
        check(request(eif, memory=refused))
    assert error.value.hint and f"--memory {needed}" in error.value.hint
    assert "--no-memory-check" in error.value.hint
    assert check(request(eif, memory=granted)).memory_mib == granted
    assert check(request(eif, memory=refused, memory_check=False)).memory_mib == refused


def test_the_default_memory_passes_its_own_rule(tmp_path: Path) -> None:
    for size in (200 * MIB - 1, 200 * MIB, 200 * MIB + 1):
        assert check(request(sparse(tmp_path / "x.eif", size))).memory_mib >= 4 * size / MIB


def test_more_than_the_host_has_is_a_note(eif: Path) -> None:
    host = Host(available_mib=1000, cpus=2)
    assert check(request(eif, memory=1000, cpus=2), host=host).notes == ()
    notes = check(request(eif, memory=1001, cpus=3), host=host).notes
    assert len(notes) == 2
    assert "1001 MiB" in notes[0] and "1000 MiB" in notes[0]
    assert notes[1].startswith("3 virtual CPUs share the 2")
    assert check(request(eif, memory=1 << 20), host=Host(None, 1)).notes == ()


@pytest.mark.parametrize(
    ("text", "available"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    2048 kB\n", 2), ("MemTotal: 9 kB\n", None), ("", None),
        ("MemAvailable:\n", None), ("MemAvailable: lots\n", None), ("MemAvailable: \udcff kB\n", None),
    ],
)  # fmt: skip
def test_the_hosts_memory(tmp_path: Path, text: str, available: int | None) -> None:
    (tmp_path / "meminfo").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert Host.here(tmp_path / "meminfo").available_mib == available
    assert Host.here(tmp_path / "absent").available_mib is None
    real = Host.here()
    assert real.available_mib and real.cpus == len(os.sched_getaffinity(0))


# ---- programs


@pytest.mark.parametrize(("field", "name"), [("qemu", "QEMU"), ("vsock_backend", "the vsock backend")])
def test_programs_that_cannot_be_started(eif: Path, tmp_path: Path, field: str, name: str) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    plain.chmod(0o644)
    for path, why, hint in (
        (tmp_path / "absent", "No such file or directory", "nitroctl build"),
        (plain, "not executable", f"chmod +x {plain}"),
        (tmp_path, "is a folder", "name the program"),
    ):
        with pytest.raises(EnclaveError, match=f"cannot start {name}: {path}: .*{why}") as error:
            check(request(eif, **{field: path}))
        assert error.value.hint and hint in error.value.hint
    check(request(eif, **{field: Path("true")}))  # looked up in PATH, as it will be


# ---- the EIF


def broken(change: Callable[[bytearray], object]) -> bytes:
    data = bytearray(model.pack(sections()))
    change(data)
    return bytes(data)


def put(at: int, data: bytes) -> Callable[[bytearray], object]:
    return lambda file: file.__setitem__(slice(at, at + len(data)), data)


BROKEN: list[tuple[str, bytes]] = [
    ("file-too-short", b".eif"),
    ("bad-magic", broken(put(0, b"\x7fELF"))),
    ("bad-version", broken(put(4, b"\0\5"))),
    ("kernel-not-image", broken(put(6, b"\0\1"))),  # an x86 kernel, and the flag for aarch64
    ("section-count", broken(put(26, b"\0\1"))),
    ("section-offset", broken(put(28, bytes(8)))),
    ("section-beyond-file", broken(put(284 + 16, b"\xff" * 8))),
    ("trailing-bytes", model.pack(sections()) + b"x"),
    ("section-size-mismatch", broken(put(548 + 4, bytes(8)))),
    ("section-type", broken(put(548, b"\0\6"))),
    ("duplicate-kernel", model.pack([*sections(), (model.KERNEL, b"")])),
    ("ramdisk-before-kernel", model.pack([(model.RAMDISK, b""), *sections()])),
    ("signature-too-large", model.pack(sections(model.bzimage(), b"c", (model.SIGNATURE, bytes(32769))))),
    ("no-kernel", model.pack(sections()[1:])),
    ("no-cmdline", model.pack([sections()[0], sections()[2]])),
    ("no-metadata", model.pack(sections()[:2])),
    ("cmdline-nul", model.pack(sections(model.bzimage(), b"a\0b"))),
    ("kernel-not-bzimage", model.pack(sections(b"\x7fELF" * 1000))),
    ("kernel-not-bzimage", model.pack(sections(b""))),
    ("kernel-setup-size", model.pack(sections(model.bzimage()[:0xA00]))),
    ("cmdline-too-long", model.pack(sections(model.bzimage(cmdline_size=100), b"x" * 101))),
    ("cmdline-too-long", model.pack(sections(model.bzimage(), b"x" * 65537))),
]


@pytest.mark.parametrize(("rule", "data"), BROKEN, ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(BROKEN)])
def test_eifs_refused(tmp_path: Path, rule: str, data: bytes) -> None:
    (tmp_path / "x.eif").write_bytes(data)
    with pytest.raises(EifError) as error:
        check(request(tmp_path / "x.eif"))
    assert error.value.rule == rule
    assert str(tmp_path / "x.eif") in str(error.value)


def test_an_eif_for_arm64(tmp_path: Path) -> None:
    """Its devices are in a tree, and take nothing of the command line's 2047 bytes; a kernel that AWS
    would put where it cannot run is told, as is no other."""
    eif = tmp_path / "x.eif"
    for offset, told in ((0x200000, []), (0x80000, []), (0, ["text_offset is 0"])):
        kernel = model.arm64_image(text_offset=offset)
        eif.write_bytes(model.pack(sections(kernel, b"x" * 2047), flags=1))
        notes = check(request(eif)).notes
        assert len(notes) == len(told) and all(word in note for word, note in zip(told, notes, strict=True))
    with pytest.raises(EifError, match="cmdline-too-long"):
        check(request(eif, append="y"))


def test_cpus_by_machine(tmp_path: Path) -> None:
    """128 redistributors of arm64's interrupt controller have room; with ACPI x86 has no MP table's limit."""
    with_acpi = write_eif(tmp_path / "a.eif", {"nitroctl": {"acpi": True}})
    assert check(request(with_acpi, cpus=255), host=ROOMY).notes == ()
    arm64 = tmp_path / "x.eif"
    arm64.write_bytes(model.pack(sections(model.arm64_image(text_offset=0x200000), b"x"), flags=1))
    assert check(request(arm64, cpus=128), host=ROOMY).notes == ()
    with pytest.raises(UsageError, match=r"129 CPUs are too many: .* \(aarch64\) has at most 128"):
        check(request(arm64, cpus=129))


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(EifError) as error:
            check(request(path))
        assert error.value.rule == "io"


def test_the_command_line_counts_with_all_that_is_added(tmp_path: Path) -> None:
    """The loader's sum: the EIF's, -append with its space, two virtio_mmio.device entries."""
    entries = len(" virtio_mmio.device=512@0xfeb00000:5 virtio_mmio.device=512@0xfeb00200:6")
    eif = tmp_path / "x.eif"
    eif.write_bytes(model.pack(sections(model.bzimage(cmdline_size=200), b"x" * (200 - entries))))
    check(request(eif))
    with pytest.raises(EifError, match="cmdline-too-long"):
        check(request(eif, append="y"))
    eif.write_bytes(model.pack(sections(model.bzimage(cmdline_size=200), b"x" * (200 - entries - 5))))
    check(request(eif, append="yyyy"))
    with pytest.raises(EifError, match="cmdline-too-long"):
        check(request(eif, append="yyyyy"))


def test_the_cost_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """4 GiB, of which next to nothing is read: counted by the kernel, not by us."""

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])

    eif = sparse(tmp_path / "x.eif", 4 << 30)
    host = Host.here()
    before = bytes_read()
    enclave_size = check(request(eif), host=host).eif.size
    assert bytes_read() - before < 100_000
    assert enclave_size == 4 << 30


# ---- signatures


def signed(path: Path, **spoiled: Any) -> Path:
    plain = sections()
    section = signer.section(bytes.fromhex(model.measure(plain)[0]), **spoiled)
    path.write_bytes(model.pack([*plain, (model.SIGNATURE, section)]))
    return path


def test_a_good_signature(tmp_path: Path) -> None:
    check(request(signed(tmp_path / "x.eif")), now=signer.NOW)


@pytest.mark.parametrize(
    ("rule", "now", "spoiled"),
    [
        ("signature-malformed", signer.NOW, {"cose": b"\xff"}),
        ("signature-certificate", signer.NOW, {"certificate_pem": b"no PEM"}),
        ("signature-invalid", signer.NOW, {"signing_key": "other"}),
        ("signature-index", signer.NOW, {"index": 1}),
        ("signature-not-yet-valid", signer.BEGIN - timedelta(seconds=1), {}),
        ("signature-expired", signer.END + timedelta(seconds=1), {}),
    ],
)
def test_bad_signatures(tmp_path: Path, rule: str, now: Any, spoiled: dict[str, Any]) -> None:
    eif = signed(tmp_path / "x.eif", **spoiled)
    with pytest.raises(EifError) as error:
        check(request(eif), now=now)
    assert error.value.rule == rule
    assert error.value.hint and "--ignore-signature" in error.value.hint
    check(request(eif, ignore_signature=True), now=now)


def test_whether_the_signature_is_over_this_image_is_the_loaders_to_say(tmp_path: Path) -> None:
    """It takes the whole file; nitro-cli leaves it to the hypervisor as well."""
    check(request(signed(tmp_path / "x.eif", value=[0] * 48)), now=signer.NOW)


def test_the_plan_has_what_was_found(eif: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.Host, "here", staticmethod(lambda: Host(available_mib=10, cpus=1)))
    plan = make_plan(request(eif, cpus=2))
    assert plan.memory_mib == 512
    assert [note.split()[0] for note in plan.notes] == ["the", "2"]
    with pytest.raises(NitroError):
        make_plan(request(eif, cpus=0))
