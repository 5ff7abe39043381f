"""All requests that have not ended: queued or active, with their time-outs, ends and events.

The scheduler adds, advances and cancels through it. Between steps it ends requests wherever they
are; their last updates wait here until the next commit tells them. Decides nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tidemill.runtime.active_requests import ActiveRequests
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.events import EventKind, EventLog
from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.request import FinishReason, Request, TokenUpdate
from tidemill.runtime.request_queue import Deadlines, RequestQueue
from tidemill.runtime.request_state import NO_TABLE, RequestState
from tidemill.runtime.statistics import RequestStage, RequestStats
from tidemill.runtime.step import EngineLimits


class Register:
    """Requests by id, and where they are. `iteration` counts committed steps.

    `is_quiet` from `settle` until a request arrives, ends or is told to have ended, or `disturb`.
    That a block is full is not seen here: `MicroBatch.num_more` counts the steps up to it.
    """

    def __init__(
        self,
        limits: EngineLimits,
        pool: BlockPool,
        config: RuntimeConfig,
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        self.queue = RequestQueue()
        self.active = ActiveRequests(limits, pool, config)
        self.id_to_state: dict[int, RequestState] = {}
        self.events = EventLog(config.event_buffer_max_size)
        self.iteration = 0
        self.is_quiet = False
        self._deadlines = Deadlines()
        self._num_arrived = 0
        self._untold: list[TokenUpdate] = []

    @property
    def has_work(self) -> bool:
        """Whether some request has not ended, or its end has not been told."""
        return bool(self.id_to_state or self._untold)

    def settle(self) -> None:
        """Be quiet from now on: a step is decided with all that has happened."""
        self.is_quiet = True

    def disturb(self) -> None:
        """Let the next step be decided anew: a request let go of blocks while it runs."""
        self.is_quiet = False

    def add(self, request: Request) -> None:
        """Put a request, already validated, at its place in the queue."""
        assert request.request_id not in self.id_to_state, request.request_id
        now = self.clock()
        self._num_arrived += 1
        self.is_quiet = False
        state = RequestState(request, self._num_arrived, now)
        self.id_to_state[request.request_id] = state
        self.queue.add(state)
        self.note(EventKind.QUEUED, [state], now)
        if request.allotted_time_ms is not None:
            self._deadlines.add(now + request.allotted_time_ms / 1e3, state)

    def end(self, state: RequestState, reason: FinishReason) -> None:
        """End a request between steps, wherever it is."""
        update = state.tell(reason)
        if state.table is NO_TABLE:
            self.queue.remove(state)
            self._forget(state, reason)
        else:
            self.end_active([(state, reason)])
        self._untold.append(update)

    def end_active(self, ended: list[tuple[RequestState, FinishReason]]) -> None:
        """Free what active requests hold whose last update is told by the caller."""
        if ended:
            self.active.leave([state for state, _ in ended])
            for state, reason in ended:
                self._forget(state, reason)

    def end_overdue(self) -> None:
        """End requests whose time is over."""
        if self._deadlines.heap:
            for state in self._deadlines.pop_due(self.clock(), self.id_to_state):
                self.end(state, FinishReason.TIMED_OUT)

    def tell_with(self, updates: list[TokenUpdate]) -> list[TokenUpdate]:
        """Add the last updates that were not told yet to those of a step."""
        if self._untold:
            updates = updates + self._untold
            self._untold, self.is_quiet = [], False
        return updates

    def note(
        self, kind: EventKind, states: Iterable[RequestState], now: float, detail: str = ""
    ) -> None:
        """Keep an event for each of some requests, where events are wanted."""
        if self.events.is_on:
            for state in states:
                self.events.add(kind, state.request, self.iteration, now, detail)

    def request_stats(self, scheduled: set[int]) -> list[RequestStats]:
        """Tell where each request is; `scheduled` holds ids of state objects."""
        unit = self.active.pool.tokens_per_block
        stages = (
            (RequestStage.GENERATION_IN_PROGRESS, self.active.generation),
            (RequestStage.CONTEXT_IN_PROGRESS, self.active.context),
            (RequestStage.QUEUED, self.queue),
        )
        return [
            RequestStats(
                state.request.request_id,
                stage,
                min(state.num_computed, state.num_prompt),
                state.num_output,
                id(state) in scheduled,
                state.metrics,
                state.table.num_taken,
                len(state.table.blocks) - state.table.num_cached_tokens // unit,
                state.request.client_id,
            )
            for stage, states in stages
            for state in states
        ]

    def check(self) -> None:
        """Recompute every invariant from scratch."""
        self.active.check()
        self.queue.check()
        states = [*self.active.context, *self.active.generation, *self.queue]
        ids = [state.request.request_id for state in states]
        assert len(ids) == len(set(ids)) and set(ids) == set(self.id_to_state), "request lost"
        assert all(self.id_to_state[state.request.request_id] is state for state in states)
        for state in self.queue:
            assert state.table is NO_TABLE and not state.num_computed and not state.is_cancelled
        assert not NO_TABLE.blocks and not NO_TABLE.num_promised

    def _forget(self, state: RequestState, reason: FinishReason) -> None:
        self.is_quiet = False
        del self.id_to_state[state.request.request_id]
        state.metrics.last_iter = self.iteration
        if self.events.is_on:
            self.note(EventKind.ENDED, [state], self.clock(), reason.name.lower())
