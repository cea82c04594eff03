# SPDX-License-Identifier: MIT
"""`nitroctl kms policy`: key policies read, put, judged and tried. Options and output only."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from nitroctl.base import output, shown
from nitroctl.base.errors import NitroError, UsageError
from nitroctl.commands import PATH, json_option

EXIT_DENIED = 1


@click.group()
def policy() -> None:
    """Key policies."""


def _store_options(function: Any) -> Any:
    for option in (
        click.option("--account", metavar="ID", default="000000000000", show_default=True, help="12 digits."),
        click.option("--region", metavar="R", help="Default: AWS_REGION, AWS_DEFAULT_REGION, us-east-1."),
        click.option("--store", type=PATH, help="Folder of the keys. Default: the user's own."),
    ):
        function = option(function)
    return function


def _open(store: Path | None, region: str | None, account: str) -> Any:
    from nitroctl.kms.local import Kms
    from nitroctl.kms.store import default_folder

    return Kms(store or default_folder(), region=region, account=account, listen=None, tls=False)


def _text(path: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if os.fspath(path) == "-" else path.read_bytes()
        return data.decode()
    except OSError as e:
        raise NitroError(f"cannot read {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise NitroError(f"{path} is no text in UTF-8") from e


@policy.command()
@click.argument("key")
@_store_options
def get(key: str, store: Path | None, region: str | None, account: str) -> None:
    """Print the policy of KEY."""
    with _open(store, region, account) as kms:
        key_id = kms.call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyId"]
        shown.data(kms.call("GetKeyPolicy", KeyId=key_id)["Policy"])


@policy.command()
@click.argument("key")
@click.argument("file", type=PATH)
@_store_options
def put(key: str, file: Path, store: Path | None, region: str | None, account: str) -> None:
    """Set the policy of KEY to FILE (- for stdin). A policy that is not understood is refused."""
    text = _text(file)
    with _open(store, region, account) as kms:
        key_id = kms.call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyId"]
        kms.put_policy(key_id, text)


@policy.command()
@click.argument("file", type=PATH)
@click.option(
    "--eif", "eifs", type=PATH, multiple=True, help="An image whose PCRs the policy may name. Repeatable."
)
@json_option()
def lint(file: Path, eifs: tuple[Path, ...], as_json: bool) -> int:
    """Check the key policy FILE: what it allows that may not be intended, and conditions that can never hold.

    Exit status: 0 if there is nothing to say, 1 otherwise.
    """
    from nitroctl.kms import images
    from nitroctl.kms import lint as linting

    measured = {os.fspath(eif): images.pcrs_of(eif) for eif in eifs}
    findings = linting.lint(_text(file), measured)
    if as_json:
        output.items({"rule": f.rule, "where": f.where, "text": f.text} for f in findings)
    else:
        for finding in findings:
            shown.echo(finding)
    return 1 if findings else 0


def _measured(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[int, str]:
    found = {}
    for value in values:
        index, equals, digits = value.partition("=")
        digits = digits.lower()
        if not (equals and index.isascii() and index.isdecimal() and int(index) < 32):
            raise click.BadParameter(f"{value!r} is not N=HEX with N from 0 to 31")
        if len(digits) != 96 or set(digits) - set("0123456789abcdef"):
            raise click.BadParameter(f"{value!r}: a PCR is 96 hexadecimal digits")
        found[int(index)] = digits
    return found


@policy.command()
@click.argument("file", type=PATH)
@click.option("--eif", type=PATH, help="The image that runs in the enclave.")
@click.option("--role", metavar="ARN", help="The parent's role: PCR3, and the caller.")
@click.option("--instance-id", metavar="ID", help="The parent's instance: PCR4.")
@click.option("--principal", metavar="ARN", help="The caller, if it is not the role.")
@click.option("--action", default="kms:Decrypt", show_default=True, help="Operation that is asked for.")
@click.option("--iam", "iam_files", type=PATH, multiple=True,
              help="An IAM policy of the caller. Repeatable. Default: one that allows kms:*.")  # fmt: skip
@click.option("--no-iam", is_flag=True, help="The caller has no IAM policy.")
@click.option(
    "--pcr", "pcrs", metavar="N=HEX", multiple=True, callback=_measured, help="A PCR's value. Repeatable."
)
@click.option("--debug-mode", is_flag=True, help="The enclave runs in debug mode: PCR0, 1, 2 and 8 are zero.")
@click.option("--no-document", is_flag=True, help="The request has no Recipient.")
@click.option("--context", metavar="NAME=VALUE", multiple=True, help="Encryption context. Repeatable.")
@json_option()
def test(
    file: Path,
    eif: Path | None,
    role: str | None,
    instance_id: str | None,
    principal: str | None,
    action: str,
    iam_files: tuple[Path, ...],
    no_iam: bool,
    pcrs: Mapping[int, str],
    debug_mode: bool,
    no_document: bool,
    context: tuple[str, ...],
    as_json: bool,
) -> int:
    """Say whether the key policy FILE allows an operation to an enclave that runs --eif, and why.

    Exit status: 0 for allowed, 1 for denied, 2 for a wrong request.
    """
    from nitroctl.kms import images, trial
    from nitroctl.kms import policy as policies
    from nitroctl.kms.actions import ACTIONS, WITH_RECIPIENT

    if eif is None and not pcrs and not no_document:
        raise UsageError("which image runs? name it with --eif, its values with --pcr, or say --no-document")
    name = action.removeprefix("kms:")
    if name not in ACTIONS:
        raise UsageError(f"the action {action} is none of KMS")
    read = policies.parse(_text(file))
    caller, supposed = trial.caller_for(read, role, principal)
    enclave = trial.Enclave(images.pcrs_of(eif) if eif else {}, role, instance_id, debug_mode, pcrs)
    document = enclave.document() if not no_document and name in WITH_RECIPIENT else None
    iam = None
    if no_iam or iam_files:
        iam = [policies.parse(_text(path), "iam", f"the IAM policy {path}") for path in iam_files]
    pairs = {}
    for text in context:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--context {text} is not NAME=VALUE")
        pairs[key] = value
    decision = trial.decide(read, caller, document=document, action=f"kms:{name}", iam=iam, context=pairs)
    if as_json:
        output.document({"principal": caller.full_arn, **decision.json()})
    else:
        if supposed:
            shown.say(
                f"note: the caller is supposed to be {caller.full_arn}; --role or --principal names another"
            )
        if document is None and not no_document:
            shown.say(f"note: {action} takes no Recipient: no condition on a document can hold")
        shown.echo(decision.why if decision.allowed else f"denied {decision.why}")
    return 0 if decision.allowed else EXIT_DENIED
