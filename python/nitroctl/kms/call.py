# SPDX-License-Identifier: MIT
"""One request while the KMS handles it: who asks for what, what was decided, what the event will say.

Every operation gets a Call. Before it does anything with a key it must call `authorise`; `service` refuses
the answer of an operation that never did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nitroctl.base.instants import UTC
from nitroctl.kms import callers, keys, policy
from nitroctl.kms.actions import WITH_RECIPIENT
from nitroctl.kms.errors import KmsError, bad_usage
from nitroctl.kms.evaluate import EXACT_CONTEXT, Decision, Request, evaluate
from nitroctl.kms.keys import Key, Place
from nitroctl.kms.names import Caller
from nitroctl.kms.recipient import Recipient
from nitroctl.kms.store import Store

Answer = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where a request came from, for conditions and the event."""

    address: str = "local"  # an IP address, "vsock", or "local"
    agent: str = ""
    tls: bool = False
    access_key: str | None = None


def encryption_context(pairs: dict[str, str] | None) -> dict[str, tuple[str, ...]]:
    """An encryption context as condition keys (lower case) with their values, as policies see it."""
    if not pairs:
        return {}
    return {
        **{f"kms:encryptioncontext:{name.lower()}": (value,) for name, value in pairs.items()},
        "kms:encryptioncontextkeys": tuple(pairs),
        EXACT_CONTEXT: tuple(text for pair in pairs.items() for text in pair),
    }


@dataclass
class Call:
    store: Store
    place: Place
    operation: str
    parameters: dict[str, Any]
    caller: Caller
    operator: bool  # the store's owner, through the commands of nitroctl: no policy applies to them
    origin: Origin
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    recipient: Recipient | None = None
    form: str = "segmented"
    decisions: list[Decision] = field(default_factory=list)
    resources: list[Key] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    made: bytes | None = None  # key material made in advance by a prepare_ function: see `service`

    def get(self, name: str) -> Any:
        return self.parameters.get(name)

    def key(
        self, name: str = "KeyId", *, alias: bool = True, action: str | None = None
    ) -> tuple[Key, dict[str, tuple[str, ...]]]:
        """The key that a parameter names, and what the way of naming it (an alias) adds to the context.

        Only a caller whom IAM allows the action learns that a key does not exist. Any other caller gets the
        same denial as for an existing key whose policy leaves the decision to IAM. Raises KmsError."""
        named: str = self.parameters[name]
        try:
            key, by = keys.find(self.store, self.place, named, alias=alias)
        except KmsError:
            self.authorise(None, action=action, resource=keys.arn_of(self.place, named))
            raise
        return key, {"kms:requestalias": (by,)} if by else {}

    def context(self, key: Key | None, more: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {
            "aws:currenttime": (self.now.isoformat(),),
            "aws:epochtime": (str(int(self.now.timestamp())),),
            "aws:principalaccount": (self.caller.account,),
            "aws:principalarn": (self.caller.arn,),
            "aws:principalisawsservice": ("false",),
            "aws:principaltype": (self._type(),),
            "aws:requestedregion": (self.place.region,),
            "aws:securetransport": (str(self.origin.tls).lower(),),
            "aws:viaawsservice": ("false",),
            "kms:calleraccount": (self.caller.account,),
        }
        if self.origin.address not in ("local", "vsock"):
            found["aws:sourceip"] = (self.origin.address,)
        if self.origin.agent:
            found["aws:useragent"] = (self.origin.agent,)
        if self._type() == "User":
            found["aws:username"] = (self.caller.name,)
        if self.recipient and self.operation in WITH_RECIPIENT:
            found |= self.recipient.context()
        return found | (key.context() if key else {}) | more

    def _type(self) -> str:
        return "Account" if self.caller.is_root else "AssumedRole" if self.caller.session else "User"

    def decide(self, action: str, key: Key | None, key_policy: str | None, more: dict[str, tuple[str, ...]],
               resource: str = "*") -> Decision:  # fmt: skip
        """Decide about one action without recording the decision. Never raises KmsError."""
        if self.operator:
            return Decision(True, "allowed", policy="the store's owner, through nitroctl")
        if key is None and self.caller.account != self.place.account:
            # At AWS this caller would see the keys of its own account; here only one account exists.
            return Decision(False, f"because no identity-based policy allows the kms:{action} action",
                            policy=f"nothing here: the keys are of account {self.place.account}")  # fmt: skip
        request = Request(self.caller, f"kms:{action}", key.arn if key else resource, self.context(key, more))
        granted = keys.grants(self.store, key) if key else []
        try:
            read = policy.parse(key_policy) if key_policy is not None else None
            return evaluate(request, read, callers.policies_of(self.store, self.caller), granted)
        except policy.KmsPolicyError as e:
            # Something other than this KMS has written the store.
            return Decision(False, f"because no resource-based policy allows the kms:{action} action",
                            policy=f"a policy that cannot be parsed: {e}")  # fmt: skip

    def authorise(
        self, key: Key | None, more: dict[str, tuple[str, ...]] | None = None, action: str | None = None,
        resource: str = "*",
    ) -> None:  # fmt: skip
        """Return if the caller is allowed the action, and record the decision. Raises KmsError if not."""
        action = action or self.operation
        if key and key not in self.resources:
            self.resources.append(key)
        decision = self.decide(action, key, key.policy if key else None, more or {}, resource)
        self.decisions.append(decision)
        if not decision.allowed:
            raise KmsError(
                "AccessDeniedException",
                f"User: {self.caller.full_arn} is not authorized to perform: kms:{action} on resource: "
                f"{key.arn if key else resource} {decision.because}",
                why=decision.why,
            )

    def tokens(self) -> None:
        """Check the request's grant tokens. Grants take effect at once here, so a token only has to exist."""
        for token in self.get("GrantTokens") or ():
            if self.store.one("SELECT 1 FROM grants WHERE token = ?", token) is None:
                raise KmsError("InvalidGrantTokenException", "The grant token is not valid.")

    def use(self, key: Key, usage: str, more: dict[str, tuple[str, ...]] | None = None,
            action: str | None = None) -> bytes:  # fmt: skip
        """The material of a key, after these checks: the caller is authorised, the key's usage and state
        are right, and the request is not a dry run."""
        self.tokens()
        self.authorise(key, more, action)
        if key.usage != usage:
            raise bad_usage(f"{key.arn} key usage is {key.usage} which is not valid for {self.operation}.")
        return key.check_usable()

    def dry_run(self) -> None:
        if self.get("DryRun"):
            raise KmsError(
                "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."
            )

    def answer(self, secret: str, plaintext: bytes, fields: dict[str, Any]) -> dict[str, Any]:
        """The answer with its secret: the plaintext, or the plaintext sealed to the Recipient if there is
        one."""
        if self.recipient is None:
            return fields | {secret: plaintext}
        sealed = self.recipient.seal(plaintext, self.form)  # type: ignore[arg-type]
        return fields | {"CiphertextForRecipient": sealed}

    def page(self, found: Sequence[Any], name: str, limit: int = 100) -> dict[str, Any]:
        """A page of a list; the marker says where the next page begins."""
        marker = self.get("Marker") or "0"
        if not (marker.isascii() and marker.isdecimal() and len(marker) < 10):
            raise KmsError("InvalidMarkerException", "The marker is not valid.")
        start, size = int(marker), self.get("Limit") or limit
        more = start + size < len(found)
        page: dict[str, Any] = {name: list(found[start : start + size]), "Truncated": more}
        return page | ({"NextMarker": str(start + size)} if more else {})
