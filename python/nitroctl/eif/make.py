# SPDX-License-Identifier: MIT
"""Turns a `BuildRequest` into an EIF: decides which module makes it (`compose`, `as_aws` or `build`)."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from nitroctl.base import arch as arches
from nitroctl.base.errors import NitroError
from nitroctl.eif import as_aws, boot, build, compose, kernel_parts, reference, sign, trust
from nitroctl.eif.build import Built, FileSigner
from nitroctl.eif.compose import Bootstrap
from nitroctl.eif.image import platform_arch
from nitroctl.eif.reference import Located
from nitroctl.eif.request import BuildRequest
from nitroctl.toolchain import aws_blobs


def make(
    request: BuildRequest,
    *,
    located: Located | None = None,
    start: Bootstrap | None = None,
    explain: bool = True,
) -> Built:
    """Make the EIF. `located` and `start` give the image and the bootstrap, if the caller knows them already;
    `explain`: see `as_aws.make`. Raises NitroError; then nothing was written."""
    signer = signer_of(request)
    if request.image is None and request.directory is None:
        return _of_parts(request, signer)
    with ExitStack() as stack:
        start = start or starting(request)
        options = compose.Options(
            name=request.name,
            version=request.version,
            custom=_custom(request),
            build_time=_build_time(request),
            compress=request.compress,
            signer=signer,
        )
        trusted = trust.read(request.trust_ca) if request.trust_ca else b""
        if request.image is None:
            assert request.directory
            application = compose.from_directory(
                request.directory, request.cmd, env=request.env, cwd=request.workdir, user=request.user,
                trusted=trusted,
            )  # fmt: skip
        else:
            platform = request.platform
            arch = start.kernel.arch
            if located is None:
                located = stack.enter_context(reference.fetched(request.image, platform=platform, arch=arch))
            if request.as_aws:
                choice = as_aws.Choice(located.path, located.name, platform)
                check = request.kernel_check
                return as_aws.make(
                    choice, start, request.output, options, check_kernel=check, explain=explain
                )
            application = compose.from_image(
                located.path, name=located.name, platform=platform, arch=arch, aws_cmd=request.aws_cmd,
                trusted=trusted,
            )  # fmt: skip
        if application.missing and not request.allow_missing_program:
            raise NitroError(
                f"{request.image or request.directory}: {application.missing}",
                hint="--allow-missing-program builds the image nevertheless; its enclave ends at once",
            )
        return compose.compose(application, start, request.output, options)


def starting(request: BuildRequest) -> Bootstrap:
    """The bootstrap: AWS's blobs if they are given, or installed and wanted; else our init and a kernel."""
    arch = request.arch or platform_arch(request.platform)
    blobs = request.blobs
    if blobs is None and request.kernel is None and request.as_aws:
        blobs = aws_blobs.installed(arch)
    if blobs:
        return compose.from_blobs(blobs, request.cmdline, arch=arch)
    return compose.bootstrap(request.kernel, request.cmdline, arch=arch)


def signer_of(request: BuildRequest) -> FileSigner | None:
    """The signer, if the image is to be signed."""
    signer, certificate = request.signer, request.signing_certificate
    if certificate is None:
        assert not isinstance(signer, str)
        return signer  # type: ignore[return-value]  # a field that takes anything; its check has seen it
    command = signer if isinstance(signer, str) else None
    return sign.load(certificate, key=request.private_key, command=command)


def _custom(request: BuildRequest) -> object:
    return build.read_custom_metadata(request.metadata) if request.metadata else None


def _build_time(request: BuildRequest) -> str:
    return build.parse_build_time(request.build_time) if request.build_time else ""


def _of_parts(request: BuildRequest, signer: FileSigner | None) -> Built:
    assert request.kernel is not None and request.cmdline is not None
    kernel = Path(request.kernel)
    arch = request.arch or kernel_parts.arch_of(kernel) or arches.default()
    parts = build.Parts(
        kernel=kernel,
        cmdline=os.fsencode(request.cmdline),
        ramdisks=request.ramdisk,
        metadata=build.Metadata(
            image_name=kernel.name if request.name is None else request.name,
            image_version=request.version or "1.0",
            build_time=_build_time(request),
            kernel_version=boot.read_kernel(kernel, arch).version if request.kernel_check else "Unknown",
            custom=_custom(request),
        ),
        check_kernel=request.kernel_check,
        signer=signer,
        arch=arch,
    )
    return build.build(parts, request.output)
