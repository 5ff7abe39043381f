"""Where this user's cached files live: downloads, recompiled code. Losing them loses only time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(purpose: str) -> Path:
    """Return the directory for one purpose; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tidemill" / purpose
