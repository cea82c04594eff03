# SPDX-License-Identifier: MIT
"""The plugin: the nitro-enclave machine in the QEMU that is installed already, as DKMS does for kernels.

    package     which package and version the QEMU is, and its ELF build-id
    source      the tree of exactly that version of the source package, with the graft in it
    configure   with those of Debian's options that decide how QEMU's structures look
    ninja       QEMU's generated headers and our files: nitro-enclave.so, nothing of QEMU itself
    launcher    contrib/plugin/launcher.c, which compares the build-id and preloads the plugin
    product     cache entry plugin/KEY: bin/qemu-system-ARCH, lib/nitro-enclave.so, manifest.json

The plugin itself refuses a QEMU that it does not fit (hw/plugin). Which QEMU is then used is `plugin`'s to
choose.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from nitroctl.base import arch as arches
from nitroctl.base import proc
from nitroctl.base.arch import Arch
from nitroctl.base.config import source_root
from nitroctl.base.errors import CommandFailed, NitroError
from nitroctl.toolchain import cache, packages, tree
from nitroctl.toolchain.cache import named
from nitroctl.toolchain.plugin import POINTER, Manifest, arch_of, build_id
from nitroctl.toolchain.source import LINK, NO_DEVICES, Source, find_source, package_source, plain_name
from nitroctl.toolchain.steps import BuildFailed, ninja, toolchain

PLUGIN = "nitro-enclave.so"
TARGET = f"{LINK}/hw/plugin/{PLUGIN}"
LAUNCHER = "contrib/plugin/launcher.c"

SPACE_BUILD = 60 * 10**6  # bytes; headers, objects

TREE_HINT = "use the tree build: nitroctl build"


def _tree_hint(arch: Arch) -> str:
    return TREE_HINT if arch == "x86_64" else f"{TREE_HINT} --arch {arch}"


# configure's options that structures of QEMU depend on, as they are where nobody says otherwise. Debian's own
# replace them; its other options ask for libraries, which need not be here to read headers.
LAYOUT = {
    "kvm": "--enable-kvm",
    "modules": "--disable-modules",
    "plugins": "--enable-plugins",
    "tcg": "--enable-tcg",
    "trace-backends": "--enable-trace-backends=log",
    "vhost-kernel": "--enable-vhost-kernel",
    "vhost-net": "--enable-vhost-net",
    "vhost-user": "--enable-vhost-user",
    "vhost-vdpa": "--enable-vhost-vdpa",
}
# The same, but of no use where Debian does not name them.
LAYOUT_IF_NAMED = (
    "coroutine-pool", "debug-mutex", "debug-tcg", "replication", "safe-stack", "tcg-interpreter", "tsan",
    "xen",
)  # fmt: skip


# --- the installed QEMU ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """A QEMU that belongs to a package."""

    path: Path
    package: str
    version: str
    source_version: str  # a +bN of `version` is a rebuild of the same source
    build_id: str

    @property
    def arch(self) -> Arch:
        return arch_of(self.package)


def _dpkg_query(*arguments: str) -> str:
    if not shutil.which("dpkg-query"):
        raise NitroError(
            "the plugin is for QEMU packages of Debian, and this host has no dpkg", hint=TREE_HINT
        )
    return proc.run(["dpkg-query", *arguments]).stdout.decode()


def _owner(path: Path) -> str | None:
    """The package that installed a file."""
    # dpkg may know a file below /usr by its name before the /usr merge.
    names = dict.fromkeys(os.fspath(p) for p in (path, path.resolve()))
    names |= dict.fromkeys(name.removeprefix("/usr") for name in names if name.startswith("/usr/"))
    for name in names:
        with contextlib.suppress(CommandFailed):
            for line in _dpkg_query("--search", name).splitlines():
                package, _, found = line.partition(": ")
                if found == name and not package.startswith("diversion "):
                    return package.partition(",")[0]
    return None


def _in_path(program: str) -> list[Path]:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    paths = [(Path(folder) / program).absolute() for folder in (*folders, "/usr/bin") if folder]
    # A folder that may not be looked into is no error, as for a shell.
    return [path for path in dict.fromkeys(paths) if os.path.isfile(path) and os.access(path, os.X_OK)]


def installed(qemu: Path | None = None, arch: Arch = "x86_64") -> Installed:
    """What the QEMU `qemu` is, or the first one for that architecture in PATH; raises NitroError if no
    package owns it."""
    program = arches.qemu(arch)
    paths = [qemu.absolute()] if qemu else _in_path(program)
    install = packages.install_line([packages.emulator(arch)])
    if not paths or not paths[0].is_file():
        raise NitroError(
            f"{qemu}: no such file" if qemu else f"no {program} is installed",
            hint=f"install the distribution's ({install}), or {_tree_hint(arch)}",
        )
    # PATH may have links of ours, or QEMUs that somebody built, before the distribution's.
    owners = ((path, _owner(path)) for path in paths)
    path, package = next(((path, owner) for path, owner in owners if owner), (paths[0], None))
    if package is None:
        raise NitroError(
            f"{path} belongs to no package: its exact source is not known",
            hint=f"install the distribution's ({install}), or {_tree_hint(arch)}",
        )
    form = "${source:Package}\\t${source:Version}\\t${Version}\\n"
    source, source_version, version = _dpkg_query("--show", f"--showformat={form}", package).split()
    if source != "qemu":
        raise NitroError(f"{path} is of {package} from the source package {source}, not qemu", hint=TREE_HINT)
    found = build_id(path)
    if not found:
        raise NitroError(f"{path} has no build-id by which the plugin could know it", hint=TREE_HINT)
    # "name:architecture" where several architectures are installed.
    return Installed(path, package.partition(":")[0], version, source_version, found)


def _package_string(qemu: Installed) -> str:
    """What QEMU says of its package: it is compiled in, and compared by the plugin."""
    said = proc.run([qemu.path, "--version"]).stdout.decode(errors="replace")
    match = re.match(r"QEMU emulator version \S+ \((.+)\)$", said.split("\n")[0])
    if not match or qemu.version not in match[1]:
        raise NitroError(
            f"{qemu.path} says {said.splitlines()[:1]}, dpkg says {qemu.package} {qemu.version}",
            hint=f"install the package again, or {TREE_HINT}",
        )
    return match[1]


# --- building --------------------------------------------------------------------------------------------


def layout_options(rules: str, control: str) -> list[str]:
    """configure's options for QEMU's layout, from debian/rules and debian/control of the source package.

    In rules, those of the build that makes qemu-system-*: others (for Xen, microvm, static user mode) are no
    business of ours. In control, the comment lines that Debian's own script turns into options.
    """
    common = re.search(r"^common_configure_opts = *\\\n(?:.*\\\n)*.*\n", rules, re.MULTILINE)
    recipe = re.search(r"^b/qemu/configured:.*\n((?:\t.*\n)+)", rules, re.MULTILINE)
    if not common or not recipe:
        raise NitroError(
            "debian/rules is not as expected: the options of Debian's build are not known", hint=TREE_HINT
        )
    commented = "\n".join(re.findall(r"^# ?(--\S+.*)$", control, re.MULTILINE))
    options = dict(LAYOUT)
    text = f"{common[0]}{recipe[1]}{commented}"
    for token in re.findall(r"(?<!\S)--(?:en|dis)able-[a-z0-9-]+(?:=\S+)?", text):
        name = re.sub(r"^--(en|dis)able-|=.*$", "", token)
        if name in LAYOUT or name in LAYOUT_IF_NAMED:
            options[name] = token
    if options["modules"] != "--enable-modules":
        raise NitroError(
            "this QEMU is built without loadable modules, and so without symbols for plugins", hint=TREE_HINT
        )
    return list(options.values())


def _configure_options(source: Source, package_string: str, arch: Arch) -> list[str]:
    debian = source.root / "debian"
    try:
        layout = layout_options((debian / "rules").read_text(), (debian / "control").read_text())
    except OSError as e:
        raise NitroError(f"{source.root} is no source package of Debian's: {e.strerror}: {e.filename}") from e
    # Debian's build is for all targets, of which KVM serves the host's.
    layout = [o for o in layout if o != "--enable-kvm" or arch == arches.host()]
    said = {re.sub(r"=.*$", "", option) for option in layout}
    common = [
        o
        for o in tree.configure_options(source.series, source.root, False, arch)
        if o not in (*tree.for_arch(NO_DEVICES, arch), "--enable-seccomp")
        and re.sub(r"=.*$", "", o) not in said
    ]
    return [*common, *layout, f"--with-pkgversion={package_string}"]


def build_plugin(
    qemu: Path | None = None,
    *,
    arch: Arch | None = None,
    source: Path | None = None,
    jobs: int | None = None,
) -> Manifest:
    """Build the plugin for a QEMU, or find it built. `arch`: where no `qemu` is named, which one; else the
    name of its program tells. `source` is a .dsc, where Debian's mirror is not asked.

    Raises NitroError; nothing half-made is left where others look.
    """
    if qemu and qemu.name == arches.qemu("aarch64"):
        arch = "aarch64"
    found = installed(qemu, arch or "x86_64")
    package_string = _package_string(found)
    if source is not None and source.suffix != ".dsc":
        raise NitroError(f"--source {source}: the plugin is built from a source package's .dsc")
    sources = find_source(source, None) if source else package_source(found.source_version)
    name = named(POINTER, arch or "x86_64")
    return build_for(found, package_string, sources, jobs=jobs, name=name)


def build_for(
    found: Installed,
    package_string: str,
    sources: Source,
    *,
    jobs: int | None = None,
    name: str = POINTER,
    runs_here: bool = True,
) -> Manifest:
    """Build the plugin for a QEMU of which these are known, or find it built.

    `name` is what the cache knows it by. A QEMU that does not run here cannot be asked for its machines.
    Raises NitroError.
    """
    started = time.monotonic()
    tools = toolchain(packages.BUILD + sources.series.needs)
    arch = found.arch
    configure = _configure_options(sources, package_string, arch)
    configured = cache.digest_text(sources.key, *configure, json.dumps(tools, sort_keys=True))
    build_key = f"{plain_name(sources.version)}-{configured[:12]}-plugin"
    build_dir = cache.entry("qemu-build", build_key)
    launcher = source_root() / LAUNCHER

    def product_key(overlay: str) -> str:
        content = cache.digest_text(
            configured,
            overlay,
            cache.digest_file(launcher),
            os.fspath(found.path),
            found.build_id,
            found.version,
        )
        return f"{plain_name(sources.version)}-{content[:16]}"

    key = product_key(tree.overlay_digest(source_root()))
    manifest = Manifest.load(cache.entry("plugin", key))
    if manifest and manifest.launcher.is_file():
        cache.set_current(name, "plugin", key)
        return manifest

    with cache.lock("qemu-source", sources.key) as a, cache.lock("qemu-build", build_key) as b:
        if not build_dir.is_dir():
            cache.need_space(SPACE_BUILD, what="building the plugin")
        tree.sync_copy(tree.OVERLAY, source_root(), sources.root / LINK)
        overlay = tree.overlay_digest(sources.root / LINK)
        log = cache.log_path(f"{named('plugin', arch)}-{sources.series.name}")
        log.unlink(missing_ok=True)
        tree.configure_tree(sources, build_dir, configure, log, (a, b))
        cache.set_current(f"qemu-build-{name}", "qemu-build", build_key)
        ninja(
            build_dir,
            [TARGET],
            f"Building the plugin for QEMU {sources.version}",
            jobs,
            log,
            (a, b),
            tree.originals(LINK),
        )
        key = product_key(overlay)

        def fill(folder: Path) -> None:
            (folder / "bin").mkdir()
            (folder / "lib").mkdir()
            shutil.copy(build_dir / TARGET, folder / "lib" / PLUGIN)
            program = folder / "bin" / arches.qemu(arch)
            compile_launcher(launcher, found, program)
            # All symbols at once: a missing one is found here and not in the middle of a run.
            if runs_here:
                tree.check_machine(program, env={"LD_BIND_NOW": "1"})
            made = Manifest(
                key=key,
                qemu=os.fspath(found.path),
                build_id=found.build_id,
                package=found.package,
                version=found.version,
                series=sources.series.name,
                source=sources.origin,
                source_dir=os.fspath(sources.root),
                overlay=overlay,
                graft=cache.digest_file(sources.series.graft),
                configure=configure,
                tools=tools,
                build_dir=os.fspath(build_dir),
                plugin_sha256=cache.digest_file(folder / "lib" / PLUGIN),
                built=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                seconds=round(time.monotonic() - started, 1),
            )
            cache.write_json(folder / "manifest.json", dataclasses.asdict(made))

        root = cache.build_entry("plugin", key, fill, name=name)
    manifest = Manifest.load(root)
    assert manifest is not None
    return manifest


def compile_launcher(source: Path, qemu: Installed, output: Path) -> None:
    """Compile the launcher for that QEMU."""
    defines = {
        "NITRO_QEMU": os.fspath(qemu.path),
        "NITRO_BUILD_ID": qemu.build_id,
        "NITRO_VERSION": f"{qemu.package} {qemu.version}",
        "NITRO_TREE": _tree_hint(qemu.arch),
    }
    # JSON's strings are C's as well, as far as such values go.
    macros = [f"-D{name}={json.dumps(value)}" for name, value in defines.items()]
    hard = ["-fPIE", "-pie", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    argv = [
        "cc",
        "-O2",
        "-Wall",
        "-Wextra",
        *hard,
        "-Wl,-z,relro,-z,now",
        *macros,
        "-o",
        os.fspath(output),
        os.fspath(source),
    ]
    try:
        proc.run(argv)
    except CommandFailed as e:
        raise BuildFailed("compiling the launcher", str(e).splitlines()[1:9], source) from e
