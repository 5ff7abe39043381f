"""Fills one step: which of the active requests advance in it, and by how many tokens.

In come the active requests in order of service; out comes a `MicroBatch`, the `StepPlan` with the
states behind its entries. Generation goes first, one token each; context takes what is left of
max_num_tokens, long prompts in chunks that end on block borders. Every step starts from scratch.

Source: TensorRT-LLM's micro-batch scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.observation import Observation
from tidemill.runtime.request_state import RequestState
from tidemill.runtime.step import EngineLimits, PlanEntry, StepPlan


class MicroBatch:
    """A step in the making, then the step: entries in execution order and whose they are.

    Units: `num_*` count requests and tokens.
    """

    def __init__(self, limits: EngineLimits, pool: BlockPool) -> None:
        self._pool = pool
        self._budget = limits.max_num_tokens
        # Only an engine with tinier steps than blocks has chunks that end inside of a block.
        self._chunk_unit = min(limits.tokens_per_block, limits.max_num_tokens)
        self._entries: list[PlanEntry] = []
        self.states: list[RequestState] = []
        self.num_generation_requests = 0
        self.num_context_tokens = 0

    @property
    def num_context_requests(self) -> int:
        return len(self.states) - self.num_generation_requests

    def plan(self) -> StepPlan:
        """Freeze what was added."""
        return StepPlan(tuple(self._entries))

    def observe(self, observations: Mapping[int, Observation]) -> None:
        """Hand what requests asked to see to their states, before the step is committed."""
        for index, observation in observations.items():
            self.states[index].observe(observation)

    def add_generation(self, generation: Sequence[RequestState]) -> None:
        """Let each request compute its latest token."""
        tokens_per_block = self._pool.tokens_per_block
        for state in generation:
            request, table, start = state.request, state.table, state.num_computed
            if start >= len(table.blocks) * tokens_per_block:
                self._pool.grow(table, start + 1)
            self._entries.append(
                PlanEntry(
                    request.request_id,
                    (state.output_tokens[-1],),
                    start,
                    table.blocks,
                    True,
                    request.sampling,
                    state.history,
                )
            )
        self.states.extend(generation)
        self.num_generation_requests += len(generation)
        self._budget -= len(generation)

    def add_context(self, context: Sequence[RequestState]) -> None:
        """Let prompts advance in order until the step is full."""
        for state in context:
            num_tokens = num_left = state.num_context_left
            if num_left > self._budget:
                num_tokens = self._budget - self._budget % self._chunk_unit
            if num_tokens == 0:
                return
            request, start = state.request, state.num_computed
            end = start + num_tokens
            self._pool.grow(state.table, end)
            self._entries.append(
                PlanEntry(
                    request.request_id,
                    request.prompt_tokens[start:end],
                    start,
                    state.table.blocks,
                    num_tokens == num_left,
                    request.sampling,
                    state.history,
                )
            )
            self.states.append(state)
            self._budget -= num_tokens
            self.num_context_tokens += num_tokens
