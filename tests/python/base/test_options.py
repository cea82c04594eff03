# SPDX-License-Identifier: MIT
"""How the fields of a request are described and what they take: right values, wrong ones, and texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner

from nitroctl.base.errors import UsageError
from nitroctl.base.memory import parse_memory
from nitroctl.base.options import Option, Request
from nitroctl.commands.options import asked, requested


def even(value: int) -> None:
    if value % 2:
        raise UsageError(f"{value} is odd")


@dataclass(frozen=True)
class Order(Request):
    file: Annotated[Path, Option("The file.", metavar="FILE", argument=True)]
    count: Annotated[int, Option("How many.", check=even)] = 2
    size: Annotated[int | None, Option("How large.", metavar="SIZE", unset="all", parse=parse_memory)] = None
    seconds: Annotated[float | None, Option("How long.")] = None
    text: Annotated[str | None, Option("What it says.")] = None
    careful: Annotated[bool, Option("Take no care.")] = True
    quiet: Annotated[bool, Option("Say nothing.", excludes=("text",))] = False
    form: Annotated[Literal["round", "square"], Option("Its form.")] = "round"
    words: Annotated[tuple[str, ...], Option("Words.", metavar="WORD", words=True)] = ()
    other: Annotated[Path | None, Option("Another file.")] = None
    own: tuple[str, ...] = ()


@click.command()
@requested(Order)
def command(**given: Any) -> None:
    click.echo(repr(asked(Order, given)))


def test_one_order_whatever_way_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Order(Path("a"), 4, 2048, 1.5, "t", False, False, "square", ("x", "y z"), Path("b"))
    argv = "a --count 4 --size 2G --seconds 1.5 --text t --no-careful --form square --words x --other b"
    done = CliRunner().invoke(command, [*argv.split(), "--words", "y z"])
    assert done.output == f"{wanted!r}\n"
    given: dict[str, Any] = {
        "count": 4, "size": "2G", "seconds": 1.5, "text": "t", "careful": False, "form": "square",
        "words": iter(["x", "y z"]), "other": "b",
    }  # fmt: skip
    assert Order.from_keywords("order", file="a", **given) == wanted
    texts = {
        "file": "a", "count": "4", "size": "2G", "seconds": "1.5", "text": "t", "careful": "no", "quiet": "0",
        "form": "square", "words": "x 'y z'", "other": "b",
    }  # fmt: skip
    assert Order(**{one.name: one.take_text(texts[one.name]) for one in Order.options()}) == wanted
    monkeypatch.chdir(tmp_path)
    sent = json.loads(json.dumps(wanted.to_json()))
    assert sent["file"] == str(tmp_path / "a") and sent["words"] == ["x", "y z"]
    assert Order.from_json(sent).to_json() == wanted.to_json()


def test_defaults() -> None:
    done = CliRunner().invoke(command, ["a"])
    assert done.output == f"{Order(Path('a'))!r}\n"
    help = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "[OPTIONS] FILE" in help and "--own" not in help
    assert "--count N How many. [default: 2]" in help and "--no-careful Take no care." in help
    assert "--size SIZE How large. [default: all]" in help and "--words WORD Words." in help
    assert "--form [round|square] Its form. [default: round]" in help


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"count": "4"}, "count='4': count takes a whole number", "write count=4"),
    ({"count": "many"}, "count='many': count takes a whole number", None),
    ({"count": True}, "count=True: count takes a whole number", None),
    ({"count": None}, "count=None: count takes a whole number", None),
    ({"count": 4.0}, "count=4.0: count takes a whole number", None),
    ({"count": 3}, "3 is odd", None),
    ({"size": 1.5}, "size=1.5: size takes a whole number, or None", None),
    ({"size": "lots"}, "memory 'lots' is not an amount of memory", "give a whole number of MiB"),
    ({"seconds": "1.5"}, "seconds='1.5': seconds takes a number, or None", "write seconds=1.5"),
    ({"seconds": True}, "seconds=True: seconds takes a number, or None", None),
    ({"text": 7}, "text=7: text takes a text, or None", "write text='7'"),
    ({"text": b"x"}, "text=b'x': text takes a text, or None", None),
    ({"careful": "no"}, "careful='no': careful takes True or False", None),
    ({"careful": 1}, "careful=1: careful takes True or False", None),
    ({"form": "oval"}, "form='oval': form takes 'round' or 'square'", None),
    ({"form": ["round"]}, "form=.*: form takes 'round' or 'square'", None),
    ({"words": "a 'b c'"}, "words=.* is one text, and words takes a list", "write words=['a', 'b c']"),
    ({"words": [1]}, "words: 1 is no text", "write '1'"),
    ({"other": b"x"}, "other=b'x': other takes a path, or None", None),
    ({"other": "a\0b"}, "other='a..00b': other takes a path, or None", None),
    ({"other": 3}, "other=3: other takes a path, or None", None),
    ({"quiet": True, "text": "t"}, "quiet and text exclude each other", None),
]  # fmt: skip


def test_what_is_wrong() -> None:
    for given, message, hint in WRONG:
        with pytest.raises(UsageError, match=f"^{message}") as e:
            Order(Path("a"), **given)
        assert "\n" not in str(e.value)
        assert (e.value.hint or "").startswith(hint) if hint else e.value.hint is None


def test_keywords_that_there_are_not() -> None:
    with pytest.raises(
        TypeError, match=r"^order\(\) got an unexpected keyword argument 'cuont'; did you .*'count'"
    ):
        Order.from_keywords("order", file="a", cuont=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'own'$"):
        Order.from_keywords("order", file="a", own=())


def test_the_command_line_names_flags() -> None:
    done = CliRunner().invoke(command, ["a", "--quiet", "--text", "t"])
    assert done.exit_code == 2 and "--quiet and --text exclude each other" in done.output
    done = CliRunner().invoke(command, ["a", "--count", "x"])
    assert done.exit_code == 2 and "'--count'" in done.output
    assert isinstance(CliRunner().invoke(command, ["a", "--size", "x"]).exception, UsageError)


def test_texts_that_are_none() -> None:
    wrong = {
        "count": ("x", "", "9" * 31), "seconds": ("soon",), "careful": ("perhaps",), "words": ("it's",),
        "form": ("",),
    }  # fmt: skip
    for one in Order.options():
        for text in wrong.get(one.name, ()):
            with pytest.raises(UsageError, match=one.name):
                one.take_text(text)
