"""A frontend's end of the host: submit requests, get their updates, survive the host's death.

Requests go out on the caller's thread, updates come in on a reader thread, which also starts the
host anew when it dies: what was in flight then ends with a clear error, what is submitted
meanwhile waits for the new host. Any thread may use a client. Knows nothing of engines or text.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tidemill.base import debug
from tidemill.base.errors import (
    CancelledError,
    HostError,
    InvalidRequestError,
    RequestError,
    TidemillError,
)
from tidemill.host.config import HostConfig
from tidemill.host.connection import Framer, check_hello, encode
from tidemill.host.launch import reach_host
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

RECEIVE_BYTES = 1 << 18
MIN_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 10.0

OnUpdate = Callable[[Update], None]


@dataclass
class _Pending:
    """A request that has not ended: what was asked, under which id, and who hears of it."""

    request_id: str
    on_update: OnUpdate


class HostClient:
    """A connection to the host of one engine; made by `connect_or_start`.

    Callbacks run on the reader thread: they hand over and return. A callback that raises cancels
    its own request and no other.
    """

    def __init__(self, engine_dir: Path, config: HostConfig, connection: socket.socket) -> None:
        self._engine_dir = engine_dir
        self._config = config
        # Ids on the wire are this client's own: two frontends may be given the same ones.
        self._prefix = uuid.uuid4().hex[:8]
        self._next_number = itertools.count()
        self._lock = threading.Lock()
        self._wire_to_pending: dict[str, _Pending] = {}
        self._id_to_wire: dict[str, str] = {}
        self._unsent: list[GenerateRequest] = []
        self._info_waiters: list[queue.SimpleQueue[HostInfo | HostError]] = []
        self._closed = threading.Event()
        self._connection: socket.socket | None = connection
        self._host_pid = 0
        self._send(Hello(PROTOCOL_VERSION, f"client {os.getpid()}"))
        self._reader = threading.Thread(
            target=self._run, args=(connection,), name="tidemill-host-reader", daemon=True
        )
        self._reader.start()

    @classmethod
    def connect_or_start(
        cls, engine_dir: Path | str, config: HostConfig | None = None
    ) -> HostClient:
        """Connect to the engine's host, starting it when there is none.

        Raises: HostError when it does not start; what loading the engine raised in the host.
        """
        path, config = Path(engine_dir), config or HostConfig()
        return cls(path, config, reach_host(path, config))

    def submit(self, request: GenerateRequest, on_update: OnUpdate) -> None:
        """Start a request; `on_update` hears of it until an update is final. Never blocks on work.

        Faults of the request and of the host come as a last update with `error`.
        """
        wire_id = f"{self._prefix}-{next(self._next_number)}"
        wire_request = msgspec.structs.replace(request, request_id=wire_id)
        failure: RequestError | None = None
        with self._lock:
            if self._closed.is_set():
                failure = CancelledError("the client of the engine host is closed")
            elif request.request_id in self._id_to_wire:
                failure = InvalidRequestError(
                    "a request of this id is in flight", where=f"request {request.request_id}"
                )
            else:
                failure = self._enqueue(request.request_id, wire_request, on_update)
        if failure is not None:
            on_update(Update.failed(request.request_id, failure))

    def cancel(self, request_id: str) -> None:
        """End a request; its last update says so. Unknown and ended ids are no error."""
        with self._lock:
            wire_id = self._id_to_wire.get(request_id)
            if wire_id is None:
                return
            is_unsent = any(request.request_id == wire_id for request in self._unsent)
            if not is_unsent:
                self._send(Ask(cancelled_ids=[wire_id]))
                return
            self._unsent = [each for each in self._unsent if each.request_id != wire_id]
        self._deliver(Update(wire_id, [], "", "cancelled", 0, 0))

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
                where=str(self._engine_dir),
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

    def _enqueue(
        self, request_id: str, wire_request: GenerateRequest, on_update: OnUpdate
    ) -> RequestError | None:
        try:
            frame = encode(Ask([wire_request]))
        except (UnicodeEncodeError, OverflowError, TypeError) as error:
            return InvalidRequestError(
                "the request holds a value that cannot be sent",
                where=f"request {request_id}",
                expected="Unicode text and numbers of at most 64 bits",
                got=str(error),
            )
        self._wire_to_pending[wire_request.request_id] = _Pending(request_id, on_update)
        self._id_to_wire[request_id] = wire_request.request_id
        if self._connection is None:
            self._unsent.append(wire_request)
        else:
            self._send_frame(frame)
        return None

    def _send(self, message: Message) -> None:
        self._send_frame(encode(message))

    def _send_frame(self, frame: bytes) -> None:
        # A broken connection is the reader's to notice: it ends what was in flight.
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.sendall(frame)

    def _run(self, connection: socket.socket | None) -> None:
        backoff = MIN_BACKOFF_SECONDS
        while connection is not None:
            started = time.monotonic()
            reason = self._read_until_lost(connection)
            self._lose(connection, reason)
            if time.monotonic() - started > MAX_BACKOFF_SECONDS:
                backoff = MIN_BACKOFF_SECONDS
            connection, backoff = self._reach_again(backoff)
        self._fail_all(CancelledError("the client of the engine host was closed"))

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
        for update in message.updates:
            self._deliver(update)
        if message.info is not None:
            with self._lock:
                waiter = self._info_waiters.pop(0)
            waiter.put(message.info)

    def _deliver(self, update: Update) -> None:
        wire_id = update.request_id
        with self._lock:
            pending = self._wire_to_pending.get(wire_id)
            if pending is None:
                return
            if update.is_final:
                del self._wire_to_pending[wire_id]
                del self._id_to_wire[pending.request_id]
        update.request_id = pending.request_id
        try:
            pending.on_update(update)
        except Exception:
            debug.warn("host client", "an update's callback failed\n" + traceback.format_exc())
            self.cancel(pending.request_id)

    def _lose(self, connection: socket.socket, reason: str) -> None:
        with self._lock:
            self._connection = None
            waiters, self._info_waiters = self._info_waiters, []
        connection.close()
        if self._closed.is_set():
            failure: TidemillError = CancelledError("the client of the engine host was closed")
        else:
            failure = HostError(
                "the engine host died",
                where=str(self._engine_dir),
                expected="the connection to stay",
                got=reason,
                hint="it is being restarted; send the request again",
            )
        for waiter in waiters:
            waiter.put(self._host_is_away())
        self._fail_all(failure)

    def _reach_again(self, backoff: float) -> tuple[socket.socket | None, float]:
        """Start the host anew until it lives or the client is closed; return the next backoff."""
        while not self._closed.wait(backoff):
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
            try:
                connection = reach_host(self._engine_dir, self._config)
            except TidemillError as error:
                debug.warn("host client", f"the engine host did not restart: {error}")
                self._fail_all(error)
                continue
            with self._lock:
                if self._closed.is_set():
                    connection.close()
                    return None, backoff
                self._connection = connection
                self._send(Hello(PROTOCOL_VERSION, f"client {os.getpid()}"))
                unsent, self._unsent = self._unsent, []
                self._send(Ask(unsent))
            return connection, backoff
        return None, backoff

    def _fail_all(self, error: TidemillError) -> None:
        with self._lock:
            wire_ids = list(self._wire_to_pending)
            self._unsent = []
        for wire_id in wire_ids:
            self._deliver(Update.failed(wire_id, error))

    def _host_is_away(self) -> HostError:
        return HostError(
            "the engine host is away",
            where=str(self._engine_dir),
            hint="it is being restarted; try again in a moment",
        )
