# SPDX-License-Identifier: MIT
"""Stands in for vhost-user-vsock in tests of the supervisor: its options and promises, without vhost-user.

It listens on both sockets, says "ready", takes one line "heartbeat" from the fake QEMU, says "booted", and
answers; of a line "tell LINE" it says LINE. It ends on SIGTERM without its sockets, and when the lifeline
closes without the folder as well. On that it can be asked for faults, which it remembers.

On the parent's socket it refuses `CONNECT N`; a port in FAKE_PORTS, "N:COUNT,...", is an echo service from
the connection after the first COUNT on.

SIGUSR1 prints FAKE_STATISTICS on standard error.

FAKE_BACKEND changes that: "dies" (says why, status 7), "mute" (never ready), "stubborn" (ignores SIGTERM).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any

NOTHING_ODD = '{"drivers": 1, "opened_by_guest": 1}'


def heard(lifeline: socket.socket) -> bytes:
    """A request; nothing at the end, which is a reset where our last answer was not read."""
    try:
        return lifeline.recv(4096)
    except ConnectionResetError:
        return b""


def answer(request: dict[str, Any], faults: list[dict[str, Any]]) -> dict[str, Any]:
    if request["do"] == "fault":
        faults.append({"chance": 1_000_000, **request, "fault": len(faults) + 1})
        return {"id": request["id"], "fault": len(faults)}
    if request["do"] == "fault-clear":
        cleared = len(faults)
        faults.clear()
        return {"id": request["id"], "cleared": cleared}
    return {"id": request["id"], "did": request["do"], "faults": faults}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket-path", required=True)
    parser.add_argument("--guest-cid", type=int, required=True)
    parser.add_argument("--uds-path", required=True)
    for ignored in ("--fallback-path", "--publish", "--proxy", "--listen-port", "--connect-port"):
        parser.add_argument(ignored, action="append")
    parser.add_argument("--booted-fd", type=int)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--lifeline-fd", type=int)
    parser.add_argument("--cleanup-dir")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--no-sandbox", action="store_true")
    options = parser.parse_args()
    behaviour = os.environ.get("FAKE_BACKEND", "")
    if behaviour == "dies":
        print("fake backend: no such luck", file=sys.stderr)
        sys.exit(7)

    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else lambda *_: None)
    signal.signal(signal.SIGUSR1, lambda *_: None)

    sockets = [options.socket_path, options.uds_path]
    servers = []
    for path in sockets:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        servers.append(server)
    if behaviour != "mute":
        if options.ready_fd is None:
            print("ready", flush=True)
        else:
            os.write(options.ready_fd, b"ready\n")
            os.close(options.ready_fd)

    refusals = {}
    for item in filter(None, os.environ.get("FAKE_PORTS", "").split(",")):
        number, _, count = item.partition(":")
        refusals[int(number)] = int(count)
    faults: list[dict[str, Any]] = []
    selector = selectors.DefaultSelector()
    selector.register(servers[0], selectors.EVENT_READ, "device")
    selector.register(servers[1], selectors.EVENT_READ, "parent")
    selector.register(wake, selectors.EVENT_READ, "signal")
    if options.lifeline_fd is not None:
        lifeline = socket.socket(fileno=options.lifeline_fd)
        selector.register(lifeline, selectors.EVENT_READ, "lifeline")
    end = ""
    while not end:
        for key, _ in selector.select():
            if key.data == "device":
                client = servers[0].accept()[0]
                selector.register(client, selectors.EVENT_READ, "client")
            elif key.data == "parent":
                selector.register(servers[1].accept()[0], selectors.EVENT_READ, "stranger")
            elif key.data in ("stranger", "echo"):
                client = key.fileobj  # type: ignore[assignment]
                data = client.recv(65536)
                if data and key.data == "stranger":
                    asked = int(data.split()[1])
                    refusals[asked] = refusals.get(asked, 1 << 30) - 1
                    data = b"" if refusals[asked] >= 0 else b"OK 1073741824\n"
                    selector.modify(client, selectors.EVENT_READ, "echo")
                if data:
                    client.sendall(data)
                else:
                    selector.unregister(client)
                    client.close()
            elif key.data == "client":
                client = key.fileobj  # type: ignore[assignment]
                data = client.recv(64)
                if data == b"heartbeat\n" or data.startswith(b"tell "):
                    line = b"booted\n" if data == b"heartbeat\n" else data.removeprefix(b"tell ")
                    os.write(1 if options.booted_fd is None else options.booted_fd, line)
                    client.sendall(b"\xb7")
                elif not data:
                    selector.unregister(client)
                    client.close()
                    if options.once:
                        end = "once"
            elif key.data == "signal" and wake.recv(1)[0] == signal.SIGUSR1:
                print(os.environ.get("FAKE_STATISTICS", NOTHING_ODD), file=sys.stderr, flush=True)
            elif key.data == "lifeline" and (request := heard(lifeline)):
                with contextlib.suppress(OSError):  # who asked may have been killed
                    lifeline.send(json.dumps(answer(json.loads(request), faults)).encode())
            else:
                end = key.data
    for path in sockets:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    if end == "lifeline" and options.cleanup_dir:
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(options.cleanup_dir):
                os.unlink(os.path.join(options.cleanup_dir, name))
            os.rmdir(options.cleanup_dir)


main()
