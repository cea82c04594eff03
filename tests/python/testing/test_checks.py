# SPDX-License-Identifier: MIT
"""`nitroctl test` itself, with fake programs in place of guests: can it fail, and does it say why? What it
checks on real guests is in tests/boot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from enclave_fakes import HANG, HEARTBEAT, RESET, Bench, install, steps, write_eif
from jsonpage import answer
from nitroctl.base.errors import NitroError
from nitroctl.commands import test as command
from nitroctl.testing import checks, claims, lab
from nitroctl.toolchain import tree
from nitroctl.toolchain.steps import tool


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    runtime = tmp_path / "r"
    runtime.mkdir()
    made = Bench(
        tmp=tmp_path,
        runtime=runtime,
        qemu=install("fake_qemu.py", tmp_path),
        backend=install("fake_backend.py", tmp_path),
        eif=write_eif(tmp_path / "hello.eif"),
    )
    yield made
    assert made.processes() == {}


def nitroctl_test(bench: Bench, *options: str, env: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "nitroctl", "test", "boot", "--qemu", str(bench.qemu),
        "--vsock-backend", str(bench.backend), *options,
    ]  # fmt: skip
    return subprocess.run(
        command, env=bench.environment(env), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=4 * HANG,
    )  # fmt: skip


GOOD = steps(HEARTBEAT, ["print", "up\r\n"])


def test_an_image_of_the_users_is_checked_for_what_is_true_of_any(bench: Bench) -> None:
    done = nitroctl_test(bench, "--eif", str(bench.eif), "--json", env=GOOD)
    results = answer("nitroctl test", done.stdout)["items"]
    assert done.returncode == 0, done.stdout
    assert [r["name"] for r in results] == [c.name for c in checks.CHECKS if c.generic]
    assert {r["result"] for r in results} == {"pass"}


def test_a_failure_shows_what_the_guest_said(bench: Bench) -> None:
    env = steps(["print", "[    1.000000] Kernel panic - not syncing: no luck\r\n"])
    done = nitroctl_test(bench, "--eif", str(bench.eif), "-k", "boots", env=env)
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    assert "expected 'heartbeat after'" in done.stdout
    assert "Kernel panic - not syncing: no luck" in done.stdout
    assert "0 passed, 1 failed" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_guest_that_ends_by_itself_passes_as_well(bench: Bench) -> None:
    env = steps(HEARTBEAT, RESET)
    done = nitroctl_test(bench, "--eif", str(bench.eif), "-k", "boots", env=env)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["-k", "nothing-of-this-name"], 2, "no check has 'nothing-of-this-name' in its name"),
        (["--eif", "/nonexistent.eif"], 1, "cannot open the file"),
        (["--sanitize"], 2, "--sanitize chooses a QEMU"),
    ],
)
def test_mistakes_are_no_failed_checks(bench: Bench, options: list[str], status: int, message: str) -> None:
    done = nitroctl_test(bench, *options, env={})
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_options_for_boot_checks_do_not_go_with_qtests() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nitroctl", "test", "qtest", "--qemu", "x"],
        capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 2
    assert "qtests run in the tree that was built" in done.stderr


@pytest.fixture
def meson_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A meson tree with three "qtests": one that passes, one with a failing point, one that crashes."""
    source = tmp_path / "source"
    source.mkdir()
    scripts = {
        "good-test": "echo 1..2; echo ok 1 - /a; echo ok 2 - /b",
        "bad-test": "echo 1..2; echo ok 1 - /a; echo 'not ok 2 - /b'; echo because >&2",
        "crash-test": "echo 1..2; echo ok 1 - /a; kill -SEGV $$",
    }
    lines = ["project('fake')", "sh = find_program('sh')"]
    lines += [
        f"test('{name}', sh, args: ['-c', '{script.replace(chr(39), chr(92) + chr(39))}'], protocol: 'tap')"
        for name, script in scripts.items()
    ]
    (source / "meson.build").write_text("\n".join(lines) + "\n")
    built = tmp_path / "build"
    subprocess.run([tool("meson"), "setup", built, source], check=True, capture_output=True)
    manifest = SimpleNamespace(build_dir=str(built), qtests=[f"some/folder/{name}" for name in scripts])
    monkeypatch.setattr(tree, "manifest", lambda *, sanitize, series, arch: manifest)
    return built


def test_qtests_run_through_meson(meson_tree: Path) -> None:
    done = CliRunner().invoke(command.test, ["qtest", "--json"])
    results = {r["name"]: r for r in answer("nitroctl test", done.stdout)["items"]}
    assert {name: r["result"] for name, r in results.items()} == {
        "good-test": "pass", "bad-test": "fail", "crash-test": "fail",
    }  # fmt: skip
    assert results["good-test"]["claim"] == "2 tests"
    assert "not ok 2 - /b" in results["bad-test"]["detail"]
    assert "because" in results["bad-test"]["detail"]
    assert "killed by SIGSEGV" in results["crash-test"]["detail"]
    assert f"{meson_tree}/meson-logs" in results["bad-test"]["detail"]


def test_a_qtest_that_meson_does_not_know(meson_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = SimpleNamespace(build_dir=str(meson_tree), qtests=["absent-test"])
    monkeypatch.setattr(tree, "manifest", lambda *, sanitize, series, arch: manifest)
    done = CliRunner().invoke(command.test, ["qtest", "--json"])
    (result,) = answer("nitroctl test", done.stdout)["items"]
    assert result["result"] == "fail"
    assert "meson ran no test of this name" in result["detail"]


@pytest.mark.parametrize("sanitize", [False, True])
def test_without_a_built_tree_the_command_to_build_it_is_named(
    monkeypatch: pytest.MonkeyPatch, sanitize: bool
) -> None:
    monkeypatch.setattr(tree, "manifest", lambda *, sanitize, series, arch: None)
    done = CliRunner().invoke(command.test, ["qtest", *(["--sanitize"] if sanitize else [])])
    assert isinstance(done.exception, NitroError)
    assert done.exception.hint == ("nitroctl build --sanitize" if sanitize else "nitroctl build")


def test_claims_are_sentences() -> None:
    for check in checks.CHECKS:
        assert len(check.claim) > 20 and check.claim.endswith("."), check.name


def test_names_are_unique() -> None:
    names = [c.name for c in checks.CHECKS]
    assert len(set(names)) == len(names)


def test_what_is_asked_of_arm64_guests() -> None:
    """Whichever kernel they get. What is left out is x86's, or wants a kernel that was built."""
    asked = {check.name for check in checks.selected(user_eif=False, arch="aarch64")}
    assert asked >= {
        "boots", "run-hello", "own-heartbeat-listener", "nsm-conformance", "attestation-conformance",
        "vsock-both-ways", "reset-by-keyboard-controller", "panic", "halt", "two-cpus", "signed-image",
        "big-image",
    }  # fmt: skip
    every = {check.name for check in checks.CHECKS}
    assert every - asked <= {
        "clock-at-boot", "no-heartbeat",
        "debian-kernel", "kernel-features", "triple-fault", "x86-64-v2",
    }  # fmt: skip


def test_what_a_check_says_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program that ends, is silent, or ends otherwise; with its last words as evidence."""

    def outcome(run: Callable[[lab.Lab], None]) -> claims.Outcome:
        one = SimpleNamespace(run=run)
        return claims.perform(one, made)  # type: ignore[arg-type]

    def console(script: str) -> lab.Console:
        return lab.Console(made, "QEMU", ["sh", "-c", script])

    with lab.Lab(Path("/bin/qemu-system-x86_64"), Path("/bin/false")) as made:
        lab.check_equal(console("exit 7").status(), 7, "the status")
        lab.check_equal(console("kill -9 $$").status(), -9, "the status")

        def ends(made: lab.Lab) -> None:
            made.log().write_text("backend: no luck\n")
            console("echo last words").expect(b"heart.*")

        found = outcome(ends)
        assert found.error == "QEMU ended; expected 'heart.*' on the console"
        assert found.evidence == (
            "--- QEMU 1, the console's last lines\nlast words\n\n--- backend\nbackend: no luck"
        )

        def silent(made: lab.Lab) -> None:
            deaf = console("trap '' HUP INT; echo up; while :; do sleep 600; done")
            deaf.expect(b"up")
            deaf.child.timeout = 0.05
            try:
                deaf.expect(b"more")
            finally:
                deaf.close()

        found = outcome(silent)
        assert found.error == f"QEMU said nothing more for {lab.LIMIT:g} s; expected 'more' on the console"

        def fails(made: lab.Lab) -> None:
            lab.check_equal([1], [2], "the list")

        assert outcome(fails).error == "the list: [1] instead of [2]"
        assert outcome(lambda made: lab.check(0, "it is not")).error == "it is not"
        assert outcome(lambda made: lab.check(1, "it is not")).error is None
        wrong = outcome(lambda made: print(lab.openssl(made, "x509", "-in", "gone")))
        assert wrong.error and wrong.error.startswith("openssl x509 -in gone: ")
        assert lab.openssl(made, "base64", input=b"abc") == b"YWJj\n"

        for script, said in (
            ("exit 0", "the backend ended; expected 'ready'"),
            ("echo; sleep 600", "the backend's line: '' instead of 'ready'"),
        ):
            backend = lab.Backend(made, ["sh", "-c", script])
            with backend, pytest.raises(NitroError) as caught:
                backend.expect("ready")
            assert str(caught.value) == said
        with monkeypatch.context() as patch, lab.Backend(made, ["sleep", "600"]) as backend:
            patch.setattr(lab, "LIMIT", 0.01)
            with pytest.raises(NitroError, match="^the backend does not say 'ready'$"):
                backend.expect("ready")
        made.check_nothing_left()
        (made.runtime / "nitroctl/16").mkdir(parents=True)
        with pytest.raises(NitroError, match="^left in the runtime folder: 16$"):
            made.check_nothing_left()
