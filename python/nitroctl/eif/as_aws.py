# SPDX-License-Identifier: MIT
"""Builds the EIF that `nitro-cli build-enclave` makes from the same container image and blobs: the same PCRs.

`linuxkit` makes the ramdisks; command line, order of sections, flags and metadata are also as in AWS's build.
What differs is in no PCR, and differs between two of AWS's builds too: the build time, and what Docker says
about itself. With another kernel and init than AWS's blobs, PCR2 is still AWS's but PCR0 and PCR1 are not; a
mark in the bootstrap ramdisk then tells our init to do only what AWS's does.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nitroctl.base.errors import NitroError
from nitroctl.eif import linuxkit
from nitroctl.eif.blobs import encoded
from nitroctl.eif.boot import read_kernel
from nitroctl.eif.build import Built, Generated, Metadata, Parts, Sink, build, premeasure
from nitroctl.eif.compose import Bootstrap, Options, about, write_bootstrap
from nitroctl.eif.cpio import readable
from nitroctl.eif.export import Export, Inode, export
from nitroctl.eif.image import Image, open_image
from nitroctl.eif.measure import shown
from nitroctl.eif.pcr import Measurements
from nitroctl.toolchain import aws_blobs

MODULE_MAX = 64 << 20  # bytes of init or nsm.ko


@dataclass(frozen=True)
class Choice:
    """Which image of those in a file or folder; see `image.open_image`."""

    path: Path
    name: str | None = None
    platform: str | None = None


def command(run: dict[str, Any]) -> tuple[str, ...]:
    """The command that AWS's init starts, from an image's configuration: CMD if there is one, even an empty
    list; else ENTRYPOINT. Never both, although a container would run both."""
    for key in ("Cmd", "Entrypoint"):
        if isinstance(run.get(key), list):
            return tuple(run[key])
    raise NitroError("the image has neither CMD nor ENTRYPOINT; AWS's build-enclave would fail, too")


def _doubts(image: Image, exported: Export) -> list[str]:
    """Warnings about what makes AWS's own result depend on more than the image."""
    found = []
    if uncertain := linuxkit.uncertain(exported):
        found.append(
            f"AWS's PCR2 cannot be predicted: no layer lists {_some(uncertain)}, so Docker gives them the "
            "time of unpacking; here it is 0. Create these folders in the image, WORKDIR included"
        )
    files = [(name, node) for name, node in exported.walk() if isinstance(node, Inode)]
    if devices := [n for n, node in files if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)]:
        found.append(
            f"a rootless Docker leaves out device nodes: {_some(devices)}; AWS's PCR2 is then different"
        )
    if links := [n for n, node in files if stat.S_ISLNK(node.mode) and node.early]:
        found.append(f"with Docker before 28, links dated before 1970 break AWS's archive: {_some(links)}")
    run = image.info["Config"]
    if any("\n" in item for item in (*command(run), *image.config.env)):
        found.append("an argument or variable has a line break, at which AWS's init splits it in two")
    if run.get("Cmd") == []:
        found.append("CMD is an empty list: with Docker 28.5 and later, AWS's build takes ENTRYPOINT instead")
    if run.get("Cmd") and run.get("Entrypoint") and run.get("Env") is None:
        found.append(
            "the image has no environment variables: nitro-cli up to 1.2.3 takes ENTRYPOINT, not CMD"
        )
    return found


def _some(names: list[bytes]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join("/" + readable(name) for name in names[:5]) + more


def _differences(image: Image) -> list[str]:
    """Warnings about what will be different from a container of this image."""
    run, config = image.info["Config"], image.config
    found = []
    if run.get("Cmd") and config.entrypoint:
        found.append("AWS's build-enclave takes CMD and leaves out ENTRYPOINT, which a container would start")
    if config.user not in ("", "0", "root", "0:0", "root:root"):
        found.append(f"AWS's init ignores USER: the application runs as root, not as {config.user!r}")
    if config.workdir not in ("", "/"):
        found.append(f"AWS's init ignores WORKDIR: the application starts in /, not in {config.workdir!r}")
    return found


@contextmanager
def requested(
    choice: Choice,
    start: Bootstrap,
    options: Options,
    *,
    scratch: Path | None = None,
    check_kernel: bool = True,
    explain: bool = True,
) -> Iterator[tuple[Parts, list[str]]]:
    """What to build, and the warnings; it must be built within the `with` body, during which the image's
    files are kept below `scratch`. `explain` adds warnings about what differs from a container. Raises
    NitroError."""
    image = open_image(choice.path, name=choice.name, platform=choice.platform, arch=start.kernel.arch)
    run = image.info["Config"]
    cmd = command(run)
    with shown(f"Reading {choice.path.name}", sum(b.size for b in image.layers)) as advance:
        with about(choice.path):
            exported = export(image, image.config.workdir, advance)
    size = sum(node.size for _, node in exported.walk() if isinstance(node, Inode))
    kernel = start.kernel.image
    system, version = aws_blobs.kernel_facts(kernel) if start.aws else ("Linux", "Unknown")
    if check_kernel and not start.aws:
        version = read_kernel(kernel, start.kernel.arch).version
    with linuxkit.spooled(image, exported, scratch) as contents:

        def write_application(sink: Sink) -> None:
            with about(choice.path):
                linuxkit.write(sink, linuxkit.application(exported, cmd, image.config.env), contents)

        custom = dict(options.custom) if isinstance(options.custom, dict) else options.custom
        if start.kernel.acpi:
            custom = {**(custom or {}), "nitroctl": start.kernel.marks}
        request = Parts(
            kernel=kernel,
            cmdline=encoded(start.cmdline),
            ramdisks=(
                Generated("bootstrap", lambda sink: _write_bootstrap(sink, start)),
                Generated("application", write_application, size),
            ),
            metadata=Metadata(
                image_name=image.name.partition(":")[0] if options.name is None else options.name,
                image_version=image.id if options.version is None else options.version,
                build_time=options.build_time,
                operating_system=system,
                kernel_version=version,
                docker_info=image.info,
                custom=custom,
            ),
            check_kernel=check_kernel,
            signer=options.signer,
            arch=start.kernel.arch,
            give_text_offset=not start.aws,  # AWS's builder takes its kernel as it is
        )
        said = _doubts(image, exported)
        yield request, [*said, *(_differences(image) if explain else ())]


def _write_bootstrap(sink: Sink, start: Bootstrap) -> None:
    if not start.aws:
        write_bootstrap(sink, start, as_aws=True)
        return
    module = next((e.path for e in start.kernel.files if e.name == b"nsm.ko"), None)
    linuxkit.write(sink, linuxkit.bootstrap(_content(start.init), _content(module) if module else None))


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MODULE_MAX:
            raise NitroError(f"{path} has {path.stat().st_size} bytes; at most {MODULE_MAX} are allowed")
        return path.read_bytes()
    except OSError as e:
        raise NitroError(f"cannot read {path}: {e.strerror}") from e


def make(
    choice: Choice,
    start: Bootstrap,
    output: Path,
    options: Options,
    *,
    check_kernel: bool = True,
    explain: bool = True,
) -> Built:
    """Make the EIF. Raises NitroError."""
    with requested(
        choice, start, options, scratch=output.parent, check_kernel=check_kernel, explain=explain
    ) as (request, said):
        built = build(request, output)
    return replace(built, warnings=(*said, *built.warnings))


def predict(
    choice: Choice, start: Bootstrap, options: Options, *, check_kernel: bool = True
) -> tuple[Measurements, list[str]]:
    """The measurements of the EIF that `make` would make, and its warnings; no EIF is written."""
    with requested(choice, start, options, check_kernel=check_kernel) as (request, said):
        return premeasure(request), said
