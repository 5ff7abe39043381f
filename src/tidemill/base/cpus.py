"""The CPUs of this machine that the process may use, and threads that are kept on one of them.

A thread that was kept counts by the CPUs it had before: it may load another engine. Several users
may keep one thread; it gets its CPUs back when the last of them lets it go. A quota of CPU time, as
containers have it, is no CPU of anyone's: it bounds how many threads pay, not where they run.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tidemill.base.control_groups import CONTROL_GROUPS, OWN_GROUPS, ControlGroup, own_groups

MAX_THREADS = 1024  # of an engine; more are a slip, which would be minutes of waiting


@dataclass
class _Kept:
    """What a kept thread gets back, and how many users keep it."""

    cpus: set[int]
    num_users: int = 0


_lock = threading.Lock()
_kept: dict[int, _Kept] = {}  # by the system's number of the thread


def allowed_cpus() -> set[int]:
    """The CPUs of the calling thread, as if nobody kept it."""
    with _lock:
        kept = _kept.get(threading.get_native_id())
    return kept.cpus if kept else os.sched_getaffinity(0)


def physical_cpus() -> tuple[int, ...]:
    """One CPU of each core this process may use, in Linux's order: socket after socket."""
    core_to_cpu: dict[str, int] = {}
    for cpu in sorted(allowed_cpus()):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text().strip() if siblings.exists() else str(cpu)
        core_to_cpu.setdefault(core, cpu)
    return tuple(core_to_cpu.values())


def num_physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once; no more than its quota pays for."""
    cores, quota = len(physical_cpus()), cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cpu_quota(root: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS) -> float | None:
    """CPUs' worth of time that this process's control groups leave it; None without a limit."""
    return min(_quotas(root, own), default=None)


def _quotas(root: Path, own: Path) -> Iterator[float]:
    for group in own_groups("cpu", root, own):
        with contextlib.suppress(OSError, ValueError):
            quota, period = map(int, _limit(group).split())
            if quota > 0:
                yield quota / period


def _limit(group: ControlGroup) -> str:
    """A group's microseconds and the period they are for; the first is no number without limit."""
    if group.is_v2:
        return (group.path / "cpu.max").read_text()
    names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
    return " ".join((group.path / name).read_text() for name in names)


def keep_on(cpu: int) -> int:
    """Keep the calling thread on a CPU until `let_go` of the number that this returns."""
    number = threading.get_native_id()
    with _lock:
        _kept.setdefault(number, _Kept(os.sched_getaffinity(0))).num_users += 1
    move_to({cpu})
    return number


def let_go(number: int) -> None:
    """Undo one `keep_on`, from any thread; the last gives the kept thread its CPUs back."""
    with _lock:
        kept = _kept[number]
        kept.num_users -= 1
        if kept.num_users:
            return
        del _kept[number]
    # A thread that ended may have left its number to another process.
    if Path(f"/proc/self/task/{number}").exists():
        move_to(kept.cpus, number)


def move_to(cpus: set[int], number: int = 0) -> None:
    """Let a thread run on these CPUs alone, unless they were taken from this process."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(number, cpus)
