"""What happened to requests, in order: queued, admitted, paused, first token, ended.

Kept up to a bound, oldest forgotten first, until somebody takes them; off with bound 0. Times are
seconds on the loop's clock. Knows nothing of why.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple


class EventKind(Enum):
    """A moment of a request's life. One that was paused is admitted again."""

    QUEUED = "queued"
    ADMITTED = "admitted"
    PAUSED = "paused"
    FIRST_TOKEN = "first_token"
    ENDED = "ended"


class RequestEvent(NamedTuple):
    """One event. `detail` is how a request ended, in lower case, and empty otherwise."""

    kind: EventKind
    request_id: int
    iteration: int
    time: float
    detail: str = ""


class EventLog:
    """The latest events that nobody has taken."""

    def __init__(self, max_size: int) -> None:
        self._events: deque[RequestEvent] = deque(maxlen=max_size)
        self.is_on = max_size > 0

    def add(self, event: RequestEvent) -> None:
        """Note an event."""
        self._events.append(event)

    def take(self) -> list[RequestEvent]:
        """Hand over what was noted."""
        events = list(self._events)
        self._events.clear()
        return events
