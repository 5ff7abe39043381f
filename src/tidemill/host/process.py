"""The host process from start to end: load, listen, report, serve, leave.

In: a way to open the session and where to listen. While it starts, it tells its starter on a pipe
how far it is, and a failure travels there as data. It leaves when nobody needs it, under the lock
that starters take, so that no client finds a socket without a host. Prints only to its log.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tidemill.base.errors import HostError, TidemillError
from tidemill.host.address import HostAddress
from tidemill.host.connection import encode
from tidemill.host.messages import Starting, WireError
from tidemill.host.server import HostServer
from tidemill.host.session import Session

BACKLOG = 64


@dataclass(frozen=True)
class ProcessConfig:
    """Where a host listens and reports, and how long it stays alone."""

    socket_path: Path
    ready_fd: int
    grace_seconds: float


def run_host(open_session: Callable[[], Session], config: ProcessConfig) -> int:
    """Run a host until it is not needed; return the process's exit status."""
    faulthandler.enable()
    signal.signal(signal.SIGTERM, _leave_on_signal)
    try:
        _report(config.ready_fd, Starting("loading the engine"))
        session = open_session()
        session.info()  # reads the tokenizer: no client waits for it, and a broken one is told now
        # The collector then walks what requests made, not all that was loaded: a full round took
        # 20 to 30 ms, in the middle of everybody's stream (SmolLM2-135M, AMD EPYC, 2026-11-28).
        gc.freeze()
        _give_back_freed_memory()
    except Exception as error:
        _report(config.ready_fd, Starting("failed", error=_as_wire_error(error)))
        return 1
    address = HostAddress(config.socket_path)
    with contextlib.closing(session), _listen(address) as listener:
        _report(config.ready_fd, Starting("ready", is_ready=True))
        os.close(config.ready_fd)
        try:
            HostServer(
                session, listener, config.grace_seconds, lambda: _may_leave(address, listener)
            ).serve()
        except BaseException:
            # The log stays behind and says why; the next starter replaces the socket.
            config.socket_path.unlink(missing_ok=True)
            raise
    return 0


def _give_back_freed_memory() -> None:
    """Give the system what reading a tokenizer left behind: 14 MB with the sample's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def _listen(address: HostAddress) -> socket.socket:
    # The starter holds the lock, so what is there is what a dead host left.
    address.socket_path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(address.socket_path))
    listener.listen(BACKLOG)
    return listener


def _may_leave(address: HostAddress, listener: socket.socket) -> bool:
    with address.lock(timeout_seconds=0) as is_locked:
        if not is_locked or select.select([listener], [], [], 0)[0]:
            return False
        address.remove()
        return True


def _report(ready_fd: int, message: Starting) -> None:
    # The starter may have given up; then nobody is told, and the grace period ends the host.
    with contextlib.suppress(OSError):
        os.write(ready_fd, encode(message))


def _as_wire_error(error: Exception) -> WireError:
    if isinstance(error, TidemillError):
        return WireError.from_exception(error)
    return WireError.from_exception(
        HostError(
            "the engine could not be loaded",
            where=f"engine host {os.getpid()}",
            expected="an engine that loads",
            got=f"{type(error).__name__}: {error}",
            hint="'tidemill verify' checks the engine; if it is sound, please report this",
        )
    )


def _leave_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
