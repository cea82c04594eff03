# SPDX-License-Identifier: MIT
"""What `nitro-cli run-enclave` is asked for, by options or a file, and whether this host has it: CPUs,
memory. No enclave runs: test_nitro_cli_enclaves.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nitro_cli_world import check_failure, run
from nitroctl.nitro_cli import arguments, errors, request
from nitroctl.nitro_cli.errors import CliError

pytestmark = pytest.mark.usefixtures("world")


def from_options(*argv: str) -> request.Request:
    return request.from_options(arguments.parse(["run-enclave", *argv])[1])


def test_a_request_from_options() -> None:
    assert from_options("--eif-path", "a.eif", "--memory", "2g", "--cpu-count", "2") == request.Request(
        Path("a.eif"), 2048, 2
    )
    full = from_options(
        "--eif-path=a.eif", "--cpu-ids", "1", "3", "--memory", "512M", "--enclave-cid", "20", "--debug-mode",
        "--enclave-name", "n",
    )  # fmt: skip
    assert full == request.Request(Path("a.eif"), 512, 2, (1, 3), 20, True, False, "n")
    attached = from_options("--eif-path", "a", "--memory", "1", "--cpu-ids", "1,3", "--attach-console")
    assert (attached.debug_mode, attached.attach_console, attached.cpu_ids) == (True, True, (1, 3))
    assert from_options("--eif-path", "a", "--memory", "1", "--cpu-count", "1", "--enclave-cid", "0") == (
        request.Request(Path("a"), 1, 1)
    )


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--memory", "lots", "--cpu-count", "1"], "E03"),
        (["--memory", "0", "--cpu-count", "1"], "E03"),
        (["--memory", "1K", "--cpu-count", "1"], "E03"),
        (["--memory", "512", "--cpu-count", "two"], "E03"),
        (["--memory", "512", "--cpu-ids", "1", "x"], "E23"),
        *(
            (["--memory", "512", "--cpu-count", "1", "--enclave-cid", cid], "E03")
            for cid in ("1", "2", "3", "4294967295", "4294967296", "x")
        ),
    ],
)
def test_arguments_that_are_refused(more: list[str], code: str) -> None:
    with pytest.raises(CliError) as e:
        from_options("--eif-path", "x", *more)
    assert e.value.code == code


CONFIG = {"eif_path": "a.eif", "memory_mib": 512, "cpu_count": 2}


def config_file(folder: Path, value: object) -> Path:
    path = folder / "config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_request_from_a_file(tmp_path: Path) -> None:
    path = config_file(tmp_path, CONFIG)
    assert from_options("--config", str(path)) == request.Request(Path("a.eif"), 512, 2)
    # The option is taken, and only the key counts.
    assert from_options("--config", str(path), "--attach-console").attach_console is False
    value = {
        "eif_path": "a.eif", "memory_mib": 512, "cpu_ids": [1, 3], "enclave_cid": 20, "debug_mode": False,
        "attach_console": True, "enclave_name": "n", "cpu_count": None,
    }  # fmt: skip
    expected = request.Request(Path("a.eif"), 512, 2, (1, 3), 20, True, True, "n")
    assert request.from_config(config_file(tmp_path, value)) == expected
    # As with AWS, a key that it does not know is ignored, whatever it holds.
    assert request.from_config(config_file(tmp_path, {**value, "cpus": 2, "x": [None]})) == expected


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("", "E17"),
        ("[" * 100000, "E17"),
        ([CONFIG], "E17"),
        ({**CONFIG, "memory_mib": "512"}, "E17"),
        ({**CONFIG, "memory_mib": True}, "E17"),
        ({**CONFIG, "memory_mib": -1}, "E17"),
        ({**CONFIG, "memory_mib": 1 << 64}, "E17"),
        ({**CONFIG, "cpu_ids": [1, "3"], "cpu_count": None}, "E17"),
        ({**CONFIG, "debug_mode": 1}, "E17"),
        ({**CONFIG, "eif_path": None}, "E01"),
        ({"eif_path": "x", "cpu_count": 2}, "E01"),
        ({"eif_path": "x", "memory_mib": 512}, "E01"),
        ({**CONFIG, "cpu_ids": [1, 3]}, "E02"),
        ({**CONFIG, "enclave_cid": 3}, "E03"),
        ({**CONFIG, "eif_path": "a\0b"}, "E03"),
        ({**CONFIG, "eif_path": "a\ud800b"}, "E03"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, value: object, code: str) -> None:
    with pytest.raises(CliError) as e:
        request.from_config(config_file(tmp_path, value))
    assert e.value.code == code


def test_no_config_file(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "run-enclave", "--config", world / "no.json")
    check_failure(result, "E19", f"File: '{world}/no.json', failing operation: 'Open'.")


def asked(memory: int = 512, count: int = 2, ids: tuple[int, ...] | None = None) -> request.Request:
    return request.Request(Path("x"), memory, count if ids is None else len(ids), ids)


def test_cpus() -> None:
    assert request.check_cpus(asked(count=2)) == (1, 3)
    assert request.check_cpus(asked(count=1)) == (1,)
    assert request.check_cpus(asked(ids=(3, 1))) == (3, 1)
    assert len(set(request.check_cpus(asked(count=255)))) == 255
    refused = {"E20": (1, 3, 1), "E21": (0, 1), "E22": tuple(range(256)), "E29": ()}
    for code, ids in refused.items():
        with pytest.raises(errors.InEnclaveProcess) as e:
            request.check_cpus(asked(ids=ids))
        assert e.value.code == code
    with pytest.raises(errors.InEnclaveProcess, match="IDs go up"):
        request.check_cpus(asked(ids=(256,)))


@pytest.mark.parametrize(
    ("strict", "given", "whole"),
    [
        ("1", {"count": 2}, True), ("1", {"ids": (3, 1)}, True), ("1", {"count": 1}, False),
        ("1", {"count": 3}, False), ("1", {"ids": (1, 3, 5)}, False), ("0", {"count": 3}, True),
        ("", {"count": 1}, True), (None, {"count": 1}, True),
    ],
)  # fmt: skip
def test_whole_cores(
    monkeypatch: pytest.MonkeyPatch, strict: str | None, given: dict[str, Any], whole: bool
) -> None:
    monkeypatch.delenv("NITRO_CLI_STRICT", raising=False)
    if strict is not None:
        monkeypatch.setenv("NITRO_CLI_STRICT", strict)
    if whole:
        request.check_whole_cores(asked(**given))
        return
    with pytest.raises(errors.InEnclaveProcess) as e:
        request.check_whole_cores(asked(**given))
    assert e.value.code == "E29"


MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "least"),
    # From AWS's tool: 154 MB for a file that takes 1540 MB.
    [(1, 64), (16 * MIB, 64), (16 * MIB + 1, 68), (385 * MIB, 1540), (385 * MIB - 1023, 1540)],
)
def test_memory(size: int, least: int) -> None:
    assert request.check_memory(asked(least), size, least) == least
    with pytest.raises(errors.InEnclaveProcess, match=f"minimum memory should be {least} MB") as e:
        request.check_memory(asked(least - 4), size, 4096)
    assert e.value.code == "E26"


def test_memory_comes_in_whole_pages() -> None:
    assert request.check_memory(asked(513), MIB, 4096) == 514


def test_more_memory_than_there_is() -> None:
    total = int(re.findall(r"MemTotal: *(\d+) kB", Path("/proc/meminfo").read_text())[0]) // 1024
    assert abs(request.host_memory() - total) <= 1
    with pytest.raises(errors.InEnclaveProcess, match="513 MB, but this host has only 512") as e:
        request.check_memory(asked(513), MIB, 512)
    assert e.value.code == "E27"
