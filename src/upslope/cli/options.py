"""Reading a subcommand's options: names checked first, then `tyro` on a dataclass."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from upslope.errors import ArgumentError, suggest

Options = TypeVar("Options")
TAKES: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
}


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before the first option, and the rest."""
    for k, word in enumerate(arguments):
        if word.startswith("-"):
            return list(arguments[:k]), list(arguments[k:])
    return list(arguments), []


def parse(default: Options, arguments: Sequence[str], *, prog: str, description: str) -> Options:
    """Return the options over their defaults; raises ArgumentError for a name there is not.

    Fields that are dataclasses give their own fields as options, without a prefix.
    """
    known = {"help", *_kinds(default)}
    for word in arguments:
        name = word.lstrip("-").split("=")[0].replace("_", "-")
        if not word.startswith("-") or word == "-h" or re.match(r"-[0-9.]|-inf$", word):
            continue  # a value, perhaps a negative number
        if not word.startswith("--") or not {name, name.removeprefix("no-")} & known:
            option = word.split("=")[0]
            raise ArgumentError(
                f"there is no option {option}{suggest(name, known)}; {prog} --help lists them"
            )
    _check_numbers(_kinds(default), arguments)
    return tyro.cli(
        type(default),
        default=default,
        args=arguments,
        prog=prog,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _kinds(options: Any) -> dict[str, str]:
    """Return the name of each option, and its type as it is written."""
    found: dict[str, str] = {}
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        nested = dataclasses.is_dataclass(value)
        found |= _kinds(value) if nested else {item.name.replace("_", "-"): str(item.type)}
    return found


def _check_numbers(kinds: dict[str, str], arguments: Sequence[str]) -> None:
    """Raise ArgumentError for a number that is none, in one sentence where `tyro` has a page."""
    for k, word in enumerate(arguments):
        following = arguments[k + 1] if k + 1 < len(arguments) else None
        option, equals, value = word.partition("=")
        text = value if equals else following
        written = kinds.get(option.lstrip("-").replace("_", "-"), "")
        kind = written.removesuffix(" | None")
        if kind not in TAKES or not word.startswith("--") or (text == "None" and written != kind):
            continue
        read, takes = TAKES[kind]
        try:
            read(text or "")
        except ValueError:
            got = "nothing" if text is None else repr(text)
            raise ArgumentError(f"{option} takes {takes}, got {got}") from None


def table(name: str, text: str | None) -> dict[str, Any]:
    """Return the entries of an option that is written as TOML, such as '{score_limit = 100}'."""
    if text is None:
        return {}
    inside = text.strip()
    inside = inside if inside.startswith("{") else "{" + inside + "}"
    try:
        return tomllib.loads(f"it = {inside}")["it"]
    except tomllib.TOMLDecodeError as error:
        raise ArgumentError(
            f"--{name} {text!r} is not a table such as '{{score_limit = 100}}': {error}"
        ) from None
