# SPDX-License-Identifier: MIT
"""A child that has only what it was given: what a program that serves a hostile guest is started with.

    Landlock      opens the files and folders that it was given, and no others but its own in /proc; makes,
                  renames, removes none; no TCP, and no abstract sockets and signals of processes
                  outside, as far as the kernel has that
    seccomp       makes no process and no socket, traces and signals nobody else, changes no file's mode,
                  owner, times or attributes: what Landlock does not cover
    limits        no core dump, DESCRIPTORS_MAX descriptors
    no new privileges

Made before the child (`Confinement`), entered by it between fork and exec (`enter`), and inherited by all
that it becomes. What the child opens later goes by the files that were there when this was made. A call that
is forbidden fails with an error and is nobody's end: libraries try things.

What which program needs is not known here. landlock(7), seccomp(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from nitroctl.base.errors import EnclaveError

DESCRIPTORS_MAX = 2048
# Of a core: 0 would leave it to a core_pattern that is a pipe, 1 makes none in any case (core(5)).
CORE_MAX = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# ---- Landlock ----------------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # of every architecture
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_IOCTL_DEV = 1 << 15
# Access rights of files by version of the interface: the first has 13; then REFER, TRUNCATE, IOCTL_DEV.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_NOW = 16
_TCP = 0b11  # bind, connect; from version 4
_SCOPES = 0b11  # abstract sockets, signals; from version 6


@functools.cache
def landlock_version() -> int:
    """That of the kernel's interface; 0: it has none, or has it switched off."""
    version: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(0, version)


def _call(number: int, *arguments: object) -> int:
    found: int = _libc.syscall(number, *arguments)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def _ruleset(version: int, read: Iterable[Path], run: Iterable[Path], devices: Iterable[Path]) -> int:
    rights = (1 << _FILE_RIGHTS.get(version, _FILE_RIGHTS_NOW)) - 1
    about = struct.pack("=QQQ", rights, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    # A kernel takes what is longer than it knows as long as the rest is zeros.
    ruleset = _call(_CREATE_RULESET, about, ctypes.c_size_t(len(about)), 0)
    try:
        for paths, wanted in (
            (read, _READ_FILE | _READ_DIR),
            (run, _READ_FILE | _READ_DIR | _EXECUTE),
            (devices, _READ_FILE | _WRITE_FILE | _IOCTL_DEV),
        ):
            for path in paths:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    _allow(ruleset, path, wanted & rights)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _allow(ruleset: int, path: Path, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not path.is_dir():
            rights &= ~_READ_DIR
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


# ---- seccomp -----------------------------------------------------------------------------------------------

# AUDIT_ARCH_* and the numbers of calls, which differ: linux/audit.h, asm/unistd_64.h, asm-generic/unistd.h.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32 = 0x40000000  # on x86-64, a second set of numbers
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # processes
    "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "kcmp": (312, 272), "unshare": (272, 97), "setns": (308, 268),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # sockets; those it has were given to it
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200),
    # files, as far as Landlock leaves that
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
    "open_by_handle_at": (304, 265), "inotify_init": (253, None), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "quotactl": (179, 60), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    # the kernel's own, and ways around a filter
    "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "personality": (135, 92), "iopl": (172, None),
    "ioperm": (173, None),
}  # fmt: skip
_CLONE, _CLONE3, _KILL, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (62, 129), (234, 131), (302, 261)
_SECCOMP = (317, 277)
_CLONE_THREAD = 0x00010000

_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # in struct seccomp_data
_FILTER, _SPEC_ALLOW = 1, 4  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW
_PR_SET_NO_NEW_PRIVS = 38


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _argument(index: int, pid: int) -> Iterator[bytes]:
    """An argument, an int that is `pid`, or it is refused. Ends the program."""
    yield _step(_LOAD, _ARGUMENTS + 8 * index)
    yield _step(_JUMP_EQUAL, pid, yes=1)
    yield _step(_RETURN, _ERRNO | errno.EPERM)
    yield _step(_RETURN, _ALLOW)


def _program(machine: str, pid: int) -> bytes:
    """The filter of the process `pid`. Behind each comparison stands what it leads to."""
    architecture, column = _ARCHITECTURES[machine]
    refuse = _step(_RETURN, _ERRNO | errno.EPERM)
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_JUMP_EQUAL, architecture, yes=1),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        steps += [_step(_JUMP_GREATER_EQUAL, _X32, no=1), refuse]
    # Libraries fall back on clone(), whose flags a filter can see.
    steps += [_step(_JUMP_EQUAL, _CLONE3[column], no=1), _step(_RETURN, _ERRNO | errno.ENOSYS)]
    steps += [
        _step(_JUMP_EQUAL, _CLONE[column], no=4),
        _step(_LOAD, _ARGUMENTS),
        _step(_JUMP_SET, _CLONE_THREAD, yes=1),
        refuse,
        _step(_RETURN, _ALLOW),
    ]
    for call, own in ((_KILL, pid), (_TGKILL, pid), (_PRLIMIT, 0)):
        steps += [_step(_JUMP_EQUAL, call[column], no=4), *_argument(0, own)]
    for numbers in _FORBIDDEN.values():
        number = numbers[column]
        if number is not None:
            steps += [_step(_JUMP_EQUAL, number, no=1), refuse]
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


@functools.cache
def seccomp_works() -> bool:
    """Whether the kernel, and what we run in, let processes have filters. It looks for one at address 0 and
    says EFAULT."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    number = _SECCOMP[_ARCHITECTURES[machine][1]]
    return _libc.syscall(number, _FILTER, 0, None) < 0 and ctypes.get_errno() in (errno.EFAULT, errno.EACCES)


# ---- both --------------------------------------------------------------------------------------------------


KINDS = ("Landlock", "seccomp")


def kinds() -> tuple[str, ...]:
    """What this host has of it, for people; limits and no new privileges are everywhere."""
    version = landlock_version()
    return (
        *((f"Landlock {version}",) if version else ()),
        *(("seccomp",) if seccomp_works() else ()),
    )


class Confinement:
    """What a child may: `read` files and folders with all in them, `run` programs and what they load, use
    `devices`. A path that is not there is left out. Closed once the child has started."""

    def __init__(self, *, read: Iterable[Path], run: Iterable[Path], devices: Iterable[Path]) -> None:
        self._ruleset = -1
        self._machine = platform.machine() if seccomp_works() else ""
        try:
            if version := landlock_version():
                self._ruleset = _ruleset(version, read, run, devices)
        except OSError as e:
            raise EnclaveError(
                f"cannot confine a program: Landlock: {e.strerror}", hint="--no-sandbox goes on without"
            ) from e

    def enter(self) -> None:
        """In the child. It ends there, with a line on standard error, if it does not succeed."""
        what = "no new privileges"
        try:
            if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            what = "limits"
            _limit()
            if self._ruleset >= 0:
                what = "Landlock"
                _allow(self._ruleset, Path("/proc/self"), _READ_FILE | _READ_DIR)  # the child's
                _call(_RESTRICT_SELF, self._ruleset, 0)
            if self._machine:
                what = "seccomp"
                code = _program(self._machine, os.getpid())
                # struct sock_fprog
                program = ctypes.create_string_buffer(code, len(code))
                about = struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
                _call(_SECCOMP[_ARCHITECTURES[self._machine][1]], _FILTER, _SPEC_ALLOW, about)
        except OSError as e:
            os.write(2, f"cannot be confined: {what}: {e.strerror}; --no-sandbox goes on without\n".encode())
            os._exit(1)

    def close(self) -> None:
        if self._ruleset >= 0:
            os.close(self._ruleset)
            self._ruleset = -1

    def __enter__(self) -> Confinement:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _limit() -> None:
    import resource

    for what, most in ((resource.RLIMIT_NOFILE, DESCRIPTORS_MAX), (resource.RLIMIT_CORE, CORE_MAX)):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(what, (most, most))
