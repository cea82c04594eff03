#!/bin/busybox sh
# SPDX-License-Identifier: MIT
#
# The application of an enclave of Debian's own programs: it makes a key pair, shows its document to the KMS at
# the parent's port 8000, and opens the answer. /given has what a parent would tell: credentials, region, blob.
set -eu
. /given
cd /tmp
host=kms.$AWS_REGION.amazonaws.com
busybox ip link set lo up
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem
openssl pkey -in key.pem -pubout -outform DER -out public.der
document public.der > document
socat TCP-LISTEN:8000,bind=127.0.0.1,reuseaddr,fork VSOCK-CONNECT:3:8000 &

decrypt() { # BODY: signed, to the name that KMS has at AWS
    curl -sS --retry 50 --retry-connrefused --retry-delay 1 --connect-to "::127.0.0.1:8000" \
        --aws-sigv4 "aws:amz:$AWS_REGION:kms" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" \
        -H "X-Amz-Security-Token: $AWS_SESSION_TOKEN" -H "X-Amz-Target: TrentService.Decrypt" \
        -H "Content-Type: application/x-amz-json-1.1" --data-binary "@$1" "http://$host/"
}

printf '{"CiphertextBlob": "%s"}' "$BLOB" > plain
echo "without a document: $(decrypt plain)"
printf '{"CiphertextBlob": "%s", "Recipient": {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
    "AttestationDocument": "%s"}}' "$BLOB" "$(openssl base64 -A -in document)" > attested
decrypt attested > answer
busybox sed -n 's/.*"CiphertextForRecipient": *"\([^"]*\)".*/\1/p' answer | openssl base64 -d -A > envelope
echo "with one: $(openssl cms -decrypt -inform DER -in envelope -inkey key.pem)"
