"""Decides how many tokens each request advances in a step, and what a step's result means.

In come requests, cancellations and `StepResult`; out go `StepPlan` and `TokenUpdate`. Policy:
GUARANTEED_NO_EVICT (a request is admitted when blocks for its prompt and all its output can be
promised, and is never paused), first come first served, generation before context, long prompts
cut into chunks. Knows nothing of devices, text or threads.

Source: TensorRT-LLM's capacity scheduler and micro-batch scheduler (its performance guide).
"""

from __future__ import annotations

from collections import deque

from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.micro_batch import MicroBatch
from tidemill.runtime.request import FinishReason, Request, TokenUpdate
from tidemill.runtime.request_state import RequestState
from tidemill.runtime.step import EngineLimits, StepPlan, StepResult


class Scheduler:
    """Owns the state of all requests that have not ended.

    `plan` and `commit` alternate; `add` and `cancel` may come at any moment, between a plan and
    its commit too.
    """

    def __init__(self, limits: EngineLimits, pool: BlockPool) -> None:
        self._limits = limits
        self._pool = pool
        # Every active request can then advance by one token in every step: none starves.
        self._max_active = min(limits.max_batch_size, limits.max_num_tokens)
        self._waiting: deque[Request] = deque()
        self._context: list[RequestState] = []
        self._generation: list[RequestState] = []
        self._id_to_state: dict[int, RequestState | None] = {}  # None: waiting
        self._plan: StepPlan | None = None
        self._ended: list[TokenUpdate] = []
        self.latest = MicroBatch(limits, pool)

    @property
    def num_active(self) -> int:
        return len(self._context) + len(self._generation)

    @property
    def num_queued(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether some request has not ended, or its end has not been told."""
        return bool(self._id_to_state or self._ended)

    def knows(self, request_id: int) -> bool:
        """Say whether a request of that id has not ended yet."""
        return request_id in self._id_to_state

    def add(self, request: Request) -> None:
        """Put a request, already validated, at the end of the queue."""
        assert request.request_id not in self._id_to_state, request.request_id
        self._id_to_state[request.request_id] = None
        self._waiting.append(request)

    def cancel(self, request_id: int) -> None:
        """End a request now; its update comes with the next commit. Unknown ids are no error."""
        if request_id not in self._id_to_state:
            return
        state = self._id_to_state[request_id]
        if state is None:
            self._waiting = deque(r for r in self._waiting if r.request_id != request_id)
            del self._id_to_state[request_id]
            self._ended.append(TokenUpdate(request_id, (), FinishReason.CANCELLED))
            return
        state.is_cancelled = True
        # The executor may be writing to the blocks of a step in flight: free them at its commit.
        if self._plan is None:
            self._ended.append(TokenUpdate(request_id, (), FinishReason.CANCELLED))
            self._drop_ended([state])

    def plan(self) -> StepPlan:
        """Make the next step; empty when no request can advance."""
        assert self._plan is None, "the previous step was not committed"
        self._admit()
        batch = self.latest = MicroBatch(self._limits, self._pool)
        batch.add_generation(self._generation)
        batch.add_context(self._context)
        plan = batch.plan()
        if plan.entries:
            self._plan = plan
        return plan

    def commit(self, result: StepResult) -> list[TokenUpdate]:
        """Take in the result of the latest plan; tell each request's new tokens and end."""
        updates, self._ended = self._ended, []
        if self._plan is None:
            return updates
        ended: list[RequestState] = []
        drawn = iter(result.sampled_tokens)
        for state, entry in zip(self.latest.states, self._plan.entries, strict=True):
            state.num_computed += len(entry.tokens)
            token = next(drawn) if entry.samples else None
            if state.is_cancelled:
                update = TokenUpdate(entry.request_id, (), FinishReason.CANCELLED)
            elif token is None:
                continue
            else:
                update = state.advance(token)
            updates.append(update)
            if update.finish_reason is not FinishReason.NOT_FINISHED:
                ended.append(state)
            elif len(state.output_tokens) == 1:
                self._generation.append(state)
        assert next(drawn, None) is None, "more tokens were drawn than asked for"
        self._plan = None
        if ended or self.latest.num_context_requests:
            self._context = [s for s in self._context if s.num_context_left]
            self._drop_ended(ended)
        # Active requests outside of the plan may have been cancelled while it was in flight.
        self._drop_cancelled(updates)
        return updates

    def check(self) -> None:
        """Recompute every invariant from scratch."""
        self._pool.check()
        active = self._context + self._generation
        assert len(active) <= self._max_active, "too many active requests"
        ids = [s.request.request_id for s in active] + [r.request_id for r in self._waiting]
        assert len(ids) == len(set(ids)) and set(ids) == set(self._id_to_state), "request lost"
        assert self._pool.num_used == sum(len(s.table.blocks) for s in active), "blocks lost"
        for state in active:
            request = state.request
            assert self._id_to_state[request.request_id] is state
            assert (
                self._pool.blocks_for(len(request.prompt_tokens) + request.max_new_tokens)
                == len(state.table.blocks) + state.table.num_promised
            )
            assert len(state.output_tokens) < request.max_new_tokens
            assert state.num_computed <= len(state.table.blocks) * self._pool.tokens_per_block
        for state in self._generation:
            assert state.num_computed == state.num_known - 1, "one token is to be computed"
        for state in self._context:
            assert not state.output_tokens and state.num_context_left > 0

    def _admit(self) -> None:
        while self._waiting and self.num_active < self._max_active:
            request = self._waiting[0]
            table = self._pool.open(len(request.prompt_tokens) + request.max_new_tokens)
            if table is None:
                return
            self._waiting.popleft()
            state = RequestState(request, table)
            self._id_to_state[request.request_id] = state
            self._context.append(state)

    def _drop_cancelled(self, updates: list[TokenUpdate]) -> None:
        cancelled = [s for s in self._context if s.is_cancelled]
        for state in cancelled:
            request_id = state.request.request_id
            updates.append(TokenUpdate(request_id, (), FinishReason.CANCELLED))
        self._drop_ended(cancelled)

    def _drop_ended(self, ended: list[RequestState]) -> None:
        if not ended:
            return
        for state in ended:
            self._pool.close(state.table)
            del self._id_to_state[state.request.request_id]
        gone = set(map(id, ended))
        self._generation = [s for s in self._generation if id(s) not in gone]
        self._context = [s for s in self._context if id(s) not in gone]
