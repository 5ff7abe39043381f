"""What TIDEMILL_DEBUG shows: one ladder of levels and a few named switches, declared here only.

Environment variables are for looking, never for behaviour: an engine or an answer is the same
whatever they say. Lines go to stderr, so that stdout stays the result. docs/DEBUG.md is generated
from LADDER and SWITCHES. Knows nothing of what is printed.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import IntEnum

from tidemill.base.errors import ConfigError

LEVEL_VARIABLE = "TIDEMILL_DEBUG"


class Level(IntEnum):
    """One rung of the ladder; every level shows what the lower ones show, too."""

    QUIET = 0
    DECISIONS = 1
    TIMINGS = 2
    PLANS = 3
    CODE = 4
    REWRITES = 5


@dataclass(frozen=True)
class Rung:
    """What one level adds, in words for docs/DEBUG.md."""

    level: Level
    shows: str


@dataclass(frozen=True)
class Switch:
    """A named variable that is on when set to 1; `shows` says what it prints or checks."""

    variable: str
    shows: str


LADDER = (
    Rung(Level.QUIET, "Results, warnings and errors without traceback."),
    Rung(Level.DECISIONS, "Choices with who made them (user, default, measured); tracebacks."),
    Rung(Level.TIMINGS, "How long each stage of a build took."),
    Rung(Level.PLANS, "The graph after each pass that changed it, and the memory plan."),
    Rung(Level.CODE, "Generated LLVM IR."),
    Rung(Level.REWRITES, "Passes that changed nothing, too."),
)

CHECK_STATE = Switch(
    "TIDEMILL_CHECK_STATE",
    "Owners of mutable state recompute their invariants when the server is idle.",
)
SWITCHES = (CHECK_STATE,)


def level() -> Level:
    """Return the level that the environment asks for.

    Raises: ConfigError when TIDEMILL_DEBUG is not one of the ladder's numbers.
    """
    text = os.environ.get(LEVEL_VARIABLE, "0") or "0"
    if text not in {str(rung.level.value) for rung in LADDER}:
        raise ConfigError(
            "the debug level is not on the ladder",
            where=f"environment variable {LEVEL_VARIABLE}",
            expected=f"a number from 0 to {max(Level).value}",
            got=repr(text),
            hint=f"{LEVEL_VARIABLE}=1 shows decisions; docs/DEBUG.md lists the levels",
        )
    return Level(int(text))


def is_on(switch: Switch) -> bool:
    """Say whether a named switch is set.

    Raises: ConfigError when the variable holds anything but 0, 1 or nothing.
    """
    text = os.environ.get(switch.variable, "0") or "0"
    if text not in ("0", "1"):
        raise ConfigError(
            "a debug switch is neither on nor off",
            where=f"environment variable {switch.variable}",
            expected="0 or 1",
            got=repr(text),
            hint=f"{switch.variable}=1: {switch.shows}",
        )
    return text == "1"


def shows(wanted: Level) -> bool:
    """Say whether lines of this level are printed; guards the making of expensive text."""
    return level() >= wanted


def say(wanted: Level, room: str, text: str) -> None:
    """Print one line (or block) to stderr if the level is reached; `room` names the speaker."""
    if shows(wanted):
        print(f"tidemill {room}: {text}", file=sys.stderr, flush=True)


def warn(room: str, text: str) -> None:
    """Print one warning to stderr, whatever the level."""
    print(f"tidemill {room}: warning: {text}", file=sys.stderr, flush=True)
