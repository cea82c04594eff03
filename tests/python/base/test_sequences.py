# SPDX-License-Identifier: MIT
"""A text where a list of texts is meant is refused, with the call that was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nitroctl
from nitroctl.base.errors import UsageError
from nitroctl.base.sequences import texts, variables

FORWARDS = ("publish", "proxy", "listen_port", "connect_port", "forward_listen")


@pytest.mark.parametrize("option", FORWARDS)
def test_an_enclaves_options(option: str) -> None:
    given: dict[str, Any] = {option: "8080=80", "qemu": "/bin/true", "vsock_backend": "/bin/true"}
    with pytest.raises(UsageError, match=f"{option}='8080=80' is one text") as e:
        nitroctl.Enclave("app.eif", **given)
    assert e.value.hint == f"write {option}=['8080=80']"


@pytest.mark.parametrize(
    "given, hint",
    [
        ({"cmd": "/app"}, "write cmd=['/app']"),
        ({"cmd": "/app --port '80 81'"}, "write cmd=['/app', '--port', '80 81']"),
        ({"cmd": "it's"}, 'write cmd=["it\'s"]'),
        ({"cmd": ["/app", 80]}, "write '80'"),
        ({"cmd": b"/app"}, None),
        ({"cmd": 1}, None),
        ({"cmd": ["/app"], "env": "A=b"}, "write env={'A': 'b'}"),
        ({"cmd": ["/app"], "env": ["A=b", "C=d=e"]}, "write env={'A': 'b', 'C': 'd=e'}"),
        ({"cmd": ["/app"], "env": {"A": 1}}, "write 'A': '1'"),
    ],
)
def test_build_eif(tmp_path: Path, given: dict[str, Any], hint: str | None) -> None:
    with pytest.raises(UsageError) as e:
        nitroctl.build_eif(tmp_path / "o.eif", directory=tmp_path, **given)
    assert e.value.hint == hint
    assert not (tmp_path / "o.eif").exists()


def test_what_is_meant_passes() -> None:
    assert texts("x", ["a b", ""]) == texts("x", ("a b", "")) == texts("x", iter(["a b", ""])) == ("a b", "")
    assert texts("x", ()) == ()
    assert variables("env", {"A": "b=c"}) == ("A=b=c",)
    assert variables("env", None) == ()
