"""Progress on the terminal: a bar on stderr; logs stay free of bars.

In: the library's calls. Out: nothing but what a person sees. rich is imported when the first bar is
drawn, so that help and errors stay fast.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tidemill.base.progress import Progress

if TYPE_CHECKING:
    from rich import progress as rich_progress


@contextmanager
def progress_bar(verb: str) -> Iterator[Progress]:
    """Give a reporter that draws one bar for the verb while the body runs."""
    if not (sys.stderr and sys.stderr.isatty()):  # a shell may have closed it
        yield lambda what, done, total: None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.percentage:>3.0f}%"),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("{task.fields[what]}"),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        yield _Bar(drawn, verb)


class _Bar:
    """One rich bar, moved to what the library last reported."""

    def __init__(self, drawn: rich_progress.Progress, verb: str) -> None:
        self._drawn = drawn
        self._task = drawn.add_task(verb, total=None, what="")

    def __call__(self, what: str, done: int, total: int, /) -> None:
        self._drawn.update(self._task, completed=done, total=total, what=what)
