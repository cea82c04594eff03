# SPDX-License-Identifier: MIT
"""What was answered is kept: through kill -9 at any moment, beside a second server, and on a full disk."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kms_world import World
from nitroctl.base.errors import NitroError
from nitroctl.kms import events, keys, material
from nitroctl.kms.errors import KmsError
from nitroctl.kms.store import Store

# Makes keys and secrets for ever, and says each one that it was answered.
WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from kms_world import World
world = World(Path(sys.argv[1]))
while True:
    key = world.key()
    print(key, world.secret(key, key.encode()).hex(), flush=True)
"""


def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1]
    answered: list[str] = []
    for lines in (1, 4, 9):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, folder], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout
            answered += [writer.stdout.readline() for _ in range(lines)]
            writer.send_signal(signal.SIGKILL)  # in the midst of the next one
            rest = writer.stdout.read().splitlines(keepends=True)
        answered += [line for line in rest if line.endswith("\n")]
    world = World(tmp_path)
    for line in answered:
        key, blob = line.split()
        assert world.call("Decrypt", CiphertextBlob=bytes.fromhex(blob))["Plaintext"].decode() == key
    with world.store.transaction() as db:
        assert [tuple(row) for row in db.execute("PRAGMA integrity_check")] == [("ok",)]


def test_two_servers_share_a_store(tmp_path: Path) -> None:
    """What one makes, the other has; writes at once wait for each other."""
    first, second = World(tmp_path), World(tmp_path)
    key = first.key()
    assert second.call("Decrypt", CiphertextBlob=first.secret(key))["Plaintext"] == b"secret"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: (first, second)[i % 2].key(), range(60)))
    assert {k["KeyId"] for k in second.call("ListKeys", Limit=1000)["Keys"]} == {key, *made}
    text = (first.store.folder / "events.jsonl").read_text().splitlines()
    assert len(text) == len(first.events) + len(second.events)


def test_a_store_of_the_first_form(tmp_path: Path) -> None:
    """One that was written before keys could be rotated."""
    world = World(tmp_path)
    key = world.key()
    blob = world.secret(key)
    with world.store.transaction(write=True) as db:
        db.execute("DROP TABLE rotations")
        db.execute("DROP TABLE materials")
        db.execute("PRAGMA user_version = 1")
    world.store.close()
    world = World(tmp_path)
    world.call("RotateKeyOnDemand", KeyId=key)
    assert world.call("Decrypt", CiphertextBlob=blob)["Plaintext"] == b"secret"


def test_others_write_while_a_pair_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes seconds: here, until another key has been made."""
    world, generate = World(tmp_path), material.generate
    begun, other = threading.Event(), threading.Event()

    def slowly(spec: str) -> bytes:
        if spec == "RSA_4096":
            begun.set()
            assert other.wait(60)
            spec = "RSA_2048"
        return generate(spec)

    monkeypatch.setattr(material, "generate", slowly)
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(world.key, KeySpec="RSA_4096", KeyUsage="SIGN_VERIFY")
        assert begun.wait(60)
        key = world.key()
        other.set()
        assert {key, made.result()} == {k["KeyId"] for k in world.call("ListKeys")["Keys"]}


def test_a_deleted_key_is_in_no_file(tmp_path: Path) -> None:
    world = World(tmp_path)
    kept, gone = world.key(), world.key()
    materials = {row["id"]: row["material"] for row in world.store.all("SELECT id, material FROM keys")}

    def in_files(material: bytes) -> bool:
        return any(material in path.read_bytes() for path in world.store.folder.iterdir())

    assert in_files(materials[gone])
    keys.delete(world.store, gone)
    world.store.close()  # the last connection empties the log
    assert in_files(materials[kept]) and not in_files(materials[gone])


def test_it_is_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        world = World(tmp_path)
        world.key()
    finally:
        os.umask(old)
    assert stat.S_IMODE(world.store.folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in world.store.folder.iterdir()}
    assert {"kms.sqlite3", "kms.sqlite3-wal", "events.jsonl"} <= modes.keys() and set(modes.values()) == {
        0o600
    }
    world.store.folder.chmod(0o755)
    with pytest.raises(NitroError, match="mode 0700"):
        Store(world.store.folder)


def test_a_full_disk_is_an_error_and_no_damage(tmp_path: Path) -> None:
    """The limit on a file's size stands for the full disk: the kernel refuses to write beyond it."""
    world = World(tmp_path)
    key = world.key()
    blob = world.secret(key)
    size = (world.store.folder / "kms.sqlite3-wal").stat().st_size
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
    try:
        with pytest.raises(KmsError, match="KMSInternalException") as caught:
            for _ in range(50):
                world.key()
        assert caught.value.status == 500
        assert world.call("Decrypt", CiphertextBlob=blob)["Plaintext"] == b"secret"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    made = world.key()
    assert {key, made} <= {k["KeyId"] for k in World(tmp_path).call("ListKeys")["Keys"]}


def test_events_after_a_full_disk_and_beyond_the_file_s_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a full disk has cut costs no other event, and one file at most is kept beside the newest."""
    log = events.Log(tmp_path)

    def kept() -> list[int]:
        return [event["n"] for event in events.read(tmp_path)]

    log.write({"n": 1})
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, limits[1]))  # the second line ends in its midst
    try:
        log.write({"n": 2})
        log.write({"n": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    log.write({"n": 4})
    assert kept() == [1, 4]
    monkeypatch.setattr(events, "MOST_BYTES", 40)
    for n in range(5, 15):
        log.write({"n": n})
    assert kept() == list(range(kept()[0], 15)) and len(kept()) > 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "events.jsonl.1"]


def broken(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


def newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "text"), [(broken, "cannot use"), (newer, "newer nitroctl"), (folder, "cannot open")]
)
def test_a_file_that_is_no_store_is_one_error(
    tmp_path: Path, damage: Callable[[Path], None], text: str
) -> None:
    (tmp_path / "kms").mkdir(mode=0o700)
    damage(tmp_path / "kms" / "kms.sqlite3")
    with pytest.raises(NitroError, match=text):
        Store(tmp_path / "kms")
