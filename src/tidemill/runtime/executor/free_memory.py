"""How much memory this process can have: the machine's, or what its control groups leave of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tidemill.base.control_groups import CONTROL_GROUPS, OWN_GROUPS, ControlGroup, own_groups

_MEMORY = Path("/proc/meminfo")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def total_bytes(root: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return the memory that this process could have, were it alone."""
    limits = (limit for _, limit in _limits(root, own))
    return min((_PAGE_BYTES * os.sysconf("SC_PHYS_PAGES"), *limits))


def free_bytes(root: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return the memory that can be had without swapping; pages of files count as free."""
    left = (limit - _held_bytes(group) for group, limit in _limits(root, own))
    return max(0, min((_machine_bytes(), *left)))


def _machine_bytes() -> int:
    """What the kernel reckons to be free; what is unused, where it does not reckon."""
    try:
        return _counts(_MEMORY)["MemAvailable:"] * 1024
    except (OSError, KeyError):
        return _PAGE_BYTES * os.sysconf("SC_AVPHYS_PAGES")


def _limits(root: Path, own: Path) -> Iterator[tuple[ControlGroup, int]]:
    """Each limit of each group; beyond the lower one of version 2 a group is slowed down."""
    for group in own_groups("memory", root, own):
        names = ("memory.max", "memory.high") if group.is_v2 else ("memory.limit_in_bytes",)
        for name in names:
            with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                yield group, int((group.path / name).read_text())


def _held_bytes(group: ControlGroup) -> int:
    """What a group uses and cannot drop."""
    usage = "memory.current" if group.is_v2 else "memory.usage_in_bytes"
    total = "" if group.is_v2 else "total_"  # with the groups within
    try:
        counts = _counts(group.path / "memory.stat")
        files = counts[f"{total}active_file"] + counts[f"{total}inactive_file"]
        return int((group.path / usage).read_text()) - files
    except (OSError, KeyError):
        return 0


def _counts(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text("ascii").splitlines() if line)
    return {name: int(count) for name, count, *_ in lines}
