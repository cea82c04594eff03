// SPDX-License-Identifier: MIT
// The local KMS as AWS's SDK for JavaScript sees it: `make check-js`. The server, the key, the blob and the document
// come from kms.py beside this, in variables; what is checked is printed, and a failure ends it.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.KMS_MODULES}/`);
const { KMSClient, DecryptCommand, EncryptCommand, GenerateDataKeyCommand, ListKeysCommand } = require("@aws-sdk/client-kms");
const client = new KMSClient({ maxAttempts: 4 }); // all else is in the variables

const AttestationDocument = readFileSync(process.env.KMS_DOCUMENT);
const Recipient = { KeyEncryptionAlgorithm: "RSAES_OAEP_SHA_256", AttestationDocument };
const CiphertextBlob = readFileSync(process.env.KMS_BLOB);

const answer = await client.send(new DecryptCommand({ CiphertextBlob, Recipient }));
assert.equal(answer.Plaintext, undefined);
writeFileSync(process.env.KMS_ENVELOPE, answer.CiphertextForRecipient);

await assert.rejects(client.send(new DecryptCommand({ CiphertextBlob })), (error) => {
  assert.equal(error.name, "AccessDeniedException");
  assert.match(error.message, /is not authorized to perform: kms:Decrypt on resource/);
  return true;
});
await assert.rejects(client.send(new EncryptCommand({ KeyId: "alias/none", Plaintext: Buffer.from("x") })), {
  name: "NotFoundException",
});
await assert.rejects(client.send(new GenerateDataKeyCommand({ KeyId: "alias/js", KeySpec: "AES_256" })), {
  name: "AccessDeniedException",
});
const listed = await client.send(new ListKeysCommand({})); // throttled twice first
assert.equal(listed.Keys.length, 1);
assert.equal(listed.$metadata.attempts, 3);
console.log("5 passed, 0 failed");
