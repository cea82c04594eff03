# SPDX-License-Identifier: MIT
"""`nitro-cli` on enclaves that are records alone: codes and texts where one cannot be ended, measured or told
from another. Enclaves with processes: test_nitro_cli_enclaves.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import eifmodel as model
from nitro_cli_world import check_failure, run
from nitroctl.base.errors import EnclaveError
from nitroctl.enclaves import records
from nitroctl.enclaves.records import Record, State
from recorded import record

pytestmark = pytest.mark.usefixtures("world")


def are_running(monkeypatch: pytest.MonkeyPatch, *found: Record) -> None:
    monkeypatch.setattr(records, "running", lambda: list(found))


def test_two_of_one_name(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """AWS's E58; by their ids each can be named."""
    are_running(monkeypatch, record(id="i-0-enc1"), record(id="i-0-enc2"))
    for command in ("terminate-enclave", "console"):
        check_failure(run(capfd, command, "--enclave-name", "hello"), "E58", "Conflicting enclave names")


def test_one_that_does_not_end(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    are_running(monkeypatch, record())

    def fails(found: Record) -> Record:
        raise EnclaveError("its supervisor does not answer")

    def stays(found: Record) -> Record:
        return record(state=State.STOPPING)

    for stop, text in (
        (fails, "hello: its supervisor does not answer"),
        (stays, "hello: it is stopping as before"),
    ):
        monkeypatch.setattr(records, "stop", stop)
        result = run(capfd, "terminate-enclave", "--enclave-name", "hello")
        check_failure(result, "E38", text, in_process=True)


def test_what_is_told_of_one_that_wrote_nothing_down(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """PCRs come from the image where the record has none, and are left out where that is gone."""
    image = world / "app.eif"
    image.write_bytes(model.pack(model.TINY))
    are_running(monkeypatch, record(eif=image, home=world / "home"))
    status, out, _ = run(capfd, "describe-enclaves", "--metadata")
    (found,) = json.loads(out)
    assert status == 0
    assert tuple(found["Measurements"][f"PCR{i}"] for i in range(3)) == model.measure(model.TINY)
    image.unlink()
    status, out, _ = run(capfd, "describe-enclaves", "--metadata")
    (found,) = json.loads(out)
    assert status == 0 and "Measurements" not in found and found["EnclaveID"] == "i-0-enc1"
    logs = "".join(path.read_text() for path in (world / "logs").iterdir())
    assert "hello cannot be measured" in logs and "the image of hello cannot be read" in logs


def test_versions_of_commands(capfd: pytest.CaptureFixture[str]) -> None:
    """As clap has it: each command knows -V; build-enclave's --version is the image's."""
    whole = run(capfd, "--version")
    assert whole[0] == 0 and whole[1].startswith("Nitro CLI ")
    for argv in (("describe-enclaves", "-V"), ("pcr", "--version"), ("build-enclave", "-V")):
        assert run(capfd, *argv) == whole
    assert "a value is required for '--version <VERSION>'" in run(capfd, "build-enclave", "--version")[2]
    assert "Print the version" not in run(capfd, "help", "build-enclave")[1]
