# SPDX-License-Identifier: MIT
"""The certificates that an enclave issues attestation documents under, minted for it from the user's local CA
and written where QEMU finds them.
"""

from __future__ import annotations

from nitroctl.attestation import pki
from nitroctl.enclaves.folder import Folder
from nitroctl.enclaves.request import RunRequest


def write(request: RunRequest, folder: Folder) -> None:
    """Nothing, where the request wants none. Raises NitroError."""
    if request.ca_days is None:
        return
    chain = pki.mint(
        pki.load_or_init(),
        request.instance_id,
        days=request.ca_days,
        form=request.document_form,
        unmeasured=request.overlay_keep_pcrs,
    )
    pki.write_private(folder.cert_chain, chain.pem)
    pki.write_private(folder.cert_key, chain.key_pem)
