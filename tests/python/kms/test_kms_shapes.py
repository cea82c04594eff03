# SPDX-License-Identifier: MIT
"""Requests that are not of AWS's shapes: what botocore's model of KMS forbids is refused here as well, and
with the type that an SDK knows."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest

from nitroctl.kms.errors import KmsError
from nitroctl.kms.shapes import SHAPES, unserved

MODEL = botocore.session.Session().get_service_model("kms")


def kind(operation: str, **given: Any) -> str | None:
    """AWS's type of the refusal; None if the shape takes it."""
    try:
        SHAPES[operation].read(given)
    except KmsError as e:
        return e.kind
    return None


def others(shape: Any) -> list[Any]:
    """Values of each other type of JSON's."""
    every: dict[str, Any] = {"string": "x", "integer": 5, "boolean": True, "list": ["x"], "map": {"x": "y"}}
    alike = {"blob": "string", "structure": "map", "timestamp": "integer"}
    return [value for name, value in every.items() if name != alike.get(shape.type_name, shape.type_name)]


def beyond(shape: Any) -> Iterator[Any]:
    """The values next to the model's limits."""
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if shape.type_name == "integer":
        yield from (low - 1, high + 1)
    elif getattr(shape, "enum", None):
        yield from (shape.enum[0].lower(), shape.enum[0] + "X", "")
    else:
        yield from [_filled(shape.type_name, low - 1)] if low else []
        yield from [_filled(shape.type_name, high + 1)] if high is not None else []


def _filled(kind: str, size: int) -> Any:
    every = {"string": "a" * size, "list": ["a"] * size, "blob": base64.b64encode(bytes(size)).decode()}
    return every[kind]


@pytest.mark.parametrize("operation", sorted(SHAPES))
def test_what_aws_s_model_forbids_is_refused(operation: str) -> None:
    """Nothing that the model has is passed over, either: it would do something else than was asked."""
    members = MODEL.operation_model(operation).input_shape.members
    for name, read in SHAPES[operation].parameters.items():
        shape = members[name]  # a parameter of AWS's
        if read is unserved:
            continue
        for value in others(shape):
            assert kind(operation, **{name: value}) == "SerializationException", (name, value)
        if shape.type_name in ("string", "blob", "integer", "list"):
            for value in beyond(shape):
                assert kind(operation, **{name: value}) == "ValidationException", (name, value)


def test_times_and_contexts() -> None:
    """Seconds, to the end of the year 9999; a context of at most 8192 characters."""
    given = {"KeyId": "x", "ImportToken": "eA==", "EncryptedKeyMaterial": "eA=="}
    assert kind("ImportKeyMaterial", **given, ValidTo=253402300799.5) is None
    for wrong in (253402300800, -1, float("nan"), float("inf"), "2030-01-01T00:00:00Z"):
        assert kind("ImportKeyMaterial", **given, ValidTo=wrong) == "SerializationException", wrong
    given = {"KeyId": "x", "Plaintext": "eA=="}
    assert kind("Encrypt", **given, EncryptionContext={"a": "b" * 8191}) is None
    for context in ({"a": "b" * 8192}, {"a" * 5000: "", "b" * 5000: ""}, {"Name": "1", "name": "2"}):
        assert kind("Encrypt", **given, EncryptionContext=context) == "ValidationException"
    for parameter in ("AttestationDocument", "KeyEncryptionAlgorithm"):
        assert kind("Decrypt", CiphertextBlob="eA==", Recipient={parameter: 5}) == "SerializationException", (
            parameter
        )
