# SPDX-License-Identifier: MIT
"""sign, verify, extract, diff, pcr: each against openssl, the model, or the file that went in."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

import eifmodel as model
import eifsigner as signer
from cpiomade import archive
from jsonpage import answer
from nitroctl.base.errors import EifError, NitroError
from nitroctl.base.instants import UTC
from nitroctl.cli import main
from nitroctl.eif import cpio
from nitroctl.eif import sign as signing
from nitroctl.eif.boot import check_sizes
from nitroctl.eif.diff import Difference, diff
from nitroctl.eif.extract import extract
from nitroctl.eif.format import Layout, Section, SectionType, open_eif, read_layout
from nitroctl.eif.measure import scan
from nitroctl.eif.verify import EifMismatch, verify

SECTIONS = [(model.KERNEL, model.bzimage()), *model.TINY[1:]]
NOW = datetime.now(UTC)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.eif"
    path.write_bytes(model.pack(SECTIONS))
    return path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Certificates (valid now) and keys of the three curves, and what does not fit."""
    dates = {"begin": NOW - timedelta(days=1), "end": NOW + timedelta(days=1)}
    for name in (*signer.CURVES, "k1"):
        (tmp_path / f"{name}.pem").write_bytes(signer.pem(name, **dates))
        (tmp_path / f"{name}.key").write_bytes(signer.key_pem(name))
    (tmp_path / "other.key").write_bytes(signer.key_pem("other"))
    (tmp_path / "old.pem").write_bytes(signer.pem(begin=NOW - timedelta(days=9), end=NOW - timedelta(days=8)))
    return tmp_path


def load(keys: Path, name: str = "P-384") -> signing.SigningKey:
    return signing.load(keys / f"{name}.pem", key=keys / f"{name}.key")


def sections(path: Path) -> list[tuple[int, bytes]]:
    data = path.read_bytes()
    with open_eif(path) as (fd, size):
        return [(int(s.type), data[s.data_offset : s.end]) for s in read_layout(fd, size).sections]


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as e:
        main(["eif", *map(str, argv)])
    out, err = capsys.readouterr()
    assert isinstance(e.value.code, int)
    return e.value.code, out, err


# ---- sign ----


def openssl_verifies(section: bytes, pcr0: str, hash: str, folder: Path) -> None:
    """A signature section in AWS's form, whose signature openssl verifies with the certificate's key."""
    openssl = shutil.which("openssl")
    assert openssl, "this test needs openssl: apt-get install openssl"
    (pair,) = cbor2.loads(section)
    assert list(pair) == ["signing_certificate", "signature"]
    assert section == cbor2.dumps([pair])  # definite, shortest lengths
    protected, unprotected, payload, raw = cbor2.loads(bytes(pair["signature"]))
    assert unprotected == {}
    assert payload == cbor2.dumps({"register_index": 0, "register_value": list(bytes.fromhex(pcr0))})
    half = len(raw) // 2
    der = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
    (folder / "sig").write_bytes(der)
    (folder / "cert").write_bytes(bytes(pair["signing_certificate"]))
    show = [openssl, "x509", "-in", str(folder / "cert"), "-noout", "-pubkey"]
    (folder / "public").write_bytes(subprocess.run(show, capture_output=True).stdout)
    (folder / "message").write_bytes(cbor2.dumps(["Signature1", protected, b"", payload]))
    argv = [openssl, "dgst", f"-{hash}", "-verify", folder / "public", "-signature", folder / "sig"]
    done = subprocess.run([*map(str, argv), str(folder / "message")], capture_output=True, text=True)
    assert done.stdout == "Verified OK\n", done.stderr


@pytest.mark.parametrize("name, hash", [("P-256", "sha256"), ("P-384", "sha384"), ("P-521", "sha512")])
def test_sign(image: Path, keys: Path, name: str, hash: str) -> None:
    """The rest is untouched, the section is AWS's, openssl agrees."""
    made = signing.sign(image, load(keys, name), image)
    *rest, (type, section) = sections(image)
    assert rest == SECTIONS and type == model.SIGNATURE
    assert image.read_bytes() == model.pack([*SECTIONS, (model.SIGNATURE, section)])
    pcr0 = model.measure(SECTIONS)[0]
    openssl_verifies(section, pcr0, hash, keys)
    assert made.warnings == () and made.measurements == verify(image)
    assert made.measurements.pcr0.hex() == pcr0


def test_sign_again_with_another_length(image: Path, keys: Path) -> None:
    """A longer and then a shorter signature: every size and offset is right each time."""
    for name in ("P-256", "P-521", "P-384"):
        signing.sign(image, load(keys, name), image)
        found = sections(image)
        assert [t for t, _ in found].count(model.SIGNATURE) == 1
        assert image.read_bytes() == model.pack(found)
        assert verify(image)


def test_a_signature_in_the_middle_is_replaced(tmp_path: Path, keys: Path) -> None:
    path = tmp_path / "o.eif"
    path.write_bytes(model.pack([*SECTIONS[:2], (model.SIGNATURE, b"rubbish"), *SECTIONS[2:]], cpus=7, mem=9))
    signing.sign(path, load(keys), path)
    found = sections(path)
    assert found[:-1] == SECTIONS
    assert path.read_bytes() == model.pack(found, cpus=7, mem=9)


def test_version_2_becomes_3(tmp_path: Path, keys: Path) -> None:
    """Signatures are of version 3 on; reserved flags stay."""
    path = tmp_path / "o.eif"
    path.write_bytes(model.pack(SECTIONS, version=2, flags=0x8000))
    signing.sign(path, load(keys), path)
    assert path.read_bytes() == model.pack(sections(path), version=3, flags=0x8000)


def test_sign_by_command(image: Path, keys: Path) -> None:
    """openssl holds the key; and r || s is taken as well as DER."""
    command = f"openssl dgst -sha384 -sign '{keys}/P-384.key'"
    signing.sign(image, signing.load(keys / "P-384.pem", command=command), image)
    assert verify(image)
    raw = tmp_script(
        keys,
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import eifsigner, cbor2\n"
        "_, protected, _, payload = cbor2.loads(sys.stdin.buffer.read())\n"
        "sys.stdout.buffer.write(eifsigner.raw_signature('P-384', protected, payload))\n",
    )
    signing.sign(image, signing.load(keys / "P-384.pem", command=raw), image)
    assert verify(image)


def tmp_script(folder: Path, text: str) -> str:
    import sys

    (folder / "sign.py").write_text(text)
    return f"'{sys.executable}' '{folder}/sign.py' '{Path(__file__).parents[1]}'"


@pytest.mark.parametrize(
    "command, what",
    [
        ("cat", "cat returned 1.. bytes"), ("true", "0 bytes"), ("head -c 96 /dev/zero", "does not verify"),
        ("false", "status 1"), ("/nonexistent/signer", "No such file"), ("'", "words"), ("", "empty"),
    ],
)  # fmt: skip
def test_signers_that_fail(image: Path, keys: Path, command: str, what: str) -> None:
    before = image.read_bytes()
    with pytest.raises(NitroError, match=what):
        signing.sign(image, signing.load(keys / "P-384.pem", command=command), image)
    assert image.read_bytes() == before
    assert not list(image.parent.glob(".image*"))


@pytest.mark.parametrize(
    "certificate, key, what",
    [
        ("P-384.pem", "other.key", "does not belong"), ("P-384.pem", "P-256.key", "does not belong"),
        ("k1.pem", "k1.key", "secp256k1"), ("P-384.key", "P-384.key", "not a PEM certificate"),
        ("P-384.pem", "P-384.pem", "not a PEM private key"), ("gone.pem", "P-384.key", "gone.pem"),
        ("P-384.pem", "gone.key", "gone.key"), ("P-384.pem", "locked.key", "encrypted"),
    ],
)  # fmt: skip
def test_keys_that_do_not_do(keys: Path, certificate: str, key: str, what: str) -> None:
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat

    lock = BestAvailableEncryption(b"x")
    locked = signer.key("P-384").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
    (keys / "locked.key").write_bytes(locked)
    with pytest.raises(NitroError, match=what):
        signing.load(keys / certificate, key=keys / key)


def test_an_expired_certificate_is_a_warning(image: Path, keys: Path) -> None:
    made = signing.sign(image, signing.load(keys / "old.pem", key=keys / "P-384.key"), image)
    assert "expired" in made.warnings[0]
    with pytest.raises(EifError) as e:
        verify(image)
    assert e.value.rule == "signature-expired"


def test_a_damaged_file_is_not_signed(tmp_path: Path, keys: Path) -> None:
    """Else it would look whole."""
    signed = [*SECTIONS, (model.SIGNATURE, b"x")]
    for data, rule in (
        (model.pack(SECTIONS)[:-1] + b"X", "crc-mismatch"),
        (model.pack(signed)[:-1] + b"y", "crc-mismatch"),
        (model.pack([SECTIONS[0], (model.CMDLINE, b"a\0b"), *SECTIONS[2:]]), "cmdline-nul"),
        (model.pack(SECTIONS[1:]), "ramdisk-before-kernel"),
        (model.pack([*SECTIONS, *[(model.RAMDISK, b"")] * 27]), "section-count"),
    ):
        path = tmp_path / "damaged.eif"
        path.write_bytes(data)
        with pytest.raises(EifError) as e:
            signing.sign(path, load(keys), path)
        assert e.value.rule == rule
        assert path.read_bytes() == data


def certificate_of(path: Path) -> bytes:
    """The text in a signed file, as bytes."""
    (pair,) = cbor2.loads(sections(path)[-1][1])
    return bytes(pair["signing_certificate"])


def test_the_certificate_is_written_as_it_is(image: Path, keys: Path) -> None:
    """Byte for byte, as AWS does it, where the file is one certificate as everybody's tools write it."""
    signing.sign(image, load(keys), image)
    assert certificate_of(image) == (keys / "P-384.pem").read_bytes()


@pytest.mark.parametrize("key_first", [True, False])
@pytest.mark.parametrize("way", ["sign", "build", "nitro-cli sign-eif"])
def test_a_key_beside_the_certificate_stays_at_home(
    image: Path, keys: Path, capsys: pytest.CaptureFixture[str], way: str, key_first: bool
) -> None:
    """One file for both: the certificate alone goes into the image, and a warning says so."""
    certificate, key = (keys / "P-384.pem").read_bytes(), (keys / "P-384.key").read_bytes()
    both = keys / "both.pem"
    both.write_bytes(key + certificate if key_first else certificate + key)
    options: list[str | Path] = ["--signing-certificate", both, "--private-key", both]
    if way == "sign":
        status, _, err = run(capsys, "sign", image, *options)
    elif way == "build":
        (keys / "k").write_bytes(model.bzimage())
        parts: list[str | Path] = ["--kernel", keys / "k", "--cmdline", "c", "-o", image]
        status, _, err = run(capsys, "build", *parts, *options)
    else:
        from nitroctl import nitro_cli

        with pytest.raises(SystemExit) as e:
            nitro_cli.main(["sign-eif", "--eif-path", str(image), *map(str, options)])
        status, err = int(e.value.code or 0), capsys.readouterr().err
    assert (status, err.count("private key")) == (0, 1), err
    assert certificate_of(image) == certificate
    assert b"PRIVATE" not in certificate_of(image) and verify(image).pcr8


def test_of_a_chain_the_first_is_written(image: Path, keys: Path) -> None:
    certificate = (keys / "P-384.pem").read_bytes()
    windows = b"subject=a\r\n" + certificate.replace(b"\n", b"\r\n")
    (keys / "chain.pem").write_bytes(windows + signer.pem() * 40)
    signing.sign(image, signing.load(keys / "chain.pem", key=keys / "P-384.key"), image)
    assert certificate_of(image) == certificate


def test_a_certificate_that_is_too_large(image: Path, keys: Path) -> None:
    name, key = x509.Name([]), signer.key("P-384")
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
    filling = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes(20000))
    big = builder.add_extension(filling, critical=False).sign(key, hashes.SHA384())
    (keys / "big.pem").write_bytes(big.public_bytes(Encoding.PEM))
    with pytest.raises(NitroError, match="32768"):
        signing.sign(image, signing.load(keys / "big.pem", key=keys / "P-384.key"), image)


def registers(found: Any) -> dict[str, str]:
    return {f"PCR{number}": value for number, value in found["pcrs"].items()}


def test_sign_command(image: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = keys / "signed.eif"
    argv: list[str | Path] = ["--signing-certificate", keys / "P-384.pem"]
    argv += ["--private-key", keys / "P-384.key"]
    status, text, _ = run(capsys, "sign", image, *argv, "-o", out, "--json")
    assert status == 0
    assert registers(answer("nitroctl eif sign", text)) == dict(verify(out).items())
    assert image.read_bytes() == model.pack(SECTIONS)
    assert run(capsys, "sign", image, *argv[:2])[0] == 2
    assert run(capsys, "sign", image, *argv, "--signer", "true")[0] == 2


def test_build_signs(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (keys / "bzImage").write_bytes(model.bzimage())
    argv: list[str | Path] = ["build", "--kernel", keys / "bzImage", "--cmdline", "c", "-o", keys / "o.eif"]
    signed: list[str | Path] = ["--signing-certificate", keys / "P-256.pem"]
    signed += ["--private-key", keys / "P-256.key"]
    status, text, _ = run(capsys, *argv, *signed, "--json")
    assert status == 0
    found = verify(keys / "o.eif")
    assert found.pcr8 and registers(answer("nitroctl eif build", text)) == dict(found.items())
    assert run(capsys, *argv, *signed[2:])[0] == 2


# ---- verify ----


def test_verify_expected_registers(image: Path) -> None:
    values = {i: bytes.fromhex(v) for i, v in enumerate(model.measure(SECTIONS))}
    assert verify(image, pcrs={**values, 8: bytes(48)}).pcr0 == values[0]
    for index in (0, 1, 2, 8):
        with pytest.raises(EifMismatch, match=f"PCR{index}"):
            verify(image, pcrs={**values, 8: bytes(48), index: b"\1" * 48})


def test_verify_asks_whether_it_boots(tmp_path: Path) -> None:
    path = tmp_path / "tiny.eif"
    path.write_bytes(model.pack(model.TINY))
    with pytest.raises(EifError) as e:
        verify(path)
    assert e.value.rule == "kernel-not-bzimage" and e.value.offset == 560
    assert verify(path, file_rules_only=True)


@pytest.mark.parametrize(
    "sizes, rule",
    [
        ((1 << 30, 1, 1), "kernel-too-large"), (((1 << 30) - 1, 1, 1), None),
        ((1, 65537, 1), "cmdline-too-long"), ((1, 65536, 1), None),
        ((1, 1, (1 << 32) - 2), "initramfs-too-large"), ((1, 1, (1 << 32) - 3), None),
    ],
)  # fmt: skip
def test_sizes_that_cannot_boot(sizes: Sequence[int], rule: str | None) -> None:
    """Judged from the headers; the ramdisks together, the second having one byte."""
    types = (SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK, SectionType.RAMDISK)
    parts = tuple(Section(t, 0, n, b"") for t, n in zip(types, (*sizes, 1), strict=True))
    layout = Layout(None, parts, 0)  # type: ignore[arg-type]
    if rule is None:
        check_sizes(layout)
        return
    with pytest.raises(EifError) as e:
        check_sizes(layout)
    assert e.value.rule == rule


def test_verify_command(image: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pcr0 = model.measure(SECTIONS)[0]
    status, out, _ = run(capsys, "verify", image, "--pcr", f"0={pcr0.upper()}", "--pcr", f"PCR8={'0' * 96}")
    assert status == 0 and "good, not signed" in out and pcr0 in out
    status, _, err = run(capsys, "verify", image, "--pcr", f"1={'0' * 96}")
    assert status == 1 and "PCR1 is" in err
    for bad in ("0", "3=" + pcr0, "0=xx", "0=00"):
        assert run(capsys, "verify", image, "--pcr", bad)[0] == 2
    signing.sign(image, load(keys), image)
    status, out, _ = run(capsys, "verify", image, "--json")
    found = answer("nitroctl eif verify", out)
    assert (status, found["path"], found["signed"], found["pcrs"]["0"]) == (0, str(image), True, pcr0)
    assert set(found["pcrs"]) == {"0", "1", "2", "8"}
    status, _, err = run(capsys, "verify", image, "--at", "2001-01-01T00:00:00+00:00")
    assert status == 1 and "[signature-not-yet-valid]" in err


# ---- extract ----


def test_extract(image: Path, keys: Path) -> None:
    signing.sign(image, load(keys), image)
    folder = keys / "out"
    paths = extract(image, folder)
    names = ["kernel", "cmdline", "metadata.json", "ramdisk-0", "ramdisk-1", "signature.cbor"]
    names.append("certificate.pem")
    assert [p.name for p in paths] == names
    assert sorted(os.listdir(folder)) == sorted(names)
    assert [p.read_bytes() for p in paths[:6]] == [data for _, data in sections(image)]
    assert (folder / "certificate.pem").read_bytes() == (keys / "P-384.pem").read_bytes()


def test_extract_names_ramdisks_by_content(tmp_path: Path) -> None:
    disks = [b"070701", gzip.compress(b"x"), b"\x28\xb5\x2f\xfd", b"?", b""]
    path = tmp_path / "x.eif"
    path.write_bytes(model.pack([*SECTIONS[:3], *((model.RAMDISK, d) for d in disks)]))
    (tmp_path / "out").mkdir()  # an empty folder is as good as none, and stays the same one
    inode = (tmp_path / "out").stat().st_ino
    assert [p.name for p in extract(path, tmp_path / "out")][3:] == [
        "ramdisk-0.cpio", "ramdisk-1.cpio.gz", "ramdisk-2.cpio.zst", "ramdisk-3", "ramdisk-4",
    ]  # fmt: skip
    assert (tmp_path / "out").stat().st_ino == inode and len(os.listdir(tmp_path / "out")) == 8


def test_extract_command(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["kernel", "cmdline", "metadata.json", "ramdisk-0", "ramdisk-1"]
    for out, option in (("a", []), ("b", ["--json"])):
        status, text, err = run(capsys, "extract", image, "-C", tmp_path / out, *option)
        assert (status, err) == (0, "")
        found = text.splitlines()
        if option:
            found = [item["path"] for item in answer("nitroctl eif extract", text)["items"]]
        assert found == [str(tmp_path / out / name) for name in names]


def test_extract_leaves_nothing_of_a_damaged_file(image: Path, tmp_path: Path) -> None:
    image.write_bytes(image.read_bytes()[:-1] + b"X")
    with pytest.raises(EifError) as e:
        extract(image, tmp_path / "out")
    assert e.value.rule == "crc-mismatch"
    assert os.listdir(tmp_path) == ["image.eif"]


def test_extract_overwrites_nothing(image: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"")
    for folder in (tmp_path / "out", image):
        with pytest.raises(NitroError, match="already"):
            extract(image, folder)
    assert sorted(os.listdir(tmp_path)) == ["image.eif", "out"]
    assert os.listdir(tmp_path / "out") == ["mine"]


# ---- diff ----


def variant(
    path: Path, *, cmdline: bytes = b"c", metadata: bytes = model.TINY_METADATA, disks: list[bytes]
) -> Path:
    parts = [SECTIONS[0], (model.CMDLINE, cmdline), (model.METADATA, metadata)]
    path.write_bytes(model.pack([*parts, *((model.RAMDISK, d) for d in disks)]))
    return path


def test_no_difference(image: Path) -> None:
    assert diff(image, image) == []


def test_differences(tmp_path: Path) -> None:
    """Down to the file, its mode and its content."""
    one = [cpio.directory("d"), cpio.file("d/same", b"s"), cpio.file("mode", b"m"), cpio.file("gone", b"")]
    two = [cpio.directory("d"), cpio.file("d/same", b"s"), cpio.file("mode", b"m", 0o755)]
    one.append(cpio.file("text", b"aaaa"))
    two += [cpio.file("text", b"bbbb"), cpio.file("new", b"1")]
    boot = archive([cpio.file("init", b"i")])
    a = variant(tmp_path / "a", disks=[boot, archive(one)])
    metadata = model.TINY_METADATA.replace(b'"t"', b'"u"')
    b = variant(tmp_path / "b", cmdline=b"c d", metadata=metadata, disks=[boot, gzip.compress(archive(two))])
    found = {d.where: (d.a, d.b) for d in diff(a, b)}
    assert list(found)[:3] == ["PCR0", "PCR1", "PCR2"]
    assert found["PCR2"] == tuple(scan(p).measurements.pcr2.hex() for p in (a, b))
    assert found["cmdline"] == ("c", "c d")
    assert found["metadata.BuildMetadata.BuildTool"] == ("t", "u")
    inside = {w.removeprefix("ramdisk 1: "): v for w, v in found.items() if w.startswith("ramdisk 1:")}
    aaaa, bbbb = "61be55a8e2f6b4e1", "81cc5b17018674b4"  # sha256sum of each
    assert inside == {
        "gone": ("-rw-r--r-- 0:0 0 bytes", None),
        "mode": ("-rw-r--r-- 0:0 1 bytes", "-rwxr-xr-x 0:0 1 bytes"),
        "new": (None, "-rw-r--r-- 0:0 1 bytes"),
        "text": (f"-rw-r--r-- 0:0 4 bytes sha256 {aaaa}", f"-rw-r--r-- 0:0 4 bytes sha256 {bbbb}"),
    }
    assert not [w for w in found if w.startswith(("ramdisk 0", "kernel"))]


@pytest.mark.parametrize(
    "disk", [b"", b"?" * 200, archive([cpio.file("a", b"x" * 99)])[:-130], gzip.compress(b"x" * 500)[:-20],
             b"070701" + b"z" * 104, b"070701" + b"0" * 88 + b"FFFFFFFF" + b"0" * 8],
    ids=range(6),
)  # fmt: skip
def test_ramdisks_that_cannot_be_looked_into(tmp_path: Path, disk: bytes) -> None:
    """Compared as a whole, with the reason."""
    a = variant(tmp_path / "a", disks=[disk])
    b = variant(tmp_path / "b", disks=[archive([])])
    found = [d for d in diff(a, b) if d.where.startswith("ramdisk")]
    assert [d.where for d in found] == ["ramdisk 0", "ramdisk 0: not looked into"]
    assert found[1].a == found[1].b and found[1].a


def test_sections_only_one_has(tmp_path: Path) -> None:
    a = variant(tmp_path / "a", disks=[b"x"])
    b = variant(tmp_path / "b", disks=[b"x", b"yy"])
    assert Difference("ramdisk 1", None, "2 bytes", ("PCR0", "PCR2")) in diff(a, b)


@pytest.mark.parametrize(
    "where, change",
    [
        ("cmdline", {"cmdline": b"other"}), ("ramdisk 0", {"disks": [b"X", b"y", b"z"]}),
        ("ramdisk 1", {"disks": [b"x", b"Y", b"z"]}), ("ramdisk 2", {"disks": [b"x", b"y", b"Z"]}),
        ("metadata.ImageName", {"metadata": model.TINY_METADATA.replace(b"tiny", b"TINY")}),
        ("metadata", {"metadata": b"no JSON"}),
    ],
)  # fmt: skip
def test_which_registers_move(tmp_path: Path, where: str, change: dict[str, Any]) -> None:
    """What is said of a difference is what the measurements do, one change at a time."""
    a = variant(tmp_path / "a", disks=[b"x", b"y", b"z"])
    b = variant(tmp_path / "b", **{"disks": [b"x", b"y", b"z"], **change})
    one, two = (dict(scan(path).measurements.items()) for path in (a, b))
    moved = tuple(name for name in one if one[name] != two[name])
    found = {d.where: d.pcrs for d in diff(a, b)}
    assert found[where] == moved
    assert {w for w in found if w.startswith("PCR")} == set(moved)


def test_differences_of_signatures(image: Path, keys: Path) -> None:
    signed = {}
    for name, key in (("one", "P-384"), ("two", "P-384"), ("three", "P-256")):
        signed[name] = keys / f"{name}.eif"
        signing.sign(image, load(keys, key), signed[name])
    # ECDSA is random: the same key signs differently, over the same values.
    assert [d.where for d in diff(signed["one"], signed["two"])] == ["signature"]
    found = {d.where: d.pcrs for d in diff(signed["one"], signed["three"])}
    assert found == {"PCR8": (), "signer": ("PCR8",), "signature": ()}


def test_differences_that_nobody_reads(image: Path, tmp_path: Path) -> None:
    data = bytearray(image.read_bytes())
    data[0x1A - 2 : 0x1A] = b"\1\1"  # reserved
    data[544:548] = zlib.crc32(data[548:], zlib.crc32(data[:544])).to_bytes(4, "big")
    (tmp_path / "b").write_bytes(data)
    assert [d.where for d in diff(image, tmp_path / "b")] == ["reserved fields"]


def test_diff_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = variant(tmp_path / "a", disks=[]), variant(tmp_path / "b", cmdline=b"\x1b[31m", disks=[])
    assert run(capsys, "diff", a, a) == (0, "", "")
    status, out, _ = run(capsys, "diff", a, b)
    assert status == 1 and "cmdline  (moves PCR0 and PCR1)\n  - c\n  + \\x1b[31m\n" in out
    status, out, _ = run(capsys, "diff", a, b, "--json")
    assert status == 1
    expected = {
        "where": "cmdline", "a": "c", "b": "\x1b[31m", "moves": [0, 1],
        "rule": None, "why": None,  # of AWS's builder, which made neither
    }  # fmt: skip
    assert expected in answer("nitroctl eif diff", out)["items"]
    status, _, err = run(capsys, "diff", a, tmp_path / "gone")
    assert status == 2 and "gone" in err


# ---- pcr ----


def test_pcr(tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """nitro-cli's two, and the two that it cannot compute (AWS's published values)."""
    (tmp_path / "f").write_bytes(b"content")
    argv: list[str | Path] = ["--input", tmp_path / "f", "--signing-certificate", keys / "P-384.pem"]
    argv += ["--role", "arn:aws:iam::123456789012:role/Webserver", "--instance-id", "i-1234567890abcdef0"]
    status, out, _ = run(capsys, "pcr", *argv)
    der = subprocess.run(
        ["openssl", "x509", "-in", keys / "P-384.pem", "-outform", "DER"], capture_output=True, check=True
    )
    assert status == 0 and json.loads(out) == {
        "PCR": model.pcr(b"content"),
        "PCR3": "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75"
        "329dccd99aa5f6ef4fc1f1a452e315b9e98f9e312e6921e6",
        "PCR4": "08f996b5d43e047a9eb51e7f548bfee7e164fd7dc8f65541"
        "f2ac09d6545ac812719327281c401a67a10fcba87ae79ce0",
        "PCR8": model.pcr(der.stdout),
    }
    assert run(capsys, "pcr")[0] == 2
    assert run(capsys, "pcr", "--input", tmp_path / "gone")[0] == 1
