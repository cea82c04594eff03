# SPDX-License-Identifier: MIT
"""Records of enclaves in folders that are not as they should be. What is in a record is test_life's."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitroctl.base import atomic
from nitroctl.base.errors import NitroError
from nitroctl.enclaves import records
from nitroctl.enclaves.records import Home, Record, State
from recorded import record


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the records are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "nitroctl" / "enclaves"


@pytest.fixture
def made(state: Path) -> Iterator[tuple[Home, Record]]:
    home, first = records.create(record(), "00000000000000a1")
    yield home, first
    home.close()


def fail(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, refuse)


def test_folders_that_cannot_be_made(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.parent.parent.write_text("a file where the folder should be")
    with pytest.raises(NitroError) as caught:
        records.create(record(), "1")
    assert str(caught.value) == (
        f"cannot make the folder {state.parent} for the records of enclaves: Not a directory"
    )
    assert caught.value.hint == "set XDG_STATE_HOME to a folder that you can write to"
    with pytest.raises(NitroError, match="cannot read the records of enclaves in .*: Not a directory"):
        records.every()

    state.parent.parent.unlink()
    state.mkdir(parents=True, mode=0o700)
    (state / ".lock").mkdir()
    with pytest.raises(NitroError, match=f"cannot write into {state}: Is a directory"):
        records.create(record(), "1")
    (state / ".lock").rmdir()

    fail(monkeypatch, records, "_write", errno.ENOSPC)
    with pytest.raises(NitroError, match=f"cannot make the record {state}/1: No space left on device"):
        records.create(record(), "1")
    assert os.listdir(state) == [".lock"]


def test_a_full_disk_ends_no_enclave(
    made: tuple[Home, Record], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record stays as it was, with one warning; written again as soon as there is room."""
    home, first = made
    later = record(home=home.path, state=State.STOPPING)
    with monkeypatch.context() as patch:
        fail(patch, atomic, "write", errno.ENOSPC)
        home.write(later)
        home.write(later)
    assert capsys.readouterr().err == (
        f"warning: cannot write {home.path}/record.json: No space left on device\n"
    )
    assert records.again(first) == first
    home.write(later)
    assert records.again(first) == later


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"home": 7}', "\0" * 9, "[" * 100_000, '{"x": ' * 100_000],
    ids=["empty", "cut", "list", "null", "no-keys", "other-kinds", "zeros", "deep-list", "deep"],
)
def test_a_damaged_record_is_none(made: tuple[Home, Record], text: str) -> None:
    """The others are found as ever."""
    home, first = made
    other, second = records.create(record(name="other"), "00000000000000a2")
    try:
        (home.path / "record.json").write_text(text)
        assert records.every() == [second] == records.running() and records.again(first) is None
        about = second.to_json() | {"state": "dancing"}
        (home.path / "record.json").write_text(json.dumps(about))
        assert records.every() == [second]
    finally:
        other.close()


def test_names_are_given_once(made: tuple[Home, Record]) -> None:
    """nitro-cli's rule: _1, _2 and so on for those that would have a running enclave's name."""
    homes = [records.create(record(), f"00000000000000b{number}") for number in range(2)]
    assert [found.name for _, found in homes] == ["hello_1", "hello_2"]
    for home, _ in homes:
        home.remove()
    assert [found.name for found in records.every()] == ["hello"]


def test_what_cannot_be_removed_is_told(made: tuple[Home, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    home, _ = made
    with monkeypatch.context() as patch:
        fail(patch, atomic, "remove", errno.EACCES)
        with pytest.raises(NitroError, match=f"cannot remove {home.path}: Permission denied"):
            records._remove(home.path)
    records._remove(home.path)
    records._remove(home.path)  # somebody else was faster


def test_a_supervisor_that_does_not_listen_is_killed(
    made: tuple[Home, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "STOP_SECONDS", 0.01)
    home, _ = made
    deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; exec sleep 600"], stdout=subprocess.PIPE)
    try:
        assert deaf.stdout and select.select([deaf.stdout], [], [], 30)[0]
        known = record(home=home.path, supervisor_pid=deaf.pid)
        records.stop(known)
        assert deaf.wait() == -signal.SIGKILL
        deaf.stdout.close()
    finally:
        deaf.kill()
        deaf.wait()
    # It is reaped, and its number nobody's.
    assert records.supervisor_fd(known) is None
