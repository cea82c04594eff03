# SPDX-License-Identifier: MIT
"""What type checkers make of programs that use the package: mypy reads this (test_lint), nothing runs it.

Where a call is wrong the checker must say so, else its `type: ignore` is an unused one, which is an error.
"""

from __future__ import annotations

from pathlib import Path

import nitroctl
from nitroctl.pytest_plugin import StartEnclave


def right(nitro_enclave: StartEnclave) -> nitroctl.Enclave:
    with nitroctl.Enclave("app.eif", memory="512M", cpus=2, publish=["a:1=2"], qemu=Path("qemu")) as enclave:
        enclave.console.wait_for("up")
    return nitro_enclave(Path("app.eif"), accel="tcg", start=False, name=None, memory=600)


def wrong(nitro_enclave: StartEnclave) -> None:
    nitroctl.Enclave("app.eif", memry="512M")  # type: ignore[call-arg]
    nitroctl.Enclave("app.eif", cpus="2")  # type: ignore[arg-type]
    nitroctl.Enclave("app.eif", accel="hvf")  # type: ignore[arg-type]
    nitro_enclave("app.eif", memory_check="no")  # type: ignore[arg-type]
