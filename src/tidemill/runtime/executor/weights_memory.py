"""Where the weights lie while an engine runs: mapped from its file, or copied to huge pages.

A step reads every weight once, so small pages cost an address translation for each 4 KiB: on the
sample model 17 % of a decode step. File mappings have small pages on most systems; anonymous
memory has huge ones where the system allows them. So the weights are copied at load, by several
threads, where that memory is easily there; otherwise they stay mapped and shared. What has been
copied is forgotten piece by piece, so that the weights never count twice.
Source: decision 030.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.device.cpu import allocate
from tidemill.runtime.executor.free_memory import free_bytes

# Copies that would take more than this share of the free memory are not made.
MAX_SHARE_OF_FREE_MEMORY = 0.25
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PIECE_BYTES = 16 << 20

Bytes = npt.NDArray[np.uint8]


def place_weights(
    mapped: npt.NDArray[Any], num_threads: int, forget: Callable[[int, int], None]
) -> Bytes:
    """Return the weights to compute with: a copy on huge pages, or `mapped` itself.

    `forget` is told first byte and size of each piece that has been copied.
    """
    if not _has_huge_pages() or mapped.nbytes > MAX_SHARE_OF_FREE_MEMORY * free_bytes():
        return mapped
    copied = allocate(mapped.nbytes)
    starts = range(0, mapped.nbytes, _PIECE_BYTES)

    def copy(start: int) -> None:
        piece = mapped[start : start + _PIECE_BYTES]
        np.copyto(copied[start : start + piece.nbytes], piece)
        forget(start, piece.nbytes)

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(copy, starts))
    return copied


def _has_huge_pages() -> bool:
    try:
        return "[never]" not in _HUGE_PAGES.read_text()
    except OSError:
        return False
