"""A directory that appears under its name only when it is complete.

In: the name it will have. Out: a hidden sibling to write into, renamed into place by `publish`;
without that, or on any failure, the sibling is removed and what stood there before still stands.
Does not know what the files are.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType

from tidemill.base.errors import BuildError, ConfigError


class StagedDirectory:
    """Use as a context manager; write below `path`, then call `publish` once.

    Raises: ConfigError when the target is a file or cannot be replaced as a whole, BuildError for
    any OSError within the context: the disk refused.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.resolve()
        _check_is_directory(self.target)
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.path = self.target.with_name(f".{self.target.name}.partial-{token}")
        self._retired = self.target.with_name(f".{self.target.name}.old-{token}")
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            raise _refused(error, self.target) from error

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
        if not self.target.exists():
            self.path.rename(self.target)
            return
        self.target.rename(self._retired)
        try:
            self.path.rename(self.target)
        except BaseException:
            self._retired.rename(self.target)
            raise
        shutil.rmtree(self._retired, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was staged; nothing is left to remove after `publish`."""
        shutil.rmtree(self.path, ignore_errors=True)


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
        where=str(error.filename or target),
        expected="files that can be read, and a disk with room for the output",
        got=error.strerror or str(error),
        hint="free some space or name another output directory; nothing was left behind",
    )


def _check_is_directory(target: Path) -> None:
    fault = ""
    if target.exists() and not target.is_dir():
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
