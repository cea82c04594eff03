# SPDX-License-Identifier: MIT
"""AWS Nitro Enclaves for local use.

The Python API's names, and nothing that costs time before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nitroctl.api import Enclave, build_eif
    from nitroctl.base.errors import (
        ApplicationFailed,
        BootTimeout,
        EnclaveError,
        GuestPanic,
        NitroError,
        UsageError,
    )
    from nitroctl.kms.local import Kms

__version__ = "0.1.0"

__all__ = [
    "ApplicationFailed", "BootTimeout", "Enclave", "EnclaveError", "GuestPanic", "Kms", "NitroError",
    "UsageError", "build_eif",
]  # fmt: skip

_HOMES = {"Enclave": "nitroctl.api", "Kms": "nitroctl.kms.local", "build_eif": "nitroctl.api"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "nitroctl.base.errors")), name)
