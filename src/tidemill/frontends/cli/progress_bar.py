"""Progress on the terminal: a bar on stderr, or a line per stage where stderr is no terminal.

In: calls (what, done, total) from the library. Out: nothing but what a person sees. rich is
imported when the first bar is drawn, so that help and errors stay fast.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress


class Report(Protocol):
    """The library's side: what is being done, how much of it, out of how much."""

    def __call__(self, what: str, done: int, total: int, /) -> None: ...


@contextmanager
def progress_bar(verb: str) -> Iterator[Report]:
    """Give a reporter that draws one bar for the verb while the body runs."""
    if not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        yield _Bar(drawn, verb)


def _ignore(what: str, done: int, total: int, /) -> None:
    """Report nothing; logs stay free of bars."""


class _Bar:
    """One rich bar, moved to what the library last reported."""

    def __init__(self, drawn: Progress, verb: str) -> None:
        self._drawn = drawn
        self._task = drawn.add_task(verb, total=None, what="")

    def __call__(self, what: str, done: int, total: int, /) -> None:
        self._drawn.update(self._task, completed=done, total=total, what=what)
