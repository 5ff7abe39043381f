"""Fills one step: which of the active requests advance in it, and by how many tokens.

In come the active requests; out comes a `MicroBatch`, the `StepPlan` with the states behind its
entries. Generation goes first, one token each and guesses where there is room for them; context
takes what is left of max_num_tokens, as `context_chunks` shares it. A step is filled from scratch
when something happened; a batch that only generates goes on as it is until then.

Source: TensorRT-LLM's micro-batch scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tidemill.runtime.active_requests import ActiveRequests
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.context_chunks import share_budget
from tidemill.runtime.observation import Observation
from tidemill.runtime.request_state import RequestState
from tidemill.runtime.step import EngineLimits, PlanEntry, StepPlan

Drafter = Callable[[RequestState, int], Sequence[int]]
"""Guesses at most so many tokens that follow a request's known ones."""


class MicroBatch:
    """A step in the making, then the step: entries in execution order and whose they are.

    It can go on for `num_more` steps as it is, unless a request arrives or ends. Units: other
    `num_*` count requests and tokens.
    """

    __slots__ = (
        "_active",
        "_budget",
        "_config",
        "_entries",
        "_limits",
        "_pool",
        "has_gone_on",
        "num_context_tokens",
        "num_generation_requests",
        "num_more",
        "states",
    )

    def __init__(self, limits: EngineLimits, active: ActiveRequests, config: RuntimeConfig) -> None:
        self._limits = limits
        self._active, self._pool = active, active.pool
        self._config = config
        self._budget = limits.max_num_tokens
        self._entries: list[PlanEntry] = []
        self.states: list[RequestState] = []
        self.num_generation_requests = 0
        self.num_context_tokens = 0
        self.num_more = 0
        self.has_gone_on = False

    @property
    def num_context_requests(self) -> int:
        return len(self.states) - self.num_generation_requests

    @property
    def num_started(self) -> int:
        """Contexts that draw their first token."""
        if len(self._entries) == self.num_generation_requests:
            return 0
        return sum(entry.num_draws for entry in self._entries[self.num_generation_requests :])

    def plan(self) -> StepPlan:
        """Freeze what was added, with the block copies that it relies on."""
        if not self._entries:
            return StepPlan(())
        return StepPlan(tuple(self._entries), self._pool.take_copies())

    def go_on(self) -> StepPlan:
        """Make the step after the one that was committed: each request one token further."""
        self.num_more -= 1
        self.has_gone_on = True
        entries: list[PlanEntry] = []
        for state in self.states:
            request = state.request
            entries.append(
                PlanEntry(
                    request.request_id,
                    (state.tokens[-1],),
                    state.num_computed,
                    state.table.blocks,
                    1,
                    request.sampling,
                    state.history,
                )
            )
        return StepPlan((*entries,), (), True)

    def observe(self, observations: Sequence[tuple[int, Observation]]) -> None:
        """Hand what requests asked to see to their states, before the step is committed."""
        for index, observation in observations:
            self.states[index].observe(observation)

    def add_generation(self, drafter: Drafter | None) -> None:
        """Let each request compute its latest token, and guesses after it."""
        active, generation = self._active, self._active.generation
        self._budget -= len(generation)
        self.num_generation_requests = len(generation)
        if drafter is not None:
            self._add_with_guesses(drafter)
            return
        num_more = unit = self._pool.tokens_per_block
        for state in generation:
            num_left_in_block = -(state.num_computed + 1) % unit
            if num_left_in_block < num_more:
                num_more = num_left_in_block
            self._add(state, (state.tokens[-1],), 1)
        if generation and not (active.context or active.admitted or active.paused):
            # Whoever waits goes on waiting until a block is full: it can be found then.
            self.num_more = num_more

    def add_context(self, max_tokens: int | None = None) -> None:
        """Let contexts advance as far as the step has room, by `max_tokens` in all at most."""
        context = self._active.context
        if not context:
            return
        budget = self._budget if max_tokens is None else min(self._budget, max_tokens)
        counts = share_budget(context, budget, self._limits, self._config)
        for state, count in zip(context, counts, strict=True):
            if count:
                start = state.num_computed
                tokens = state.tokens[start : start + count]
                self._add(state, tokens, int(count == state.num_left))
                self._budget -= count
                self.num_context_tokens += count
        assert self._budget >= 0

    def _add_with_guesses(self, drafter: Drafter) -> None:
        # An engine draws max_batch_size tokens a step: guesses take what requests leave of that.
        num_spare = min(self._limits.max_batch_size - len(self._active), self._budget)
        for state in self._active.generation:
            drafts: Sequence[int] = ()
            if num_spare > 0 and state.may_speculate:
                drafts = self._drafts(drafter, state, num_spare)
                num_spare -= len(drafts)
                self._budget -= len(drafts)
            self._add(state, (state.tokens[-1], *drafts), 1 + len(drafts))

    def _drafts(self, drafter: Drafter, state: RequestState, num_spare: int) -> Sequence[int]:
        num_wanted = state.request.max_new_tokens - state.num_output - 1
        num_drafts = min(num_wanted, num_spare, self._config.max_draft_len)
        if num_drafts < 1:
            return ()
        drafts = drafter(state, num_drafts)
        if not self._pool.promise(state.table, len(state.tokens) + len(drafts)):
            return ()
        state.metrics.num_draft_tokens += len(drafts)
        return drafts

    def _add(self, state: RequestState, tokens: Sequence[int], num_draws: int) -> None:
        start, table, request = state.num_computed, state.table, state.request
        end = start + len(tokens)
        if end > len(table.blocks) * self._pool.tokens_per_block:
            self._pool.grow(table, end)
        self._entries.append(
            PlanEntry(
                request.request_id,
                tokens,
                start,
                table.blocks,
                num_draws,
                request.sampling,
                state.history,
            )
        )
        self.states.append(state)
