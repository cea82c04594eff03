# SPDX-License-Identifier: MIT
"""`nitro-cli` without an enclave: usage, codes, images, request and its checks, stepping aside.

The expected texts, keys and statuses are AWS's, from its user guide and from transcripts of its tool.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cpiomodel
import eifmodel as model
import eifsigner as signer
import imagemodel as im
from nitroctl.base.errors import NitroError
from nitroctl.eif.extract import extract
from nitroctl.nitro_cli import arguments, errors, main, request, vsock_proxy
from nitroctl.nitro_cli.errors import CliError

PYTHON = Path(__file__).resolve().parents[3] / "python"
LINK = "https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html"


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logs and intermediate files of its own, no Docker, no skopeo; a folder for programs on PATH."""
    monkeypatch.setenv("NITRO_CLI_LOGS_PATH", str(tmp_path / "logs"))
    monkeypatch.setenv("NITRO_CLI_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "cp", "cat", "mkdir"):
        (programs / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in argv])
    out, err = capfd.readouterr()
    assert isinstance(e.value.code, int)
    return e.value.code, out, err


def check_failure(result: tuple[int, str, str], code: str, *texts: str, in_process: bool = False) -> None:
    """The convention: nothing on stdout; code, link, log file, each with an empty line between; E39 after
    what failed in the enclave's process."""
    status, out, err = result
    said = (
        r"\[ {0} \] .+?\n\nFor more details, please visit {1}#{0}\n\n"
        r"If you open a support ticket, please provide the error log found at \"(.+?)\"\n"
    )
    form = said.format(code, re.escape(LINK))
    if in_process:
        form += "Failed connections: 1\n" + said.format("E39", re.escape(LINK))
    match = re.fullmatch(r"(?:.*\n)*?" + form, err, re.DOTALL)
    assert match, err
    assert out == ""
    assert status == (39 if in_process else int(code[1:]))
    for text in texts:
        assert text in err
    for path in match.groups():
        log = Path(path).read_text()
        assert re.match(r"  Action: .+\n  Subactions:\n    ", log)
        assert re.match(r"err\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00\.log", Path(path).name)


# ---- usage ----


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run-enclave"], "required arguments were not provided:\n  --eif-path <FILE>\n  --memory <MEMORY>"),
        (["run-enclave", "--eif-path", "x", "--memory", "1"], "<--cpu-count <N>|--cpu-ids <ID>...>"),
        (["run-enclave", "--memory"], "a value is required for '--memory <MEMORY>'"),
        (["run-enclave", "--cpu-ids", "--memory", "1"], "a value is required for '--cpu-ids <ID>...'"),
        (["run-enclave", "--memory", "1", "--memory", "2"], "'--memory <MEMORY>' cannot be used multiple"),
        (["run-enclave", "--debug-mode=yes"], "unexpected value for '--debug-mode'"),
        (["run-enclave", "--config", "x", "--memory", "1"],
         "the argument '--config <FILE>' cannot be used with '--memory <MEMORY>'"),
        (["run-enclave", "--config", "x", "--cpu-count", "1"], "cannot be used with '--cpu-count <N>'"),
        (["run-enclave", "--eif-path", "x", "--memory", "1", "--cpu-count", "2", "--cpu-ids", "1"],
         "the argument '--cpu-count <N>' cannot be used with '--cpu-ids <ID>...'"),
        (["terminate-enclave"], "<--enclave-id <ID>|--enclave-name <NAME>|--all>"),
        (["terminate-enclave", "--all", "--enclave-id", "x"], "cannot be used with"),
        (["terminate-enclave", "--enclave", "x"], "unexpected argument '--enclave' found"),
        (["console", "--disconnect-timeout", "5"], "<--enclave-id <ID>|--enclave-name <NAME>>"),
        (["pcr"], "<--input <FILE>|--signing-certificate <FILE>>"),
        (["describe-enclaves", "please"], "unexpected argument 'please' found"),
        (["build-enclave", "--docker-uri", "x"], "--output-file <FILE>"),
        (["explain", "E26"], "unexpected argument 'E26' found"),
        (["describe-everything"], "unrecognized subcommand 'describe-everything'"),
        (["--no-such-option"], "unexpected argument '--no-such-option' found"),
    ],
)  # fmt: skip
def test_usage_errors(capfd: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    """clap's form, and its status."""
    status, out, err = run(capfd, *argv)
    assert (status, out) == (2, "")
    form = r"error: .+\n\nUsage: nitro-cli .+\n\nFor more information, try '--help'.\n"
    assert re.fullmatch(form, err, re.DOTALL)
    assert message in err


def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    commands = {
        "run-enclave", "terminate-enclave", "build-enclave", "describe-enclaves", "console", "describe-eif",
        "pcr", "sign-eif", "explain",
    }  # fmt: skip
    assert set(arguments.COMMANDS) == commands
    for argv in (["--help"], ["-h"], ["help"]):
        status, out, err = run(capfd, *argv)
        assert (status, err) == (0, "")
        assert all(f"\n  {name} " in out for name in commands)
    assert run(capfd)[0] == 2
    status, out, _ = run(capfd, "help", "run-enclave")
    assert status == 0 and "--enclave-cid <CID>" in out
    assert run(capfd, "run-enclave", "--memory", "--help")[:2] == (0, out)
    # As `nitro-cli --version | cut -d' ' -f3` has it.
    status, out, _ = run(capfd, "--version")
    assert status == 0 and re.match(r"Nitro CLI \d+\.\d+\.\d+ ", out)


def test_it_starts_quickly_as_it_imports_little() -> None:
    """The budget of `nitroctl --help` is mostly imports; these are the slow ones."""
    code = (
        "import sys\nfrom nitroctl.nitro_cli import main\n"
        "try: main(['run-enclave', '--help'])\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env={"PYTHONPATH": str(PYTHON)}, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "argparse" in loaded
    assert not loaded & {"click", "asyncio", "cryptography", "cbor2", "rich", "subprocess", "platformdirs"}


# ---- codes ----


def test_every_code_is_explained(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(errors.DESCRIPTIONS) == [f"E{n:02}" for n in range(61)]
    for code in errors.DESCRIPTIONS:
        status, out, err = run(capfd, "explain", "--error-code", code)
        assert (status, out) == (0, "")
        assert errors.DESCRIPTIONS[code] in err and f"{LINK}#{code}" in err


def test_an_unknown_code(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capfd, "explain", "--error-code", "E99")
    assert status != 0
    assert (out, err) == ("", "No such error code E99\n")


def test_logs_that_cannot_be_written(
    world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is told all the same."""
    (world / "file").write_text("")
    monkeypatch.setenv("NITRO_CLI_LOGS_PATH", str(world / "file" / "logs"))
    status, _, err = run(capfd, "describe-eif", "--eif-path", "/nowhere")
    assert status == 35 and f"{LINK}#E35" in err and "error log found" not in err
    assert "cannot write the log" in err


def test_a_log_on_a_full_disk_is_told_by_its_name(
    world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "full").mkdir()
    (world / "full/nitro_enclaves.log").symlink_to("/dev/full")
    monkeypatch.setenv("NITRO_CLI_LOGS_PATH", str(world / "full"))
    _, _, err = run(capfd, "describe-eif", "--eif-path", "/nowhere")
    assert f"cannot write the log in {world}/full/nitro_enclaves.log: No space left on device" in err


def test_the_log_has_a_line_for_each_failure(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(capfd, "describe-eif", "--eif-path", "/nowhere")
    run(capfd, "pcr", "--input", "/nowhere")
    lines = (world / "logs" / "nitro_enclaves.log").read_text().splitlines()
    assert [re.search(r"E\d\d", line)[0] for line in lines] == ["E35", "E19"]  # type: ignore[index]


# ---- images ----


# The vector with what passes for a kernel.
BOOTABLE = [(model.KERNEL, model.bzimage()), *model.TINY[1:]]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.eif"
    path.write_bytes(model.pack(BOOTABLE))
    return path


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that is valid now, and its key."""
    from datetime import datetime, timedelta

    from nitroctl.base.instants import UTC

    now = datetime.now(UTC).replace(microsecond=0)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(signer.pem("P-384", begin=now - timedelta(days=1), end=now + timedelta(days=1)))
    key.write_bytes(signer.key_pem("P-384"))
    return certificate, key


def measurements(pcrs: tuple[str, str, str], pcr8: str | None = None) -> dict[str, str]:
    value = {"HashAlgorithm": "Sha384 { ... }", "PCR0": pcrs[0], "PCR1": pcrs[1], "PCR2": pcrs[2]}
    return value if pcr8 is None else {**value, "PCR8": pcr8}


def test_describe_eif(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capfd, "describe-eif", "--eif-path", tiny)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert out == json.dumps(found, indent=2) + "\n"
    assert list(found) == [
        "EifVersion", "Measurements", "IsSigned", "CheckCRC", "ImageName", "ImageVersion", "Metadata",
    ]  # fmt: skip
    assert found["Measurements"] == measurements(model.measure(BOOTABLE))


def test_a_command_that_reads_says_nothing_off_a_terminal(
    tiny: Path, world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers take any byte on stderr for a failure."""
    monkeypatch.setattr("nitroctl.eif.measure.PROGRESS_FROM", 0)
    for argv in (("describe-eif", "--eif-path", tiny), ("pcr", "--input", tiny)):
        status, out, err = run(capfd, *argv)
        assert (status, err) == (0, "") and json.loads(out)
    odd = world / "odd.eif"
    odd.write_bytes(model.pack([(k, b"{" if k == 5 else data) for k, data in BOOTABLE]))
    status, out, err = run(capfd, "describe-eif", "--eif-path", odd)
    assert (status, err) == (0, "") and json.loads(out)
    assert "the metadata are not readable" in (world / "logs" / "nitro_enclaves.log").read_text()


def test_describe_eif_of_no_eif(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = world / "x"
    check_failure(run(capfd, "describe-eif", "--eif-path", path), "E35", "No such file", str(path))
    path.write_bytes(b"x" * 1000)
    check_failure(run(capfd, "describe-eif", "--eif-path", path), "E35", "bad-magic")


def test_sign_eif(tiny: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    status, out, err = run(
        capfd, "sign-eif", "--eif-path", tiny, "--signing-certificate", keys[0], "--private-key", keys[1]
    )
    assert (status, err) == (0, "Enclave Image successfully signed.\n")
    der = x509.load_pem_x509_certificate(keys[0].read_bytes()).public_bytes(Encoding.DER)
    pcr8 = hashlib.sha384(bytes(48) + hashlib.sha384(der).digest()).hexdigest()
    found = json.loads(out)
    assert list(found["Measurements"].items()) == list(measurements(model.measure(BOOTABLE), pcr8).items())
    _, out, _ = run(capfd, "describe-eif", "--eif-path", tiny)
    assert list(json.loads(out))[2:6] == ["IsSigned", "SigningCertificate", "CheckCRC", "SignatureCheck"]
    _, out, _ = run(capfd, "pcr", "--signing-certificate", keys[0])
    assert out == f'{{\n  "PCR8": "{pcr8}"\n}}\n'


def test_sign_eif_failures(
    world: Path, tiny: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    def sign(eif: Path, certificate: Path, key: Path | str) -> tuple[int, str, str]:
        return run(
            capfd, "sign-eif", "--eif-path", eif, "--signing-certificate", certificate, "--private-key", key
        )

    check_failure(sign(tiny, world / "no.pem", keys[1]), "E19", f"File: '{world}/no.pem', failing operation")
    check_failure(sign(tiny, keys[1], keys[1]), "E60")
    (world / "other.pem").write_bytes(signer.key_pem("other"))
    check_failure(sign(tiny, keys[0], world / "other.pem"), "E60", "does not belong")
    check_failure(sign(world / "no.eif", *keys), "E35", "No such file")
    arn = "arn:aws:kms:eu-west-1:123456789012:key/0000"
    check_failure(sign(tiny, keys[0], arn), "E60", "KMS", "--signer")
    assert tiny.read_bytes() == model.pack(BOOTABLE)


def test_pcr(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (world / "file").write_bytes(b"content")
    status, out, err = run(capfd, "pcr", "--input", world / "file")
    assert (status, out, err) == (0, f'{{\n  "PCR": "{model.pcr(b"content")}"\n}}\n', "")
    check_failure(run(capfd, "pcr", "--input", world / "no"), "E19", "failing operation: 'Open'")
    check_failure(run(capfd, "pcr", "--signing-certificate", world / "file"), "E57")


# ---- build-enclave ----


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as AWS's package has it."""
    folder = tmp_path / "blobs"
    folder.mkdir()
    (folder / "bzImage").write_bytes(model.bzimage())
    (folder / "init").write_bytes(b"init")
    (folder / "nsm.ko").write_bytes(b"module")
    (folder / "cmdline").write_text("console=ttyS0\n")
    monkeypatch.setenv("NITRO_CLI_BLOBS", str(folder))
    return folder


def archive(path: Path) -> Path:
    return im.docker(path, [im.layer(im.entry("app", b"#!/bin/sh\n", mode=0o755))])


def describe(capfd: pytest.CaptureFixture[str], path: Path) -> Any:
    _, out, _ = run(capfd, "describe-eif", "--eif-path", path)
    return json.loads(out)


def test_build_enclave_from_an_archive(world: Path, blobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = archive(world / "app.tar")
    status, out, err = run(capfd, "build-enclave", "--docker-uri", image, "--output-file", world / "o.eif")
    assert err == (
        "Start building the Enclave Image...\nUsing the locally available Docker image...\n"
        "Enclave Image successfully created.\n"
    )
    assert status == 0
    found = describe(capfd, world / "o.eif")
    assert json.loads(out) == {"Measurements": found["Measurements"]}
    assert out.startswith('{\n  "Measurements": {\n    "HashAlgorithm": "Sha384 { ... }",\n    "PCR0": ')
    assert found["ImageName"] == "app"
    # AWS's rule: CMD alone counts where there is one; WORKDIR and USER do not.
    extract(world / "o.eif", world / "parts")
    disks = sorted((world / "parts").glob("ramdisk*"))
    archives = [cpiomodel.read(d.read_bytes(), device=(3, 1)) for d in disks]
    boot, application = ({i.name.decode(): i.data for i in items} for items in archives)
    assert (boot["init"], boot["nsm.ko"]) == (b"init", b"module")
    assert (application["cmd"], application["env"]) == (b"x\n", b"A=b\n")
    assert not {"cwd", "user"} & set(application)


def test_build_enclave_with_everything(
    world: Path, blobs: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    (world / "custom.json").write_text('{"team": "x"}')
    status, out, err = run(
        capfd, "build-enclave", "--docker-uri", archive(world / "app.tar"), "--output-file", world / "o.eif",
        "--signing-certificate", keys[0], "--private-key", keys[1], "--name", "n", "--version", "7",
        "--metadata", world / "custom.json",
    )  # fmt: skip
    assert status == 0, err
    assert list(json.loads(out)["Measurements"])[-1] == "PCR8"
    found = describe(capfd, world / "o.eif")
    assert (found["ImageName"], found["ImageVersion"], found["Metadata"]["team"]) == ("n", "7", "x")
    assert found["SignatureCheck"] is True
    assert found["Metadata"]["BuildTime"] > "2026"


FAKE_DOCKER = """#!/bin/sh
echo "$*" >> "{folder}/calls"
case "$1" in
version) exit {daemon} ;;
build) echo building; exit {build} ;;
image) exit {local} ;;
pull) echo pulling; exit {pull} ;;
save) cp "{folder}/app.tar" "$3" ;;
esac
"""


def fake_docker(world: Path, *, daemon: int = 0, build: int = 0, local: int = 0, pull: int = 0) -> None:
    archive(world / "app.tar")
    path = world / "bin" / "docker"
    path.write_text(FAKE_DOCKER.format(folder=world, daemon=daemon, build=build, local=local, pull=pull))
    path.chmod(0o755)


def calls(world: Path) -> list[str]:
    return [line.split()[0] for line in (world / "calls").read_text().splitlines()]


def build(
    capfd: pytest.CaptureFixture[str], world: Path, uri: str, *more: str | Path
) -> tuple[int, str, str]:
    return run(capfd, "build-enclave", "--docker-uri", uri, "--output-file", world / "o.eif", *more)


def test_build_enclave_for_another_architecture(
    world: Path, blobs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By uname it is this host's, and an image for another is refused with both named; by Docker's own
    variable it is that one's."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    layer = im.layer(im.entry("app", b"#!/bin/sh\n", mode=0o755))
    image = im.docker(world / "arm.tar", [layer], architecture="arm64", variant="v8")
    status, _, err = build(capfd, world, str(image))
    assert status != 0 and "E48" in err
    assert "is an image for linux/arm64; the enclave is x86_64 (linux/amd64)" in err
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", "linux/arm64")
    status, _, err = build(capfd, world, str(image))
    assert status != 0 and "are for x86_64, and the enclave is to be aarch64" in err
    (blobs / "bzImage").unlink()
    (blobs / "Image").write_bytes(model.arm64_image())
    status, _, err = build(capfd, world, str(image))
    assert status == 0, err
    # AWS's specification: bit 0 of the flags at offset 6.
    assert (world / "o.eif").read_bytes()[6:8] == b"\0\1"


def test_build_enclave_with_docker(world: Path, blobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fake_docker(world)
    status, _, err = build(capfd, world, "app:latest")
    assert status == 0, err
    assert "Using the locally available Docker image...\n" in err
    assert calls(world) == ["version", "image", "save"]
    found = describe(capfd, world / "o.eif")
    assert found["ImageName"] == "app"
    assert re.fullmatch("[0-9a-f]{64}", found["ImageVersion"])
    assert list((world / "artifacts").iterdir()) == []

    (world / "calls").unlink()
    (world / "hello").mkdir()
    status, _, err = build(capfd, world, "hello", "--docker-dir", world / "hello")
    assert status == 0 and "building\n" in err
    assert calls(world) == ["version", "build", "save"]


def test_build_enclave_from_one_of_several_images(
    world: Path, blobs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file, by the name behind its path. In Docker a name without a tag is one image; a program of the
    image's name is not its archive."""
    fake_docker(world)
    archive(world / "app.tar")
    assert build(capfd, world, f"{world}/app.tar:latest")[0] == 0
    check_failure(build(capfd, world, f"{world}/app.tar:2"), "E48", "it holds app:latest")
    assert not (world / "calls").exists()
    monkeypatch.chdir(world)
    (world / "hello").write_bytes(b"\x7fELF")
    for uri, saved in (("hello:1", "hello:1"), ("team/hello", "team/hello:latest"), ("0123456789ab",) * 2):
        assert build(capfd, world, uri)[0] == 0
        assert (world / "calls").read_text().splitlines()[-1].split()[-1] == saved


def test_build_enclave_pulls(world: Path, blobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fake_docker(world, local=1)
    status, _, err = build(capfd, world, "hello:latest")
    assert status == 0 and "Using the locally" not in err and "pulling\n" in err
    assert calls(world) == ["version", "image", "pull", "save"]
    fake_docker(world, local=1, pull=1)
    check_failure(build(capfd, world, "hello:latest"), "E50", "docker pull hello:latest")
    fake_docker(world, build=1)
    check_failure(build(capfd, world, "hello", "--docker-dir", world), "E49", "docker build -t hello")


@pytest.mark.parametrize("installed", [False, True], ids=["no docker", "no daemon"])
def test_build_enclave_without_docker(
    world: Path, blobs: Path, capfd: pytest.CaptureFixture[str], installed: bool
) -> None:
    if installed:
        fake_docker(world, daemon=1)
    check_failure(build(capfd, world, "hello", "--docker-dir", world), "E49", "takes Docker", "docker save")
    said = ("skopeo", "docker save", "no file hello:latest, and no Docker (or Podman) answers")
    check_failure(build(capfd, world, "hello:latest"), "E50", *said)
    for path in ("./no.tar", "../no.tar", "/no.tar"):
        check_failure(build(capfd, world, path), "E19", f"File: '{Path(path)}', failing operation: 'Open'")
    image = archive(world / "app.tar")
    skopeo = world / "bin" / "skopeo"
    skopeo.write_text(f"""#!/bin/sh
echo "$*" >> "{world}/skopeo"
for target; do :; done
exit 1
""")
    skopeo.chmod(0o755)
    check_failure(build(capfd, world, "quay.io/x/y:1"), "E50", "docker://quay.io/x/y:1")
    assert "docker://quay.io/x/y:1 oci:" in (world / "skopeo").read_text()
    assert image.is_file() and not (world / "o.eif").exists()
    assert list((world / "artifacts").iterdir()) == []


def test_build_enclave_through_skopeo(world: Path, blobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    layer = im.layer(im.entry("app", b"#!/bin/sh\n", mode=0o755))
    im.folder(world / "layout", im.oci_files([layer], [layer]))
    skopeo = world / "bin" / "skopeo"
    skopeo.write_text(f"""#!/bin/sh
for target; do :; done
layout=${{target#oci:}}
cp -r "{world}/layout" "${{layout%%:*}}"
echo "$*" > "{world}/skopeo"
""")
    skopeo.chmod(0o755)
    status, _, err = build(capfd, world, "quay.io/x/y:1")
    assert status == 0, err
    assert "docker://quay.io/x/y:1 oci:" in (world / "skopeo").read_text()
    # With a transport it is skopeo's, whatever Docker has.
    fake_docker(world)
    status, _, err = build(capfd, world, "docker://quay.io/x/y:2")
    assert status == 0, err
    assert "docker://quay.io/x/y:2 oci:" in (world / "skopeo").read_text()
    assert not (world / "calls").exists()


def test_build_enclave_takes_the_kernel_that_is_there(
    world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AWS's blobs: our own, if it was built, else Debian's, as after `make demo`."""
    from nitroctl.toolchain import guest
    from nitroctl.toolchain import prebuilt as prebuilt_kernel

    kernel = world / "vmlinuz"
    kernel.write_bytes(model.bzimage())
    monkeypatch.delenv("NITRO_CLI_BLOBS", raising=False)
    monkeypatch.setattr(guest, "build_init", lambda *_: world)
    (world / "init").write_bytes(b"init")
    asked = []
    there = ["prebuilt"]

    def located(what: str, arch: str) -> Path:
        if what not in there:
            raise NitroError(f"there is no {what}")
        asked.append(what)
        return kernel

    def fetched(**_: object) -> prebuilt_kernel.Prebuilt:
        asked.append("prebuilt")
        return prebuilt_kernel.Prebuilt(kernel, world / "modules", "6.1")

    (world / "modules").mkdir()
    monkeypatch.setattr(guest, "locate", located)
    monkeypatch.setattr("nitroctl.toolchain.prebuilt.fetch", fetched)
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    status, _, err = build(capfd, world, str(archive(world / "app.tar")))
    assert (status, asked) == (0, ["prebuilt"]), err
    there.append("kernel")
    asked.clear()
    status, _, err = build(capfd, world, str(archive(world / "app.tar")))
    assert (status, set(asked)) == (0, {"kernel"}), err


def test_build_enclave_failures(
    world: Path, blobs: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    image = str(archive(world / "app.tar"))
    check_failure(build(capfd, world, image, "--private-key", keys[1]), "E01", "signing-certificate")
    check_failure(build(capfd, world, image, "--signing-certificate", keys[0]), "E01", "private-key")
    where = world / "nowhere" / "o.eif"
    argv = ("build-enclave", "--docker-uri", image, "--output-file", where)
    check_failure(run(capfd, *argv), "E19", f"File: '{where}'")
    (world / "large.json").write_text(json.dumps({"x": "y" * 5000}))
    check_failure(build(capfd, world, image, "--metadata", world / "large.json"), "E48", "4096")
    (world / "broken.tar").write_bytes(b"x" * 2000)
    check_failure(build(capfd, world, str(world / "broken.tar")), "E48")
    monkeypatch.delenv("NITRO_CLI_ARTIFACTS")
    monkeypatch.delenv("HOME", raising=False)
    check_failure(build(capfd, world, "hello"), "E51")
    (blobs / "bzImage").unlink()
    check_failure(build(capfd, world, image), "E52", "lacks bzImage")
    assert not (world / "o.eif").exists()


# ---- what run-enclave is asked for ----


def from_options(*argv: str) -> request.Request:
    return request.from_options(arguments.parse(["run-enclave", *argv])[1])


def test_a_request_from_options() -> None:
    assert from_options("--eif-path", "a.eif", "--memory", "2g", "--cpu-count", "2") == request.Request(
        Path("a.eif"), 2048, 2
    )
    full = from_options(
        "--eif-path=a.eif", "--cpu-ids", "1", "3", "--memory", "512M", "--enclave-cid", "20", "--debug-mode",
        "--enclave-name", "n",
    )  # fmt: skip
    assert full == request.Request(Path("a.eif"), 512, 2, (1, 3), 20, True, False, "n")
    attached = from_options("--eif-path", "a", "--memory", "1", "--cpu-ids", "1,3", "--attach-console")
    assert (attached.debug_mode, attached.attach_console, attached.cpu_ids) == (True, True, (1, 3))
    assert from_options("--eif-path", "a", "--memory", "1", "--cpu-count", "1", "--enclave-cid", "0") == (
        request.Request(Path("a"), 1, 1)
    )


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--memory", "lots", "--cpu-count", "1"], "E03"),
        (["--memory", "0", "--cpu-count", "1"], "E03"),
        (["--memory", "1K", "--cpu-count", "1"], "E03"),
        (["--memory", "512", "--cpu-count", "two"], "E03"),
        (["--memory", "512", "--cpu-ids", "1", "x"], "E23"),
        *(
            (["--memory", "512", "--cpu-count", "1", "--enclave-cid", cid], "E03")
            for cid in ("1", "2", "3", "4294967295", "4294967296", "x")
        ),
    ],
)
def test_arguments_that_are_refused(more: list[str], code: str) -> None:
    with pytest.raises(CliError) as e:
        from_options("--eif-path", "x", *more)
    assert e.value.code == code


CONFIG = {"eif_path": "a.eif", "memory_mib": 512, "cpu_count": 2}


def config_file(folder: Path, value: object) -> Path:
    path = folder / "config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_request_from_a_file(tmp_path: Path) -> None:
    path = config_file(tmp_path, CONFIG)
    assert from_options("--config", str(path)) == request.Request(Path("a.eif"), 512, 2)
    # The option is taken, and only the key counts.
    assert from_options("--config", str(path), "--attach-console").attach_console is False
    value = {
        "eif_path": "a.eif", "memory_mib": 512, "cpu_ids": [1, 3], "enclave_cid": 20, "debug_mode": False,
        "attach_console": True, "enclave_name": "n", "cpu_count": None,
    }  # fmt: skip
    expected = request.Request(Path("a.eif"), 512, 2, (1, 3), 20, True, True, "n")
    assert request.from_config(config_file(tmp_path, value)) == expected
    # As with AWS, a key that it does not know is ignored, whatever it holds.
    assert request.from_config(config_file(tmp_path, {**value, "cpus": 2, "x": [None]})) == expected


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("", "E17"),
        ("[" * 100000, "E17"),
        ([CONFIG], "E17"),
        ({**CONFIG, "memory_mib": "512"}, "E17"),
        ({**CONFIG, "memory_mib": True}, "E17"),
        ({**CONFIG, "memory_mib": -1}, "E17"),
        ({**CONFIG, "memory_mib": 1 << 64}, "E17"),
        ({**CONFIG, "cpu_ids": [1, "3"], "cpu_count": None}, "E17"),
        ({**CONFIG, "debug_mode": 1}, "E17"),
        ({**CONFIG, "eif_path": None}, "E01"),
        ({"eif_path": "x", "cpu_count": 2}, "E01"),
        ({"eif_path": "x", "memory_mib": 512}, "E01"),
        ({**CONFIG, "cpu_ids": [1, 3]}, "E02"),
        ({**CONFIG, "enclave_cid": 3}, "E03"),
        ({**CONFIG, "eif_path": "a\0b"}, "E03"),
        ({**CONFIG, "eif_path": "a\ud800b"}, "E03"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, value: object, code: str) -> None:
    with pytest.raises(CliError) as e:
        request.from_config(config_file(tmp_path, value))
    assert e.value.code == code


def test_no_config_file(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "run-enclave", "--config", world / "no.json")
    check_failure(result, "E19", f"File: '{world}/no.json', failing operation: 'Open'.")


def asked(memory: int = 512, count: int = 2, ids: tuple[int, ...] | None = None) -> request.Request:
    return request.Request(Path("x"), memory, count if ids is None else len(ids), ids)


def test_cpus() -> None:
    assert request.check_cpus(asked(count=2)) == (1, 3)
    assert request.check_cpus(asked(count=1)) == (1,)
    assert request.check_cpus(asked(ids=(3, 1))) == (3, 1)
    assert len(set(request.check_cpus(asked(count=255)))) == 255
    refused = {"E20": (1, 3, 1), "E21": (0, 1), "E22": tuple(range(256)), "E29": ()}
    for code, ids in refused.items():
        with pytest.raises(errors.InEnclaveProcess) as e:
            request.check_cpus(asked(ids=ids))
        assert e.value.code == code
    with pytest.raises(errors.InEnclaveProcess, match="IDs go up"):
        request.check_cpus(asked(ids=(256,)))


@pytest.mark.parametrize(
    ("strict", "given", "whole"),
    [
        ("1", {"count": 2}, True), ("1", {"ids": (3, 1)}, True), ("1", {"count": 1}, False),
        ("1", {"count": 3}, False), ("1", {"ids": (1, 3, 5)}, False), ("0", {"count": 3}, True),
        ("", {"count": 1}, True), (None, {"count": 1}, True),
    ],
)  # fmt: skip
def test_whole_cores(
    monkeypatch: pytest.MonkeyPatch, strict: str | None, given: dict[str, Any], whole: bool
) -> None:
    monkeypatch.delenv("NITRO_CLI_STRICT", raising=False)
    if strict is not None:
        monkeypatch.setenv("NITRO_CLI_STRICT", strict)
    if whole:
        request.check_whole_cores(asked(**given))
        return
    with pytest.raises(errors.InEnclaveProcess) as e:
        request.check_whole_cores(asked(**given))
    assert e.value.code == "E29"


MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "least"),
    # From AWS's tool: 154 MB for a file that takes 1540 MB.
    [(1, 64), (16 * MIB, 64), (16 * MIB + 1, 68), (385 * MIB, 1540), (385 * MIB - 1023, 1540)],
)
def test_memory(size: int, least: int) -> None:
    assert request.check_memory(asked(least), size, least) == least
    with pytest.raises(errors.InEnclaveProcess, match=f"minimum memory should be {least} MB") as e:
        request.check_memory(asked(least - 4), size, 4096)
    assert e.value.code == "E26"


def test_memory_comes_in_whole_pages() -> None:
    assert request.check_memory(asked(513), MIB, 4096) == 514


def test_more_memory_than_there_is() -> None:
    total = int(re.findall(r"MemTotal: *(\d+) kB", Path("/proc/meminfo").read_text())[0]) // 1024
    assert abs(request.host_memory() - total) <= 1
    with pytest.raises(errors.InEnclaveProcess, match="513 MB, and this host has 512") as e:
        request.check_memory(asked(513), MIB, 512)
    assert e.value.code == "E27"


# ---- a host with the real thing ----

STEP_ASIDE = """
import sys
from pathlib import Path
from nitroctl.nitro_cli import aside, main
aside.DRIVER = Path(sys.argv[1])
main(sys.argv[2:])
"""


def with_driver(driver: Path, path: list[Path], *argv: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.pathsep.join(map(str, path)), "PYTHONPATH": str(PYTHON)}
    command = [sys.executable, "-c", STEP_ASIDE, str(driver), *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def program(folder: Path, text: str, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "nitro-cli"
    path.write_text(text)
    path.chmod(mode)
    return folder


def test_the_real_nitro_cli_takes_over(world: Path) -> None:
    (world / "driver").write_text("")
    # As pip writes it; then one that cannot be run; then the real one.
    ours = program(world / "ours", f"#!{sys.executable}\nfrom nitroctl.nitro_cli import main\nmain()\n")
    plain = program(world / "plain", "#!/bin/sh\nexit 9\n", mode=0o644)
    real = program(world / "real", '#!/bin/sh\nprintf "%s|" "$@"\nexit 5\n')
    done = with_driver(world / "driver", [ours, plain, real], "describe-enclaves", "a b")
    assert (done.returncode, done.stdout) == (5, "describe-enclaves|a b|")
    assert len(done.stderr.splitlines()) == 1
    assert "driver" in done.stderr and str(real / "nitro-cli") in done.stderr


def test_without_the_real_nitro_cli_or_the_driver_ours_runs(world: Path) -> None:
    (world / "driver").write_text("")
    real = program(world / "real", "#!/bin/sh\nexit 5\n")
    for driver, path in ((world / "no", [real]), (world / "driver", [])):
        done = with_driver(driver, path, "--version")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Nitro CLI ")


def test_a_wrapper_that_calls_us_is_no_circle(world: Path) -> None:
    (world / "driver").write_text("")
    inner = f'exec {sys.executable} -c "$CODE" "$DRIVER" "$@"'
    wrapper = program(world / "wrapper", f"#!/bin/sh\n{inner}\n")
    driver = str(world / "driver")
    env = {"PATH": str(wrapper), "PYTHONPATH": str(PYTHON), "CODE": STEP_ASIDE, "DRIVER": driver}
    command = [sys.executable, "-c", STEP_ASIDE, driver, "--version"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0 and done.stdout.startswith("Nitro CLI ")


def test_the_command_is_in_the_package() -> None:
    """By the programs' common entry, which shows no traceback for an early Ctrl-C (test_entry)."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((PYTHON.parent / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["nitro-cli"] == "nitroctl.entry:nitro_cli"
    assert project["scripts"]["vsock-proxy"] == "nitroctl.entry:vsock_proxy"
    assert callable(main) and callable(vsock_proxy.main)
