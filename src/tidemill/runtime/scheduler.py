"""Decides how many tokens each request advances in a step, and what a step's result means.

In come requests, cancellations and `StepResult`; out go `StepPlan` and `TokenUpdate`. A step is
planned in three moves: requests whose time is over end; the capacity policy says who is active; the
micro-batch says how far each advances. Knows nothing of devices, text or threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tidemill.runtime.advance import advance
from tidemill.runtime.capacity import POLICIES
from tidemill.runtime.config import DEFAULT_CONFIG, RuntimeConfig
from tidemill.runtime.events import EventKind
from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.micro_batch import Drafter, MicroBatch
from tidemill.runtime.register import Register
from tidemill.runtime.request import NOT_FINISHED, FinishReason, Request, TokenUpdate
from tidemill.runtime.request_state import NO_TABLE, RequestState
from tidemill.runtime.statistics import RequestStats
from tidemill.runtime.step import EngineLimits, StepPlan, StepResult
from tidemill.runtime.step_pace import StepPace


class Scheduler:
    """Owns the state of all requests that have not ended.

    `plan` and `commit` alternate; `add` and `cancel` may come at any moment, between a plan and
    its commit too. `register` and `latest`, the latest step, are there for reading. `clock` gives
    seconds.
    """

    def __init__(
        self,
        limits: EngineLimits,
        pool: BlockPool,
        config: RuntimeConfig = DEFAULT_CONFIG,
        clock: Callable[[], float] = time.monotonic,
        drafter: Drafter | None = None,
    ) -> None:
        self._limits, self._config, self._drafter = limits, config, drafter
        self.register = Register(limits, pool, config, clock)
        self._active = self.register.active
        self._apply_policy = POLICIES[config.policy]
        self._plan: StepPlan | None = None
        self._is_cancelling = False
        self.pace = StepPace(config, limits.tokens_per_block)
        self.latest = MicroBatch(limits, self._active, config)

    def is_steady(self) -> bool:
        """Whether the latest step left every count but those of tokens and steps as it was."""
        return self.register.is_quiet and self.latest.has_gone_on

    @property
    def has_work(self) -> bool:
        """Whether some request has not ended, or its end has not been told."""
        return self.register.has_work

    def knows(self, request_id: int) -> bool:
        """Say whether a request of that id has not ended yet."""
        return request_id in self.register.id_to_state

    def add(self, request: Request) -> None:
        """Put a request, already validated, at its place in the queue."""
        self.register.add(request)

    def cancel(self, request_id: int) -> None:
        """End a request now; its update comes with the next commit. Unknown ids are no error."""
        state = self.register.id_to_state.get(request_id)
        if state is not None and state.table is not NO_TABLE and self._plan is not None:
            # The executor may be writing to its blocks: they are freed at the commit.
            state.is_cancelled = self._is_cancelling = True
        elif state is not None:
            self.register.end(state, FinishReason.CANCELLED)

    def plan(self) -> StepPlan:
        """Make the next step; empty when no request can advance."""
        assert self._plan is None, "the previous step was not committed"
        self.register.end_overdue()
        if self.register.is_quiet and self.latest.num_more:
            plan = self._plan = self.latest.go_on()
            return plan
        self.register.settle()
        self._decide_active()
        batch = self.latest = MicroBatch(self._limits, self._active, self._config)
        batch.add_generation(self._drafter)
        batch.add_context(self.pace.max_context_tokens(batch.num_generation_requests))
        plan = batch.plan()
        if plan.entries:
            self._plan = plan
        return plan

    def commit(self, result: StepResult) -> list[TokenUpdate]:
        """Take in the result of the latest plan; tell each request's new tokens and end."""
        updates: list[TokenUpdate] = []
        if self._plan is not None:
            if result.observations:
                self.latest.observe(result.observations)
            updates = self._take_in(self._plan, result)
            self._plan = None
            self.register.iteration += 1
            if self._is_cancelling:
                self._end_cancelled()
            self.register.end_overdue()
        return self.register.tell_with(updates)

    def request_stats(self) -> list[RequestStats]:
        """Tell where each request is that has not ended."""
        return self.register.request_stats(set(map(id, self.latest.states)))

    def check(self) -> None:
        """Recompute every invariant from scratch."""
        self.register.check()

    def _decide_active(self) -> None:
        active, queue, register = self._active, self.register.queue, self.register
        active.admitted, active.paused = [], []
        self._apply_policy(active, queue)
        if not (active.admitted or active.paused):
            return
        now = register.clock()
        for state in active.admitted:
            if state.metrics.first_scheduled_time is None:
                state.metrics.first_scheduled_time = now
                state.metrics.first_iter = register.iteration
        register.note(EventKind.PAUSED, active.paused, now)
        register.note(EventKind.ADMITTED, active.admitted, now)

    def _take_in(self, plan: StepPlan, result: StepResult) -> list[TokenUpdate]:
        now, index, position = self.register.clock(), 0, 0
        updates: list[TokenUpdate] = []
        ended: list[tuple[RequestState, FinishReason]] = []
        started: list[RequestState] = []
        num_generation, unit = self.latest.num_generation_requests, self._limits.tokens_per_block
        has_window = self._limits.attention_window is not None
        for state in self.latest.states:
            entry = plan.entries[index]
            index += 1
            end = position + entry.num_draws
            drawn, position = result.sampled_tokens[position:end], end
            num_before = state.num_computed
            update = advance(state, entry, drawn, now)
            if num_before // unit != state.num_computed // unit:
                self._active.publish(state, num_before)
            if has_window and self._active.slide(state):
                self.register.disturb()
            if state.is_cancelled or update is None:
                continue
            updates.append(update)
            if update.finish_reason is not NOT_FINISHED:
                ended.append((state, update.finish_reason))
            elif index > num_generation:
                started.append(state)
        assert position == len(result.sampled_tokens), "more tokens were drawn than asked for"
        if started:
            fresh = [each for each in started if each.metrics.first_token_time == now]
            self.register.note(EventKind.FIRST_TOKEN, fresh, now)
            self._active.enter_generation(started)
        if ended:
            self.register.end_active(ended)
        return updates

    def _end_cancelled(self) -> None:
        """End those cancelled while the step was in flight, in the plan or not."""
        self._is_cancelling = False
        for state in self._active.context + self._active.generation:
            if state.is_cancelled:
                self.register.end(state, FinishReason.CANCELLED)
