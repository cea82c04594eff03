# SPDX-License-Identifier: MIT
"""What several files of this room run in: logs, artifacts and a PATH of their own; and keys to sign with."""

from __future__ import annotations

from pathlib import Path

import pytest

import eifsigner as signer


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logs and intermediate files of its own, no Docker, no skopeo; a folder for programs on PATH."""
    monkeypatch.setenv("NITRO_CLI_LOGS_PATH", str(tmp_path / "logs"))
    monkeypatch.setenv("NITRO_CLI_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "cp", "cat", "mkdir"):
        (programs / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    return tmp_path


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that is valid now, and its key."""
    from datetime import datetime, timedelta

    from nitroctl.base.instants import UTC

    now = datetime.now(UTC).replace(microsecond=0)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(signer.pem("P-384", begin=now - timedelta(days=1), end=now + timedelta(days=1)))
    key.write_bytes(signer.key_pem("P-384"))
    return certificate, key
