"""Where the host of an engine is found: its socket, its lock and its log.

The name is a hash of the engine's files, their times and the settings, so that whoever wants the
same thing meets at the same socket, through links too, and a rebuilt engine gets a new one. The
directory is private to the user. Knows nothing of processes or messages.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tidemill.base.errors import EngineFormatError, HostError
from tidemill.base.version import __version__
from tidemill.host.config import HostConfig, SessionConfig
from tidemill.host.messages import PROTOCOL_VERSION

# A socket's path has at most 107 bytes; ours ends in "/<16 hex digits>.sock".
MAX_DIRECTORY_BYTES = 80
LOCK_POLL_SECONDS = 0.02
# What a host reads; a model repository keeps other files beside these.
ENGINE_SUFFIXES = (".engine", ".json", ".jinja")


@dataclass(frozen=True)
class HostAddress:
    """The three files of one host."""

    socket_path: Path

    @property
    def lock_path(self) -> Path:
        return self.socket_path.with_suffix(".lock")

    @property
    def log_path(self) -> Path:
        return self.socket_path.with_suffix(".log")

    @classmethod
    def of(cls, engine_dir: Path, session: SessionConfig, host: HostConfig) -> HostAddress:
        """Name the host of an engine under these settings.

        Raises: EngineFormatError when the directory is missing, HostError when no private
        directory for the socket can be had.
        """
        identity = repr(
            (
                _identities(engine_dir),
                session,
                host.program,
                PROTOCOL_VERSION,
                __version__,
            )
        )
        name = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return cls(_private_directory() / f"{name}.sock")

    @contextlib.contextmanager
    def lock(self, timeout_seconds: float) -> Iterator[bool]:
        """Hold the host's lock for the body, which is told whether it was got in time.

        Whoever starts a host or leaves as one holds it.
        """
        deadline = time.monotonic() + timeout_seconds
        descriptor = self._try_lock()
        while descriptor is None and time.monotonic() < deadline:
            time.sleep(LOCK_POLL_SECONDS)
            descriptor = self._try_lock()
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def remove(self) -> None:
        """Remove the host's files; only for the holder of the lock."""
        for path in (self.socket_path, self.log_path, self.lock_path):
            path.unlink(missing_ok=True)

    def _try_lock(self) -> int | None:
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A leaving host may have removed the file between our open and our lock.
            if os.stat(self.lock_path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
        return None


def _identities(engine_dir: Path) -> list[tuple[str, int, int, int]]:
    try:
        with os.scandir(engine_dir) as entries:
            names = sorted(e.name for e in entries if Path(e.name).suffix in ENGINE_SUFFIXES)
        found = [(name, os.stat(engine_dir / name)) for name in names]
        return [(name, each.st_dev, each.st_ino, each.st_mtime_ns) for name, each in found]
    except OSError as error:
        raise EngineFormatError(
            "the engine directory cannot be read",
            where=str(engine_dir),
            expected="a directory that build wrote",
            got=error.strerror or str(error),
            hint="tidemill build --checkpoint_dir ... --output_dir ... writes one",
        ) from error


def _private_directory() -> Path:
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    directory = Path(runtime_dir) / "tidemill"
    is_usable = (
        os.access(runtime_dir, os.W_OK) and len(os.fsencode(directory)) < MAX_DIRECTORY_BYTES
    )
    if not runtime_dir or not is_usable:
        directory = Path(f"/tmp/tidemill-{os.getuid()}")
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise HostError(
            "the directory for the host's socket cannot be made",
            where=str(directory),
            expected="a directory that this user can make and write",
            got=error.strerror or str(error),
            hint="set XDG_RUNTIME_DIR to a directory of your own",
        ) from error
    is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if found.st_uid != os.getuid() or not is_private:
        raise HostError(
            "the directory for the host's socket is not private",
            where=str(directory),
            expected=f"a directory of user {os.getuid()} with mode 700",
            got=f"user {found.st_uid}, mode {stat.filemode(found.st_mode)}",
            hint="remove it, or set XDG_RUNTIME_DIR to a private directory",
        )
    return directory
