# SPDX-License-Identifier: MIT
"""`nitroctl --version`: the commit is git's, the QEMU the one that would run; nothing is started for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nitroctl import __version__, cli
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import about, bundle, plugin

GIT = {"GIT_AUTHOR_NAME": "n", "GIT_AUTHOR_EMAIL": "e", "GIT_COMMITTER_NAME": "n", "GIT_COMMITTER_EMAIL": "e",
       "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}  # fmt: skip


def git(folder: Path, *words: str) -> str:
    argv = ["git", "-C", str(folder), *words]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(argv, env={**env, **GIT}, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_what_git_says(tmp_path: Path) -> None:
    """On a branch, in a worktree, of packed refs, of no branch; and in no checkout at all."""
    assert about.commit(tmp_path) is None
    main, other = tmp_path / "main", tmp_path / "other"
    git(tmp_path, "init", "-q", str(main))
    assert about.commit(main) is None  # nothing was committed
    git(main, "commit", "-q", "--allow-empty", "-m", "one")
    head = git(main, "rev-parse", "HEAD")
    assert about.commit(main) == head
    git(main, "worktree", "add", "-q", "-b", "more/work", str(other))
    git(other, "commit", "-q", "--allow-empty", "-m", "two")
    assert about.commit(other) == git(other, "rev-parse", "HEAD") != head
    git(main, "pack-refs", "--all")
    assert (about.commit(main), about.commit(other)) == (head, git(other, "rev-parse", "HEAD"))
    git(main, "checkout", "-q", "--detach")
    assert about.commit(main) == head


def test_the_command_tells_commit_and_qemu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("something was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(bundle, "commit", lambda: "0123456789abcdef" * 2)
    none = NitroError("no", hint="make it")
    for found, words in ((Path("/q/qemu"), "/q/qemu"), (none, "none yet: make it")):

        def in_use(found: Path | NitroError = found) -> Path:
            if isinstance(found, NitroError):
                raise found
            return found

        monkeypatch.setattr(plugin, "in_use", in_use)
        with pytest.raises(SystemExit) as ended:
            cli.main(["--version"])
        said = f"nitroctl, version {__version__}, commit 0123456789ab\nQEMU: {words}\n"
        assert (ended.value.code, capsys.readouterr().out) == (0, said)
