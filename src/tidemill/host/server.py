"""The host's single thread: run steps, and between them hear what clients ask and tell them.

Sockets never hold up a step: they are polled with no wait while there is work, and waited on when
there is none, so that an idle host uses no CPU. A client that goes away takes its requests with
it; when the last has been gone for the grace period, `serve` returns. Knows nothing of engines.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable

from tidemill.base import debug
from tidemill.base.errors import HostError
from tidemill.host.messages import Ask, GenerateRequest, Tell, Update
from tidemill.host.session import Session
from tidemill.host.switchboard import Client, Switchboard
from tidemill.runtime.validate_request import already_in_flight

# New prompts are tokenised between steps: a burst of them is spread over several.
HEARING_SECONDS = 0.002
# A first token passes through processes that the next step would keep from the cores: where only a
# few would wait for it, the step waits instead (decision 071).
GIVING_WAY_SECONDS = 0.001
MAX_REQUESTS_TO_GIVE_WAY = 4


class HostServer:
    """Serves one session to many connections.

    `may_leave` is asked once the grace period is over: it says whether no client is on its way.
    """

    def __init__(
        self,
        session: Session,
        listener: socket.socket,
        grace_seconds: float,
        may_leave: Callable[[], bool],
    ) -> None:
        self._session = session
        self._switchboard = Switchboard(listener)
        self._grace_seconds = grace_seconds
        self._may_leave = may_leave
        self._checks_state = debug.is_on(debug.CHECK_STATE)
        self._id_to_client: dict[str, Client] = {}
        self._unheard: deque[tuple[Client, Ask]] = deque()
        self._alone_since = time.monotonic()
        self._gives_way = False

    def serve(self) -> None:
        """Run until nobody has needed the host for the grace period.

        Raises: whatever broke the engine, after every client was told.
        """
        try:
            while True:
                heard = self._switchboard.poll(self._wait_seconds())
                self._unheard.extend(heard.asks)
                for client in heard.left:
                    self._drop(client)
                self._hear_some()
                if self._session.has_work:
                    self._advance()
                elif self._is_over():
                    if self._may_leave():
                        return
                    self._alone_since = time.monotonic()
        finally:
            self._switchboard.close()

    def check(self) -> None:
        """Recompute that requests belong to clients that are there, and the session's own."""
        assert set(self._id_to_client.values()) <= self._switchboard.clients
        self._session.check()

    def _is_over(self) -> bool:
        return not self._switchboard.clients and self._grace_left() <= 0

    def _grace_left(self) -> float:
        return self._alone_since + self._grace_seconds - time.monotonic()

    def _wait_seconds(self) -> float | None:
        if self._session.has_work or self._unheard:
            return GIVING_WAY_SECONDS if self._gives_way and not self._unheard else 0.0
        if self._checks_state:
            self.check()
        if self._session.arrange_memory():
            return 0.0
        return None if self._switchboard.clients else max(0.0, self._grace_left())

    def _hear_some(self) -> None:
        deadline = time.monotonic() + HEARING_SECONDS
        while self._unheard and time.monotonic() < deadline:
            client, ask = self._unheard.popleft()
            if client in self._switchboard.clients:
                self._hear(client, ask)

    def _hear(self, client: Client, ask: Ask) -> None:
        for request in ask.requests:
            self._start(client, request)
        for request_id in ask.cancelled_ids:
            if self._id_to_client.get(request_id) is client:
                self._session.cancel(request_id)
        if ask.wants_info:
            self._switchboard.send(client, Tell(info=self._session.info()))
        if ask.wants_stats is not None:
            stats = self._session.statistics(ask.wants_stats)
            self._switchboard.send(client, Tell(stats=stats))

    def _start(self, client: Client, request: GenerateRequest) -> None:
        if request.request_id in self._id_to_client:
            error = already_in_flight(request.request_id)
            self._switchboard.send(client, Tell([Update.failed(request.request_id, error)]))
            return
        self._id_to_client[request.request_id] = client
        self._session.submit(request)

    def _advance(self) -> None:
        try:
            updates = self._session.step()
        except Exception as error:
            self._tell_all_failed(error)
            raise
        client_to_updates: dict[Client, list[Update]] = {}
        for update in updates:
            client = self._id_to_client.get(update.request_id)
            if client is None:  # its client has left
                continue
            client_to_updates.setdefault(client, []).append(update)
            if update.is_final:
                del self._id_to_client[update.request_id]
        for client, its_updates in client_to_updates.items():
            self._switchboard.send(client, Tell(its_updates))
        are_few = len(self._id_to_client) <= MAX_REQUESTS_TO_GIVE_WAY
        self._gives_way = are_few and any(update.is_first for update in updates)

    def _drop(self, client: Client) -> None:
        for request_id in [each for each, its in self._id_to_client.items() if its is client]:
            del self._id_to_client[request_id]
            self._session.cancel(request_id)
        self._alone_since = time.monotonic()

    def _tell_all_failed(self, error: Exception) -> None:
        failure = HostError(
            "the engine broke in the middle of a step",
            where=f"engine host {os.getpid()}",
            expected="a step that ends",
            got=f"{type(error).__name__}: {error}",
            hint="the host restarts by itself; send the request again",
        )
        for client in self._switchboard.clients:
            ids = [each for each, its in self._id_to_client.items() if its is client]
            updates = [Update.failed(request_id, failure) for request_id in ids]
            self._switchboard.send(client, Tell(updates, is_leaving=True))
