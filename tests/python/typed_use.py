# SPDX-License-Identifier: MIT
"""What type checkers make of programs that use the package: mypy reads this (test_lint), nothing runs it.

Where a call is wrong the checker must say so, else its `type: ignore` is an unused one, which is an error.
"""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Unpack

import nitroctl
from nitroctl.keywords import RunKeywords
from nitroctl.pytest_plugin import MakeEif, StartEnclave


def right(nitro_enclave: StartEnclave) -> nitroctl.Enclave:
    with nitroctl.Enclave("app.eif", memory="512M", cpus=2, publish=["a:1=2"], qemu=Path("qemu")) as enclave:
        enclave.console.wait_for("up")
    return nitro_enclave(Path("app.eif"), accel="tcg", start=False, name=None, memory=600)


def passed_on(**options: Unpack[RunKeywords]) -> nitroctl.Enclave:
    options.setdefault("memory", "512M")
    return nitroctl.Enclave("app.eif", wait_for_port=5000, **options)


def right_images(nitro_eif: MakeEif) -> nitroctl.Enclave:
    made = nitroctl.build_eif("app.eif", image=Path("app.tar"), kernel="own", signer="openssl dgst")
    assert made.measurements.pcr0 and not made.warnings
    nitroctl.Enclave(made)
    return nitroctl.Enclave(nitro_eif(directory="root", cmd=["/app"], env={"A": "b"}))


def wrong(nitro_enclave: StartEnclave, nitro_eif: MakeEif) -> None:
    nitroctl.build_eif("app.eif", directory="root", env=["A=b"])  # type: ignore[arg-type]
    nitro_eif(directory="root", cmd=7)  # type: ignore[arg-type]
    nitroctl.Enclave("app.eif", memry="512M")  # type: ignore[call-arg]
    nitroctl.Enclave("app.eif", cpus="2")  # type: ignore[arg-type]
    nitroctl.Enclave("app.eif", accel="hvf")  # type: ignore[arg-type]
    nitro_enclave("app.eif", memory_check="no")  # type: ignore[arg-type]
