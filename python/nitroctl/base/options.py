# SPDX-License-Identifier: MIT
"""Requests whose fields say everything about themselves: the one place where an option is described.

A request is a frozen dataclass whose fields are annotated with an `Option`:

    cpus: Annotated[int, Option("Virtual CPUs.", metavar="N")] = 1

Name, type, default and Option together are a `Described`. From these come the options of a command
(`commands.options`), the keywords of the Python API and of the pytest fixtures (`nitroctl.keywords`, which is
generated), the JSON for another process, variables of the environment, and the tables in docs. Whatever way a
value comes, it is taken by `Described.take`, which refuses a wrong one by the field's name.

A field without an Option is the package's own: in the JSON, and nowhere that a user sees.

Here is only how; what can be asked for is in `enclaves.request` and `eif.request`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union

from nitroctl.base.errors import UsageError
from nitroctl.base.sequences import texts, variables

if TYPE_CHECKING:
    from typing_extensions import Self

_KINDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}
_METAVARS: dict[Any, str] = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class Option(NamedTuple):
    """What a field's name, type and default do not say."""

    help: str
    metavar: str | None = None
    # On the command line; by default the name with dashes, and with --no- for what is true by default.
    flag: str | None = None
    short: str | None = None  # a flag of one letter beside it
    argument: bool = False  # on the command line it has no flag but a place
    type: str | None = None  # of a field that takes anything: what its keyword takes
    or_path: bool = False  # a text that may be given as a path
    program: bool = False  # a path of a program: one without a slash is a name, to be looked for in PATH
    unit: str | None = None
    unset: str | None = None  # what takes its place where it is left out, if the default is None
    parse: Callable[[str], Any] | None = None  # a text to a value of the field's type; raises UsageError
    check: Callable[[Any], None] | None = None  # raises UsageError
    excludes: tuple[str, ...] = ()  # the fields that may not be given as well
    needs: tuple[str, ...] = ()  # the fields of which one must be given as well
    words: bool = False  # of texts: one alone was probably meant as a command line
    pairs: bool = False  # of texts: NAME=VALUE, in Python a mapping
    session: bool = False  # can be set for a whole test session
    # What it is called in nitro-cli's request. None: NITROCTL_ and the name, in the environment. False: it
    # cannot be asked for there.
    nitro_cli: str | Literal[False] | None = None


class Described(NamedTuple):
    """One field of a request, with all that is known about it."""

    name: str
    kind: Any  # bool, int, float, str, Path, tuple, or object for anything
    item: Any  # of a tuple: str or Path
    choices: tuple[str, ...]
    optional: bool  # None is a value
    default: Any  # MISSING where there is none
    option: Option | None

    @property
    def flag(self) -> str:
        assert self.option
        negative = "no-" if self.default is True else ""
        return self.option.flag or f"--{negative}{self.name.replace('_', '-')}"

    @property
    def metavar(self) -> str | None:
        """What stands for its value, None for a switch."""
        assert self.option
        if self.kind is bool:
            return None
        return self.option.metavar or "|".join(self.choices) or _METAVARS.get(self.item or self.kind, "TEXT")

    @property
    def help(self) -> str:
        """What it is for, and what takes its place where it is left out."""
        assert self.option
        return (
            f"{self.option.help}  [default: {self.option.unset}]" if self.option.unset else self.option.help
        )

    def take(self, value: Any) -> Any:
        """The value as the field has it. Raises UsageError, which names the field, for one that is none."""
        if value is None and self.optional:
            return None
        found = self._typed(value)
        if self.option and self.option.check:
            self.option.check(found)
        return found

    def take_text(self, text: str) -> Any:
        """As `take`, of what stands in a variable or a configuration file. Raises UsageError."""
        value: Any = text
        if self.kind is bool:
            value = text.lower() in _YES if text.lower() in (*_YES, *_NO) else text
        elif self.kind is tuple:
            import shlex

            try:
                value = shlex.split(text)
            except ValueError as e:
                raise UsageError(f"{self.name}: {text!r}: {e}") from None
        elif self.kind in (int, float) and not (self.option and self.option.parse):
            try:
                value = self.kind(text) if len(text) <= 30 else text
            except ValueError:
                pass  # and `take` says so
        return self.take(value)

    def _typed(self, value: Any) -> Any:
        if self.kind is object:
            return value
        if self.kind is tuple:
            return self._several(value)
        if self.choices:
            if isinstance(value, str) and value in self.choices:
                return value
            raise self._refused(value, " or ".join(map(repr, self.choices)))
        if self.option and self.option.or_path and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, str) and self.option and self.option.parse:
            return self.option.parse(value)
        if self.kind is Path and isinstance(value, str | os.PathLike):
            path = os.fspath(value)
            if isinstance(path, str) and "\0" not in path:
                program = self.option is not None and self.option.program
                # A Path forgets the slash of "./name".
                return Path(os.path.abspath(path) if program and "/" in path else path)
        elif self.kind is float and type(value) in (int, float):
            return float(value)
        elif type(value) is self.kind or (self.kind is str and isinstance(value, str)):
            return value
        raise self._refused(value, _KINDS[self.kind])

    def _several(self, value: Any) -> tuple[Any, ...]:
        if self.option and self.option.pairs and not isinstance(value, tuple):
            return variables(self.name, value)
        if self.item is Path and isinstance(value, Iterable) and not isinstance(value, str | bytes):
            value = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
        found = texts(self.name, value, words=bool(self.option and self.option.words))
        return tuple(map(self.item, found))

    def _refused(self, value: Any, wanted: str) -> UsageError:
        hint = None
        if self.kind in (int, float) and isinstance(value, str) and len(value) <= 30:
            try:
                hint = f"write {self.name}={self.kind(value)!r}"
            except ValueError:
                pass
        elif self.kind is str and isinstance(value, int | float):
            hint = f"write {self.name}={str(value)!r}"
        if self.optional:
            wanted += ", or None"
        return UsageError(f"{self.name}={value!r}: {self.name} takes {wanted}", hint=hint)

    def is_given(self, value: Any) -> bool:
        return bool(value != self.default and value is not None)


def _described(field: dataclasses.Field[Any], hint: Any) -> Described:
    option = None
    if typing.get_origin(hint) is Annotated:
        hint, *more = typing.get_args(hint)
        option = next((one for one in more if isinstance(one, Option)), None)
    optional = hint is object
    if typing.get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        optional, hint = True, kinds[0]
        assert len(kinds) == 1, f"{field.name}: one type, or None"
    choices: tuple[str, ...] = ()
    kind, item = typing.get_origin(hint) or hint, None
    if kind is tuple:
        item = typing.get_args(hint)[0]
    if kind is Literal:
        kind, choices = str, typing.get_args(hint)
    assert kind in (*_KINDS, tuple, object), f"{field.name}: no request has fields of the type {hint}"
    return Described(field.name, kind, item, choices, optional, field.default, option)


class Request:
    """A base of dataclasses. Its fields are taken when an object is made, however that comes about."""

    __dataclass_fields__: typing.ClassVar[dict[str, dataclasses.Field[Any]]]

    @classmethod
    @functools.cache  # noqa: B019 (of classes, of which there are few)
    def described(cls) -> tuple[Described, ...]:
        """All fields, in order."""
        hints = typing.get_type_hints(cls, include_extras=True)
        return tuple(_described(field, hints[field.name]) for field in dataclasses.fields(cls))

    @classmethod
    def options(cls) -> tuple[Described, ...]:
        """Those that a user can give."""
        return tuple(one for one in cls.described() if one.option)

    @classmethod
    def broken(cls, given: Mapping[str, Any], called: Callable[[Described], str]) -> str | None:
        """What is wrong with these values together, with the names that the user knows; None: nothing."""
        fields = {one.name: one for one in cls.options()}
        there = {name for name, one in fields.items() if one.is_given(given.get(name))}
        for name in filter(there.__contains__, fields):
            one, option = fields[name], fields[name].option
            assert option
            if other := next(filter(there.__contains__, option.excludes), None):
                return f"{called(one)} and {called(fields[other])} exclude each other: give one of them"
            if option.needs and not there & set(option.needs):
                return f"{called(one)} is for {' or '.join(called(fields[n]) for n in option.needs)}"
        return cls.rules({name: given.get(name) for name in there}, lambda name: called(fields[name]))

    @classmethod
    def rules(cls, given: Mapping[str, Any], called: Callable[[str], str]) -> str | None:
        """As `broken`, for what a request has of its own; `given` is what is not the default."""
        return None

    @classmethod
    def from_keywords(cls, caller: str, **given: Any) -> Self:
        """As the class itself, for the Python API: a keyword that there is not is `caller`'s."""
        names = [one.name for one in cls.options()]
        for name in given:
            if name not in names:
                import difflib

                near = difflib.get_close_matches(name, names, 1)
                meant = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}{meant}")
        return cls(**given)

    def __post_init__(self) -> None:
        for one in self.described():
            object.__setattr__(self, one.name, one.take(getattr(self, one.name)))
        if wrong := self.broken(vars(self), lambda one: one.name):
            raise UsageError(wrong)

    def to_json(self) -> dict[str, Any]:
        """For a process with another working folder."""

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return [plain(item) for item in value]
            return os.path.abspath(value) if isinstance(value, Path) else value

        return {one.name: plain(getattr(self, one.name)) for one in self.described()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**value)


def signature(function: Callable[..., Any], request: type[Request]) -> Any:
    """That of a function with the request's keywords, as a person wants to read it in help() and in shells
    that complete; type checkers have `keywords`."""
    import inspect

    known = inspect.signature(function)
    fixed = [p for p in known.parameters.values() if p.kind is not p.VAR_KEYWORD]
    kind = inspect.Parameter.KEYWORD_ONLY
    names = {p.name for p in fixed}
    more = [
        inspect.Parameter(one.name, kind, default=one.default)
        for one in request.options()
        if one.name not in names
    ]
    return known.replace(parameters=[p for p in [*fixed, *more] if p.name != "self"])
