# SPDX-License-Identifier: MIT
"""How a verifier is given a document, and what counts as its verdict: by a file or standard input, with its
exit status; over HTTP, with the response's. It is somebody's program that reads hostile bytes, so it has
a time limit, and what it says is bounded, and text to be escaped.

What else it has to know (VALUES) stands in the environment, and replaces {name} in the command or the URL.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import os
import re
import selectors
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from nitroctl.base import proc
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.torture.kit import Case, Kit
from nitroctl.torture.rows import Need

Verdict = Literal["accepted", "refused", "none"]
Encoding = Literal["raw", "base64", "hex"]

# name: what it is
VALUES = {
    "document": "a file with the document",
    "root": "a file with the root certificate, PEM",
    "root_der": "the same in DER",
    "root_sha256": "the SHA-256 of that, hexadecimal",
    "time": "the time of the check, RFC 3339 in UTC",
    "unix_time": "the same in seconds since 1970",
    "nonce": "the expected nonce, hexadecimal",
    "pcr0": "the expected PCR0, hexadecimal",
}
NEEDS: dict[str, Need] = {"time": "time", "unix_time": "time", "nonce": "nonce", "pcr0": "pcr0"}
VARIABLE = "ATTESTATION_"
_PLACE = re.compile(r"\{(" + "|".join(VALUES) + r")\}")

KEPT = 4096  # bytes of what a verifier says, its last
STARTS_WITHIN = 60.0  # seconds for a server to listen


@dataclasses.dataclass(frozen=True)
class Answer:
    verdict: Verdict
    how: str  # in words
    said: str  # the last line of its output, as it is
    seconds: float


def needs(command: Sequence[str], url: str | None) -> set[Need]:
    """What a verifier is given, by command and URL; what it takes from its environment they do not tell."""
    return {NEEDS[name] for text in (*command, url or "") for name in _PLACE.findall(text) if name in NEEDS}


def put(text: str, values: Mapping[str, str], *, quoted: bool = False) -> str:
    """With the values in their places; one that is not there yet is an error."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise UsageError(f"{{{match[1]}}} cannot stand in {text!r}: it is another one for each document")
        return urllib.parse.quote(values[match[1]], safe="") if quoted else values[match[1]]

    return _PLACE.sub(value, text)


class Folder:
    """Where the files are that a verifier is given."""

    def __init__(self, path: Path, kit: Kit, encoding: Encoding) -> None:
        self._document = path / "document"
        self.encoding = encoding
        self.log = path / "server.log"
        (path / "root.pem").write_bytes(kit.root_pem)
        (path / "root.der").write_bytes(kit.root)
        self.root = {
            "root": str(path / "root.pem"),
            "root_der": str(path / "root.der"),
            "root_sha256": hashlib.sha256(kit.root).hexdigest(),
        }

    def encoded(self, case: Case) -> bytes:
        if self.encoding == "base64":
            return base64.b64encode(case.document)
        return case.document.hex().encode() if self.encoding == "hex" else case.document

    def values(self, case: Case) -> dict[str, str]:
        """For one document, which is in its file then."""
        self._document.write_bytes(self.encoded(case))
        return {
            **self.root,
            "document": str(self._document),
            "time": f"{case.time:%FT%TZ}",
            "unix_time": str(int(case.time.timestamp())),
            "nonce": case.nonce.hex(),
            "pcr0": case.pcr0.hex(),
        }


def environment(values: Mapping[str, str]) -> dict[str, str]:
    return {VARIABLE + name.upper(): value for name, value in values.items()}


# ---- a program for each document ----


class Program:
    """A command that is run once for each document."""

    def __init__(
        self, command: Sequence[str], folder: Folder, timeout: float, *, stdin: bool = False
    ) -> None:
        self._command = list(command)
        if not stdin and not any("{document}" in word for word in command):
            self._command.append("{document}")
        self._folder = folder
        self._timeout = timeout
        self._stdin = stdin

    def ask(self, case: Case) -> Answer:
        values = self._folder.values(case)
        argv = [put(word, values) for word in self._command]
        given = self._folder.encoded(case) if self._stdin else None
        began = time.monotonic()
        status, output = _run(argv, given, environment(values), self._timeout)
        seconds = time.monotonic() - began
        verdict: Verdict = "none"
        if status is None:
            how = f"no answer within {self._timeout:g} s"
        elif status < 0:
            how = f"killed by {_signal(-status)}"
        else:
            how = f"exit status {status}"
            verdict = "refused" if status else "accepted"
        return Answer(verdict, how, last_line(output), seconds)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _run(
    argv: Sequence[str], given: bytes | None, env: Mapping[str, str], timeout: float
) -> tuple[int | None, bytes]:
    """A program's status, None if it took too long, and the end of its output. What it has started and left
    in its session ends with it."""
    process = proc.start(
        argv,
        stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        new_session=True,
    )
    try:
        ended, output = _converse(process, given or b"", timeout)
    finally:
        # It is not reaped yet, so that the number is its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()
        status = process.wait()
    return status if ended else None, output


def _converse(process: subprocess.Popen[bytes], given: bytes, timeout: float) -> tuple[bool, bytes]:
    """Write and read until the program ends: whether it did in time, and the end of its output."""
    end = time.monotonic() + timeout
    output = b""
    left = memoryview(given)
    with contextlib.ExitStack() as stack:
        ending = os.pidfd_open(process.pid)
        stack.callback(os.close, ending)
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(ending, selectors.EVENT_READ)
        assert process.stdout
        reading = process.stdout.fileno()
        os.set_blocking(reading, False)
        selector.register(reading, selectors.EVENT_READ)
        writing = -1
        if process.stdin:
            writing = process.stdin.fileno()
            os.set_blocking(writing, False)
            selector.register(writing, selectors.EVENT_WRITE)
        while (wait := end - time.monotonic()) > 0:
            ready = {key.fd for key, _ in selector.select(wait)}
            if writing in ready:
                try:
                    left = left[os.write(writing, left) :]
                except BlockingIOError:
                    pass
                except BrokenPipeError:
                    left = left[:0]
                if not left:
                    selector.unregister(writing)
                    assert process.stdin
                    process.stdin.close()
                    writing = -1
            if reading in ready or ending in ready:
                for _ in range(16):  # what is there; others may go on writing after its end
                    try:
                        chunk = os.read(reading, 65536)
                    except BlockingIOError:
                        break
                    output = (output + chunk)[-KEPT:]
                    if not chunk:
                        if reading in selector.get_map():
                            selector.unregister(reading)
                        break
            if ending in ready:
                return True, output
    return False, output


# ---- a server ----


class Server:
    """A URL that each document is posted to."""

    def __init__(self, url: str, folder: Folder, timeout: float) -> None:
        no_url = UsageError(f"{url!r} is no URL of HTTP: http://HOST:PORT/PATH")
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError:
            raise no_url from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise no_url
        if not url.isascii() or any(c.isspace() for c in url):
            raise UsageError(f"{url!r} has characters that no URL has")
        self._parts = parts
        self.address = parts.hostname, port or (443 if parts.scheme == "https" else 80)
        self._folder = folder
        self._timeout = timeout

    def ask(self, case: Case) -> Answer:
        values = self._folder.values(case)
        headers = {
            "Content-Type": {
                "raw": "application/cbor",
                "base64": "text/plain",
                "hex": "text/plain",
            }[self._folder.encoding],
            **{
                f"Attestation-{name.replace('_', '-').title()}": values[name]
                for name in ("time", "unix_time", "nonce", "pcr0")
            },
        }
        target = self._parts.path or "/"
        if self._parts.query:
            target += f"?{self._parts.query}"
        target = put(
            target, {name: value for name, value in values.items() if name != "document"}, quoted=True
        )
        began = time.monotonic()
        verdict: Verdict = "none"
        said = b""
        try:
            status, said = self._post(target, self._folder.encoded(case), headers)
        except TimeoutError:
            how = f"no answer within {self._timeout:g} s"
        except (OSError, http.client.HTTPException) as e:
            how = f"no answer: {e or type(e).__name__}"
        else:
            how = f"HTTP status {status}"
            if 200 <= status < 300:
                verdict = "accepted"
            elif 400 <= status < 500:
                verdict = "refused"
        return Answer(verdict, how, last_line(said), time.monotonic() - began)

    def _post(self, target: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(*self.address, timeout=self._timeout)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

        # The connection's own limit begins anew with each byte.
        watch = threading.Timer(self._timeout, give_up)
        watch.daemon = True
        watch.start()
        try:
            with contextlib.closing(connection):
                try:
                    connection.connect()
                    if late.is_set():
                        raise TimeoutError
                    connection.request("POST", target, body, dict(headers))
                    response = connection.getresponse()
                    return response.status, response.read(KEPT)
                except (OSError, http.client.HTTPException):
                    if late.is_set():
                        raise TimeoutError from None
                    raise
        finally:
            watch.cancel()


@contextlib.contextmanager
def serving(command: Sequence[str], folder: Folder, server: Server) -> Iterator[None]:
    """A server that we start, which listens when the body begins and ends with it; without a command, it is
    the caller's."""
    if not command:
        yield
        return
    argv = [put(word, folder.root) for word in command]
    with open(folder.log, "wb") as log:
        process = proc.start(argv, stdout=log, stderr=log, env=environment(folder.root), new_session=True)
    try:
        try:
            _wait_for_listener(process, server)
        except NitroError as e:
            said = last_line(_end(folder.log))
            raise NitroError(e.message, hint=e.hint, lines=[f"it said: {said}"] if said else []) from None
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end(path: Path) -> bytes:
    with open(path, "rb") as f:
        f.seek(max(f.seek(0, os.SEEK_END) - KEPT, 0))
        return f.read(KEPT)


def _wait_for_listener(process: subprocess.Popen[bytes], server: Server) -> None:
    host, port = server.address
    end = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            socket.create_connection(server.address, timeout=1).close()
            return
        except OSError as e:
            reason = e.strerror or str(e)
        if (status := process.poll()) is not None:
            raise NitroError(f"the server ended with status {status} before it listened at {host}:{port}")
        if time.monotonic() > end:
            raise NitroError(f"no server listens at {host}:{port} after {STARTS_WITHIN:g} s: {reason}")
        time.sleep(0.05)
