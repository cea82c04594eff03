# SPDX-License-Identifier: MIT
"""The builder: AWS's vector byte for byte, any input against the model, nothing half-made, ever the same."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eifmodel as model
import nitroctl
from nitroctl.base.errors import EifError, NitroError, UsageError
from nitroctl.eif import measure
from nitroctl.eif.about import parse_metadata
from nitroctl.eif.boot import read_kernel
from nitroctl.eif.build import (
    Generated,
    Metadata,
    Parts,
    Sink,
    build,
    parse_build_time,
    read_custom_metadata,
)
from nitroctl.eif.output import replacing
from nitroctl.eif.verify import verify

TINY = Metadata("tiny", build_tool="t", build_tool_version="0", kernel_version="0.0")


def files(folder: Path, *contents: bytes) -> tuple[Path, ...]:
    paths = tuple(folder / f"part{i}" for i in range(len(contents)))
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def request(folder: Path, *ramdisks: bytes) -> Parts:
    kernel, *rest = files(folder, model.bzimage(), *ramdisks)
    return Parts(kernel, b"console=ttyS0", tuple(rest), TINY)


def test_the_vector(tmp_path: Path) -> None:
    """The published file of 871 bytes."""
    kernel, first, second = files(tmp_path, b"K" * 16, b"INITINIT", b"APPLAPPLAPPL")
    made = build(Parts(kernel, b"c", (first, second), TINY, check_kernel=False), tmp_path / "o.eif")
    assert (tmp_path / "o.eif").read_bytes() == model.pack(model.TINY)
    assert (made.size, made.warnings) == (871, ())
    assert tuple(value for _, value in made.measurements.items()) == model.TINY_PCRS


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.binary(max_size=300),
    st.binary(max_size=50).filter(lambda b: 0 not in b),
    st.lists(st.one_of(st.binary(max_size=20), st.binary(min_size=200, max_size=999)), max_size=6),
    st.sampled_from([1, 16, 100, 1 << 16]),
)
def test_any_parts(
    tmp_path_factory: pytest.TempPathFactory, kernel: bytes, cmdline: bytes, disks: list[bytes], chunk: int
) -> None:
    """Whatever the sizes of parts and buffers: the model's bytes and PCRs."""
    folder = tmp_path_factory.mktemp("any")
    path, *ramdisks = files(folder, kernel, *disks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure.Ring.__init__, "__defaults__", (chunk, 3))
        made = build(Parts(path, cmdline, tuple(ramdisks), TINY, check_kernel=False), folder / "o")
    parts = [(1, kernel), (2, cmdline), (5, model.TINY_METADATA), *((3, disk) for disk in disks)]
    assert (folder / "o").read_bytes() == model.pack(parts)
    assert tuple(value for _, value in made.measurements.items()) == model.measure(parts)


def test_pipes_and_generated_ramdisks(tmp_path: Path) -> None:
    """A ramdisk whose size nobody knows before it is written."""
    base = request(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    content = bytes(range(1, 256)) * 30000
    writer = threading.Thread(target=lambda: fifo.write_bytes(content))
    writer.start()

    def generate(sink: Sink) -> None:
        for i in range(1000):
            sink.write(b"%d" % i)

    made = build(replace(base, ramdisks=(fifo, Generated("numbers", generate))), tmp_path / "o")
    writer.join()
    numbers = b"".join(b"%d" % i for i in range(1000))
    parts = [(1, model.bzimage()), (2, b"console=ttyS0"), (5, TINY.to_json()), (3, content), (3, numbers)]
    assert (tmp_path / "o").read_bytes() == model.pack(parts)
    assert made.measurements == verify(tmp_path / "o")


def test_holes_stay_holes(tmp_path: Path) -> None:
    """A sparse ramdisk costs no disk, and measures like the zeros that it reads as."""
    (kernel,) = files(tmp_path, model.bzimage())
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as f:
        f.write(b"begin")
        f.seek(20 << 20)
        f.write(b"middle")
        f.truncate(40 << 20)
    content = sparse.read_bytes()
    build(Parts(kernel, b"c", (sparse, sparse), TINY), tmp_path / "o")
    parts = [(1, model.bzimage()), (2, b"c"), (5, TINY.to_json()), (3, content), (3, content)]
    assert (tmp_path / "o").read_bytes() == model.pack(parts)
    if sparse.stat().st_blocks * 512 < 1 << 20:  # the file system knows holes
        assert (tmp_path / "o").stat().st_blocks * 512 < 4 << 20


# ---- metadata ----


def test_metadata_has_awss_keys_in_awss_order() -> None:
    text = Metadata("n", "2", docker_info={"Id": "x"}, custom={"z": 1, "a": "ä"}).to_json()
    value = json.loads(text)
    assert list(value) == ["ImageName", "ImageVersion", "BuildMetadata", "DockerInfo", "CustomMetadata"]
    assert list(value["BuildMetadata"]) == [
        "BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion",
    ]  # fmt: skip
    assert text.endswith('"DockerInfo":{"Id":"x"},"CustomMetadata":{"a":"ä","z":1}}'.encode())


@pytest.mark.parametrize(
    "text, written",
    [
        ('{"z":1,"a":{"ä":[{"c":1,"b":2}],"Z":0}}', '{"a":{"Z":0,"ä":[{"b":2,"c":1}]},"z":1}'),
        ('{"😀":2, "\\uffee":1, "b":0}', '{"b":0,"\uffee":1,"😀":2}'),
        ("[1, 2.5, null]", "[1,2.5,null]"), ("7", "7"), ('"x"', '"x"'), ("null", "null"), ("{}", "{}"),
        ('{"a":1,"a":2}', '{"a":2}'), ("18446744073709551615", "18446744073709551615"), ("1e300", "1e+300"),
        ("[" * 126 + "]" * 126, "[" * 126 + "]" * 126),
    ],
)  # fmt: skip
def test_custom_metadata_are_any_json(tmp_path: Path, text: str, written: str) -> None:
    """Keys in the order of their bytes, as serde_json's maps have them."""
    (tmp_path / "m").write_text(text, "utf-8")
    custom = read_custom_metadata(tmp_path / "m")
    made = Metadata("n", custom=custom, docker_info={"b": {"d": 1, "c": 2}, "a": 3}).to_json()
    assert made.endswith(f'"DockerInfo":{{"a":3,"b":{{"c":2,"d":1}}}},"CustomMetadata":{written}}}'.encode())
    found, problem = parse_metadata(made)
    assert found is not None and found["CustomMetadata"] == json.loads(text), problem


NOT_JSON = [
    b'{"e":1e400}', b"-1e999", b"1" + b"0" * 400, b"NaN", b"[Infinity]", b'"\\ud800"', b"\xff",
    b'\xef\xbb\xbf{}', '{"a":1}'.encode("utf-16"), b"", b"{", b"{} {}", b"'a'", b"[" * 127 + b"]" * 127,
    b"[" * 4096,
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_JSON)
def test_custom_metadata_that_nobody_could_read(tmp_path: Path, text: bytes) -> None:
    """Python's own reader takes some of them."""
    (tmp_path / "m").write_bytes(text)
    with pytest.raises(NitroError, match="m: custom metadata must be JSON"):
        read_custom_metadata(tmp_path / "m")


@pytest.mark.parametrize(
    "epoch, text",
    [(None, "1970-01-01T00:00:00+00:00"), ("1720541798", "2024-07-09T16:16:38+00:00")],
)
def test_build_time(monkeypatch: pytest.MonkeyPatch, epoch: str | None, text: str) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    if epoch:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert json.loads(Metadata("n").to_json())["BuildMetadata"]["BuildTime"] == text


@pytest.mark.parametrize("epoch", ["yesterday", "", "1e9", "9" * 30])
def test_build_time_that_is_none(monkeypatch: pytest.MonkeyPatch, epoch: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        Metadata("n").to_json()


def test_given_build_times() -> None:
    awss = "2024-07-09T17:16:38.424202433+00:00"
    assert parse_build_time(awss) == awss
    assert parse_build_time("now").endswith("+00:00")
    for bad in ("2024-07-09T17:16:38", "2024-07-09", "x"):
        with pytest.raises(UsageError):
            parse_build_time(bad)


# ---- the kernel ----


def test_kernel_says_its_version(tmp_path: Path) -> None:
    (kernel,) = files(tmp_path, model.bzimage(version="6.12.1-x", cmdline_size=255))
    info = read_kernel(kernel)
    assert (info.version, info.cmdline_size) == ("6.12.1-x", 255)


NO_BZIMAGES = [
    b"", b"K" * 16, b"\x7fELF" + bytes(4096), model.bzimage()[:0x263], model.bzimage(protocol=0x209),
]  # fmt: skip


@pytest.mark.parametrize("content", NO_BZIMAGES)
def test_what_is_no_bzimage(tmp_path: Path, content: bytes) -> None:
    (kernel,) = files(tmp_path, content)
    with pytest.raises(EifError) as e:
        build(Parts(kernel, b"c", (), TINY), tmp_path / "o")
    assert e.value.rule == "kernel-not-bzimage" and str(kernel) in str(e.value)


def test_command_line_limits(tmp_path: Path) -> None:
    (kernel,) = files(tmp_path, model.bzimage(cmdline_size=20))
    build(Parts(kernel, b"x" * 20, (), TINY), tmp_path / "o")
    for cmdline, rule in ((b"x" * 21, "cmdline-too-long"), (b"a\0b", "cmdline-nul")):
        with pytest.raises(EifError) as e:
            build(Parts(kernel, cmdline, (), TINY), tmp_path / "new")
        assert e.value.rule == rule
    assert not (tmp_path / "new").exists()


# ---- ramdisks ----


def test_as_many_ramdisks_as_fit(tmp_path: Path) -> None:
    """32 sections, of which three are others' and one is kept for a signature."""
    base = request(tmp_path, b"x")
    build(replace(base, ramdisks=base.ramdisks * 28), tmp_path / "o")
    assert verify(tmp_path / "o")
    with pytest.raises(UsageError, match="29 ramdisks.*28"):
        build(replace(base, ramdisks=base.ramdisks * 29), tmp_path / "new")


def test_a_ramdisk_that_the_kernel_would_not_find(tmp_path: Path) -> None:
    """An uncompressed archive must begin at a multiple of four; a compressed one need not."""
    archive = b"070701" + bytes(106)
    assert build(request(tmp_path, archive, archive), tmp_path / "o").warnings == ()
    assert build(request(tmp_path, archive + b"x", b"\x1f\x8b gzip"), tmp_path / "o").warnings == ()
    (warning,) = build(request(tmp_path, archive + b"x", archive), tmp_path / "o").warnings
    assert "part2" in warning and "byte 113" in warning


def test_no_ramdisk_is_a_warning(tmp_path: Path) -> None:
    (warning,) = build(request(tmp_path), tmp_path / "o").warnings
    assert "no ramdisk" in warning


# ---- output ----


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_output_replaces_and_obeys_umask(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "o.eif").write_bytes(b"old")
    (out / "o.eif").chmod(0o600)
    (out / "link.eif").symlink_to("o.eif")
    old = os.umask(0o027)
    try:
        build(request(tmp_path, b"disk"), out / "link.eif")
    finally:
        os.umask(old)
    assert left(out) == ["link.eif", "o.eif"]
    assert (out / "link.eif").is_symlink()
    assert stat.S_IMODE((out / "o.eif").stat().st_mode) == 0o640
    assert verify(out / "o.eif")


def test_output_over_its_own_input(tmp_path: Path) -> None:
    base = request(tmp_path, b"disk")
    made = build(base, base.kernel)
    assert verify(base.kernel) == made.measurements


@pytest.mark.parametrize("kind", ["folder", "fifo", "no folder", "device"])
def test_where_no_output_can_be(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "sub" / "o" if kind == "no folder" else tmp_path / "o"
    if kind == "folder":
        out.mkdir()
    elif kind == "fifo":
        os.mkfifo(out)
    elif kind == "device":
        out = Path("/dev/null")
    with pytest.raises(NitroError, match="cannot write"):
        build(request(tmp_path, b"disk"), out)
    assert kind != "device" or stat.S_ISCHR(out.stat().st_mode)
    assert not (tmp_path / "sub").exists()


def test_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that have no O_TMPFILE: the same file, and nothing left on failure."""
    monkeypatch.delattr(os, "O_TMPFILE")
    out = tmp_path / "out"
    out.mkdir()
    base = request(tmp_path, b"disk")
    build(base, out / "o.eif")
    assert verify(out / "o.eif")

    def fail(sink: Sink) -> None:
        assert len(left(out)) == 2, "it is written aside"
        raise NitroError("no more")

    with pytest.raises(NitroError, match="no more"):
        build(replace(base, ramdisks=(Generated("x", fail),)), out / "o.eif")
    assert left(out) == ["o.eif"] and verify(out / "o.eif")


@pytest.mark.parametrize("what", ["missing kernel", "missing ramdisk", "folder", "shrunk"])
def test_inputs_that_fail(tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    base = request(tmp_path, b"disk")
    if what == "missing kernel":
        base = replace(base, kernel=tmp_path / "gone")
    elif what == "missing ramdisk":
        base = replace(base, ramdisks=(tmp_path / "gone",))
    elif what == "folder":
        base = replace(base, ramdisks=(out,))
    else:
        shrinking = base.ramdisks[0]
        assert isinstance(shrinking, Path)
        os.truncate(shrinking, 1 << 20)

        def shrink(sink: Sink) -> None:
            os.truncate(shrinking, 10)

        base = replace(base, ramdisks=(Generated("first", shrink), shrinking))
    with pytest.raises(NitroError, match={"folder": "directory", "shrunk": "shorter"}.get(what, "gone")):
        build(base, out / "o.eif")
    assert left(out) == []


CHILD = """
import sys
from pathlib import Path
from nitroctl.eif.build import Parts, Metadata, build
from nitroctl.base.errors import NitroError
kernel, ramdisk, out = map(Path, sys.argv[1:])
try:
    build(Parts(kernel, b"c", (ramdisk,), Metadata("n")), out)
except NitroError as e:
    sys.exit(str(e))
"""


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_while_it_writes(tmp_path: Path, sig: signal.Signals) -> None:
    """Whatever ends it: the old file stands, and nothing lies beside it."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "o.eif").write_bytes(b"old")
    kernel, fifo = request(tmp_path).kernel, tmp_path / "fifo"
    os.mkfifo(fifo)
    argv = [sys.executable, "-c", CHILD, *map(os.fspath, (kernel, fifo, out / "o.eif"))]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as child:
        with open(fifo, "wb", buffering=0) as f:
            # More than the pipe and the buffers hold: when this returns, some has been written out.
            f.write(bytes(20 << 20))
            child.send_signal(sig)
            assert child.wait(60) != 0
    assert left(out) == ["o.eif"]
    assert (out / "o.eif").read_bytes() == b"old"


def test_what_is_no_file_cannot_be_the_output(tmp_path: Path) -> None:
    """A folder, a device, a pipe as /dev/stdout is one."""
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb"):
        for path in (tmp_path, Path("/dev/null"), Path(f"/proc/self/fd/{writer}")):
            with pytest.raises(NitroError, match="it exists and is not a regular file"), replacing(path):
                pytest.fail("it was opened")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path) -> None:
    """The write fails half-way (a limit on file sizes stands for the disk): an error, and nothing is left."""
    out = tmp_path / "out"
    out.mkdir()
    kernel, ramdisk = files(tmp_path, model.bzimage(), bytes(b"x" * (8 << 20)))
    limit = 4 << 20
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kernel, ramdisk, out / "o.eif"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert f"cannot write {out / 'o.eif'}: File too large" in done.stderr
    assert left(out) == []


# ---- reproducible, and small ----


def test_the_same_bytes_anywhere(tmp_path: Path) -> None:
    """Another umask, zone, language, folder and order of options: the same file."""
    kernel, first, second = files(tmp_path, model.bzimage(), b"disk", b"app")
    parts = [["--kernel", str(kernel)], ["--cmdline", "a=b c"], ["--name", "n"], ["--version", "7"]]
    disks = [["--ramdisk", str(first)], ["--ramdisk", str(second)]]
    environments = [
        ({"TZ": "UTC", "LC_ALL": "C"}, 0o022, tmp_path, [*parts, *disks]),
        ({"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8"}, 0o077, Path("/"), [*disks, *reversed(parts)]),
        ({"TZ": "America/St_Johns", "LANG": "de_DE.UTF-8", "HOME": "/none"}, 0, tmp_path, parts + disks),
    ]
    made = set()
    for i, (environment, umask, cwd, options) in enumerate(environments):
        out = tmp_path / f"{i}.eif"
        argv = [sys.executable, "-m", "nitroctl", "eif", "build", *sum(options, []), "-o", str(out)]
        environment |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(nitroctl.__file__).parents[1])}
        done = subprocess.run(argv, env=environment, umask=umask, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.add(out.read_bytes())
    assert len(made) == 1


PEAK = r"""
import re, sys
from pathlib import Path
from nitroctl.base import progress
from nitroctl.eif.build import Parts, Metadata, build
kernel, ramdisk, out = map(Path, sys.argv[1:])
with progress.quiet():
    print(build(Parts(kernel, b"c", (ramdisk, ramdisk), Metadata("n")), out).size)
print(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_ramdisks(tmp_path: Path) -> None:
    """Two ramdisks of 192 MiB, mostly holes: under 64 MiB of memory."""
    (kernel,) = files(tmp_path, model.bzimage())
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as f:
        f.write(os.urandom(8 << 20))
        f.truncate(192 << 20)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, kernel, sparse, tmp_path / "o"],
        capture_output=True,
        text=True,
        check=True,
    )
    size, peak = map(int, done.stdout.split())
    assert size > 2 * (192 << 20)
    assert peak < 64 << 10, f"{peak} KiB"
