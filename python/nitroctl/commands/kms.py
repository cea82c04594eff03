# SPDX-License-Identifier: MIT
"""`nitroctl kms`: a local KMS, its keys, aliases, policies, callers and events. Options and output only."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nitroctl.base import output, shown
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.commands import NEW_FILE, PATH, json_option
from nitroctl.commands.kms_policy import policy

if TYPE_CHECKING:
    from nitroctl.kms.local import Kms

LISTEN = "127.0.0.1:4599"
DESCRIPTORS = 8192


def _common(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of whatever opens the store; the command gets a function that opens it."""

    @click.option("--store", type=PATH, help="Folder of the keys. Default: the user's own.")
    @click.option("--region", metavar="R", help="Default: AWS_REGION, AWS_DEFAULT_REGION, us-east-1.")
    @click.option("--account", metavar="ID", default="000000000000", show_default=True, help="12 digits.")
    @functools.wraps(function)
    def command(store: Path | None, region: str | None, account: str, **more: Any) -> Any:
        def make(**options: Any) -> Kms:
            from nitroctl.kms.local import Kms
            from nitroctl.kms.store import default_folder

            return Kms(store or default_folder(), region=region, account=account, **options)

        return function(make, **more)

    return command


def owner(make: Callable[..., Kms]) -> Kms:
    """The store, opened by its owner: nothing listens."""
    return make(listen=None, tls=False)


@click.group()
def kms() -> None:
    """A local KMS that answers enclaves as AWS KMS does, enforces key policies, and explains decisions.

    It keeps no secret from this host's user: it is for development and tests.
    """


kms.add_command(policy)


@kms.command()
@click.option(
    "--listen", metavar="HOST:PORT", default=LISTEN, show_default=True, help="Address to listen on."
)
@click.option(
    "--vsock",
    metavar="PORT",
    type=int,
    help="Also serve the parent's port PORT for every enclave of this user; usually 8000, as on AWS.",
)
@click.option("--listen-fd", type=int, hidden=True, help="A listening socket that we were given, instead.")
@click.option(
    "--tls", is_flag=True, help="Also serve TLS on the same port; clients must trust `nitroctl kms ca`."
)
@click.option("--no-auth", is_flag=True, help="Accept requests without a signature.")
@click.option(
    "--root",
    type=PATH,
    help="Trusted root of attestation documents: a PEM file, or aws. Default: the local CA.",
)
@click.option(
    "--max-age",
    metavar="SECONDS",
    type=click.FloatRange(0, 1e9),
    help="Refuse older documents. Default: accept while their certificates are valid, as AWS does.",
)
@click.option(
    "--allow-unmeasured",
    is_flag=True,
    help="Accept documents of unmeasured enclaves, which run code that their PCRs do not cover.",
)
@click.option("--envelope", type=click.Choice(["segmented", "primitive"]), default="segmented",
show_default=True,
              help="Form of CiphertextForRecipient; AWS's is segmented.")  # fmt: skip
@click.option(
    "--eif", "eifs", type=PATH, multiple=True, help="An image whose PCRs explanations can name. Repeatable."
)
@click.option("--inject", "inject", metavar="FAULT", multiple=True,
              help="Fail requests: throttle, internal, unavailable, timeout, expired or slow=SECONDS, with "
                   "@OPERATION and *COUNT. Repeatable.")  # fmt: skip
@click.option(
    "--upstream",
    metavar="URL",
    help="Pass requests to other services on to this emulator, such as moto or LocalStack.",
)
@json_option("Events as JSON lines on standard output.")
@_common
def serve(
    make: Callable[..., Kms],
    listen: str,
    vsock: int | None,
    listen_fd: int | None,
    tls: bool,
    no_auth: bool,
    root: Path | None,
    max_age: float | None,
    allow_unmeasured: bool,
    envelope: Literal["segmented", "primitive"],
    eifs: tuple[Path, ...],
    inject: tuple[str, ...],
    upstream: str | None,
    as_json: bool,
) -> None:
    """Serve KMS to SDKs, the AWS CLI and enclaves until SIGINT or SIGTERM.

    Prints the variables by which clients find it, and a line for each request that says why.
    """
    from nitroctl.kms import events
    from nitroctl.vsock import sockets

    def tell(happened: dict[str, Any]) -> None:
        if as_json:
            output.as_aws_line(happened)
        else:
            shown.say(events.sentence(happened))

    made = make(
        listen=None if listen_fd is not None else listen, tls=tls, authenticate=not no_auth, root=root,
        max_age=max_age, allow_unmeasured=allow_unmeasured, form=envelope, eifs=eifs, inject=inject,
        upstream=upstream, on_event=tell,
    )  # fmt: skip
    _allow_descriptors()
    ends = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with made as served:
            if listen_fd is not None:
                served.serve_descriptor(socket.socket(fileno=listen_fd))
            else:
                _tell_clients(served, tls=tls, as_json=as_json)
            if vsock is not None:
                served.serve_socket(sockets.serve_shared(vsock))
                shown.say(f"Enclaves reach it on CID 3, port {vsock}")
            signal.sigwait(ends)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _allow_descriptors() -> None:
    """A client has one, and the store one or two while it is asked."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _tell_clients(served: Kms, *, tls: bool, as_json: bool) -> None:
    shown.say(f"KMS of account {served.account} in {served.region} at {served.url}")
    if tls:
        shown.say(f"TLS on the same port, under the CA {served.ca}")
    if not as_json:
        _export(served.environment())


def _export(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        shown.data(f"export {name}={shlex.quote(value)}")


@kms.command()
@click.argument("output", type=NEW_FILE, required=False)
@_common
def ca(make: Callable[..., Kms], output: Path | None) -> None:
    """Write the CA certificate for the KMS's TLS, as PEM, to OUTPUT or to stdout."""
    with owner(make) as mine:
        pem = mine.ca.read_bytes()
    _write(output, pem)


def _write(output: Path | None, data: bytes) -> None:
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(data)
    except OSError as e:
        raise NitroError(f"cannot write {output}: {e.strerror}") from e


def _read(path: Path) -> bytes:
    """A file, or standard input for `-`."""
    if os.fspath(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as e:
        raise NitroError(f"cannot read {path}: {e.strerror}") from e


@kms.command()
@click.argument("arn", required=False)
@click.option("--policy", "policy_file", type=PATH, help="IAM policy of ARN from now on; - for stdin.")
@click.option("--session", metavar="NAME", help="Session name, for a role.")
@click.option("--seconds", type=click.FloatRange(1, 1e9), default=43200.0, show_default=True,
              help="Lifetime of a role's session.")  # fmt: skip
@json_option()
@_common
def credentials(
    make: Callable[..., Kms],
    arn: str | None,
    policy_file: Path | None,
    session: str | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Create credentials for the user or role ARN and print them as shell commands.

    Without ARN they are the administrator's, whom IAM allows everything. They are worth nothing elsewhere.
    """
    text = _read(policy_file).decode(errors="replace") if policy_file else None
    if arn is None and (text or session):
        raise UsageError("--policy and --session are of the user or role ARN")
    with owner(make) as mine:
        found = mine.environment(arn, session=session, policy=text, seconds=seconds)
    if as_json:
        output.document({"variables": found})
    else:
        _export(found)


@kms.command()
@click.argument("key")
@click.argument("file", type=PATH, default=Path("-"))
@click.option("--context", metavar="NAME=VALUE", multiple=True, help="Encryption context. Repeatable.")
@click.option(
    "-o", "--output", type=NEW_FILE, help="Write the binary ciphertext to FILE, instead of base64 to stdout."
)
@_common
def encrypt(
    make: Callable[..., Kms], key: str, file: Path, context: tuple[str, ...], output: Path | None
) -> None:
    """Encrypt FILE (default: standard input) under KEY: an id, an ARN or alias/NAME."""
    pairs = dict(_pairs("--context", context))
    with owner(make) as mine:
        blob = mine.encrypt(key, _read(file), pairs)
    if output is None:
        shown.data(base64.b64encode(blob).decode())
    else:
        _write(output, blob)


def _pairs(option: str, texts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{option} {text} is not NAME=VALUE")
        yield name, value


@kms.command()
@click.option("-n", "--last", "count", metavar="N", type=click.IntRange(1), help="Only the last N.")
@click.option("--denied", is_flag=True, help="Only requests that were refused.")
@json_option("The whole events, as JSON lines.")
@_common
def events(make: Callable[..., Kms], count: int | None, denied: bool, as_json: bool) -> None:
    """Print the KMS's requests, oldest first: who asked for what, the result, and why."""
    from nitroctl.kms import events as log

    with owner(make) as mine:
        found = [event for event in log.read(mine.service.store.folder) if not denied or "errorCode" in event]
    for event in found[-count:] if count else found:
        if as_json:
            output.as_aws_line(event)
        else:
            shown.echo(log.sentence(event))


# --- keys ------------------------------------------------------------------------------------------------


@kms.group()
def key() -> None:
    """Create, import, list, rotate and delete keys."""


@key.command()
@click.option(
    "--policy", "policy_file", type=PATH, help="Its key policy; - for stdin. Default: AWS's, the account."
)
@click.option("--alias", metavar="alias/NAME", help="A name for it.")
@click.option(
    "--spec",
    default="SYMMETRIC_DEFAULT",
    show_default=True,
    help="RSA_2048, ECC_NIST_P256, ML_DSA_65, HMAC_256 ...",
)
@click.option("--usage", help="ENCRYPT_DECRYPT, SIGN_VERIFY, KEY_AGREEMENT, GENERATE_VERIFY_MAC.")
@click.option("--description", default="", help="Description.")
@_common
def create(
    make: Callable[..., Kms],
    policy_file: Path | None,
    alias: str | None,
    spec: str,
    usage: str | None,
    description: str,
) -> None:
    """Create a key and print its ARN."""
    text = _read(policy_file).decode(errors="replace") if policy_file else None
    more = {"KeyUsage": usage} if usage else {}
    with owner(make) as mine:
        shown.bare(mine.create_key(policy=text, alias=alias, KeySpec=spec, Description=description, **more))


@key.command("import")
@click.argument("file", type=PATH)
@click.option(
    "--policy", "policy_file", type=PATH, help="Its key policy; - for stdin. Default: AWS's, the account."
)
@click.option("--alias", metavar="alias/NAME", help="A name for it.")
@click.option("--spec", default="SYMMETRIC_DEFAULT", show_default=True, help="Key spec of the key in FILE.")
@click.option("--usage", help="ENCRYPT_DECRYPT, SIGN_VERIFY, KEY_AGREEMENT, GENERATE_VERIFY_MAC.")
@_common
def import_(
    make: Callable[..., Kms],
    file: Path,
    policy_file: Path | None,
    alias: str | None,
    spec: str,
    usage: str | None,
) -> None:
    """Create a key from the material in FILE and print its ARN. FILE has 32 bytes for a symmetric key, or
    PKCS #8 in DER or PEM for a key pair."""
    from nitroctl.kms import manage, material

    data = _read(file)
    if data.startswith(b"-----BEGIN"):
        data = material.der_of_pem(data, os.fspath(file))
    if wrong := material.fits(spec, data) if spec in material.USAGES else f"there is no spec {spec}":
        raise NitroError(f"{file}: {wrong}")
    text = _read(policy_file).decode(errors="replace") if policy_file else None
    more = {"KeyUsage": usage} if usage else {}
    with owner(make) as mine, mine.service.store.transaction(write=True):
        arn = mine.create_key(policy=text, alias=alias, KeySpec=spec, Origin="EXTERNAL", **more)
        wrapping = mine.call(
            "GetParametersForImport", KeyId=arn, WrappingAlgorithm="RSA_AES_KEY_WRAP_SHA_256",
            WrappingKeySpec="RSA_2048",
        )  # fmt: skip
        mine.call(
            "ImportKeyMaterial", KeyId=arn, ImportToken=wrapping["ImportToken"],
            EncryptedKeyMaterial=manage.wrap_for_import(wrapping["PublicKey"], data),
            ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE",
        )  # fmt: skip
    shown.bare(arn)


@key.command("ls")
@json_option()
@_common
def ls(make: Callable[..., Kms], as_json: bool) -> None:
    """List keys."""
    from nitroctl.kms import keys
    from nitroctl.kms.service import to_json

    with owner(make) as mine:
        store, place = mine.service.store, mine.service.place
        keys.sweep(store, place)
        found = [k for i in keys.all_ids(store, place) if (k := keys.get(store, place, i))]
    if as_json:
        output.items(
            {"id": k.id, "arn": k.arn, "spec": k.spec, "usage": k.usage, "state": k.state,
             "aliases": k.aliases, "metadata": to_json(k.metadata())}
            for k in found
        )  # fmt: skip
        return
    rows = [(k.id, k.spec, k.usage, k.state, " ".join(k.aliases)) for k in found]
    output.table(rows, head=("KEY", "SPEC", "USAGE", "STATE", "ALIASES") if rows else None)


@key.command()
@click.argument("key")
@_common
def rotate(make: Callable[..., Kms], key: str) -> None:
    """Give KEY new material; what was encrypted under it before can still be read."""
    with owner(make) as mine:
        key_id = mine.call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyId"]
        mine.call("RotateKeyOnDemand", KeyId=key_id)


@key.command("rm")
@click.argument("key")
@click.option("--now", is_flag=True, help="Delete at once, for ever. Default: after 7 days, as with AWS.")
@_common
def rm(make: Callable[..., Kms], key: str, now: bool) -> None:
    """Delete KEY: what was encrypted under it can never be read again."""
    from nitroctl.kms import keys

    with owner(make) as mine:
        key_id = mine.call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyId"]
        if now:
            keys.delete(mine.service.store, key_id)
        else:
            at = mine.call("ScheduleKeyDeletion", KeyId=key_id, PendingWindowInDays=7)["DeletionDate"]
            from datetime import datetime

            from nitroctl.base.instants import UTC

            shown.say(f"{key_id} will be deleted on {datetime.fromtimestamp(at, UTC):%F %T} UTC")


@kms.group()
def alias() -> None:
    """Aliases: names for keys."""


@alias.command("set")
@click.argument("name")
@click.argument("key")
@_common
def alias_set(make: Callable[..., Kms], name: str, key: str) -> None:
    """Point the alias NAME (alias/...) to KEY."""
    with owner(make) as mine:
        key_id = mine.call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyId"]
        there = {a["AliasName"] for a in mine.call("ListAliases", Limit=1000)["Aliases"]}
        mine.call("UpdateAlias" if name in there else "CreateAlias", AliasName=name, TargetKeyId=key_id)


@alias.command("ls")
@_common
def alias_ls(make: Callable[..., Kms]) -> None:
    """List aliases and their keys."""
    with owner(make) as mine:
        for found in mine.call("ListAliases", Limit=1000)["Aliases"]:
            shown.echo(f"{found['AliasName']}  {found['TargetKeyId']}")


@alias.command("rm")
@click.argument("name")
@_common
def alias_rm(make: Callable[..., Kms], name: str) -> None:
    """Remove the alias NAME; its key stays."""
    with owner(make) as mine, contextlib.suppress(BrokenPipeError):
        mine.call("DeleteAlias", AliasName=name)
