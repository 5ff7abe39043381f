"""Code that this CPU can run for an engine: the engine's own, or what was recompiled for it.

In: an open engine. Out: an image with its entry offsets, or an error that names both targets.
Recompiled code is one file in the user's cache, named by the engine's hash and the target, written
whole or not at all; a file that does not check out is as good as none, and of too many those that
were used longest ago go. Knows no compiler.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tidemill.base.cache_dir import cache_dir
from tidemill.base.errors import EngineTargetError
from tidemill.base.target import host_features, host_targets
from tidemill.base.version import __version__
from tidemill.engine.format import FORMAT_VERSION, rebuild_command
from tidemill.engine.manifest import CodeSection
from tidemill.engine.reader import EngineFile

MAX_CACHED_FILES = 64  # of 50 to 500 kB each


@dataclass(frozen=True)
class NativeCode:
    """An image of machine code and what is in it."""

    section: CodeSection
    image: bytes


@dataclass(frozen=True)
class _Label:
    """The first line of a cached file."""

    engine: str
    version: str
    section: CodeSection
    image_sha256: str


def runs_own_code(engine: EngineFile) -> bool:
    """Say whether this CPU has all features that the engine's own code uses."""
    return set(engine.manifest.code.cpu_features) <= host_features()


def find_native_code(engine: EngineFile) -> NativeCode:
    """Return the engine's own code if this CPU has its features, else what was recompiled.

    Raises: EngineTargetError when there is neither.
    """
    if runs_own_code(engine):
        return NativeCode(engine.manifest.code, engine.code_image())
    for target in host_targets():
        cached = read_cached_code(engine, target.name)
        if cached is not None:
            return cached
    raise target_error(engine, "install llvmlite here, and it is recompiled as it loads; or build")


def target_error(engine: EngineFile, remedy: str) -> EngineTargetError:
    """Say what the engine needs and what this CPU is; `remedy` goes before the rebuild command."""
    code = engine.manifest.code
    missing = sorted(set(code.cpu_features) - host_features())
    ours = ", ".join(target.name for target in host_targets()[:1]) or "older than any target"
    command = rebuild_command(engine.manifest.source_checkpoint, str(engine.path.parent))
    return EngineTargetError(
        "the engine was built for another CPU",
        where=str(engine.path),
        expected=f"a CPU of target {code.target} ({', '.join(sorted(code.cpu_features))})",
        got=f"a CPU of target {ours}, which lacks {', '.join(missing)}",
        hint=f"{remedy} it for this machine: {command}",
    )


def read_cached_code(engine: EngineFile, target: str) -> NativeCode | None:
    """Return what `write_cached_code` stored for this engine and target, or nothing."""
    path = _cached_path(engine, target)
    try:
        # Code is believed only from files that nobody else could have written.
        if path.stat().st_uid != os.geteuid() or path.stat().st_mode & 0o022:
            return None
        head, _, image = path.read_bytes().partition(b"\n")
        label = msgspec.json.decode(head, type=_Label)
    except (OSError, msgspec.DecodeError):
        return None
    code = NativeCode(label.section, image)
    if label != _label(engine, code):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # what is used stays longest
    return code


def write_cached_code(engine: EngineFile, code: NativeCode) -> Path:
    """Keep recompiled code for the next load; returns its path.

    Raises: OSError when the cache cannot be written.
    """
    import tempfile  # costs a start 3 ms

    path = _cached_path(engine, code.section.target)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_label(engine, code)) + b"\n" + code.image)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _prune(path.parent)
    return path


def _prune(directory: Path) -> None:
    """Delete what was used longest ago, beyond the files that are kept.

    Other processes may prune, too, or start an engine whose file goes: it compiles again.
    """
    used: list[tuple[float, Path]] = []
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            used.append((path.stat().st_mtime, path))
    for _, path in sorted(used, reverse=True)[MAX_CACHED_FILES:]:
        with contextlib.suppress(OSError):
            path.unlink()


def _cached_path(engine: EngineFile, target: str) -> Path:
    name = f"{engine.identity[:32]}-v{FORMAT_VERSION}-{__version__}-{target}.code"
    return cache_dir("code") / name


def _label(engine: EngineFile, code: NativeCode) -> _Label:
    digest = hashlib.sha256(code.image).hexdigest()
    return _Label(engine.identity, __version__, code.section, digest)
