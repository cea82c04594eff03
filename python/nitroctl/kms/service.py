# SPDX-License-Identifier: MIT
"""The KMS itself, without the transport: a request goes in, an answer and an event come out.

    caller  ->  operation and parameters  ->  attestation document  ->  decision  ->  operation  ->  event

Every operation must ask for authorisation: if one has not, its answer becomes an error, and its changes are
rolled back.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nitroctl.kms import callers, crypto, grants, keys, manage, rotation
from nitroctl.kms.actions import ACTIONS, WITH_RECIPIENT
from nitroctl.kms.call import Answer, Call, Origin
from nitroctl.kms.envelope import Form
from nitroctl.kms.errors import KmsError, internal
from nitroctl.kms.events import Log, event
from nitroctl.kms.faults import Faults
from nitroctl.kms.keys import Place
from nitroctl.kms.names import Caller
from nitroctl.kms.recipient import Verifier
from nitroctl.kms.shapes import SHAPES
from nitroctl.kms.sigv4 import Received, access_key
from nitroctl.kms.sigv4 import verify as verify_signature
from nitroctl.kms.store import Store

TARGET = "TrentService."
LOCAL = Origin()

_HANDLERS: dict[str, Callable[[Call], Answer]] = {
    "CancelKeyDeletion": manage.cancel_key_deletion,
    "CreateAlias": manage.create_alias,
    "CreateGrant": grants.create_grant,
    "CreateKey": manage.create_key,
    "Decrypt": crypto.decrypt,
    "DeleteAlias": manage.delete_alias,
    "DeleteImportedKeyMaterial": manage.delete_imported_key_material,
    "DeriveSharedSecret": crypto.derive_shared_secret,
    "DescribeKey": manage.describe_key,
    "DisableKey": manage.disable_key,
    "DisableKeyRotation": rotation.disable_key_rotation,
    "EnableKey": manage.enable_key,
    "EnableKeyRotation": rotation.enable_key_rotation,
    "Encrypt": crypto.encrypt,
    "GenerateDataKey": crypto.generate_data_key,
    "GenerateDataKeyPair": crypto.generate_data_key_pair,
    "GenerateDataKeyPairWithoutPlaintext": crypto.generate_data_key_pair_without_plaintext,
    "GenerateDataKeyWithoutPlaintext": crypto.generate_data_key_without_plaintext,
    "GenerateMac": crypto.generate_mac,
    "GenerateRandom": crypto.generate_random,
    "GetKeyPolicy": manage.get_key_policy,
    "GetKeyRotationStatus": rotation.get_key_rotation_status,
    "GetParametersForImport": manage.get_parameters_for_import,
    "GetPublicKey": crypto.get_public_key,
    "ImportKeyMaterial": manage.import_key_material,
    "ListAliases": manage.list_aliases,
    "ListGrants": grants.list_grants,
    "ListKeyPolicies": manage.list_key_policies,
    "ListKeyRotations": rotation.list_key_rotations,
    "ListKeys": manage.list_keys,
    "ListRetirableGrants": grants.list_retirable_grants,
    "ListResourceTags": manage.list_resource_tags,
    "PutKeyPolicy": manage.put_key_policy,
    "ReEncrypt": crypto.re_encrypt,
    "RetireGrant": grants.retire_grant,
    "RevokeGrant": grants.revoke_grant,
    "RotateKeyOnDemand": rotation.rotate_key_on_demand,
    "ScheduleKeyDeletion": manage.schedule_key_deletion,
    "Sign": crypto.sign,
    "TagResource": manage.tag_resource,
    "UntagResource": manage.untag_resource,
    "UpdateAlias": manage.update_alias,
    "UpdateKeyDescription": manage.update_key_description,
    "Verify": crypto.verify,
    "VerifyMac": crypto.verify_mac,
}
OPERATIONS = frozenset(_HANDLERS)

# The operations that change the store: their transaction holds the write lock from its start.
_WRITES = frozenset(
    name for name in _HANDLERS
    if name.startswith(("Cancel", "Create", "Delete", "Disable", "Enable", "Import", "Put", "Retire",
    "Revoke", "Rotate",
                        "Schedule", "Tag", "Untag", "Update"))
) | {"GetParametersForImport"}  # fmt: skip
READ_ONLY = frozenset(_HANDLERS) - _WRITES

# Making a key pair takes seconds, so it is done before the transaction, during which nobody else can write.
# These functions authorise the caller, like all the others.
_PREPARES: dict[str, Callable[[Call], bytes | None]] = {
    "CreateKey": manage.prepare_key,
    "GetParametersForImport": manage.prepare_import,
}


@dataclass
class Service:
    """Handles requests. Thread-safe: each request has its own transaction; only the faults asked for are
    shared."""

    store: Store
    place: Place
    verifier: Verifier
    log: Log
    authenticate: bool = True
    form: Form = "segmented"
    faults: Faults = field(default_factory=Faults)

    # ---- requests of clients ----

    def handle(self, request: Received, origin: Origin) -> tuple[int, dict[str, Any], str]:
        """Handle an HTTP request: (HTTP status, JSON value of the answer, the request's id)."""
        request_id = str(uuid.uuid4())
        operation = (request.header("x-amz-target") or "").removeprefix(TARGET)
        caller: Caller | None = None
        try:
            try:
                self.faults.before(operation)
                caller = self._who(request)
            except KmsError as e:
                self._refused(operation, caller, origin, e, request_id)
                return e.status, e.body(), request_id
            return self._answer(operation, request.body, caller, origin, request_id)
        except Exception as e:  # an unforeseen error becomes an answer and an event, too
            error = internal(f"{type(e).__name__}: {e}")
            self._refused(operation, caller, origin, error, request_id)
            return error.status, error.body(), request_id

    def _who(self, request: Received) -> Caller:
        if self.authenticate:
            with self.store.transaction():
                credential = verify_signature(
                    request, self.place.region, lambda key: callers.find(self.store, key)
                )
            return Caller(credential.arn, credential.session)
        # Signatures are not required: who names an access key of this KMS is taken for its owner.
        named = access_key(request)
        credential_named = callers.find(self.store, named) if named else None
        found = credential_named or callers.admin(self.store, self.place.account)
        return Caller(found.arn, found.session)

    def _answer(
        self, operation: str, body: bytes, caller: Caller, origin: Origin, request_id: str
    ) -> tuple[int, dict[str, Any], str]:
        try:
            try:
                given = json.loads(body or b"{}")
            except (ValueError, RecursionError) as e:
                error = KmsError("SerializationException", "the body is not JSON")
                self._refused(operation, caller, origin, error, request_id)
                raise error from e
            answer = self.call(operation, given, caller, origin=origin, request_id=request_id)
        except KmsError as e:
            return e.status, e.body(), request_id
        return 200, to_json(answer), request_id

    def _refused(
        self, operation: str, caller: Caller | None, origin: Origin, e: KmsError, request_id: str
    ) -> None:
        self.log.write(event(operation, self.place, caller, origin, request_id, error=e))

    # ---- requests of clients and of the owner ----

    def call(
        self,
        operation: str,
        given: Any,
        caller: Caller | None = None,
        *,
        origin: Origin = LOCAL,
        request_id: str | None = None,
    ) -> Answer:
        """Do one operation. Without a caller it is done for the store's owner, to whom no policy applies.
        Raises KmsError."""
        request_id = request_id or str(uuid.uuid4())
        call = Call(
            self.store, self.place, operation, {},
            caller or Caller(f"arn:aws:iam::{self.place.account}:root"),
            operator=caller is None, origin=origin, form=self.form,
        )  # fmt: skip
        try:
            try:
                answer = self._do(call, given)
            except sqlite3.Error as e:
                raise internal(f"the store failed: {e}") from e
        except KmsError as e:
            self._log(call, request_id, e)
            raise
        self._log(call, request_id, None)
        return answer

    def _do(self, call: Call, given: Any) -> Answer:
        handler = _HANDLERS.get(call.operation)
        if handler is None:
            known = call.operation in ACTIONS or call.operation == "ReplicateKey"
            raise KmsError(
                "UnknownOperationException" if not known else "UnsupportedOperationException",
                f"The operation {call.operation[:100]} is not served by this local KMS.",
            )
        call.parameters, ignored = SHAPES[call.operation].read(given)
        if ignored:
            what = "not a parameter of" if "Recipient" not in ignored else "ignored, as by AWS, for"
            named = ", ".join(name[:100] for name in ignored[:5])
            call.notes.append(f"{named}: {what} {call.operation}")
        keys.sweep(self.store, self.place)
        if call.operation in WITH_RECIPIENT and (recipient := call.get("Recipient")) is not None:
            call.recipient = self.verifier.verify(recipient, call.now)
            call.notes += call.recipient.notes
        if prepare := _PREPARES.get(call.operation):
            with self.store.transaction():
                call.made = prepare(call)
            call.decisions.clear()  # the operation decides again, inside its transaction
        with self.store.transaction(write=call.operation in _WRITES):
            answer = handler(call)
            if not call.decisions or not all(decision.allowed for decision in call.decisions):
                raise internal(f"{call.operation} did not check authorisation")
        return answer

    def _log(self, call: Call, request_id: str, error: KmsError | None) -> None:
        self.log.write(
            event(
                call.operation, self.place, None if call.operator else call.caller, call.origin, request_id,
                call=call, error=error, read_only=call.operation in READ_ONLY,
            )
        )  # fmt: skip


def to_json(value: Any) -> Any:
    """An answer as a JSON value: bytes in base64, times in seconds since 1970."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value
