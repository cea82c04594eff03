# SPDX-License-Identifier: MIT
"""What must hold when a real kernel boots: one function per claim, its docstring the claim.

`nitroctl test boot` and the pytest suite in tests/boot run the same functions. The generic ones work with an
EIF that is not ours; the others use our test images and the agent inside. How guests are started is `lab`'s
business, `claims` keeps the register, and each larger subject has a module of its own: checks_NAME.

Sources of the expected values: AWS's nsm-check and its user guide for the NSM, nitro-cli for the parent's
side, Linux's errno for sockets, our own measurement of the file (checked against AWS's vectors elsewhere).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from nitroctl.testing import (
    agent,
    checks_attestation,  # noqa: F401  registers its own
    checks_clock,  # noqa: F401  likewise
    checks_image,  # noqa: F401
    checks_kernel,  # noqa: F401
    checks_nitro_cli,  # noqa: F401
    checks_nsm,  # noqa: F401
    checks_vsock,  # noqa: F401
)
from nitroctl.testing.agent import AgentGone
from nitroctl.testing.claims import (
    CHECKS,
    INSTANCE,
    NSM_ID,
    ROLE,
    VSOCK_ID,
    ZERO,
    Check,
    Nsm,
    Outcome,
    boot_check,
    generic_check,
    perform,
    selected,
)
from nitroctl.testing.lab import (
    LIMIT,
    Backend,
    Console,
    Guest,
    Lab,
    check,
    check_equal,
    heartbeat_listener,
)
from nitroctl.vsock import sockets

__all__ = ["CHECKS", "Check", "Outcome", "perform", "selected"]


# ---- any EIF -----------------------------------------------------------------------------------------


@generic_check
def boots(lab: Lab) -> None:
    """`nitroctl run` starts the enclave, streams its console and sees its heartbeat; whether the enclave ends
    by itself or on SIGTERM, nothing is left of it."""
    with lab.run(lab.eif or lab.image("hello")) as run:
        if lab.eif is None:  # another may be as quiet as it likes
            run.expect(rb"Linux version")
        run.expect(rb"heartbeat after")
        run.terminate()
        check(run.status() in (0, 143), "it ended neither by itself nor on SIGTERM")
    lab.check_nothing_left()


@generic_check
def by_hand(lab: Lab) -> None:
    """The documentation's two command lines start it: the backend says "ready" and, after the heartbeat,
    "booted"."""
    from nitroctl.eif.peek import peek

    eif = lab.eif or lab.image("hello")
    with lab.guest(eif, machine=",acpi=on" if peek(eif).needs_acpi else "") as guest:
        guest.backend.expect("booted")


@generic_check
def ctrl_c(lab: Lab) -> None:
    """Ctrl-C at the terminal ends the enclave with status 130 and leaves no process, socket or file."""
    with lab.run(lab.eif or lab.image("agent")) as run:
        run.expect(rb"heartbeat after" if lab.eif is None else rb"vsock /\S+\r\n")
        run.console.child.sendintr()
        run.check_ends(130)
    lab.check_nothing_left()


# ---- command lines and ends --------------------------------------------------------------------------


def _printed_pcrs(guest: Guest) -> dict[str, str]:
    """What the hello application prints, until its last line."""
    guest.expect(rb"(?s)PCR0: .*PCR8: [0-9a-f]{96}")
    found = re.findall(rb"(PCR\d+): ([0-9a-f]{96})", guest.console.seen)
    return {name.decode(): value.decode() for name, value in found}


def _string_pcr(text: str) -> str:
    """PCR3 and PCR4: SHA384(48 zero bytes, then the ASCII text), AWS's rule."""
    return hashlib.sha384(ZERO + text.encode()).hexdigest()


def _check_file_pcrs(lab: Lab, eif: Path, got: dict[str, str]) -> None:
    from nitroctl.eif.measure import measure

    for name, value in measure(eif).items():
        check_equal(got.get(name), value, f"{name} in the enclave, against the file")
    check_equal(got.get("PCR8"), ZERO.hex(), "PCR8 of an unsigned image")


@boot_check
def documented_command_lines(lab: Lab) -> None:
    """`vhost-user-vsock --socket-path --guest-cid --uds-path` and `qemu-system-x86_64 -M
    nitro-enclave,vsock=c,id=hello-world … -nographic -m 4G` boot hello: the PCRs of its NSM are those of the
    file, PCR3 and PCR4 zero without their options, and QEMU ends with status 0 when the application does."""
    eif = lab.image("hello")
    with lab.guest(eif) as guest:
        guest.backend.expect("booted")
        got = _printed_pcrs(guest)
        guest.check_ends()
    _check_file_pcrs(lab, eif, got)
    check_equal((got["PCR3"], got["PCR4"]), (ZERO.hex(),) * 2, "PCR3 and PCR4")


@boot_check
def vm_form(lab: Lab) -> None:
    """`--vm guest-cid=N,socket=S,uds-path=P`, vhost-device-vsock's form, works too, and the guest's CID is
    the one named there."""
    with lab.agent(vm_form=True, cid=77) as (guest, client):
        guest.backend.expect("booted")
        check_equal(client.facts("id")["cid"], "77", "the guest's CID")


@boot_check
def run_hello(lab: Lab) -> None:
    """`nitroctl run` of hello exits with 0; PCR0 to PCR2 are those of the file, PCR3 that of the role and
    PCR4 that of the instance ID."""
    eif = lab.image("hello")
    with lab.run(eif, "--role", ROLE, "--instance-id", INSTANCE) as run:
        run.check_ends(0)
        found = re.findall(rb"(PCR\d+): ([0-9a-f]{96})", run.console.seen)
    got = {name.decode(): value.decode() for name, value in found}
    _check_file_pcrs(lab, eif, got)
    check_equal(got.get("PCR3"), _string_pcr(ROLE), "PCR3")
    check_equal(got.get("PCR4"), _string_pcr(INSTANCE), "PCR4")
    lab.check_nothing_left()


@boot_check
def stable_parent(lab: Lab) -> None:
    """Without --instance-id PCR4 is that of i-0000000000000000, the same on every machine."""
    with lab.run(lab.image("hello")) as run:
        run.expect(b"PCR4: " + _string_pcr("i-0000000000000000").encode())
        run.check_ends(0)


@boot_check
def dry_run(lab: Lab) -> None:
    """The two lines that `nitroctl run --dry-run` prints, pasted into two shells, boot the enclave."""
    with lab.run(lab.image("hello"), "--dry-run") as run:
        run.check_ends(0)
        said = run.console.seen.decode().replace("\r", "").split("\n")
        lines = [line for line in said if line and not line.startswith("note: ")]
    check_equal(len(lines), 2, "number of lines")
    with Backend(lab, ["sh", "-c", f"exec {lines[0]}"]) as backend:
        backend.expect("ready")
        console = Console(lab, "pasted QEMU", ["sh", "-c", lines[1]])
        with contextlib.closing(console):
            console.expect(rb"PCR8: ")
            check_equal(console.status(), 0, "QEMU's exit status")
        backend.expect("booted")
        check_equal(backend.process.wait(LIMIT), 0, "the backend's exit status, with --once")
    lab.check_nothing_left()


@functools.partial(boot_check, ours="AWS's init tells no status")
def application_exit(lab: Lab) -> None:
    """When the application ends, whatever its status, init tells it, resets the machine, and QEMU ends with
    status 0."""
    with lab.agent() as (guest, client):
        client.exit(3)
        guest.expect(rb"child exited with error")
        guest.check_ends()
        guest.backend.expect("booted")
        guest.backend.expect("exited 3")


@functools.partial(boot_check, ours="AWS's init tells no status")
def application_killed(lab: Lab) -> None:
    """The same when it dies of a signal."""
    with lab.agent() as (guest, client):
        client.kill(signal.SIGSEGV)
        guest.expect(rb"child exited by signal")
        guest.check_ends()
        guest.backend.expect("booted")
        guest.backend.expect(f"killed {signal.SIGSEGV.value}")


@boot_check
def reset_by_keyboard_controller(lab: Lab) -> None:
    """`reboot=k` on AWS's command line: the reset port answers and QEMU ends with status 0; on arm64, where
    the word means nothing, it is PSCI that does."""
    with lab.agent() as (guest, client):
        check("reboot=k" in client.probe("cmdline").split(), "reboot=k is not on the command line")
        client.reset()
        guest.expect(rb"reboot: ")
        guest.check_ends()


@functools.partial(boot_check, x86="a triple fault is x86's")
def triple_fault(lab: Lab) -> None:
    """`reboot=t`, a triple fault, ends QEMU with status 0 as well."""
    with lab.agent(args=("-append", "reboot=t")) as (guest, client):
        client.reset()
        guest.check_ends()


@boot_check
def panic(lab: Lab) -> None:
    """A panic after the heartbeat ends `nitroctl run` with status 4 and the panic's text."""
    with lab.run(lab.image("agent")) as run:
        uds = run.uds()
        with run.agent(uds) as client:
            client.crash()
        run.expect(rb"error: the guest's kernel panicked: sysrq triggered crash")
        run.check_ends(4)
    lab.check_nothing_left()


@functools.partial(boot_check, ours="AWS's init crashes without a word where /cmd is missing")
def panic_that_stays(lab: Lab) -> None:
    """With panic=0 the kernel stops for ever after a panic; it is recognised on the console all the same. The
    line that init printed before is in the message."""
    with lab.run(lab.image("late-panic"), "--append", "panic=0") as run:
        run.expect(rb"init: .*/cmd")
        run.expect(rb"error: the guest's kernel panicked: Attempted to kill init!")
        run.check_ends(4)
    lab.check_nothing_left()


@boot_check
def panic_before_the_heartbeat(lab: Lab) -> None:
    """An EIF whose init is missing panics early: status 4, not a wait for the heartbeat."""
    with lab.run(lab.image("no-init")) as run:
        # Of a kernel that has block devices, as AWS's has: it looks for a root file system.
        run.expect(
            rb"error: the guest's kernel panicked: VFS: Unable to mount root fs on "
            rb"(\S+ or )?unknown-block\([01],0\)"
        )
        run.check_ends(4)
    lab.check_nothing_left()


@boot_check
def halt(lab: Lab) -> None:
    """A halt without reset, which QEMU cannot see without ACPI, ends `nitroctl run` with status 0."""
    with lab.run(lab.image("halt")) as run:
        run.expect(rb"reboot: System halted")
        run.check_ends(0)
    lab.check_nothing_left()


# ---- the heartbeat -----------------------------------------------------------------------------------


@functools.partial(boot_check, built_in=True)
def no_heartbeat(lab: Lab) -> None:
    """A guest that runs but sends no heartbeat ends with status 3 and an error that says so, when
    --boot-timeout is over."""
    with lab.run(lab.image("no-heartbeat"), "--boot-timeout", f"{lab.patience}") as run:
        run.expect(b"error: no heartbeat within %d s" % lab.patience)
        run.check_ends(3)
        check(agent.READY_LINE.encode() in run.console.seen, "the guest did not even run")
    lab.check_nothing_left()


@boot_check
def heartbeat_without_answer(lab: Lab) -> None:
    """A parent that takes the heartbeat and never answers it: status 3 when --boot-timeout is over."""
    with lab.run(lab.image("hello"), "--boot-timeout", f"{lab.patience}") as run:
        # The guest needs a second to come up: time to be there before the backend answers itself.
        with heartbeat_listener(run.uds()) as listener, listener.accept() as beat:
            beat.settimeout(LIMIT)
            check_equal(beat.recv(1), b"\xb7", "the heartbeat")
            run.expect(b"error: no heartbeat within %d s" % lab.patience)
            run.check_ends(3)
        check(b"PCR0" not in run.console.seen, "the application ran")
    lab.check_nothing_left()


@boot_check
def own_heartbeat_listener(lab: Lab) -> None:
    """A parent that listens on PATH_9000 gets the heartbeat, one byte 0xB7, and the guest goes on once it is
    answered."""
    with lab.guest(lab.image("hello")) as guest, heartbeat_listener(guest.uds) as listener:
        with listener.accept() as beat:
            beat.settimeout(LIMIT)
            check_equal(beat.recv(2), b"\xb7", "the heartbeat")
            check(b"PCR0" not in guest.console.seen, "the application ran before the answer")
            beat.sendall(b"\xb7")
            check_equal(beat.recv(1), b"", "after the answer")
        guest.expect(rb"PCR8: ")
        guest.check_ends()


@boot_check
def own_heartbeat_listener_under_run(lab: Lab) -> None:
    """`nitroctl run` counts a heartbeat that the parent's own listener answered."""
    with lab.run(lab.image("hello")) as run:
        with heartbeat_listener(run.uds()) as listener, listener.accept() as beat:
            check_equal(beat.recv(2), b"\xb7", "the heartbeat")
            beat.sendall(b"\xb7")
        run.expect(rb"heartbeat after")
        run.check_ends(0)


@boot_check
def wrong_heartbeat_answer(lab: Lab) -> None:
    """Another byte than 0xB7 as answer: init says so and dies, and the kernel panics."""
    with lab.guest(lab.image("hello")) as guest, heartbeat_listener(guest.uds) as listener:
        with listener.accept() as beat:
            beat.settimeout(LIMIT)
            beat.recv(1)
            beat.sendall(b"\xb6")
        guest.expect(rb"received wrong heartbeat")
        guest.expect(rb"Kernel panic - not syncing")


# ---- what the guest finds ----------------------------------------------------------------------------


@boot_check
def devices(lab: Lab) -> None:
    """Exactly two devices, each with its driver: vsock on the first transport, NSM on the second, on x86_64
    with IRQ 5 and 6; no PCI, disk or network device."""
    with lab.agent() as (_, client):
        found = [line.split() for line in client.probe("devices").splitlines()]
        transports = {int(ident): transport for _, ident, transport, _ in found}
        check_equal(sorted(transports), [VSOCK_ID, NSM_ID], "virtio device IDs")
        check("-" not in [driver for *_, driver in found], f"a device without driver: {found}")
        if lab.arch == "aarch64":  # by their address in the device tree
            vsock_at, nsm_at = (int(transports[i].partition(".")[0], 16) for i in (VSOCK_ID, NSM_ID))
        else:
            # Linux numbers the transports as they come on the command line.
            entries = _transports(client.probe("cmdline"))
            found_at = [entries[int(transports[i].rpartition(".")[2])] for i in (VSOCK_ID, NSM_ID)]
            (vsock_at, vsock_irq), (nsm_at, nsm_irq) = found_at
            check_equal((vsock_irq, nsm_irq), (5, 6), "IRQs of vsock and NSM")
        check(vsock_at < nsm_at, f"vsock is at {vsock_at:#x}, NSM at {nsm_at:#x}")
        # Linux's loop devices are none of the machine's.
        loops = sum(name.startswith("loop") for name in client.probe("ls", "/sys/block").split())
        expected = {"pci": "0", "block": str(loops), "net": "0"}
        check_equal(client.facts("buses"), expected, "devices of each bus")


@boot_check
def loopback_address(lab: Lab) -> None:
    """A program can bind 127.0.0.1 while lo is down, as it is at the start: both kernels have tables of
    routes, as AWS's has."""
    for kernel, machine in (("own", ""), ("prebuilt", lab.acpi)):
        with lab.guest(lab.image("agent", kernel=kernel), machine=machine) as guest, guest.agent() as client:
            flags = int(client.probe("cat", "/sys/class/net/lo/flags"), 16)
            check(not flags & 1, f"{kernel} kernel: lo is up")
            check_equal(client.facts("bind", "127.0.0.1")["errno"], "0", f"{kernel} kernel: errno of bind")


def _transports(command_line: str) -> list[tuple[int, int]]:
    """(address, IRQ) of each virtio_mmio.device=SIZE@ADDRESS:IRQ, Linux's syntax."""
    found = re.findall(r"virtio_mmio\.device=\w+@(\w+):(\d+)", command_line)
    return [(int(address, 0), int(irq)) for address, irq in found]


@boot_check
def command_line(lab: Lab) -> None:
    """The guest's command line is the EIF's, then without KVM what its clocks are, then -append, then one
    virtio_mmio.device entry per device, and nothing else; on arm64, whose devices are in a tree, the EIF's
    and -append."""
    with lab.agent(args=("-append", "added=1 also=2")) as (_, client):
        line = client.probe("cmdline").strip()
        tsc = "" if lab.accel.name == "kvm" else r"no_timer_check tsc_early_khz=\d+ tsc=nowatchdog "
        entry = r"virtio_mmio\.device=\w+@\w+:\d+"
        wanted = rf"{re.escape(lab.cmdline)} {tsc}added=1 also=2 {entry} {entry}"
        if lab.arch == "aarch64":
            wanted = rf"{re.escape(lab.cmdline)} added=1 also=2"
        check(re.fullmatch(wanted, line), f"not the EIF's, the board's, -append and two devices: {line}")


@boot_check
def two_cpus(lab: Lab) -> None:
    """With -smp 2 the guest brings both CPUs up."""
    with lab.agent(args=("-smp", "2")) as (_, client):
        check_equal(client.probe("cpus").strip(), "2", "CPUs online")


@functools.partial(boot_check, x86="it is about x86-64's instructions")
def x86_64_v2(lab: Lab) -> None:
    """The default CPU runs programs compiled for x86-64-v2, which most distributions need now."""
    with lab.agent() as (_, client):
        got = client.facts("v2")
        # CRC-32C's check value (RFC 3720), the ones of ff00ff00ff00ff00, a successful exchange.
        check_equal([got[k] for k in ("sse4.2", "popcnt", "cx16")], ["e3069283", "32", "1"], "results")


@boot_check
def memory_above_4g(lab: Lab) -> None:
    """With -m 4G and -m 5G there is RAM above 4 GiB of guest address, and vsock buffers that lie there
    arrive intact."""
    for memory, high in (("4G", 1), ("5G", 2)):
        with lab.agent(memory=memory) as (guest, client):
            got = int(client.facts("mem")["high"])
            check(got > (high << 20) * 0.9, f"-m {memory}: only {got} KiB lie above 4 GiB")
            with sockets.listen(guest.uds, 5000) as listener:
                listener.socket.settimeout(LIMIT)
                client.start("high-source", sockets.PARENT_CID, 5000, 1 << 20, 7)
                with listener.accept() as stream:
                    stream.settimeout(LIMIT)
                    data = agent.receive_all(stream)
                report = client.finish()
            check_equal(len(data), 1 << 20, f"bytes from above 4 GiB ({report.strip()})")
            facts = dict(line.split(" ", 1) for line in report.splitlines())
            check(int(facts["zerocopy"]) > 0, "the guest's kernel copied all of it to somewhere else")
            frame = int(facts["low-pfn"], 16)
            check(frame >= (4 << 30) >> 12, f"the lowest page frame is {frame:#x}, below 4 GiB")
            check(data == agent.pattern(7, 1 << 20), "they are damaged")


# ---- images ------------------------------------------------------------------------------------------


@boot_check
def big_image(lab: Lab) -> None:
    """An EIF of 400 MB boots with the default memory, four times its size, and its NSM has its PCRs."""
    from nitroctl.eif.measure import measure

    eif = lab.image("big", size=400_000_000)
    with lab.run(eif) as run:
        uds = run.uds()
        with run.agent(uds) as client:
            nsm = Nsm(client)
            got = [nsm.pcr(index)[0].hex() for index in range(3)]
            check_equal(got, [value for _, value in measure(eif).items()], "PCR0 to PCR2")
            client.exit(0)
        run.check_ends(0)


@functools.partial(boot_check, x86="Debian's kernel for arm64 needs no ACPI")
def debian_kernel(lab: Lab) -> None:
    """Debian's prebuilt kernel, whose drivers are modules and which needs ACPI: the EIF says so in its
    metadata, `nitroctl run` obeys, and --dry-run shows it."""
    eif = lab.image("hello", kernel="prebuilt")
    with lab.run(eif, "--dry-run") as run:
        run.expect(rb" nitro-enclave,\S*,acpi=on[ ,]")
        run.check_ends(0)
    with lab.run(eif) as run:
        run.check_ends(0)
        found = re.findall(rb"(PCR\d+): ([0-9a-f]{96})", run.console.seen)
    _check_file_pcrs(lab, eif, {name.decode(): value.decode() for name, value in found})
    lab.check_nothing_left()


# ---- several, and sudden deaths ----------------------------------------------------------------------


@functools.partial(boot_check, guests=2)
def two_at_once(lab: Lab) -> None:
    """Two enclaves at once have different CIDs and talk to their own sockets."""
    eif = lab.image("agent")
    with lab.run(eif) as one, lab.run(eif) as two:
        cids = []
        paths = [one.uds(), two.uds()]
        check(paths[0] != paths[1], "both have the same socket")
        for run, uds in zip((one, two), paths, strict=True):
            with run.agent(uds) as client:
                cids.append(int(client.facts("id")["cid"]))
        check_equal(cids, [int(uds.parent.name) for uds in paths], "the guests' CIDs")
        check_equal(sorted(cids), [16, 17], "the lowest free CIDs")
        for run, uds in zip((one, two), paths, strict=True):
            with contextlib.suppress(AgentGone), agent.Agent(uds, timeout=LIMIT) as client:
                client.exit(0)
            run.check_ends(0)
    lab.check_nothing_left()


def _kill(lab: Lab, victim: Callable[[int], int], status: int, message: bytes) -> None:
    with lab.run(lab.image("agent")) as run:
        run.expect(rb"heartbeat after")
        check_equal(len(lab.processes()), 3, "processes of the enclave")
        os.kill(victim(run.pid), signal.SIGKILL)
        if message:
            run.expect(message)
        run.check_ends(status)
    lab.check_nothing_left()


@boot_check
def kill_9_of_qemu(lab: Lab) -> None:
    """kill -9 of QEMU: status 1, an error that says so, and nothing left."""
    _kill(lab, lambda _: lab.process(lab.qemu), 1, rb"error: QEMU was killed by SIGKILL")


@boot_check
def kill_9_of_the_backend(lab: Lab) -> None:
    """kill -9 of the backend: status 1, an error that says so, and nothing left."""
    _kill(lab, lambda _: lab.process(lab.backend), 1, rb"error: the vsock backend was killed by SIGKILL")


@boot_check
def kill_9_of_nitroctl(lab: Lab) -> None:
    """kill -9 of nitroctl itself: QEMU and backend end too, sockets and folder are gone."""
    _kill(lab, lambda pid: pid, -signal.SIGKILL, b"")
