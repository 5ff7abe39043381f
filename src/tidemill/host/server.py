"""The host's single thread: run steps, and between them read what clients ask and tell them.

Sockets never block a step: they are polled with no wait while there is work, and waited on when
there is none, so that an idle host uses no CPU. A client that goes away takes its requests with
it; when the last has been gone for the grace period, `serve` returns. Knows nothing of engines.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable

from tidemill.base import debug
from tidemill.base.errors import HostError, InvalidRequestError
from tidemill.host.connection import Framer, check_hello, encode
from tidemill.host.messages import PROTOCOL_VERSION, Ask, Hello, Message, Tell, Update
from tidemill.host.session import Session

RECEIVE_BYTES = 1 << 18
MAX_UNREAD_BYTES = 64 * 2**20
FAREWELL_SECONDS = 1.0


class _Client:
    """One connection: bytes in both directions and the requests it owns."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.framer = Framer()
        self.unsent = bytearray()
        self.request_ids: set[str] = set()
        self.is_greeted = False


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
        self._listener = listener
        self._grace_seconds = grace_seconds
        self._may_leave = may_leave
        self._checks_state = debug.is_on(debug.CHECK_STATE)
        self._clients: set[_Client] = set()
        self._id_to_client: dict[str, _Client] = {}
        self._alone_since = time.monotonic()
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> None:
        """Run until nobody has needed the host for the grace period.

        Raises: whatever broke the engine, after every client was told.
        """
        try:
            while True:
                self._poll(self._wait_seconds())
                if self._session.has_work:
                    self._advance()
                elif self._is_over():
                    if self._may_leave():
                        return
                    self._alone_since = time.monotonic()
        finally:
            for client in list(self._clients):
                self._flush_last(client)
            self._selector.close()

    def _is_over(self) -> bool:
        return not self._clients and self._grace_left() <= 0

    def _grace_left(self) -> float:
        return self._alone_since + self._grace_seconds - time.monotonic()

    def _wait_seconds(self) -> float | None:
        if self._session.has_work:
            return 0.0
        if self._checks_state:
            self._session.check()
        return None if self._clients else max(0.0, self._grace_left())

    def _poll(self, wait_seconds: float | None) -> None:
        for key, events in self._selector.select(wait_seconds):
            if key.data is None:
                self._accept()
                continue
            client: _Client = key.data
            if events & selectors.EVENT_WRITE:
                self._flush(client)
            if events & selectors.EVENT_READ:
                self._receive(client)

    def _advance(self) -> None:
        try:
            updates = self._session.step()
        except Exception as error:
            self._tell_all_failed(error)
            raise
        client_to_updates: dict[_Client, list[Update]] = {}
        for update in updates:
            client = self._id_to_client.get(update.request_id)
            if client is None:  # its client has left
                continue
            client_to_updates.setdefault(client, []).append(update)
            if update.is_final:
                self._forget(client, update.request_id)
        for client, its_updates in client_to_updates.items():
            self._send(client, Tell(its_updates))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        connection.setblocking(False)
        client = _Client(connection)
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)
        self._send(client, Hello(PROTOCOL_VERSION, f"tidemill host {os.getpid()}"))

    def _receive(self, client: _Client) -> None:
        if client not in self._clients:
            return
        try:
            data = client.connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        try:
            for message in client.framer.push(data):
                self._hear(client, message)
        except HostError as error:
            debug.warn("host", str(error))
            self._drop(client)

    def _hear(self, client: _Client, message: Message) -> None:
        if not client.is_greeted:
            check_hello(message)
            client.is_greeted = True
            return
        if not isinstance(message, Ask):
            raise HostError("a client sent what only hosts send", got=type(message).__name__)
        for request in message.requests:
            if request.request_id in self._id_to_client:
                error = InvalidRequestError(
                    "a request of this id is in flight", where=f"request {request.request_id}"
                )
                self._send(client, Tell([Update.failed(request.request_id, error)]))
                continue
            self._id_to_client[request.request_id] = client
            client.request_ids.add(request.request_id)
            self._session.submit(request)
        for request_id in message.cancelled_ids:
            if self._id_to_client.get(request_id) is client:
                self._session.cancel(request_id)
        if message.wants_info:
            self._send(client, Tell(info=self._session.info()))

    def _send(self, client: _Client, message: Message) -> None:
        client.unsent += encode(message)
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        if client not in self._clients:
            return
        try:
            while client.unsent:
                num_sent = client.connection.send(client.unsent)
                del client.unsent[:num_sent]
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up(client)
        if len(client.unsent) > MAX_UNREAD_BYTES:
            debug.warn("host", "a client reads nothing of what it asked for: it is dropped")
            self._hang_up(client)
        events = selectors.EVENT_READ
        if client.unsent:
            events |= selectors.EVENT_WRITE
        if self._selector.get_key(client.connection).events != events:
            self._selector.modify(client.connection, events, client)

    @staticmethod
    def _hang_up(client: _Client) -> None:
        # Only the reading side drops clients: callers here may be in the middle of its messages.
        client.unsent.clear()
        with contextlib.suppress(OSError):
            client.connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, client: _Client, request_id: str) -> None:
        del self._id_to_client[request_id]
        client.request_ids.discard(request_id)

    def _drop(self, client: _Client) -> None:
        for request_id in client.request_ids:
            del self._id_to_client[request_id]
            self._session.cancel(request_id)
        client.request_ids.clear()
        self._selector.unregister(client.connection)
        client.connection.close()
        self._clients.discard(client)
        self._alone_since = time.monotonic()

    def _tell_all_failed(self, error: Exception) -> None:
        failure = HostError(
            "the engine broke in the middle of a step",
            where=f"engine host {os.getpid()}",
            got=f"{type(error).__name__}: {error}",
            hint="the host restarts by itself; send the request again",
        )
        for client in self._clients:
            updates = [Update.failed(each, failure) for each in client.request_ids]
            self._send(client, Tell(updates, is_leaving=True))

    def _flush_last(self, client: _Client) -> None:
        # The host is leaving: wait a moment for what it still has to say, whoever listens.
        with contextlib.suppress(OSError):
            client.connection.settimeout(FAREWELL_SECONDS)
            client.connection.sendall(client.unsent)
        client.connection.close()
