"""A frontend's end of the host: submit requests, get their updates, survive the host's death.

Requests go out on the caller's thread, updates come in on a reader thread, which also starts the
host anew when it dies: what was in flight then ends with a clear error, what is submitted
meanwhile waits for the new host. Any thread may use a client. Knows nothing of engines or text.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from pathlib import Path

from tidemill.base import debug
from tidemill.base.errors import (
    CancelledError,
    HostError,
    InvalidRequestError,
    RequestError,
    TidemillError,
)
from tidemill.host.config import HostConfig, SessionConfig
from tidemill.host.connection import Framer, check_hello, encode
from tidemill.host.launch import HostTarget, reach_host
from tidemill.host.messages import (
    PROTOCOL_VERSION,
    Ask,
    GenerateRequest,
    Hello,
    HostInfo,
    Message,
    Tell,
    Update,
)
from tidemill.host.pending_requests import OnUpdate, PendingRequests

RECEIVE_BYTES = 1 << 18
MIN_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 10.0


class HostClient:
    """A connection to the host of one engine; made by `connect_or_start`.

    Callbacks run on the reader thread: they hand over and return. A callback that raises cancels
    its own request and no other.
    """

    def __init__(self, target: HostTarget, connection: socket.socket) -> None:
        self._target = target
        self._pending = PendingRequests()
        self._lock = threading.Lock()  # guards what follows
        self._connection: socket.socket | None = None  # None: the host is being restarted
        self._unsent: list[GenerateRequest] = []
        self._info_waiters: list[queue.SimpleQueue[HostInfo | HostError]] = []
        self._closed = threading.Event()
        self._adopt(connection)
        self._reader = threading.Thread(
            target=self._run, args=(connection,), name="tidemill-host-reader", daemon=True
        )
        self._reader.start()

    @classmethod
    def connect_or_start(
        cls,
        engine_dir: Path | str,
        config: SessionConfig | None = None,
        host: HostConfig | None = None,
    ) -> HostClient:
        """Connect to the engine's host, starting it when there is none.

        Raises: HostError when it does not start; what loading the engine raised in the host.
        """
        target = HostTarget(Path(engine_dir), config or SessionConfig(), host or HostConfig())
        return cls(target, reach_host(target))

    def submit(self, request: GenerateRequest, on_update: OnUpdate) -> None:
        """Start a request; `on_update` hears of it until an update is final. Never blocks on work.

        Faults of the request and of the host come as a last update with `error`.
        """
        try:
            with self._lock:
                if self._closed.is_set():
                    raise _client_closed()
                self._enqueue(request, on_update)
        except RequestError as error:
            on_update(Update.failed(request.request_id, error))

    def cancel(self, request_id: str) -> None:
        """End a request; its last update says so. Unknown and ended ids are no error."""
        wire_id = self._pending.wire_id(request_id)
        if wire_id is None:
            return
        with self._lock:
            is_unsent = any(each.request_id == wire_id for each in self._unsent)
            if is_unsent:
                self._unsent = [each for each in self._unsent if each.request_id != wire_id]
            else:
                self._send(Ask(cancelled_ids=[wire_id]))
        if is_unsent:
            self._pending.deliver(Update(wire_id, [], "", "cancelled", 0, 0))

    def info(self, timeout_seconds: float = 10.0) -> HostInfo:
        """Ask the host for its limits and counters.

        Raises: HostError when it is away or does not answer in time.
        """
        waiter: queue.SimpleQueue[HostInfo | HostError] = queue.SimpleQueue()
        with self._lock:
            if self._connection is None:
                raise self._host_is_away()
            self._info_waiters.append(waiter)
            self._send(Ask(wants_info=True))
        try:
            answer = waiter.get(timeout=timeout_seconds)
        except queue.Empty:
            raise HostError(
                "the engine host does not answer",
                where=str(self._target.engine_dir),
                expected=f"an answer within {timeout_seconds:g} s",
                got="none",
            ) from None
        if isinstance(answer, HostError):
            raise answer
        return answer

    def close(self) -> None:
        """Leave the host; requests in flight end as cancelled."""
        with self._lock:
            self._closed.set()
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def __enter__(self) -> HostClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _enqueue(self, request: GenerateRequest, on_update: OnUpdate) -> None:
        try:
            encode(Ask([request]))
        except (UnicodeEncodeError, OverflowError, TypeError) as error:
            raise InvalidRequestError(
                "the request holds a value that cannot be sent",
                where=f"request {request.request_id}",
                expected="Unicode text and numbers of at most 64 bits",
                got=str(error),
            ) from error
        wire_request = self._pending.add(request, on_update)
        if self._connection is None:
            self._unsent.append(wire_request)
        else:
            self._send(Ask([wire_request]))

    def _send(self, message: Message) -> None:
        # A broken connection is the reader's to notice: it ends what was in flight.
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.sendall(encode(message))

    def _adopt(self, connection: socket.socket) -> None:
        with self._lock:
            self._connection = connection
            self._send(Hello(PROTOCOL_VERSION, f"client {os.getpid()}"))
            unsent, self._unsent = self._unsent, []
            if unsent:
                self._send(Ask(unsent))

    def _run(self, connection: socket.socket | None) -> None:
        backoff = MIN_BACKOFF_SECONDS
        while connection is not None:
            started = time.monotonic()
            reason = self._read_until_lost(connection)
            self._lose(connection, reason)
            if time.monotonic() - started > MAX_BACKOFF_SECONDS:
                backoff = MIN_BACKOFF_SECONDS
            connection, backoff = self._reach_again(backoff)
        self._fail_all(_client_closed())

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
            raise HostError("the host sent what only clients send", got=type(message).__name__)
        if message.is_leaving:
            # What is submitted from now on, by the callbacks below too, waits for the next host.
            with self._lock:
                self._connection = None
        for update in message.updates:
            if not self._pending.deliver(update):
                self.cancel(update.request_id)
        if message.info is not None:
            with self._lock:
                waiter = self._info_waiters.pop(0)
            waiter.put(message.info)

    def _lose(self, connection: socket.socket, reason: str) -> None:
        with self._lock:
            self._connection = None
            waiting_ids = {request.request_id for request in self._unsent}
            lost_ids = [each for each in self._pending.wire_ids() if each not in waiting_ids]
            waiters, self._info_waiters = self._info_waiters, []
        connection.close()
        for waiter in waiters:
            waiter.put(self._host_is_away())
        if self._closed.is_set():
            return
        failure = HostError(
            "the engine host died",
            where=str(self._target.engine_dir),
            expected="the connection to stay",
            got=reason,
            hint="it is being restarted; send the request again",
        )
        self._pending.fail(lost_ids, failure)

    def _reach_again(self, backoff: float) -> tuple[socket.socket | None, float]:
        """Start the host anew until it lives or the client is closed; return the next backoff."""
        while not self._closed.wait(backoff):
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
            try:
                connection = reach_host(self._target)
            except TidemillError as error:
                debug.warn("host client", f"the engine host did not restart: {error}")
                self._fail_all(error)
                continue
            self._adopt(connection)
            if self._closed.is_set():  # while the host was starting
                connection.close()
                break
            return connection, backoff
        return None, backoff

    def _fail_all(self, error: TidemillError) -> None:
        with self._lock:
            self._unsent = []
            wire_ids = self._pending.wire_ids()
        self._pending.fail(wire_ids, error)

    def _host_is_away(self) -> HostError:
        return HostError(
            "the engine host is away",
            where=str(self._target.engine_dir),
            hint="it is being restarted; try again in a moment",
        )


def _client_closed() -> CancelledError:
    return CancelledError("the client of the engine host was closed")
