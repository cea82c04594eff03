# SPDX-License-Identifier: MIT
"""A local KMS that enforces, as AWS KMS does, key policies on the measurements (PCRs) in an enclave's
attestation document.

    server       HTTP and TLS on one port, a unix socket for enclaves
    service      the steps of a request: caller, shape, document, decision, operation, event
    sigv4        who signed a request                   callers      users, roles, credentials
    shapes       what a request may look like           errors       what a refusal looks like
    policy       policies, read strictly                conditions   their keys and operators
    evaluate     is a caller allowed, and why           lint         is a policy wise
    recipient    the attestation document               envelope     the answer that only its enclave opens
    crypto       operations that use keys               manage, grants, rotation   operations on keys
    keys, material, store                               keys as rows, as secrets, in one SQLite file
    events       what happened and why                  images       which EIF a PCR value belongs to
    faults       failures on request

It protects nothing: the keys are stored unencrypted in a file that belongs to the user.
"""
