# SPDX-License-Identifier: MIT
"""What a failed step of a build says: of ninja's and configure's output, the lines that tell why. Nothing is
built here.
"""

from __future__ import annotations

import pytest

from nitroctl.toolchain.steps import NinjaOutput, configure_reasons

NINJA_FAILURE = """\
ninja: Entering directory `/build'
[1/1366] Generating ui/input.c with a custom command
[1351/1366] Compiling C object libcommon.a.p/fine.c.o
[1352/1366] Compiling C object libcommon.a.p/nitro.c.o
FAILED: {code}libcommon.a.p/nitro.c.o
cc -m64 -Ilibcommon.a.p -I.. -Wall -O2 -o libcommon.a.p/nitro.c.o -c ../nitro.c
../nitro.c: In function 'f':
../nitro.c:3:5: error: 'x' undeclared (first use in this function)
    3 |     x = 1;
      |     ^
[1353/1366] Compiling C object libcommon.a.p/later.c.o
../later.c:9:9: warning: unused variable 'y'
FAILED: {code}libcommon.a.p/third.c.o
cc -c ../third.c
../third.c:1:1: error: another
ninja: build stopped: subcommand failed.
"""


@pytest.mark.parametrize("code", ["", "[code=1] "])
def test_ninja_failure(code: str) -> None:
    output = NinjaOutput()
    for line in NINJA_FAILURE.format(code=code).splitlines():
        # ninja ends this line with a space.
        output.feed(line + " " if line.startswith("FAILED") else line)
    assert (output.done, output.total) == (1353, 1366)
    assert output.failed == "libcommon.a.p/nitro.c.o"
    assert output.reasons() == [
        "../nitro.c: In function 'f':",
        "../nitro.c:3:5: error: 'x' undeclared (first use in this function)",
        "    3 |     x = 1;",
        "      |     ^",
    ]


def test_ninja_failure_of_many_lines_begins_at_the_error() -> None:
    output = NinjaOutput()
    lines = ["FAILED: a.o", "cc a.c"] + [f"note {i}" for i in range(50)]
    lines += ["a.c: In function 'f':", "a.c:1:1: error: no"] + [f"more {i}" for i in range(50)]
    for line in lines:
        output.feed(line)
    assert output.reasons(limit=4) == ["a.c: In function 'f':", "a.c:1:1: error: no", "more 0", "more 1"]


def test_ninja_failure_without_a_step() -> None:
    output = NinjaOutput()
    output.feed("ninja: error: loading 'build.ninja': No such file or directory")
    assert output.reasons() == ["ninja: error: loading 'build.ninja': No such file or directory"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a\nb\n../meson.build:7:0: ERROR: Unknown type\n\nA full log\n",
         ["../meson.build:7:0: ERROR: Unknown type", "A full log"]),
        ("ERROR: glib-2.66 is required\n", ["ERROR: glib-2.66 is required"]),
        ("one\ntwo\n", ["one", "two"]),
    ],
)  # fmt: skip
def test_configure_reasons(text: str, expected: list[str]) -> None:
    assert configure_reasons(text.splitlines()) == expected
