# SPDX-License-Identifier: MIT
"""Programs that look for EC2's metadata at 169.254.169.254, with the library and a service of the test's in
its place: Python's sockets in their ways. Nothing else of IPv4 is touched. kms/test_kms_imds.py has curl."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from preload_host import Host
from vhost_backend import PATIENCE

VARIABLE = "NITROCTL_METADATA_PORT"


class Service(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"{self.headers['Host']} {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield str(server.server_port)
        server.shutdown()


def told(process: subprocess.Popen[bytes]) -> str:
    text = process.communicate(timeout=PATIENCE)[0].decode()
    assert process.returncode == 0, text
    return text


SOCKETS = """
import asyncio, select, socket, sys
port = int(sys.argv[1])
place = ("169.254.169.254", 80)
mapped = ("::ffff:169.254.169.254", 80)

def talk(s):
    s.sendall(b"GET /x HTTP/1.0\\r\\nHost: h\\r\\n\\r\\n")
    assert b"".join(iter(lambda: s.recv(4096), b"")).endswith(b"h /x\\n")

with socket.socket() as s:  # blocking
    s.connect(place)
    assert (s.family, s.getpeername()) == (socket.AF_INET, place), s
    assert s.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try: s.connect(place)
    except OSError as e: print("again", e.errno)
    with s.dup() as t: assert t.getpeername() == place
    talk(s)

with socket.socket() as s:  # waited for
    s.setblocking(False)
    assert s.connect_ex(place) in (0, 115)
    select.select([], [s], [])
    assert s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and s.getpeername() == place
    s.setblocking(True)
    talk(s)

with socket.create_connection(place) as s: talk(s)

try: six = socket.socket(socket.AF_INET6)  # as Java does it
except OSError: six = None  # a kernel without IPv6
if six:
    with six as s:
        s.connect(mapped)
        assert s.getpeername()[:2] == mapped, s.getpeername()
        talk(s)

async def client():
    reader, writer = await asyncio.open_connection(*place)
    assert writer.get_extra_info("peername") == place
    writer.write(b"GET /x HTTP/1.0\\r\\nHost: h\\r\\n\\r\\n")
    assert (await reader.read()).endswith(b"h /x\\n")
    writer.close()
asyncio.run(client())

# All else goes where it is sent to.
with socket.create_server(("127.0.0.1", 0)) as other, socket.create_connection(other.getsockname()) as s:
    assert s.getpeername() == other.getsockname()
    accepted, peer = other.accept()
    assert accepted.getpeername() == peer == s.getsockname()
    accepted.close()
for kind, to in ((socket.SOCK_DGRAM, place), (socket.SOCK_STREAM, ("169.254.169.254", 81))):
    with socket.socket(socket.AF_INET, kind) as s:
        s.setblocking(False)
        s.connect_ex(to)
        assert s.getsockname()[0] != "127.0.0.1", s
a, b = socket.socketpair()
assert a.getpeername() == "" and b.getpeername() == ""
with socket.socket() as s:
    try: s.getpeername()
    except OSError as e: print("before", e.errno)
print("right")
"""


def test_sockets(host: Host, port: str) -> None:
    assert told(host.python(SOCKETS, port, **{VARIABLE: port})) == "again 106\nbefore 107\nright\n"


def test_without_a_port_it_is_the_kernel_s(host: Host, port: str) -> None:
    """Nor with what is no port: the library goes on without."""
    code = (
        "import socket\n"
        "s = socket.socket(); s.setblocking(False); s.connect_ex(('169.254.169.254', 80))\n"
        "print(s.getsockname()[0] == '127.0.0.1')\n"
    )
    for text in ("", "0", "65536", "-1", " 80", f"{port}x", "99999999999999999999"):
        assert told(host.python(code, **{VARIABLE: text})) == "False\n"
