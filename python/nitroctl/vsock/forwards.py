# SPDX-License-Identifier: MIT
"""Port forwarding between an enclave or its parent and addresses of this host: --publish and the like, and
--forward-cid, which uses the host's own AF_VSOCK.

A forward is a text: an option of the backend without its dashes, such as `publish=127.0.0.1:8080=5000`. This
module checks the user's options and turns them into such texts before anything starts. The backend does the
forwarding.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterable, Sequence

from nitroctl.base.errors import UsageError
from nitroctl.vsock import sockets

# How many forwards of each kind there can be: the backend's HOST_MAX_ROUTES.
MOST = 64
LOCAL_CID = 1  # VMADDR_CID_LOCAL, vsock(7): this host itself
# First the kinds that serve a port of the parent, then those that give clients access to a port of the
# enclave.
PARENT = ("proxy", "listen-port")
ENCLAVE = ("publish", "connect-port", "forward-listen")

_FORM = {
    "proxy": "PORT=HOST:PORT",
    "listen-port": "PORT=PATH",
    "publish": "ADDR=PORT",
    "connect-port": "PORT=PATH",
}


def forward(kind: str, text: str) -> str:
    """The forward for the option `--KIND TEXT`, with absolute paths. Raises UsageError."""
    option = f"--{kind} {text}"
    if kind == "publish":
        address, equals, port = text.rpartition("=")
    else:
        port, equals, address = text.partition("=")
    if not equals or not address:
        raise UsageError(f"{option}: not of the form {_FORM[kind]}", hint=_meant(kind, text))
    if kind == "publish" and address.isdecimal() and address.isascii():
        raise UsageError(f"{option}: {address!r} is not HOST:PORT", hint=_meant(kind, f"{address}:{port}"))
    _number(option, port, 0, sockets.PORT_MAX)
    port = str(int(port))
    if kind == "proxy" or (kind == "publish" and "/" not in address):
        _check_tcp(option, address, passive=kind == "publish")
    else:
        address = os.path.abspath(address)
        sockets.check_path(address)
        if not os.path.isdir(os.path.dirname(address)):
            raise UsageError(f"{option}: the folder {os.path.dirname(address)} does not exist")
        _check_socket(option, address)
    return f"{kind}={address}={port}" if kind == "publish" else f"{kind}={port}={address}"


def forwards(
    publish: Sequence[str],
    proxy: Sequence[str],
    listen_port: Sequence[str],
    connect_port: Sequence[str],
    forward_cid: int | None = None,
    forward_listen: Sequence[str] = (),
) -> tuple[str, ...]:
    """The forwards for all these options, for an enclave's configuration. Raises UsageError."""
    given = {"publish": publish, "proxy": proxy, "listen-port": listen_port, "connect-port": connect_port}
    found = [forward(kind, text) for kind, texts in given.items() for text in texts]
    if forward_cid is not None:
        _number("--forward-cid", str(forward_cid), LOCAL_CID, sockets.PORT_MAX)
        _check_vsock(forward_cid)
        found.append(f"forward-cid={forward_cid}")
    elif forward_listen:
        raise UsageError(
            f"--forward-listen {forward_listen[0]}: needs --forward-cid, whose clients it serves"
        )
    for text in forward_listen:
        for port in text.split("+"):
            _number(f"--forward-listen {text}", port, 0, sockets.PORT_MAX)
            found.append(f"forward-listen={int(port)}")
    return tuple(found)


def check(forwards: Iterable[str]) -> None:
    """Check all forwards together. Raises UsageError."""
    served: set[str] = set()
    used: set[str] = set()
    counts = {PARENT: 0, ENCLAVE: 0}
    for text in forwards:
        kind, _, rest = text.partition("=")
        if kind == "forward-cid":
            continue
        if kind in PARENT:
            counts[PARENT] += 1
            port = rest.partition("=")[0]
            if port in served:
                raise UsageError(f"the parent's port {port} is served by more than one of --proxy and "
                                 "--listen-port")  # fmt: skip
            served.add(port)
        else:
            counts[ENCLAVE] += 1
            if kind == "forward-listen":
                address = f"port {rest} of this host's AF_VSOCK"
            else:
                address = rest.rpartition("=")[0] if kind == "publish" else rest.partition("=")[2]
            if address in used:
                raise UsageError(f"{address} is used more than once by --publish and similar options")
            used.add(address)
    for kinds, count in counts.items():
        if count > MOST:
            names = " and ".join(f"--{kind}" for kind in kinds)
            raise UsageError(f"{names} {count} times; at most {MOST} are possible")


def _meant(kind: str, text: str) -> str | None:
    """A hint for users of docker's form, [HOST:]PORT:PORT. Docker would open the port to everybody; here the
    address must be given."""
    match = re.fullmatch(r"(?:(.+):)?(\d{1,5}):(\d{1,10})", text, re.ASCII)
    if kind != "publish" or not match:
        return None
    host, port, inside = match.groups()
    return f"the enclave's port {int(inside)} at port {int(port)} of this host is --publish " \
           f"{host or '127.0.0.1'}:{int(port)}={int(inside)}"  # fmt: skip


def _check_socket(option: str, path: str) -> None:
    """Check that there is a unix socket, or nothing, at the path. Raises UsageError."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as e:
        raise UsageError(f"{option}: {path}: {e.strerror}") from e
    if not stat.S_ISSOCK(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a file"
        raise UsageError(
            f"{option}: {path} is {what}, not a unix socket",
            hint="give the path of a socket, or a new one",
        )


def _number(option: str, text: str, least: int, most: int) -> None:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and least <= int(text) <= most):
        raise UsageError(f"{option}: {text!r} is not a number from {least} to {most}")


def _check_vsock(cid: int) -> None:
    """The backend's own check (has_vsock), made before anything starts. Raises UsageError."""
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            if cid == LOCAL_CID:
                probe.bind((LOCAL_CID, socket.VMADDR_PORT_ANY))
    except OSError as e:
        what, module = ("AF_VSOCK", "vhost_vsock")
        if cid == LOCAL_CID:
            what, module = ("vsock loopback", "vsock_loopback")
        raise UsageError(
            f"--forward-cid {cid}: this host has no {what}: {e.strerror}", hint=f"modprobe {module}"
        ) from e


def _check_tcp(option: str, address: str, *, passive: bool) -> None:
    host, _, port = address.rpartition(":")
    if not host:
        raise UsageError(f"{option}: {address!r} is not HOST:PORT")
    _number(option, port, 1, 65535)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    flags = socket.AI_PASSIVE if passive else 0
    try:
        # The backend looks the name up, too; doing it here reports an error early.
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not a name"
        raise UsageError(f"{option}: {host}: {reason}") from e
