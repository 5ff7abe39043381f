"""Who runs below a process: children, stubs, orphans; read from /proc.

`serve` adopts what its descendants leave behind (an engine host outlives the stub that started
it), so that it can tell its own processes from everybody else's, and end them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
PR_SET_CHILD_SUBREAPER = 36
STUB_NAME = "triton_python_backend_stub"
NAME_ARGUMENT = -2  # of the stub's command line: "... <instance name> <runtime model directory>"
HOST_FLAG = b"--ready-fd"  # every host has it, whatever its program


@dataclass(frozen=True)
class Stub:
    """A process that runs one instance of a Python model. `instance` is `<model>_<i>_<device>`."""

    process_id: int
    model_py: Path
    instance: str

    @property
    def model(self) -> str:
        return self.instance.rsplit("_", 2)[0]

    @property
    def is_alive(self) -> bool:
        return is_alive(self.process_id)


def children_of(process_id: int) -> list[int]:
    """Return the processes that any thread of a process started and that have not been reaped."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in (PROC / str(process_id) / "task").iterdir():
            with contextlib.suppress(OSError):
                children += map(int, (task / "children").read_text().split())
    return children


def descendants_of(process_id: int) -> list[int]:
    """Return the children of a process, theirs, and so on."""
    found: list[int] = []
    pending = [process_id]
    while pending:
        children = children_of(pending.pop())
        found += children
        pending += children
    return found


def stubs_of(server_id: int) -> list[Stub]:
    """Return the stubs of a tritonserver that live."""
    return [
        Stub(child, Path(arguments[1]), arguments[NAME_ARGUMENT])
        for child in children_of(server_id)
        if is_alive(child)
        and len(arguments := _arguments(child)) > 2
        and Path(arguments[0]).name == STUB_NAME
    ]


def hosts_below(process_id: int) -> list[int]:
    """Return the engine hosts among a process's descendants."""
    return [each for each in descendants_of(process_id) if HOST_FLAG in _command_line(each)]


def is_alive(process_id: int) -> bool:
    """Say whether a process runs; one that ended and was not reaped does not."""
    try:
        stat = (PROC / str(process_id) / "stat").read_bytes()
    except OSError:
        return False
    return stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in (b"Z", b"X")


def adopt_orphans() -> None:
    """Become the parent of what this process's descendants leave behind (Linux's subreaper)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(own: set[int]) -> None:
    """Take leave of adopted children that ended; `own` are awaited by whoever started them."""
    for child in children_of(os.getpid()):
        if child not in own and not is_alive(child):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)


def _command_line(process_id: int) -> bytes:
    try:
        return (PROC / str(process_id) / "cmdline").read_bytes()
    except OSError:
        return b""


def _arguments(process_id: int) -> list[str]:
    return _command_line(process_id).decode("utf-8", "replace").rstrip("\0").split("\0")
