# SPDX-License-Identifier: MIT
"""Enclave Image Files (EIF): read, measure, describe, sign and make them. Running one is not done here
(`nitroctl.enclaves`).

    format      the file's layout and the rules that it must keep
    measure     one pass over the data: PCRs and checksum
    certificate the signing certificate: read it, by the same grammar as the machine
    signature   the signature section: decode, verify
    boot        whether kernel and command line can be booted
    verify      all rules at once, in the order in which the machine checks them
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
    request     what a user can ask for when building an EIF
    make        turns such a request into an EIF
    output      files that are written completely or not at all
    testimage   the images that demo and tests boot

`format` is the base: the others import it, and there are no circular imports. The format itself is AWS's EIF
specification (github.com/aws/aws-nitro-enclaves-image-format, README "EIF").
"""
