# SPDX-License-Identifier: MIT
"""The lab that the boot tests share. Goals: every test starts its own guests and leaves none; a failure shows
the consoles' last lines and the backends' logs; at most two guests at once, whatever runs in parallel.

    pytest tests/boot                          what `nitroctl build` and `nitroctl guest` made
    pytest -n 2 tests/boot                     two tests at a time
    pytest tests/boot -k rebinding             by name
    pytest tests/boot --qemu Q --vsock-backend V --kernel BZIMAGE
    pytest tests/boot --blobs DIR              with AWS's kernel and init: `make check-aws`
    pytest tests/boot/test_boot.py --qemu .../qemu-system-aarch64     arm64 guests, as its name says

With an arm64 QEMU, checks of what only x86 has are left out; with --blobs, tests of what our init does beyond
AWS's, marked `ours`; each with a reason. Else nothing is skipped: a missing piece fails with the command that
provides it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from nitroctl.eif.compose import Kernel, from_blobs
from nitroctl.testing.lab import Lab, arch_of
from nitroctl.toolchain import places

# What needs a host with KVM or with vsock_loopback is run by tools/check-kvm, which sees to it.
collect_ignore = [] if os.environ.get("NITRO_CHECK_KVM") else ["kvm"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("boot tests")
    group.addoption("--qemu", type=Path, help="the QEMU to test")
    group.addoption("--vsock-backend", type=Path, help="the vhost-user-vsock to test with")
    group.addoption("--kernel", type=Path, help="a bzImage in place of our own guest kernel")
    group.addoption(
        "--blobs", type=Path, help="AWS's kernel and init in place of ours: its folder, or its RPM"
    )


_LEFT_OUT = pytest.StashKey[dict[str, str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    qemu = config.getoption("--qemu")
    arm = qemu is not None and arch_of(qemu) == "aarch64"
    if not config.getoption("--blobs") and not arm:
        return
    reasons = {}
    for item in items:
        check = item.callspec.params.get("check") if hasattr(item, "callspec") else None
        mark = item.get_closest_marker("ours")
        why = ""
        if config.getoption("--blobs"):
            why = check.ours if check else mark.args[0] if mark else ""
        if why or (why := check.left_out("aarch64") if arm and check else ""):
            reasons[item.nodeid] = why
    config.stash[_LEFT_OUT] = reasons
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in reasons])
    items[:] = [item for item in items if item.nodeid not in reasons]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if reasons := config.stash.get(_LEFT_OUT, {}):
        terminalreporter.section("not asked here")
        for name, why in reasons.items():
            terminalreporter.line(f"{name}: {why}")


@pytest.fixture(scope="session")
def session_lab(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """One for all tests of a process, since it keeps the images that they share."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 2:
        pytest.exit("at most two guests at once: use pytest -n 2 or none for tests/boot", returncode=2)
    qemu, backend = pytestconfig.getoption("--qemu"), pytestconfig.getoption("--vsock-backend")
    blobs = pytestconfig.getoption("--blobs")
    lab = Lab(
        qemu=qemu.absolute() if qemu else places.locate("qemu"),
        backend=backend.absolute() if backend else places.locate("vsock"),
        blobs=from_blobs(blobs.absolute()) if blobs else None,
    )
    if kernel := pytestconfig.getoption("--kernel"):
        lab.kernels["own"] = Kernel(kernel.absolute())
    with lab:
        yield lab


@pytest.fixture
def lab(
    session_lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """The lab, with nothing of earlier tests in its evidence, and no process left when the test is over. A
    test with two guests of its own waits until it is alone."""
    check = request.node.callspec.params.get("check") if hasattr(request.node, "callspec") else None
    alone = check is not None and check.guests > 1
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers
    with open(shared / "guests.lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        session_lab.forget()
        yield session_lab
        # Ended here, what one test left is not found in all that come after it.
        left = session_lab.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        session_lab.wait_gone()
        assert not left, "\n".join(left.values())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        report.sections.append(("guests", lab.evidence()))
    return report
