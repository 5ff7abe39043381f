"""Random arrivals, cancellations and tiny pools against a brute-force oracle.

The oracle computes each request's tokens alone, from its prompt, with the same answer function
and no cache, no batch and no scheduler. Invariants are recomputed after every step.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tidemill.base.errors import InvalidRequestError
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import FinishReason, Request, TokenUpdate
from tidemill.runtime.simulation import FakeExecutor, digest_answer
from tidemill.runtime.step import EngineLimits, StepPlan, StepResult

STEPS_PER_SEED = 400


def tokens_alone(request: Request, vocab_size: int) -> tuple[list[int], FinishReason]:
    answer = digest_answer(vocab_size)
    tokens = list(request.prompt_tokens)
    output: list[int] = []
    while len(output) < request.max_new_tokens:
        token = answer(request.request_id, tokens)
        if token in request.end_ids:
            return output, FinishReason.END_ID
        tokens.append(token)
        output.append(token)
    return output, FinishReason.LENGTH


class InterruptedExecutor(FakeExecutor):
    """Calls back in the middle of every step, between its plan and its commit."""

    def __init__(self, limits: EngineLimits, interrupt: Callable[[], None]) -> None:
        super().__init__(limits)
        self._interrupt = interrupt

    def execute(self, plan: StepPlan) -> StepResult:
        self._interrupt()
        result = super().execute(plan)
        self._interrupt()
        return result


class Workload:
    """Feeds a loop at random and compares what comes out with the oracle."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        draw = self.random.choice
        tokens_per_block = draw([1, 2, 3, 7, 16])
        num_blocks = draw([2, 5, 13, 64]) if tokens_per_block == 1 else draw([1, 2, 5, 13, 64])
        capacity = tokens_per_block * num_blocks
        self.limits = EngineLimits(
            max_batch_size=draw([1, 2, 3, 8, 31]),
            max_num_tokens=draw([1, 2, 5, 16, 17, 33]),
            max_seq_len=max(2, draw([capacity, capacity + 1, capacity // 2, 11])),
            max_input_len=draw([1, 5, 16, 31]),
            tokens_per_block=tokens_per_block,
            num_blocks=num_blocks,
            vocab_size=draw([2, 5, 23]),
        )
        self.loop = Loop(InterruptedExecutor(self.limits, self.cancel_some))
        self.requests: dict[int, Request] = {}
        self.outputs: dict[int, list[int]] = {}
        self.cancelled: set[int] = set()
        self.num_ended = 0

    def random_request(self, request_id: int) -> Request:
        longest = min(self.limits.max_input_len + 1, self.limits.max_seq_len)
        length = self.random.randint(0, longest)
        prompt = tuple(self.random.randrange(self.limits.vocab_size) for _ in range(length))
        return Request(
            request_id,
            prompt,
            max_new_tokens=self.random.randint(1, max(1, self.limits.max_seq_len - length)),
            end_ids=self.random.choice([(), (0,), (0, 1)]),
        )

    def arrive(self, request_id: int) -> None:
        request = self.random_request(request_id)
        try:
            self.loop.submit(request)
        except InvalidRequestError:
            return
        self.requests[request_id] = request
        self.outputs[request_id] = []

    def cancel_some(self) -> None:
        if self.requests and self.random.random() < 0.05:
            request_id = self.random.choice(list(self.requests))
            self.loop.cancel(request_id)
            self.cancelled.add(request_id)

    def take(self, update: TokenUpdate) -> None:
        request_id = update.request_id
        assert request_id in self.requests, "an update for a request that has ended"
        self.outputs[request_id].extend(update.new_tokens)
        if update.finish_reason is FinishReason.NOT_FINISHED:
            assert len(update.new_tokens) == 1
            return
        output = self.outputs.pop(request_id)
        expected, reason = tokens_alone(self.requests.pop(request_id), self.limits.vocab_size)
        self.num_ended += 1
        if update.finish_reason is FinishReason.CANCELLED:
            assert request_id in self.cancelled
            assert output == expected[: len(output)]
        else:
            assert (output, update.finish_reason) == (expected, reason)


@pytest.mark.parametrize("seed", range(40))
def test_random_workload_gives_each_request_its_tokens_alone(seed: int) -> None:
    workload = Workload(seed)
    for step in range(STEPS_PER_SEED):
        while workload.random.random() < 0.3:
            workload.arrive(step * 1000 + workload.random.randrange(1000))
        workload.cancel_some()
        for update in workload.loop.step():
            workload.take(update)
        workload.loop.check()
    while workload.loop.has_work:
        for update in workload.loop.step():
            workload.take(update)
        workload.loop.check()
    assert not workload.requests, "requests were lost"
    stats = workload.loop.stats()
    assert stats.used_blocks == 0 and stats.num_active_requests == 0
    assert workload.num_ended > 0
