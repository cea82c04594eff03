# SPDX-License-Identifier: MIT
"""The server as its clients see it: boto3 and the AWS CLI sign what they send, by code that is not ours; rude
clients and many at once; TLS and HTTP on one port; faults; what is passed on to another emulator."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, SSLError
from cryptography.hazmat.primitives.serialization import Encoding

from kms_world import ACCOUNT, ADMINISTRATION, ROLE, Enclave, attested, policy
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.base.instants import UTC
from nitroctl.kms import keys, service, sigv4
from nitroctl.kms.local import Kms
from nitroctl.kms.sigv4 import Received

ENCLAVE = Enclave()
REGION = "eu-central-1"


@pytest.fixture(scope="module")
def served() -> Iterator[Kms]:
    root = ENCLAVE.maker.root.public_bytes(Encoding.PEM)
    with Kms(region=REGION, root=root) as kms:
        yield kms


@pytest.fixture
def kms(served: Kms) -> Iterator[Kms]:
    yield served
    served.clear_faults()


def client(kms: Kms, arn: str | None = None, *, retries: int = 1, **more: Any) -> Any:
    variables = kms.environment(arn)
    return boto3.client(
        "kms", endpoint_url=more.pop("endpoint_url", kms.url), region_name=REGION,
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=variables.get("AWS_SESSION_TOKEN"),
        config=Config(retries={"total_max_attempts": retries, "mode": "standard"}), **more,
    )  # fmt: skip


def code(caught: pytest.ExceptionInfo[ClientError]) -> str:
    return str(caught.value.response["Error"]["Code"])


# --- clients ---------------------------------------------------------------------------------------------


def test_boto3_from_a_key_to_the_enclave(kms: Kms, tmp_path: Path) -> None:
    admin, app = client(kms), client(kms, ROLE)
    key = admin.create_key(Policy=policy(ADMINISTRATION, attested()))["KeyMetadata"]["Arn"]
    blob = admin.encrypt(KeyId=key, Plaintext=b"secret", EncryptionContext={"a": "ü"})["CiphertextBlob"]
    recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": ENCLAVE.document()}
    answer = app.decrypt(CiphertextBlob=blob, EncryptionContext={"a": "ü"}, Recipient=recipient)
    assert "Plaintext" not in answer
    assert ENCLAVE.open(tmp_path, answer["CiphertextForRecipient"]) == b"secret"
    with pytest.raises(ClientError, match="is not authorized to perform: kms:Decrypt on resource") as caught:
        app.decrypt(CiphertextBlob=blob, EncryptionContext={"a": "ü"})
    assert code(caught) == "AccessDeniedException"
    assert caught.value.response["ResponseMetadata"]["RequestId"] == kms.events[-1]["requestID"]
    assert admin.describe_key(KeyId=key)["KeyMetadata"]["CreationDate"].tzinfo is not None
    assert kms.wait_event("Decrypt")["userIdentity"]["type"] == "AssumedRole"
    assert kms.events[-1]["sourceIPAddress"] == "127.0.0.1" and "Boto3" in kms.events[-1]["userAgent"]


def test_the_aws_cli(kms: Kms, tmp_path: Path) -> None:
    """By the variables that are printed, and nothing else; the plaintext goes and comes in files."""
    (tmp_path / "plain").write_bytes(b"by the command line")
    environment = {**os.environ, **kms.environment(), "HOME": str(tmp_path), "AWS_PAGER": ""}

    def aws(*words: str) -> Any:
        argv = [sys.executable, "-m", "awscli", "kms", *words, "--output", "json"]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    key = kms.create_key(alias="alias/cli")
    blob = aws("encrypt", "--key-id", "alias/cli", "--plaintext", f"fileb://{tmp_path}/plain")[
        "CiphertextBlob"
    ]
    (tmp_path / "blob").write_bytes(base64.b64decode(blob))
    found = aws("decrypt", "--ciphertext-blob", f"fileb://{tmp_path}/blob")
    assert base64.b64decode(found["Plaintext"]) == b"by the command line" and found["KeyId"] == key


def test_tls_on_the_same_port(kms: Kms) -> None:
    """Under the local CA, for the names that clients insist on, HTTP/1.1 by ALPN; strangers do not trust
    it."""
    url = kms.url.replace("http://", "https://")
    assert client(kms, endpoint_url=url, verify=str(kms.ca)).list_keys()["Keys"] is not None
    assert client(kms).list_keys()["Keys"] is not None
    with pytest.raises(SSLError):
        client(kms, endpoint_url=url).list_keys()
    context = ssl.create_default_context(cafile=str(kms.ca))
    context.set_alpn_protocols(["h2", "http/1.1"])
    port = int(kms.url.rpartition(":")[2])
    for name in ("kms.eu-central-1.amazonaws.com", "kms.us-west-2.amazonaws.com", "localhost"):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            with context.wrap_socket(raw, server_hostname=name) as secured:
                assert secured.selected_alpn_protocol() == "http/1.1"
    # The key that could have signed others is gone, and it would have been no good for other names.
    folder = kms.ca.parent
    assert sorted(path.name for path in folder.iterdir()) == ["ca.pem", "server.key", "server.pem"]
    assert (folder / "server.key").stat().st_mode & 0o777 == 0o600
    text = subprocess.run(
        ["openssl", "x509", "-in", kms.ca, "-noout", "-text"], check=True, capture_output=True
    )
    constraints = text.stdout.decode().partition("X509v3 Name Constraints: critical")[2]
    assert "DNS:amazonaws.com" in constraints and "DNS:localhost" in constraints
    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", kms.ca, "-verify_hostname",
        "kms.us-east-1.amazonaws.com",
         folder / "server.pem"], check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr


def test_the_unix_socket_is_the_same(kms: Kms) -> None:
    """As an enclave comes: with any Host header it likes, which is what it has signed."""
    variables = kms.environment()
    host = f"kms.{REGION}.amazonaws.com"
    headers, body = signed(variables, "ListKeys", host=host)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(kms.socket))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        lines += f"Content-Length: {len(body)}\r\nConnection: close\r\n"
        sock.sendall(f"POST / HTTP/1.1\r\n{lines}\r\n".encode() + body)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"Keys"' in answer
    assert kms.events[-1]["sourceIPAddress"] == "vsock"


# --- signatures ------------------------------------------------------------------------------------------


def signed(
    variables: dict[str, str], operation: str, body: bytes = b"{}", *, host: str, region: str = REGION,
    service: str = "kms",
) -> tuple[dict[str, str], bytes]:  # fmt: skip
    """Headers, signed by botocore."""
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"TrentService.{operation}"}
    request = AWSRequest("POST", f"http://{host}/", data=body, headers=headers | {"Host": host})
    credentials = Credentials(
        variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"], variables.get("AWS_SESSION_TOKEN")
    )
    SigV4Auth(credentials, service, region).add_auth(request)
    return dict(request.headers.items()), body


def post(kms: Kms, headers: dict[str, str], body: bytes = b"{}") -> tuple[int, dict[str, Any]]:
    connection = HTTPConnection(kms.url.removeprefix("http://"), timeout=30)
    try:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_signatures(kms: Kms) -> None:
    host = kms.url.removeprefix("http://")
    admin, session = kms.environment(), kms.environment(ROLE)
    expired = kms.environment(ROLE, seconds=-1)
    good, _ = signed(admin, "ListKeys", host=host)
    assert post(kms, good)[0] == 200

    def refused(headers: dict[str, str], kind: str, text: str, body: bytes = b"{}") -> None:
        status, answer = post(kms, headers, body)
        assert (status, answer["__type"]) == (400, kind) and text in answer["message"], answer
        assert kms.events[-1]["errorCode"] == kind and kms.events[-1]["userIdentity"]["type"] == "Unknown"

    unsigned = {name: value for name, value in good.items() if name != "Authorization"}
    refused(unsigned, "MissingAuthenticationTokenException", "Missing Authentication Token")
    refused(unsigned | {"Authorization": "Bearer x"}, "IncompleteSignatureException", "Unsupported algorithm")
    refused(
        unsigned | {"Authorization": "AWS4-HMAC-SHA256 x"}, "IncompleteSignatureException", "'Credential'"
    )
    wrong = "The request signature we calculated does not match the signature you provided."
    refused(good, "InvalidSignatureException", wrong, b"{ }")
    refused(good | {"X-Amz-Target": "TrentService.ListAliases"}, "InvalidSignatureException", wrong)
    refused(good | {"Host": "kms.eu-central-1.amazonaws.com"}, "InvalidSignatureException", wrong)
    refused(
        good | {"X-Amz-Extra": "1"}, "InvalidSignatureException", "'x-amz-extra' must be a 'SignedHeader'"
    )
    other = {**admin, "AWS_SECRET_ACCESS_KEY": "x"}
    refused(signed(other, "ListKeys", host=host)[0], "InvalidSignatureException", wrong)
    unknown = {**admin, "AWS_ACCESS_KEY_ID": "AKIAXXXXXXXXXXXXXXXX"}
    invalid = "The security token included in the request is invalid."
    refused(signed(unknown, "ListKeys", host=host)[0], "UnrecognizedClientException", invalid)
    tokenless = {name: value for name, value in session.items() if name != "AWS_SESSION_TOKEN"}
    refused(signed(tokenless, "ListKeys", host=host)[0], "UnrecognizedClientException", invalid)
    refused(signed(expired, "ListKeys", host=host)[0], "ExpiredTokenException", "is expired")
    refused(
        signed(admin, "ListKeys", host=host, region="us-east-1")[0],
        "InvalidSignatureException",
        "valid region",
    )
    refused(
        signed(admin, "ListKeys", host=host, service="sts")[0], "InvalidSignatureException", "correct service"
    )
    status, answer = post(kms, signed(session, "ListKeys", host=host)[0])
    assert (status, answer["__type"]) == (400, "AccessDeniedException")
    assert "because no identity-based policy allows the kms:ListKeys action" in answer["Message"]


def test_the_clock_of_a_signature() -> None:
    """Five minutes on either side, as AWS has it; the times are given, nothing waits."""
    credential = sigv4.Credential("AKIA", "secret", None, ROLE, None, None)
    headers, body = signed(
        {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret"}, "ListKeys", host="localhost"
    )
    request = Received("POST", "/", list(headers.items()), body)
    at = datetime.strptime(headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    for minutes in (-4.9, 0, 4.9):
        assert (
            sigv4.verify(request, REGION, lambda _: credential, at + timedelta(minutes=minutes)) == credential
        )
    for minutes, text in ((5.1, "Signature expired"), (-5.1, "Signature not yet current")):
        with pytest.raises(Exception, match=text):
            sigv4.verify(request, REGION, lambda _: credential, at + timedelta(minutes=minutes))


def test_without_authentication(tmp_path: Path) -> None:
    """Who signs nothing is the administrator; who names an access key is believed."""
    with Kms(tmp_path / "kms", region=REGION, authenticate=False, tls=False) as kms:
        assert post(kms, {"X-Amz-Target": "TrentService.ListKeys"})[0] == 200
        session = {**kms.environment(ROLE), "AWS_SECRET_ACCESS_KEY": "whatever"}
        status, answer = post(kms, signed(session, "ListKeys", host="x")[0])
        assert (status, answer["__type"]) == (400, "AccessDeniedException")


# --- faults ----------------------------------------------------------------------------------------------


def test_faults(kms: Kms) -> None:
    patient, hasty = client(kms, retries=4), client(kms)
    kms.inject("throttle@ListKeys*2", "internal@ListKeys*1")
    assert patient.list_keys()["ResponseMetadata"]["RetryAttempts"] == 3  # and the fourth is served
    for word, kind, status in (
        ("throttle", "ThrottlingException", 400), ("internal", "KMSInternalException", 500),
        ("unavailable", "KeyUnavailableException", 500), ("timeout", "DependencyTimeoutException", 500),
        ("expired", "ExpiredTokenException", 400),
    ):  # fmt: skip
        kms.inject(f"{word}*1")
        with pytest.raises(ClientError) as caught:
            hasty.list_keys()
        assert (code(caught), caught.value.response["ResponseMetadata"]["HTTPStatusCode"]) == (kind, status)
    kms.inject("slow=0.3@ListAliases*1", "throttle@Decrypt")
    begin = time.monotonic()
    hasty.list_keys()  # for another operation
    hasty.list_aliases()
    assert time.monotonic() - begin >= 0.3
    for text in ("nonsense", "throttle=3", "slow", "slow=9999", "slow=1.2.3", "throttle*x"):
        with pytest.raises(UsageError):
            kms.inject(text)


# --- hostile ---------------------------------------------------------------------------------------------


def raw(kms: Kms, data: bytes) -> bytes:
    """What comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", int(kms.url.rpartition(":")[2])), timeout=30) as sock:
        sock.sendall(data)
        with contextlib.suppress(OSError):  # the server may have reset it by now: this is no TLS
            sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_what_is_no_request(kms: Kms) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: TrentService.ListKeys\r\n"
    for data, status in (
        (b"nonsense\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b" 400 "),
        (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", b" 501 "),
        (b"POST /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", b" 414 "),
        (b"POST / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(200)) + b"\r\n", b" 431 "),
        (head + b"Content-Length: 99999999\r\n\r\n", b" 413 "),
        (head + b"Content-Length: -1\r\n\r\n", b" 400 "),
        (head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b" 411 "),
        (head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b" 411 "),
        (head.replace(b"Trent", b"Tent") + b"\r\n", b" 400 "),
        (head.replace(b" / ", b" http://kms.x.amazonaws.com/ ") + b"\r\n", b" 400 "),
        (head + b"Host: y\r\n\r\n", b" 400 "),
    ):  # fmt: skip
        answer = raw(kms, data)
        assert status in answer.partition(b"\r\n")[0], (data[:60], answer[:200])
        assert b'"__type"' in answer
    assert raw(kms, head + b"Content-Length: 10\r\n\r\n{}") == b""  # it went away in the midst
    with contextlib.suppress(ConnectionResetError):
        assert raw(kms, b"\x16\x03\x01nonsense")[:1] in (b"", b"\x15")  # a TLS alert, or nothing
    assert client(kms).list_keys()["Keys"] is not None


def test_bodies_that_would_be_dear(tmp_path: Path) -> None:
    with Kms(tmp_path / "kms", region=REGION, authenticate=False, tls=False) as kms:
        deep, wide = b"[" * 500_000, b'{"a":' * 100_000
        for body in (deep, wide, b'{"KeyId": ' + b"9" * 900_000 + b"}", b"\xff" * 1000):
            status, answer = post(kms, {"X-Amz-Target": "TrentService.DescribeKey"}, body)
            assert (status, answer["__type"]) == (400, "SerializationException")
        document = base64.b64encode(b"\x9f" * 262144).decode()
        recipient = {"AttestationDocument": document, "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
        body = json.dumps({"NumberOfBytes": 1, "Recipient": recipient}).encode()
        status, answer = post(kms, {"X-Amz-Target": "TrentService.GenerateRandom"}, body)
        assert (status, answer["__type"]) == (400, "ValidationException")


def test_what_nobody_thought_of_is_an_answer_and_an_event(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it happens: the client is told that it may try again, and the server goes on."""
    for module, name in ((service, "verify_signature"), (service, "to_json"), (keys, "sweep")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_: [][0])
            with pytest.raises(ClientError) as caught:
                client(kms).list_keys()
        assert code(caught) == "KMSInternalException"
        assert kms.events[-1]["why"]["text"] == "IndexError: list index out of range"
    assert client(kms).list_keys()["Keys"] is not None


def test_slow_clients_hold_up_nobody(kms: Kms) -> None:
    port = int(kms.url.rpartition(":")[2])
    slow = []
    try:
        for data in (b"", b"POST / HT", b"\x16", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n{") * 25:
            slow.append(socket.create_connection(("127.0.0.1", port)))
            slow[-1].sendall(data)
        assert client(kms).list_keys()["Keys"] is not None
    finally:
        for sock in slow:
            sock.close()


def test_a_thousand_requests_at_once(kms: Kms) -> None:
    """All connections are open before the first request is sent; each gets its answer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard)
    )  # both ends are in this process
    port, host = int(kms.url.rpartition(":")[2]), kms.url.removeprefix("http://")
    headers, body = signed(kms.environment(), "GenerateRandom", b'{"NumberOfBytes": 8}', host=host)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = (
        f"POST / HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    )
    clients = [socket.create_connection(("127.0.0.1", port), timeout=120) for _ in range(1000)]
    try:
        for sock in clients:
            sock.sendall(request)
        answers = [b"".join(iter(lambda s=sock: s.recv(65536), b"")) for sock in clients]  # type: ignore[misc]
    finally:
        for sock in clients:
            sock.close()
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    secrets = {json.loads(answer.partition(b"\r\n\r\n")[2])["Plaintext"] for answer in answers}
    assert len(secrets) == 1000


# --- other services --------------------------------------------------------------------------------------


class Emulator(BaseHTTPRequestHandler):
    """Answers everything, as an emulator with a KMS of its own would."""

    seen: list[tuple[str, str]] = []

    def _answer(self) -> None:
        self.seen.append((self.command, self.path))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("X-Emulator", "1")
        self.end_headers()
        self.wfile.write(b"from upstream")

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_other_services_are_passed_on_and_kms_never(tmp_path: Path) -> None:
    upstream = HTTPServer(("127.0.0.1", 0), Emulator)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    Emulator.seen = []
    url = f"http://127.0.0.1:{upstream.server_port}"
    try:
        with Kms(tmp_path / "kms", region=REGION, upstream=url, tls=False) as kms:

            def ask(method: str, path: str, **headers: str) -> tuple[int, bytes]:
                connection = HTTPConnection(kms.url.removeprefix("http://"), timeout=30)
                connection.request(method, path, b"x", {k.replace("_", "-"): v for k, v in headers.items()})
                answer = connection.getresponse()
                return answer.status, answer.read()

            assert ask("PUT", "/bucket/object") == (200, b"from upstream")
            assert ask("POST", "/?Action=GetCallerIdentity") == (200, b"from upstream")
            kms_scope = "AWS4-HMAC-SHA256 Credential=AKIA/20260101/eu-central-1/kms/aws4_request, x"
            for refused in (
                ask("POST", "/", X_Amz_Target="TrentService.Decrypt"),
                ask("POST", "/", X_Amz_Target="trentservice.Decrypt"),
                ask("POST", "/", Host="kms.eu-central-1.amazonaws.com"),
                ask("POST", "/", Authorization=kms_scope),
                ask("POST", "/service/TrentService/operation/Decrypt"),
                ask("POST", "/moto-api/reset"),
                ask("POST", "/moto%2Dapi/reset"),
                ask("POST", "/%6doto-api/reset"),
                ask("POST", "/bucket/..//./moto-api/reset"),
                ask("POST", "http://kms.eu-central-1.amazonaws.com/?Action=Decrypt"),
                ask("POST", "/?X-Amz-Credential=AKIA%2f20260101%2feu-central-1%2fkms%2faws4_request"),
                ask("GET", "/_localstack/health"),
            ):
                assert refused[0] in (400, 403), refused
            assert Emulator.seen == [("PUT", "/bucket/object"), ("POST", "/?Action=GetCallerIdentity")]
            upstream.shutdown()
            upstream.server_close()
            assert ask("GET", "/bucket")[0] == 502
    finally:
        upstream.server_close()
    for wrong in ("moto", "ftp://x", "http://x:99999", "http://"):
        with pytest.raises(UsageError):
            Kms(upstream=wrong)


# --- its life --------------------------------------------------------------------------------------------


def test_it_ends_and_leaves_nothing(tmp_path: Path) -> None:
    with Kms(tmp_path / "kms", tls=False) as kms:
        url, path = kms.url, kms.socket
        blob = kms.encrypt(kms.create_key(), b"kept")
        idle = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    # It was taken, or waited to be: that one is reset.
    with idle, contextlib.suppress(ConnectionResetError):
        assert idle.recv(1) == b""
    assert not path.exists() and not path.parent.exists()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    with Kms(tmp_path / "kms", tls=False) as kms:
        assert kms.decrypt(blob) == b"kept"
        with pytest.raises(NitroError, match="InvalidCiphertext: the ciphertext was altered, or"):
            kms.decrypt(blob, {"a": "b"})
    with Kms() as kms:
        folder = kms.service.store.folder
    assert not folder.exists()


def test_wrong_options(tmp_path: Path) -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"account": "1"}, "is not an account id"), ({"region": "nowhere/"}, "not the name of a region"),
        ({"form": "der"}, "is unknown; use one of"), ({"inject": ["x"]}, "is not of the form"),
    )  # fmt: skip
    for options, text in wrong:
        with pytest.raises(UsageError, match=text):
            Kms(tmp_path, **options)
    with pytest.raises(NitroError, match="is not HOST:PORT"):
        Kms(tmp_path / "kms", listen="8000", tls=False).start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(NitroError, match="Address already in use"):
            Kms(tmp_path / "kms", listen=address, tls=False).start()


def test_a_caller_of_another_account(kms: Kms) -> None:
    """His credentials are made as any others'; both policies have to allow."""
    stranger = "arn:aws:iam::111122223333:role/theirs"
    key = kms.create_key(policy=policy({**attested(), "Principal": {"AWS": stranger}, "Condition": {}}),
                         BypassPolicyLockoutSafetyCheck=True)  # fmt: skip
    blob = kms.encrypt(key, b"x")
    theirs = client(kms, stranger)
    with pytest.raises(ClientError, match="no identity-based policy"):
        theirs.decrypt(CiphertextBlob=blob)
    own = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": key}
    kms.environment(stranger, policy=policy(own))
    assert theirs.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
    assert ACCOUNT in key


def test_many_threads_share_it(kms: Kms) -> None:
    key = kms.create_key()
    with ThreadPoolExecutor(8) as pool:
        texts = [f"{i}".encode() for i in range(40)]
        assert list(pool.map(lambda text: kms.decrypt(kms.encrypt(key, text)), texts)) == texts
