# SPDX-License-Identifier: MIT
"""The options of a command, from the fields of its request (`base.options`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

import click

from nitroctl.base.options import Described, Request
from nitroctl.commands import PATH, PROGRAM, image_references

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Request)


class _Parsed(click.ParamType):  # type: ignore[type-arg]
    """A text in a form of its own. What is wrong with it is a UsageError of its parser's.
    (click's class takes a type argument in its newer versions alone.)"""

    name = "text"

    def __init__(self, one: Described) -> None:
        self._one = one

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._one.take(value)


def requested(request: type[Request]) -> Callable[[F], F]:
    """All options of the request; the command gets them as keywords, which `asked` takes."""

    def add(command: F) -> F:
        for one in reversed(request.options()):
            command = _decorator(one)(command)
        return command

    return add


def asked(request: type[R], given: dict[str, Any]) -> R:
    """The request. Raises UsageError, also click's."""
    if wrong := request.broken(given, lambda one: one.flag):
        raise click.UsageError(wrong)
    return request(**given)


def _decorator(one: Described) -> Callable[[F], F]:
    assert one.option
    kind = _kind(one)
    if one.option.argument:
        return click.argument(one.name, metavar=one.metavar, type=kind)
    more: dict[str, Any] = {"help": one.help}
    if one.kind is bool:
        more["is_flag"] = True
        if one.default is True:  # the switch is --no-..., the value what it switches off
            more["callback"] = lambda ctx, param, value: not value
    elif one.kind is tuple:
        more |= {"multiple": True, "metavar": one.metavar, "type": PATH if one.item is Path else str}
    else:
        more |= {"type": kind, "metavar": None if one.choices else one.metavar, "default": one.default}
        more["show_default"] = bool(one.default)
    if one.name == "image":
        more["shell_complete"] = image_references
    if one.default is MISSING:
        more |= {"required": True, "default": None, "show_default": False}
    flags = [one.option.short, one.flag] if one.option.short else [one.flag]
    return click.option(one.name, *flags, **more)


def _kind(one: Described) -> Any:
    if one.choices:
        return click.Choice(one.choices)
    if one.option and one.option.parse:
        return _Parsed(one)
    if one.option and one.option.program:
        return PROGRAM
    return {Path: PATH, object: str}.get(one.kind, one.kind)
