"""A directory that appears under its name only when it is complete.

In: the name it will have. Out: a hidden sibling to write into, renamed into place by `publish`;
without that, or on any failure, the sibling is removed, and so are directories made to hold it;
what stood there before still stands. A sibling is locked while its process lives: whoever stages
the same name later removes those of processes that were killed. Does not know what the files are.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR
from types import TracebackType

from tidemill.base.errors import BuildError, ConfigError


class StagedDirectory:
    """Use as a context manager; write below `path`, then call `publish` once.

    Raises: ConfigError when the target is a file or cannot be replaced as a whole, BuildError for
    any OSError within the context: the disk refused.
    """

    def __init__(self, target: Path) -> None:
        self.target = Path(os.path.realpath(target))  # links in a circle are the system's to refuse
        _check_is_directory(self.target)
        self._new_parents: list[Path] = []
        try:
            self._new_parents += (path for path in self.target.parents if not path.exists())
            _remove_leftovers(self.target)
            self._lock = self._make()
        except OSError as error:
            self._remove_new_parents()
            raise _refused(error, self.target) from error

    def _make(self) -> int:
        """Make the sibling and return the descriptor that locks it while it is open."""
        while True:
            token = f"{os.getpid()}-{secrets.token_hex(4)}"
            self.path, self._retired = _siblings(self.target, token)
            self.path.mkdir(parents=True)
            with suppress(FileNotFoundError):  # taken for a leftover before it was locked
                lock = os.open(self.path, os.O_RDONLY)
                with suppress(OSError):  # where nothing can be locked, nobody removes leftovers
                    fcntl.flock(lock, fcntl.LOCK_SH)
                if self.path.exists():
                    return lock
                os.close(lock)

    def _remove_new_parents(self) -> None:
        with suppress(OSError):  # from the first that holds something on, they stay
            for path in self._new_parents:
                path.rmdir()

    def __enter__(self) -> StagedDirectory:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()
        # A reader of our output that went away says nothing about the disk.
        if isinstance(exc, OSError) and not isinstance(exc, BrokenPipeError):
            raise _refused(exc, self.target) from exc

    def publish(self) -> None:
        """Put the directory in its place; a process that mapped the old files keeps them.

        Raises: OSError when the disk refuses; what stood there before is then back in its place.
        """
        try:
            while not _is_moved(self.path, self.target):
                shutil.rmtree(self._retired, ignore_errors=True)  # another process was faster
                with suppress(FileNotFoundError):
                    self.target.rename(self._retired)
        except BaseException:
            with suppress(OSError):
                self._retired.rename(self.target)
            raise
        shutil.rmtree(self._retired, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was staged; nothing is left to remove after `publish`."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._remove_new_parents()


def _siblings(target: Path, token: str) -> tuple[Path, Path]:
    """Return where a directory is made, and where the one that it replaces goes meanwhile."""
    name = f".{target.name}."
    return target.with_name(f"{name}partial-{token}"), target.with_name(f"{name}old-{token}")


def _is_moved(path: Path, target: Path) -> bool:
    """Rename a directory; say False where another one stands."""
    try:
        path.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _remove_leftovers(target: Path) -> None:
    """Remove the siblings of processes that have ended; the last copy of what stood there stays."""
    leftover = re.compile(re.escape(f".{target.name}.") + r"(?:partial|old)-(\d+-[0-9a-f]{8})")
    with suppress(OSError):
        for match in filter(None, map(leftover.fullmatch, os.listdir(target.parent))):
            partial, retired = _siblings(target, match[1])
            _remove_unlocked(partial)
            if target.exists() and not partial.exists():
                shutil.rmtree(retired, ignore_errors=True)


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def refuse_foreign_entries(target: Path, names: list[str], artifact: str) -> None:
    """Refuse to replace what is not an artifact: a typing error deletes nobody's files.

    Raises: ConfigError that lists `names`, the foreign entries of the directory, if there are any.
    """
    if names:
        raise ConfigError(
            f"the output directory holds something else than {artifact}",
            where=str(target),
            expected=f"a new name, an empty directory, or {artifact} to replace",
            got=", ".join(sorted(names)[:10]),
            hint="name another output directory",
        )


def _refused(error: OSError, target: Path) -> BuildError:
    return BuildError(
        "the output cannot be written",
        where=str(error.filename2 or error.filename or target),
        expected="files that can be read, and a disk with room for the output",
        got=error.strerror or str(error),
        hint="free some space or name another output directory; nothing was left behind",
    )


def _check_is_directory(target: Path) -> None:
    fault = ""
    # One look: another process may replace it between two.
    with suppress(FileNotFoundError, NotADirectoryError):
        if not S_ISDIR(target.stat().st_mode):
            fault = "a file"
        elif os.path.ismount(target):
            fault = "a mount point, which cannot be replaced as a whole"
    if fault:
        raise ConfigError(
            "the output is not a directory that can be written",
            where=str(target),
            expected="a new name or an ordinary directory",
            got=fault,
            hint="name another output directory, or one below it",
        )
