"""The active requests: admitted on blocks of the cache, in their context or generation phase.

A capacity policy admits and pauses through it; the micro-batch reads it; the scheduler ends
requests. It keeps blocks, phases and the prefixes that are being computed in step with each other.
Decides nothing by itself.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from enum import Enum

from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.kvcache.prefix import NOTHING, Prefix
from tidemill.runtime.request_state import NO_TABLE, RequestState
from tidemill.runtime.step import EngineLimits


class Admission(Enum):
    """What came of the attempt to admit a request."""

    ADMITTED = 0
    NO_ROOM = 1
    WAITS_FOR_PREFIX = 2


class ActiveRequests:
    """Those in context phase, in order of service, and those in generation phase.

    `admitted` and `paused` tell what happened since they were last emptied.
    """

    def __init__(self, limits: EngineLimits, pool: BlockPool, config: RuntimeConfig) -> None:
        self.pool = pool
        self.context: list[RequestState] = []
        self.generation: list[RequestState] = []
        self.admitted: list[RequestState] = []
        self.paused: list[RequestState] = []
        self._config = config
        # Every active request can then advance by one token in every step: none starves.
        self._max_num_tokens = limits.max_num_tokens
        self._max_active = min(limits.max_batch_size, limits.max_num_tokens)
        self._key_to_computing: dict[bytes, RequestState] = {}

    def __len__(self) -> int:
        return len(self.context) + len(self.generation)

    @property
    def is_full(self) -> bool:
        return len(self) >= self._max_active

    def in_order(self) -> list[RequestState]:
        """List all in order of service."""
        return sorted(self.context + self.generation, key=lambda state: state.order)

    def try_admit(self, state: RequestState, num_tokens: int, may_wait: bool = True) -> Admission:
        """Open a table for `num_tokens` positions on what the cache holds of the request.

        Where another request is computing the block that this one needs next, waiting is less
        work than computing it twice.
        """
        if self.is_full:
            return Admission.NO_ROOM
        prefix = self._find(state)
        step_tokens = self._step_tokens(state, prefix.num_tokens(self.pool.tokens_per_block))
        if may_wait and self._is_underway(state, len(prefix.blocks)):
            return Admission.WAITS_FOR_PREFIX
        table = self.pool.open(num_tokens, prefix, step_tokens)
        if table is None:
            return Admission.NO_ROOM
        state.table, state.num_computed = table, table.num_cached_tokens
        metrics = state.metrics
        metrics.num_reused_blocks += len(prefix.blocks) - prefix.num_skipped
        metrics.num_reused_blocks += prefix.partial_block is not None
        metrics.num_missed_blocks += prefix.num_missed
        for key in state.keys[len(prefix.blocks) + 1 :]:
            self._key_to_computing.setdefault(key, state)
        insort(self.context, state, key=lambda each: each.order)
        self.admitted.append(state)
        return Admission.ADMITTED

    def num_needed(self, state: RequestState, num_tokens: int) -> int:
        """Count the available blocks that admission would use up."""
        prefix = self._find(state)
        num_cached = prefix.num_tokens(self.pool.tokens_per_block)
        return self.pool.num_needed(num_tokens, prefix, self._step_tokens(state, num_cached))

    def publish(self, state: RequestState, num_before: int) -> None:
        """Let blocks be found that became full of computed positions since `num_before`."""
        if not self._config.enable_block_reuse:
            return
        unit = self.pool.tokens_per_block
        first, last = num_before // unit, state.num_computed // unit
        if first < last:
            state.name_blocks(unit)
            for index in range(first, last):
                self.pool.publish(state.table, index, state.keys, state.tokens)

    def slide(self, state: RequestState) -> bool:
        """Let go of what has left the attention window of a request that advanced, if anything."""
        table, step_tokens = state.table, self._step_tokens(state, state.num_computed)
        is_leaving = self.pool.span.first_needed(state.num_computed) > table.num_dropped
        if is_leaving and state.request.retention is not None:
            self.pool.retain(table, state.request.retention, state.num_prompt)
        if is_leaving or step_tokens != table.step_tokens:
            self.pool.slide(table, state.num_computed, state.max_tokens, step_tokens)
        return is_leaving

    def enter_generation(self, states: Sequence[RequestState]) -> None:
        """Move requests whose context is computed on to generation."""
        for state in states:
            self._forget_underway(state)
        moved = set(map(id, states))
        self.context = [state for state in self.context if id(state) not in moved]
        self.generation.extend(states)

    def leave(self, states: Sequence[RequestState]) -> None:
        """Free what requests hold: they ended, or are paused."""
        gone = set(map(id, states))
        for state in states:
            self._forget_underway(state)
            self._free(state)
        self.generation = [state for state in self.generation if id(state) not in gone]
        self.context = [state for state in self.context if id(state) not in gone]

    def check(self) -> None:
        """Recompute every invariant from scratch."""
        self.pool.check()
        active = self.context + self.generation
        assert len(active) <= self._max_active, "too many active requests"
        assert self.pool.num_used == len({b for s in active for b in s.table.held}), "lost blocks"
        for state in active:
            assert state.num_computed <= len(state.table.blocks) * self.pool.tokens_per_block
            assert state.num_output < state.request.max_new_tokens
        for state in self.generation:
            assert state.num_left == 1, "one token is to be computed"
        for state in self.context:
            assert state.num_left > 0
        assert [s.order for s in self.context] == sorted(s.order for s in self.context)
        assert all(state in self.context for state in self._key_to_computing.values())

    def _find(self, state: RequestState) -> Prefix:
        if not self._config.enable_block_reuse or state.request.reads_prompt:
            return NOTHING
        state.name_blocks(self.pool.tokens_per_block)
        return self.pool.find(state.keys, state.tokens, self._config.enable_partial_reuse)

    def _step_tokens(self, state: RequestState, num_computed: int) -> int:
        """Bound how many positions one step computes of a request, from now on."""
        num_left = min(len(state.tokens) - num_computed, self._max_num_tokens)
        return max(num_left, 1 + self._config.max_draft_len)

    def _is_underway(self, state: RequestState, num_found: int) -> bool:
        if not self._config.enable_block_reuse or state.request.reads_prompt:
            return False
        num_reusable = (len(state.tokens) - 1) // self.pool.tokens_per_block
        return num_found < num_reusable and state.keys[num_found + 1] in self._key_to_computing

    def _forget_underway(self, state: RequestState) -> None:
        for key in state.keys[1:]:
            if self._key_to_computing.get(key) is state:
                del self._key_to_computing[key]

    def _free(self, state: RequestState) -> None:
        table, metrics = state.table, state.metrics
        num_new = len(table.blocks) - table.num_cached_tokens // self.pool.tokens_per_block
        metrics.num_allocated_blocks += table.num_taken
        metrics.num_new_blocks += num_new
        if state.request.retention is not None:
            self.pool.retain(table, state.request.retention, state.num_prompt)
        self.pool.close(table)
        state.table, state.num_computed = NO_TABLE, 0
