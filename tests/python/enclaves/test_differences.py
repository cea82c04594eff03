# SPDX-License-Identifier: MIT
"""What of a run there is not on AWS: every option is classified, and strict enclaves refuse what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

import eifmodel as model
from enclave_fakes import HEARTBEAT, Bench, steps
from nitroctl.api import Enclave
from nitroctl.base.errors import UsageError
from nitroctl.enclaves import differences
from nitroctl.enclaves.differences import DiffersFromAws
from nitroctl.enclaves.request import RunRequest


def test_every_option_is_classified() -> None:
    options = {one.name for one in RunRequest.options() if one.option}
    assert options == differences.SAME | differences.OPTIONS.keys()
    assert not differences.SAME & differences.OPTIONS.keys()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["cpu-count"]),
        ({"cpus": 2}, []),
        ({"cpus": 2, "memory": 512, "cid": 77, "name": "x", "debug_mode": True, "proxy": ["8000=a:443"]}, []),
        ({"cpus": 4, "memory_check": False}, ["memory-check"]),
        ({"cpus": 2, "append": "quiet", "ignore_signature": True}, ["append", "ignore-signature"]),
        ({"cpus": 2, "overlay": ["x"], "overlay_keep_pcrs": True}, ["overlay", "overlay"]),
        ({"cpus": 2, "document_form": "2023"}, ["document-form"]),
        ({"cpus": 2, "publish": ["127.0.0.1:80=80"]}, ["publish"]),
        ({"cpus": 2, "forward_cid": 1, "forward_listen": ["9"]}, ["host-vsock", "host-vsock"]),
    ],
)
def test_options_that_differ(tmp_path: Path, given: dict[str, object], names: list[str]) -> None:
    request = RunRequest.from_keywords("Enclave", eif=tmp_path / "x", **given)
    assert [one.name for one in differences.of_request(request)] == names


def test_the_image_and_its_memory(tmp_path: Path) -> None:
    """As `eif lint` finds it, but for notes; a file that has changed is looked at again."""
    path = tmp_path / "x.eif"
    parts = [(model.KERNEL, model.bzimage()), (model.CMDLINE, b"panic=30"), model.TINY[2]]
    path.write_bytes(model.pack([*parts, (model.RAMDISK, b"?")]))
    assert differences.of_image(path, None) == []  # only notes: neither kernel nor ramdisk can be looked into
    assert [one.name for one in differences.of_image(path, 32)] == ["lint:memory"]
    path.write_bytes(model.pack([*parts[:1], (model.CMDLINE, b"quiet"), *parts[2:], (model.RAMDISK, b"?")]))
    assert [one.name for one in differences.of_image(path, None)] == ["lint:cmdline-panic"]


@pytest.fixture
def world(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Fake programs, and an image in which nothing is found."""
    script = (HEARTBEAT, ["print", "up\r\n"], ["tell", "exited 0"], ["reset"])
    for name, value in bench.environment(steps(*script)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(differences, "of_image", lambda eif, memory: [])
    return bench


def enclave(world: Bench, *differs: str, **options: object) -> Enclave:
    given = {"qemu": world.qemu, "vsock_backend": world.backend, "cpus": 2, **options}
    return Enclave(world.eif, strict=True, differs=differs, **given)  # type: ignore[arg-type]


def test_a_strict_enclave_does_not_start_with_what_differs(world: Bench) -> None:
    with pytest.raises(DiffersFromAws) as e:
        enclave(world, "append", cpus=1, append="quiet", memory_check=False).start()
    assert e.value.names == ("memory-check", "cpu-count")
    assert str(e.value).startswith("this depends on what there is not on AWS\n  less memory than")
    assert (
        e.value.hint
        and "docs/differences.md" in e.value.hint
        and "('memory-check', 'cpu-count')" in e.value.hint
    )
    with pytest.raises(UsageError, match="no difference 'consol'"):
        enclave(world, "consol")
    with pytest.raises(UsageError, match="a list"):
        Enclave(world.eif, strict=True, differs="console")


def test_what_a_strict_enclave_does_not_tell(world: Bench) -> None:
    """The console without debug mode and the application's status; all else works as ever."""
    with enclave(world) as one:
        for ask in (
            lambda: one.console.text, lambda: one.console.path, lambda: one.console.tail(),
            lambda: next(one.console.lines()), lambda: one.console.wait_for("up"),
        ):  # fmt: skip
            with pytest.raises(DiffersFromAws, match="debug mode alone"):
                ask()
        ended = one.wait(60)
        assert (ended.ending, ended.name, one.record.cid, one.running) == (
            "orderly",
            one.name,
            one.cid,
            False,
        )
        for record in (ended, one.record):
            with pytest.raises(DiffersFromAws, match="tells nobody") as e:
                record.check()
            assert e.value.names == ("app-status",)
            with pytest.raises(DiffersFromAws, match="tells nobody"):
                assert record.app_status
    with enclave(world, "app-status", debug_mode=True) as one:
        one.console.wait_for("up")
        ended = one.wait(60)
        ended.check()
        assert ended.app_status == 0
