# SPDX-License-Identifier: MIT
"""Two readers, one verdict: the package against the C core that the machine loads with.

Thousands of files, good, damaged and cut, of which both must say the same: the rule, or the same PCRs.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator

import pytest
import test_eif_format
import test_eif_signature

import eifmodel as model
import eifsigner as signer
from eifverdict import Core
from nitroctl.base.errors import EifError
from nitroctl.eif.measure import scan_fd
from nitroctl.eif.verify import judge

COUNT = 750 * int(os.environ.get("NITROCTL_FUZZ_ROUNDS", "1"))  # mutants of each kind


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    """The C core, asked for the rules of files alone, at the time that the test certificates are valid."""
    with Core("--structure", "--now", str(int(signer.NOW.timestamp()))) as running:
        yield running


def package(data: bytes, *, structure: bool = True) -> list[str]:
    """The package's verdict in the words of eif-verdict."""
    fd = os.memfd_create("eif")
    try:
        os.write(fd, data)
        found = judge(scan_fd(fd, len(data)), signer.NOW, file_rules_only=structure)
    except EifError as e:
        return [e.rule]
    finally:
        os.close(fd)
    pcr8 = "-" if found.pcr8 is None else found.pcr8.hex()
    return ["ok", found.pcr0.hex(), found.pcr1.hex(), found.pcr2.hex(), pcr8]


def agree(core: Core, data: bytes) -> str:
    """Both verdicts are the same; gives the package's rule."""
    ours, theirs = package(data), core.ask(data)
    if ours[0] == "ok":
        assert theirs == ours
    else:
        assert theirs[0] == ours[0], " ".join(theirs)
    return ours[0]


PCR0 = bytes.fromhex(model.TINY_PCRS[0])
GOOD = model.pack(model.TINY)
SIGNED = {
    name: model.pack([*model.TINY, (model.SIGNATURE, signer.section(PCR0, name))]) for name in signer.CURVES
}


def test_good_files(core: Core) -> None:
    for data in (GOOD, *SIGNED.values()):
        assert agree(core, data) == "ok"
    assert core.ask(GOOD)[1:4] == list(model.TINY_PCRS)


def test_gaps(core: Core) -> None:
    """Between any sections, with any bytes in them, and damaged."""
    for at in range(len(model.TINY)):
        for gap in (b"\0", bytes(64), b".eif" * 99):
            data = model.pack(model.TINY, gaps={at: gap})
            assert agree(core, data) == "ok" and core.ask(data)[1:4] == list(model.TINY_PCRS)
    for data in damaged_files(model.pack(model.TINY, gaps={0: bytes(64), 2: bytes(9)}), 8):
        rule = agree(core, data)
        if not rule.startswith("signature-"):
            assert rule == model.verdict(data)
    with Core("--structure", "--load") as loader:
        assert agree(loader, test_eif_format.GAPPED) == "ok"
        for at in (548, len(test_eif_format.GAPPED) - 100):
            damaged = bytearray(test_eif_format.GAPPED)
            damaged[at] ^= 1
            assert agree(loader, bytes(damaged)) == "crc-mismatch"


def test_each_rule(core: Core) -> None:
    for rule, what, damage in test_eif_format.DAMAGES:
        assert agree(core, damage()) == rule, what


def test_each_rule_of_signatures(core: Core) -> None:
    for rule, what, section in test_eif_signature.REFUSED:
        data = model.pack([*model.TINY, (model.SIGNATURE, section())])
        assert agree(core, data) == rule, what


def test_signatures_that_may_differ(core: Core) -> None:
    for what, section in test_eif_signature.ACCEPTED:
        assert agree(core, model.pack([*model.TINY, (model.SIGNATURE, section())])) == "ok", what


def test_every_length(core: Core) -> None:
    """The unsigned file cut at each of its bytes."""
    for length in range(len(GOOD)):
        assert agree(core, GOOD[:length]) != "ok"


NUMBERS = [0, 1, 2, 3, 4, 5, 31, 32, 33, 548, 575, 577, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def mutants(data: bytes, seed: int) -> Iterator[bytes]:
    """The bytes with bits flipped, bytes set, runs removed or repeated, and numbers replaced."""
    rng = random.Random(seed)
    for _ in range(COUNT):
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if not mutant:
                break
            at = rng.randrange(len(mutant))
            match rng.randrange(5):
                case 0:
                    mutant[at] ^= 1 << rng.randrange(8)
                case 1:
                    mutant[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
                case 2:
                    del mutant[at : at + rng.choice((1, 2, 4, 8, 12, 100))]
                case 3:
                    mutant[at:at] = mutant[at : at + rng.choice((1, 2, 4, 8, 12, 100))]
                case 4:
                    size, form = rng.choice(((2, ">H"), (4, ">I"), (8, ">Q")))
                    number = rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))
                    if at + size <= len(mutant):
                        struct.pack_into(form, mutant, at, number % (1 << 8 * size))
        yield bytes(mutant)


def damaged_files(data: bytes, seed: int) -> Iterator[bytes]:
    """Mutants of a file, some in the header's tables or a section's type; half with the right checksum."""
    rng = random.Random(seed)
    sections = struct.unpack_from(">5Q", data, 28)
    for i, mutant in enumerate(mutants(data, seed)):
        changed = bytearray(data)
        if i % 8 == 1:
            for _ in range(rng.randrange(1, 3)):
                struct.pack_into(">H", changed, rng.choice(sections), rng.randrange(7))
            mutant = bytes(changed)
        elif i % 4 == 3:
            slot = rng.choice((28, 284)) + 8 * rng.randrange(7)
            (value,) = struct.unpack_from(">Q", changed, slot)
            near = value + rng.choice((-13, -12, -1, 1, 12, 13, 2**63))
            struct.pack_into(">Q", changed, slot, near % 2**64)
            mutant = bytes(changed)
        yield model.with_crc(mutant) if i % 2 else mutant


def test_mutants_of_an_unsigned_file(core: Core) -> None:
    """And the model, written a third time, agrees with both."""
    rules = set()
    for data in damaged_files(GOOD, 1):
        rule = agree(core, data)
        if not rule.startswith("signature-"):
            assert rule == model.verdict(data)
        rules.add(rule)
    assert len(rules) > 15, rules


@pytest.mark.parametrize("name", signer.CURVES)
def test_mutants_of_signed_files(core: Core, name: str) -> None:
    """Damage anywhere in a signed file."""
    for data in damaged_files(SIGNED[name], 2):
        agree(core, data)


def test_mutants_of_signatures(core: Core) -> None:
    """Damage within the section alone, the file around it being right."""
    rules = set()
    for data in mutants(signer.section(PCR0), 3):
        file = model.pack([*model.TINY, (model.SIGNATURE, data[:32768])])
        rules.add(agree(core, file))
    assert {"ok", "signature-malformed", "signature-certificate", "signature-invalid"} <= rules


def test_mutants_of_cose(core: Core) -> None:
    """Damage within the COSE_Sign1 alone, the section around it being right."""
    import cbor2

    (pair,) = cbor2.loads(signer.section(PCR0))
    rules = set()
    for cose in mutants(bytes(pair["signature"]), 4):
        section = signer.section(PCR0, cose=cose)
        rules.add(agree(core, model.pack([*model.TINY, (model.SIGNATURE, section)])))
    assert {"signature-malformed", "signature-invalid"} <= rules


def test_signed_payloads(core: Core) -> None:
    """Payloads and protected headers that are damaged and then signed, so that the rules behind show."""
    import cbor2

    payload = cbor2.dumps({"register_index": 0, "register_value": list(PCR0)})
    for i, damaged in enumerate(mutants(payload, 5)):
        if i % 4 == 0:
            agree(core, model.pack([*model.TINY, (4, signer.section(PCR0, payload=damaged))]))
    for i, damaged in enumerate(mutants(cbor2.dumps({1: -35, 4: b"kid", 1000: [1, {2: 3}]}), 6)):
        if i % 4 == 0:
            agree(core, model.pack([*model.TINY, (4, signer.section(PCR0, protected=damaged))]))


# ---- what can be booted ----


@pytest.fixture(scope="module")
def boot_core() -> Iterator[Core]:
    """The C core, asked for everything that does not depend on a guest's memory."""
    with Core("--now", str(int(signer.NOW.timestamp()))) as running:
        yield running


def bootable(kernel: bytes, cmdline: bytes = b"console=ttyS0") -> bytes:
    return model.pack([(model.KERNEL, kernel), (model.CMDLINE, cmdline), *model.TINY[2:]])


def test_kernels(boot_core: Core) -> None:
    """Any byte of the setup header changed, in files that are right otherwise."""
    good = model.bzimage()
    rules = set()
    fields = [0, 0x1F1, 0x1FE, 0x1FF, *range(0x202, 0x212), *range(0x238, 0x23C), *range(0x258, 0x264)]
    for at in fields:
        for value in (0, 1, 4, 127, 128, 255):
            kernel = bytearray(good)
            kernel[at] = value
            file = bootable(bytes(kernel), b"x" * 300)
            ours, theirs = package(file, structure=False), boot_core.ask(file)
            assert ours[0] == theirs[0], (hex(at), value, ours, theirs)
            rules.add(ours[0])
    assert rules == {"ok", "kernel-not-bzimage", "kernel-setup-size", "cmdline-too-long"}


@pytest.mark.parametrize("size", [0, 1, 0x1F2, 0x206, 0x263, 0x264, 1024, 2560, 2561])
def test_short_kernels(boot_core: Core, size: int) -> None:
    file = bootable(model.bzimage()[:size])
    assert package(file, structure=False)[0] == boot_core.ask(file)[0]


@pytest.mark.parametrize("length", [0, 1, 2046, 2047, 2048, 65536, 65537])
def test_command_line_lengths(boot_core: Core, length: int) -> None:
    for damage in (b"", b"\0"):
        file = bootable(model.bzimage(), b"x" * (length - len(damage)) + damage if length else b"")
        ours = package(file, structure=False)[0]
        assert ours == boot_core.ask(file)[0]
        assert ours == "ok" if length <= 2047 and not (damage and length) else ours != "ok"


def test_mutants_of_a_bootable_file(boot_core: Core) -> None:
    rules = set()
    for file in damaged_files(bootable(model.bzimage()), 7):
        ours = package(file, structure=False)[0]
        assert ours == boot_core.ask(file)[0]
        rules.add(ours)
    assert {"ok", "crc-mismatch", "kernel-not-bzimage"} <= rules
