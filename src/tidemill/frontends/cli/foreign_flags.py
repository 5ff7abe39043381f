"""Flags of TensorRT-LLM's tools that have no field here: checked against a table, then explained.

In: the arguments that a verb does not declare, and the table of the tool. Out: one line for each
flag that has no effect; an error for a flag that is unknown, has a value outside of its set, or
asks for something that would change results and is not there yet. Nothing is ignored silently.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from tidemill.base.errors import ConfigError, UnsupportedError


class Kind(Enum):
    """What may follow a flag."""

    SWITCH = "nothing"
    INTEGER = "an integer"
    NUMBER = "a number"
    TEXT = "text"


@dataclass(frozen=True)
class ForeignFlag:
    """One row: a flag, the values it may have, and what is said of it.

    `values` is a kind or the closed set of words. `why` completes "no effect here: ..." when the
    flag is harmless, or "not yet: ..." when `is_refused`. `neutral` lists values that ask for
    nothing and are therefore accepted even on a refused flag.
    """

    name: str
    values: Kind | tuple[str, ...]
    why: str
    is_refused: bool = False
    neutral: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def read_foreign_flags(
    tool: str, table: Sequence[ForeignFlag], arguments: Sequence[str], own: Sequence[str] = ()
) -> list[str]:
    """Check the arguments against the table; return one note for each flag without effect.

    `own` are the flags of the verb itself, for whoever mistypes one.

    Raises: ConfigError for an unknown flag or a value outside of its set; UnsupportedError listing
    every flag that asks for what is not there yet.
    """
    by_name = {_plain(name): row for row in table for name in (row.name, *row.aliases)}
    notes: list[str] = []
    refused: list[str] = []
    for name, value in _pairs(tool, by_name, arguments, own):
        row = by_name[name]
        shown = f"{row.name} {value}".rstrip()
        _check_value(tool, row, value)
        if row.is_refused and value not in row.neutral:
            refused.append(f"{shown}: not yet: {row.why}")
        else:
            notes.append(f"{shown}: no effect here: {row.why}")
    if refused:
        raise UnsupportedError(
            f"{tool} was asked for what this version cannot do",
            where="; ".join(refused),
            expected="flags that this version can honour",
            got=f"{len(refused)} that would change the result",
            hint="leave them out; docs/TRTLLM_FLAGS.md lists every flag",
        )
    return notes


def _plain(name: str) -> str:
    """Return a flag's spelling with underscores, the form the tables are keyed by."""
    stem = name.lstrip("-")
    return name[: len(name) - len(stem)] + stem.replace("-", "_")


def _pairs(
    tool: str, by_name: Mapping[str, ForeignFlag], arguments: Sequence[str], own: Sequence[str]
) -> list[tuple[str, str]]:
    """Split arguments into (flag, value); switches have the empty value."""
    pairs: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        name = _plain(name)
        if not word.startswith("-") or name not in by_name:
            raise _unknown(tool, word, [*own, *(row.name for row in by_name.values())])
        row = by_name[name]
        if row.values is Kind.SWITCH and has_value:
            raise _bad_value(tool, row, value)
        if row.values is not Kind.SWITCH and not has_value:
            if not rest:
                raise _bad_value(tool, row, "")
            value = rest.pop(0)
        pairs.append((name, value))
    return pairs


def _unknown(tool: str, word: str, names: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(_plain(word.partition("=")[0]), names, n=1)
    return ConfigError(
        f"{tool} does not know this argument",
        where=f"command line of {tool}",
        expected=f"a flag of {tool}",
        got=repr(word),
        hint=f"did you mean {near[0]}?" if near else "--help lists the flags that act",
    )


def _bad_value(tool: str, row: ForeignFlag, value: str) -> ConfigError:
    allowed = (
        row.values.value if isinstance(row.values, Kind) else "one of " + ", ".join(row.values)
    )
    return ConfigError(
        "a flag has a value that it cannot have",
        where=f"{row.name} of {tool}",
        expected=allowed,
        got=repr(value) if value else "nothing",
        hint="docs/TRTLLM_FLAGS.md lists every flag with its values",
    )


_PARSERS: dict[Kind, Callable[[str], object]] = {Kind.INTEGER: int, Kind.NUMBER: float}


def _check_value(tool: str, row: ForeignFlag, value: str) -> None:
    if isinstance(row.values, tuple):
        if value not in row.values:
            raise _bad_value(tool, row, value)
        return
    parse = _PARSERS.get(row.values)
    if parse is None:
        return
    try:
        parse(value)
    except ValueError:
        raise _bad_value(tool, row, value) from None
