# SPDX-License-Identifier: MIT
"""The store of keys, aliases, grants, callers and measurements: one SQLite file in a private folder.

Any number of servers and commands can share it: each request reads and writes in one transaction, and nothing
is kept in memory between requests. Thanks to SQLite's write-ahead log, what was answered survives `kill -9`
and a power failure. Key material is not encrypted: like an SSH key it is protected only by the modes of the
folder (0700) and the file (0600). What the rows mean is left to the other modules.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nitroctl.base import config
from nitroctl.base.errors import NitroError

FILE = "kms.sqlite3"
BUSY_SECONDS = 20.0
VERSION = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, region TEXT NOT NULL, account TEXT NOT NULL, created REAL NOT NULL,
    description TEXT NOT NULL, spec TEXT NOT NULL, usage TEXT NOT NULL, origin TEXT NOT NULL,
    state TEXT NOT NULL, multi_region INTEGER NOT NULL, deletion REAL, valid_to REAL, expiration TEXT,
    policy TEXT NOT NULL, material BLOB, material_id TEXT) STRICT;
CREATE TABLE IF NOT EXISTS aliases (
    region TEXT NOT NULL, account TEXT NOT NULL, name TEXT NOT NULL, key_id TEXT NOT NULL,
    created REAL NOT NULL, updated REAL NOT NULL, PRIMARY KEY (region, account, name)) STRICT;
CREATE TABLE IF NOT EXISTS grants (
    id TEXT PRIMARY KEY, token TEXT NOT NULL, key_id TEXT NOT NULL, grantee TEXT NOT NULL, retiring TEXT,
    operations TEXT NOT NULL, constraints TEXT, name TEXT, issuer TEXT NOT NULL,
    created REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS imports (
    token BLOB PRIMARY KEY, key_id TEXT NOT NULL, private_key BLOB NOT NULL, algorithm TEXT NOT NULL,
    expires REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rotations (
    key_id TEXT PRIMARY KEY, period INTEGER NOT NULL, next REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS materials (
    key_id TEXT NOT NULL, material_id TEXT NOT NULL, material BLOB NOT NULL, since REAL, kind TEXT,
    PRIMARY KEY (key_id, material_id)) STRICT;
CREATE TABLE IF NOT EXISTS tags (
    key_id TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (key_id, name)) STRICT;
CREATE TABLE IF NOT EXISTS identities (arn TEXT PRIMARY KEY, policies TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS credentials (
    access_key TEXT PRIMARY KEY, secret TEXT NOT NULL, token TEXT, arn TEXT NOT NULL, session TEXT,
    expires REAL) STRICT;
CREATE TABLE IF NOT EXISTS measurements (
    path TEXT NOT NULL, pcr INTEGER NOT NULL, value TEXT NOT NULL, seen REAL NOT NULL,
    PRIMARY KEY (path, pcr, value)) STRICT;
"""


def default_folder() -> Path:
    return config.data_dir() / "kms"


class Store:
    """Use one per process; each thread gets its own connection. Raises NitroError if the store cannot be
    opened, sqlite3.Error later."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = config.private_dir(folder or default_folder())
        self.path = self.folder / FILE
        self._local = threading.local()
        try:
            # SQLite creates its other files (-wal, -shm) with the mode of this one.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            with contextlib.closing(self._open()) as db:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if version > VERSION:
                    raise NitroError(
                        f"{self.path} was written by a newer nitroctl (schema version {version})",
                        hint="upgrade nitroctl, or use another folder",
                    )
                if version < VERSION:
                    db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        except OSError as e:
            raise NitroError(f"cannot open {self.path}: {e.strerror}") from e
        except sqlite3.Error as e:
            raise NitroError(
                f"cannot use {self.path}: {e}",
                hint="move the file away to start with an empty store; the keys in it are then lost",
            ) from e

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        return db

    def _db(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = self._open()
        return db

    def close(self) -> None:
        """Close this thread's connection."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is not None:
            self._local.db = None
            db.close()

    @contextlib.contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction: all or nothing. Inside another transaction of this thread it becomes part of that
        one. `write` takes the write lock at once."""
        db = self._db()
        if db.in_transaction:
            yield db
            return
        db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            yield db
        except BaseException:
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk may already have rolled it back
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def one(self, query: str, *values: Any) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db().execute(query, values).fetchone()
        return row

    def all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        return self._db().execute(query, values).fetchall()
