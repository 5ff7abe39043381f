"""Positioned reads of one file: a range of bytes in, a NumPy array out.

The descriptor stays open for the life of the object, so a file that is renamed or replaced later
still reads as it was when it was validated. Plain reads rather than a memory map: a file that
shrinks gives an error instead of a crash, and the process's memory figure stays true.
Safe to use from several threads. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base.errors import CheckpointError

Array = npt.NDArray[Any]


def has_equal_bits(first: Array, second: Array) -> bool:
    """Say whether two contiguous arrays of one type and shape hold the same bits, NaN included."""
    return np.array_equal(first.reshape(-1).view(np.uint8), second.reshape(-1).view(np.uint8))


class FileBytes:
    """An open, read-only file of known size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Without NONBLOCK, opening a pipe would wait for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise CheckpointError(
                "file not found",
                where=str(path),
                expected="a readable file",
                got="no file of that name",
                hint="finish the download, or check the path",
            ) from None
        except OSError as error:
            raise self._unreadable(error) from error
        self._descriptor = descriptor
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise self._unreadable(OSError(errno.EINVAL, "not a file"))
        self.size_bytes = found.st_size

    def read_into(self, offset_bytes: int, out: Array) -> None:
        """Fill a contiguous array from the bytes at an offset.

        Raises: CheckpointError when the file ends first, or the disk refuses.
        """
        view = out.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor, [view[done:]], offset_bytes + done)
            except OSError as error:
                raise self._unreadable(error) from error
            if count == 0:
                raise self.truncated(offset_bytes + len(view))
            done += count

    def read(self, offset_bytes: int, shape: Sequence[int], storage_name: str) -> Array:
        """Read an array of the given NumPy type name."""
        out = np.empty(tuple(shape), dtype=storage_name)
        self.read_into(offset_bytes, out)
        return out

    def read_bytes(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Read a range as bytes."""
        return self.read(offset_bytes, (num_bytes,), "uint8").tobytes()

    def read_all(self) -> bytes:
        """Read the whole of a small file."""
        return self.read_bytes(0, self.size_bytes)

    def _unreadable(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            "file cannot be read",
            where=str(self.path),
            expected="a readable file",
            got=error.strerror or str(error),
            hint="check that it is a file, its permissions, and the disk",
        )

    def truncated(self, needed_bytes: int) -> CheckpointError:
        """Make the error that says the file ends too early."""
        return CheckpointError(
            "file is truncated",
            where=str(self.path),
            expected=f"at least {needed_bytes} bytes",
            got=f"{self.size_bytes} bytes",
            hint="the copy or download was cut short; fetch the file again",
        )
