"""Engines that a cache keeps: held while somebody uses them, and removed when they are too many.

In: an engine's place in a cache. Out: two locks, on files beside it, which end with their process.
NAME.lock is taken alone, by who builds or removes; NAME.use is shared by users, and its time says
when the engine was used last. Both files stay. Engines of releases before these locks count as
used when they were made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

Say = Callable[[str], None]

# A source's name, and the hash of what shaped the engine.
_KEPT_NAME = re.compile(r".+-[0-9a-f]{16}")


@contextmanager
def sole_maker(engine: Path) -> Iterator[None]:
    """Have an engine's place alone, to look and to build; another maker is waited for."""
    with _beside(engine, ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hold(engine: Path) -> IO[str]:
    """Keep an engine from being removed until what this returns is closed."""
    path = _beside(engine, ".use")
    file = path.open("w")
    fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(path)
    return file


def hold_if_kept(engine: Path) -> IO[str] | None:
    """Hold an engine, a directory or its file, that is named by its place; None if none is kept."""
    with contextlib.suppress(OSError):
        place = engine.resolve()
        directory = place.parent if place.is_file() else place
        return hold(directory) if _is_kept(directory) else None
    return None


def remove_leftovers(engine: Path) -> None:
    """Remove what processes that were killed left of making an engine; for its maker alone."""
    for path in engine.parent.iterdir():
        if path.name.startswith(f".{engine.name}."):
            shutil.rmtree(path, ignore_errors=True)


def remove_oldest(cache: Path, max_bytes: int, say: Say | None = None) -> None:
    """Remove engines, the least recently used first, until the cache is within its bound.

    Whatever is held stays, though the cache be too large then.
    """
    engines = [path for path in cache.iterdir() if _is_kept(path)]
    engine_to_bytes = {engine: _size_bytes(engine) for engine in engines}
    total = sum(engine_to_bytes.values())
    for engine in sorted(engines, key=_last_use_ns):
        if total <= max_bytes:
            return
        if _remove_unused(engine):
            total -= engine_to_bytes[engine]
            if say:
                say(f"removed {engine}: the cache of engines had more than {max_bytes / 1e9:g} GB")


def _remove_unused(engine: Path) -> bool:
    with _beside(engine, ".lock").open("w") as making, _beside(engine, ".use").open("a") as use:
        try:
            fcntl.flock(making, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Under another name first: half an engine must not be taken for one.
        retired = engine.with_name(f".{engine.name}.old")
        with contextlib.suppress(FileNotFoundError):  # somebody else removed it
            engine.rename(retired)
        shutil.rmtree(retired, ignore_errors=True)
        return True


def _is_kept(path: Path) -> bool:
    """Whether a cache made this: whatever else lies there is never touched."""
    return _KEPT_NAME.fullmatch(path.name) is not None and any(path.glob("*.engine"))


def _last_use_ns(engine: Path) -> int:
    for path in (_beside(engine, ".use"), engine):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime_ns
    return 0  # somebody else removes it


def _beside(engine: Path, suffix: str) -> Path:
    return engine.with_name(engine.name + suffix)


def _size_bytes(directory: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # somebody else removes it
        return sum(path.stat().st_size for path in directory.iterdir())
    return 0
