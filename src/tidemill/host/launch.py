"""Reaches the host of an engine: connects to it, or starts it and then connects.

One client at a time starts a host, under the address's lock; the others wait and then share it.
What went wrong in the host while it loaded is raised here as the class it was. Knows nothing of
requests.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tidemill.base import debug
from tidemill.base.errors import HostError
from tidemill.host.address import HostAddress
from tidemill.host.config import HostConfig, SessionConfig
from tidemill.host.connection import Framer
from tidemill.host.messages import Starting

LOG_TAIL_CHARACTERS = 2000


@dataclass(frozen=True)
class HostTarget:
    """Which host is wanted: the engine, how it is run, and how it is started."""

    engine_dir: Path
    session: SessionConfig
    host: HostConfig

    @property
    def timeout_seconds(self) -> float:
        return self.host.start_timeout_seconds


def reach_host(target: HostTarget) -> socket.socket:
    """Return a connection to the host of an engine, starting the host when there is none.

    Raises: HostError when it does not start in time or dies; otherwise what loading the engine
    raised in the host.
    """
    address = HostAddress.of(target.engine_dir, target.session, target.host)
    connection = _try_connect(address, target)
    if connection is not None:
        return connection
    with address.lock(target.timeout_seconds) as is_locked:
        if not is_locked:
            raise _too_slow("another process is starting this host", address, target)
        connection = _try_connect(address, target)
        if connection is None:
            _start(address, target)
            connection = _try_connect(address, target)
    if connection is None:
        raise _died("the engine host left right after its start", address)
    return connection


def _log_tail(address: HostAddress) -> str:
    """Return the end of what a host printed, or nothing."""
    try:
        return address.log_path.read_text("utf-8", "replace")[-LOG_TAIL_CHARACTERS:].strip()
    except OSError:
        return ""


def _try_connect(address: HostAddress, target: HostTarget) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(target.timeout_seconds)
    try:
        connection.connect(str(address.socket_path))
        # A leaving host may have let us into its queue: one that stays says hello first.
        if connection.recv(1, socket.MSG_PEEK):
            connection.settimeout(None)
            return connection
    except TimeoutError as error:
        connection.close()
        raise _too_slow("the engine host does not answer", address, target) from error
    except OSError:
        pass
    connection.close()
    return None


def _start(address: HostAddress, target: HostTarget) -> None:
    read_fd, write_fd = os.pipe()
    command = target.host.command(
        target.engine_dir.resolve(), target.session, address.socket_path, write_fd
    )
    debug.say(debug.Level.DECISIONS, "host", "starting " + " ".join(command))
    try:
        with open(address.log_path, "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write_fd,),
                # Ctrl-C in a terminal is for the frontend; the host leaves when it has gone.
                start_new_session=True,
            )
    except OSError as error:
        os.close(read_fd)
        raise HostError(
            "the engine host could not be started",
            where=" ".join(command),
            expected="a process of this Python",
            got=str(error),
            hint="install tidemill in the Python named there",
        ) from error
    finally:
        os.close(write_fd)
    # Reaps the process whenever it ends, so that no zombie stays.
    threading.Thread(target=process.wait, name="tidemill-host-reaper", daemon=True).start()
    with open(read_fd, "rb", buffering=0) as pipe:
        try:
            _await_ready(pipe.fileno(), address, target)
        except BaseException as error:
            if not isinstance(error, HostError):  # its log has nothing to add
                address.remove()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise


def _await_ready(read_fd: int, address: HostAddress, target: HostTarget) -> None:
    deadline = time.monotonic() + target.timeout_seconds
    framer = Framer()
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([read_fd], [], [], remaining)[0]:
            raise _too_slow("the engine host is not ready", address, target)
        data = os.read(read_fd, 1 << 16)
        if not data:
            raise _died("the engine host died while it started", address)
        for message in framer.push(data):
            assert isinstance(message, Starting), message
            debug.say(debug.Level.DECISIONS, "host", message.stage)
            if message.error is not None:
                raise message.error.to_exception()
            if message.is_ready:
                return


def _too_slow(what: str, address: HostAddress, target: HostTarget) -> HostError:
    return HostError(
        what,
        where=str(address.socket_path),
        expected=f"ready within {target.timeout_seconds:g} s",
        got=_log_tail(address) or "no word from it",
        hint="give it more time, or see its log beside the socket",
    )


def _died(what: str, address: HostAddress) -> HostError:
    return HostError(
        what,
        where=str(address.log_path),
        expected="a host that listens",
        got=_log_tail(address) or "it ended without a word",
        hint="the log may say more; out of memory leaves nothing there",
    )
