"""Who waits to become active, in order of service; and when whose time is over.

Requests that wait are new ones and paused ones alike: higher priority first, then order of arrival.
Knows nothing of why one waits.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

from tidemill.runtime.request_state import RequestState


def _order(state: RequestState) -> tuple[float, int]:
    return state.order


class RequestQueue:
    """A sorted list of requests."""

    def __init__(self) -> None:
        self._states: list[RequestState] = []

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, index: int) -> RequestState:
        return self._states[index]

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._states)

    def add(self, state: RequestState) -> None:
        """Let a request wait at its place."""
        insort(self._states, state, key=_order)

    def remove(self, state: RequestState) -> None:
        """Take out a request that waits."""
        index = bisect_left(self._states, state.order, key=_order)
        assert self._states[index] is state
        del self._states[index]

    def check(self) -> None:
        """Recompute the order."""
        orders = [state.order for state in self._states]
        assert orders == sorted(set(orders)), "queue out of order"


class Deadlines:
    """Requests with a time-out; the first in `heap` is the one whose time is over next."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, RequestState]] = []

    def add(self, deadline: float, state: RequestState) -> None:
        """Note when a request's time is over."""
        heapq.heappush(self.heap, (deadline, state.order[1], state))

    def pop_due(self, now: float, alive: Mapping[int, RequestState]) -> list[RequestState]:
        """Take the requests in `alive` whose time is over; the ended ones are forgotten."""
        due = []
        while self.heap and self.heap[0][0] <= now:
            state = heapq.heappop(self.heap)[2]
            if alive.get(state.request.request_id) is state:
                due.append(state)
        if len(self.heap) > 2 * len(alive) + 64:
            self.heap = [e for e in self.heap if alive.get(e[2].request.request_id) is e[2]]
            heapq.heapify(self.heap)
        return due
