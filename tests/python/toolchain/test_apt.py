# SPDX-License-Identifier: MIT
"""The private apt root without a network: reading the host's source lists, and what is made of them.

Formats and values from sources.list(5) and from what Debian's installer, cloud images and containers ship.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nitroctl.base.arch import ARCHES
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import apt, cache
from nitroctl.toolchain.apt import SourceEntry, debian_archive, derived_security, parse_deb822, parse_one_line

KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"


def entry(uri: str, suite: str, *components: str, type: str = "deb", **options: str) -> SourceEntry:
    return SourceEntry(type, uri, suite, components, {k.replace("_", "-"): v for k, v in options.items()})


DEBIAN = entry("http://mirror.example/debian", "bookworm", "main")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("deb http://mirror.example/debian bookworm main", [DEBIAN]),
        ("  deb\thttp://mirror.example/debian  bookworm\tmain  ", [DEBIAN]),
        ("deb http://mirror.example/debian bookworm main # the mirror", [DEBIAN]),
        ("# deb http://mirror.example/debian bookworm main", []),
        ("", []),
        ("deb http://mirror.example/debian", []),
        (
            "deb-src http://mirror.example/debian bookworm main contrib",
            [entry("http://mirror.example/debian", "bookworm", "main", "contrib", type="deb-src")],
        ),
        (
            f"deb [ arch=amd64,i386 signed-by={KEY} ] https://example.org/debian trixie main",
            [entry("https://example.org/debian", "trixie", "main", arch="amd64 i386", signed_by=KEY)],
        ),
        (
            f"deb [Signed-By={KEY}]http://mirror.example/debian bookworm main",
            [entry("http://mirror.example/debian", "bookworm", "main", signed_by=KEY)],
        ),
        ("deb cdrom:[Debian GNU/Linux 12 _Bookworm_ - Official]/ bookworm main", []),
        ("deb http://example.org/repo ./", [entry("http://example.org/repo", "./")]),
    ],
)
def test_one_line_format(text: str, expected: list[SourceEntry]) -> None:
    assert parse_one_line(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        # As debian:12 containers ship it, comments inside the stanza.
        (
            "Types: deb\n# http://snapshot.debian.org/archive/debian/20250520T000000Z\n"
            f"URIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
            f"Signed-By: {KEY}\n",
            [
                entry("http://mirror.example/debian", suite, "main", signed_by=KEY)
                for suite in ("bookworm", "bookworm-updates")
            ],
        ),
        # Two stanzas, field names in any case, a line of blanks between them.
        (
            "types: deb\nuris: http://mirror.example/debian\nsuites: bookworm\ncomponents: main\n \t\n\n"
            "TYPES: deb\nURIS: http://mirror.example/debian-security\nSUITES: bookworm-security\n"
            "COMPONENTS: main\n",
            [DEBIAN, entry("http://mirror.example/debian-security", "bookworm-security", "main")],
        ),
        # Lists over several lines; a comment between them does not end the field.
        (
            "Types: deb deb-src\nURIs:\n http://mirror.example/debian\n# a mirror\nSuites: bookworm\n"
            "Components: main\n",
            [DEBIAN, entry("http://mirror.example/debian", "bookworm", "main", type="deb-src")],
        ),
        (
            "Enabled: no\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n"
            "Components: main\n",
            [],
        ),
        # A key in the file itself, with its blank lines written as dots.
        (
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n"
            " -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----\n",
            [
                entry(
                    "http://mirror.example/debian", "bookworm", "main",
                    signed_by="\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n"
                    " -----END PGP PUBLIC KEY BLOCK-----",
                )
            ],
        ),
        # As Debian's cloud images ship it.
        (
            "Types: deb deb-src\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\n"
            "Components: main\n",
            [
                entry("mirror+file:///etc/apt/mirrors/debian.list", "bookworm", "main", type=kind)
                for kind in ("deb", "deb-src")
            ],
        ),
        ("# nothing but a comment\n", []),
    ],
)  # fmt: skip
def test_deb822_format(text: str, expected: list[SourceEntry]) -> None:
    assert parse_deb822(text) == expected


def test_files_are_read_in_both_formats(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://one.example/debian bookworm main\n")
    (parts / "b.sources").write_text(
        "Types: deb\nURIs: http://two.example/debian\nSuites: sid\nComponents: main\n"
    )
    (parts / "a.list").write_text("deb http://three.example/debian sid main\n")
    (parts / "c.list.save").write_text("deb http://not.example/debian sid main\n")
    (parts / "d.sources.disabled").write_text("Types: deb\nURIs: http://not.example/debian\nSuites: sid\n")
    found = apt.read_sources(tmp_path / "sources.list", parts)
    assert [e.uri for e in found] == [f"http://{n}.example/debian" for n in ("one", "three", "two")]


def test_no_files_is_no_entries(tmp_path: Path) -> None:
    assert apt.read_sources(tmp_path / "sources.list", tmp_path / "sources.list.d") == []


VENDORS = [
    entry("https://download.docker.com/linux/debian", "bookworm", "stable",
          signed_by="/etc/apt/keyrings/docker.asc"),
    entry("https://pkgs.tailscale.com/stable/debian", "bookworm", "main",
          signed_by="/usr/share/keyrings/tailscale-archive-keyring.gpg"),
    entry("https://packages.microsoft.com/debian/12/prod", "bookworm", "main",
          signed_by="/usr/share/keyrings/microsoft-prod.gpg"),
    entry("http://apt.postgresql.org/pub/repos/apt", "bookworm-pgdg", "main"),
]  # fmt: skip


@pytest.mark.parametrize(
    "main, security",
    [
        (entry("http://mirror.example/debian", "bookworm", "main", signed_by=KEY),
         entry("http://mirror.example/debian-security", "bookworm-security", "main", signed_by=KEY)),
        (entry("http://ftp.de.debian.org/debian/", "bookworm", "main", "contrib"),
         entry("http://security.example/debian-security", "bookworm-security", "main")),
        (entry("http://mirror.example/debian", "stable", "main"),
         entry("http://mirror.example/debian-security", "stable-security", "main")),
        (entry("http://proxy.example:3142/mirror.example/debian", "trixie", "main"), None),
        (entry("https://artifacts.example/api/debian-remote", "bookworm", "main", signed_by=KEY), None),
        (entry("http://mirror.example/debian", "sid", "main"), None),
    ],
)  # fmt: skip
def test_the_archive_among_vendors(main: SourceEntry, security: SourceEntry | None) -> None:
    entries = [*VENDORS[:2], *([security] if security else []), main, *VENDORS[2:]]
    assert debian_archive(entries) == (main, security)


def test_a_mirror_is_known_by_its_updates() -> None:
    plain = entry("http://mirror.example/pool", "bookworm", "main")
    updates = entry("http://mirror.example/pool", "bookworm-updates", "main")
    assert debian_archive([*VENDORS, plain, updates]) == (plain, None)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        VENDORS,
        [entry("http://archive.ubuntu.com/ubuntu", "noble", "main", "universe")],
        [entry("http://http.kali.org/kali", "kali-rolling", "main")],
        [entry("http://raspbian.raspberrypi.org/raspbian", "bookworm", "main")],
    ],
)
def test_a_host_that_is_not_debian(entries: list[SourceEntry]) -> None:
    with pytest.raises(NitroError) as caught:
        debian_archive(entries)
    assert "--source" in str(caught.value.hint)


@pytest.mark.parametrize(
    "main, security",
    [
        ("http://mirror.example/debian", "http://mirror.example/debian-security"),
        ("https://mirror.example/debian/", "https://mirror.example/debian-security"),
        ("http://proxy:3142/mirror.example/debian", "http://proxy:3142/mirror.example/debian-security"),
        ("http://mirror.example/debian-copy", None),
        ("mirror+file:///etc/apt/mirrors/debian.list", None),
    ],
)
def test_security_is_derived(main: str, security: str | None) -> None:
    made = derived_security(entry(main, "bookworm", "main", signed_by=KEY))
    if security is None:
        assert made is None
    else:
        assert made and (made.uri, made.options["signed-by"]) == (security, KEY)


def test_private_sources() -> None:
    main = entry(
        "http://m.example/debian",
        "bookworm",
        "main",
        "contrib",
        signed_by=KEY,
        arch="amd64",
        check_valid_until="no",
        trusted="yes",
    )
    security = entry("http://s.example/debian-security", "bookworm-security", "main")
    text = apt.private_sources(main, security, "trixie")
    found = parse_deb822(text)
    assert {(e.type, e.uri, e.suite) for e in found} == {
        (kind, uri, suite)
        for kind in ("deb", "deb-src")
        for uri, suite in (
            ("http://m.example/debian", "trixie"),
            ("http://m.example/debian", "trixie-updates"),
            ("http://s.example/debian-security", "trixie-security"),
        )
    }
    assert all(e.components == ("main",) for e in found)
    assert found[0].options["signed-by"] == KEY
    assert found[0].options["check-valid-until"] == "no"
    # A host that trusts a mirror without signatures has not agreed to that for us.
    assert "trusted" not in text.lower()
    for suite in ("bookworm-backports", "sid", "unstable"):  # there is no sid-updates, and no sid-security
        found = parse_deb822(apt.private_sources(main, security, suite))
        assert {(e.uri, e.suite) for e in found} == {("http://m.example/debian", suite)}


def test_announced_size() -> None:
    # As printed by apt-get source --print-uris.
    text = (
        "Reading package lists...\n"
        "'http://mirror.example/debian/pool/main/q/qemu/qemu_10.0.dsc' qemu_10.0.dsc 8000 SHA256:ab\n"
        "'http://mirror.example/debian/pool/main/q/qemu/q.orig.tar.xz' q.tar.xz 40010016 SHA256:cd\n"
    )
    assert apt._announced_size(text) == 40018016


# --- the root, with an apt made of shell scripts ------------------------------------------------------------

FAKE_APT_CONFIG = """#!/bin/sh
echo "LIST='$FAKE/sources.list'"
echo "PARTS='$FAKE/sources.list.d'"
"""

# "update" leaves a list behind, or fails while $FAKE/offline exists, or while the sources name what
# $FAKE/unreachable does. It must have been pointed at the private root.
FAKE_APT_GET = """#!/bin/sh
echo "$@" >> "$FAKE/calls"
[ "$1" = -c ] || { echo "no private configuration"; exit 9; }
root=$(dirname "$2")
grep -q "Dir::State \\"$root/state\\"" "$2" || { echo "the state is not private"; exit 9; }
case "$*" in
*update*)
    [ -e "$FAKE/offline" ] && { echo "E: Could not resolve host"; exit 100; }
    if [ -e "$FAKE/unreachable" ] && grep -qf "$FAKE/unreachable" "$root"/sources.list.d/*; then
        echo "E: Failed to fetch"; exit 100
    fi
    echo list > "$root/state/lists/Packages" ;;
*--print-uris*)
    echo "'http://x/$$' file_1.deb 7 SHA256:00" ;;
*download*)
    [ -e "$FAKE/broken" ] && { printf half > file_1.deb; echo "E: Hash Sum mismatch"; exit 100; }
    printf package > file_1.deb ;;
*source*)
    printf source > file_1.dsc ;;
esac
"""

FAKE_APT_CACHE = """#!/bin/sh
cat "$FAKE/madison"
"""

MADISON = """\
      qemu | 1:10.0.3+ds-0+deb13u1 | http://mirror.example/debian trixie/main Sources
      qemu | 1:10.0.13+ds-0+deb13u1 | http://mirror.example/debian-security trixie-security/main Sources
      qemu | 1:10.0.2+ds-2 | http://mirror.example/debian trixie/main amd64 Packages
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that steers a fake apt, the only one in PATH; the cache is empty."""
    folder = tmp_path / "fake"
    programs = folder / "bin"
    programs.mkdir(parents=True)
    fakes = {"apt-config": FAKE_APT_CONFIG, "apt-get": FAKE_APT_GET, "apt-cache": FAKE_APT_CACHE}
    for name, text in fakes.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    (folder / "madison").write_text(MADISON)
    return folder


def updates(fake: Path) -> int:
    calls = fake / "calls"
    return calls.read_text().count("update") if calls.exists() else 0


def make_stale(root: apt.AptRoot) -> None:
    stamp = cache.read_json(root.root / "stamp.json")
    assert stamp
    cache.write_json(root.root / "stamp.json", {**stamp, "checked": time.time() - 2 * apt.REFRESH_AFTER})


def test_fresh_lists_are_not_fetched_again(fake: Path) -> None:
    root = apt.AptRoot.open()
    apt.AptRoot.open()
    assert updates(fake) == 1
    make_stale(root)
    apt.AptRoot.open()
    assert updates(fake) == 2
    apt.AptRoot.open(refresh=True)
    assert updates(fake) == 3


def test_the_private_root_is_private(fake: Path) -> None:
    root = apt.AptRoot.open()
    assert root.root.stat().st_mode & 0o077 == 0
    text = (root.root / "apt.conf").read_text()
    # Everything about trust, proxies and credentials is left as the host has it.
    for setting in ("Dir::Etc::trusted", "Dir::Etc::netrc", "Dir::Etc::parts", "Acquire::", "APT::Get::"):
        assert setting not in text


def test_each_architecture_has_a_root_of_its_own(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody fetches the lists of one that he does not use, and a package of one is not another's."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    roots = {name: apt.AptRoot.open("trixie", name) for name in ARCHES}
    assert apt.AptRoot.open().root == roots["x86_64"].root != roots["aarch64"].root
    for name, debian in zip(ARCHES, ("amd64", "arm64"), strict=True):
        conf = (roots[name].root / "apt.conf").read_text()
        assert f'APT::Architecture "{debian}";' in conf and f'APT::Architectures {{ "{debian}"; }};' in conf
    sources = parse_deb822((roots["aarch64"].root / "sources.list.d/debian.sources").read_text())
    assert {one.type for one in sources} == {"deb"}
    assert len({roots[name].download("qemu").parent for name in ARCHES}) == 2


def test_a_new_mirror_is_asked(fake: Path) -> None:
    apt.AptRoot.open()
    (fake / "sources.list").write_text("deb http://ftp.debian.org/debian bookworm main\n")
    apt.AptRoot.open()
    assert updates(fake) == 2


def test_offline_uses_what_is_there(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = apt.AptRoot.open()
    make_stale(root)
    (fake / "offline").touch()
    apt.AptRoot.open()
    assert "no fresh package lists" in capsys.readouterr().err
    # Not asked again at once: a name server may take its time to say no.
    count = updates(fake)
    apt.AptRoot.open()
    assert updates(fake) == count


def test_offline_the_first_time(fake: Path) -> None:
    (fake / "offline").touch()
    with pytest.raises(NitroError, match="Could not resolve host") as caught:
        apt.AptRoot.open()
    assert "--source" in str(caught.value.hint)


def test_a_security_archive_out_of_reach(fake: Path) -> None:
    """The host names none: ours is tried, and done without."""
    (fake / "unreachable").write_text("debian-security")
    root = apt.AptRoot.open()
    text = (root.root / "sources.list.d/debian.sources").read_text()
    assert "trixie-updates" in text and "security" not in text


def test_a_security_archive_of_the_hosts_must_be_there(fake: Path) -> None:
    with open(fake / "sources.list", "a") as f:
        f.write("deb http://mirror.example/debian-security bookworm-security main\n")
    (fake / "unreachable").write_text("debian-security")
    with pytest.raises(NitroError, match="Failed to fetch"):
        apt.AptRoot.open()


def test_newest_version(fake: Path) -> None:
    root = apt.AptRoot.open()
    assert root.version("qemu", source=True) == "1:10.0.13+ds-0+deb13u1"
    assert root.version("qemu") == "1:10.0.2+ds-2"
    with pytest.raises(NitroError, match="no source package nothing"):
        root.version("nothing", source=True)
    # Remembered until the lists are fetched again.
    (fake / "madison").write_text(MADISON.replace("10.0.13", "10.0.14"))
    assert root.version("qemu", source=True) == "1:10.0.13+ds-0+deb13u1"
    assert apt.AptRoot.open(refresh=True).version("qemu", source=True) == "1:10.0.14+ds-0+deb13u1"


@pytest.mark.parametrize("fetch", [lambda r: r.download("qemu"), lambda r: r.source("qemu")])
def test_downloads_are_kept(fake: Path, fetch: Callable[[apt.AptRoot], Path]) -> None:
    root = apt.AptRoot.open()
    first = fetch(root)
    calls = (fake / "calls").read_text()
    assert fetch(root) == first
    assert (fake / "calls").read_text() == calls


def test_a_broken_download_leaves_nothing(fake: Path) -> None:
    root = apt.AptRoot.open()
    (fake / "broken").touch()
    with pytest.raises(NitroError, match="Hash Sum mismatch"):
        root.download("qemu")
    assert [e for e in cache.entries() if e.kind == "deb"] == []
    (fake / "broken").unlink()
    assert root.download("qemu").read_text() == "package"


def test_a_cache_that_apt_cannot_name(fake: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / 'with"quote'))
    with pytest.raises(NitroError, match="apt cannot work"):
        apt.AptRoot.open()
