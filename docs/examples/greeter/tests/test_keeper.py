# SPDX-License-Identifier: MIT
"""A secret that only the right image can read: KMS is nitroctl's, the policy is the one for production."""

import base64
import hashlib
import hmac
import json

import pytest

ACCOUNT = "000000000000"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/keeper"
SECRET = b"known to KMS and to one image"


def policy(pcr0):
    administration = {
        "Sid": "Administration",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
        "Action": ["kms:DescribeKey", "kms:GetKeyPolicy", "kms:PutKeyPolicy"],
        "Resource": "*",
    }
    enclave = {
        "Sid": "OnlyTheKeeper",
        "Effect": "Allow",
        "Principal": {"AWS": ROLE},
        "Action": "kms:Decrypt",
        "Resource": "*",
        "Condition": {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": pcr0}},
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [administration, enclave]})


@pytest.fixture
def key(nitro_kms, keeper_eif):
    return nitro_kms.create_key(policy=policy(nitro_kms.remember(keeper_eif)[0]))


def ask(keeper, kms, blob, text):
    """As its parent does, which has the role's credentials and the encrypted secret."""
    variables = kms.environment(ROLE)
    lines = {
        "region": kms.region,
        "access-key": variables["AWS_ACCESS_KEY_ID"],
        "secret-key": variables["AWS_SECRET_ACCESS_KEY"],
        "session-token": variables["AWS_SESSION_TOKEN"],
        "ciphertext": base64.b64encode(blob).decode(),
        "sign": text,
    }
    with keeper.connect(5000) as sock:
        sock.sendall("".join(f"{name} {value}\n" for name, value in lines.items()).encode() + b"\n")
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode().strip()


def test_signs_with_a_secret_that_nobody_else_can_read(keeper, nitro_kms, key):
    answer = ask(keeper, nitro_kms, nitro_kms.encrypt(key, SECRET), "a contract")
    assert answer == hmac.new(SECRET, b"a contract", "sha256").hexdigest()
    event = nitro_kms.events[-1]
    assert event["additionalEventData"]["recipient"]["attestationDocumentModuleId"]
    assert "OnlyTheKeeper" in event["why"]["text"]


def test_another_image_reads_nothing(keeper, nitro_kms, key):
    blob = nitro_kms.encrypt(key, SECRET)
    nitro_kms.put_policy(key, policy(hashlib.sha384(b"another image").hexdigest()))
    answer = ask(keeper, nitro_kms, blob, "a contract")
    assert answer.startswith("error: ") and "is not authorized to perform: kms:Decrypt" in answer
    # AWS says no more than that. Here one can ask why.
    assert "is the PCR0 of keeper.eif" in nitro_kms.events[-1]["why"]["text"]


def test_says_so_when_kms_is_throttled(keeper, nitro_kms, key):
    nitro_kms.inject("throttle@Decrypt*1")
    assert "Rate exceeded" in ask(keeper, nitro_kms, nitro_kms.encrypt(key, SECRET), "a contract")
