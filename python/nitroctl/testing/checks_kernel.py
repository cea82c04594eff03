# SPDX-License-Identifier: MIT
"""Boot checks of the guest kernels' features: what a program can notice is what it notices on AWS.

AWS is the answer of guest/features.c on a kernel with the configuration that AWS publishes
(aws-nitro-enclaves-sdk-bootstrap, 6.6) under AWS's init: recorded, not asked of a kernel of ours.
"""

from __future__ import annotations

import functools
import re

from nitroctl.testing.claims import boot_check
from nitroctl.testing.lab import Lab, check, check_equal

AWS = """\
iptables nat (IPT_SO_GET_INFO)     ok
ip6tables nat                      ok
NETLINK_NETFILTER (nft, conntrack) FAIL Protocol not supported
AF_PACKET (tcpdump, dhcp)          ok
NETLINK_XFRM                       FAIL Protocol not supported
NETLINK_AUDIT                      ok
NETLINK_SOCK_DIAG (ss)             ok
AF_ALG                             FAIL Address family not supported by protocol
ip rule (policy routing)           ok
ip link add veth                   ok
ip link add bridge                 ok
ip link add dummy                  FAIL Operation not supported
tap device                         ok
lo up                              ok
tcp over 127.0.0.1                 ok
user namespace                     ok
net namespace                      ok
pid namespace                      ok
cgroup namespace                   ok
time namespace                     ok
overlayfs                          ok
fuse device                        FAIL No such file or directory
loop-control                       ok
binfmt_misc                        ok
cgroup2                            ok
hugetlbfs                          ok
debugfs                            ok
configfs                           ok
securityfs                         ok
bpf()                              ok
keyctl                             ok
add_key                            ok
fanotify_init                      ok
userfaultfd                        ok
io_uring_setup                     ok
seccomp filter avail               ok
process_vm_readv                   ok
32-bit syscalls (int 0x80)         ok
modify_ldt                         ok
swapon (ENOENT=present)            ok
kcmp                               FAIL Function not implemented
MAP_HUGETLB                        ok
transparent_hugepage               ok
memfd_secret                       ok
quotactl                           ok
/dev/mem                           ok
/dev/hwrng                         ok
/dev/nsm                           ok
/dev/net/tun                       ok
/proc/config.gz                    FAIL No such file or directory
/dev/ptmx openable                 ok
/dev/pts/ptmx                      ok
/dev/tty0                          ok
/dev/rtc0                          FAIL No such file or directory
exec from /tmp                     FAIL Permission denied
"""

# What Debian's kernel has beyond that; of what it lacks nothing is asked there.
_DEBIAN_HAS = ("fuse device", "kcmp", "/dev/rtc0")
# What only x86's kernels can have.
_X86 = ("32-bit syscalls (int 0x80)", "modify_ldt")

_RECORDED = "the answers of AWS's kernel were recorded on x86_64"


def _features(lab: Lab, kernel: str, note: bytes = b"Linux version") -> list[str]:
    with lab.run(lab.image("features", kernel=kernel)) as run:
        run.expect(note)
        run.check_ends(0)
        text = run.console.seen.decode(errors="replace").replace("\r", "")
    listed = re.search(r"^(iptables nat .*?\n)features: done$", text, re.DOTALL | re.MULTILINE)
    check(listed, "the program did not come to its end")
    assert listed
    # The kernel may say something in between.
    return [line for line in listed[1].splitlines() if not re.match(r"\[ *\d+\.\d+\] ", line)]


@functools.partial(boot_check, x86=_RECORDED)
def kernel_features(lab: Lab) -> None:
    """On our kernel a program finds what it finds on AWS's, feature by feature, with the same errors."""
    check_equal("\n".join(_features(lab, "own")), AWS.rstrip("\n"), "the features of our kernel")


@boot_check
def prebuilt_kernel_features(lab: Lab) -> None:
    """So it does on Debian's, whose modules are loaded on demand, where that kernel does not have more; and
    what that one lacks is said when it runs. Debian's for arm64 is held to the same, less what is x86's."""
    lacks = rb"note: this image's kernel lacks, of what AWS's has: memory control groups of version 1, "
    asked = [line for line in AWS.splitlines() if lab.arch == "x86_64" or not line.startswith(_X86)]
    for got, expected in zip(_features(lab, "prebuilt", lacks), asked, strict=True):
        if not got.startswith(_DEBIAN_HAS):
            check_equal(got, expected, "a feature of Debian's kernel")
