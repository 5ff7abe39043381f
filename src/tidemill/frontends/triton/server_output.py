"""Follows a server's log: keeps its last lines, passes on what a reader needs.

In: the server's output, line by line. Out: warnings, errors and what models print; everything when
asked. The wheel's server complains on machines without a GPU though nothing is wrong, and shows all
of its help to whoever mistypes a flag: those lines are dropped.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from typing import IO

KEPT_LINES = 200
TABLE_OR_INFO = re.compile(r"^(I\d{4} |\||\+-|\s*$)")
HELP_STARTS = "Usage: tritonserver"
HELP = re.compile(rf"{HELP_STARTS}|\t|  -|[A-Z][\w/ ]*:$")
HARMLESS = ("CUDA driver version is insufficient", "CudaDriverHelper has not been initialized")


class ServerOutput:
    """The tail of a server's output, filled by a thread of its own until the pipe ends."""

    def __init__(self, pipe: IO[str], pass_on: Callable[[str], None], is_verbose: bool) -> None:
        self._pipe = pipe
        self._pass_on = pass_on
        self._is_verbose = is_verbose
        self._is_help = False
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._thread = threading.Thread(target=self._follow, name="server-output", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        with self._pipe:
            for line in self._pipe:
                self._take(line.rstrip("\n"))

    def _take(self, line: str) -> None:
        self._is_help |= line.startswith(HELP_STARTS)
        if self._is_help and HELP.match(line):
            return
        self._lines.append(line)
        if self._is_verbose or is_worth_showing(line):
            self._pass_on(line)

    def join(self, timeout_s: float) -> None:
        """Wait until everything written so far was read; a child may hold the pipe for longer."""
        self._thread.join(timeout_s)

    def faults(self, count: int = 12) -> str:
        """Return the last warnings and errors, or the last lines when there are none."""
        lines = list(self._lines)
        return "\n".join(([line for line in lines if is_worth_showing(line)] or lines)[-count:])


def is_worth_showing(line: str) -> bool:
    """Say whether a line is neither information, nor a table, nor known to be harmless."""
    return not TABLE_OR_INFO.match(line) and not any(phrase in line for phrase in HARMLESS)
