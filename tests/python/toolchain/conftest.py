# SPDX-License-Identifier: MIT
"""What several files of this room build on: the stage of buildstage.py, with a cache of its own. Tests that
need another have their own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from buildstage import Stage, use_stage


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("STEPS", str(made.steps_file))
    monkeypatch.setenv("STOPPED", str(tmp_path / "stopped"))
    use_stage(made, monkeypatch.setattr)
    return made
