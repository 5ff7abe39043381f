"""Names this house's shared-memory regions and removes those whose owner is gone.

Triton's Python backend leaves its regions in /dev/shm when a server is killed. Every server of
ours gets a prefix with its launcher's process id, so that leftovers can be told from live ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from tidemill.frontends.triton.process_tree import is_alive

SHM_DIR = Path("/dev/shm")
PREFIX_PATTERN = re.compile(r"tidemill_(\d+)_[0-9a-f]{8}_")


def unique_prefix() -> str:
    """Return a prefix that no other server has."""
    return f"tidemill_{os.getpid()}_{secrets.token_hex(4)}_"


def remove_leftovers(prefix: str | None = None, shm_dir: Path = SHM_DIR) -> list[Path]:
    """Remove the regions of one prefix, or those of every launcher that no longer lives."""
    removed = []
    for path in shm_dir.glob("tidemill_*"):
        match = PREFIX_PATTERN.match(path.name)
        if match is None:
            continue
        is_leftover = not is_alive(int(match[1])) if prefix is None else match[0] == prefix
        if is_leftover:
            with contextlib.suppress(FileNotFoundError, PermissionError):  # another user's may stay
                path.unlink()
                removed.append(path)
    return removed
