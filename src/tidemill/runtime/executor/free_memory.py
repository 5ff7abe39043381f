"""How much memory this machine can still give, as the kernel reckons it."""

from __future__ import annotations

import os
from pathlib import Path

_MEMORY = Path("/proc/meminfo")


def free_bytes() -> int:
    """Return the memory that can be had without swapping; what is unused, where nobody tells."""
    try:
        for line in _MEMORY.read_text("ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
