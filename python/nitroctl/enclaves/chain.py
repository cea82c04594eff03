# SPDX-License-Identifier: MIT
"""The certificates that an enclave issues attestation documents under, minted from the user's local CA for
its parent instance, and written where QEMU finds them.
"""

from __future__ import annotations

from nitroctl.enclaves.folder import Folder
from nitroctl.enclaves.request import RunRequest


def write(request: RunRequest, folder: Folder) -> None:
    """Nothing, where the request wants none. Raises NitroError."""
    if request.ca_days is None:
        return
    from nitroctl.attestation import kept, pki

    chain, key = kept.chain(
        request.instance_id,
        days=request.ca_days,
        form=request.document_form,
        unmeasured=request.overlay_keep_pcrs,
    )
    pki.write_private(folder.cert_chain, chain.encode())
    pki.write_private(folder.cert_key, key.encode())
