# SPDX-License-Identifier: MIT
"""Parent programs written for AF_VSOCK, unchanged, with the library and the real backend: what they see is
what the kernel shows.

tests/unit/vsock-parent.c is most of them; those in Python are test_vsock_preload_python's. The guest is the
test's own.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from preload_host import Echo, Host, library, line, output, parent_program
from vhost_backend import PATIENCE

TEXT = "0123456789" * 100

# What Linux 6.18 answered to `vsock-parent facts` with its own AF_VSOCK.
FACTS = (Path(__file__).parents[1] / "data" / "vsock-facts.txt").read_text()


@pytest.fixture
def with_vsock() -> Iterator[Host]:
    """One whose programs have the kernel's own vsock as well, if there is one."""
    made = Host(vsock=True)
    try:
        yield made
    finally:
        made.close()


def own_vsock() -> socket.socket | None:
    """A socket of this host's own AF_VSOCK, if it has one."""
    try:
        return socket.socket(socket.AF_VSOCK)
    except OSError:
        return None


def test_it_replaces_nothing_else() -> None:
    """What it exports is what another library's symbols could be mistaken for."""
    listed = subprocess.run(["nm", "-D", "--defined-only", library()], check=True, capture_output=True,
                            text=True).stdout  # fmt: skip
    names = {entry.split()[-1] for entry in listed.splitlines() if "__asan" not in entry}
    assert names == {
        "socket", "bind", "connect", "accept", "accept4", "getsockname", "getpeername", "getsockopt",
        "setsockopt", "recv", "__recv_chk", "recvfrom", "__recvfrom_chk", "recvmsg", "read", "__read_chk",
        "readv", "send", "sendto", "sendmsg", "write", "writev", "shutdown", "ioctl", "open", "open64",
        "openat", "openat64", "__open_2", "__open64_2",
    }  # fmt: skip


def test_it_answers_as_the_kernel_does(host: Host, with_vsock: Host) -> None:
    for each in (host, with_vsock):
        process = each.c("facts")
        text = process.communicate(timeout=PATIENCE)[0].decode()
        assert text == FACTS
    vsock = own_vsock()
    if vsock is None or int(os.uname().release.partition(".")[0]) < 6:
        print("this host has no AF_VSOCK, or an old one: compared with what Linux 6.18 answered")
        return
    vsock.close()
    theirs = subprocess.run([parent_program(), "facts"], check=True, capture_output=True, text=True).stdout
    assert text == theirs


# What Linux answered to `vsock-parent state` with its own AF_VSOCK: 6.18 where it is not connected, 6.12
# where it is. A connect that failed had no answer in two seconds; a refusal differs in its errno alone.
RECORDED = (Path(__file__).parents[1] / "data" / "vsock-states.txt").read_text()
STATES = dict(re.findall(r"^== (\S+)\n((?:[^=].*\n)+)", RECORDED, re.M))

# poll() is not replaced, and who has tried to connect cannot listen: docs/parent.md tells of both. How much
# of what was written is still on its way is a matter of time.
DIFFERENT = {
    ("new", "poll"), ("bound", "poll"), ("failed-ended", "poll"), ("failed-ended", "listen"),
    ("failed-seen", "poll"), ("failed-seen", "listen"), ("connected-full", "unsent"),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_each_call_in_each_state(host: Host, state: str) -> None:
    with host.enclave() as guest:
        if state.startswith("connected"):
            guest.listen(5000)
        process = host.c("state", state.rpartition("-")[2], 16, 5000)
        if "-" in state:
            said = output(guest, process)
        else:
            said = process.communicate(timeout=PATIENCE)[0].decode()  # meanwhile the guest does nothing
    expected = STATES[state].replace(os.strerror(errno.ETIMEDOUT), os.strerror(errno.ECONNRESET))
    wrong = [
        (line, right)
        for line, right in zip(said.splitlines(), expected.splitlines(), strict=True)
        if line != right and (state, right.partition(":")[0]) not in DIFFERENT
    ]
    assert not wrong


def test_its_cid(host: Host) -> None:
    assert host.c("cid").communicate(timeout=PATIENCE)[0] == b"3\n"
    code = (
        "import fcntl, struct\n"
        "with open('/dev/vsock') as f: print(*struct.unpack('I', fcntl.ioctl(f, 0x7b9, bytes(4))))"
    )
    assert host.python(code).communicate(timeout=PATIENCE)[0] == b"3\n"


@pytest.mark.parametrize("way", ["connect", "poll", "epoll"])
def test_connect(host: Host, way: str) -> None:
    with host.enclave() as guest:
        echo = Echo(guest, 5000)
        text = output(guest, host.c(way, 16, 5000, TEXT), echo)
        # A socket's own CID is VMADDR_CID_ANY, as the kernel has it.
        assert text == f"peer 16:5000, family 40, length 16\nown CID -1\n{TEXT}\n"
        (stream,) = echo.seen
        assert (stream.cid, stream.port) == (3, 5000)


@pytest.mark.parametrize("way", ["connect", "poll", "epoll"])
def test_connect_to_nobody(host: Host, way: str) -> None:
    with host.enclave() as guest:
        process = host.c(way, 16, 5001, TEXT)
        while process.poll() is None:
            guest.pump(0.01)
        assert process.communicate()[0] == b"connect: Connection reset by peer\n"


@pytest.mark.parametrize("way", ["connect", "poll", "epoll"])
@pytest.mark.parametrize("start", [True, False])
def test_connect_without_an_answer(host: Host, way: str, start: bool) -> None:
    """After the kernel's two seconds, whether the enclave's driver is up or not."""
    with host.enclave(start=start):
        text = host.c(way, 16, 5000, TEXT).communicate(timeout=PATIENCE)[0]
        assert text == b"connect: Connection timed out\n"


LIBC = """\
import ctypes, select, socket, struct, time
libc = ctypes.CDLL(None)
def timeout(sock, seconds, us):
    assert libc.setsockopt(sock.fileno(), 40, 6, struct.pack("ll", seconds, us), 16) == 0
"""


def test_the_connect_timeout_of_a_program(host: Host) -> None:
    code = LIBC + (
        "for i in range(20):\n"
        "    s = socket.socket(socket.AF_VSOCK); timeout(s, 0, 20000)\n"
        "    s.setblocking(i < 10)\n"
        "    began = time.monotonic()\n"
        "    if (said := s.connect_ex((16, 5000))) == 115:\n"
        "        select.select([], [s], [])\n"
        "        said = s.getsockopt(1, 4)\n"
        "    took = time.monotonic() - began\n"
        "    assert said == 110 and took >= 0.02, (i, said, took)\n"
        "patient, short = (socket.socket(socket.AF_VSOCK) for _ in range(2))\n"
        "timeout(patient, 3600, 0); timeout(short, 0, 200000)\n"
        "for s in (patient, short):\n"
        "    s.setblocking(False)\n"
        "    assert s.connect_ex((16, 5000)) == 115\n"
        "ended = select.select([], [patient, short], [])[1]\n"
        "print(ended == [short], short.getsockopt(1, 4), patient.getsockopt(1, 4))\n"
    )
    with host.enclave():
        text = host.python(code).communicate(timeout=PATIENCE)[0].decode()
    assert text == f"True {errno.ETIMEDOUT} 0\n"


def test_connect_again(host: Host) -> None:
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_VSOCK)\n"
        "s.setblocking(False)\n"
        "print([s.connect_ex((16, 5000)) for _ in range(3)], flush=True)\n"
        "s.setblocking(True)\n"
        "print(s.connect_ex((16, 5000)), s.connect_ex((16, 5000)), s.getpeername())\n"
    )
    with host.enclave() as guest:
        guest.listen(5000)
        process = host.python(code)
        assert process.stdout
        begun = [errno.EINPROGRESS, errno.EALREADY, errno.EALREADY]
        assert process.stdout.readline().decode() == f"{begun}\n"  # meanwhile the guest does nothing
        said = output(guest, process)
        # The guest's answer may have come before the call that would wait for it.
        assert said in [f"{first} {errno.EISCONN} (16, 5000)\n" for first in (0, errno.EISCONN)]


def test_connect_to_no_enclave(host: Host, with_vsock: Host) -> None:
    """That is the kernel's to answer, where it has vsock."""
    code = "import socket, sys; print(socket.socket(socket.AF_VSOCK).connect_ex((int(sys.argv[1]), 5000)))"
    for cid in (0, 1, 2, 3, 17, 0xFFFFFFFF):
        text = host.python(code, cid).communicate(timeout=PATIENCE)[0].decode()
        assert text == f"{errno.ENODEV}\n"
    if vsock := own_vsock():
        with vsock:
            expected = vsock.connect_ex((3, 5000))
        text = with_vsock.python(code, 3).communicate(timeout=PATIENCE)[0].decode()
        assert text == f"{expected}\n"
    else:
        print("this host has no AF_VSOCK to leave it to")


def test_connect_to_an_enclave_that_starts(host: Host) -> None:
    """It has its folder, and nothing in it yet."""
    (host.folder / "17").mkdir()
    code = "import socket; print(socket.socket(socket.AF_VSOCK).connect_ex((17, 5000)))"
    assert host.python(code).communicate(timeout=PATIENCE)[0].decode() == f"{errno.ECONNRESET}\n"


def test_one_socket_until_it_is_connected(host: Host) -> None:
    """A loop around connect() on the same socket, as programs have that start before their enclave."""
    with host.enclave() as guest:
        process = host.c("retry", 16, 5000)
        for _ in range(3):
            assert line(guest, process) == os.strerror(errno.ECONNRESET)
        echo = Echo(guest, 5000)
        assert output(guest, process, echo).endswith("own CID -1\nafter all\n")


def test_many_threads(host: Host) -> None:
    with host.enclave() as guest:
        echo = Echo(guest, 5000)
        assert output(guest, host.c("threads", 16, 5000, 40), echo) == "40 right\n"
        assert len({stream.peer_port for stream in echo.seen}) == 40


@pytest.mark.parametrize("way", ["fork", "exec"])
def test_accept(host: Host, way: str) -> None:
    """Served by a child that has the socket alone, and its memory or not."""
    with host.enclave() as guest, host.enclave(17) as other:
        process = host.c(way, 5000)
        assert line(guest, process) == "listening"
        for g in (guest, other):
            stream = g.connect(5000)
            assert line(g, process) == f"peer {g.cid}:{stream.port}, family 40, length 16"
            assert line(g, process) == "own CID 3"
            stream.send(TEXT.encode())
            assert stream.recv_exactly(len(TEXT)) == TEXT.encode()
            stream.close()


def test_a_port_that_is_taken(host: Host) -> None:
    with host.enclave() as guest:
        first = host.c("fork", 5000)
        assert line(guest, first) == "listening"
        second = host.c("fork", 5000)
        assert second.communicate(timeout=PATIENCE)[0] == b"bind: Address already in use\n"
        first.kill()
        first.wait()
        third = host.c("fork", 5000)
        assert line(guest, third) == "listening", "what a killed program left is in the way"
        stream = guest.connect(5000)
        stream.send(b"x")
        assert stream.recv_exactly(1) == b"x"
        stream.close()


def test_one_of_many_gets_a_port(host: Host) -> None:
    """Also where each of them finds the socket of one that was killed."""
    code = (
        "import signal, socket\n"
        "s = socket.socket(socket.AF_VSOCK)\n"
        "try: s.bind((3, 5000)); print('bound')\n"
        "except OSError as e: print(e.errno)\n"
        "signal.pause()\n"
    )
    for _ in range(4):
        processes = [host.python(code) for _ in range(6)]
        told = [process.stdout.readline() for process in processes if process.stdout]
        assert sorted(told) == [b"%d\n" % errno.EADDRINUSE] * 5 + [b"bound\n"]
        for process in processes:
            process.kill()
            process.wait()
        assert host.port(5000).is_socket()


def test_low_ports(host: Host) -> None:
    code = (
        "import ctypes, socket\n"
        "with socket.socket(socket.AF_VSOCK) as s:\n"
        "    s.bind((3, 1000)); print(s.getsockname())\n"
        "libc = ctypes.CDLL(None)\n"
        # PR_CAPBSET_DROP does not touch what we have; capset() does.
        "head = (ctypes.c_uint32 * 2)(0x20080522, 0); data = (ctypes.c_uint32 * 6)()\n"
        "assert libc.capset(head, data) == 0\n"
        "s = socket.socket(socket.AF_VSOCK)\n"
        "for port in (1023, 1024):\n"
        "    try: s.bind((3, port)); print(s.getsockname())\n"
        "    except OSError as e: print(e.errno)\n"
    )
    process = host.python(code)
    text = process.communicate(timeout=PATIENCE)[0].decode()
    if os.geteuid():
        assert "Permission denied" in text
    else:
        assert text == f"(3, 1000)\n{errno.EACCES}\n(3, 1024)\n"


def test_bound_before_connect(host: Host) -> None:
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_VSOCK)\n"
        "s.bind((3, 6000))\n"
        "s.connect((16, 5000))\n"
        "print(s.getsockname(), s.getpeername())\n"
        "s.sendall(b'x'); print(s.recv(1)); s.shutdown(1); print(s.recv(1))\n"
    )
    with host.enclave() as guest:
        echo = Echo(guest, 5000)
        assert output(guest, host.python(code), echo) == "(3, 6000) (16, 5000)\nb'x'\nb''\n"
        assert echo.seen[0].peer_port == 6000
    assert not host.port(6000).exists()


def test_bound_before_connects_that_fail(host: Host) -> None:
    """The port stays the socket's, as with the kernel."""
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_VSOCK)\n"
        "s.bind((socket.VMADDR_CID_ANY, 6000))\n"
        "for port in (5001, 5001, 5000):\n"
        "    print(s.connect_ex((16, port)), s.getsockname() == (socket.VMADDR_CID_ANY, 6000))\n"
        "    try: s.bind((3, 6001))\n"
        "    except OSError as e: assert e.errno == 22\n"
        "s.shutdown(1); print(s.recv(1))\n"
    )
    with host.enclave() as guest:
        echo = Echo(guest, 5000)
        text = output(guest, host.python(code), echo)
        assert text == f"{errno.ECONNRESET} True\n{errno.ECONNRESET} True\n0 True\nb''\n"
        assert [stream.peer_port for stream in echo.seen] == [6000]


def test_a_signal_during_connect(host: Host) -> None:
    code = LIBC + (
        "import signal\n"
        "signal.signal(signal.SIGALRM, lambda *_: print('a signal'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05)\n"
        "s = socket.socket(socket.AF_VSOCK); timeout(s, 3600, 0)\n"
        "s.connect((16, 5000)); print(s.getpeername())\n"
    )
    with host.enclave() as guest:
        guest.listen(5000)
        process = host.python(code)
        assert process.stdout
        assert process.stdout.readline() == b"a signal\n"  # meanwhile the guest does nothing
        assert output(guest, process) == "(16, 5000)\n"


def test_a_backend_that_does_nothing(host: Host) -> None:
    """A connect ends in time nevertheless."""
    with host.enclave() as guest, socket.socket(socket.AF_UNIX) as dead:
        (host.folder / "17").mkdir()
        dead.bind(str(host.folder / "17/vsock"))
        dead.listen()
        assert host.c("connect", 17, 5000, TEXT).communicate(timeout=PATIENCE)[0] == (
            b"connect: Connection timed out\n"
        )
        dead.close()
        assert output(guest, host.python("import socket; print(socket.socket(40).connect_ex((17, 1)))")) == (
            f"{errno.ECONNRESET}\n"
        )


def test_the_size_of_a_buffer_is_of_one_socket(host: Host) -> None:
    """Whatever others have set, of this process and of those that it has started, and across a retry."""
    code = (
        "import select, socket, subprocess, sys\n"
        "SIZE = socket.SO_SNDBUF\n"
        "def begun(size, port):\n"
        "    s = socket.socket(socket.AF_VSOCK); s.setblocking(False)\n"
        "    if size: s.setsockopt(1, SIZE, size)\n"
        "    assert s.connect_ex((16, port)) == 115\n"
        "    return s\n"
        "usual = socket.socket(socket.AF_VSOCK).getsockopt(1, SIZE)\n"
        "begun_ones = [begun(size, 5000) for size in (8192, 0, 50000)]\n"
        "begun_ones[2].setsockopt(1, SIZE, 60000)\n"
        "print([s.getsockopt(1, SIZE) - usual * (s is begun_ones[1]) for s in begun_ones], flush=True)\n"
        "for s in begun_ones:\n"
        "    select.select([], [s], []); assert s.getpeername() == (16, 5000)\n"
        "print([s.getsockopt(1, SIZE) - usual * (s is begun_ones[1]) for s in begun_ones])\n"
        "child = 'import socket; print(socket.socket(fileno=%d).getsockopt(1, 7))' % begun_ones[0].fileno()\n"
        "begun_ones[0].set_inheritable(True)\n"
        "subprocess.run([sys.executable, '-c', child], close_fds=False, check=True)\n"
        "s = socket.socket(socket.AF_VSOCK)\n"
        "s.setsockopt(1, SIZE, 9000); s.setsockopt(1, socket.SO_RCVBUF, 7000)\n"
        "s.setsockopt(1, socket.SO_KEEPALIVE, 1)\n"
        "for port in (5001, 5001, 5000):\n"
        "    print(s.connect_ex((16, port)), *(s.getsockopt(1, o) for o in (SIZE, 8, 9)))\n"
    )
    with host.enclave() as guest:
        guest.listen(5000)
        process = host.python(code)
        assert process.stdout
        assert process.stdout.readline() == b"[16384, 0, 120000]\n"  # meanwhile the guest does nothing
        assert output(guest, process) == (
            "[16384, 0, 120000]\n16384\n"
            f"{errno.ECONNRESET} 18000 14000 1\n{errno.ECONNRESET} 18000 14000 1\n0 18000 14000 1\n"
        )


def test_the_socket_of_a_port_is_its_owners(host: Host) -> None:
    code = (
        "import os, socket\n"
        "os.umask(0o022); s = socket.socket(socket.AF_VSOCK); s.bind((3, 5000)); print('bound')\n"
    )
    assert host.python(code).communicate(timeout=PATIENCE)[0] == b"bound\n"
    assert stat.S_IMODE(host.port(5000).stat().st_mode) == 0o600


def test_a_file_where_the_port_would_be(host: Host) -> None:
    host.port(5000).parent.mkdir(mode=0o700)
    host.port(5000).write_text("precious")
    assert host.c("fork", 5000).communicate(timeout=PATIENCE)[0] == b"bind: Address already in use\n"
    assert host.port(5000).read_text() == "precious"


def test_accepted_after_its_end(host: Host) -> None:
    code = (
        "import socket, sys\n"
        "l = socket.socket(socket.AF_VSOCK); l.bind((3, 5000)); l.listen(); print('listening')\n"
        "import signal; signal.sigwait({signal.SIGUSR1})\n"
        "c, a = l.accept(); print(a[0], c.getpeername() == a, c.getsockname(), c.recv(10), c.recv(10))\n"
    )
    code = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n" + code
    with host.enclave() as guest:
        process = host.python(code)
        assert line(guest, process) == "listening"
        stream = guest.connect(5000)
        stream.send(b"bye")
        stream.close()
        process.send_signal(signal.SIGUSR1)
        assert output(guest, process) == "16 True (3, 5000) b'bye' b''\n"


def test_other_sockets_are_as_ever(host: Host) -> None:
    code = (
        "import os, socket, tempfile\n"
        "a, b = socket.socketpair(); a.send(b'x'); assert b.recvfrom(1)[0] == b'x'\n"
        "assert a.getsockopt(1, 39) == socket.AF_UNIX\n"
        "with tempfile.TemporaryDirectory() as d:\n"
        "    l = socket.socket(socket.AF_UNIX); l.bind(d + '/s'); l.listen()\n"
        "    c = socket.socket(socket.AF_UNIX); c.connect(d + '/s')\n"
        "    assert c.getpeername() == d + '/s' and l.accept()[1] == ''\n"
        "    open(d + '/f', 'w').close(); print(oct(os.stat(d + '/f').st_mode & 0o600))\n"
        "l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname())\n"
        "assert l.accept()[1] == c.getsockname()\n"
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0))\n"
        "u.sendto(b'x', u.getsockname()); assert u.recvfrom(1) == (b'x', u.getsockname())\n"
        "u.sendto(b'x', u.getsockname()); assert u.recvmsg(1)[3] == u.getsockname()\n"
        "print('as ever')\n"
    )
    text = host.python(code).communicate(timeout=PATIENCE)[0].decode()
    assert text == "0o600\nas ever\n"


def test_without_a_folder_it_does_nothing(host: Host) -> None:
    code = "import socket\ntry: print(socket.socket(40).getsockname())\nexcept OSError as e: print(e.errno)\n"
    process = host.python(code, NITROCTL_VSOCK_DIR="")
    assert process.communicate(timeout=PATIENCE)[0].decode() == f"{errno.EAFNOSUPPORT}\n"


def test_a_connection_that_is_reset(host: Host) -> None:
    """After it was there: ECONNRESET, however long that is ago."""
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_VSOCK); s.connect((16, 5000)); print('connected')\n"
        "s.sendall(b'x' * 1000)\n"
        "try: print(s.recv(1))\n"
        "except OSError as e: print(e.errno)\n"
    )
    with host.enclave() as guest:
        guest.listen(5000)
        process = host.python(code)
        stream = guest.accept(5000)
        assert line(guest, process) == "connected"
        stream.recv_exactly(1000)
        stream.put(3)  # RST
        text = output(guest, process)
    assert re.fullmatch(rf"{errno.ECONNRESET}\n|b''\n", text)


def test_calls_of_a_fortified_program(host: Host) -> None:
    """What -D_FORTIFY_SOURCE makes of recv, recvfrom, read and open where it knows the size of a buffer, or
    of no mode."""
    code = (
        "import ctypes, fcntl, os, socket, struct\n"
        "c = ctypes.CDLL(None)\n"
        "b = ctypes.create_string_buffer(8)\n"
        "s = socket.socket(socket.AF_VSOCK)\n"
        "n = s.fileno()\n"
        "s.connect((16, 5000)); s.send(b'onetwosix')\n"
        "s.recv(9, socket.MSG_PEEK | socket.MSG_WAITALL)\n"
        "print(c['__recv_chk'](n, b, 3, 8, 0), b.value)\n"
        "print(c['__recvfrom_chk'](n, b, 3, 8, 0, None, None), b.value)\n"
        "print(c['__read_chk'](n, b, 3, 8), b.value)\n"
        "for name in '__open_2', '__open64_2':\n"
        "    d = c[name](b'/dev/vsock', os.O_RDONLY)\n"
        "    print(*struct.unpack('I', fcntl.ioctl(d, 0x7b9, bytes(4)))); os.close(d)\n"
        "d = c.openat64(-100, b'/dev/vsock', os.O_RDONLY)\n"
        "print(*struct.unpack('I', fcntl.ioctl(d, 0x7b9, bytes(4))))\n"
    )
    with host.enclave() as guest:
        echo = Echo(guest, 5000)
        said = output(guest, host.python(code), echo)
    assert said == "3 b'one'\n3 b'two'\n3 b'six'\n3\n3\n3\n"
