# SPDX-License-Identifier: MIT
"""A local KMS that enforces what AWS's does: policies on the measurements of an enclave that shows its
document.

    server       HTTP and TLS on one port, a unix socket for enclaves
    service      a request on its way: caller, shape, document, decision, operation, event
    sigv4        who signed a request                   callers      users, roles, credentials
    shapes       what a request may look like           errors       what a refusal looks like
    policy       policies, read strictly                conditions   their keys and operators
    evaluate     may he, and why                        lint         is a policy wise
    recipient    the attestation document               envelope     the answer that only its enclave opens
    crypto       operations that use keys               manage, grants, rotation   operations on keys
    keys, material, store                               keys as rows, as secrets, in one SQLite file
    events       what happened and why                  images       whose PCRs these are
    faults       failures on request

It protects nothing: the keys lie in a file of the user's, in the clear.
"""
