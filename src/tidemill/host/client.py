"""A frontend's end of the host: submit requests, get their updates, survive the host's death.

What was in flight when the host died ends with a clear error; what is submitted while it is being
restarted waits for the new one. Any thread may use a client. Knows nothing of engines or text.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from tidemill.base.errors import (
    CancelledError,
    HostError,
    InvalidRequestError,
    RequestError,
    TidemillError,
)
from tidemill.host.config import HostConfig, SessionConfig
from tidemill.host.connection import encode
from tidemill.host.launch import HostTarget, reach_host
from tidemill.host.link import HostLink, LinkOwner
from tidemill.host.messages import (
    Ask,
    GenerateRequest,
    HostInfo,
    StatsReport,
    StatsSince,
    Tell,
    Update,
)
from tidemill.host.pending_requests import OnUpdate, PendingRequests


class HostClient:
    """A connection to the host of one engine; made by `connect_or_start`.

    Callbacks run on the reader thread: they hand over and return. A callback that raises cancels
    its own request and no other.
    """

    def __init__(self, target: HostTarget, connection: socket.socket) -> None:
        self._target = target
        self._pending = PendingRequests()
        # Whoever holds it sees each pending request either sent or held.
        self._lock = threading.Lock()
        self._waiters: list[queue.SimpleQueue[Tell | HostError]] = []
        owner = LinkOwner(
            on_tell=self._hear,
            on_up=self._send_held,
            on_lost=self._lose,
            on_unreachable=self._fail_all,
            on_closed=lambda: self._fail_all(_client_closed()),
        )
        self._link = HostLink(target, owner)
        self._link.start(connection)

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
            _check_sendable(request)
            with self._lock:
                if self._link.is_closed:
                    raise _client_closed()
                wire_request = self._pending.add(request, on_update)
                if not self._link.send(Ask([wire_request])):
                    self._pending.hold(wire_request)
        except RequestError as error:
            on_update(Update.failed(request.request_id, error))

    def cancel(self, request_id: str) -> None:
        """End a request; its last update says so. Unknown and ended ids are no error."""
        wire_id = self._pending.wire_id(request_id)
        if wire_id is None:
            return
        with self._lock:
            is_unsent = self._pending.withdraw(wire_id)
            if not is_unsent:
                self._link.send(Ask(cancelled_ids=[wire_id]))
        if is_unsent:
            self._pending.deliver([Update(wire_id, [], "", "cancelled", 0, 0)])

    def call_after_updates(self, callback: Callable[[], None]) -> None:
        """Have one callback follow the updates of each message, when all were heard."""
        self._pending.after_updates = callback

    def info(self, timeout_seconds: float = 10.0) -> HostInfo:
        """Ask the host for its limits and counters.

        Raises: HostError when it is away or does not answer in time.
        """
        answer = self._ask(Ask(wants_info=True), timeout_seconds).info
        assert answer is not None
        return answer

    def get_stats(self, since: StatsSince, timeout_seconds: float = 10.0) -> StatsReport:
        """Ask the host for iterations and events that were not told yet, and for its requests.

        Raises: HostError when it is away or does not answer in time.
        """
        answer = self._ask(Ask(wants_stats=since), timeout_seconds).stats
        assert answer is not None
        return answer

    def close(self) -> None:
        """Leave the host; requests in flight end as cancelled."""
        self._link.close()

    def __enter__(self) -> HostClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _ask(self, question: Ask, timeout_seconds: float) -> Tell:
        waiter: queue.SimpleQueue[Tell | HostError] = queue.SimpleQueue()
        with self._lock:
            if not self._link.send(question):
                raise self._host_is_away()
            self._waiters.append(waiter)
        return _wait_for(waiter, self._target.engine_dir, timeout_seconds)

    def _send_held(self) -> None:
        with self._lock:
            held = self._pending.take_held()
            if held:
                self._link.send(Ask(held))

    def _hear(self, message: Tell) -> None:
        for request_id in self._pending.deliver(message.updates):
            self.cancel(request_id)
        if message.info is not None or message.stats is not None:
            # The host answers in the order in which it was asked.
            with self._lock:
                waiter = self._waiters.pop(0)
            waiter.put(message)

    def _lose(self, reason: str) -> None:
        failure = HostError(
            "the engine host died",
            where=str(self._target.engine_dir),
            expected="the connection to stay",
            got=reason,
            hint="it is being restarted; send the request again",
        )
        with self._lock:
            lost_ids = self._pending.sent_ids()
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.put(self._host_is_away())
        self._pending.fail(lost_ids, failure)

    def _fail_all(self, error: TidemillError) -> None:
        with self._lock:  # whoever saw the link open has added its request
            wire_ids = self._pending.wire_ids()
        self._pending.fail(wire_ids, error)

    def _host_is_away(self) -> HostError:
        return HostError(
            "the engine host is away",
            where=str(self._target.engine_dir),
            expected="a running host",
            got="none",
            hint="it is being restarted; try again in a moment",
        )


def _check_sendable(request: GenerateRequest) -> None:
    try:
        encode(Ask([request]))
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        raise InvalidRequestError(
            "the request holds a value that cannot be sent",
            where=f"request {request.request_id}",
            expected="Unicode text and numbers of at most 64 bits",
            got=str(error),
            hint="check the seed and the token ids, and texts for halves of surrogate pairs",
        ) from error


def _wait_for(
    waiter: queue.SimpleQueue[Tell | HostError], engine_dir: Path, timeout_seconds: float
) -> Tell:
    try:
        answer = waiter.get(timeout=timeout_seconds)
    except queue.Empty:
        raise HostError(
            "the engine host does not answer",
            where=str(engine_dir),
            expected=f"an answer within {timeout_seconds:g} s",
            got="none",
            hint="a step may be very long; if it stays so, restart the host",
        ) from None
    if isinstance(answer, HostError):
        raise answer
    return answer


def _client_closed() -> CancelledError:
    return CancelledError("the client of the engine host was closed")
