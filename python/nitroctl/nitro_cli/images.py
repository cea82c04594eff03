# SPDX-License-Identifier: MIT
"""build-enclave, describe-eif, sign-eif and pcr: calls `nitroctl.eif` with their options, and turns its
errors into AWS's codes."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitroctl.base import jsontext, proc, shown
from nitroctl.base.errors import CommandFailed, EifError, NitroError
from nitroctl.base.shown import say
from nitroctl.nitro_cli.errors import CliError, file_error, log, told

if TYPE_CHECKING:
    from nitroctl.base.arch import Arch
    from nitroctl.eif.build import FileSigner
    from nitroctl.eif.compose import Bootstrap
    from nitroctl.eif.reference import Located
    from nitroctl.eif.request import BuildRequest
    from nitroctl.eif.sign import SigningKey

LOCAL = "Using the locally available Docker image..."

_KMS = re.compile(r"arn:aws[\w-]*:kms:")


def show(value: Any) -> None:
    shown.data(jsontext.pretty(value))


def note(text: str) -> None:
    """Print a note if stderr is a terminal, else log it: programs take a line on stderr for a failure."""
    if sys.stderr.isatty():
        say(text)
    else:
        log("WARN", text)


def _check_readable(path: Path) -> None:
    if not os.access(path, os.R_OK):
        why = "Permission denied" if path.exists() else "No such file or directory"
        raise file_error(path, "Open", why)


# ---- describe-eif, pcr ----


def describe_eif(options: dict[str, Any]) -> int:
    from nitroctl.eif.describe import describe

    try:
        description = describe(Path(options["eif_path"]))
    except NitroError as e:
        raise CliError("E35", *told(e)) from None
    if description.refusal:
        raise CliError("E35", *told(description.refusal))
    if description.metadata_error:
        note(f"warning: the metadata are not readable: {description.metadata_error}")
    show(description.to_json())
    return 0


def pcr(options: dict[str, Any]) -> int:
    from nitroctl.eif import measure, sign

    file, certificate = options["input"], options["signing_certificate"]
    path = Path(certificate if file is None else file)
    _check_readable(path)
    try:
        if file is None:
            show({"PCR8": sign.read_certificate(path).pcr8.hex()})
        else:
            show({"PCR": measure.measure_file(path).hex()})
    except NitroError as e:
        raise CliError("E57", *told(e)) from None
    return 0


# ---- signing ----


def _signing_key(certificate: str, key: str) -> SigningKey:
    from nitroctl.eif import sign

    if _KMS.match(key):
        hint = "use a key in a PEM file, or `nitroctl eif sign --signer` with a command that calls KMS"
        raise CliError("E60", f"{key} is a key in AWS KMS, which this nitro-cli does not call", hint)
    for name in (certificate, key):
        _check_readable(Path(name))
    try:
        return sign.load(Path(certificate), key=Path(key))
    except NitroError as e:
        raise CliError("E60", *told(e)) from None


def sign_eif(options: dict[str, Any]) -> int:
    from nitroctl.eif import sign

    path = Path(options["eif_path"])
    key = _signing_key(options["signing_certificate"], options["private_key"])
    try:
        built = sign.sign(path, key, path)
    except EifError as e:
        raise CliError("E35", *told(e)) from None
    except NitroError as e:
        raise CliError("E60", *told(e)) from None
    for warning in built.warnings:
        say(f"warning: {warning}")
    say("Enclave Image successfully signed.")
    show({"Measurements": built.measurements.to_json()})
    return 0


# ---- build-enclave ----


def build_enclave(options: dict[str, Any]) -> int:
    from nitroctl.eif import build as building
    from nitroctl.eif.make import make

    certificate, key = options["signing_certificate"], options["private_key"]
    for given, other in ((certificate, "private-key"), (key, "signing-certificate")):
        if given is not None and options[other.replace("-", "_")] is None:
            raise CliError("E01", f"`{other}` is missing: signing needs the certificate and its key")
    output = Path(options["output_file"])
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise file_error(output, "Create", f"{output.parent} is not a writable folder")
    signer = _signing_key(certificate, key) if certificate is not None else None
    say("Start building the Enclave Image...")
    try:
        if options["metadata"]:
            building.read_custom_metadata(Path(options["metadata"]))  # check it before slow steps
        start = _bootstrap()
        with _image(options["docker_uri"], options["docker_dir"], start.kernel.arch) as found:
            # AWS's way even without AWS's blobs: ENTRYPOINT is used only if there is no CMD; WORKDIR and USER
            # are ignored.
            request = _build_request(options, signer, as_aws=start.aws, aws_cmd=not start.aws)
            built = make(request, located=found, start=start, explain=False)
    except NitroError as e:
        raise CliError("E48", *told(e)) from None
    for warning in built.warnings:
        say(f"warning: {warning}")
    say("Enclave Image successfully created.")
    show({"Measurements": built.measurements.to_json()})
    return 0


def _build_request(options: dict[str, Any], signer: FileSigner | None, **decided: Any) -> BuildRequest:
    from nitroctl.eif.request import BuildRequest

    given = {one.name: options[one.option.nitro_cli] for one in BuildRequest.options()
             if one.option and one.option.nitro_cli}  # fmt: skip
    return BuildRequest(
        **given,
        **decided,
        image=options["docker_uri"],
        signer=signer,
        build_time=None if "SOURCE_DATE_EPOCH" in os.environ else "now",
    )


def _bootstrap() -> Bootstrap:
    """The bootstrap: $NITRO_CLI_BLOBS, or AWS's blobs if they are installed, which give AWS's measurements;
    else our init and the available kernel, which is our own if it was built."""
    from nitroctl.eif import compose
    from nitroctl.toolchain import aws_blobs

    try:
        arch = _docker_arch()
        blobs = aws_blobs.named() or aws_blobs.installed(arch)
        return compose.from_blobs(blobs, arch=arch) if blobs else compose.bootstrap(arch=arch)
    except NitroError as e:
        raise CliError("E52", *told(e)) from None


def _docker_arch() -> Arch | None:
    """The architecture that Docker is told to use for multi-platform images; None if it is not told: then
    Docker, and AWS's nitro-cli, use the host's."""
    from nitroctl.eif.image import platform_arch

    return platform_arch(os.environ.get("DOCKER_DEFAULT_PLATFORM") or None)


@contextmanager
def _image(uri: str, folder: str | None, arch: Arch) -> Iterator[Located]:
    """The image's place. It is built from `folder`, or is a file or folder; else Docker has it or pulls it;
    or, without Docker, skopeo fetches it."""
    from nitroctl.eif import reference

    found = reference.located(uri)
    if folder is None and _is_image(found.path):
        say(LOCAL)
        yield found
        return
    if folder is None and uri.startswith(("/", "./", "../", "~")):  # no image's name begins like this
        raise file_error(Path(uri), "Open", "There is no image archive or OCI layout.")
    docker = None if folder is None and reference.is_reference(uri) else _docker()
    with ExitStack() as stack:
        if docker is None:
            if folder is not None:
                raise CliError(
                    "E49",
                    f"--docker-dir {folder}: building it needs Docker (or Podman), but none answers here.",
                    "Build it elsewhere, and give --docker-uri the path of its archive (`docker save`).",
                )
            found = _fetched(uri, stack, arch)
        else:
            if folder is not None:
                _call(docker, "build", "-t", uri, folder, code="E49")
            elif proc.run([docker, "image", "inspect", uri], check=False).returncode != 0:
                _call(docker, "pull", uri, code="E50")
            else:
                say(LOCAL)
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="image-", dir=_artifacts()))
            found = reference.Located(Path(scratch) / "image.tar")
            _call(docker, "save", "-o", str(found.path), _tagged(uri), code="E50")
        yield found


def _tagged(uri: str) -> str:
    """The name with a tag: given only a name, Docker would save the images of all its tags."""
    if re.search("[:@]", uri.rpartition("/")[2]) or re.fullmatch("[0-9a-f]{12,64}", uri):
        return uri
    return f"{uri}:latest"


def _fetched(uri: str, stack: ExitStack, arch: Arch) -> Located:
    from nitroctl.eif import reference

    name, more = uri, []
    if not reference.is_reference(uri):
        name = f"docker://{uri}"
        more = [f"There is no file {uri}, and no Docker (or Podman) answers that might have such an image."]
    try:
        return stack.enter_context(reference.fetched(name, _artifacts(), arch=arch))
    except NitroError as e:
        more.append("Or give --docker-uri the path of an image archive (`docker save`) or OCI layout.")
        raise CliError("E50", *told(e), *more) from None


def _is_image(path: Path) -> bool:
    """Whether it is the path of an image. A folder that happens to have the name of an image is not, unless
    it contains one."""
    return path.is_file() or (path / "index.json").is_file() or (path / "manifest.json").is_file()


def _docker() -> str | None:
    """Docker, or Podman, if its daemon answers."""
    for name in ("docker", "podman"):
        program = shutil.which(name)
        if program and proc.run([program, "version"], check=False).returncode == 0:
            return program
    return None


def _call(*argv: str, code: str) -> None:
    """Run a program whose output goes directly to stderr. Raises CliError with `code`."""
    try:
        proc.run(argv, on_line=say)
    except CommandFailed as e:
        raise CliError(code, *told(e)) from None


def _artifacts() -> Path:
    """The folder for intermediate files. Raises CliError if none is known."""
    value, home = os.environ.get("NITRO_CLI_ARTIFACTS"), os.environ.get("HOME")
    if not value and not home:
        raise CliError("E51")
    path = Path(value) if value else Path(home or "") / ".nitro_cli"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise file_error(path, "Create", e.strerror) from None
    return path
