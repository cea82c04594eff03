# SPDX-License-Identifier: MIT
"""Enclave Image Files: read, measure, describe and make them. Not how to run one (that is `enclaves`).

    format      the file's layout and the rules that it must keep
    measure     one pass over the data: PCRs and checksum
    certificate the signing certificate: read it, by the machine's own grammar
    signature   the signature section: decode, verify
    boot        whether kernel and command line can be booted
    verify      all rules at once, as the machine asks them
    sign        make a signature
    extract     a file's sections, one by one
    diff        what differs between two files
    describe    what a file is, for people and in nitro-cli's JSON
    metadata    JSON as AWS's tools read and write it
    build       kernel + command line + ramdisks -> EIF
    cpio        "newc" archives, the form of a ramdisk
    image       container images, without unpacking them
    unpack      gzip and zstd streams
    compose     an application and what starts it, as two ramdisks
    request     what a user asks for when an EIF shall be made
    make        a request into an EIF, by the way that it means
    output      files that appear whole or not at all
    testimage   the images that demo and tests boot

`format` is the base; the others import it and never each other in a circle. The format itself is AWS's EIF
specification (github.com/aws/aws-nitro-enclaves-image-format, README "EIF").
"""
