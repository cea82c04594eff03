# SPDX-License-Identifier: MIT
"""`nitro-cli` run within a test, and the convention of its failures. What such tests run in is conftest.py of
their room; programs of their own are in the tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nitroctl.nitro_cli import main

LINK = "https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html"


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
