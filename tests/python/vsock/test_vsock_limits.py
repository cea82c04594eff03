# SPDX-License-Identifier: MIT
"""Many connections and the limits of the vsock backend: its table, descriptors, memory and log; fairness,
clients that are killed, interrupts. How fast it is: tests/bench. Behind a fake front end, as
test_vsock_backend.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vhost_backend import PATIENCE, Backend, fail_after, running
from vhost_front import Front, drain
from vhost_guest import RW, Guest, Packet, Refused, Reset, guest, linked, read_ok
from vsock_talk import PORT, Folder, dial_skipping, heartbeat, read_exactly

pytestmark = pytest.mark.usefixtures("no_child_is_left")


def test_thousand_connections_echo(backend: Backend) -> None:
    with guest(backend) as g, backend.listen(PORT, backlog=4096) as listener, contextlib.ExitStack() as stack:
        streams, peers = [], {}
        for i in range(1000):
            s = g.connect(PORT)
            peer = stack.enter_context(listener.accept()[0])
            streams.append(s)
            peers[i] = peer
        for i, s in enumerate(streams):
            s.send(b"ping %d" % i)
        for i, peer in peers.items():
            got = read_exactly(peer, len(b"ping %d" % i))
            assert got == b"ping %d" % i
            peer.sendall(b"pong %d" % i)
        for i, s in enumerate(streams):
            assert s.recv_exactly(len(b"pong %d" % i)) == b"pong %d" % i
        numbers = backend.statistics()
        assert numbers["connections"] == 1000
        assert numbers["reserved_bytes"] <= 64 << 20
        for s in streams:
            s.close()
        assert backend.statistics()["reserved_bytes"] == 0


def test_table_limit_is_an_rst(binary: Path) -> None:
    with running(binary, "--max-connections=8") as b, guest(b) as g, b.listen(PORT) as listener:
        g.listen(7000)
        streams = [g.connect(PORT) for _ in range(8)]
        peers = [listener.accept()[0] for _ in range(8)]
        for _ in range(5):
            with pytest.raises(Refused):
                g.connect(PORT)
        # A client waits until there is room.
        with b.client(b"CONNECT 7000\n") as client:
            assert g.pump(0.1) == 0
            streams[0].close()
            s = g.accept(7000)
            assert read_ok(client) == s.peer_port
        for p in peers:
            p.close()


def test_descriptor_limit_is_an_rst(binary: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running(binary) as b, guest(b) as g:
        resource.prlimit(b.process.pid, resource.RLIMIT_NOFILE, (b.fds() + 10, hard))
        with b.listen(PORT) as listener, contextlib.ExitStack() as stack:
            opened, refused = 0, 0
            for _ in range(30):
                try:
                    g.connect(PORT)
                    stack.enter_context(listener.accept()[0])
                    opened += 1
                except Refused:
                    refused += 1
            assert opened >= 8 and refused >= 18 and opened + refused == 30
            # The clients' listener neither spins nor dies; it goes on when there is room.
            g.listen(7000)
            client = stack.enter_context(b.client(b"CONNECT 7000\n"))
            before = b.statistics()["wakeups"]
            select.select([], [], [], 0.5)
            assert b.statistics()["wakeups"] - before < 20
            resource.prlimit(b.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
            s = g.accept(7000)
            assert read_ok(client) == s.peer_port


@pytest.mark.parametrize(("limit", "published", "expected"), [(256, 0, 192), (256, 30, 132), (90, 0, 45)])
def test_a_low_limit_of_files_is_respected(binary: Path, limit: int, published: int, expected: int) -> None:
    import resource

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    with Folder() as folder:
        process = subprocess.Popen(
            [binary, "--guest-cid=4", f"--socket-path={folder}/s", f"--uds-path={folder}/u",
             *(f"--connect-port={i}={folder}/p{i}" for i in range(published))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lower,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with contextlib.closing(Front(folder / "s")) as front, contextlib.ExitStack() as stack:
            g = Guest(front)
            front.start()
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{folder}/u_{PORT}")
            listener.listen(4096)
            opened = 0
            for _ in range(300):
                with contextlib.suppress(Refused):
                    g.connect(PORT)
                    stack.enter_context(listener.accept()[0])
                    opened += 1
            assert opened == expected
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and b"%d connections" % expected in err


def test_memory_of_all_connections_is_bounded(binary: Path) -> None:
    """Many connections, whose host ends do not read: their windows together stay below the cap."""
    with running(binary, "--max-connections=512") as b, guest(b) as g, b.listen(PORT, 1024) as listener:
        streams = []
        peers = []
        for _ in range(400):
            streams.append(g.connect(PORT))
            peers.append(listener.accept()[0])
        numbers = b.statistics()
        assert numbers["reserved_bytes"] <= 64 << 20
        windows = {s.peer_buf_alloc for s in streams}
        assert max(windows) == 262144 and min(windows) >= 65536
        for p in peers:
            p.close()


def test_logs_are_limited(binary: Path) -> None:
    with running(binary, "--log-level=debug") as b, guest(b) as g:
        for i in range(3000):
            g.put(Packet(g.cid, 3, 1000 + i, 9, RW))
            g.pump()
        g.wait(lambda: len(g.strays) == 3000, "RSTs")
        assert b.stderr().count("\n") < 200
        assert "unknown connection" in b.stderr()


def test_the_guests_noise_hides_no_error_of_the_host(backend: Backend) -> None:
    with guest(backend) as g, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        wrong.bind(os.fspath(backend.port(PORT)))
        for _ in range(50):
            g.put(Packet(g.cid + 1, 3, 1000, 9, RW))
        with pytest.raises(Refused):
            g.connect(PORT)
        assert "foreign source" in backend.stderr()
        assert f"cannot connect to {backend.port(PORT)}: Protocol wrong type" in backend.stderr()


def test_what_others_do_over_and_over_is_no_flood(binary: Path) -> None:
    """Front ends that come and go, drivers that start again, heartbeats that nobody is told of."""
    started = time.monotonic()
    with running(binary, "-v", "-v") as b:
        os.close(b.booted)
        b.booted = os.open(os.devnull, os.O_RDONLY)
        for _ in range(100):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(os.fspath(b.socket_path))
                s.send(b"\0" * 12)
                with contextlib.suppress(ConnectionResetError):
                    assert s.recv(1) == b""
        with guest(b, buffers=16) as g:
            for _ in range(100):
                g.reboot()
                assert heartbeat(g) == b"\xb7"
        lines = b.stderr().count("\n")
        assert lines < 11 * (time.monotonic() - started + 2)
        # What was dropped is told with the next line that may pass.
        patience = fail_after()
        while "more lines like these were dropped" not in b.stderr():
            Front(b.socket_path).close()
            patience("a word about what was dropped")


def test_a_log_that_nobody_reads_stops_nothing(binary: Path) -> None:
    read, write = os.pipe()
    with Folder() as folder, os.fdopen(read, "rb", buffering=0) as reader:
        process = subprocess.Popen(
            [binary, "--guest-cid=4", f"--socket-path={folder}/s", f"--uds-path={folder}/u", "-v", "-v"],
            stdout=subprocess.PIPE, stderr=write,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with os.fdopen(write, "wb", buffering=0) as filler:
            os.set_blocking(filler.fileno(), False)
            while filler.write(bytes(1 << 20)):
                pass
            # The flag is the pipe's, and so was the backend's.
            os.set_blocking(filler.fileno(), True)
            with contextlib.closing(Front(folder / "s")) as front:
                g = Guest(front)
                front.start()
                process.send_signal(signal.SIGUSR1)
                g.put(Packet(9, 3, 1, 9, RW))
                assert heartbeat(g) == b"\xb7"
            reader.read(1 << 16)
            # And it goes on once there is room.
            process.send_signal(signal.SIGUSR1)
            text = b""
            patience = fail_after()
            while b'{"connections"' not in text:
                text += reader.read(1 << 20)
                patience("statistics")
            assert b'"bad-source": 1' in text
        process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_fair_among_streams(backend: Backend) -> None:
    """Hosts that all have plenty to say are served alike."""
    count, share = 20, 400_000
    with guest(backend, buffers=512) as g, backend.listen(PORT) as listener:
        streams = [g.connect(PORT) for _ in range(count)]
        peers = [listener.accept()[0] for _ in range(count)]
        queued = [0] * count
        got = [0] * count
        patience = fail_after()
        while min(got) < share:
            for i, p in enumerate(peers):
                p.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    queued[i] += p.send(bytes(100_000))
            g.pump(0.01)
            for i, s in enumerate(streams):
                got[i] += len(s.read_some(1 << 20))
            patience("shares")
        assert max(got) <= 2 * min(got)
        for p in peers:
            p.close()


def test_killed_clients_at_any_moment(backend: Backend) -> None:
    """Client processes that die by SIGKILL while they talk."""
    code = (
        "import socket,sys\n"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'CONNECT 7000\\n')\n"
        "print(s.recv(20), flush=True)\n"
        "while True: s.sendall(bytes(10000))\n"
    )
    with guest(backend) as g:
        g.listen(7000)
        base = backend.fds()
        for i in range(10):
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", code, backend.uds_path], stdout=subprocess.PIPE
            )
            s = g.accept(7000)
            if i % 2:
                s.recv()
                s.send(b"answer")
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            with contextlib.suppress(Reset):
                s.recv_all()
        dial_skipping(backend, g, 7000)[0].close()
        patience = fail_after()
        while backend.statistics()["connections"]:
            g.pump(0.05)
            for queue in g.listening.values():
                for stream in queue:
                    stream.read_some(1 << 20)
            patience("all gone")
        assert backend.fds() == base


def test_interrupts_are_batched(backend: Backend) -> None:
    with linked(backend, buffers=1000) as (g, s, peer):
        g.pump(0.05)
        drain(g.front.rx.call_fd)
        before = backend.statistics()
        peer.setblocking(False)
        sent = peer.send(bytes(200_000))
        time.sleep(0.1)
        g.pump(0.1)
        after = backend.statistics()
        packets = after["packets_to_guest"] - before["packets_to_guest"]
        assert s.received == sent and packets >= sent // 3732
        assert after["interrupts"] - before["interrupts"] <= 4
