"""How long work says how far it is: told what is being done, how much of it, out of how much."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
