"""The requests in flight of one model: submitted, cancelled, stopped by id, all of them ended.

In: answers with the engine requests behind them. Out: calls on the host's client. A thread looks
for clients that went away, while something is in flight: a hundred questions a second at most, as
each wakes stub and server on cores that the engine wants. Knows nothing of tensors.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tidemill.base.errors import CancelledError
from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.pacing import PacedNews, available_cpus, response_gap_s
from tidemill.host.messages import GenerateRequest, Update

CHECK_PERIOD_S = 0.1
MAX_CHECKS_PER_S = 100


class Client(Protocol):
    """What this module needs of the host's client."""

    def submit(self, request: GenerateRequest, on_update: Callable[[Update], None]) -> None: ...

    def cancel(self, request_id: str) -> None: ...

    def call_after_updates(self, callback: Callable[[], None]) -> None: ...


Observer = Callable[[Update], None]


@dataclass(eq=False)
class _Flight:
    """A Triton request under way: its answer and the ids of its prompts at the host."""

    triton_id: str
    answer: Answer
    host_ids: tuple[str, ...]
    is_cancelled: bool = False


class InflightRequests:
    """Owns every flight of one model until it has landed.

    `observe` is asked for each engine request who, beside the answer, is to hear its updates.
    """

    def __init__(self, client: Client, observe: Callable[[], Observer]) -> None:
        self._client = client
        self._observe = observe
        self._num_cpus = available_cpus()
        self._flights: set[_Flight] = set()
        self._with_news: deque[_Flight] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._watcher = threading.Thread(target=self._watch, name="cancellations", daemon=True)
        self._watcher.start()
        client.call_after_updates(self._flush)

    def start(self, triton_id: str, answer: Answer, requests: Sequence[GenerateRequest]) -> None:
        """Submit one engine request for each prompt; the answer ends even if that fails."""
        # Clients choose Triton's ids and may reuse them; the host's must be unique.
        host_ids = tuple(uuid.uuid4().hex for _ in requests)
        flight = _Flight(triton_id, answer, host_ids)
        with self._changed:
            self._flights.add(flight)
            self._changed.notify()
        try:
            for row, (host_id, request) in enumerate(zip(host_ids, requests, strict=True)):
                named = msgspec.structs.replace(request, request_id=host_id)
                self._client.submit(named, self._receiver(flight, row))
        except Exception as error:
            self._abandon(flight, error)
        if flight.is_cancelled:  # while it was being submitted: the later prompts know nothing
            self._cancel_at_host(flight)

    def stop(self, triton_id: str) -> None:
        """Cancel what runs under a Triton id; its answers end normally, with what they have.

        An unknown id is no error: the request may just have ended.
        """
        for flight in self._current():
            if flight.triton_id == triton_id:
                self._cancel(flight)

    def close(self) -> None:
        """Cancel and end everything, and stop watching."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._watcher.join(timeout=1.0)
        for flight in self._current():
            self._abandon(flight, CancelledError("the model is being unloaded"))

    def check(self) -> None:
        """Verify that every flight is still open."""
        assert all(not flight.answer.is_closed for flight in self._current())

    def _receiver(self, flight: _Flight, row: int) -> Callable[[Update], None]:
        observer, paced = self._observe(), PacedNews(self._gap_s)

        def receive(update: Update) -> None:
            observer(update)
            news = paced.take(update)
            if news is None:
                return
            try:
                flight.answer.update(row, news)
            except Exception as error:
                self._abandon(flight, error)
                return
            self._with_news.append(flight)
            if flight.answer.is_closed:
                self._land(flight)
                if update.error is not None:
                    self._cancel(flight)

        return receive

    def _flush(self) -> None:
        """Send the responses that a message of the host's gave: made side by side, code is warm."""
        while self._with_news:
            try:
                flight = self._with_news.popleft()
            except IndexError:  # another thread took it
                return
            try:
                flight.answer.flush()
            except Exception as error:
                self._abandon(flight, error)

    def _gap_s(self) -> float:
        return response_gap_s(len(self._flights), self._num_cpus)

    def _abandon(self, flight: _Flight, error: Exception) -> None:
        """End a flight that cannot go on, at both ends; neither end's own failure matters now."""
        self._land(flight)
        with contextlib.suppress(Exception):
            flight.answer.fail(error)
        with contextlib.suppress(Exception):
            self._cancel(flight)

    def _cancel(self, flight: _Flight) -> None:
        if not flight.is_cancelled:
            flight.is_cancelled = True
            self._cancel_at_host(flight)

    def _cancel_at_host(self, flight: _Flight) -> None:
        for host_id in flight.host_ids:
            self._client.cancel(host_id)

    def _land(self, flight: _Flight) -> None:
        with self._changed:
            self._flights.discard(flight)

    def _current(self) -> list[_Flight]:
        with self._changed:
            return list(self._flights)

    def _check_period_s(self) -> float:
        return max(CHECK_PERIOD_S, len(self._flights) / MAX_CHECKS_PER_S)

    def _watch(self) -> None:
        """Cancel what nobody waits for any more; sleep while nothing is in flight."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._flights or self._is_closing)
                if not self._is_closing:
                    self._changed.wait_for(lambda: self._is_closing, self._check_period_s())
                if self._is_closing:
                    return
            for flight in self._current():
                # Triton refuses to say where its shared memory is full; the next round asks again.
                with contextlib.suppress(Exception):
                    if not flight.is_cancelled and flight.answer.is_unwanted():
                        self._cancel(flight)
