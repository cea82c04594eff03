# SPDX-License-Identifier: MIT
"""What must hold of signed images when they are run; more of `checks`. Unsigned ones are everywhere else.

Key and certificate are the openssl program's, and so is the digest that PCR8 is computed from here: AWS's
rule is SHA384(48 zero bytes, then SHA384(the certificate in DER)).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

from nitroctl.testing.claims import ZERO, boot_check
from nitroctl.testing.lab import Lab, Run, check, check_equal, openssl

OLD, NEW = b"panic=1", b"panic=2"  # a change of the command line, which PCR0 covers


def command(lab: Lab, *arguments: str | Path) -> str:
    """`nitroctl eif ...`, which must succeed; what it prints."""
    argv = [sys.executable, "-m", "nitroctl", "eif", *(os.fspath(a) for a in arguments)]
    done = subprocess.run(argv, env=lab.environment(), capture_output=True, text=True)
    check(done.returncode == 0, f"nitroctl eif {arguments[0]}: {done.stderr}")
    return done.stdout


def signed(lab: Lab, curve: str) -> tuple[Path, str]:
    """hello, signed with a fresh key; and what its PCR8 must be."""
    make = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:{curve} -nodes -subj /CN=tests -days 2".split()
    key, certificate, image = (lab.folder / f"signed-{curve}.{end}" for end in ("key", "pem", "eif"))
    openssl(lab, *make, "-keyout", str(key), "-out", str(certificate))
    given = ("--signing-certificate", certificate, "--private-key", key)
    command(lab, "sign", lab.image("hello"), *given, "-o", image)
    der = openssl(lab, "x509", "-in", str(certificate), "-outform", "DER")
    return image, hashlib.sha384(ZERO + hashlib.sha384(der).digest()).hexdigest()


def changed(lab: Lab, image: Path, old: bytes, new: bytes, name: str) -> Path:
    """The image with other bytes of the same number, and a checksum that is right again."""
    data = bytearray(image.read_bytes())
    at = data.index(old)
    data[at : at + len(old)] = new
    data[544:548] = zlib.crc32(data[548:], zlib.crc32(data[:544])).to_bytes(4, "big")
    path = lab.folder / name
    path.write_bytes(data)
    return path


def printed_pcrs(run: Run) -> dict[str, str]:
    """What hello prints, to its end."""
    run.check_ends(0)
    found = re.findall(rb"(PCR\d+): ([0-9a-f]{96})", run.console.seen)
    return {name.decode(): value.decode() for name, value in found}


@boot_check
def signed_image(lab: Lab) -> None:
    """An image signed with a P-384 key runs; its PCR8 is that of the certificate, and `nitroctl eif describe`
    says the same of the file."""
    image, pcr8 = signed(lab, "P-384")
    described = json.loads(command(lab, "describe", "--json", image))
    check_equal(described["Measurements"]["PCR8"], pcr8, "PCR8 of the file")
    check_equal((described["IsSigned"], described["SignatureCheck"]), (True, True), "signed, and checked")
    with lab.run(image) as run:
        got = printed_pcrs(run)
    for name in ("PCR0", "PCR1", "PCR2", "PCR8"):
        check_equal(got.get(name), described["Measurements"][name], f"{name} in the enclave")
    lab.check_nothing_left()


@boot_check
def signed_image_by_hand(lab: Lab) -> None:
    """The same for a P-521 key and QEMU's own command line."""
    image, pcr8 = signed(lab, "P-521")
    with lab.guest(image) as guest:
        guest.expect(b"PCR8: " + pcr8.encode())
        guest.check_ends()


@boot_check
def initrd_beside_a_signature(lab: Lab) -> None:
    """-initrd with a signed image: QEMU warns that the signature does not cover it, and PCR8 still is the
    certificate's while PCR0 is not that of the file."""
    image, pcr8 = signed(lab, "P-384")
    pcr0 = json.loads(command(lab, "describe", "--json", image))["Measurements"]["PCR0"]
    extra = lab.folder / "zeros.cpio"
    extra.write_bytes(bytes(512))  # the padding of an archive
    with lab.guest(image, args=("-initrd", os.fspath(extra))) as guest:
        guest.expect(rb"warning: \S+zeros\.cpio: the signature of \S+ does not cover it: PCR0 and PCR2 ")
        got = guest.expect(rb"PCR0: ([0-9a-f]{96})")[1].decode()
        check(got != pcr0, "PCR0 is still the file's")
        guest.expect(b"PCR8: " + pcr8.encode())
        guest.check_ends()


@boot_check
def image_changed_after_signing(lab: Lab) -> None:
    """An image that was changed after it was signed is refused by `nitroctl run` and by QEMU, with the rule's
    name and no guest; with --ignore-signature it runs, and PCR8 still is the certificate's."""
    image, pcr8 = signed(lab, "P-256")
    bad = changed(lab, image, OLD, NEW, "changed.eif")
    with lab.run(bad) as run:
        run.expect(rb"signature-pcr0")
        run.check_ends(1)
        check(b"Linux version" not in run.console.seen, "a guest was started")
    with lab.guest(bad) as guest:
        guest.expect(rb"signature-pcr0")
        guest.check_ends(1)
    with lab.run(bad, "--ignore-signature") as run:
        run.expect(rb"signature-pcr0")
        got = printed_pcrs(run)
    check_equal(got.get("PCR8"), pcr8, "PCR8")
    lab.check_nothing_left()


@boot_check
def forged_signature(lab: Lab) -> None:
    """A signature of which one bit is not what the key made is refused as signature-invalid."""
    image, _ = signed(lab, "P-384")
    end = image.read_bytes()[-40:]
    # The section's last byte is the last of s: a CBOR integer, whose lowest bit changes no length.
    bad = changed(lab, image, end, end[:-1] + bytes([end[-1] ^ 1]), "forged.eif")
    with lab.run(bad) as run:
        run.expect(rb"signature-invalid")
        run.check_ends(1)
    with lab.guest(bad) as guest:
        guest.expect(rb"signature-invalid")
        guest.check_ends(1)
