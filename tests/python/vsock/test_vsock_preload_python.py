# SPDX-License-Identifier: MIT
"""Parent programs in Python, for AF_VSOCK and unchanged, with the library and the real backend: sockets,
asyncio, a server of the standard library. What each call answers is test_vsock_preload's."""

from __future__ import annotations

import errno

from preload_host import Echo, Host, line, output


def test_python_sockets(host: Host) -> None:
    """Python asks a descriptor for its family, gives it a time limit, and sends in its own ways."""
    code = (
        "import os, select, socket\n"
        "s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\n"
        "s.settimeout(10)\n"
        "s.connect((16, 5000))\n"
        "t = socket.socket(fileno=os.dup(s.fileno()))\n"
        "assert (t.family, t.type, t.proto) == (socket.AF_VSOCK, socket.SOCK_STREAM, 0), t\n"
        "assert t.getpeername() == (16, 5000) and t.getsockopt(1, socket.SO_ERROR) == 0\n"
        "assert t.connect_ex((16, 5000)) == 106\n"
        "t.sendmsg([b'one', b'two'])\n"
        "print(s.recvfrom(3), s.recvmsg(3))\n"
        "s.send(b'three')\n"
        "assert select.select([s], [], [], 10)[0]\n"
        "with s.makefile('rwb') as f: print(f.read(5))\n"
        "try: s.sendto(b'x', (16, 5000))\n"
        "except OSError as e: print(e.errno)\n"
        "s.shutdown(socket.SHUT_WR); print(s.recv(1))\n"
    )
    with host.enclave() as guest:
        echo = Echo(guest, 5000)
        assert output(guest, host.python(code), echo) == (
            f"(b'one', None) (b'two', [], 0, None)\nb'three'\n{errno.EISCONN}\nb''\n"
        )


def test_asyncio(host: Host) -> None:
    code = (
        "import asyncio, socket\n"
        "async def handle(reader, writer):\n"
        "    print(writer.get_extra_info('peername')[0], await reader.read(100))\n"
        "    writer.write(b'served'); await writer.drain(); writer.close()\n"
        "async def main():\n"
        "    listening = socket.socket(socket.AF_VSOCK)\n"
        "    listening.bind((socket.VMADDR_CID_ANY, 5000)); listening.listen()\n"
        "    server = await asyncio.start_server(handle, sock=listening)\n"
        "    print('listening')\n"
        "    loop = asyncio.get_running_loop()\n"
        "    async def client(i):\n"
        "        s = socket.socket(socket.AF_VSOCK); s.setblocking(False)\n"
        "        await loop.sock_connect(s, (16, 7000))\n"
        "        reader, writer = await asyncio.open_connection(sock=s)\n"
        "        writer.write(b'%d' % i * 50000); writer.write_eof()\n"
        "        assert await reader.read() == b'%d' % i * 50000\n"
        "        writer.close()\n"
        "    await asyncio.gather(*map(client, range(20)))\n"
        "    try:\n"
        "        s = socket.socket(socket.AF_VSOCK); s.setblocking(False)\n"
        "        await loop.sock_connect(s, (16, 7001))\n"
        "    except ConnectionResetError as e: print('nobody there')\n"
        "    server.close()\n"
        "asyncio.run(main())\n"
    )
    with host.enclave() as guest:
        echo = Echo(guest, 7000)
        process = host.python(code)
        assert line(guest, process) == "listening"
        stream = guest.connect(5000)
        stream.send(b"hello")
        assert line(guest, process) == "16 b'hello'"
        assert stream.recv_all() == b"served"
        stream.close()
        assert output(guest, process, echo) == "nobody there\n"


def test_an_http_server(host: Host) -> None:
    code = (
        "import http.server, socket, socketserver\n"
        "class Server(http.server.ThreadingHTTPServer):\n"
        "    address_family = socket.AF_VSOCK\n"
        "    def server_bind(self):\n"
        "        socketserver.TCPServer.server_bind(self)\n"
        "        self.server_name, self.server_port = 'parent', 0\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "        self.wfile.write(str(self.client_address[0]).encode())\n"
        "    def log_message(self, *_): pass\n"
        "Server.allow_reuse_address = True\n"
        "server = Server((socket.VMADDR_CID_ANY, 8080), Handler)\n"
        "print('listening', server.server_address[1])\n"
        "server.serve_forever()\n"
    )
    with host.enclave() as guest:
        process = host.python(code)
        assert line(guest, process) == "listening 8080"
        for _ in range(2):
            stream = guest.connect(8080)
            stream.send(b"GET / HTTP/1.0\r\n\r\n")
            answer = stream.recv_all()
            assert answer.startswith(b"HTTP/1.0 200 OK\r\n") and answer.endswith(b"\r\n\r\n16")
            stream.close()
