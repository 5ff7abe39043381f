"""A frontend's connection to a host, made anew whenever the host dies.

Messages go out on the caller's thread; a reader thread takes them in and, when the connection is
lost, starts the host again until it lives or the link is closed. Its owner hears of each. Knows
nothing of what is asked and answered.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base import debug
from tidemill.base.errors import HostError, TidemillError
from tidemill.host.connection import Framer, check_hello, encode
from tidemill.host.launch import HostTarget, reach_host
from tidemill.host.messages import PROTOCOL_VERSION, Hello, Message, Tell

RECEIVE_BYTES = 1 << 18
MIN_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 10.0


@dataclass(frozen=True)
class LinkOwner:
    """Who is told what happens to a link, on the reader's thread.

    `on_tell` takes what the host says; `on_up` follows each connection, `on_lost` its loss with
    the reason, `on_unreachable` each start of the host that failed, `on_closed` the link's end.
    """

    on_tell: Callable[[Tell], None]
    on_up: Callable[[], None]
    on_lost: Callable[[str], None]
    on_unreachable: Callable[[TidemillError], None]
    on_closed: Callable[[], None]


class HostLink:
    """One connection at a time to the host of `target`; `start` it once. Any thread may send."""

    def __init__(self, target: HostTarget, owner: LinkOwner) -> None:
        self._target = target
        self._owner = owner
        self._lock = threading.Lock()  # guards the connection, and keeps messages whole
        self._connection: socket.socket | None = None  # None: the host is being restarted
        self._closed = threading.Event()
        self._reader: threading.Thread | None = None

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def start(self, connection: socket.socket) -> None:
        """Begin to read from a first connection."""
        self._adopt(connection)
        self._reader = threading.Thread(
            target=self._run, args=(connection,), name="tidemill-host-reader", daemon=True
        )
        self._reader.start()

    def send(self, message: Message) -> bool:
        """Send a message; false when there is no connection to send it on."""
        with self._lock:
            if self._connection is None:
                return False
            _send_or_lose(self._connection, message)
            return True

    def close(self) -> None:
        """Leave the host, and wait for the reader unless it is the one who asks."""
        with self._lock:
            self._closed.set()
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
        if self._reader is not None and threading.current_thread() is not self._reader:
            self._reader.join()

    def _adopt(self, connection: socket.socket) -> None:
        with self._lock:
            _send_or_lose(connection, Hello(PROTOCOL_VERSION, f"client {os.getpid()}"))
            self._connection = connection
        self._owner.on_up()

    def _stop_sending(self) -> None:
        with self._lock:
            self._connection = None

    def _run(self, connection: socket.socket | None) -> None:
        backoff = MIN_BACKOFF_SECONDS
        while connection is not None:
            started = time.monotonic()
            reason = self._read_until_lost(connection)
            self._stop_sending()
            connection.close()
            if not self.is_closed:
                self._owner.on_lost(reason)
            if time.monotonic() - started > MAX_BACKOFF_SECONDS:
                backoff = MIN_BACKOFF_SECONDS
            connection, backoff = self._reach_again(backoff)
        self._owner.on_closed()

    def _read_until_lost(self, connection: socket.socket) -> str:
        framer = Framer()
        is_greeted = False
        try:
            while data := connection.recv(RECEIVE_BYTES):
                for message in framer.push(data):
                    if is_greeted:
                        self._hear(message)
                    else:
                        check_hello(message)
                        is_greeted = True
        except (OSError, HostError) as error:
            return str(error)
        return "it closed the connection"

    def _hear(self, message: Message) -> None:
        if not isinstance(message, Tell):
            raise HostError(
                "the host sent what only clients send",
                where="the host's socket",
                expected="a Tell message",
                got=type(message).__name__,
                hint="stop the old tidemill processes, then start again",
            )
        if message.error is not None:
            raise HostError(
                "the host refuses this client",
                where="the host's socket",
                expected="what a client of its version says",
                got=str(message.error.to_exception()),
                hint="stop the old tidemill processes, then start again",
            )
        if message.is_leaving:
            # What is sent from now on, by the owner's callbacks too, waits for the next host.
            self._stop_sending()
        self._owner.on_tell(message)

    def _reach_again(self, backoff: float) -> tuple[socket.socket | None, float]:
        """Start the host anew until it lives or the link is closed; return the next backoff."""
        while not self._closed.wait(backoff):
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
            try:
                connection = reach_host(self._target)
            except TidemillError as error:
                debug.warn("host client", f"the engine host did not restart: {error}")
                self._owner.on_unreachable(error)
                continue
            self._adopt(connection)
            if self.is_closed:  # while the host was starting
                connection.close()
                break
            return connection, backoff
        return None, backoff


def _send_or_lose(connection: socket.socket, message: Message) -> None:
    # A broken connection is the reader's to notice: it tells what was lost.
    with contextlib.suppress(OSError):
        connection.sendall(encode(message))
