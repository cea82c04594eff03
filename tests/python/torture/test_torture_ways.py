# SPDX-License-Identifier: MIT
"""Verifiers of all manners, by file, standard input and HTTP, and `nitroctl attest torture` as a whole."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jsonpage import answer, failure
from nitroctl import cli
from nitroctl.attestation import Policy, verify
from nitroctl.attestation import errors as why
from nitroctl.base import instants
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.torture import Kit, ways

PATIENCE = 60.0
NONE, REFUSED, ACCEPTED = "none", "refused", "accepted"


@pytest.fixture(scope="module")
def kit() -> Kit:
    return Kit(seed="tests")


@pytest.fixture
def ask(kit: Kit, tmp_path: Path) -> Callable[..., ways.Answer]:
    """Asks a shell script about the control."""

    def asked(
        script: str, *, timeout: float = PATIENCE, stdin: bool = False, case: str = "control", **how: Any
    ) -> ways.Answer:
        folder = ways.Folder(tmp_path, kit, how.get("encoding", "raw"))
        command = ["sh", "-c", script, "sh", *how.get("more", ())]
        return ways.Program(command, folder, timeout, stdin=stdin).ask(kit.case(case))

    return asked


# ---- programs ----


def test_the_exit_status_is_the_verdict(ask: Callable[..., ways.Answer]) -> None:
    for script, verdict, how in (
        ("exit 0", ACCEPTED, "exit status 0"),
        ("exit 1", REFUSED, "exit status 1"),
        ("exit 101", REFUSED, "exit status 101"),
        ("kill -SEGV $$", NONE, "killed by SIGSEGV"),
        ("kill -KILL $$", NONE, "killed by SIGKILL"),
    ):
        said = ask(script)
        assert (said.verdict, said.how) == (verdict, how), script


def test_who_takes_too_long_gives_no_verdict(ask: Callable[..., ways.Answer]) -> None:
    for script in ("sleep 1000", "exec yes", "trap '' TERM; while :; do sleep 1000; done"):
        said = ask(script, timeout=0.3)
        assert (said.verdict, said.how) == (NONE, "no answer within 0.3 s"), script
        assert len(said.said) <= ways.KEPT


def test_the_end_of_a_verifier_is_its_own(ask: Callable[..., ways.Answer], tmp_path: Path) -> None:
    """What it left running keeps nobody waiting, and ends with it."""
    said = ask(f"sleep 1000 & echo $! > {tmp_path}/pid; echo left; exit 3")
    assert (said.verdict, said.said) == (REFUSED, "left")
    child = int((tmp_path / "pid").read_text())
    with contextlib.suppress(ProcessLookupError):
        ended = os.pidfd_open(child)
        try:
            assert select.select([ended], [], [], PATIENCE)[0]
        finally:
            os.close(ended)


def test_what_it_is_given(ask: Callable[..., ways.Answer], kit: Kit, tmp_path: Path) -> None:
    case = kit.case("time-second-after")
    out = tmp_path / "out"
    values = "{root} {root_der} {root_sha256} {time} {unix_time} {nonce} {pcr0} {other} {"
    ask(f'printf "%s\\n" "$@" > {out}; env | grep ^ATTESTATION_ >> {out}', more=[values], case=case.name)
    given, document, *environment = out.read_text().splitlines()
    root, root_der, digest, time, unix_time, nonce, pcr0, *rest = given.split(" ")
    assert Path(root).read_bytes() == kit.root_pem and Path(root_der).read_bytes() == kit.root
    assert Path(document).read_bytes() == case.document
    assert (nonce, pcr0, rest) == (case.nonce.hex(), case.pcr0.hex(), ["{other}", "{"])
    assert unix_time == str(int(kit.time.timestamp()) + 3601) and time.endswith("Z")
    names = {line.partition("=")[0]: line.partition("=")[2] for line in environment}
    assert names == {
        "ATTESTATION_DOCUMENT": document, "ATTESTATION_ROOT": root, "ATTESTATION_ROOT_DER": root_der,
        "ATTESTATION_ROOT_SHA256": digest, "ATTESTATION_TIME": time, "ATTESTATION_UNIX_TIME": unix_time,
        "ATTESTATION_NONCE": nonce, "ATTESTATION_PCR0": pcr0,
    }  # fmt: skip


def test_standard_input(ask: Callable[..., ways.Answer], kit: Kit, tmp_path: Path) -> None:
    """All of it, as it is wanted; who does not read it is not waited for."""
    out = tmp_path / "out"
    case = kit.case("map-large")
    for encoding, text in (
        ("raw", case.document),
        ("base64", base64.b64encode(case.document)),
        ("hex", case.document.hex().encode()),
    ):
        said = ask(f"cat > {out}; echo $#", stdin=True, encoding=encoding, case=case.name)
        assert (said.verdict, said.said, out.read_bytes()) == (ACCEPTED, "0", text)
    assert ask("exit 2", stdin=True, case="map-large").verdict == REFUSED
    ask(f"cp $1 {out}", encoding="hex", case=case.name)
    assert out.read_bytes() == case.document.hex().encode()


def test_a_program_that_is_not_there(kit: Kit, tmp_path: Path) -> None:
    folder = ways.Folder(tmp_path, kit, "raw")
    with pytest.raises(NitroError, match="nowhere .*: could not be started"):
        ways.Program([str(tmp_path / "nowhere")], folder, PATIENCE).ask(kit.case("control"))


# ---- servers ----


class Handler(http.server.BaseHTTPRequestHandler):
    seen: list[tuple[str, dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        what = self.path.strip("/").partition("?")[0]
        if what == "drip":  # a byte now and then, for ever
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"H")
                    self.server.gone.wait(0.05)  # type: ignore[attr-defined]
        if what == "cut":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nx")
            return
        if what == "junk":
            self.wfile.write(b"\xff\xfe\x1b[2J\r\n\r\n")
            return
        self.send_response(int(what))
        self.end_headers()
        self.wfile.write(b"first\nlast \x1b[2J\n" + b"\n" * 10)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    class Own(Handler):
        seen: list[tuple[str, dict[str, str], bytes]] = []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as running:
        running.gone = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", Own.seen
        running.shutdown()
        thread.join()


def test_the_responses_status_is_the_verdict(server: Any, kit: Kit, tmp_path: Path) -> None:
    url, seen = server
    folder = ways.Folder(tmp_path, kit, "raw")
    case = kit.case("control")
    for path, verdict, how in (
        ("200", ACCEPTED, "HTTP status 200"),
        ("204", ACCEPTED, "HTTP status 204"),
        ("403", REFUSED, "HTTP status 403"),
        ("302", NONE, "HTTP status 302"),
        ("500", NONE, "HTTP status 500"),
        ("cut", ACCEPTED, "HTTP status 200"),
        ("junk", NONE, "no answer: "),
    ):
        said = ways.Server(f"{url}/{path}", folder, PATIENCE).ask(case)
        assert said.verdict == verdict and said.how.startswith(how), path
    said = ways.Server(f"{url}/drip", folder, 0.5).ask(case)
    assert (said.verdict, said.how) == (NONE, "no answer within 0.5 s")
    assert all(body == case.document for _, _, body in seen)
    ways.Server(f"{url}/200?n={{nonce}}&t={{time}}", folder, PATIENCE).ask(case)
    path, headers, _ = seen[-1]
    time = f"{case.time:%FT%TZ}"
    assert path == f"/200?n={case.nonce.hex()}&t={time.replace(':', '%3A')}"
    assert headers["content-type"] == "application/cbor" and headers["attestation-time"] == time
    assert (headers["attestation-nonce"], headers["attestation-pcr0"]) == (case.nonce.hex(), case.pcr0.hex())


def test_urls_that_are_none(kit: Kit, tmp_path: Path) -> None:
    folder = ways.Folder(tmp_path, kit, "raw")
    for url in (
        "",
        "localhost:80",
        "ftp://h/",
        "http://",
        "http://h:port/",
        "http://[::1/",
        "http://h/\r\nX: y",
        "http://h/\xe9",
    ):
        with pytest.raises(UsageError):
            ways.Server(url, folder, PATIENCE)
    free = socket.socket()
    free.bind(("127.0.0.1", 0))  # and nobody listens
    with free:
        said = ways.Server(f"http://127.0.0.1:{free.getsockname()[1]}", folder, PATIENCE).ask(
            kit.case("control")
        )
    assert said.verdict == NONE and "refused" in said.how


SERVER = """
import http.server, os, pathlib, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.end_headers()
class Server(http.server.HTTPServer):
    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()
assert pathlib.Path(os.environ["ATTESTATION_ROOT"]).read_bytes() == pathlib.Path(sys.argv[2]).read_bytes()
print("\\x1b[2Jserving")
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_that_never_listens(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended; and where there is no command, nothing is started or waited for."""
    monkeypatch.setattr(ways, "STARTS_WITHIN", 0.0)
    folder = ways.Folder(tmp_path, kit, "raw")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        port = free.getsockname()[1]
        server = ways.Server(f"http://127.0.0.1:{port}", folder, PATIENCE)
        with ways.serving([], folder, server):
            pass
        said = f"^no server listens at 127.0.0.1:{port} after 0 s: Connection refused"
        with pytest.raises(NitroError, match=said), ways.serving(["sleep", "600"], folder, server):
            pytest.fail("it listens")


def test_a_server_of_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    """It is started, waited for, and ended; what it prints is not the answer."""
    with socket.socket() as kept:  # the port is ours until it has it
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        url = f"http://127.0.0.1:{port}/"
        command = [sys.executable, "-c", SERVER, str(port), "{root}"]
        status, out, _ = run(capsys, "--url", url, "--only", "cose-cut", "--json", "--", *command)
        said = answer("nitroctl attest torture", out)
        assert (status, said["by"], said["wrongly_accepted"]) == (1, "http", ["cose-cut"])
        assert said["verifier"] == [*command, url]
        status, _, err = run(capsys, "--url", url, "--", "sh", "-c", "printf 'bad \\033[2J'; exit 3")
        assert (
            status == 1 and "ended with status 3 before it listened" in err and "it said: bad \\x1b[2J" in err
        )
        status, _, err = run(capsys, "--url", url, "--", "server", "{nonce}")
        assert status == 2 and "{nonce} cannot stand in '{nonce}'" in err


# ---- the command ----


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["attest", "torture", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


GOOD_ENOUGH = "chain-long", "nonce-other", "time-second-after"


def test_our_command_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """Wired up as the page has it."""
    verifier = [sys.executable, "-m", "nitroctl", "attest", "verify", "{document}", "--root", "{root}",
                "--at", "{time}", "--nonce", "{nonce}", "--pcr", "0={pcr0}"]  # fmt: skip
    only = [word for name in GOOD_ENOUGH for word in ("--only", name)]
    status, out, _ = run(capsys, *only, "--", *verifier)
    assert (status, out) == (0, f"{len(GOOD_ENOUGH) + 1} right, 0 wrong, 0 where either is right\n")


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--only", "cose-t*", "--only", "cose-cut", "--only", "nonce-null"]
    script = 'case $(wc -c < "$1") in 43??) echo "good \x1b[2J";; *) kill -SEGV $$;; esac'
    status, out, err = run(capsys, *only, "--allow", "cose-tag-*", "--", "sh", "-c", script, "sh")
    assert status == 1 and "\x1b" not in out
    assert [line for line in out.splitlines() if line and not line.startswith(" ")] == [
        "Accepted, and to be refused (1)",
        "Neither accepted nor refused (2)",
        "Wrong, and allowed (3)",
        "Either is right; what it said (1)",
        "Left out (1): it is not given what to compare",
        "2 right, 3 wrong, 1 where either is right",
    ]
    assert "    refuse: not well-formed (RFC 8949 5.3.1)\n    exit status 0, saying: good \\x1b[2J\n" in out
    assert "    killed by SIGSEGV\n" in out and "  nonce-null\n" in out
    status, out, _ = run(capsys, *only, "--allow", "cose-*", "--", "sh", "-c", script, "sh")
    assert status == 0
    status, out, _ = run(capsys, "--only", "cose-cut", "--checks", "nonce", "--", "true")
    assert status == 1 and "It accepted every document" in out


def test_forgeries_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--only", "header-es256", "--only", "signature-zeros", "--", "true")
    lines = [line for line in out.splitlines() if line.startswith(("Acc", "  header", "  signature"))]
    assert status == 1 and lines == [
        "Accepted, and to be refused: forgeries (1)",
        "  signature-zeros: r and s are zero",
        "Accepted, and to be refused (1)",
        "  header-es256: the algorithm is -7, ES256",
    ]


def test_the_answer_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    script = 'printf "%s\\n" "\x1b[2J"; test $(wc -c < "$1") -gt 4000'
    arguments = ("--json", "--only", "cose-*-parts", "--only", "nonce-null", "--seed", "x")
    status, out, err = run(
        capsys,
        *arguments,
        "--at",
        "2026-05-04T14:00+02:00",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        "{document}",
        "{nonce}",
    )
    said = answer("nitroctl attest torture", out)
    assert (status, err, said["time"], said["by"], said["left_out"]) == (
        1,
        "",
        "2026-05-04T12:00:00Z",
        "file",
        [],
    )
    assert said["wrongly_accepted"] == ["cose-three-parts", "cose-five-parts", "nonce-null"]
    assert (said["right"], said["no_verdict"], said["wrongly_refused"]) == (1, [], [])
    assert [one["name"] for one in said["items"]][0] == "control"
    assert said["items"][1]["said"] == "\x1b[2J" and said["items"][1]["fault"] == "wrongly accepted"


def test_who_refuses_the_control_is_not_wired_up(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--json", "--", "sh", "-c", "printf 'no \\033[2J root'; exit 1")
    error = failure(out)
    assert (status, error["class"]) == (1, "NitroError") and "\x1b" not in err
    assert error["message"].endswith("is good: exit status 1") and error["lines"] == [
        "it said: no \\x1b[2J root"
    ]
    assert "{root} or $ATTESTATION_ROOT" in error["hint"]


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--list", "--json", "--only", "nonce-*")
    items = answer("nitroctl attest torture --list", out)["items"]
    assert status == 0 and {one["name"] for one in items} >= {"nonce-null"} and items[0]["needs"] == ["nonce"]
    assert "cose-tag " in run(capsys, "--list")[1]


def test_the_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Another program has all that it needs from the index."""
    folder = tmp_path / "kit"
    status, out, _ = run(capsys, "--output", folder, "--only", "cose-t*", "--only", "time-*-second", "--json")
    said = answer("nitroctl attest torture --output", out)
    index = json.loads(Path(said["index"]).read_text())
    assert (status, said["documents"], index["schema"]) == (0, len(index["items"]), 1)
    assert {path.name for path in folder.iterdir()} == {
        "index.json", index["root"], index["root_der"], *(one["file"] for one in index["items"]),
    }  # fmt: skip
    for one in index["items"]:
        at = instants.parse(one["time"])
        document = (folder / one["file"]).read_bytes()
        try:
            verify(document, folder / index["root"], Policy(at=at, nonce=bytes.fromhex(one["nonce"])))
            accepted = True
        except why.AttestationError:
            accepted = False
        assert one["expected"] in ("either", "accept" if accepted else "refuse"), one["name"]
    status, _, err = run(capsys, "--output", folder)
    assert status == 1 and "cannot write" in err and "a new folder" in err


def test_what_cannot_be_meant(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        ([], "there is no verifier"),
        (["--by", "http", "--", "true"], "--by http and --url URL go together"),
        (["--by", "file", "--url", "http://h/", "--", "true"], "go together"),
        (["--only", "nothing", "--", "true"], "no case is named 'nothing'"),
        (["--allow", "nothing", "--", "true"], "no case is named 'nothing'"),
        (["--checks", "time,tea", "--", "true"], "'tea' is nothing to check: time, nonce, pcr0"),
        (["--at", "tomorrow", "--", "true"], "'tomorrow' is no time"),
        (["--at", "2100-01-01", "--", "true"], "the years 2001 to 2038"),
    ):
        status, _, err = run(capsys, *arguments)
        said = " ".join(err.replace("\u2502", "").split())
        assert (status, text in said) == (2, True), said
