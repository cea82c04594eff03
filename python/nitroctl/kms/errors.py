# SPDX-License-Identifier: MIT
"""The answer of the KMS to a request that it refuses: AWS's status, type and text. No logic.

`why` goes only to the log and the event, never to the client: AWS often sends no text, or the same text for
many causes.
"""

from __future__ import annotations


class KmsError(Exception):
    """A refusal: `kind` is AWS's `__type`, `text` what the client reads."""

    def __init__(
        self, kind: str, text: str | None = None, *, status: int = 400, why: str | None = None
    ) -> None:
        super().__init__(f"{kind}: {text or why or ''}")
        self.kind = kind
        self.text = text
        self.status = status
        self.why = why or text or kind

    def body(self) -> dict[str, str]:
        found = {"__type": self.kind}
        if self.text is not None:
            # The member is "message" elsewhere; for a denial AWS writes "Message".
            found["Message" if self.kind == "AccessDeniedException" else "message"] = self.text
        return found


def invalid(text: str, *, why: str | None = None) -> KmsError:
    return KmsError("ValidationException", text, why=why)


def not_found(text: str, *, why: str | None = None) -> KmsError:
    return KmsError("NotFoundException", text, why=why)


def bad_state(text: str) -> KmsError:
    return KmsError("KMSInvalidStateException", text)


def bad_usage(text: str) -> KmsError:
    return KmsError("InvalidKeyUsageException", text)


def bad_ciphertext(why: str) -> KmsError:
    """InvalidCiphertextException, with which AWS sends no text."""
    return KmsError("InvalidCiphertextException", why=why)


def internal(why: str) -> KmsError:
    return KmsError("KMSInternalException", "The request was rejected because an internal exception "
                                            "occurred. "
                    "The request can be retried.", status=500, why=why)  # fmt: skip
