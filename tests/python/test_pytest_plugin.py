# SPDX-License-Identifier: MIT
"""The pytest plugin, in test sessions of their own over fake programs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enclave_fakes import HEARTBEAT, Bench, steps
from nitroctl import pytest_plugin
from nitroctl.enclaves import differences
from nitroctl.torture import names

pytest_plugins = ["pytester"]

UP = (HEARTBEAT, ["print", "the application is up\r\n"])


@pytest.fixture
def session(pytester: pytest.Pytester, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs pytest on a test file in the bench's world; EIF in it is the bench's file."""

    def run(
        source: str, *options: str, script: tuple[Any, ...] = UP, settings: str = "", fakes: bool = True
    ) -> pytest.RunResult:
        for name, value in bench.environment(steps(*script)).items():
            monkeypatch.setenv(name, value)
        qemu = f"nitro_qemu = {bench.qemu}" if fakes else ""
        pytester.makeini(f"[pytest]\n{qemu}\n{settings}")
        pytester.makepyfile(f"import nitroctl, pytest\nEIF = {str(bench.eif)!r}\n{source}")
        backend = [f"--nitro-vsock-backend={bench.backend}"] if fakes else []
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *backend, *options)

    yield run
    assert bench.processes() == {} and bench.left() == []


def test_a_test_for_each_document_of_the_torture_kit(session: Any) -> None:
    """Those that the mark chooses, with what it says is compared; a fault says which rule, in one line."""
    result = session(
        """
from nitroctl.attestation import AttestationError, Policy, verify

@pytest.mark.nitro_torture(only=["cose-t*", "nonce-*", "image-*"], checks=["nonce"], leave_out=["cose-tag"])
def test_verifier(nitro_torture_case):
    case = nitro_torture_case
    with case.judged(AttestationError):
        verify(case.document, case.root_pem, Policy(at=case.time, nonce=case.nonce))

@pytest.mark.nitro_torture(only=["cose-cut"])
def test_fool(nitro_torture_case):
    nitro_torture_case.judge(True)
""",
        fakes=False,
    )
    chosen = names(["cose-t*", "nonce-*"], ["nonce"], ["cose-tag"])
    assert "nonce-null" in chosen
    result.assert_outcomes(passed=len(chosen), failed=1)
    result.stdout.fnmatch_lines(
        ["*def test_fool*", ">*judge(True)", "E *Misjudged: wrongly accepted cose-cut: *"]
    )
    assert "def judge" not in result.stdout.str()


def test_a_mark_for_no_documents() -> None:
    for mark, said in (
        (pytest.mark.nitro_torture(only=["nothing"]), "no case is named 'nothing'"),
        (pytest.mark.nitro_torture(checks=["tea"]), "'tea' is nothing to check"),
        (pytest.mark.nitro_torture(more=1), "takes only=, checks=, leave_out="),
        (pytest.mark.nitro_torture("control"), "takes only=, checks=, leave_out="),
    ):
        test = SimpleNamespace(nodeid="test_it", get_closest_marker=lambda name, mark=mark: mark.mark)
        asks: Any = SimpleNamespace(fixturenames=["nitro_torture_case"], definition=test)
        with pytest.raises(pytest.UsageError, match=f"^test_it: nitro_torture:? .*{said}"):
            pytest_plugin.pytest_generate_tests(asks)


def test_an_enclave_for_a_test(session: Any) -> None:
    result = session("""
def test_it(nitro_enclave):
    first, second = nitro_enclave(EIF, memory="600M"), nitro_enclave(EIF)
    first.console.wait_for("is up")
    assert first.record.memory_mib == 600 and first.cid != second.cid
    test_it.first = first

def test_later():
    assert not test_it.first.running
""")
    result.assert_outcomes(passed=2)


def test_one_for_many_tests(session: Any) -> None:
    result = session("""
@pytest.fixture(scope="module")
def enclave(nitro_enclave_factory):
    with nitro_enclave_factory(EIF) as enclave:
        yield enclave

def test_one(enclave):
    test_one.id = enclave.id
    assert enclave.faults.refuse(8000, times=3) == 1
    assert [(row["port"], row["times"]) for row in enclave.faults.list()] == [(8000, 3)]

def test_two(enclave):
    assert enclave.running and enclave.id == test_one.id
    assert enclave.faults.list() == [], "a fault is of one test"
""")
    result.assert_outcomes(passed=2)


def test_listeners_before_the_start(session: Any) -> None:
    result = session("""
def test_it(nitro_enclave):
    enclave = nitro_enclave(EIF, start=False)
    assert not enclave.started
    with enclave.listen(9001), enclave:
        assert enclave.running
""")
    result.assert_outcomes(passed=1)


def test_a_failure_shows_the_console(session: Any) -> None:
    result = session("""
def test_it(nitro_enclave):
    nitro_enclave(EIF).console.wait_for("is up")
    assert 1 == 2

def test_after_it():
    assert 2 == 3
""")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines([
        "*console of enclave hello, CID 16, running*",
        "the application is up",
        "logs, complete after its end: *enclave-hello0",
    ])  # fmt: skip
    text = result.stdout.str()
    assert text.count("console of enclave") == 1  # the second test had none
    (line,) = [line for line in result.stdout.lines if line.startswith("logs, ")]
    folder = Path(line.partition(": ")[2])
    assert (folder / "console.log").read_bytes() == b"the application is up\r\n"
    assert (folder / "supervisor.log").exists()


def test_a_failure_shows_how_the_application_ended(session: Any) -> None:
    result = session(
        """
def test_it(nitro_enclave):
    nitro_enclave(EIF).wait(30).check()
""",
        script=[["heartbeat"], ["tell", "exited 7"], ["reset"]],
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ApplicationFailed: the application ended with status 7*"])
    result.stdout.fnmatch_lines(["*console of enclave hello, *, ended: the application ended with status 7*"])


def test_one_that_does_not_boot(session: Any) -> None:
    script = (["print", "[    0.5] Kernel panic\r\n"],)
    result = session(
        "def test_it(nitro_enclave): nitro_enclave(EIF)", script=script, settings="nitro_boot_timeout = 1.5"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        "E   *BootTimeout: no heartbeat within 1.5 s*",
        "*console of enclave hello, CID 16, ended: no heartbeat within 1.5 s*",
        "[[]    0.5] Kernel panic",
    ])  # fmt: skip


def test_no_frames_of_ours(session: Any) -> None:
    """Of what is expected to happen; NITROCTL_DEBUG shows them."""
    source = """
def test_it(nitro_enclave):
    enclave = nitro_enclave(EIF)
    enclave.console.wait_for("is up")
    try:
        enclave.connect(6000, retry=False)
    except nitroctl.NitroError as e:
        raise nitroctl.EnclaveError("in vain") from e

def test_usage(nitro_enclave):
    nitro_enclave(EIF, cpus="2")
"""
    result = session(source)
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    assert "in vain" in text and "nobody listens on port 6000" in text and "cpus='2'" in text
    assert "nitroctl/api.py" not in text and "site-packages" not in text
    assert not re.search(r"python/nitroctl/.*\.py:\d+", text), text


def test_expected_errors_are_for_the_test(session: Any) -> None:
    result = session(
        """
def test_it(nitro_enclave):
    with pytest.raises(nitroctl.BootTimeout):
        nitro_enclave(EIF, boot_timeout=0.1)
    with pytest.raises(nitroctl.UsageError):
        nitro_enclave(EIF, memory="nonsense")
""",
        script=(["print", "x"],),
    )
    result.assert_outcomes(passed=1)


def test_options_reach_the_enclave(session: Any, bench: Bench) -> None:
    result = session(
        f"""
def test_it(nitro_enclave):
    assert nitro_enclave(EIF).record.accel == "kvm"
    # A test's own QEMU takes the place of the session's, whichever way that was named.
    own = nitro_enclave(EIF, accel="tcg", qemu={os.fspath(bench.qemu)!r})
    assert own.record.accel == "tcg"
""",
        "--nitro-accel=kvm",
    )
    result.assert_outcomes(passed=1)
    result = session("def test_it(nitro_enclave): pass", "--nitro-accel=hvf")
    assert "invalid choice: 'hvf'" in result.stderr.str()


def test_a_setting_that_is_wrong_is_named() -> None:
    given = {"nitro_boot_timeout": "soon"}
    config: Any = SimpleNamespace(getoption=lambda name: None, getini=given.get)
    with pytest.raises(pytest.UsageError, match="^nitro_boot_timeout: .*soon"):
        _ = pytest_plugin._State(config).enclaves


def test_what_is_missing_is_made(session: Any, bench: Bench, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(f"""
from pathlib import Path
from nitroctl.toolchain import choice, places, programs
from nitroctl.base import errors

made = []

def found(path):
    if not made:
        raise errors.NitroError("there is none")
    return Path(path)

def make():
    print("compiling")
    made.append(1)

choice.choose = lambda kind=None, arch="x86_64": found({os.fspath(bench.qemu)!r})
places.locate = lambda what: found({os.fspath(bench.backend)!r})
programs.make = make
""")
    test = "def test_it(nitro_enclave): nitro_enclave(EIF); nitro_enclave(EIF)"
    result = session(test, fakes=False)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["nitroctl makes a QEMU with *, this once", "compiling"])
    result = session(test, "--nitro-qemu-build=tree", fakes=False)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E   *NitroError: there is none"])


def test_in_parallel(session: Any) -> None:
    """Two workers, each with enclaves of the session and of its tests."""
    result = session(
        """
@pytest.fixture(scope="session")
def enclave(nitro_enclave_factory):
    return nitro_enclave_factory(EIF)

@pytest.mark.parametrize("n", range(6))
def test_it(n, enclave, nitro_enclave):
    own = nitro_enclave(EIF)
    assert own.running and enclave.running and own.cid != enclave.cid
    assert n != 3
""",
        "-n2",
    )
    result.assert_outcomes(passed=5, failed=1)
    assert result.stdout.str().count("console of enclave") == 2


def test_an_image_is_made(session: Any, tmp_path: Path) -> None:
    """By the builder itself, with a kernel that is only a file here."""
    root = tmp_path / "root"
    (root / "srv").mkdir(parents=True)
    (root / "app").write_bytes(b"#!/bin/sh\n")
    (root / "app").chmod(0o755)
    result = session(f"""
from nitroctl.toolchain import guest
from nitroctl.eif.describe import describe

def test_it(nitro_eif, monkeypatch):
    monkeypatch.setattr(guest, "build_init", lambda *_: __import__("pathlib").Path({os.fspath(tmp_path)!r}))
    path = nitro_eif(directory={os.fspath(root)!r}, cmd=["/app"], env={{"A": "b"}}, name="my app")
    assert path.name == "my-app.eif"
    assert describe(path).to_json()["ImageName"] == "my app"
    with pytest.warns(UserWarning, match="^app.eif: .*has no program '/gone'"):
        nitro_eif(directory={os.fspath(root)!r}, cmd=["/gone"], name="app", allow_missing_program=True)

def test_kms(nitro_kms):
    key = nitro_kms.create_key()
    assert nitro_kms.encrypt(key, b"secret")
    assert nitro_kms.parent_port
""", f"--nitro-kernel={tmp_path / 'bzImage'}")  # fmt: skip
    result.assert_outcomes(passed=2)


@pytest.fixture(autouse=True)
def blobs(tmp_path: Path) -> None:
    import eifmodel

    (tmp_path / "bzImage").write_bytes(eifmodel.bzimage())
    (tmp_path / "init").write_bytes(b"init")


def test_it_costs_nothing_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
import sys
def test_it():
    costly = {"nitroctl.api", "nitroctl.enclaves.lifecycle", "asyncio", "cryptography", "click"}
    assert not costly & set(sys.modules)
""")
    pytester.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1)


STRICT = """
@pytest.fixture(scope="module")
def shared(nitro_enclave_factory):
    with nitro_enclave_factory(EIF, differs=IMAGE) as enclave:
        yield enclave

def test_plain(shared, nitro_enclave):
    assert shared.record.cpus == nitro_enclave(EIF, differs=IMAGE).record.cpus

def test_console(shared):
    shared.console.wait_for("is up")

def test_faults(shared):
    shared.faults.latency(5)

@pytest.mark.nitro_differs("console", "publish")
def test_meant(shared, nitro_enclave, tmp_path):
    shared.console.wait_for("is up")
    nitro_enclave(EIF, differs=IMAGE, publish=[f"{tmp_path}/p=80"]).console.wait_for("is up")

def test_publish(nitro_enclave, tmp_path):
    nitro_enclave(EIF, differs=IMAGE, publish=[f"{tmp_path}/p=80"])

def test_image(nitro_enclave):
    nitro_enclave(EIF)
"""


def test_strict(session: Any, bench: Bench) -> None:
    """Tests that depend on what there is not on AWS fail, each with the names; others do not."""
    image = [one.name for one in differences.of_image(bench.eif, None)]
    assert image and all(name.startswith("lint:") for name in image)
    source = f"IMAGE = {image!r}\n{STRICT}"
    result = session(source, "--nitro-strict")
    result.assert_outcomes(passed=2, failed=4)
    for name, what in (
        ("console", "console"),
        ("faults", "faults"),
        ("publish", "publish"),
        ("image", image[0]),
    ):
        result.stdout.fnmatch_lines([f"FAILED *::test_{name} - *"])
        result.stdout.re_match_lines([rf".*\[{re.escape(what)}\]$"])
    wrong = "@pytest.mark.nitro_differs('consol')\ndef test_it(): pass"
    result = session(wrong, settings="nitro_strict = true")
    assert "no difference 'consol'" in result.stdout.str() + result.stderr.str()
