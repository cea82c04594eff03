# SPDX-License-Identifier: MIT
"""`nitroctl eif ...` as a program, on files from strangers: damaged EIFs, hostile container images.

Whatever the input, a command ends with a status; where that is not zero, with one line that says what is
wrong with which file; never with a traceback, never with a file other than its output, and never with much
memory. Which rule is broken is judged elsewhere (`test_eif_core.py`). NITROCTL_FUZZ_ROUNDS=20 makes it run
for longer, NITROCTL_FUZZ_SEED with other damage.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import os
import random
import re
import resource
import struct
import subprocess
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard

import eifmodel as model
import eifsigner as signer
import imagemodel as im
from cpiomade import archive
from nitroctl.base.instants import UTC
from nitroctl.cli import main
from nitroctl.eif import cpio

ROUNDS = int(os.environ.get("NITROCTL_FUZZ_ROUNDS", "1"))
SEED = int(os.environ.get("NITROCTL_FUZZ_SEED", "1"))
NOW = datetime.now(UTC)


class World:
    """A folder with good inputs, a place for hostile ones, and an eye on every name in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hostile = folder / "hostile"
        self.output = folder / "made"
        im.folder(
            folder,
            {
                "good.eif": GOOD,
                "blobs/bzImage": model.bzimage(),
                "blobs/init": b"init",
                "blobs/cmdline": b"quiet\n",
                "cert.pem": CERTIFICATE,
                "key.pem": signer.key_pem("P-384"),
            },
        )
        self._names = self._seen()

    def _seen(self) -> set[str]:
        return {str(p) for p in self.folder.rglob("*")} - {str(self.hostile)}

    def run(self, *argv: str | Path) -> int:
        """Run the command in this process and judge how it ends."""
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(["eif", *map(str, argv)])
        except SystemExit as e:
            status = e.code
        except BaseException:
            pytest.fail(f"{argv}: {traceback.format_exc()}")
        assert isinstance(status, int)
        self.judge(status, err.getvalue(), argv)
        return status

    def judge(self, status: int, err: str, argv: tuple[str | Path, ...]) -> None:
        made = self._seen() - self._names
        if argv[0] in ("diff", "lint") and status == 1:
            status = 0  # the files differ; there are findings
        if status:
            assert not made, f"{argv} left {made}"
            errors = [line for line in err.splitlines() if not re.match("warning: |hint: |[A-Z].*", line)]
            assert len(errors) == 1 and errors[0].startswith("error: "), f"{argv}: {err}"
            assert self.hostile.name in errors[0], f"{argv} does not name the file: {err}"
            assert "NITROCTL_DEBUG" not in err, f"{argv}: {err}"
        else:
            inside = (str(self.output), f"{self.output}/")
            assert all(name == inside[0] or name.startswith(inside[1]) for name in made), (argv, made)
        assert all(c == "\n" or c.isprintable() for c in err), ascii(err)
        if self.output.is_dir():
            for path in self.output.iterdir():
                path.unlink()
            self.output.rmdir()
        self.output.unlink(missing_ok=True)

    def eif(self, data: bytes, which: int) -> int:
        """One of the commands that read an EIF, on these bytes."""
        bad, out = self.hostile, self.output
        bad.write_bytes(data)
        sign = ("--signing-certificate", self.folder / "cert.pem", "--private-key", self.folder / "key.pem")
        commands: list[tuple[str | Path, ...]] = [
            ("describe", bad),
            ("describe", "--json", bad),
            ("verify", bad),
            ("extract", bad, "-C", out),
            ("diff", self.folder / "good.eif", bad),
            ("diff", bad, self.folder / "good.eif"),
            ("sign", bad, *sign, "-o", out),
            ("lint", bad),
        ]
        return self.run(*commands[which % len(commands)])

    def image(self, path: Path | None = None) -> int:
        blobs = self.folder / "blobs"
        given = ("--image", path or self.hostile, "--allow-missing-program", "--blobs", blobs)
        return self.run("build", *given, "-o", self.output)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ---- EIFs ----

DISKS = (
    archive([cpio.directory("dev"), cpio.file("init", b"#!")]),
    gzip.compress(
        archive([cpio.directory("rootfs"), cpio.symlink("rootfs/l", "x"), cpio.file("cmd", b"a\n")])
    ),
)
PARTS = [(model.KERNEL, model.bzimage()), *model.TINY[1:3], *((model.RAMDISK, disk) for disk in DISKS)]
PCR0 = bytes.fromhex(model.measure(PARTS)[0])
DATES = {"begin": NOW - timedelta(days=1), "end": NOW + timedelta(days=1)}
CERTIFICATE = signer.pem("P-384", **DATES)
SIGNATURE = (model.SIGNATURE, signer.section(PCR0, "P-384", certificate_pem=CERTIFICATE))
GOOD = model.pack([*PARTS, SIGNATURE])
NUMBERS = [0, 1, 2, 4, 5, 32, 33, 547, 548, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed, repeated, or a number replaced; or cut off."""
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(mutant) or 1)
        match rng.randrange(7):
            case 0 | 1 if mutant:
                mutant[at] ^= 1 << rng.randrange(8)
            case 2:
                mutant[at : at + 1] = rng.randbytes(rng.randrange(4))
            case 3:
                del mutant[at : at + rng.choice((1, 4, 12, 100, 512))]
            case 4:
                mutant[at:at] = mutant[at : at + rng.choice((1, 4, 12, 100, 512))]
            case 5:
                size, form = rng.choice(((2, ">H"), (4, ">I"), (8, ">Q")))
                if at + size <= len(mutant):
                    struct.pack_into(form, mutant, at, rng.choice(NUMBERS) % (1 << 8 * size))
            case 6 if rng.random() < 0.1:
                del mutant[at:]
    return bytes(mutant)


def hostile_metadata(rng: random.Random) -> bytes:
    return hostile_json(model.TINY_METADATA, rng)


def test_damaged_eifs(world: World) -> None:
    """Damage anywhere, with the checksum made right half of the time; then within one section."""
    rng = random.Random(SEED)
    statuses = set()
    for i in range(350 * ROUNDS):
        mutant = damaged(GOOD, rng)
        statuses.add(world.eif(model.with_crc(mutant) if i % 2 else mutant, i // 2))
    for i in range(350 * ROUNDS):
        parts = [*PARTS, SIGNATURE]
        at = rng.randrange(len(parts))
        type, content = parts[at]
        if type == model.METADATA and rng.random() < 0.7:
            content = hostile_metadata(rng)
        elif type == model.RAMDISK and rng.random() < 0.5:
            content = gzip.compress(damaged(DISKS[0], rng))
        else:
            content = damaged(content, rng)
        parts[at] = (type, content)
        statuses.add(world.eif(model.pack(parts), i))
    assert statuses == {0, 1, 2}


def test_eifs_cut_off(world: World) -> None:
    lengths = [*model.borders(PARTS), *(n - 1 for n in model.borders(PARTS) if n)]
    for i, length in enumerate(lengths * 7):
        assert world.eif(GOOD[:length], i) != 0


def test_random_bytes(world: World) -> None:
    rng = random.Random(SEED)
    for i in range(100 * ROUNDS):
        head = rng.choice((b"", b".eif", b".eif\0\4", GOOD[:28], GOOD[:548]))
        assert world.eif(head + rng.randbytes(rng.choice((0, 1, 100, 600, 5000))), i) != 0
        world.image()


def test_damaged_keys(world: World) -> None:
    """`sign` and `pcr` with certificates and keys that are none."""
    rng = random.Random(SEED)
    good = {name: (world.folder / name).read_bytes() for name in ("cert.pem", "key.pem")}
    for _ in range(60 * ROUNDS):
        for name, data in good.items():
            world.hostile.write_bytes(damaged(data, rng))
            if name == "cert.pem":
                world.run("pcr", "--signing-certificate", world.hostile)
            given = {**{n: world.folder / n for n in good}, name: world.hostile}
            key = ("--signing-certificate", given["cert.pem"], "--private-key", given["key.pem"])
            world.run("sign", world.folder / "good.eif", *key, "-o", world.output)


# ---- container images ----

VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 2**70, "", "x", "a\nb", "a\0b", "\x1b[2J", "\ud800", "../../x", "/etc/passwd", [],
    {}, [None], {"a": None}, [[]], "sha256:" + "0" * 64, ["/a"] * 3, "1000", "0:0", "x" * 5000,
]  # fmt: skip


def hostile_json(text: bytes, rng: random.Random) -> bytes:
    """JSON with some values replaced by others, keys gone, or the text itself damaged."""
    if rng.random() < 0.15:
        return damaged(text, rng)
    root = [json.loads(text)]
    for _ in range(rng.choice((1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        todo: list[Any] = [root]
        for node in todo:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            places += [(node, key) for key in keys]
            todo += [node[key] for key in keys if isinstance(node[key], dict | list)]
        node, key = rng.choice(places)
        if isinstance(node, dict) and rng.random() < 0.3:
            del node[key]
        elif isinstance(node, list) and node is not root and rng.random() < 0.2:
            node.append(node[key])
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(root[0]).encode()


def with_sum(block: bytes) -> bytes:
    """A tar header with the right checksum (POSIX ustar)."""
    return block[:148] + b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512])) + block[156:]


FIELDS = [
    (0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (329, 8),
    (337, 8), (345, 155), (386, 24), (482, 1), (483, 12),
]  # fmt: skip


def hostile_header(block: bytes, rng: random.Random) -> bytes:
    """One field of a tar header replaced; checksum right."""
    at, size = rng.choice(FIELDS)
    value = rng.choice(
        [
            b"../../../../escape", b"/etc/passwd", b".", b"..", b"", b"a\0b", b"\xff\xfe", b".wh.",
            b".wh..wh..opq", b".wh...", b"d/.wh.app", b"7" * size, b"-1", b" ", b"0" * size,
            b"\x80" + b"\xff" * 11, b"\xff" * size, b"\xff" * (size - 1) + b"\0", b"\x80" + bytes(10) + b"\1",
            *(bytes([c]) for c in b"0123456789xgLKSDMNVX"), rng.randbytes(size),
        ]
    )  # fmt: skip
    return with_sum(block[:at] + value[:size].ljust(size, b"\0") + block[at + size :])


def good_layers() -> list[bytes]:
    long = "long/" * 40 + "name"
    pax = im.entry("pax", b"1", mtime=1.5, pax_headers={"SCHILY.xattr.user.a": "b", "comment": "c"})
    below = im.layer(
        im.entry("app", b"binary", mode=0o755), im.entry("d"), im.entry("d/x", b"x" * 600), pax,
        im.entry("etc/passwd", b"web:x:33:34::/srv:/bin/sh\n"), im.symlink("l", "d"), im.hardlink("y", "d/x"),
    )  # fmt: skip
    above = im.layer(
        im.entry(long, b"2"), im.entry("d/.wh.x", b""), im.entry("l/z", b"z"),
        im.entry("null", None, type=tarfile.CHRTYPE, devmajor=1, devminor=3), format=tarfile.GNU_FORMAT,
    )  # fmt: skip
    return [below, above]


RUN = {
    "Entrypoint": ["/app"], "Cmd": ["x"], "Env": ["A=b"], "User": "web", "WorkingDir": "/srv/app",
}  # fmt: skip
PACKERS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, zstandard.ZstdCompressor().compress]


def hostile_layer(layer: bytes, rng: random.Random) -> bytes:
    """A layer whose headers lie, or whose bytes are damaged."""
    if rng.random() < 0.3:
        return damaged(layer, rng)
    blocks = [layer[i : i + 512] for i in range(0, len(layer), 512)]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice([i for i, block in enumerate(blocks) if block[257:262] == b"ustar"])
        blocks[at] = hostile_header(blocks[at], rng)
        if rng.random() < 0.2:
            blocks.insert(at, blocks[at])
    return b"".join(blocks)


def hostile_images(world: World, rng: random.Random, count: int) -> Iterator[None]:
    """Write images of which one part is hostile, and all digests and sizes are right."""
    for i in range(count):
        layers = good_layers()
        if i % 3:
            at = rng.randrange(len(layers))
            layers[at] = hostile_layer(layers[at], rng)
        packer = rng.choice(PACKERS)
        packed = [packer(layer) for layer in layers]
        if i % 11 == 1:
            packed[0] = damaged(packed[0], rng)
        if i % 2:
            files = im.oci_files(layers, packed, RUN)
        else:
            path = im.docker(world.hostile, layers, RUN)
            with tarfile.open(path) as tar:
                files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        if i % 3 == 0:
            name = rng.choice([n for n, data in files.items() if data[:1] in b"[{"])
            text = hostile_json(files[name], rng)
            if name.startswith("blobs/") and rng.random() < 0.9:
                files = renamed(files, name, text)
            files[name] = text
        im.archive(world.hostile, files)
        if i % 7 == 6:
            world.hostile.write_bytes(hostile_layer(world.hostile.read_bytes(), rng))
        yield


def renamed(files: dict[str, bytes], old: str, text: bytes) -> dict[str, bytes]:
    """A blob replaced, and its digest and size where others name it, and so on up to the index."""
    new = f"blobs/sha256/{im.digest(text)}"
    made = {**files, new: text}
    pattern = re.compile(rb'"sha256:' + old[-64:].encode() + rb'", "size": \d+')
    for name, data in files.items():
        text_of = pattern.sub(b'"sha256:%s", "size": %d' % (new[-64:].encode(), len(text)), data)
        if text_of != data:
            made[name] = text_of
            if name.startswith("blobs/"):
                made = renamed(made, name, text_of)
    return made


def test_hostile_images(world: World) -> None:
    rng = random.Random(SEED)
    statuses = [world.image() for _ in hostile_images(world, rng, 500 * ROUNDS)]
    assert 0 in statuses and 1 in statuses


def test_good_images_are_good(world: World) -> None:
    """What the hostile ones are made from is accepted."""
    layers = good_layers()
    for packer in PACKERS:
        im.oci(world.hostile, layers, packer=packer, run=RUN)
        assert world.image() == 0
    im.docker(world.hostile, layers, RUN)
    assert world.image() == 0
    for which in range(7):  # all but lint, which finds much in so small an image
        assert world.eif(GOOD, which) == 0


def test_little_memory(world: World) -> None:
    """With 512 MB of address space, numbers that promise more than that: no command needs what they say."""
    huge = "9" * 10
    layers = good_layers()
    blocks = [layers[0][:124] + b"%011o\0" % (1 << 32) + layers[0][136:512], layers[0][512:]]
    images = [
        im.oci(world.folder / "size.tar", [with_sum(blocks[0]) + blocks[1]], run=RUN),
        im.docker(world.folder / "env.tar", layers, {**RUN, "User": huge}),
    ]
    eifs = []
    # The first section's offset, its size as the table and as its header have it; the number of sections.
    for at, form, value in ((28, ">Q", 2**62), (284, ">Q", 2**62), (552, ">Q", 2**62), (26, ">H", 2**16 - 1)):
        mutant = bytearray(GOOD)
        struct.pack_into(form, mutant, at, value)
        eifs.append(world.folder / f"{at}.eif")
        eifs[-1].write_bytes(model.with_crc(bytes(mutant)))
    commands: list[tuple[str | Path, ...]] = [("describe", path) for path in eifs]
    commands += [("verify", path) for path in eifs]
    blobs = world.folder / "blobs"
    commands += [("build", "--image", path, "--blobs", blobs, "-o", world.output) for path in images]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "nitroctl", "eif", *command], capture_output=True, text=True, timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20)),
        )  # fmt: skip
        assert done.returncode == 1, (command, done)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
