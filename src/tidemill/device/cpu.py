"""The CPU as a device: memory, loaded code, and the team of threads that runs a plan.

In: a code image and its entry offsets, addresses of memory. Out: `Team.step()`, one native call
that releases the GIL. Knows the native calling convention (base/abi.py) and nothing of models.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base import abi
from tidemill.base.cpus import allowed_cpus, keep_on, let_go, move_to, physical_cpus

HUGE_PAGE_BYTES = 1 << 21
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MADV_COLLAPSE = 25  # since Linux 6.1; it does not ask for the system's setting
_PROT_READ_EXEC = mmap.PROT_READ | mmap.PROT_EXEC
_JOIN_SECONDS = 5.0

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


def allocate(size_bytes: int, are_huge_allowed: bool = True) -> Bytes:
    """Reserve zeroed memory; pages are taken when first written, huge ones where allowed.

    Without huge pages little is taken for little that is written, until `allow_huge_pages`.
    Raises: OSError for more than can be had.
    """
    # Private, since shared anonymous memory is not given huge pages by default.
    try:
        pages = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OverflowError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    memory = np.frombuffer(pages, dtype=np.uint8)
    if are_huge_allowed and size_bytes >= HUGE_PAGE_BYTES:
        allow_huge_pages(memory)
    return memory


def has_huge_pages() -> bool:
    """Whether this system gives huge pages to those who ask."""
    try:
        return "[never]" not in _HUGE_PAGES.read_text()
    except OSError:
        return False


def allow_huge_pages(memory: Bytes) -> None:
    """Let pages of `memory` that were not written yet be huge ones."""
    _advise(address_of(memory), memory.nbytes, mmap.MADV_HUGEPAGE)


def take_huge_pages(memory: Bytes, first: int, size: int) -> None:
    """Move what was written in a range to huge pages, where the system can do that.

    Its neighbours in `memory` that share a huge page with it are moved, too.
    """
    start, page = address_of(memory), HUGE_PAGE_BYTES
    low = max((start + first) // page * page, start)
    high = min(-(-(start + first + size) // page) * page, start + memory.nbytes)
    _advise(low, high - low, _MADV_COLLAPSE)


def _advise(address: int, size: int, advice: int) -> None:
    # Advice that this system does not know, or cannot follow now, changes nothing.
    ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice)


def address_of(array: Array) -> int:
    """Return the address of an array's first element; the caller keeps the array alive."""
    return int(array.ctypes.data)


def _syscall_address() -> int:
    """Address of the C library's `syscall`, for code that sleeps and wakes."""
    function = ctypes.CDLL(None).syscall
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


class LoadedCode:
    """A position-independent code image, mapped read-only and executable."""

    def __init__(self, image: bytes, entry_offsets: dict[str, int]) -> None:
        self._memory = mmap.mmap(-1, len(image))
        self._memory.write(image)
        self._base = address_of(np.frombuffer(self._memory, dtype=np.uint8))
        self._entry_offsets = entry_offsets
        libc = ctypes.CDLL(None, use_errno=True)
        size = -(-len(image) // mmap.PAGESIZE) * mmap.PAGESIZE
        if libc.mprotect(ctypes.c_void_p(self._base), ctypes.c_size_t(size), _PROT_READ_EXEC):
            raise OSError(ctypes.get_errno(), "this system refuses to make memory executable")

    def address(self, symbol: str) -> int:
        return self._base + self._entry_offsets[symbol]


class Team:
    """Threads that walk one table of records together; the caller of `step` is thread 0.

    Workers spin briefly between steps and then sleep, so an idle team uses no CPU. Each worker
    holds the code and memory it runs on, so nothing is unmapped under it. Given `cpus`, each worker
    stays on one of them, and whoever steps on the first, until `close`. Not thread-safe: one owner
    calls `step` and `close`.
    """

    def __init__(
        self,
        code: LoadedCode,
        records: npt.NDArray[np.int64],
        num_threads: int,
        cpus: Sequence[int] = (),
    ) -> None:
        self._code, self._records = code, records
        self._cpus, self._kept, self._allowed = cpus, set[int](), allowed_cpus()
        self.num_threads = num_threads
        self._memory = allocate(8 * abi.context_words(num_threads))
        self._context = self._memory.view(np.int64)
        self._context[abi.CONTEXT_NUM_THREADS] = num_threads
        self._context[abi.CONTEXT_SYSCALL] = _syscall_address()
        # One array for the team's life: a worker adds its last wait when a step is already over.
        self._cycles = np.zeros((num_threads, len(records), 2), np.int64)
        self.select(0, len(records))
        worker_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        step_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._worker = worker_type(code.address(abi.WORKER_SYMBOL))
        self._step = step_type(code.address(abi.STEP_SYMBOL))
        self._address = address_of(self._context)
        self._threads = [
            threading.Thread(target=self._serve, args=(t,), name=f"tidemill-{t}", daemon=True)
            for t in range(1, num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def select(self, first: int, count: int) -> None:
        """Let steps run only records [first, first + count), for inspection."""
        assert 0 <= first <= first + count <= len(self._records)
        start = address_of(self._records) + first * self._records.itemsize * abi.RECORD_WORDS
        self._context[abi.CONTEXT_RECORDS] = start
        self._context[abi.CONTEXT_NUM_OPS] = count

    def step(self) -> None:
        """Run the records once."""
        if self._cpus and threading.get_native_id() not in self._kept:
            self._kept.add(keep_on(self._cpus[0]))
        self._step(self._address)

    def profile(self) -> npt.NDArray[np.int64]:
        """Start counting cycles from zero; the array is (threads, ops, work and wait)."""
        self._cycles[:] = 0
        self._context[abi.CONTEXT_PROFILE] = address_of(self._cycles)
        return self._cycles

    def close(self) -> None:
        """End the workers; the team cannot step again."""
        self._context[abi.CONTEXT_STOP] = 1
        self._step(self._address)  # wakes the sleepers; nothing runs
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
        self._threads = []
        while self._kept:
            let_go(self._kept.pop())

    def _serve(self, thread: int) -> None:
        # Without CPUs of its own, a worker must not inherit the one that its maker is kept on.
        move_to({self._cpus[thread % len(self._cpus)]} if self._cpus else self._allowed)
        self._worker(self._address, thread)


class MeasuringTeam(Team):
    """A team for timing: its workers stay on cores of their own, its caller while it steps.

    Two threads that share a core for a while would halve a rate that takes a millisecond to
    measure. Where the caller may not use so many cores, nothing is kept anywhere.
    """

    def __init__(self, code: LoadedCode, records: npt.NDArray[np.int64], num_threads: int) -> None:
        cpus = physical_cpus()
        super().__init__(code, records, num_threads, cpus if num_threads <= len(cpus) else ())

    def step(self) -> None:
        """Run the records once."""
        if not self._cpus:
            super().step()
            return
        allowed = os.sched_getaffinity(0)
        move_to({self._cpus[0]})
        try:
            self._step(self._address)  # not the team's own: it would keep the caller until `close`
        finally:
            move_to(allowed)
