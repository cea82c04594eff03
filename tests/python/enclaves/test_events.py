# SPDX-License-Identifier: MIT
"""Events and the NSM's log as they are read, also from files with damage. The enclaves are this process."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitroctl.attestation import nsm
from nitroctl.base.errors import EnclaveError, NitroError
from nitroctl.enclaves import events, logs, records, requests
from nitroctl.enclaves.events import KEYS, Events
from nitroctl.enclaves.records import Home, Record
from recorded import record


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield tmp_path / "nitroctl" / "enclaves"
    shutil.rmtree(tmp_path / "nitroctl", ignore_errors=True)  # threads that follow end with it


def begin(number: str) -> tuple[Home, Record, Events]:
    home, made = records.create(record(name=f"e{number}"), number)
    return home, made, Events(home.path, home.name, made.id)


def test_all_are_followed_as_they_come(base: Path) -> None:
    """Those that run and those that start later; who cannot be asked for its NSM's log yet is asked with its
    next event again. When the folder goes the user is told, not left waiting."""
    home, first, told = begin("1")
    told.tell("started")
    asked: list[str] = []

    def attach(record: Record) -> None:
        asked.append(record.name)
        if asked.count(record.name) == 1:
            raise EnclaveError("cannot be asked: it is starting")

    following = events.follow(attach)
    assert (event := next(following))["event"] == "started" and event["enclave"] == "e1"
    told.tell("heartbeat")
    assert next(following)["event"] == "heartbeat"
    told.tell("fault", fault="die now")
    assert next(following)["fault"] == "die now" and asked == ["e1", "e1"]
    other, _, later = begin("2")
    later.tell("started")
    assert (event := next(following))["event"] == "started" and event["enclave"] == "e2"
    for sink, of in ((told, home), (later, other)):
        sink.close()
        of.remove()
    shutil.rmtree(base)
    with pytest.raises(NitroError, match=f"the folder {base} has been removed"):
        next(following)


def test_what_hinders_following_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user has 128 inotify instances; without one more, nothing would ever come."""

    def none_left(folder: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "inotify")

    monkeypatch.setattr(logs, "watch", none_left)
    with pytest.raises(OSError, match="Too many open files: 'inotify'"):
        next(events.follow(lambda record: None))


def test_damaged_lines_are_passed_over(base: Path) -> None:
    """Of both files; what is whole is read, whatever stands before it."""
    home, made, told = begin("1")
    told.tell("started")
    damage = [
        b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 60_000, b"{}", b'{"time": 7, "event": "x"}',
        b'{"time": "2026", "event": ["x"]}', b"x" * 70_000, b"y" * 200_000,
        b"[nitroctl: 5 bytes were lost]",
    ]  # fmt: skip
    for name in (logs.EVENTS, logs.NSM):
        with open(logs.paths(home.path, name)[1], "ab") as file:
            file.write(b"\n".join(damage) + b"\n")
    told.tell("pcr-locked", index=3, unknown="not among the keys")
    told.close()
    found = events.recorded([made])
    assert [event["event"] for event in found] == ["started", "pcr-locked"]
    assert set(found[1]) == set(KEYS) and found[1]["index"] == 3
    assert events.words(found[1]).endswith(" e1: PCR3 was locked")
    assert list(events.of(made, follow=False)) == found

    assert list(requests.of(made, follow=False)) == []
    with open(logs.paths(home.path, logs.NSM)[1], "ab") as file:
        line = b"1 1769860800000000 45 0 - 7 a1674c6f636b504352a165696e64657803 674c6f636b504352"
        entry = nsm.entry(line)
        assert entry
        file.write(json.dumps({"schema": 1, **entry.to_json(documents=True)}).encode() + b"\n")
    (read,) = requests.of(made, follow=False)
    assert (read.kind, read.index, read.result) == ("LockPCR", 3, "Success")
    home.remove()


def test_what_the_nsm_has_changed_is_an_event(base: Path) -> None:
    """LockPCR like the others; what it has refused, and what changes nothing, is none."""
    home, made, told = begin("1")
    for request, answer in (
        ("a1674c6f636b504352a165696e64657803", "674c6f636b504352"),  # {"LockPCR": {"index": 3}}, "LockPCR"
        ("a1674c6f636b504352a165696e64657800", "a1654572726f726d526561644f6e6c79496e646578"),
        ("6b4465736372696265 4e534d".replace(" ", ""), "a1654572726f726d526561644f6e6c79496e646578"),
    ):
        entry = nsm.entry(f"1 1769860800000000 45 0 - {len(request) // 2} {request} {answer}".encode())
        assert entry
        told.tell_request(entry)
    told.close()
    assert [(event["event"], event["index"]) for event in events.recorded([made])] == [("pcr-locked", 3)]
    home.remove()
