# SPDX-License-Identifier: MIT
"""The pytest plugin: fixtures that make EIFs and run enclaves, and what a failed test says about them.

    nitro_eif               makes an EIF in the session's temporary folder
    nitro_enclave           runs an enclave until the test's end
    nitro_enclave_factory   runs one until the session's end, for fixtures of a wider scope
    nitro_kms               a local KMS with keys of its own, until the session's end
    nitro_torture_case      a test for each document of the torture kit, for verifiers of attestation

pytest loads this wherever nitroctl is installed, so nothing that costs time is imported before it is used.
Workers of xdist need nothing from each other: context IDs and names are handed out by locks of the host. What
an enclave can do is in `api`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from nitroctl.base.options import Described, Request
from nitroctl.eif.request import BuildRequest
from nitroctl.enclaves.request import RunRequest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nitroctl.api import Enclave
    from nitroctl.enclaves.waitfor import Pattern
    from nitroctl.keywords import BuildKeywords, RunKeywords, StrPath
    from nitroctl.kms.local import Kms
    from nitroctl.torture import Case, Kit

TAIL = 40  # lines of a console in a report


def _session(request: type[Request]) -> list[Described]:
    """What of a request is set for a whole session: on the command line with --nitro-, in the configuration
    file with nitro_."""
    return [one for one in request.options() if one.option and one.option.session]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nitro", "Nitro Enclaves")
    for one in [*_session(RunRequest), *_session(BuildRequest)]:
        flag, text = f"--nitro-{one.name.replace('_', '-')}", one.help
        group.addoption(flag, metavar=one.metavar, choices=one.choices or None, help=text.replace("%", "%%"))
        parser.addini(f"nitro_{one.name}", text)
    text = "Fail tests that depend on what there is not on AWS (docs/differences.md)."
    group.addoption("--nitro-strict", action="store_true", help=text)
    parser.addini("nitro_strict", text, type="bool", default=False)


_STATE = pytest.StashKey["_State"]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STATE] = _State(config)
    config.addinivalue_line(
        "markers", "nitro_differs(name, ...): with --nitro-strict, what the test may depend on all the same"
    )
    config.addinivalue_line(
        "markers",
        "nitro_torture(only=[], checks=[], leave_out=[]): which cases nitro_torture_case is, and what",
    )


class _State:
    """What one process of a test session knows about its enclaves."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.seen: list[Enclave] = []  # by the running test: those that it started or found running
        self.differs: frozenset[str] = frozenset()  # what the running test may depend on

    def option(self, name: str) -> str | None:
        """As on the command line, else as in the configuration file."""
        value = self._config.getoption(f"nitro_{name}") or self._config.getini(f"nitro_{name}")
        return str(value) if value else None

    @functools.cached_property
    def enclaves(self) -> dict[str, Any]:
        """What enclaves of this session have unless a test says otherwise."""
        return self._settings(RunRequest)

    @functools.cached_property
    def images(self) -> dict[str, Any]:
        """The same of images."""
        return self._settings(BuildRequest)

    def _settings(self, request: type[Request]) -> dict[str, Any]:
        from nitroctl.base.errors import UsageError

        found = {}
        for one in _session(request):
            if text := self.option(one.name):
                try:
                    found[one.name] = one.take_text(text)
                except UsageError as e:
                    raise pytest.UsageError(f"nitro_{one.name}: {e}") from None
        return found

    @functools.cached_property
    def programs(self) -> None:
        """QEMU and backend are there, made if they have to be."""
        from nitroctl.base.errors import NitroError
        from nitroctl.toolchain import choice, places, programs

        if "qemu" in self.enclaves and "vsock_backend" in self.enclaves:
            return
        kind = self.enclaves.get("qemu_build")
        try:
            choice.choose(kind)
            places.locate("vsock")
        except NitroError:
            if kind:
                raise  # it is not there, and not for us to choose
            with self._terminal("nitroctl makes a QEMU with the nitro-enclave machine, this once"):
                programs.make()

    @contextlib.contextmanager
    def _terminal(self, text: str) -> Iterator[None]:
        """What is written in the body can be seen."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            if reporter:  # a worker of xdist has none
                reporter.ensure_newline()
                reporter.write_line(text)
            yield

    def enclave(self, eif: StrPath, log_dir: Path, options: Mapping[str, Any]) -> Enclave:
        from nitroctl.api import Enclave

        self.programs  # noqa: B018 (made once)
        defaults = {"log_dir": log_dir, **self.enclaves}
        if self.strict:
            defaults |= {"strict": True, "cpus": 2}  # one CPU is half a core, which AWS does not give
        if "qemu" in options or "qemu_build" in options:
            defaults.pop("qemu", None)
            defaults.pop("qemu_build", None)
        made = Enclave(eif, **{**defaults, **options})
        made._differs_now = self.differs
        self.seen.append(made)
        return made

    @property
    def strict(self) -> bool:
        return bool(self._config.getoption("nitro_strict") or self._config.getini("nitro_strict"))

    def begin(self, item: pytest.Item) -> None:
        """A test begins, with what it may depend on; enclaves of others may be in use by it, too."""
        names = [name for mark in item.iter_markers("nitro_differs") for name in mark.args]
        self.differs = _differences(item, names) if names else frozenset()
        self.seen = [enclave for enclave in self.seen if enclave.running]
        for enclave in self.seen:
            enclave._differs_now = self.differs
            enclave.faults._end_of_test()


def _differences(item: pytest.Item, names: Sequence[str]) -> frozenset[str]:
    from nitroctl.base.errors import UsageError
    from nitroctl.enclaves import differences

    try:
        return differences.checked(names)
    except UsageError as e:
        raise pytest.UsageError(f"{item.nodeid}: nitro_differs: {e}") from None


class StartEnclave(Protocol):
    """The type of `nitro_enclave` and `nitro_enclave_factory`."""

    def __call__(
        self,
        eif: StrPath,
        *,
        start: bool = True,
        keep: bool = False,
        log_dir: StrPath | None = None,
        strict: bool = False,
        differs: Sequence[str] = (),
        wait_for_port: int | Sequence[int] = (),
        wait_for_log: Pattern | Sequence[Pattern] = (),
        wait_timeout: float = 60.0,
        **options: Unpack[RunKeywords],
    ) -> Enclave:
        """Run an enclave and wait for its heartbeat; `options` are those of nitroctl.Enclave. With `start`
        false it is only made: for listeners that must be there before it boots."""
        ...


class MakeEif(Protocol):
    """The type of `nitro_eif`."""

    def __call__(self, **options: Unpack[BuildKeywords]) -> Path:
        """As nitroctl.build_eif, in a new file of the session's temporary folder, whose path it returns. What
        the image may lack becomes a warning of the test session."""
        ...


@pytest.fixture(scope="session")
def nitro_eif(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> MakeEif:
    """Makes an EIF from a container image or a folder: `nitro_eif(image="app.tar")`; returns its path."""

    def make(**options: Any) -> Path:
        from nitroctl.api import build_eif

        source = Path(options.get("image") or options.get("directory") or "app")
        if "blobs" not in options:
            options = {**pytestconfig.stash[_STATE].images, **options}
        name = options.get("name") or source.name.removesuffix(".tar")
        built = build_eif(tmp_path_factory.mktemp("eif") / f"{_safe(name)}.eif", **options)
        for warning in built.warnings:
            warnings.warn(f"{built.path.name}: {warning}", stacklevel=2)
        return built.path

    return make


@pytest.fixture(scope="session")
def nitro_kms() -> Iterator[Kms]:
    """A local KMS, with which an enclave is joined by `listen_port=[nitro_kms.parent_port]`: `create_key`,
    `encrypt`, `environment` for clients, `events` with the reason of each answer, `inject` for faults. For
    the session, so that images can be made to trust its `ca`."""
    from nitroctl.kms.local import Kms

    with Kms() as kms:
        yield kms


@pytest.fixture(scope="session")
def nitro_enclave_factory(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartEnclave]:
    """Runs enclaves: each ends with its `with` block, or with the session."""
    with _starter(pytestconfig, tmp_path_factory) as start:
        yield start


@pytest.fixture
def nitro_enclave(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartEnclave]:
    """Runs enclaves: `enclave = nitro_enclave("app.eif", memory="512M")`; each ends with the test."""
    with _starter(pytestconfig, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def _nitro_torture_kit() -> Kit:
    from nitroctl.torture import Kit

    return Kit()


@pytest.fixture
def nitro_torture_case(request: pytest.FixtureRequest, _nitro_torture_kit: Kit) -> Case:
    """One document, and what a verifier has to say to it, in a test for each: `case.judge(accepted)`, or
    `with case.judged(Refusal): verify(case.document, ...)`."""
    case: Case = _nitro_torture_kit.case(request.param)
    return case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "nitro_torture_case" not in metafunc.fixturenames:
        return
    from nitroctl.base.errors import UsageError
    from nitroctl.torture import names

    mark = metafunc.definition.get_closest_marker("nitro_torture")
    chosen: Mapping[str, Any] = mark.kwargs if mark else {}
    if mark and (mark.args or not chosen.keys() <= {"only", "checks", "leave_out"}):
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: nitro_torture takes only=, checks=, leave_out="
        )
    try:
        cases = names(chosen.get("only", ()), chosen.get("checks", ()), chosen.get("leave_out", ()))
    except UsageError as e:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: nitro_torture: {e}") from None
    metafunc.parametrize("nitro_torture_case", cases, indirect=True)


@contextlib.contextmanager
def _starter(config: pytest.Config, temporary: pytest.TempPathFactory) -> Iterator[StartEnclave]:
    with contextlib.ExitStack() as stack:

        def start(eif: StrPath, *, start: bool = True, **options: Any) -> Enclave:
            log_dir = temporary.mktemp(f"enclave-{_safe(Path(eif).name.removesuffix('.eif'))}")
            made = config.stash[_STATE].enclave(eif, log_dir, options)
            stack.callback(made.close)
            return made.start() if start else made

        yield start


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:50]


# ---- reports -----------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_STATE].begin(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    _hide_our_frames()
    report = yield
    if report.failed:
        for enclave in item.config.stash[_STATE].seen:
            if title := _title(enclave):
                lines = enclave.console._tail(TAIL) or ["(nothing)"]
                where = f"logs, complete after its end: {enclave.log_dir}"
                report.sections.append((f"console of enclave {title}", "\n".join([*lines, "", where])))
    return report


def _hide_our_frames() -> None:
    """A report of what is expected to go wrong ends in the user's code, which is where it can be mended; with
    NITROCTL_DEBUG=1, and for what is our fault, it does not."""
    from nitroctl.base.errors import NitroError

    def hidden(error: pytest.ExceptionInfo[BaseException] | None) -> bool:
        return error is not None and isinstance(error.value, NitroError | TimeoutError)

    if not os.environ.get("NITROCTL_DEBUG"):
        for name, module in list(sys.modules.items()):
            if name.startswith("nitroctl."):
                vars(module).setdefault("__tracebackhide__", hidden)


def _title(enclave: Enclave) -> str | None:
    if not enclave.started:
        return None
    record = enclave.record
    state = f"{record.state}" if record.running else f"ended: {record.message}"
    return f"{record.name}, CID {record.cid}, {state}"
