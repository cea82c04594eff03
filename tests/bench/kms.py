# SPDX-License-Identifier: MIT
"""How many Decrypts with a Recipient the local KMS answers in a second, beside moto's plain Decrypt, which
verifies nothing, and where the time goes.

    python tests/bench/kms.py [--runs 5] [--requests 200]

Both servers are processes of their own, asked in turns over one kept connection with requests that were
signed before. moto is no dependency of ours: `pip install moto flask flask-cors`; without it its row says so.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import machine
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from common import alternate, table
from cryptography.hazmat.primitives.serialization import Encoding

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from kms_world import ADMINISTRATION, ROLE, Enclave, World, allow, attested, policy  # noqa: E402
from nitroctl.kms import envelope  # noqa: E402
from nitroctl.kms.local import Kms  # noqa: E402

REGION = "eu-central-1"
SERVE = """
import signal, sys
from nitroctl.kms.local import Kms
kms = Kms(sys.argv[1], region="eu-central-1", root=sys.argv[2], tls=False).start()
print(kms.url, flush=True)
signal.pause()
"""
MOTO = """
import signal
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
signal.pause()
"""


@contextmanager
def server(code: str, *arguments: str) -> Iterator[str]:
    """The address of a server in a process of its own."""
    argv = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            while not (line := process.stdout.readline()).startswith("http"):
                if not line:
                    raise SystemExit("a server did not start")
            yield line.strip()
        finally:
            process.kill()


class Client:
    def __init__(self, url: str, variables: dict[str, str]) -> None:
        self._host = url.removeprefix("http://")
        self._connection = HTTPConnection(self._host, timeout=60)
        self._credentials = Credentials(
            variables["AWS_ACCESS_KEY_ID"],
            variables["AWS_SECRET_ACCESS_KEY"],
            variables.get("AWS_SESSION_TOKEN"),
        )

    def signed(self, operation: str, **parameters: Any) -> tuple[dict[str, str], bytes]:
        body = json.dumps(parameters, default=lambda data: base64.b64encode(data).decode()).encode()
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"TrentService.{operation}"}
        request = AWSRequest(
            "POST", f"http://{self._host}/", data=body, headers=headers | {"Host": self._host}
        )
        SigV4Auth(self._credentials, "kms", REGION).add_auth(request)
        return dict(request.headers.items()), body

    def send(self, request: tuple[dict[str, str], bytes]) -> Any:
        self._connection.request("POST", "/", request[1], request[0])
        answer = self._connection.getresponse()
        data = json.loads(answer.read())
        if answer.status != 200:
            raise SystemExit(f"{self._host}: {data}")
        return data

    def rate(self, count: int, operation: str, **parameters: Any) -> Callable[[], float]:
        def run() -> float:
            request = self.signed(operation, **parameters)
            begin = time.monotonic()
            for _ in range(count):
                self.send(request)
            return count / (time.monotonic() - begin)

        return run


def stages(enclave: Enclave, count: int) -> list[tuple[str, str]]:
    """Milliseconds of each part of a request, without any transport."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), enclave)
        key = world.key(ADMINISTRATION, attested())
        blob, recipient = world.secret(key), enclave.recipient()
        given = {**recipient, "AttestationDocument": base64.b64decode(recipient["AttestationDocument"])}
        verified = world.service.verifier.verify(given)
        fresh = World(Path(folder) / "fresh", enclave).service.verifier

        def first() -> None:
            fresh._check_path._paths.clear()
            fresh.verify(given)

        parts: dict[str, Callable[[], Any]] = {
            "the whole": lambda: world.call("Decrypt", world.role, CiphertextBlob=blob, Recipient=recipient),
            "document, chain known": lambda: world.service.verifier.verify(given),
            "document, chain new": first,
            "envelope (RSA, AES)": lambda: envelope.seal(b"secret", verified.key, verified.spki),
            "store (DescribeKey by its owner)": lambda: world.call("DescribeKey", KeyId=key),
            "policy beside it (DescribeKey by a role)": lambda: world.call(
                "DescribeKey", world.role, KeyId=key
            ),
        }
        world.call(
            "PutKeyPolicy",
            KeyId=key,
            Policy=policy(ADMINISTRATION, attested(), allow(ROLE, "kms:DescribeKey")),
        )
        rows = []
        for name, part in parts.items():
            begin = time.monotonic()
            for _ in range(count):
                part()
            rows.append((name, f"{(time.monotonic() - begin) * 1000 / count:.2f} ms"))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", default=5, type=int)
    parser.add_argument("--requests", default=200, type=int)
    given = parser.parse_args()
    enclave = Enclave()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "root.pem").write_bytes(enclave.maker.root.public_bytes(Encoding.PEM))
        with Kms(folder / "kms", region=REGION, listen=None, tls=False) as kms:
            key = kms.create_key(policy=policy(ADMINISTRATION, attested()))
            plain = kms.create_key(policy=policy(ADMINISTRATION, allow(ROLE, "kms:Decrypt")))
            blobs = kms.encrypt(key, b"secret"), kms.encrypt(plain, b"secret")
            variables = kms.environment(ROLE)
        url = stack.enter_context(server(SERVE, str(folder / "kms"), str(folder / "root.pem")))
        ours = Client(url, variables)
        count = given.requests
        contenders = {
            "ours, with a Recipient": ours.rate(
                count, "Decrypt", CiphertextBlob=blobs[0], Recipient=enclave.recipient()
            ),
            "ours, plain": ours.rate(count, "Decrypt", CiphertextBlob=blobs[1]),
        }
        if importlib.util.find_spec("moto"):
            secret = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "x"}
            moto = Client(stack.enter_context(server(MOTO)), secret)
            made = moto.send(moto.signed("CreateKey"))["KeyMetadata"]["KeyId"]
            blob = moto.send(moto.signed("Encrypt", KeyId=made, Plaintext=b"secret"))["CiphertextBlob"]
            contenders["moto, plain"] = moto.rate(count, "Decrypt", CiphertextBlob=base64.b64decode(blob))
        series = alternate(contenders, given.runs)
        rows = [(name, f"{one} requests/s") for name, one in series.items()]
        if peer := series.get("moto, plain"):
            ratio = series["ours, with a Recipient"].median / peer.median
            rows.append(("with a Recipient : moto's plain", f"{ratio:.2f}"))
        else:
            rows.append(("moto, plain", "not installed: pip install moto flask flask-cors"))
        table("Decrypt, one client", rows)
    table("Where the time of a Decrypt with a Recipient goes", stages(enclave, given.requests))

    table("The machine meanwhile", machine.rows())


if __name__ == "__main__":
    main()
