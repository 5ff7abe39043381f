"""Random workloads on the fake executor, and the oracle that judges them.

Each seed draws an engine's shape, a runtime config and a stream of requests that share beginnings,
carry priorities and time-outs, and are cancelled at any moment. The oracle computes each request's
tokens alone, from its prompt, with no cache, no batch and no scheduler, and judges ends, order and
policy from events. Invariants are recomputed after every step. The whole run:

    python -m tests.runtime.workload 100000
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence

from tests.runtime.watchful_executor import WatchfulExecutor, tokens_alone
from tidemill.base.errors import InvalidRequestError, QueueFullError
from tidemill.runtime.config import CapacityPolicy, ChunkingPolicy, RuntimeConfig
from tidemill.runtime.events import EventKind
from tidemill.runtime.kvcache.retention import KvCacheRetention, TokenRangeRetention
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import FinishReason, Request, TokenUpdate
from tidemill.runtime.request_state import RequestState
from tidemill.runtime.step import EngineLimits

STEPS_PER_SEED = 400
SECONDS_PER_STEP = 0.01


def random_limits(draw: random.Random) -> EngineLimits:
    choice = draw.choice
    tokens_per_block = choice([1, 2, 3, 7, 16])
    num_blocks = choice([2, 5, 13, 64]) if tokens_per_block == 1 else choice([1, 2, 5, 13, 64])
    capacity = tokens_per_block * num_blocks
    return EngineLimits(
        max_batch_size=choice([1, 2, 3, 8, 31]),
        max_num_tokens=choice([1, 2, 5, 16, 17, 33]),
        max_seq_len=max(2, choice([capacity, capacity + 1, capacity // 2, 11])),
        max_input_len=choice([1, 5, 16, 31]),
        tokens_per_block=tokens_per_block,
        num_blocks=num_blocks,
        vocab_size=choice([2, 5, 23]),
        attention_window=choice([None, None, 1, 3, 8, 20]),
        num_host_blocks=choice([0, 0, 1, 2, 7, 40]),
    )


def random_config(draw: random.Random) -> RuntimeConfig:
    return RuntimeConfig(
        policy=draw.choice(list(CapacityPolicy)),
        chunking=draw.choice(list(ChunkingPolicy)),
        max_queue_size=draw.choice([0, 0, 3]),
        enable_block_reuse=draw.random() < 0.7,
        enable_partial_reuse=draw.random() < 0.7,
        max_draft_len=draw.choice([0, 0, 1, 4]),
        secondary_offload_min_priority=draw.choice([0, 30, 40]),
        event_buffer_max_size=100_000,
        max_step_ms=draw.choice([0.0, 0.01, 100.0]),
    )


class Workload:
    """Feeds a loop at random and compares what comes out with the oracle."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.limits = random_limits(self.random)
        self.config = random_config(self.random)
        self.now = 0.0
        self.executor = WatchfulExecutor(self.limits, self.cancel_some)
        drafter = self.guess if self.config.max_draft_len else None
        self.loop = Loop(self.executor, self.config, lambda: self.now, drafter)
        self.requests: dict[int, Request] = {}
        self.arrivals: dict[int, float] = {}
        self.outputs: dict[int, list[int]] = {}
        self.cancelled: set[int] = set()
        self.active: set[int] = set()
        self.num_ended = self.num_arrived = self.num_events = 0

    def step(self) -> None:
        """Let time pass and things happen, then advance and judge."""
        self.now += SECONDS_PER_STEP
        while self.random.random() < 0.3:
            self.arrive()
        self.cancel_some()
        self.advance()

    def finish(self) -> None:
        """Run what is left to its end."""
        while self.loop.has_work:
            self.now += SECONDS_PER_STEP
            self.advance()
        assert not self.requests, "requests were lost"
        stats = self.loop.stats()
        assert stats.used_blocks == 0 and stats.num_active_requests == 0

    def advance(self) -> None:
        before = self.loop.stats().iteration
        updates = self.loop.step()
        self.loop.check()
        assert updates or not self.loop.has_work or self.loop.stats().iteration > before, "stuck"
        self.judge_events()
        for update in updates:
            self.take(update)
        for request_id, request in self.requests.items():
            assert not self.is_overdue(request_id, request), "its time is over"

    def arrive(self) -> None:
        self.num_arrived += 1
        request = self.random_request(self.num_arrived)
        self.executor.expect(request)
        try:
            self.loop.submit(request)
        except InvalidRequestError:
            return
        except QueueFullError:
            # Requests that were paused wait there, too, whether there is room or not.
            assert self.loop.stats().num_queued_requests >= self.config.max_queue_size > 0
            return
        self.requests[request.request_id] = request
        self.arrivals[request.request_id] = self.now
        self.outputs[request.request_id] = []

    def random_request(self, request_id: int) -> Request:
        draw = self.random
        longest = min(self.limits.max_input_len + 1, self.limits.max_seq_len)
        length, vocab_size = draw.randint(0, longest), self.limits.vocab_size
        # Everybody's text begins with some of the same tokens, and goes on alone.
        num_shared = draw.choice([0, length // 2, length])
        shared = tuple(i * i % vocab_size for i in range(num_shared))
        own = tuple(draw.randrange(vocab_size) for _ in range(length - num_shared))
        retention = KvCacheRetention((TokenRangeRetention(0, None, draw.randint(0, 100), 50.0),))
        return Request(
            request_id,
            shared + own,
            max_new_tokens=draw.randint(1, max(1, self.limits.max_seq_len - length)),
            end_ids=draw.choice([(), (0,), (0, 1)]),
            priority=draw.choice([0.5, 0.5, 0.1, 1.0]),
            allotted_time_ms=draw.choice([None, None, 20.0, 200.0]),
            cache_salt=draw.choice(["", "", "other"]),
            retention=draw.choice([None, None, retention]),
            is_speculative=draw.random() < 0.8,
        )

    def guess(self, state: RequestState, num_tokens: int) -> Sequence[int]:
        """Guess right or wrong, at most so many tokens."""
        request = state.request
        assert request.is_speculative
        output, _ = tokens_alone(request, self.limits)
        right = output[state.num_output : state.num_output + self.random.randint(0, num_tokens)]
        return [t if self.random.random() < 0.7 else 0 for t in right]

    def cancel_some(self) -> None:
        if self.requests and self.random.random() < 0.05:
            request_id = self.random.choice(list(self.requests))
            self.loop.cancel(request_id)
            self.cancelled.add(request_id)

    def is_overdue(self, request_id: int, request: Request) -> bool:
        allotted = request.allotted_time_ms
        return allotted is not None and self.now >= self.arrivals[request_id] + allotted / 1e3

    def judge_events(self) -> None:
        """Judge who was admitted and paused by what each policy promises."""
        waiting = set(self.requests) - self.active
        had_active = bool(self.active)
        for event in self.loop.events_since(self.num_events):
            self.num_events = event.number
            if event.kind is EventKind.ADMITTED:
                self.judge_admission(event.request_id, waiting, had_active)
                self.active.add(event.request_id)
                waiting.discard(event.request_id)
            elif event.kind is EventKind.PAUSED:
                assert self.config.policy is CapacityPolicy.MAX_UTILIZATION
                self.active.remove(event.request_id)
                waiting.add(event.request_id)
            elif event.kind is EventKind.ENDED:
                self.active.discard(event.request_id)
                waiting.discard(event.request_id)
                had_active = bool(self.active)

    def judge_admission(self, request_id: int, waiting: set[int], had_active: bool) -> None:
        if self.config.policy is CapacityPolicy.STATIC_BATCH:
            assert not had_active, "joined a static batch"
        waits = self.config.enable_block_reuse and self.config.policy is not (
            CapacityPolicy.STATIC_BATCH
        )
        if not waits:
            first = min(waiting, key=lambda each: (-self.requests[each].priority, each))
            assert request_id == first, "admitted out of order"

    def take(self, update: TokenUpdate) -> None:
        request_id = update.request_id
        assert request_id in self.requests, "an update for a request that has ended"
        self.outputs[request_id].extend(update.new_tokens)
        if update.finish_reason is FinishReason.NOT_FINISHED:
            assert 1 <= len(update.new_tokens) <= 1 + self.config.max_draft_len
            return
        output, request = self.outputs.pop(request_id), self.requests.pop(request_id)
        expected, reason = tokens_alone(request, self.limits)
        self.num_ended += 1
        if update.finish_reason is FinishReason.CANCELLED:
            assert request_id in self.cancelled
            assert output == expected[: len(output)]
        elif update.finish_reason is FinishReason.TIMED_OUT:
            assert self.is_overdue(request_id, request)
            assert output == expected[: len(output)]
        else:
            assert (output, update.finish_reason) == (expected, reason)


def run_seed(seed: int, num_steps: int = STEPS_PER_SEED) -> Workload:
    """Run one workload to its end."""
    workload = Workload(seed)
    for _ in range(num_steps):
        workload.step()
    workload.finish()
    return workload


def main() -> None:
    num_steps, start, seed, num_ended = int(sys.argv[1]), time.monotonic(), 0, 0
    while seed * STEPS_PER_SEED < num_steps:
        try:
            num_ended += run_seed(seed).num_ended
        except BaseException:
            print(f"seed {seed}")
            raise
        seed += 1
    print(
        f"{seed * STEPS_PER_SEED} steps, {seed} workloads, {num_ended} requests ended,"
        f" {time.monotonic() - start:.0f} s: the oracle agrees"
    )


if __name__ == "__main__":
    main()
