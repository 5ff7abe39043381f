"""What happened to requests, in order: queued, admitted, paused, first token, ended.

Kept up to a bound, oldest forgotten first; off with bound 0. Times are seconds on the loop's clock.
Knows nothing of why.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any, NamedTuple

from tidemill.runtime.request import Request


class EventKind(Enum):
    """A moment of a request's life. One that was paused is admitted again."""

    QUEUED = "queued"
    ADMITTED = "admitted"
    PAUSED = "paused"
    FIRST_TOKEN = "first_token"
    ENDED = "ended"


class RequestEvent(NamedTuple):
    """One event; `number` counts them.

    `detail` is how a request ended, in lower case, and empty otherwise. `client_id` is who asked
    for it: a client's request for several answers is several requests here.
    """

    number: int
    kind: EventKind
    request_id: int
    iteration: int
    time: float
    detail: str = ""
    client_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the event under keys like those of request stats."""
        return {
            "eventId": self.number,
            "kind": self.kind.value,
            "id": self.request_id,
            "clientId": self.client_id,
            "iter": self.iteration,
            "time": self.time,
            "detail": self.detail,
        }


class EventLog:
    """The latest events that nobody has taken."""

    def __init__(self, max_size: int) -> None:
        self._events: deque[RequestEvent] = deque(maxlen=max_size)
        self.is_on = max_size > 0
        self._num_events = 0

    def add(
        self, kind: EventKind, request: Request, iteration: int, now: float, detail: str
    ) -> None:
        """Note an event."""
        self._num_events += 1
        names = request.request_id, request.client_id
        event = RequestEvent(self._num_events, kind, names[0], iteration, now, detail, names[1])
        self._events.append(event)

    def since(self, number: int) -> list[RequestEvent]:
        """Return what is kept of the events after this one."""
        return [event for event in self._events if event.number > number]
