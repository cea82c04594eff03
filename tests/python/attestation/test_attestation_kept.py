# SPDX-License-Identifier: MIT
"""Chains that are kept for the next enclave of an instance: what is taken again, and what never is."""

from __future__ import annotations

import json
import os
import stat
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from nitroctl.attestation import kept, pki
from nitroctl.base.errors import NitroError
from nitroctl.base.instants import UTC


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "nitroctl/ca/instances"


def chain(
    instance: str = "i-1", days: int = 1, form: pki.DocumentForm = "2025", unmeasured: bool = False
) -> str:
    return kept.chain(instance, days=days, form=form, unmeasured=unmeasured)[0]


def test_each_request_has_a_chain_of_its_own(folder: Path) -> None:
    made = [
        chain(), chain("i-2"), chain(days=2), chain(form="2023"), chain(unmeasured=True), chain("i/../2"),
    ]  # fmt: skip
    assert len(set(made)) == 6
    assert made == [
        chain(), chain("i-2"), chain(days=2), chain(form="2023"), chain(unmeasured=True), chain("i/../2"),
    ]  # fmt: skip
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()] == [0o600] * 6


def test_a_chain_lasts_as_long_as_was_asked_for_less_an_hour(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chain()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3590)
    assert chain() == first
    end = x509.load_pem_x509_certificates(first.encode())[3].not_valid_after_utc
    assert end - datetime.fromtimestamp(now + 3590, UTC) > timedelta(hours=22, minutes=59)
    monkeypatch.setattr("time.time", lambda: now + 3610)
    assert chain() != first
    monkeypatch.setattr("time.time", lambda: now - 10)  # minted in what is the future now
    assert chain() != first


def test_old_ones_do_not_pile_up(folder: Path) -> None:
    chain()
    for one in folder.iterdir():
        os.utime(one, (1, 1))
    chain("i-2")
    assert len(list(folder.iterdir())) == 1


def test_nothing_is_kept_of_another_ca(folder: Path) -> None:
    first = chain()
    saved = {one.name: one.read_bytes() for one in folder.iterdir()}
    pki.init(force=True)
    assert not folder.exists()
    folder.mkdir(mode=0o700)
    for name, data in saved.items():
        (folder / name).write_bytes(data)
    assert chain() != first
    root = (folder.parent / "root.pem").read_text()
    assert chain().startswith(root)


def test_whatever_lies_there_costs_a_chain_and_no_more(folder: Path) -> None:
    first = chain()
    (path,) = folder.iterdir()
    good = json.loads(path.read_bytes())
    for bad in (
        b"", b"\xff", b"[]", b"null", b'{"minted": 1}', json.dumps({**good, "minted": "now"}).encode(),
        json.dumps({**good, "key": None}).encode(), json.dumps({**good, "minted": 1e400}).encode(),
    ):  # fmt: skip
        path.write_bytes(bad)
        assert chain() != first
    path.write_bytes(json.dumps(good).encode())
    assert chain() == first
    # A CA that is damaged is one, whatever is kept.
    (folder.parent / "root.pem").write_text("garbage")
    with pytest.raises(NitroError, match="is damaged"):
        chain()


def test_a_folder_that_cannot_be_written_is_no_error(folder: Path) -> None:
    pki.load_or_init()
    folder.write_text("a file")
    assert chain() != chain()
