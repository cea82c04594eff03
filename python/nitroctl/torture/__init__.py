# SPDX-License-Identifier: MIT
"""The torture kit for verifiers of attestation documents: some two hundred documents, most of them wrong in
one way, some unusual and right, with what a verifier has to say to each and why.

    kit            the cases, made and judged
    rows           what a case is; the tables are envelope, payload, path, expectations
    bench          where documents are made, from keys, certificates, cbor and der
    ways           how a verifier is given a document, and what counts as its verdict
    trial          all cases given to one verifier
    files          the kit as files with an index

Nothing of the package's own verifier is used or known here, so that it can be judged like any other: this
room stands beside `attestation`, and does not see it.
"""

from __future__ import annotations

from nitroctl.torture.kit import TABLE, Case, Kit, Misjudged, names

__all__ = ["TABLE", "Case", "Kit", "Misjudged", "names"]
