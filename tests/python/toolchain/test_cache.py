# SPDX-License-Identifier: MIT
"""The cache: an entry is whole or absent whatever is killed and when; keys; listing and cleaning."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from jsonpage import answer
from nitroctl.base.errors import NitroError
from nitroctl.commands.cache import cache as command
from nitroctl.toolchain import cache


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own; its folder, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "cache" / "nitroctl"


def fill(folder: Path) -> None:
    (folder / "file").write_text("content")


def test_an_entry_is_filled_once() -> None:
    calls = []

    def counted(folder: Path) -> None:
        calls.append(folder)
        fill(folder)

    first = cache.build_entry("kind", "key-1.0+b~c", counted)
    assert cache.build_entry("kind", "key-1.0+b~c", counted) == first == cache.entry("kind", "key-1.0+b~c")
    assert len(calls) == 1 and calls[0] != first
    assert (first / "file").read_text() == "content"
    assert first.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [NitroError("no"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_failed_fill_leaves_nothing(root: Path, error: BaseException) -> None:
    def failing(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(type(error)):
        cache.build_entry("kind", "key", failing)
    assert list((root / "kind").iterdir()) == []
    assert cache.current("kind") is None


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 201, "a\n"])
def test_names_are_single_path_components(name: str) -> None:
    with pytest.raises(ValueError):
        cache.entry("kind", name)
    with pytest.raises(ValueError):
        cache.entry(name, "key")


# --- several processes -------------------------------------------------------------------------------------

# Fills an entry as argv says: tells that it is inside, then waits for its input to end.
CHILD = """
import sys
from nitroctl.toolchain import cache
def fill(folder):
    (folder / "file").write_text(sys.argv[1])
    print("filling", flush=True)
    sys.stdin.read()
print(cache.build_entry("kind", "key", fill), flush=True)
"""


def child(text: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_kill_9_while_filling(root: Path) -> None:
    with child("first") as killed:
        assert killed.stdout and killed.stdout.readline() == "filling\n"
        killed.send_signal(signal.SIGKILL)
    assert not cache.entry("kind", "key").exists()
    left = [e for e in cache.entries() if not e.finished]
    assert len(left) == 1
    # The next one begins from the start and tidies up.
    path = cache.build_entry("kind", "key", fill)
    assert [p.name for p in (root / "kind").iterdir()] == ["key"]
    assert (path / "file").read_text() == "content"


def test_others_wait_for_the_one_that_fills() -> None:
    with child("first") as first:
        assert first.stdout and first.stdin
        assert first.stdout.readline() == "filling\n"
        with child("second") as second:
            assert second.stdout and second.stdin
            # It has nothing to say before the first is done: it neither fills nor returns.
            first.stdin.close()
            assert first.stdout.read().strip() == str(cache.entry("kind", "key"))
            assert second.stdout.readline().strip() == str(cache.entry("kind", "key"))
            second.stdin.close()
    assert (cache.entry("kind", "key") / "file").read_text() == "first"


def _race(number: int) -> str:
    def mine(folder: Path) -> None:
        for part in range(20):
            (folder / str(part)).write_text(str(number))

    path = cache.build_entry("kind", "key", mine)
    return "".join((path / str(part)).read_text() for part in range(20))


def test_eight_at_once() -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        seen = set(pool.map(_race, range(8)))
    # One filled it, and all saw it whole.
    assert len(seen) == 1 and len(set(seen.pop())) == 1


def test_a_lock_is_inherited_by_those_who_shall_hold_it() -> None:
    """A build's children keep its lock when nitroctl is killed."""
    with cache.lock("kind", "key") as fd:
        program = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        holder = subprocess.Popen(program, stdin=subprocess.PIPE, pass_fds=[fd])
    with cache.lock("kind", "key", wait=False) as held:
        assert held < 0
    assert holder.stdin
    holder.stdin.close()
    holder.wait()
    with cache.lock("kind", "key", wait=False) as held:
        assert held >= 0


# --- keys and files ----------------------------------------------------------------------------------------


class File(NamedTuple):
    name: str
    content: bytes


FILES = st.lists(
    st.builds(File, st.from_regex(r"[a-c]{1,2}(/[a-c]{1,2})?", fullmatch=True), st.binary(max_size=3)),
    max_size=4, unique_by=lambda f: f.name,
)  # fmt: skip


def _tree(top: Path, files: list[File]) -> bool:
    for file in files:
        path = top / file.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)
        except OSError:  # "a" and "a/b"
            return False
    return True


@given(FILES, FILES)
def test_digest_is_of_names_and_contents(
    tmp_path_factory: pytest.TempPathFactory, a: list[File], b: list[File]
) -> None:
    first, second = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    if not _tree(first, a) or not _tree(second, b):
        return
    same = cache.digest_files([first], root=first) == cache.digest_files([second], root=second)
    assert same == (sorted(a) == sorted(b))


def test_digest_sees_the_execute_bit_and_no_bytecode(tmp_path: Path) -> None:
    file = tmp_path / "tree" / "script"
    file.parent.mkdir()
    file.write_text("x")
    before = cache.digest_files([tmp_path / "tree"], root=tmp_path)
    (tmp_path / "tree" / "__pycache__").mkdir()
    (tmp_path / "tree" / "__pycache__" / "a.pyc").write_text("y")
    assert cache.digest_files([tmp_path / "tree"], root=tmp_path) == before
    file.chmod(0o755)
    assert cache.digest_files([tmp_path / "tree"], root=tmp_path) != before


def test_digest_text_does_not_run_strings_together() -> None:
    assert cache.digest_text("ab", "c") != cache.digest_text("a", "bc")


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    assert cache.read_json(path) is None
    cache.write_json(path, {"b": 1, "a": [2]})
    assert cache.read_json(path) == {"a": [2], "b": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    for broken in ("", "{", "[1]", "null"):
        path.write_text(broken)
        assert cache.read_json(path) is None


# --- disk --------------------------------------------------------------------------------------------------


def test_space_is_checked() -> None:
    cache.need_space(1)
    with pytest.raises(NitroError, match=r"building QEMU needs 1000000\.00 GB of disk") as caught:
        cache.need_space(10**15, what="building QEMU")
    assert "prune" in str(caught.value.hint)


# --- listing and cleaning ----------------------------------------------------------------------------------


def keys() -> set[str]:
    return {f"{e.kind}/{e.key}" for e in cache.entries()}


def test_prune_keeps_what_a_name_means(root: Path) -> None:
    cache.build_entry("qemu", "old", fill)
    cache.build_entry("qemu", "new", fill)
    cache.build_entry("qemu", "sanitized", fill, name="qemu-sanitize")
    cache.build_entry("deb", "seabios_1", fill, name="deb-seabios")
    (root / "qemu" / ".new.abcdef").mkdir()
    removed, busy = cache.prune()
    assert {e.key for e in removed} == {"old", ".new.abcdef"} and not busy
    assert keys() == {"qemu/new", "qemu/sanitized", "deb/seabios_1"}
    # Going back makes the older one current, and built again.
    cache.build_entry("qemu", "old", fill)
    assert cache.current("qemu") == cache.entry("qemu", "old")


def test_prune_leaves_alone_what_is_being_built() -> None:
    with child("first") as filling:
        assert filling.stdout and filling.stdin
        assert filling.stdout.readline() == "filling\n"
        removed, busy = cache.prune()
        assert not removed and len(busy) == 1
        filling.stdin.close()
        assert filling.stdout.read().strip() == str(cache.entry("kind", "key"))


def test_clean_removes_all_but_keys(root: Path, tmp_path: Path) -> None:
    ca = tmp_path / "data" / "nitroctl" / "ca.key"
    ca.parent.mkdir(parents=True)
    ca.write_text("secret")
    cache.build_entry("qemu", "a", fill)
    cache.log_path("qemu").write_text("log")
    cache.clean()
    assert keys() == set() and cache.current("qemu") is None
    assert not (root / "qemu").exists() and not (root / ".logs").exists()
    assert ca.read_text() == "secret"


def test_clean_refuses_a_cache_that_holds_the_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "cache"))
    cache.build_entry("qemu", "a", fill)
    with pytest.raises(NitroError, match="nothing was removed"):
        cache.clean()
    assert keys() == {"qemu/a"}


def test_sizes_are_those_on_disk() -> None:
    def some(folder: Path) -> None:
        (folder / "file").write_bytes(os.urandom(300_000))

    cache.build_entry("kind", "key", some)
    (entry,) = cache.entries()
    listed = subprocess.run(["du", "-s", "--block-size=1", entry.path], capture_output=True, check=True)
    # du counts the folder itself, too.
    assert 0 <= int(listed.stdout.split()[0]) - entry.size <= 8192


def test_the_command_lists() -> None:
    cache.build_entry("qemu", "a", fill)
    cache.build_entry("qemu", "b", fill)
    result = CliRunner().invoke(command, ["ls", "--json"])
    assert result.exit_code == 0
    found = {e["key"]: e["state"] for e in answer("nitroctl cache ls", result.output)["items"]}
    assert found == {"a": "out of date", "b": "current"}
    lines = CliRunner().invoke(command, ["ls"]).output.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["KIND", "qemu", "qemu"]


def test_the_command_asks_before_it_cleans() -> None:
    cache.build_entry("qemu", "a", fill)
    result = CliRunner().invoke(command, ["clean"])
    assert isinstance(result.exception, NitroError) and "--yes" in str(result.exception.hint)
    assert keys() == {"qemu/a"}
    assert CliRunner().invoke(command, ["clean", "--yes"]).exit_code == 0
    assert keys() == set()


def test_the_command_prunes_and_names_what_it_keeps(root: Path) -> None:
    cache.build_entry("qemu", "old", fill)
    cache.build_entry("qemu", "new", fill)
    os.utime(cache.entry("qemu", "old"), (0, time.time() - 50 * 3600))
    (root / "qemu" / ".new.abcdef").mkdir()
    lines = CliRunner().invoke(command, ["ls"]).output.splitlines()
    assert any("2 d" in line and line.endswith(" old") for line in lines), lines
    assert any("interrupted" in line for line in lines)
    with cache.lock("qemu", "old"):
        result = CliRunner().invoke(command, ["prune"])
    assert "removed qemu/.new.abcdef" in result.output and "freed" in result.output
    assert "in use by another nitroctl, and kept: qemu/old" in str(result.exception)
    result = CliRunner().invoke(command, ["prune"])
    assert result.exit_code == 0 and "removed qemu/old" in result.output
    assert keys() == {"qemu/new"}


def test_an_empty_cache_is_listed_and_cleaned() -> None:
    assert cache.entries() == []
    assert cache.clean() == ([], [])
    assert CliRunner().invoke(command, ["ls"]).exit_code == 0
