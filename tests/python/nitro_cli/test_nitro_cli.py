# SPDX-License-Identifier: MIT
"""`nitro-cli` itself: usage, codes and logs, and what a host with the real thing has of it.

Its commands are in the files beside this one. The expected texts, keys and statuses are AWS's, from its user
guide and from transcripts of its tool, in all of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nitro_cli_world import LINK, run
from nitroctl.nitro_cli import arguments, errors, main, vsock_proxy

pytestmark = pytest.mark.usefixtures("world")


PYTHON = Path(__file__).resolve().parents[3] / "python"


# ---- usage ----


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run-enclave"], "required arguments were not provided:\n  --eif-path <FILE>\n  --memory <MEMORY>"),
        (["run-enclave", "--eif-path", "x", "--memory", "1"], "<--cpu-count <N>|--cpu-ids <ID>...>"),
        (["run-enclave", "--memory"], "a value is required for '--memory <MEMORY>'"),
        (["run-enclave", "--cpu-ids", "--memory", "1"], "a value is required for '--cpu-ids <ID>...'"),
        (["run-enclave", "--memory", "1", "--memory", "2"], "'--memory <MEMORY>' cannot be used multiple"),
        (["run-enclave", "--debug-mode=yes"], "unexpected value for '--debug-mode'"),
        (["run-enclave", "--config", "x", "--memory", "1"],
         "the argument '--config <FILE>' cannot be used with '--memory <MEMORY>'"),
        (["run-enclave", "--config", "x", "--cpu-count", "1"], "cannot be used with '--cpu-count <N>'"),
        (["run-enclave", "--eif-path", "x", "--memory", "1", "--cpu-count", "2", "--cpu-ids", "1"],
         "the argument '--cpu-count <N>' cannot be used with '--cpu-ids <ID>...'"),
        (["terminate-enclave"], "<--enclave-id <ID>|--enclave-name <NAME>|--all>"),
        (["terminate-enclave", "--all", "--enclave-id", "x"], "cannot be used with"),
        (["terminate-enclave", "--enclave", "x"], "unexpected argument '--enclave' found"),
        (["console", "--disconnect-timeout", "5"], "<--enclave-id <ID>|--enclave-name <NAME>>"),
        (["pcr"], "<--input <FILE>|--signing-certificate <FILE>>"),
        (["describe-enclaves", "please"], "unexpected argument 'please' found"),
        (["build-enclave", "--docker-uri", "x"], "--output-file <FILE>"),
        (["explain", "E26"], "unexpected argument 'E26' found"),
        (["describe-everything"], "unrecognized subcommand 'describe-everything'"),
        (["--no-such-option"], "unexpected argument '--no-such-option' found"),
    ],
)  # fmt: skip
def test_usage_errors(capfd: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    """clap's form, and its status."""
    status, out, err = run(capfd, *argv)
    assert (status, out) == (2, "")
    form = r"error: .+\n\nUsage: nitro-cli .+\n\nFor more information, try '--help'.\n"
    assert re.fullmatch(form, err, re.DOTALL)
    assert message in err


def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    commands = {
        "run-enclave", "terminate-enclave", "build-enclave", "describe-enclaves", "console", "describe-eif",
        "pcr", "sign-eif", "explain",
    }  # fmt: skip
    assert set(arguments.COMMANDS) == commands
    for argv in (["--help"], ["-h"], ["help"]):
        status, out, err = run(capfd, *argv)
        assert (status, err) == (0, "")
        assert all(f"\n  {name} " in out for name in commands)
    assert run(capfd)[0] == 2
    status, out, _ = run(capfd, "help", "run-enclave")
    assert status == 0 and "--enclave-cid <CID>" in out
    assert run(capfd, "run-enclave", "--memory", "--help")[:2] == (0, out)
    # As `nitro-cli --version | cut -d' ' -f3` has it.
    status, out, _ = run(capfd, "--version")
    assert status == 0 and re.match(r"Nitro CLI \d+\.\d+\.\d+ ", out)


def test_it_starts_quickly_as_it_imports_little() -> None:
    """The budget of `nitroctl --help` is mostly imports; these are the slow ones."""
    code = (
        "import sys\nfrom nitroctl.nitro_cli import main\n"
        "try: main(['run-enclave', '--help'])\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env={"PYTHONPATH": str(PYTHON)}, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "argparse" in loaded
    assert not loaded & {"click", "asyncio", "cryptography", "cbor2", "rich", "subprocess", "platformdirs"}


# ---- codes ----


def test_every_code_is_explained(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(errors.DESCRIPTIONS) == [f"E{n:02}" for n in range(61)]
    for code in errors.DESCRIPTIONS:
        status, out, err = run(capfd, "explain", "--error-code", code)
        assert (status, out) == (0, "")
        assert errors.DESCRIPTIONS[code] in err and f"{LINK}#{code}" in err


def test_an_unknown_code(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capfd, "explain", "--error-code", "E99")
    assert status != 0
    assert (out, err) == ("", "No such error code E99\n")


def test_logs_that_cannot_be_written(
    world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is told all the same."""
    (world / "file").write_text("")
    monkeypatch.setenv("NITRO_CLI_LOGS_PATH", str(world / "file" / "logs"))
    status, _, err = run(capfd, "describe-eif", "--eif-path", "/nowhere")
    assert status == 35 and f"{LINK}#E35" in err and "error log found" not in err
    assert "cannot write the log" in err


def test_a_log_on_a_full_disk_is_told_by_its_name(
    world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "full").mkdir()
    (world / "full/nitro_enclaves.log").symlink_to("/dev/full")
    monkeypatch.setenv("NITRO_CLI_LOGS_PATH", str(world / "full"))
    _, _, err = run(capfd, "describe-eif", "--eif-path", "/nowhere")
    assert f"cannot write the log in {world}/full/nitro_enclaves.log: No space left on device" in err


def test_the_log_has_a_line_for_each_failure(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(capfd, "describe-eif", "--eif-path", "/nowhere")
    run(capfd, "pcr", "--input", "/nowhere")
    lines = (world / "logs" / "nitro_enclaves.log").read_text().splitlines()
    assert [re.search(r"E\d\d", line)[0] for line in lines] == ["E35", "E19"]  # type: ignore[index]


# ---- a host with the real thing ----


STEP_ASIDE = """
import sys
from pathlib import Path
from nitroctl.nitro_cli import aside, main
aside.DRIVER = Path(sys.argv[1])
main(sys.argv[2:])
"""


def with_driver(driver: Path, path: list[Path], *argv: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.pathsep.join(map(str, path)), "PYTHONPATH": str(PYTHON)}
    command = [sys.executable, "-c", STEP_ASIDE, str(driver), *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def program(folder: Path, text: str, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "nitro-cli"
    path.write_text(text)
    path.chmod(mode)
    return folder


def test_the_real_nitro_cli_takes_over(world: Path) -> None:
    (world / "driver").write_text("")
    # As pip writes it; then one that cannot be run; then the real one.
    ours = program(world / "ours", f"#!{sys.executable}\nfrom nitroctl.nitro_cli import main\nmain()\n")
    plain = program(world / "plain", "#!/bin/sh\nexit 9\n", mode=0o644)
    real = program(world / "real", '#!/bin/sh\nprintf "%s|" "$@"\nexit 5\n')
    done = with_driver(world / "driver", [ours, plain, real], "describe-enclaves", "a b")
    assert (done.returncode, done.stdout) == (5, "describe-enclaves|a b|")
    assert len(done.stderr.splitlines()) == 1
    assert "driver" in done.stderr and str(real / "nitro-cli") in done.stderr


def test_without_the_real_nitro_cli_or_the_driver_ours_runs(world: Path) -> None:
    (world / "driver").write_text("")
    real = program(world / "real", "#!/bin/sh\nexit 5\n")
    for driver, path in ((world / "no", [real]), (world / "driver", [])):
        done = with_driver(driver, path, "--version")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Nitro CLI ")


def test_a_wrapper_that_calls_us_is_no_circle(world: Path) -> None:
    (world / "driver").write_text("")
    inner = f'exec {sys.executable} -c "$CODE" "$DRIVER" "$@"'
    wrapper = program(world / "wrapper", f"#!/bin/sh\n{inner}\n")
    driver = str(world / "driver")
    env = {"PATH": str(wrapper), "PYTHONPATH": str(PYTHON), "CODE": STEP_ASIDE, "DRIVER": driver}
    command = [sys.executable, "-c", STEP_ASIDE, driver, "--version"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0 and done.stdout.startswith("Nitro CLI ")


def test_the_command_is_in_the_package() -> None:
    """By the programs' common entry, which shows no traceback for an early Ctrl-C (test_entry)."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((PYTHON.parent / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["nitro-cli"] == "nitroctl.entry:nitro_cli"
    assert project["scripts"]["vsock-proxy"] == "nitroctl.entry:vsock_proxy"
    assert callable(main) and callable(vsock_proxy.main)
