# SPDX-License-Identifier: MIT
"""What a user asks for when an EIF shall be made: one line here is one option everywhere (`base.options`).

    commands.eif          an option of `build`      nitro_eif         a keyword
    nitroctl.build_eif    a keyword                 nitro_cli         AWS's option of build-enclave
    docs                  a line of the tables

After a change, `tools/generate` writes the keywords' types and the tables. What becomes of it is `make`'s.
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
            f"signer={signer!r}: signer takes a command, or what nitroctl.eif.sign.load gives",
            hint="write signing_certificate= and private_key= for a key in a file",
        )


@dataclass(frozen=True)
class BuildRequest(Request):
    """An EIF of a container image, of a folder, or of parts. None means that somebody else shall choose."""

    output: Annotated[Path, Option("The file to make.", short="-o", nitro_cli="output_file")]
    image: Annotated[
        str | None,
        Option(
            "A container image: OCI layout, oci-archive, `docker save`; or docker://NAME.",
            metavar="IMAGE",
            or_path=True,
            excludes=("directory", "ramdisk"),
        ),
    ] = None
    arch: Annotated[
        Literal["x86_64", "aarch64"] | None,
        Option(
            "What it is for.",
            unset="as --platform, --blobs or the kernel's file say, else this host's",
            nitro_cli=False,
        ),
    ] = None
    platform: Annotated[
        str | None, Option("linux/amd64/v3, for instance, where there are several.", needs=("image",))
    ] = None
    directory: Annotated[
        Path | None, Option("A folder that becomes the root file system.", excludes=("ramdisk",))
    ] = None
    cmd: Annotated[
        tuple[str, ...],
        Option("With a directory: program and arguments, one each.", words=True, needs=_FOLDER),
    ] = ()
    env: Annotated[
        tuple[str, ...],
        Option("With a directory: a variable.", metavar="NAME=VALUE", pairs=True, needs=_FOLDER),
    ] = ()
    workdir: Annotated[str, Option("With a directory: where the program starts.", needs=_FOLDER)] = ""
    user: Annotated[
        str, Option("With a directory: who it runs as.", metavar="USER[:GROUP]", needs=_FOLDER)
    ] = ""
    as_aws: Annotated[
        bool,
        Option(
            "Make what AWS's build-enclave makes, byte for byte: its PCRs.",
            needs=("image",),
        ),
    ] = False
    trust_ca: Annotated[
        Path | None,
        Option(
            "CA certificates in PEM that the image trusts as well, as that of `nitroctl kms ca`; measured.",
            needs=_APPLICATION,
            excludes=("as_aws",),
        ),
    ] = None
    aws_cmd: Annotated[
        bool, Option("Start the image as AWS does: CMD alone, as root, in /.", needs=("image",))
    ] = False
    allow_missing_program: Annotated[
        bool, Option("Make it also if the program to start is not in it.", needs=_APPLICATION)
    ] = False
    kernel: Annotated[
        str | None,
        Option(
            "An x86 bzImage or arm64 Image; with an application also own or prebuilt.",
            metavar="KERNEL",
            unset="own if it was built, else prebuilt",
            or_path=True,
            session=True,
        ),
    ] = None
    cmdline: Annotated[str | None, Option("The kernel's command line.", unset="AWS's")] = None
    blobs: Annotated[
        Path | None,
        Option(
            "Start with AWS's kernel and init: their folder, a checkout of aws-nitro-enclaves-cli, or Amazon "
            "Linux's RPM aws-nitro-enclaves-cli-devel.",
            needs=_APPLICATION,
        ),
    ] = None
    ramdisk: Annotated[
        tuple[Path, ...], Option("From parts: a cpio archive, of which there may be several.")
    ] = ()
    compress: Annotated[
        bool, Option("Compress the ramdisks (gzip), the same bytes every time.", needs=_APPLICATION)
    ] = False
    name: Annotated[
        str | None,
        Option("The image's name in its metadata.", unset="that of kernel or application", nitro_cli="name"),
    ] = None
    version: Annotated[
        str | None,
        Option("The image's version in its metadata.", unset="1.0, or the image's id", nitro_cli="version"),
    ] = None
    metadata: Annotated[
        Path | None,
        Option("JSON file (up to 4 KiB) for the image's custom metadata.", nitro_cli="metadata"),
    ] = None
    build_time: Annotated[
        str | None,
        Option('RFC 3339 or "now".', unset="SOURCE_DATE_EPOCH, else 1970, so that builds repeat"),
    ] = None
    signing_certificate: Annotated[Path | None, Option("PEM certificate, to sign the image with.")] = None
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
            "Command that signs its standard input, in place of a key.",
            metavar="COMMAND",
            type="FileSigner | str | None",
            check=_check_signer,
        ),
    ] = None
    kernel_check: Annotated[bool, Option("Take any file for the kernel.")] = True

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
            return "to sign takes {signing_certificate}, and {private_key} or {signer}".format_map(names)
        if isinstance(given.get("signer"), str) and not one_of("signing_certificate"):
            return "to sign takes {signing_certificate} as well as {signer}".format_map(names)
        return None
