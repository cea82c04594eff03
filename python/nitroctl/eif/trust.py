# SPDX-License-Identifier: MIT
"""--trust-ca: adds a CA certificate to the image's own CA bundles, as update-ca-certificates would.

It is measured with the image: PCR0 and PCR2 are those of a development image, and nothing is hidden. Which
bundle an application reads depends on its libraries, so every bundle in the image gets the certificate.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from nitroctl.base.errors import NitroError
from nitroctl.eif.cpio import readable
from nitroctl.eif.layers import CA_BUNDLES, SMALL_MAX, Node, Tree

_CERTIFICATES = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]{1,65536}?-----END CERTIFICATE-----\n?"
)


def read(path: Path) -> bytes:
    """The certificates of a PEM file, without anything else in it. Raises NitroError."""
    from cryptography import x509

    try:
        data = path.read_bytes()
    except OSError as e:
        raise NitroError(f"cannot read {path}: {e.strerror}") from e
    found = [match.strip() + b"\n" for match in _CERTIFICATES.findall(data[:SMALL_MAX])]
    try:
        certificates = [x509.load_pem_x509_certificate(pem) for pem in found]
        for certificate in certificates:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            if not constraints.ca:
                raise NitroError(
                    f"{path} has a certificate that is not a CA's: {certificate.subject.rfc4514_string()}"
                )
    except (ValueError, x509.ExtensionNotFound) as e:
        raise NitroError(f"{path} has a certificate that cannot be used as a CA: {e}") from e
    if not found:
        raise NitroError(f"{path} has no PEM certificate")
    return b"".join(found)


def add(tree: Tree, pem: bytes) -> str:
    """Append the certificates to every CA bundle of the image, or make one; returns a note that says so."""
    done: list[Node] = []
    for path in CA_BUNDLES:
        node = tree.find(path.split(b"/"), follow=True)
        node = (node.linked or node) if node else None
        if node is None or not stat.S_ISREG(node.mode) or node in done:
            continue
        content = tree.small.get(node)
        if content is None or len(content) >= SMALL_MAX:
            raise NitroError(
                f"the CA of --trust-ca cannot be added to the image's CA bundle /{readable(path)}"
            )
        _put(node, content + (b"" if content.endswith(b"\n") or not content else b"\n") + pem)
        done.append(node)
    if not done:
        *folders, name = CA_BUNDLES[0].split(b"/")
        tree.ensure_folder(b"/".join(folders).decode())
        folder = tree.find(folders, follow=True)
        assert folder is not None and folder.children is not None
        if name in folder.children:
            raise NitroError(
                f"the image's /{readable(CA_BUNDLES[0])} is not a file to which a CA can be added"
            )
        folder.children[name] = made = Node(stat.S_IFREG | 0o644, 0)
        _put(made, pem)
    count = f"{len(done)} CA bundle{'s' if len(done) > 1 else ''}" if done else "a new CA bundle"
    return f"the image trusts the CA of --trust-ca, in {count}: its PCRs are those of a development image"


def _put(node: Node, content: bytes) -> None:
    """Give a node content that is in no layer."""
    node.index, node.target, node.size = -1, content, len(content)
