# SPDX-License-Identifier: MIT
"""The options for building an EIF: one line here is one option everywhere (`base.options`).

    commands.eif          an option of `build`      nitro_eif         a keyword
    nitroctl.build_eif    a keyword                 nitro_cli         AWS's option of build-enclave
    docs                  a line of the tables

After a change run `tools/generate`, which writes the keywords' types and the tables. `make` builds the EIF.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from nitroctl.base.errors import UsageError
from nitroctl.base.options import Option, Request

_APPLICATION = ("image", "directory")
_FOLDER = ("directory",)


def _check_signer(signer: Any) -> None:
    if not isinstance(signer, str) and not callable(getattr(signer, "append", None)):
        raise UsageError(
            f"signer={signer!r}: signer takes a command, or the result of nitroctl.eif.sign.load",
            hint="write signing_certificate= and private_key= for a key in a file",
        )


@dataclass(frozen=True)
class BuildRequest(Request):
    """An EIF from a container image, a folder, or parts. None means that the default is chosen later."""

    output: Annotated[Path, Option("EIF to write.", short="-o", nitro_cli="output_file")]
    image: Annotated[
        str | None,
        Option(
            "Container image: an OCI layout, oci-archive, `docker save` archive, or docker://NAME.",
            metavar="IMAGE",
            or_path=True,
            excludes=("directory", "ramdisk"),
        ),
    ] = None
    arch: Annotated[
        Literal["x86_64", "aarch64"] | None,
        Option(
            "Architecture of the enclave.",
            unset="that of --platform, --blobs or the kernel file, else this host's",
            nitro_cli=False,
        ),
    ] = None
    platform: Annotated[
        str | None,
        Option("Platform to take from a multi-platform image, such as linux/amd64/v3.", needs=("image",)),
    ] = None
    directory: Annotated[
        Path | None, Option("Folder that becomes the application's root file system.", excludes=("ramdisk",))
    ] = None
    cmd: Annotated[
        tuple[str, ...],
        Option("With a directory: the program and its arguments, one word each.", words=True, needs=_FOLDER),
    ] = ()
    env: Annotated[
        tuple[str, ...],
        Option("With a directory: an environment variable.", metavar="NAME=VALUE", pairs=True, needs=_FOLDER),
    ] = ()
    workdir: Annotated[str, Option("With a directory: the program's working directory.", needs=_FOLDER)] = ""
    user: Annotated[
        str,
        Option("With a directory: the user that the program runs as.", metavar="USER[:GROUP]", needs=_FOLDER),
    ] = ""
    as_aws: Annotated[
        bool,
        Option(
            "Make the ramdisks that AWS's build-enclave makes, byte for byte, for its PCRs.",
            needs=("image",),
        ),
    ] = False
    trust_ca: Annotated[
        Path | None,
        Option(
            "CA certificates (PEM) to add to the image's CA bundles, such as `nitroctl kms ca`'s; measured.",
            needs=_APPLICATION,
            excludes=("as_aws",),
        ),
    ] = None
    aws_cmd: Annotated[
        bool, Option("Start the image as AWS does: CMD without ENTRYPOINT, as root, in /.", needs=("image",))
    ] = False
    allow_missing_program: Annotated[
        bool, Option("Build even if the program to start is not in the image.", needs=_APPLICATION)
    ] = False
    kernel: Annotated[
        str | None,
        Option(
            "Kernel file (x86 bzImage, arm64 Image), or nitroctl's (own), or Debian's (prebuilt).",
            metavar="KERNEL",
            unset="own if it was built, else prebuilt",
            or_path=True,
            session=True,
        ),
    ] = None
    cmdline: Annotated[str | None, Option("Kernel command line.", unset="AWS's")] = None
    blobs: Annotated[
        Path | None,
        Option(
            "Use AWS's kernel and init: their folder, a checkout of aws-nitro-enclaves-cli, or Amazon "
            "Linux's RPM aws-nitro-enclaves-cli-devel.",
            needs=_APPLICATION,
        ),
    ] = None
    ramdisk: Annotated[
        tuple[Path, ...], Option("Without an image or directory: ramdisks (cpio archives), one or more.")
    ] = ()
    compress: Annotated[
        bool, Option("Compress the ramdisks (gzip); the same input gives the same bytes.", needs=_APPLICATION)
    ] = False
    name: Annotated[
        str | None,
        Option("Image name in the metadata.", unset="that of the kernel or application", nitro_cli="name"),
    ] = None
    version: Annotated[
        str | None,
        Option("Image version in the metadata.", unset="1.0, or the image's id", nitro_cli="version"),
    ] = None
    metadata: Annotated[
        Path | None,
        Option("JSON file (up to 4 KiB) with custom metadata.", nitro_cli="metadata"),
    ] = None
    build_time: Annotated[
        str | None,
        Option(
            'Build time in the metadata: RFC 3339 or "now".',
            unset="SOURCE_DATE_EPOCH, else 1970, for reproducible builds",
        ),
    ] = None
    signing_certificate: Annotated[Path | None, Option("PEM certificate to sign the image with.")] = None
    private_key: Annotated[
        Path | None,
        Option(
            "PEM key of that certificate.",
            needs=("signing_certificate",),
            excludes=("signer",),
        ),
    ] = None
    signer: Annotated[
        object,
        Option(
            "Command that signs its standard input, instead of a key file.",
            metavar="COMMAND",
            type="FileSigner | str | None",
            check=_check_signer,
        ),
    ] = None
    kernel_check: Annotated[bool, Option("Do not check that the kernel can be booted.")] = True

    @classmethod
    def rules(cls, given: Mapping[str, Any], called: Callable[[str], str]) -> str | None:
        def one_of(*names: str) -> bool:
            return not given.keys().isdisjoint(names)

        names = {one.name: called(one.name) for one in cls.options()}
        application = one_of("image", "directory")
        if not application and not (one_of("kernel") and one_of("cmdline")):
            return (
                "give either an image or a directory ({image}, {directory}), or, for one of parts, "
                "{kernel} and {cmdline}"
            ).format_map(names)
        if one_of("as_aws") and one_of("compress"):
            return "AWS's ramdisks are not compressed: give {as_aws} or {compress}".format_map(names)
        if one_of("blobs") and one_of("kernel"):
            return "{blobs} brings its kernel: leave {kernel} out".format_map(names)
        if application and one_of("kernel_check") and not one_of("as_aws"):
            return "{kernel_check} is for a kernel given with {ramdisk}, or for {as_aws}".format_map(names)
        if one_of("signing_certificate") and not one_of("private_key", "signer"):
            return "signing needs {signing_certificate}, and {private_key} or {signer}".format_map(names)
        if isinstance(given.get("signer"), str) and not one_of("signing_certificate"):
            return "signing needs {signing_certificate} as well as {signer}".format_map(names)
        return None
