"""One client's requests that have not ended: their ids on the wire, and who hears of them.

Ids on the wire are this client's own, because two frontends may have been given the same ones.
Updates come in under wire ids and go out under the ids that were submitted. Requests that no host
has been sent yet are held here. Any thread may call; callbacks run on the caller's thread, outside
of the lock. Knows nothing of sockets.
"""

from __future__ import annotations

import itertools
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from tidemill.base import debug
from tidemill.base.errors import TidemillError
from tidemill.host.messages import GenerateRequest, Update
from tidemill.runtime.validate_request import already_in_flight

OnUpdate = Callable[[Update], None]


@dataclass(frozen=True)
class _Pending:
    request_id: str
    on_update: OnUpdate


class PendingRequests:
    """Maps what the host says to who asked."""

    def __init__(self) -> None:
        self._prefix = uuid.uuid4().hex[:8]
        self._next_number = itertools.count()
        self._lock = threading.Lock()
        self._wire_to_pending: dict[str, _Pending] = {}
        self._id_to_wire: dict[str, str] = {}
        self._wire_to_held: dict[str, GenerateRequest] = {}
        self.after_updates: Callable[[], None] = lambda: None

    def add(self, request: GenerateRequest, on_update: OnUpdate) -> GenerateRequest:
        """Remember a request and return it as it goes on the wire.

        Raises: InvalidRequestError when its id is in flight.
        """
        wire_id = f"{self._prefix}-{next(self._next_number)}"
        with self._lock:
            if request.request_id in self._id_to_wire:
                raise already_in_flight(request.request_id)
            self._id_to_wire[request.request_id] = wire_id
            self._wire_to_pending[wire_id] = _Pending(request.request_id, on_update)
        return msgspec.structs.replace(request, request_id=wire_id)

    def wire_id(self, request_id: str) -> str | None:
        """Find a request's id on the wire; None when it has ended."""
        with self._lock:
            return self._id_to_wire.get(request_id)

    def hold(self, wire_request: GenerateRequest) -> None:
        """Keep a request until there is a host to send it to."""
        with self._lock:
            self._wire_to_held[wire_request.request_id] = wire_request

    def take_held(self) -> list[GenerateRequest]:
        """Give the requests to send now, in the order in which they came."""
        with self._lock:
            held, self._wire_to_held = list(self._wire_to_held.values()), {}
            return held

    def withdraw(self, wire_id: str) -> bool:
        """Let go of a request if it is held; false when a host has it, or had it."""
        with self._lock:
            return self._wire_to_held.pop(wire_id, None) is not None

    def deliver(self, updates: Iterable[Update]) -> list[str]:
        """Hand updates to who asked, and say when all were; return those whose callback raised.

        Ended ids are ignored.
        """
        failed_ids = [update.request_id for update in updates if not self._deliver(update)]
        self.after_updates()
        return failed_ids

    def _deliver(self, update: Update) -> bool:
        wire_id = update.request_id
        with self._lock:
            pending = self._wire_to_pending.get(wire_id)
            if pending is None:
                return True
            if update.is_final:
                del self._wire_to_pending[wire_id]
                del self._id_to_wire[pending.request_id]
                self._wire_to_held.pop(wire_id, None)
        update.request_id = pending.request_id
        try:
            pending.on_update(update)
        except Exception:
            # One caller's fault must not stop the thread that serves all of them.
            debug.warn("host client", "an update's callback failed\n" + traceback.format_exc())
            return False
        return True

    def wire_ids(self) -> list[str]:
        """List the ids of all that have not ended."""
        with self._lock:
            return list(self._wire_to_pending)

    def sent_ids(self) -> list[str]:
        """List the ids on the wire of all that a host was sent."""
        with self._lock:
            return [each for each in self._wire_to_pending if each not in self._wire_to_held]

    def fail(self, wire_ids: Iterable[str], error: TidemillError) -> None:
        """End requests with an error."""
        self.deliver([Update.failed(wire_id, error) for wire_id in wire_ids])

    def check(self) -> None:
        """Recompute that both directions of the map agree."""
        with self._lock:
            both_ways = {wire: each.request_id for wire, each in self._wire_to_pending.items()}
            assert both_ways == {wire: name for name, wire in self._id_to_wire.items()}
            assert self._wire_to_held.keys() <= self._wire_to_pending.keys()
