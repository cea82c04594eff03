# SPDX-License-Identifier: MIT
"""Whatever a stranger's file or a path says, a terminal sees text, and lines that we wrote.

Every command gets such values, in its arguments and in what it reads. What is looked for afterwards are
control characters, forged lines, and tracebacks.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

import eifmodel as model
import eifsigner as signer
from documents import Level, Maker
from enclave_fakes import HEARTBEAT, Bench, steps
from nitroctl import cli, nitro_cli
from nitroctl.base import jsontext, shown
from nitroctl.base.errors import CommandFailed, NitroError
from nitroctl.nitro_cli import arguments, vsock_proxy

FORGED = "The attestation document is valid."
# A line of its own, a window's title, rich's markup, an 8-bit CSI, and text from right to left.
HOSTILE = f"x\n{FORGED}\r\x1b]0;pwned\x07[bold green]ok[/x]\x9b2J\u202e"
SEEN = f"x\\n{FORGED}\\r\\x1b]0;pwned\\x07[bold green]ok[/x]\\x9b2J\\u202e"


def judge(text: str, longest: int = 10_000) -> str:
    assert all(c == "\n" or c.isprintable() for c in text), ascii(text)
    assert not any(line.startswith(FORGED) for line in text.split("\n")), text
    assert all(len(line) <= longest for line in text.split("\n")), text
    assert "Traceback" not in text, text
    return text


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of its own, nothing built, no programs."""
    for kind in ("CACHE", "DATA", "STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    monkeypatch.setenv("NITRO_CLI_LOGS_PATH", str(tmp_path / "logs"))
    monkeypatch.setenv("NITRO_CLI_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], *argv: str | Path, program: Any = cli.main) -> tuple[int, str]:
    """Its status, and all that it printed, which has been judged."""
    with pytest.raises(SystemExit) as e:
        program([str(a) for a in argv])
    out, err = capfd.readouterr()
    assert isinstance(e.value.code, int)
    return e.value.code, judge(out + err)


# ---- one place ----


@given(st.text(), st.integers(20, 3000))
def test_a_line_is_a_line(text: str, limit: int) -> None:
    shown_text = shown.line(text, limit)
    assert shown_text.isprintable()
    assert shown.line(shown_text, 20_000) == shown_text
    if text.isprintable() and len(text) <= limit:
        assert shown_text == text
    assert len(shown_text) <= 10 * limit  # \UXXXXXXXX


def test_what_becomes_visible() -> None:
    assert shown.line(HOSTILE) == SEEN
    assert shown.line("tab\t nbsp\xa0 \u2028 ü \udc80\ud800") == "tab\\t nbsp\\xa0 \\u2028 ü \\x80\\ud800"
    long = shown.line("a" * 5000 + "end", 100)
    assert len(long) == 100 and long.startswith("aaa") and long.endswith("aend")


def test_an_error_is_one_line_and_what_it_cites() -> None:
    error = NitroError(HOSTILE, hint=HOSTILE, lines=["a\tb", HOSTILE])
    assert str(error) == f"{SEEN}\n  a       b\n  {SEEN}"
    assert error.hint == SEEN
    failed = str(CommandFailed([HOSTILE], 1, output=f"said\n{HOSTILE}", log=Path(HOSTILE)))
    assert FORGED not in {line.strip() for line in failed.split("\n")[:1]}
    judge(failed)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_a_command_line_means_what_it_shows(argv: list[str]) -> None:
    text = shown.command(argv)
    assert text.isprintable()
    script = f"printf '%s\\0' {text}" if argv else ":"
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == argv


TEXT = st.text()
JSON = st.recursive(TEXT | st.none(), lambda v: st.lists(v) | st.dictionaries(TEXT, v), max_leaves=8)


@given(JSON)
def test_json_is_the_same_and_harmless(value: Any) -> None:
    text = jsontext.pretty(value)
    assert json.loads(text) == value
    assert all(c == "\n" or c.isprintable() for c in text)


# ---- arguments ----

# What would begin real work with such a value is given it elsewhere.
WORKS = {
    ("build", "--prefix"), ("demo", "-o"), ("test", "--qemu"), ("test", "--vsock-backend"), ("test", "--eif"),
    ("test", "-k"), ("test", "--series"),
}  # fmt: skip

# What works with any text or folder that it is given, and so may end with 0.
SUCCEEDS = {
    ("eif", "pcr"), ("attest", "ca"), ("kms", "alias"), ("kms", "ca"), ("kms", "credentials"),
    ("kms", "events"), ("kms", "key"),
}  # fmt: skip

# What would go on until it is stopped is refused for another option's sake; what is refused may name either.
REFUSED: dict[tuple[str, ...], list[str]] = {("kms", "serve"): ["--listen", HOSTILE]}

Words = tuple[str, ...]  # of a command


def _commands(group: click.Group, path: Words = ()) -> Iterator[tuple[Words, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _arguments() -> Iterator[list[str]]:
    """Each command with its required parameters, and one by one with the others."""
    for path, command in _commands(cli.nitroctl):
        takes = [p for p in command.params if not getattr(p, "is_flag", False)]
        must = [p for p in takes if p.required]
        for more in [*(p for p in takes if not p.required), *([None] if must else [])]:
            options, values = list(REFUSED.get(path, ())), []
            for parameter in [*must, *([more] if more else [])]:
                if isinstance(parameter, click.Option):
                    options += [parameter.opts[0], HOSTILE]
                else:
                    values.append(HOSTILE)
            if more is None or (path[0], more.opts[0]) not in WORKS:
                yield [*path, *options, "--", *values]


@pytest.mark.parametrize("argv", list(_arguments()), ids=lambda a: " ".join(a).replace(HOSTILE, ""))
def test_arguments_of_nitroctl(capfd: pytest.CaptureFixture[str], argv: list[str]) -> None:
    status, _ = run(capfd, *argv)
    assert status or tuple(argv[:2]) in SUCCEEDS
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # which programs that come later would inherit


def test_names_of_commands_and_options(capfd: pytest.CaptureFixture[str]) -> None:
    for program in (cli.main, nitro_cli.main):
        for argv in ([HOSTILE], [f"--{HOSTILE}"], ["describe-eif", f"--{HOSTILE}"], ["eif", HOSTILE]):
            assert run(capfd, *argv, program=program)[0] == 2


@pytest.mark.parametrize("name", sorted(arguments.COMMANDS))
def test_arguments_of_nitro_cli(capfd: pytest.CaptureFixture[str], name: str) -> None:
    command = arguments.COMMANDS[name]
    one = command.one_of[:1]
    for option in command.options:
        flags = {o.flag for o in command.options if o.required} | {option.flag} | set(one)
        if option.flag in command.one_of:
            flags = flags - set(one) | {option.flag}
        if option.flag == command.alone:
            flags = {option.flag}
        argv = [a for f in sorted(flags) for a in ([f, HOSTILE] if command.option(f).metavar else [f])]
        status, text = run(capfd, name, *argv, program=nitro_cli.main)
        assert status or name in ("terminate-enclave", "describe-enclaves"), text
    for log in Path("logs").iterdir() if Path("logs").is_dir() else ():
        judge(log.read_text())


def test_arguments_of_vsock_proxy(capfd: pytest.CaptureFixture[str], world: Path) -> None:
    (world / "config").write_text("allowlist: []")
    for argv in (
        [HOSTILE, "host", "443"],
        ["8000", HOSTILE, "443", "--config", "config"],
        ["8000", "host", "443", HOSTILE],
        ["8000", "host", "443", "--config", HOSTILE],
    ):
        assert run(capfd, *argv, program=vsock_proxy.main)[0]


# ---- attestation ----


# As much of it as a common name may have (X.520: 64 characters).
NAME = f"x\n{FORGED}\x1b[2J[/x]\u202e"


@pytest.fixture(scope="module")
def maker() -> Maker:
    """A chain whose every certificate has such a name."""

    def change(chain: list[Level]) -> None:
        for level in chain:
            level.name = f"{NAME} {level.name}"

    return Maker(change)


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def verify(capfd: pytest.CaptureFixture[str], document: bytes, *more: str | Path) -> tuple[int, str]:
    Path("document").write_bytes(document)
    return run(capfd, "attest", "verify", "document", "--at", "document", *more)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_document_that_is_valid(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, maker: Maker, terminal: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    root = Path("root.pem")
    root.write_bytes(pem(maker.cabundle[0]))
    for module_id in (HOSTILE, "[/x]", "[bold green]x[/]", "a" * 9000, "\u202egnp.exe"):
        Path("document").write_bytes(maker.document(module_id=module_id))
        with pytest.raises(SystemExit) as e:
            cli.main(["attest", "verify", "document", "--at", "document", "--root", str(root)])
        assert e.value.code in (0, None)
        out, err = capfd.readouterr()
        first, *lines = out.split("\n")
        assert FORGED in first  # ours, and the only one
        if terminal:  # the colours are ours
            assert "\x1b[1;32m" in first
            lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
        judge("\n".join(lines) + err, 400)
        if len(module_id) < 200:
            assert f"module      {shown.line(module_id)}" in lines
        assert sum("x\\nThe attestation" in line and "\\x1b[2J[/x]\\u202e" in line for line in lines) >= 5
    status, text = verify(capfd, maker.document(module_id=HOSTILE), "--root", root, "--json")
    assert status == 0 and json.loads(text)["module_id"] == HOSTILE


@pytest.mark.parametrize("value", [HOSTILE, "A" * 9000, 2**60, b"\x1b" * 9000, [HOSTILE], {HOSTILE: 1}])
@pytest.mark.parametrize("field", ["module_id", "digest", "timestamp", "pcrs", "cabundle", "certificate"])
def test_a_document_that_is_not(
    capfd: pytest.CaptureFixture[str], maker: Maker, field: str, value: Any
) -> None:
    status, text = verify(capfd, maker.document(**{field: value}), "--root", "aws")
    assert status == 1
    assert text.startswith("error: the document's ")
    judge(text, 1000)


def test_a_strangers_root(capfd: pytest.CaptureFixture[str], maker: Maker) -> None:
    status, text = verify(capfd, maker.document(), "--root", "aws")
    assert status == 1
    first, hint, end = text.split("\n")
    assert f"begins with (CN=x\\n{FORGED}" in first and hint.startswith("hint: ") and end == ""


# ---- images ----


def eif(path: Path, *, signed: bool = True) -> Path:
    """An EIF whose texts are all like that."""
    build = dict.fromkeys(
        ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion"), HOSTILE
    )
    metadata = {
        "ImageName": HOSTILE, "ImageVersion": HOSTILE, "BuildMetadata": build,
        "DockerInfo": {HOSTILE: HOSTILE}, "CustomMetadata": {HOSTILE: [HOSTILE]},
    }  # fmt: skip
    sections = [
        (1, model.bzimage(version=NAME)), (2, HOSTILE.encode()), (3, b"ramdisk"),
        (5, json.dumps(metadata).encode()),
    ]  # fmt: skip
    if signed:
        certificate = signer.certificate(common_name=NAME).public_bytes(Encoding.PEM)
        pcr0 = bytes.fromhex(model.measure(sections)[0])
        sections.append((4, signer.section(pcr0, certificate_pem=certificate)))
    path.write_bytes(model.pack(sections))
    return path


def test_an_eif(capfd: pytest.CaptureFixture[str]) -> None:
    good, bad = eif(Path("good.eif")), eif(Path("bad.eif"), signed=False)
    status, text = run(capfd, "eif", "describe", good)
    assert status == 0 and SEEN in text
    assert "\\x1b[2J[/x]\\u202e" in next(line for line in text.split("\n") if "certificate" in line)
    for path in (good, bad):
        for argv in (
            ("describe", "--json", path), ("verify", path), ("extract", path, "-C", f"{path}.d"),
            ("diff", path, good), ("diff", good, path),
        ):  # fmt: skip
            run(capfd, "eif", *argv)
        for command in ("describe-eif", "run-enclave"):
            more = ("--memory", "512", "--cpu-count", "2") if command == "run-enclave" else ()
            run(capfd, command, "--eif-path", path, *more, program=nitro_cli.main)
        run(capfd, "run", path)
    status, text = run(capfd, "describe-eif", "--eif-path", good, program=nitro_cli.main)
    assert status == 0 and json.loads(text)["ImageName"] == HOSTILE


def test_paths_are_text_on_a_terminal_and_themselves_elsewhere(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("a\n\udcff\x1b")
    shown.bare(path)
    assert capfdbinary.readouterr().out == b"a\n\xff\x1b\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown.bare(path)
    assert capfdbinary.readouterr().out == b"a\\n\\xff\\x1b\n"


# ---- enclaves ----


def test_a_guest_that_panics(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """Its console passes as it is; what is said of it is text. So it is in lists and records."""
    path = bench.tmp / HOSTILE.replace("/", "")  # its name
    path.write_bytes(bench.eif.read_bytes())
    console = f"{HOSTILE}\n[    1.500000] Kernel panic - not syncing: \x1b]0;x\x07{FORGED}\n"
    panics = steps(HEARTBEAT, ["print", console])
    done = bench.run(eif=path, **panics)
    assert done.returncode == 4
    assert "\x1b]0;x\x07" in done.stdout
    assert "the guest's kernel panicked" in judge(done.stderr)
    done = bench.run("--detach", "--name", "hello", eif=path, **panics)
    assert done.returncode in (0, 4), done.stderr  # it may be quicker than we are
    for argv in (["wait", "hello"], ["ps", "-a"], ["inspect", "hello"], ["logs", "hello"], ["rm", "hello"]):
        command = [sys.executable, "-m", "nitroctl", *argv]
        done = subprocess.run(command, env=bench.environment({}), capture_output=True, text=True)
        judge(done.stdout + done.stderr)
        assert argv[0] != "ps" or f"x\\n{FORGED}" in done.stdout


def test_programs_that_say_such_things(bench: Bench) -> None:
    done = bench.run(**steps(["stderr", f"{HOSTILE}\n"], ["exit", 1]))
    assert done.returncode == 1
    judge(done.stderr)
