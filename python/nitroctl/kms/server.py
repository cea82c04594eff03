# SPDX-License-Identifier: MIT
"""HTTP/1.1 and TLS around a Service: both on one TCP port, told apart by the first byte, and on unix sockets,
to which the enclaves' vsock connections lead. The standard library speaks HTTP; the service handles the
requests.

Clients may be slow or hostile: each has its own thread and a limit on what it may send, and is dropped after
half a minute of silence.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from typing import Any

from nitroctl.base.errors import NitroError
from nitroctl.kms.call import Origin
from nitroctl.kms.service import Service
from nitroctl.kms.sigv4 import Received, access_key
from nitroctl.kms.upstream import Upstream, is_blocked, is_kms

SILENCE_SECONDS = 30.0
# A document has up to 262144 bytes, a policy up to 32768; this leaves room for base64 and the rest.
MOST_BYTES = 1 << 20
MOST_UPSTREAM_BYTES = 64 << 20
CONNECTIONS = 2048
BACKLOG = 1024
PAUSE_SECONDS = 0.05
LINGER_SECONDS = 1.0
TLS_HANDSHAKE = 0x16  # the first byte of TLS's first record
JSON = "application/x-amz-json-1.1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # so that a malformed request gets a response with headers, too
    server_version = "nitroctl-kms"
    sys_version = ""
    rbufsize = wbufsize = 1 << 16  # buffered, so that a response leaves in one piece

    def __init__(self, sock: socket.socket, address: str, server: Server, *, tls: bool) -> None:
        self._address, self._tls, self._owner = address, tls, server
        super().__init__(sock, (address, 0), server)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: Any) -> None:
        """No log here: the service's events say what happened."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request in the form that KMS clients read; the standard library calls this, too."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._send(code, {"__type": "SerializationException", "message": message or status.phrase})

    def _send(self, status: int, answer: dict[str, Any], request_id: str | None = None) -> None:
        headers = [("x-amzn-RequestId", request_id)] if request_id else []
        self._write(status, [("Content-Type", JSON), *headers], json.dumps(answer).encode())

    def _write(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if not hasattr(self, "requestline"):  # the client sent no valid request line
            self.requestline, self.request_version, self.command = "", "HTTP/1.1", ""
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes | None:
        """The body; None if the request has been refused because of it."""
        lengths = self.headers.get_all("Content-Length") or ["0"]
        most = MOST_UPSTREAM_BYTES if self._owner.upstream else MOST_BYTES
        if self.headers.get("Transfer-Encoding") or len(lengths) > 1:
            self.send_error(
                HTTPStatus.LENGTH_REQUIRED, "send one Content-Length with the body, and no Transfer-Encoding"
            )
            return None
        if not (lengths[0].isascii() and lengths[0].isdecimal() and len(lengths[0]) < 12):
            self.send_error(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
            return None
        if int(lengths[0]) > most:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {most} bytes")
            return None
        body = self.rfile.read(int(lengths[0]))
        return body if len(body) == int(lengths[0]) else None

    def _handle(self) -> None:
        if not self.path.startswith("/") or len(self.headers.get_all("Host") or ()) > 1:
            # With two hosts named, the one checked here might not be the one that --upstream then serves.
            self.send_error(
                HTTPStatus.BAD_REQUEST, "a request needs a path that begins with / and exactly one Host"
            )
            return
        body = self._body()
        if body is None:
            self.close_connection = True
            return
        request = Received(self.command, self.path, self.headers.items(), body)
        if not is_kms(request):
            self._elsewhere(request)
        elif self.command != "POST":
            self._send(400, {"__type": "UnknownOperationException", "message": "KMS accepts only POST"})
        else:
            agent = (request.header("user-agent") or "")[:512]
            origin = Origin(self._address, agent, self._tls, access_key(request))
            self._send(*self._owner.service.handle(request, origin))

    def _elsewhere(self, request: Received) -> None:
        if self._owner.upstream is None:
            what = "This is a KMS: X-Amz-Target must begin with TrentService. Other services need --upstream."
            self._send(400, {"__type": "UnknownOperationException", "message": what})
        elif is_blocked(request):
            self._send(
                403, {"__type": "AccessDeniedException", "Message": "the emulator's own API is not passed on"}
            )
        else:
            try:
                status, headers, body = self._owner.upstream.forward(request)
            except (OSError, HTTPException, ValueError) as e:
                self._send(
                    502, {"__type": "ServiceUnavailable", "message": f"--upstream does not answer: {e}"}
                )
                return
            self._write(status, headers, body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = _handle


class Server:
    """Serves from `serve` until `close`. Each listener and each client has a thread of its own."""

    def __init__(
        self, service: Service, tls: ssl.SSLContext | None = None, upstream: Upstream | None = None
    ) -> None:
        self.service = service
        self.upstream = upstream
        self._tls = tls
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._listeners: list[socket.socket] = []
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._pause = threading.Event()

    def serve(self, listener: socket.socket) -> None:
        """Accept clients on a listening socket, which `close` closes."""
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), name="kms-accept", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, address = listener.accept()
            except OSError:
                if self._closed:
                    return
                self._pause.wait(PAUSE_SECONDS)  # the client went away, or descriptors ran out
                continue
            with self._lock:
                if self._closed or not self._room.acquire(blocking=False):
                    client.close()
                    continue
                self._clients.add(client)
            peer = str(address[0]) if listener.family != socket.AF_UNIX else "vsock"
            threading.Thread(target=self._client, args=(client, peer), name="kms-client", daemon=True).start()

    def _client(self, client: socket.socket, address: str) -> None:
        talk: socket.socket = client
        try:
            client.settimeout(SILENCE_SECONDS)
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            first = client.recv(1, socket.MSG_PEEK)
            secured = first == bytes([TLS_HANDSHAKE]) and self._tls is not None
            if secured:
                assert self._tls is not None
                talk = self._tls.wrap_socket(client, server_side=True)
                with self._lock:
                    self._clients.add(talk)
            if first:
                _Handler(talk, address, self, tls=secured)
            if not secured:
                _linger(client)
        except (OSError, ValueError):
            pass  # the client went away, was silent for too long, or does not trust us
        finally:
            with self._lock:
                self._clients -= {client, talk}
            with contextlib.suppress(OSError):
                talk.close()
            client.close()
            self.service.store.close()
            self._room.release()

    def close(self) -> None:
        """End all listeners and clients."""
        with self._lock:
            self._closed = True
            self._pause.set()
            clients = list(self._clients)
        for sock in (*self._listeners, *clients):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for listener in self._listeners:
            listener.close()


def _linger(client: socket.socket) -> None:
    """Read and drop, up to a limit, what a refused client still sends. If the socket were closed with unread
    data, the kernel would reset the connection, and the client might never see the answer."""
    client.shutdown(socket.SHUT_WR)
    client.settimeout(LINGER_SECONDS)
    for _ in range(64):
        if not client.recv(1 << 16):
            return


def listen_tcp(address: str) -> socket.socket:
    """A socket that listens on HOST:PORT. Raises NitroError."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise NitroError(f"{address!r} is not HOST:PORT")
    host = host.removeprefix("[").removesuffix("]")
    try:
        kind, _, _, _, found = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(kind, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(found)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as e:
        reason = (e.strerror or str(e)) if isinstance(e, OSError) else "not a name"
        raise NitroError(f"cannot listen on {address}: {reason}") from e
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
