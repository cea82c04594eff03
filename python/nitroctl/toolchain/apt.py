# SPDX-License-Identifier: MIT
"""Packages of one Debian suite through an apt of our own: no root rights, the host's apt untouched.

The private root has its own state, cache and source lists, made from the host's entry for Debian's archive
with another suite in it. Proxy, credentials, keyrings and the rest of apt's configuration stay the host's,
so whatever mirror and trust the host has is what we use. apt checks the archive's signatures and every hash
below them, as always.

    root = AptRoot.open("trixie")        # of the host's architecture; or AptRoot.open("trixie", "aarch64")
    folder = root.source("qemu")         # .dsc and tarballs
    root.unpack(root.download("seabios"), into)

Formats: sources.list(5), apt.conf(5). Nothing here knows what the packages are for.
"""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from nitroctl.base import arch as arches
from nitroctl.base import proc, progress
from nitroctl.base.arch import Arch, facts
from nitroctl.base.errors import CommandFailed, NitroError
from nitroctl.toolchain import cache

REFRESH_AFTER = 24 * 3600.0  # seconds; Debian's archive changes four times a day, its stable suites seldom
RETRY_AFTER = 3600.0  # seconds after a refresh that failed while older lists were there
POLL = 0.2  # seconds between two looks at how far a download is

# The releases' names, and what else Debian's archive calls them (sources.list(5)).
DEBIAN_SUITES = frozenset(
    "buster bullseye bookworm trixie forky duke sid oldoldstable oldstable stable testing unstable".split()
)
# Per-entry options that say how the host trusts and reads the archive (sources.list(5)).
KEPT_OPTIONS = ("signed-by", "check-valid-until", "check-date", "by-hash")


@dataclass(frozen=True)
class SourceEntry:
    """One type, URI and suite of a source list; option names in small letters as in deb822."""

    type: str
    uri: str
    suite: str
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)


# --- the host's lists ------------------------------------------------------------------------------------

_ONE_LINE = re.compile(r"(deb|deb-src)\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)((?:\s+\S+)*)\s*")


def parse_one_line(text: str) -> list[SourceEntry]:
    """Entries of a .list file. What apt would reject is left out: apt itself complains about that."""
    entries = []
    for line in text.splitlines():
        # A comment runs to the end of the line, but not from inside [options].
        line = re.sub(r"(\[[^\]]*\])|#.*", lambda m: m[1] or "", line).strip()
        match = _ONE_LINE.fullmatch(line)
        if not match or match[3].startswith("cdrom:"):
            continue
        options = dict(option.split("=", 1) for option in (match[2] or "").split() if "=" in option)
        entries.append(
            SourceEntry(
                type=match[1],
                uri=match[3],
                suite=match[4],
                components=tuple(match[5].split()),
                options={name.lower(): value.replace(",", " ") for name, value in options.items()},
            )
        )
    return entries


def parse_deb822(text: str) -> list[SourceEntry]:
    """Entries of a .sources file: stanzas of fields, `#` lines anywhere, continuation lines indented."""
    entries = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n(?:[ \t]*\n)+", "\n".join(lines) + "\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.split("\n"):
            if line[:1] in (" ", "\t") and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.pop("enabled", "yes").lower() in ("no", "false", "off", "0", "without", "disable"):
            continue
        types, uris, suites, components = (
            fields.pop(key, "").split() for key in ("types", "uris", "suites", "components")
        )
        entries += [
            SourceEntry(kind, uri, suite, tuple(components), fields)
            for kind in types
            for uri in uris
            for suite in suites
        ]
    return entries


def read_sources(list_file: Path, parts: Path) -> list[SourceEntry]:
    """All entries of a sources.list and a sources.list.d; files that we may not read are left out."""
    files = [list_file]
    if parts.is_dir():
        # The same names that apt takes; "x.list.save" and "x.sources.disabled" are none.
        taken = re.compile(r"[A-Za-z0-9_.-]+\.(list|sources)")
        files += sorted(p for p in parts.iterdir() if taken.fullmatch(p.name))
    entries = []
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        entries += parse_deb822(text) if file.suffix == ".sources" else parse_one_line(text)
    return entries


def _looks_official(entry: SourceEntry, updated: Iterable[str]) -> int:
    """How surely an entry is Debian's own archive or a mirror of it; 0 or less: it is not.

    Vendors offer suites named like Debian's, too, some below ".../debian".
    """
    key = entry.options.get("signed-by", "")
    url = urlsplit(entry.uri)
    score = 0
    if key.startswith("/"):
        score += 8 if "debian-archive" in key else -16
    if "debian.org" in (url.hostname or "") + url.path:
        score += 4
    if entry.uri in updated:
        score += 2
    if url.path.rstrip("/").endswith("/debian"):
        score += 1
    return score


def debian_archive(entries: Sequence[SourceEntry]) -> tuple[SourceEntry, SourceEntry | None]:
    """The host's entry for Debian's main archive, and the one for its security archive, if any.

    Raises NitroError where there is none: the host is not Debian, or its lists are elsewhere.
    """
    updated = {e.uri for e in entries if e.suite.endswith("-updates")}
    main = [e for e in entries if e.suite in DEBIAN_SUITES and "main" in e.components]
    main.sort(key=lambda e: _looks_official(e, updated), reverse=True)
    if not main or _looks_official(main[0], updated) <= 0:
        raise NitroError(
            f"this host ({_host_name()}) has no apt source for Debian's archive, so there is no mirror and "
            "no trusted key to fetch QEMU's source with",
            hint="download a QEMU release tarball and pass it: nitroctl build --source qemu-10.0.8.tar.xz "
            "(docs/nitroctl.md lists the packages to install on Ubuntu and Fedora)",
        )
    security = [
        e
        for e in entries
        if e.suite.partition("-security")[0].removesuffix("/updates") in DEBIAN_SUITES
        and e.suite not in DEBIAN_SUITES
        and (e.suite.endswith("-security") or e.suite.endswith("/updates"))
        and "main" in e.components
    ]
    security.sort(key=lambda e: _looks_official(e, updated), reverse=True)
    if security and _looks_official(security[0], updated) >= 0:
        return main[0], security[0]
    return main[0], None


def derived_security(main: SourceEntry) -> SourceEntry | None:
    """The security archive for a host that names none: where Debian has it, beside its main archive. None for
    a mirror whose address does not tell."""
    head, debian, tail = main.uri.rstrip("/").rpartition("/debian")
    return replace(main, uri=f"{head}/debian-security") if debian and not tail else None


def private_sources(
    main: SourceEntry, security: SourceEntry | None, suite: str, types: str = "deb deb-src"
) -> str:
    """The private root's source list: binary and source packages of SUITE, its updates and its security;
    backports and unstable have neither."""
    stanzas = []
    alone = suite.endswith("-backports") or suite in ("sid", "unstable")
    pairs = [(main, suite if alone else f"{suite} {suite}-updates")]
    if security and not alone:
        pairs.append((security, f"{suite}-security"))
    for entry, suites in pairs:
        lines = [f"Types: {types}", f"URIs: {entry.uri}", f"Suites: {suites}", "Components: main"]
        # Nothing but the indexes of packages: no translations, no desktop data, whatever the host asks for.
        lines += [f"Targets: Packages{' Sources' if 'deb-src' in types else ''}"]
        lines += [f"{name}: {entry.options[name]}" for name in KEPT_OPTIONS if name in entry.options]
        stanzas.append("\n".join(lines) + "\n")
    return "\n".join(stanzas)


def _host_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown system")
    except OSError:
        return "unknown system"


def _host_sources() -> list[SourceEntry]:
    """The entries of this host's apt, wherever its configuration keeps them."""
    if not shutil.which("apt-get"):
        return []
    shell = ["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]
    out = proc.run(shell).stdout.decode()
    paths = dict(word.split("=", 1) for word in shlex.split(out))
    return read_sources(Path(paths["LIST"]), Path(paths["PARTS"]))


# --- the private root ------------------------------------------------------------------------------------


def _configuration(root: Path, debian: str) -> str:
    """An apt.conf that is read last and moves state, cache and source lists below `root`."""
    if re.search(r'["\n;{}]', str(root)):
        raise NitroError(
            f"apt cannot work in {root}: its configuration has no way to write that name",
            hint="set XDG_CACHE_HOME to a folder without quotes, semicolons or braces",
        )
    return f"""// Written by nitroctl. The host's apt never reads this.
// The host's own jobs after an update are about the host.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "{root}/state";
Dir::State::lists "lists";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Cache::archives "archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{root}/sources.list.d";
// The root's own, whatever the host's.
#clear APT::Architectures;
APT::Architecture "{debian}";
APT::Architectures {{ "{debian}"; }};
// As root, apt would become a user who cannot write here.
APT::Sandbox::User "root";
// A mirror that fails is an error, not a warning.
APT::Update::Error-Mode "any";
"""


def _ending(arch: Arch) -> str:
    """Of names in the cache; those for x86_64 have none."""
    return "" if arch == "x86_64" else f"-{facts(arch).debian}"


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                total += path.stat().st_size
        except OSError:  # renamed or removed by apt meanwhile
            continue
    return total


def _watched(argv: Sequence[str], cwd: Path, done: Callable[[], int], task: progress.Task, log: Path) -> None:
    """Run a program whose progress is what `done()` says; raises CommandFailed with its last lines."""
    with open(log, "wb") as sink:
        process = proc.start(argv, cwd=cwd, stdout=sink, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    status = process.wait(POLL)
                    break
                except subprocess.TimeoutExpired:
                    task.set(done())
        except BaseException:
            proc.stop(process)
            raise
    if status:
        raise CommandFailed(argv, status, output=log.read_text(errors="replace"), log=log)
    task.set(done())


class AptRoot:
    """A private apt root for one suite and architecture. Use `AptRoot.open`."""

    def __init__(self, name: str, suite: str, arch: Arch) -> None:
        self.root = cache.entry("apt", name)
        self.name = name
        self.suite = suite
        self.arch = arch

    @classmethod
    def open(cls, suite: str = "trixie", arch: Arch | None = None, *, refresh: bool = False) -> AptRoot:
        """The root of `suite`, its package lists not older than a day (or fetched now, with `refresh`).

        Each architecture has a root of its own, so that nobody fetches the lists of one that he does not use;
        sources are in that of the host's alone. Without a network, lists that are there are used however old.
        Raises NitroError on a host without a source for Debian's archive.
        """
        arch = arch or arches.host() or "x86_64"
        name = f"{suite}{_ending(arch)}"
        self = cls(name, suite, arch)
        with cache.lock("apt", name):
            self._prepare(refresh)
        cache.set_current(f"apt-{name}", "apt", name)
        return self

    def _prepare(self, refresh: bool) -> None:
        main, security = debian_archive(_host_sources())
        for folder in ("state/lists/partial", "cache/archives/partial", "sources.list.d"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        # The host's URIs may carry a password.
        self.root.chmod(0o700)
        (self.root / "state/status").touch()
        cache.write_text(self.root / "apt.conf", _configuration(self.root, facts(self.arch).debian))

        types = "deb deb-src" if self.arch == (arches.host() or "x86_64") else "deb"
        wanted = private_sources(main, security or derived_security(main), self.suite, types)
        without = private_sources(main, None, self.suite, types)
        stamp = cache.read_json(self.root / "stamp.json") or {}
        have = stamp.get("sources") if stamp.get("sources") in (wanted, without) else None
        age = time.time() - float(stamp.get("checked", 0))
        if have and not refresh and 0 <= age < REFRESH_AFTER:
            return
        try:
            try:
                self._update(wanted)
            except CommandFailed:
                if security:
                    raise
                # The host names no security archive, and ours may be out of its reach.
                self._update(without)
                progress.say(f"no security archive of {self.suite} within reach: going on without it")
        except CommandFailed as e:
            if not have:
                raise NitroError(
                    f"cannot read the package lists of Debian {self.suite}: {e}",
                    hint="check the network and the host's apt sources; or pass --source with a QEMU tarball",
                ) from e
            progress.say(
                f"no fresh package lists of {self.suite}; using those of "
                f"{time.strftime('%Y-%m-%d', time.localtime(stamp.get('fetched', 0)))}"
            )
            self._write_sources(have)
            again = time.time() - REFRESH_AFTER + RETRY_AFTER
            cache.write_json(self.root / "stamp.json", {**stamp, "checked": again})

    def _write_sources(self, text: str) -> None:
        path = self.root / "sources.list.d" / "debian.sources"
        cache.write_text(path, text)
        path.chmod(0o600)

    def _update(self, sources: str) -> None:
        self._write_sources(sources)
        lists = self.root / "state/lists"
        with progress.task(f"Package lists of Debian {self.name}", unit="bytes") as task:
            argv = self._argv("apt-get", "update", "-q")
            _watched(argv, self.root, lambda: _bytes_in(lists), task, cache.log_path(f"apt-{self.name}"))
        now = time.time()
        cache.write_json(self.root / "stamp.json", {"sources": sources, "checked": now, "fetched": now})
        (self.root / "versions.json").unlink(missing_ok=True)

    def _argv(self, program: str, *arguments: str) -> list[str]:
        return [program, "-c", str(self.root / "apt.conf"), *arguments]

    # --- versions

    def version(self, package: str, source: bool = False) -> str:
        """The newest version of a binary (or source) package in the suite, its updates and its security."""
        memo = self.root / "versions.json"
        known = cache.read_json(memo) or {}
        name = f"src:{package}" if source else package
        if name not in known:
            known[name] = self._newest(package, source)
            cache.write_json(memo, known)
        return str(known[name])

    def _newest(self, package: str, source: bool) -> str:
        out = proc.run(self._argv("apt-cache", "madison", package)).stdout.decode()
        newest = None
        for line in out.splitlines():
            name, version, where = (part.strip() for part in line.split("|"))
            if name != package or where.endswith("Sources") != source:
                continue
            if newest is None or _is_newer(version, newest):
                newest = version
        if newest is None:
            kind = "source package" if source else "package"
            raise NitroError(
                f"Debian {self.suite} has no {kind} {package}",
                hint=f"the mirror may be incomplete; the source list is in {self.root / 'sources.list.d'}",
            )
        return newest

    def depends(self, package: str) -> list[str]:
        """The names of what the newest version of a binary package depends on."""
        out = proc.run(self._argv("apt-cache", "depends", package)).stdout.decode()
        return re.findall(r"^[ |]*Depends: (\S+)$", out, re.MULTILINE)

    # --- files

    def source(self, package: str, version: str | None = None) -> Path:
        """A folder with the .dsc and the tarballs of a source package, downloaded and verified."""
        version = version or self.version(package, source=True)
        options = ("-q", "--download-only", "--only-source")
        argv = self._argv("apt-get", "source", *options, f"{package}={version}")
        return self._fetched("source", package, version, argv, f"src-{package}")

    def download(self, package: str, version: str | None = None, *, name: str | None = None) -> Path:
        """A binary package's .deb, downloaded and verified.

        `name` is what the package is to us, where its own name changes with its version (kernels).
        """
        version = version or self.version(package)
        argv = self._argv("apt-get", "download", "-q", f"{package}={version}")
        folder = self._fetched("deb", package, version, argv, f"deb-{name or package}{_ending(self.arch)}")
        (deb,) = folder.glob("*.deb")
        return deb

    def _fetched(self, kind: str, package: str, version: str, argv: list[str], name: str) -> Path:
        def fill(folder: Path) -> None:
            total = _announced_size(proc.run([*argv, "--print-uris"], cwd=folder).stdout.decode())
            cache.need_space(2 * total, what=f"downloading {package} {version}")
            with progress.task(f"Downloading {package} {version}", unit="bytes", total=total) as task:
                _watched(argv, folder, lambda: _bytes_in(folder), task, cache.log_path(f"apt-{package}"))

        return cache.build_entry(kind, f"{package}_{version}{_ending(self.arch)}", fill, name=name)

    def tree(self, *packages: str) -> Path:
        """A folder with the files of those packages and of all that they depend on, Essential ones apart. The
        links of a merged /usr (bin, lib, lib64, sbin) are there; nothing is installed, no script runs."""
        versions = [f"{package}={self.version(package)}" for package in packages]

        def fill(folder: Path) -> None:
            debs = folder / "debs"
            (debs / "partial").mkdir(parents=True)
            options = ("-q", "-y", "--download-only", "--no-install-recommends")
            argv = self._argv("apt-get", "install", *options, "-o", f"Dir::Cache::archives={debs}", *versions)
            with progress.task(f"Downloading {', '.join(packages)}", unit="bytes") as task:
                _watched(argv, debs, lambda: _bytes_in(debs), task, cache.log_path(f"apt-{packages[0]}"))
            for name in ("bin", "lib", "lib64", "sbin"):
                (folder / "usr" / name).mkdir(parents=True)
                (folder / name).symlink_to(f"usr/{name}")
            for deb in debs.glob("*.deb"):
                self.unpack(deb, folder)
            shutil.rmtree(debs)

        return cache.build_entry(
            "tree",
            "_".join(versions).replace(":", "-") + _ending(self.arch),
            fill,
            name=f"tree-{packages[0]}{_ending(self.arch)}",
        )

    def unpack(self, deb: Path, into: Path) -> None:
        """Unpack a .deb's files below a folder; nothing is installed, no script runs."""
        into.mkdir(parents=True, exist_ok=True)
        proc.run(["dpkg-deb", "--extract", deb, into])


def _is_newer(a: str, b: str) -> bool:
    return proc.run(["dpkg", "--compare-versions", a, "gt", b], check=False).returncode == 0


def _announced_size(uris: str) -> int:
    """The sum of the sizes that `apt-get --print-uris` lists: 'URI' FILE SIZE HASH."""
    return sum(int(m[1]) for m in re.finditer(r"^'[^']*' \S+ (\d+)(?: |$)", uris, re.MULTILINE))
