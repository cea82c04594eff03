# SPDX-License-Identifier: MIT
"""AWS Nitro Enclaves for local use.

The Python API's names, and nothing that costs time before it is used.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing's own takes a third of what `nitroctl --help` does
if TYPE_CHECKING:
    from typing import Any

    from nitroctl.api import Enclave, build_eif
    from nitroctl.attestation.errors import (
        AttestationError,
        CertificateError,
        CertificateExpired,
        ChainError,
        DebugEnclave,
        FieldError,
        MalformedDocument,
        NonceMismatch,
        PcrMismatch,
        PolicyError,
        PublicKeyMismatch,
        RootMismatch,
        SignatureMismatch,
        StaleDocument,
        UnmeasuredEnclave,
        UserDataMismatch,
    )
    from nitroctl.base.errors import (
        ApplicationFailed,
        BootTimeout,
        CommandFailed,
        EifError,
        EnclaveError,
        EnclaveTimeout,
        GuestPanic,
        NitroError,
        NotBuilt,
        UsageError,
    )
    from nitroctl.eif.verify import EifMismatch
    from nitroctl.enclaves.differences import DiffersFromAws
    from nitroctl.enclaves.preflight import MemoryRefused
    from nitroctl.enclaves.records import Record
    from nitroctl.inside.agent import NoTools, ToolsFailed
    from nitroctl.kms.local import Kms
    from nitroctl.kms.policy import KmsPolicyError
    from nitroctl.testing.agent import AgentError, AgentGone
    from nitroctl.toolchain.steps import BuildFailed
    from nitroctl.vsock.parent import UnsuitableProgram
    from nitroctl.vsock.sockets import PortRefused

__version__ = "0.1.0"

__all__ = [
    "AgentError", "AgentGone", "ApplicationFailed", "AttestationError", "BootTimeout", "BuildFailed",
    "CertificateError", "CertificateExpired", "ChainError", "CommandFailed", "DebugEnclave",
    "DiffersFromAws", "EifError", "EifMismatch", "Enclave", "EnclaveError", "EnclaveTimeout",
    "FieldError", "GuestPanic", "Kms", "KmsPolicyError", "MalformedDocument", "MemoryRefused",
    "NitroError", "NoTools", "NonceMismatch", "NotBuilt", "PcrMismatch", "PolicyError", "PortRefused",
    "PublicKeyMismatch", "Record", "RootMismatch", "SignatureMismatch", "StaleDocument",
    "ToolsFailed", "UnmeasuredEnclave", "UnsuitableProgram", "UsageError", "UserDataMismatch", "build_eif",
]  # fmt: skip

# Where they are; all others are in the first module that has them.
_HOMES = {
    "AgentError": "testing.agent",
    "AgentGone": "testing.agent",
    "BuildFailed": "toolchain.steps",
    "DiffersFromAws": "enclaves.differences",
    "EifMismatch": "eif.verify",
    "Enclave": "api",
    "Kms": "kms.local",
    "KmsPolicyError": "kms.policy",
    "MemoryRefused": "enclaves.preflight",
    "NoTools": "inside.agent",
    "PortRefused": "vsock.sockets",
    "Record": "enclaves.records",
    "ToolsFailed": "inside.agent",
    "UnsuitableProgram": "vsock.parent",
    "build_eif": "api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = [_HOMES[name]] if name in _HOMES else ["base.errors", "attestation.errors"]
    found = [vars(import_module(f"nitroctl.{home}")).get(name) for home in homes]
    return next(filter(None, found))


def __dir__() -> list[str]:
    return [*globals(), *__all__]
