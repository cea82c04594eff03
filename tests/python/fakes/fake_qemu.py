# SPDX-License-Identifier: MIT
"""Stands in for QEMU in tests of the supervisor: the same descriptors and QMP, a script for a guest.

FAKE_QEMU holds the guest's life, a JSON list of steps:

    ["print", TEXT]         on the console
    ["heartbeat"]           through the fake backend, and its answer awaited
    ["tell", LINE]          what the backend is to tell of the application, as if init had told it
    ["stderr", TEXT]        on standard error
    ["exit", STATUS]        ends at once, without a word on QMP
    ["terminated"]          ends as by SIGTERM before QMP was spoken
    ["reset"]               QMP event SHUTDOWN as for a guest's reset, then ends with 0
    ["fail-run"]            QMP event STOP; the status is internal-error from then on
    ["file", PATH]          writes its process ID there
    ["fill"]                prints for ever
    ["deaf"]                ignores SIGTERM from now on
    ["await", FIFO]         goes on once somebody has opened that FIFO for writing
    ["show", OPTION]        on the console, the file that the machine option names, or "none"
    ["nsm", LINE]           a line of the NSM's log, once there is one

QOM's properties are whatever was set last; with FAKE_QEMU_PROPERTIES, a file with a line for each
setting, in order. FAKE_QEMU_BOOT_TIMES is the machine's boot-times.

With FAKE_QEMU_NO_VSOCK it leaves the backend to somebody else's front end.

It answers `-M nitro-enclave,help` with the option cert-chain unless FAKE_QEMU_UNSIGNED is set.

After the last step it runs until it is told to end. It emulates nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any


class Qmp(threading.Thread):
    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.sock = socket.socket(fileno=fd)
        self.negotiated = threading.Event()
        self.status = "running"
        self.fds: list[int] = []
        self.named: dict[str, int] = {}  # by getfd, then by chardev-add
        self.log = threading.Event()
        self.properties: dict[str, Any] = {
            "/machine boot-times": os.environ.get("FAKE_QEMU_BOOT_TIMES", ""),
            "/machine/nsm fault-kind": "",
            "/machine/nsm fault-expired": False,
        }

    def send(self, message: dict[str, Any]) -> None:
        self.sock.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.negotiated.wait()
        stamp = {"seconds": int(time.time()), "microseconds": 0}
        self.send({"event": name, "data": data, "timestamp": stamp})

    def run(self) -> None:
        version = {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": "fake"}
        self.send({"QMP": {"version": version, "capabilities": []}})
        decoder, text = json.JSONDecoder(), ""
        while True:
            data, fds, _, _ = socket.recv_fds(self.sock, 4096, 1)
            self.fds += fds
            if not data:
                return
            text = (text + data.decode()).lstrip()
            while text:  # requests follow each other without anything between them
                try:
                    request, end = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                self.answer(request)

    def answer(self, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {}
        given = request.get("arguments", {})
        if request["execute"] == "query-status":
            answer = {"status": self.status, "running": False}
        elif request["execute"] == "getfd":
            self.named[given["fdname"]] = self.fds.pop()
        elif request["execute"] in ("qom-get", "qom-set"):
            answer = self.property(f"{given['path']} {given['property']}", **given)
        self.send({"return": answer, "id": request.get("id")})
        if request["execute"] == "qmp_capabilities":
            self.negotiated.set()

    def property(self, name: str, value: Any = None, **_: Any) -> Any:
        if value is None:
            return self.properties.get(name, 0)
        self.properties[name] = value
        if path := os.environ.get("FAKE_QEMU_PROPERTIES"):
            with open(path, "a") as file:
                print(name, json.dumps(value), file=file)
        if name == "/machine/nsm log":
            self.log.set()
        return {}


def options(argv: list[str]) -> dict[str, dict[str, str]]:
    """chardev id -> its parameters."""
    found = {}
    for name, value in zip(argv, argv[1:], strict=False):
        if name == "-chardev":
            fields = dict(f.partition("=")[::2] for f in value.replace(",,", "\0").split(","))
            found[fields["id"]] = {k: v.replace("\0", ",") for k, v in fields.items()}
    return found


def machine(argv: list[str]) -> dict[str, str]:
    fields = argv[argv.index("-M") + 1].replace(",,", "\0").split(",")
    return dict(f.replace("\0", ",").partition("=")[::2] for f in fields)


def main() -> None:
    if "help" in machine(sys.argv[1:]):
        print("vsock=<string>" if "FAKE_QEMU_UNSIGNED" in os.environ else "cert-chain=<string>")
        return
    steps = json.loads(os.environ.get("FAKE_QEMU", "[]"))
    if steps and steps[0][0] in ("stderr", "exit"):
        # One that dies before it opens anything.
        for step in steps:
            if step[0] == "stderr":
                print(step[1], file=sys.stderr, flush=True)
            elif step[0] == "exit":
                os._exit(step[1])
    chardevs = options(sys.argv[1:])
    device = socket.socket(socket.AF_UNIX)
    if "FAKE_QEMU_NO_VSOCK" not in os.environ:
        device.connect(next(c["path"] for c in chardevs.values() if "path" in c))
    qmp = Qmp(int(chardevs["qmp"]["fd"])) if "qmp" in chardevs else None

    def terminated(number: int, _: object) -> None:
        os.write(2, b"qemu: terminating on signal %d from pid 1 (init)\n" % number)
        if qmp and qmp.negotiated.is_set():
            qmp.event("SHUTDOWN", guest=False, reason="host-signal")
        os._exit(0)

    signal.signal(signal.SIGTERM, terminated)
    if qmp:
        qmp.start()
    for name, *arguments in steps:
        if name == "print":
            os.write(1, arguments[0].encode())
        elif name == "heartbeat":
            if qmp:
                qmp.negotiated.wait()  # a guest takes longer to its init
            device.sendall(b"heartbeat\n")
            device.recv(1)
        elif name == "tell":
            device.sendall(f"tell {arguments[0]}\n".encode())
            device.recv(1)
        elif name == "stderr":
            print(arguments[0], file=sys.stderr, flush=True)
        elif name == "exit":
            os._exit(arguments[0])
        elif name == "terminated":
            os.write(2, b"qemu: terminating on signal 15\n")
            os._exit(0)
        elif name == "reset":
            if qmp:
                qmp.event("SHUTDOWN", guest=True, reason="guest-reset")
            os._exit(0)
        elif name == "fail-run":
            assert qmp
            qmp.status = "internal-error"
            qmp.event("STOP")
        elif name == "file":
            with open(arguments[0] + ".new", "w") as f:
                f.write(str(os.getpid()))
            os.rename(arguments[0] + ".new", arguments[0])
        elif name == "fill":
            with contextlib.suppress(OSError):
                while True:
                    os.write(1, b"0123456789abcde\n" * 64)
        elif name == "show":
            path = machine(sys.argv[1:]).get(arguments[0])
            content = b"none\n"
            if path:
                with open(path, "rb") as file:
                    content = file.read()
            os.write(1, content)
        elif name == "await":
            with open(arguments[0], "rb"):
                pass
        elif name == "nsm":
            assert qmp
            qmp.log.wait()
            os.write(qmp.named[qmp.properties["/machine/nsm log"]], arguments[0].encode() + b"\n")
        elif name == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            raise SystemExit(f"unknown step {name}")
    while True:
        signal.pause()


main()
