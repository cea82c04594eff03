# SPDX-License-Identifier: MIT
"""`vsock-proxy`, the other command of AWS's package: a port of the parent becomes a TCP service.

    vsock-proxy 8000 kms.eu-central-1.amazonaws.com 443

It serves every enclave of this user, running now or later, that connects to CID 3, port 8000. Options,
allowlist and messages are AWS's; the connection from the enclave comes through a unix socket
(`vsock.shared_ports`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from nitroctl import __version__
from nitroctl.base import shown, stdio
from nitroctl.base.errors import EXIT_FAILURE, NitroError
from nitroctl.nitro_cli.aside import step_aside
from nitroctl.nitro_cli.errors import told
from nitroctl.vsock import sockets

ALLOWLIST = Path("/etc/nitro_enclaves/vsock-proxy.yaml")
WORKERS = 4

_ALLOWLIST_MAX = 1 << 20  # bytes
NEXT_ADDRESS = 0.25  # seconds until a name's next address is tried beside a silent one (RFC 8305)
_CHUNK = 1 << 16


class NotAllowed(NitroError):
    def __init__(self, why: str) -> None:
        super().__init__(f"Error at checking the allowlist: {why}")


# ---- the allowlist ----


def check_allowed(path: Path, host: str, port: int, family: socket.AddressFamily) -> None:
    """Raises NotAllowed unless the file names this service: its port, and its host or an address of it."""
    named = [address for address, number in _read_allowlist(path) if number == port]
    if host in named:
        return
    wanted = _addresses(host, port, family)
    if not wanted:
        raise NotAllowed("DNS lookup failed!")
    if not any(wanted[0] in _addresses(address, port, family) for address in named):
        raise NotAllowed("The given address and port are not allowed")


def _read_allowlist(path: Path) -> list[tuple[str, int]]:
    import yaml

    try:
        with open(path, "rb") as f:
            text = f.read(_ALLOWLIST_MAX)
    except OSError as e:
        raise NotAllowed(f"Could not open the file {path}: {e.strerror}") from None
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise NotAllowed(f"Bad yaml format: {path}") from None
    services = found.get("allowlist") if isinstance(found, dict) else None
    if not isinstance(services, list):
        raise NotAllowed(f"No allowlist field: {path}")
    return [_service(service) for service in services]


def _service(value: Any) -> tuple[str, int]:
    fields = value if isinstance(value, dict) else {}
    address, port = fields.get("address"), fields.get("port")
    if not isinstance(address, str):
        raise NotAllowed("No address field")
    if type(port) is not int or not 0 < port < 1 << 16:
        raise NotAllowed("No port field or invalid type")
    return address, port


def _half_an_address(host: str) -> bool:
    """Whether it is a text such as 19, 127.1 or 0x7f000001, which the C library accepts as an address
    (inet_aton(3)) but AWS's proxy does not."""
    try:
        socket.inet_aton(host)
    except (OSError, ValueError):
        return False
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return True
    return False


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[str]:
    if _half_an_address(host):
        return []
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]


# ---- connections ----


class Proxy:
    """Connects clients of a listening socket to a TCP service; at most `workers` at once, others wait."""

    def __init__(self, host: str, port: int, family: socket.AddressFamily, workers: int) -> None:
        self._remote = host, port
        self._family = family
        self._slots = asyncio.Semaphore(workers)

    async def serve(self, listening: socket.socket) -> None:
        """Serve until cancelled."""
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        tasks = set()
        while True:
            await self._slots.acquire()
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as e:  # too many open files
                say(f"cannot accept a connection: {e.strerror}")
                self._slots.release()
                await asyncio.sleep(1)
                continue
            task = loop.create_task(self._join(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _join(self, connection: socket.socket) -> None:
        try:
            here = await asyncio.open_unix_connection(sock=connection)
            try:
                there = await asyncio.open_connection(
                    *self._remote, family=self._family, happy_eyeballs_delay=NEXT_ADDRESS
                )
            except (OSError, UnicodeError) as e:
                say(f"cannot connect to {_shown(*self._remote)}: {getattr(e, 'strerror', None) or e}")
                here[1].transport.abort()
                return
            # As with AWS's proxy, the end of one direction ends both.
            ways = [asyncio.create_task(_copy(*way)) for way in ((here[0], there[1]), (there[0], here[1]))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            for end in (here[1], there[1]):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()
        finally:
            self._slots.release()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()


# ---- the command ----


def say(text: str) -> None:
    shown.say(f"vsock-proxy: {text}")


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(shown.line(message))


def _arguments(argv: list[str]) -> argparse.Namespace:
    about = "Make a port of the parent a TCP service, for all local enclaves of this user."
    parser = _Parser("vsock-proxy", description=about, allow_abbrev=False)
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", "--ipv4", action="store_true", help="Only IPv4.")
    family.add_argument("-6", "--ipv6", action="store_true", help="Only IPv6.")
    workers = f"How many connections are served at once; others wait. Default: {WORKERS}."
    parser.add_argument("-w", "--num_workers", type=int, default=WORKERS, metavar="N", help=workers)
    allowlist = f"YAML file of the services that are allowed. Default: {ALLOWLIST}, if it is there."
    parser.add_argument("--config", type=Path, metavar="FILE", help=allowlist)
    parser.add_argument("-V", "--version", action="version", version=f"vsock-proxy (nitroctl {__version__})")
    parser.add_argument("local_port", type=int, metavar="LOCAL_PORT", help="The vsock port.")
    parser.add_argument("remote_host", metavar="REMOTE_HOST", help="A name or an address.")
    parser.add_argument("remote_port", type=int, metavar="REMOTE_PORT", help="Its TCP port.")
    found = parser.parse_args(argv)
    if found.num_workers < 1:
        parser.error("Number of workers must not be 0")
    if not 0 < found.remote_port < 1 << 16:
        parser.error(f"{found.remote_port} is not a TCP port; ports are 1 to 65535")
    return found


def _run(given: argparse.Namespace) -> None:
    host, port = given.remote_host, given.remote_port
    if _half_an_address(host):
        raise NitroError(
            f"{host} is neither an address nor a name",
            hint="an IPv4 address has four numbers, like 127.0.0.1",
        )
    family = socket.AF_INET if given.ipv4 else socket.AF_INET6 if given.ipv6 else socket.AF_UNSPEC
    if given.config is None and not ALLOWLIST.exists():
        say(f"there is no {ALLOWLIST}: the service asked for is allowed")
    else:
        check_allowed(given.config or ALLOWLIST, host, port, family)
    # Otherwise a signal that comes before its handler is set would leave the socket file behind.
    numbers = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    async def serve(listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(Proxy(host, port, family, given.num_workers).serve(listening))
        for number in numbers:
            loop.add_signal_handler(number, task.cancel)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        say(f"the parent's port {given.local_port} is {_shown(host, port)}")
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with sockets.serve_shared(given.local_port) as listener:
        asyncio.run(serve(listener.socket))
    sockets.sweep_shared()


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    stdio.fill()
    arguments = sys.argv[1:] if argv is None else argv
    step_aside(arguments, "vsock-proxy")
    given = _arguments(arguments)
    try:
        _run(given)
    except NitroError as e:
        for line in told(e):
            say(line)
        sys.exit(EXIT_FAILURE)
    sys.exit(0)
