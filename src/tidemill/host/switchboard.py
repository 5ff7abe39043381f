"""The host's sockets: who is connected, what they said, what they are still to be sent.

Nothing here blocks but `poll`, and only as long as it is told. A client that cannot be written to
is noticed when it is read from, so that clients leave in one place. Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from dataclasses import dataclass, field

from tidemill.base import debug
from tidemill.base.errors import HostError
from tidemill.host.connection import Framer, check_hello, encode
from tidemill.host.messages import PROTOCOL_VERSION, Ask, Hello, Message, Tell, WireError

RECEIVE_BYTES = 1 << 18
MAX_UNREAD_BYTES = 64 * 2**20
FAREWELL_SECONDS = 1.0


class Client:
    """One connection and the bytes under way in both directions.

    `is_awaited` while a poll is to return when it can be written to.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.framer = Framer()
        self.unsent = bytearray()
        self.is_greeted = False
        self.is_awaited = False


@dataclass
class Heard:
    """What a poll brought: messages in order of arrival, and clients that have left."""

    asks: list[tuple[Client, Ask]] = field(default_factory=list)
    left: list[Client] = field(default_factory=list)


class Switchboard:
    """Accepts, reads and writes on non-blocking sockets."""

    def __init__(self, listener: socket.socket) -> None:
        self.clients: set[Client] = set()
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def poll(self, wait_seconds: float | None) -> Heard:
        """Wait for news at most that long, None for ever; take in what has arrived."""
        heard = Heard()
        for key, events in self._selector.select(wait_seconds):
            if key.data is None:
                self._accept()
                continue
            if events & selectors.EVENT_WRITE:
                self._flush(key.data)
            if events & selectors.EVENT_READ:
                self._receive(key.data, heard)
        return heard

    def send(self, client: Client, message: Message) -> None:
        """Send a message, now or when the client reads again."""
        if client in self.clients:
            client.unsent += encode(message)
            self._flush(client)

    def close(self) -> None:
        """Leave all clients, with a moment for what they still have to be sent."""
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.connection.settimeout(FAREWELL_SECONDS)
                client.connection.sendall(client.unsent)
            client.connection.close()
        self.clients.clear()
        self._selector.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        connection.setblocking(False)
        client = Client(connection)
        self.clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)
        self.send(client, Hello(PROTOCOL_VERSION, f"tidemill host {os.getpid()}"))

    def _receive(self, client: Client, heard: Heard) -> None:
        try:
            data = client.connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            for message in client.framer.push(data):
                if isinstance(message, Ask) and client.is_greeted:
                    heard.asks.append((client, message))
                else:
                    check_hello(message)
                    client.is_greeted = True
        except HostError as error:
            debug.warn("host", str(error))
            _refuse(client, error)
            data = b""
        if not data:
            self._selector.unregister(client.connection)
            client.connection.close()
            self.clients.discard(client)
            heard.left.append(client)

    def _flush(self, client: Client) -> None:
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
        if client.is_awaited != bool(client.unsent):
            client.is_awaited = not client.is_awaited
            writing = selectors.EVENT_WRITE if client.is_awaited else 0
            self._selector.modify(client.connection, selectors.EVENT_READ | writing, client)

    @staticmethod
    def _hang_up(client: Client) -> None:
        # Its end of file is then read like that of any client that leaves.
        client.unsent.clear()
        with contextlib.suppress(OSError):
            client.connection.shutdown(socket.SHUT_RDWR)


def _refuse(client: Client, error: HostError) -> None:
    """Tell a client what was wrong with what it sent, if it still listens."""
    last_words = encode(Tell(error=WireError.from_exception(error)))
    with contextlib.suppress(OSError):
        client.connection.send(bytes(client.unsent) + last_words)
