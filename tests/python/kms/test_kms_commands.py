# SPDX-License-Identifier: MIT
"""`nitroctl kms`: its options and output; what it does is tested where it is done."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from eifmodel import RAMDISK, TINY, measure, pack
from jsonpage import answer
from kms_world import ADMINISTRATION, IMAGE, ROLE, attested, policy
from nitroctl import cli
from nitroctl.vsock import sockets

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """(status, stdout, stderr) of one command, on a store of the test's."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["kms", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def good(result: tuple[int, str, str]) -> str:
    assert result[0] == 0, result
    return result[1].strip()


def keys(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer("nitroctl kms key ls", good(run("key", "ls", "--json")))["items"]
    return found


def test_keys_aliases_and_policies(run: Run, tmp_path: Path) -> None:
    text = policy(ADMINISTRATION, attested())
    (tmp_path / "policy.json").write_text(text)
    arn = good(run("key", "create", "--alias", "alias/app", "--policy", "policy.json"))
    assert arn.startswith("arn:aws:kms:us-east-1:000000000000:key/")
    assert json.loads(good(run("policy", "get", "alias/app"))) == json.loads(text)
    (tmp_path / "wrong.json").write_text(text.replace("Decrypt", "Decrpyt"))
    status, _, err = run("policy", "put", "alias/app", "wrong.json")
    assert status == 1 and "kms:Decrpyt is not an action of KMS" in err and "Traceback" not in err
    (tmp_path / "more.json").write_text(policy(ADMINISTRATION))
    good(run("policy", "put", arn, "more.json"))
    (tmp_path / "secret").write_bytes(b"secret")
    blob = good(run("encrypt", "alias/app", "secret", "--context", "App=x"))
    good(run("encrypt", "alias/app", "secret", "-o", "blob"))
    assert len(base64.b64decode(blob)) == (tmp_path / "blob").stat().st_size
    good(run("key", "rotate", "alias/app"))
    other = good(run("key", "create", "--spec", "RSA_2048", "--usage", "SIGN_VERIFY"))
    assert "only symmetric encryption keys can be rotated" in run("key", "rotate", other)[2]
    good(run("alias", "set", "alias/sign", other))
    assert "alias/app" in (listed := good(run("key", "ls"))) and "SIGN_VERIFY" in listed
    assert [k["aliases"] for k in keys(run)] == [
        ["alias/app"],
        ["alias/sign"],
    ]
    good(run("alias", "rm", "alias/sign"))
    assert good(run("alias", "ls")) == f"alias/app  {arn.rpartition('/')[2]}"
    assert "will be deleted on" in run("key", "rm", other)[2]
    good(run("key", "rm", "alias/app", "--now"))
    status, _, err = run("policy", "get", "alias/app")
    assert status == 1 and "NotFound" in err
    assert "DescribeKey by the store's owner: NotFoundException" in good(run("events", "--denied", "-n", "1"))


def test_imported_keys_are_the_ones_in_the_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(32))
    subprocess.run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out",
    "ec.pem"],
                   check=True, capture_output=True)  # fmt: skip
    good(run("key", "import", "raw", "--alias", "alias/raw"))
    good(
        run(
            "key",
            "import",
            "ec.pem",
            "--spec",
            "ECC_NIST_P256",
            "--usage",
            "SIGN_VERIFY",
            "--alias",
            "alias/ec",
        )
    )
    assert [(k["metadata"]["Origin"], k["state"]) for k in keys(run)] == [("EXTERNAL", "Enabled")] * 2
    for words, text in (
        (("raw", "--spec", "RSA_2048"), "it is not a DER PKCS #8 private key"),
        (("raw", "--spec", "X"), "there is no spec X"),
        (("ec.pem",), "SYMMETRIC_DEFAULT has 32 bytes, this has"),
        (("nothing",), "cannot read nothing: No such file"),
    ):
        status, _, err = run("key", "import", *words)
        assert status == 1 and text in err, err
    assert len(keys(run)) == 2


def test_credentials(run: Run, tmp_path: Path) -> None:
    said = good(run("credentials", ROLE, "--session", "worker", "--json"))
    variables = answer("nitroctl kms credentials", said)["variables"]
    assert variables["AWS_ACCESS_KEY_ID"].startswith("ASIA") and variables["AWS_SESSION_TOKEN"]
    shell = good(run("credentials"))
    shown = subprocess.run(["sh", "-c", f"{shell}\nprintenv AWS_ACCESS_KEY_ID AWS_REGION"], check=True,
                           capture_output=True, text=True).stdout.split()  # fmt: skip
    assert shown[0].startswith("AKIA") and shown[1] == "us-east-1"
    for words, text in (
        (("app",), "is not the ARN of a user or a role"),
        (("--session", "x1"), "are of the user or role ARN"),
        ((ROLE, "--session", "x y"), "is not a session name"),
    ):
        status, _, err = run("credentials", *words)
        assert status == 2 and text in err
    (tmp_path / "iam.json").write_text(policy(attested()))
    status, _, err = run("credentials", ROLE, "--policy", "iam.json")
    assert status == 1 and "an IAM policy must not have a Principal" in err


def image(path: Path, text: bytes) -> str:
    """An EIF; its PCR0, computed from its parts."""
    sections = [*TINY[:-1], (RAMDISK, text)]
    path.write_bytes(pack(sections))
    return measure(sections)[0]


def test_policies_are_judged_and_tried_with_images(run: Run, tmp_path: Path) -> None:
    pcr0 = image(tmp_path / "app.eif", b"app")
    image(tmp_path / "other.eif", b"other")
    (tmp_path / "policy.json").write_text(policy(ADMINISTRATION, attested(pcr0)))
    assert run("policy", "lint", "policy.json", "--eif", "app.eif") == (0, "", "")
    status, out, _ = run("policy", "lint", "policy.json", "--eif", "other.eif", "--json")
    assert status == 1 and [found["rule"] for found in answer("nitroctl kms policy lint", out)["items"]] == [
        "no-image"
    ]
    status, out, err = run("policy", "test", "policy.json", "--eif", "app.eif", "--role", ROLE)
    assert (status, err) == (0, "") and out.startswith('allowed by statement 2 ("Enclave") of the key policy')
    assert run("policy", "test", "policy.json", "--eif", "app.eif")[0] == 0  # the role is supposed
    for words, text in (
        (("--eif", "other.eif"), f"the policy wants {pcr0}"),
        (("--eif", "app.eif", "--debug-mode"), f"ImageSha384 is {'0' * 96}"),
        (("--no-document",), "ImageSha384 is absent"),
        (
            ("--eif", "app.eif", "--role", f"{ROLE}2"),
            "it is not for arn:aws:sts::000000000000:assumed-role/app2",
        ),
        (("--eif", "app.eif", "--action", "kms:GenerateDataKey"), "it is not about kms:GenerateDataKey"),
    ):
        status, out, _ = run("policy", "test", "policy.json", *words)
        assert status == 1 and out.startswith("denied") and text in out, out
    # Its role is in PCR3, its instance in PCR4 (the values stand in AWS's user guide).
    webserver = (
        "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75329dccd99aa5f6ef4fc1f1a452e315b9e98f9e312e6921e6"
    )
    role = "arn:aws:iam::123456789012:role/Webserver"
    condition = {"StringEquals": {"kms:RecipientAttestation:PCR3": webserver}}
    statement = {**attested(), "Principal": {"AWS": role}, "Condition": condition}
    (tmp_path / "role.json").write_text(policy(statement))
    assert run("policy", "test", "role.json", "--eif", "app.eif", "--role", role)[0] == 0
    # The root statement left in: anybody whom IAM allows it, enclave or not.
    (tmp_path / "open.json").write_text(policy({**ADMINISTRATION, "Action": "kms:*"}))
    status, out, _ = run("policy", "test", "open.json", "--no-document", "--json")
    assert status == 0
    assert answer("nitroctl kms policy test", out)["policy"] == "an IAM policy that allows kms:*"
    assert run("policy", "test", "open.json", "--no-document", "--no-iam")[0] == 1
    for wrong in (
        ("policy.json",),
        ("policy.json", "--pcr", "0=ab"),
        ("policy.json", "--no-document", "--action", "x"),
    ):
        assert run("policy", "test", *wrong)[0] == 2
    assert run("policy", "test", "nothing.json", "--no-document")[0] == 1


def test_serve(tmp_path: Path) -> None:
    """What it prints is enough for a client; SIGTERM ends it; events are told and kept."""
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "AWS_REGION": "eu-north-1"}
    image(tmp_path / "app.eif", b"app")
    argv = [
        sys.executable,
        "-m",
        "nitroctl",
        "kms",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--eif",
        str(tmp_path / "app.eif"),
    ]
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout and server.stderr
        try:
            assert server.stderr.readline().startswith(
                "KMS of account 000000000000 in eu-north-1 at http://127.0.0.1:"
            )
            lines = [server.stdout.readline().removeprefix("export ").strip() for _ in range(5)]
            found = dict(line.split("=", 1) for line in lines)
            client = boto3.client(
                "kms", endpoint_url=found["AWS_ENDPOINT_URL_KMS"], region_name=found["AWS_REGION"],
                aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
            )  # fmt: skip
            client.create_key(Policy=policy(ADMINISTRATION, attested(IMAGE)))
        finally:
            server.send_signal(signal.SIGTERM)
        assert "CreateKey by arn:aws:iam::000000000000:user/admin: ok" in server.stderr.read()
        assert server.wait() == 0


def test_serve_refuses_what_cannot_be(run: Run) -> None:
    for words, status, text in (
        (("--listen", "x"), 1, "is not HOST:PORT"),
        (("--account", "12"), 2, "is not an account id"),
        (("--inject", "x"), 2, "is not of the form"),
        (("--upstream", "x"), 2, "is not of the form http://HOST:PORT"),
        (("--root", "nothing.pem"), 1, "cannot read the root certificate"),
        (("--eif", "nothing.eif"), 1, "nothing.eif"),
    ):
        found: Any = run("serve", "--listen", "127.0.0.1:0", *words)
        assert found[0] == status and text in found[2], found


def test_serve_by_a_vsock_port_and_a_socket_that_it_was_given(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which a signal would end: asked where it waits for one. Events are lines of JSON."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    told: list[str] = []

    def ask(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: kms\r\nX-Amz-Target: TrentService.ListKeys\r\n"
                               b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")  # fmt: skip
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            told.append(answer.partition(b"\r\n\r\n")[2].decode())

    def waits(_: object) -> None:
        ask(socket.create_connection(address))
        enclave = socket.socket(socket.AF_UNIX)
        enclave.connect(str(sockets.shared_ports()) + "_8000")
        ask(enclave)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        monkeypatch.setattr(signal, "sigwait", waits)
        words = ("--no-auth", "--json", "--vsock", "8000", "--listen-fd", str(listener.detach()))
        status, out, err = run("serve", *words)
    assert (status, err) == (0, "Enclaves reach it on CID 3, port 8000\n")
    assert [json.loads(text)["Keys"] for text in told] == [[], []]
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["sourceIPAddress"] for event in events] == ["127.0.0.1", "vsock"]
    assert {event["eventName"] for event in events} == {"ListKeys"}
    status, out, _ = run("events", "--json")
    assert status == 0 and [json.loads(line) for line in out.splitlines()] == events
    monkeypatch.setattr(signal, "sigwait", lambda _: None)
    status, _, err = run("serve", "--listen", "127.0.0.1:0", "--tls")
    ca = Path(err.rpartition("TLS on the same port, under the CA ")[2].strip())
    assert status == 0 and ca.read_text().strip() == good(run("ca"))


def test_policies_with_values_given_by_hand(run: Run, tmp_path: Path) -> None:
    """An instance's PCR4 is SHA-384 of 48 zeros and its id, as AWS's user guide computes it."""
    instance = "i-1234567890abcdef0"
    pcr4 = hashlib.sha384(bytes(48) + instance.encode()).hexdigest()
    prefix = "kms:RecipientAttestation"
    condition = {"StringEquals": {f"{prefix}:PCR4": pcr4, f"{prefix}:PCR16": IMAGE,
                                  "kms:EncryptionContext:App": "a=b"}}  # fmt: skip
    statement = {**attested(), "Condition": condition}
    (tmp_path / "policy.json").write_text(policy(ADMINISTRATION, statement))
    test = ("policy", "test", "policy.json", "--role", ROLE)
    given = ("--pcr", f"16={IMAGE.upper()}", "--instance-id", instance, "--context", "App=a=b")
    assert run(*test, *given)[0] == 0
    for wrong, text in (
        ((*given[2:],), "PCR16 is "),
        ((*given[:2], *given[4:]), "PCR4 is "),
        ((*given[:4], "--context", "App=a"), "EncryptionContext:App is a,"),
    ):
        status, out, _ = run(*test, "--pcr", f"0={IMAGE}", *wrong)
        assert status == 1 and text in out, out
    status, _, err = run(*test, *given[:4], "--context", "App")
    assert status == 2 and "--context App is not NAME=VALUE" in err
    status, _, err = run(*test, "--action", "kms:Sign", *given)
    assert status == 1 and "kms:Sign takes no Recipient" in err


def test_what_lint_finds_is_told_line_by_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(policy(ADMINISTRATION, attested("0" * 96), attested("abc")))
    status, out, err = run("policy", "lint", "policy.json")
    assert (status, err) == (1, "")
    zeros, short = out.splitlines()
    assert zeros.startswith('statement 2 ("Enclave") of the key policy: ') and zeros.endswith("[all-zeros]")
    assert short.startswith('statement 3 ("Enclave") of the key policy: ') and short.endswith("[not-a-pcr]")
    (tmp_path / "policy.json").write_bytes(b"\xff{}")
    status, _, err = run("policy", "lint", "policy.json")
    assert status == 1 and "policy.json is no text in UTF-8" in err
