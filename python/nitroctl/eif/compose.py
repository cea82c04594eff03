# SPDX-License-Identifier: MIT
"""Builds an EIF from an application and what starts it, with two ramdisks as in AWS's EIFs.

    ramdisk 1, "bootstrap"     dev/, init, and modules that the kernel needs; the same for all applications
    ramdisk 2, "application"   rootfs/, and for init: cmd, env (one entry per line); if needed cwd, user,
    program,
                               and cmd0, env0 (each entry ended by NUL) if an entry has a line break

An application is a container image or a folder. AWS's build-enclave takes CMD, or ENTRYPOINT if there is no
CMD, and ignores WORKDIR and USER; here all of them take effect as in a container, unless `aws_cmd` asks for
AWS's way. Only our own init reads cwd, user, program, cmd0 and env0.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nitroctl.base import arch as arches
from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.base.memory import MIB, default_memory
from nitroctl.eif import cpio, etc, kernel_parts, package, rpm, trust
from nitroctl.eif.blobs import encoded, lines
from nitroctl.eif.boot import read_kernel
from nitroctl.eif.build import Built, FileSigner, Generated, Metadata, Parts, Sink, build
from nitroctl.eif.image import Config, open_image
from nitroctl.eif.layers import SMALL_MAX, TABLES, Node, Tree, read_tree
from nitroctl.eif.measure import shown
from nitroctl.eif.root import write_root
from nitroctl.toolchain import aws_blobs

# nitro-cli's blobs/ARCH/cmdline.
CMDLINES: dict[Arch, str] = {
    "x86_64": (
        "reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp "
        "i8042.dumbkbd random.trust_cpu=on"
    ),
    "aarch64": "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on root=/dev/ram0",
}
CMDLINE = CMDLINES["x86_64"]

# PATH in a container whose image does not set it.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Bytes of memory that a kernel uses before there is a file system; and the fraction (one in 64) of all memory
# that it uses for its page structures.
KERNEL_NEEDS = 20 << 20

# The folders on which init mounts something; and /var, because AWS's builder makes it.
MOUNT_POINTS = {"dev": 0o755, "proc": 0o755, "run": 0o755, "sys": 0o755, "tmp": 0o1777, "var": 0o755}


@dataclass(frozen=True)
class Kernel:
    """A bzImage or an arm64 Image. `files` go into the bootstrap ramdisk with it. `acpi`: it finds virtio
    devices only through ACPI, so the machine needs acpi=on. `lacks`: the features of AWS's kernel that it
    does not have."""

    image: Path
    files: tuple[cpio.Entry, ...] = ()
    acpi: bool = False
    lacks: tuple[str, ...] = ()
    arch: Arch = "x86_64"

    @property
    def marks(self) -> dict[str, Any]:
        """What the custom metadata say about it under "nitroctl", for `about.wants_acpi` and
        `about.lacking`."""
        marks: dict[str, Any] = {"acpi": True} if self.acpi else {}
        if self.lacks:
            marks["lacks"] = list(self.lacks)
        return marks


@dataclass(frozen=True)
class Bootstrap:
    """What starts before any application."""

    kernel: Kernel
    init: Path
    cmdline: str = CMDLINE
    aws: bool = False  # it is AWS's own init, which ignores cwd and user


@dataclass(frozen=True)
class Application:
    """What runs in the enclave. `write` adds rootfs/ and its contents to an archive; `size` (bytes of
    content) is for progress. `program`, if not empty, is the file to execute if the command's first word is
    not a path."""

    path: Path  # of the image or folder, for errors
    write: Callable[[cpio.Archive], None]
    cmd: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""  # "UID GID [GROUP]..."
    program: str = ""
    name: str = "application"
    version: str = "1.0"
    size: int = 0
    info: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: str = ""  # the warning that its program is missing, if there is one


# ---- what starts ----


def locate_kernel(name: str | None = None, arch: Arch | None = None) -> Kernel:
    """The kernel "own"; "prebuilt", which is fetched if needed; or that at a path. By default "own" if it was
    built, else "prebuilt". `arch`: by default that of the kernel file, if a path is given, else the
    host's."""
    from nitroctl.toolchain import guest, prebuilt

    if name not in (None, "own", "prebuilt"):
        return Kernel(Path(name), arch=arch or kernel_parts.arch_of(Path(name)) or arches.default())
    arch = arch or arches.default()
    if (name or guest.default_kernel(arch)) == "own":
        return Kernel(guest.locate("kernel", arch), arch=arch)
    found = prebuilt.fetch(arch=arch)
    files = tuple(cpio.tree(found.modules_dir))
    return Kernel(found.image, files, acpi=found.acpi, lacks=found.lacks, arch=arch)


def bootstrap(
    kernel: str | None = None, cmdline: str | None = None, *, arch: Arch | None = None
) -> Bootstrap:
    """Our init, which is compiled if needed, and a kernel as for `locate_kernel`."""
    from nitroctl.toolchain import guest

    found = locate_kernel(kernel, arch)
    text = CMDLINES[found.arch] if cmdline is None else cmdline
    return Bootstrap(found, guest.build_init(found.arch) / "init", text)


def from_blobs(path: Path, cmdline: str | None = None, *, arch: Arch | None = None) -> Bootstrap:
    """AWS's blobs: bzImage (aarch64: Image), init, cmdline, and nsm.ko if the kernel has the NSM driver as a
    module. `path` is their folder, a checkout of aws-nitro-enclaves-cli (which has those of both
    architectures), or Amazon Linux's package. `arch`: by default that of the kernel found there; if there are
    two, the host's."""
    folder = package.unpacked(path) if rpm.is_rpm(path) else aws_blobs.found(path, arch)
    if not folder.is_dir():
        what = "is neither a folder nor an RPM package" if path.exists() else "does not exist"
        raise NitroError(f"{path}, given for AWS's blobs, {what}", hint=aws_blobs.HINT)
    has = aws_blobs.arch_of(folder)
    if arch is not None and has not in (None, arch):
        raise NitroError(
            f"the blobs in {folder} are for {has}, but the enclave's architecture is {arch}",
            hint=f"give --arch {has}, or AWS's blobs for {arch}",
        )
    has = has or arch or arches.default()
    kernel = arches.facts(has).image
    for name in (kernel, "init"):
        if not (folder / name).is_file():
            raise NitroError(f"the folder of blobs {folder} lacks {name}", hint=aws_blobs.HINT)
    try:
        text = cmdline
        if text is None:
            text = (folder / "cmdline").read_text("utf-8", "surrogateescape").strip()
    except OSError as e:
        raise NitroError(f"cannot read {folder / 'cmdline'}: {e.strerror}") from e
    module = folder / "nsm.ko"
    files = (cpio.file("nsm.ko", module, 0o755),) if module.is_file() else ()
    return Bootstrap(Kernel(folder / kernel, files, arch=has), folder / "init", text, aws=True)


# ---- applications ----


def from_image(
    path: Path,
    *,
    name: str | None = None,
    platform: str | None = None,
    arch: Arch | None = None,
    aws_cmd: bool = False,
    trusted: bytes = b"",
) -> Application:
    """A container image in a file or folder as an application. `name`, `platform` and `arch` choose among
    several images, see `open_image`. With `aws_cmd` ENTRYPOINT is used only if there is no CMD, and WORKDIR,
    USER and the default of PATH have no effect. `trusted`: CA certificates (PEM) to add to the image's CA
    bundles."""
    image = open_image(path, name=name, platform=platform, arch=arch)
    with shown(f"Reading {path.name}", sum(b.size for b in image.layers)) as advance:
        tree = read_tree(image, advance)
    _make_mount_points(tree, str(path))
    notes = etc.complete(tree)
    if trusted:
        with about(path):
            notes.append(trust.add(tree, trusted))
    config = image.config
    warnings = []
    if tree.attributes:
        warnings.append(
            f"{tree.attributes} files have extended attributes (file capabilities, for instance), "
            "which a ramdisk cannot hold"
        )
    application = Application(
        path=path,
        write=lambda archive: write_root(archive, image, tree, b"rootfs"),
        cmd=(config.cmd or config.entrypoint) if aws_cmd else config.entrypoint + config.cmd,
        env=config.env,
        name=_untagged(image.name),
        version=image.id,
        size=sum(node.size for _, node in tree.walk()),
        info=image.info,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )
    if not application.cmd:
        raise NitroError(
            f"{path} has neither CMD nor ENTRYPOINT: there is nothing to run",
            hint="set one of them in the image, or unpack the image and give --directory and --cmd",
        )
    with about(path):
        return _checked(application if aws_cmd else _as_in_a_container(application, config, tree))


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Prefixes errors raised in the body with the image or folder."""
    try:
        yield
    except NitroError as e:
        raise NitroError(f"{path}: {e}", hint=e.hint) from None


def _make_mount_points(tree: Tree, what: str) -> None:
    for name, mode in MOUNT_POINTS.items():
        try:
            tree.ensure_folder(name, mode)
        except NitroError as e:
            raise NitroError(f"{what}: the image's /{name}: {e}") from None


def _untagged(name: str) -> str:
    """A name such as registry:5000/team/app:1.2 without its tag; a colon before the last slash is that of a
    port."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(":")[0]


def _as_in_a_container(application: Application, config: Config, tree: Tree) -> Application:
    """USER, WORKDIR, HOME and PATH as a container runtime has them."""
    env = list(application.env)
    names = {item.partition("=")[0] for item in env}
    user, home = _user(config.user, tree)
    if "PATH" not in names:
        env.insert(0, f"PATH={PATH}")
    if "HOME" not in names:
        env.append(f"HOME={home}")
    cwd = config.workdir or "/"
    if not cwd.startswith("/"):
        raise NitroError(f"the working directory {cwd!r} is not absolute")
    tree.ensure_folder(cwd)
    program = application.cmd[0]
    path = next(item for item in env if item.startswith("PATH=")).removeprefix("PATH=")
    found, missing = _program(program, path, cwd, tree), ""
    if found is None:
        missing = f"the image has no program {program!r} in {path if '/' not in program else cwd}"
    return replace(
        application,
        program=found if found and found != program else "",
        env=tuple(env),
        cwd="" if cwd == "/" else cwd,
        user=user,
        missing=missing,
        warnings=(*application.warnings, missing) if missing else application.warnings,
    )


def _program(name: str, path: str, cwd: str, tree: Tree) -> str | None:
    """The path of a program, found as execvp(3) would. init itself searches only AWS's fixed folders, so it
    must be told the path."""
    folders = [""] if "/" in name else path.split(":")
    for place in (os.path.join(cwd, folder, name) for folder in folders):
        try:
            node: Node | None = tree.find(encoded(place).split(b"/"), follow=True)
        except NitroError:  # too many links
            continue
        node = node.linked or node if node else None
        if node and stat.S_ISREG(node.mode) and node.mode & 0o111:
            return name if "/" in name else place
    return None


def _user(text: str, tree: Tree) -> tuple[str, str]:
    """The image's USER as numbers ("UID GID GROUP..."; empty: root) and that user's home."""
    name, _, group = text.partition(":")
    users = _table(tree, "/etc/passwd", 7)
    groups = _table(tree, "/etc/group", 4)
    entry = next((u for u in users if name and name in (u[0], u[2])), None) or (
        None if name and name != "0" else next((u for u in users if u[2] == "0"), None)
    )
    uid = entry[2] if entry else name or "0"
    gid = entry[3] if entry else "0"
    if group:
        gid = next((g[2] for g in groups if group in (g[0], g[2])), group)
    for number, what in ((uid, "user"), (gid, "group")):
        if not _is_id(number):
            raise NitroError(f"the application is to run as {text!r}, but the image has no {what} {number!r}")
    # Supplementary groups only if the image names no group, as container runtimes do.
    more = [g[2] for g in groups if entry and not group and entry[0] in g[3].split(",") and _is_id(g[2])]
    home = entry[5] if entry and entry[5] else "/"
    if (uid, gid) == ("0", "0") and not more:
        return "", home
    return " ".join([uid, gid, *more]), home


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:11]) < (1 << 32) - 1


def _table(tree: Tree, path: str, fields: int) -> list[list[str]]:
    """The lines of /etc/passwd or /etc/group that have all their fields."""
    lines = tree.content_of(path).decode("utf-8", "surrogateescape").splitlines()
    split = [line.split(":") for line in lines]
    return [item for item in split if len(item) >= fields]


def from_directory(
    folder: Path,
    cmd: tuple[str, ...],
    *,
    env: tuple[str, ...] = (),
    cwd: str = "",
    user: str = "",
    trusted: bytes = b"",
) -> Application:
    """A folder as the root file system of an application, which starts as in a container. Modes are kept.
    Files that belong to the calling user (if not root) become root's, so that everybody gets the same image.
    `user` is USER or USER:GROUP, as numbers or names from the folder's /etc/passwd and /etc/group."""
    if not folder.is_dir():
        raise NitroError(f"{folder} is not a folder")
    if not cmd:
        raise UsageError("a folder does not say what to run: give --cmd")
    for item in env:
        if not item.partition("=")[0] or "=" not in item:
            raise UsageError(f"the variable {item!r} is not NAME=VALUE")
    me = os.geteuid()
    found = []
    for entry in cpio.tree(folder, every_mode=True):
        uid, gid = (entry.uid, entry.gid) if me == 0 or entry.uid != me else (0, 0)
        found.append(replace(entry, uid=uid, gid=gid))
    names = {entry.name for entry in found}
    tree = _tree_of(found)
    _make_mount_points(tree, str(folder))
    notes = etc.complete(tree)
    if trusted:
        with about(folder):
            notes.append(trust.add(tree, trusted))
        # A file that was added to has its new content in the tree.
        changed = {path: node.target for path, node in tree.walk() if stat.S_ISREG(node.mode) and node.target}
        found = [replace(e, data=changed[e.name], path=None) if e.name in changed else e for e in found]

    def write(archive: cpio.Archive) -> None:
        archive.add(cpio.directory("rootfs"))
        made = [cpio.Entry(path, node.mode, node.target) for path, node in tree.walk() if path not in names]
        for entry in sorted([*found, *made], key=lambda e: e.name.split(b"/")):
            archive.add(replace(entry, name=b"rootfs/" + entry.name))

    size = sum(e.content_size for e in found)
    application = Application(
        folder, write, cmd, env, name=folder.resolve().name, size=size, notes=tuple(notes)
    )
    with about(folder):
        return _checked(_as_in_a_container(application, Config(workdir=cwd, user=user), tree))


def _tree_of(entries: Iterable[cpio.Entry]) -> Tree:
    """The tree of a folder's entries, for looking up names in it."""
    tree = Tree()
    for entry in entries:
        *parts, base = entry.name.split(b"/")
        parent = tree.find(parts, follow=False)
        assert parent is not None and parent.children is not None
        node = parent.children[base] = Node(entry.mode, 0)
        node.target = entry.data
        if entry.name in TABLES and entry.path:
            with open(entry.path, "rb") as f:
                tree.small[node] = f.read(SMALL_MAX)
    return tree


# ---- the image ----


@dataclass(frozen=True)
class Options:
    """How the EIF is made. `name`, `version`: None for the application's own."""

    name: str | None = None
    version: str | None = None
    custom: Any = None  # any JSON value
    build_time: str = ""
    compress: bool = False
    signer: FileSigner | None = None


def compose(application: Application, start: Bootstrap, output: Path, options: Options) -> Built:
    """Make the EIF. Raises NitroError."""
    kernel = read_kernel(start.kernel.image, start.kernel.arch)
    custom = options.custom
    if start.kernel.acpi:
        if not isinstance(custom, dict | None):
            raise NitroError(
                f"with this kernel, custom metadata must be a JSON object, not {type(custom).__name__}: "
                "nitroctl notes there that the kernel needs ACPI"
            )
        custom = {**(custom or {}), "nitroctl": start.kernel.marks}
    if start.aws:
        with about(application.path):
            _check_lines(application)
    warnings = list(application.warnings)
    if start.aws and (application.cwd or application.user):
        warnings.append("AWS's init ignores WORKDIR and USER: the application runs as root in /")
    if start.aws and application.program:  # AWS's init would look for it elsewhere
        application = replace(application, cmd=(application.program, *application.cmd[1:]), program="")
    size = start.init.stat().st_size
    unpacked: list[int] = []
    disks = (
        Generated("bootstrap", lambda sink: write_bootstrap(sink, start), size),
        Generated("application", lambda sink: _write_application(sink, application), application.size),
    )
    request = Parts(
        kernel=start.kernel.image,
        cmdline=encoded(start.cmdline),
        ramdisks=tuple(_compressed(d, unpacked) for d in disks) if options.compress else disks,
        metadata=Metadata(
            image_name=application.name if options.name is None else options.name,
            image_version=application.version if options.version is None else options.version,
            build_time=options.build_time,
            kernel_version=kernel.version,
            docker_info=application.info,
            custom=custom,
        ),
        signer=options.signer,
        arch=start.kernel.arch,
    )
    built = build(request, output)
    warnings += _memory_warnings(built.size, sum(unpacked))
    return replace(built, warnings=(*warnings, *built.warnings), notes=(*application.notes, *built.notes))


def _memory_warnings(size: int, unpacked: int) -> list[str]:
    """Warn if the enclave's default memory is too small. It depends on the file's size, but the unpacked
    ramdisks may take only half of the memory: the kernel's limit for its first file system
    (Documentation/filesystems/tmpfs.rst)."""
    memory = default_memory(size)
    if 2 * unpacked <= memory * MIB * 63 // 64 - KERNEL_NEEDS:
        return []
    return [
        f"the ramdisks unpack to {-(-unpacked // MIB)} MiB in the enclave, for which its default memory of "
        f"{memory} MiB is too small: run it with --memory {default_memory(unpacked)}"
    ]


def write_bootstrap(sink: Sink, start: Bootstrap, *, as_aws: bool = False) -> None:
    """Write the bootstrap ramdisk. With `as_aws` our init is told to do only what AWS's does
    (guest/init.c)."""
    mark = (cpio.file("as-aws", b""),) if as_aws else ()
    files = (*mark, cpio.directory("dev"), cpio.file("init", start.init, 0o755), *start.kernel.files)
    cpio.write(sink, files)


def _checked(application: Application) -> Application:
    """Refuse texts that no init can be given. Raises NitroError."""
    for what, text in (("the working directory", application.cwd), ("the program", application.program)):
        if "\n" in text:
            raise NitroError(f"{what} has a line break, which cannot be passed to init: {text[:100]!r}")
    for what, items in (
        ("an argument", application.cmd),
        ("the working directory", (application.cwd,)),
        ("the program", (application.program,)),
        ("a variable", application.env),
    ):
        for item in items:
            if "\0" in item:
                raise NitroError(f"{what} has a NUL, which cannot be passed to a program: {item[:100]!r}")
    return application


def _check_lines(application: Application) -> None:
    """Refuse line breaks for AWS's init, which reads one text per line and would split such a text."""
    hint = (
        "use nitroctl's own init, which accepts it (no --blobs), or encode the text, for instance in base64"
    )
    for item in application.env:
        if "\n" in item:
            name = item.partition("=")[0][:100]
            raise NitroError(
                f"the variable {name!r} has a line break, which AWS's init cannot pass on", hint=hint
            )
    for item in application.cmd:
        if "\n" in item:
            raise NitroError(
                f"the argument {item[:100]!r} has a line break, which AWS's init cannot pass on", hint=hint
            )


def _write_application(sink: Sink, application: Application) -> None:
    archive = cpio.Archive(sink)
    _add_texts(archive, "cmd", application.cmd)
    if application.cwd:
        archive.add(cpio.file("cwd", lines((application.cwd,))))
    _add_texts(archive, "env", application.env)
    if application.program:
        archive.add(cpio.file("program", lines((application.program,))))
    application.write(archive)
    if application.user:
        archive.add(cpio.file("user", lines((application.user,))))
    archive.finish()


def _add_texts(archive: cpio.Archive, name: str, items: tuple[str, ...]) -> None:
    """Add a file with one text per line; and, if a text has a line break, a second file with all texts, each
    ended by NUL, which our init reads instead."""
    archive.add(cpio.file(name, lines(tuple(item for item in items if "\n" not in item))))
    if any("\n" in item for item in items):
        archive.add(cpio.file(f"{name}0", b"".join(encoded(item) + b"\0" for item in items)))


class _Gzip:
    """A sink that compresses with gzip. The same input and zlib give the same bytes: the header has neither
    name nor date."""

    def __init__(self, sink: Sink) -> None:
        self.size = 0  # bytes of input
        self._sink = sink
        self._packer = zlib.compressobj(6, zlib.DEFLATED, 31)

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self._sink.write(self._packer.compress(data))

    def copy(self, fd: int, size: int | None, name: str) -> None:
        left = size
        while left is None or left:
            data = os.read(fd, 1 << 20 if left is None else min(left, 1 << 20))
            if not data:
                if left:
                    raise NitroError(f"{name} became shorter while it was being read")
                return
            self.write(data)
            left = None if left is None else left - len(data)

    def finish(self) -> None:
        self._sink.write(self._packer.flush())


def _compressed(disk: Generated, sizes: list[int]) -> Generated:
    """A ramdisk, compressed. When it has been written, its uncompressed size is appended to `sizes`."""

    def write(sink: Sink) -> None:
        packer = _Gzip(sink)
        disk.write(packer)
        packer.finish()
        sizes.append(packer.size)

    return Generated(disk.name, write, disk.size)
