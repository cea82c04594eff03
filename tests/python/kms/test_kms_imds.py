# SPDX-License-Identifier: MIT
"""The stand-in for the instance's metadata service: botocore's own provider takes its credentials, and the
local KMS knows them; it ends with the program that `nitroctl parent --imds` ran."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import boto3
import pytest

from kms_world import ROLE, allow, policy
from nitroctl.base.errors import UsageError
from nitroctl.kms import imds
from nitroctl.kms.imds import Instance, Metadata, Server
from nitroctl.kms.local import Kms
from nitroctl.kms.store import Store
from preload_host import library

INSTANCE = Instance(ROLE, "i-1234567890abcdef0", "eu-central-1", "000000000000")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    with Server(Metadata(INSTANCE, Store(tmp_path / "kms"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=names, method=method)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, ""


def test_a_token_comes_first(service: str) -> None:
    path = f"{service}/latest/meta-data/instance-id"
    assert ask(path)[0] == 401 and ask(path, X_aws_ec2_metadata_token="x")[0] == 401
    new = f"{service}/latest/api/token"
    assert (
        ask(new, "PUT")[0] == 400 and ask(new, "PUT", X_aws_ec2_metadata_token_ttl_seconds="99999")[0] == 400
    )
    lasts = {"X_aws_ec2_metadata_token_ttl_seconds": "60"}
    assert ask(new, "PUT", **lasts, X_Forwarded_For="10.0.0.1")[0] == 403
    assert ask(f"{service}/latest/api/tokens", "PUT", **lasts)[0] == 404
    token = {"X_aws_ec2_metadata_token": ask(new, "PUT", **lasts)[1]}
    # Who keeps connections is told that this one ends: a next request in it would be lost.
    connection = HTTPConnection(service.removeprefix("http://"), timeout=60)
    connection.request("PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Connection")) == (200, "close")
    connection.close()
    assert ask(path, **token) == (200, "i-1234567890abcdef0")
    assert ask(f"{service}/latest/meta-data/iam/security-credentials/", **token) == (200, "app")
    document = json.loads(ask(f"{service}/latest/dynamic/instance-identity/document", **token)[1])
    assert (document["instanceId"], document["region"]) == ("i-1234567890abcdef0", "eu-central-1")
    assert ask(f"{service}/latest/meta-data/nothing", **token)[0] == 404


def test_boto3_calls_the_local_kms_with_them(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(imds.ENDPOINT, service)
    # botocore's patience is one second and one attempt, which is not for a busy machine.
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "60")
    with Kms(tmp_path / "kms", region="eu-central-1", tls=False) as kms:
        key = kms.create_key(policy=policy(allow(ROLE, "kms:*")))
        client = boto3.Session().client("kms", endpoint_url=kms.url, region_name="eu-central-1")
        assert client.describe_key(KeyId=key)["KeyMetadata"]["Arn"] == key
        arn = kms.events[-1]["userIdentity"]["arn"]
        assert arn == "arn:aws:sts::000000000000:assumed-role/app/i-1234567890abcdef0"


PARENT = """
import os, sys, urllib.request
base = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
put = urllib.request.Request(base + "/latest/api/token", method="PUT",
                             headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
token = urllib.request.urlopen(put).read().decode()
get = urllib.request.Request(base + "/latest/meta-data/iam/security-credentials/", headers={
    "X-aws-ec2-metadata-token": token})
print(base, urllib.request.urlopen(get).read().decode(), flush=True)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child", flush=True)
sys.stdin.read()
"""


def test_beside_a_parent_program(tmp_path: Path) -> None:
    """It is there when the program starts, is no child of its, and is gone after its end."""
    us = (
        f"import os; from pathlib import Path; from nitroctl.kms import imds; "
        f"port, _ = imds.beside({INSTANCE!r}, Path({str(tmp_path / 'kms')!r})); "
        f"os.environ[imds.ENDPOINT] = f'http://127.0.0.1:{{port}}'; "
        f"os.execv({sys.executable!r}, [{sys.executable!r}, '-c', {PARENT!r}])"
    )
    us = f"from nitroctl.kms.imds import Instance; {us}"
    with subprocess.Popen(
        [sys.executable, "-c", us], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin and parent.stdout
        url, role = parent.stdout.readline().split()
        assert role == "app" and parent.stdout.readline() == "no child\n"
        folders = [p for p in Path("/proc").glob("[0-9]*") if _listens(p, int(url.rpartition(":")[2]))]
        watched = [os.pidfd_open(int(folder.name)) for folder in folders if int(folder.name) != parent.pid]
        assert len(watched) == 1
        parent.stdin.close()
        assert select.select(watched, [], [], 30)[0], "it has outlived its program"
        os.close(watched[0])


def _listens(process: Path, port: int) -> bool:
    """Whether a process has the socket that listens on a port of 127.0.0.1."""
    inodes = {
        line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1] == f"0100007F:{port:04X}" and line.split()[3] == "0A"
    }  # fmt: skip
    try:
        links = {os.readlink(fd) for fd in (process / "fd").iterdir()}
    except OSError:
        return False
    return bool(links & {f"socket:[{inode}]" for inode in inodes})


def test_the_command(tmp_path: Path) -> None:
    """Its program has the variables, its options are told apart from the program's, and it needs no
    server."""
    argv = [sys.executable, "-m", "nitroctl", "parent", "--library", str(library()), "--imds", "--role", ROLE]
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "AWS_REGION": "eu-north-1"}
    # By the variables, and by the address that it has on EC2 for a program that knows none.
    base = "http://169.254.169.254/latest"
    script = (
        f"echo ${imds.ENDPOINT} $AWS_REGION\n"
        f"token=$(curl -sS -X PUT -H X-aws-ec2-metadata-token-ttl-seconds:60 {base}/api/token)\n"
        f"curl -sS -w ' %{{remote_ip}}:%{{remote_port}}' -H X-aws-ec2-metadata-token:$token "
        f"{base}/meta-data/iam/security-credentials/\n"
    )
    done = subprocess.run([*argv, "sh", "-euc", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    url, *rest = done.stdout.split()
    assert url.startswith("http://127.0.0.1:") and rest == ["eu-north-1", "app", "169.254.169.254:80"]
    done = subprocess.run(
        [*argv[:-3], "--role", ROLE, "true"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "--role is what --imds tells" in done.stderr


def test_other_users_get_nothing(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns a connection is told by the kernel, in two tables; a closed one is nobody's."""
    head = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    line = (
        "   0: {} {} 01 00000000:00000000 00:00000000 00000000  1000        0 {} 1 0000000000000000 20 4 30"
    )
    ends = (
        ("0100007F:BEEF", "0100007F:1F90")
        if sys.byteorder == "little"
        else ("7F000001:BEEF", "7F000001:1F90")
    )
    table = head + line.format(*ends, 4711)
    client, server = ("127.0.0.1", 0xBEEF), ("127.0.0.1", 8080)
    assert imds.owner_of(table, client, server) == 1000
    mapped = [f"0000000000000000FFFF0000{end}" for end in ends]
    assert imds.owner_of(head + line.format(*mapped, 4711), client, server) == 1000
    assert imds.owner_of(head + line.format(*ends, 0), client, server) is None
    assert imds.owner_of(table, server, client) is None and imds.owner_of(head, client, server) is None
    for owner in (os.getuid() + 1, None):
        monkeypatch.setattr(imds, "owner_of", lambda *_, owner=owner: owner)
        with pytest.raises(OSError):
            ask(f"{service}/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")


def test_many_tokens(tmp_path: Path) -> None:
    """Who asks for more and more loses his oldest, and fills no memory."""
    metadata = Metadata(INSTANCE, Store(tmp_path / "kms"))
    first, second = metadata.new_token(60), metadata.new_token(60)
    for _ in range(imds.TOKENS - 1):
        metadata.new_token(60)
    assert not metadata.knows(first) and metadata.knows(second)


def test_wrong_roles() -> None:
    for role in ("app", "arn:aws:iam::000000000000:user/app"):
        with pytest.raises(UsageError, match="is not the ARN of a role"):
            Instance(role, "i-1", "us-east-1", "000000000000")
