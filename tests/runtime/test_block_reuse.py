"""What the cache finds again: by content only, only what was computed, never the last token."""

from __future__ import annotations

import random

import pytest

from tests.runtime.watchful_executor import WatchfulExecutor, tokens_alone
from tidemill.runtime.active_requests import ActiveRequests
from tidemill.runtime.config import CapacityPolicy, RuntimeConfig
from tidemill.runtime.kvcache.retention import KvCacheRetention, TokenRangeRetention
from tidemill.runtime.loop import Loop
from tidemill.runtime.observation import OutputWishes
from tidemill.runtime.request import Request, TokenUpdate
from tidemill.runtime.request_state import RequestState
from tidemill.runtime.step import EngineLimits

LIMITS = EngineLimits(
    max_batch_size=4,
    max_num_tokens=64,
    max_seq_len=64,
    max_input_len=63,
    tokens_per_block=4,
    num_blocks=16,
    vocab_size=97,
)


class Bench:
    """A loop that watches, and says what one request after another computed."""

    def __init__(self, config: RuntimeConfig | None = None, limits: EngineLimits = LIMITS) -> None:
        self.now = 0.0
        self.executor = WatchfulExecutor(limits)
        self.loop = Loop(self.executor, config or RuntimeConfig(), lambda: self.now)

    def run(self, *requests: Request) -> list[TokenUpdate]:
        for request in requests:
            self.executor.expect(request)
            self.loop.submit(request)
        updates = []
        while self.loop.has_work:
            updates += self.loop.step()
            self.loop.check()
        return updates

    def num_computed(self, request: Request) -> int:
        """Run a request and count the prompt tokens that it had to compute."""
        before = self.loop.stats().total_prompt_tokens
        self.run(request)
        return self.loop.stats().total_prompt_tokens - before


def prompt(length: int, *tail: int) -> tuple[int, ...]:
    return (*(5 + i for i in range(length - len(tail))), *tail)


@pytest.mark.parametrize(
    ("length", "num_computed"),
    [(1, 1), (3, 1), (4, 1), (5, 1), (8, 1), (9, 1), (10, 1), (13, 1), (14, 2)],
)
def test_same_prompt_again_computes_what_is_left_of_a_block_and_its_last_token(
    length: int, num_computed: int
) -> None:
    bench = Bench()
    bench.run(Request(1, prompt(13), 1))
    assert bench.num_computed(Request(2, prompt(length), 1)) == num_computed


def test_block_that_is_not_full_is_never_found() -> None:
    bench = Bench()
    bench.run(Request(1, prompt(3), 1))
    assert bench.num_computed(Request(2, prompt(3), 1)) == 3


def test_partial_reuse_copies_the_block_and_leaves_the_original_alone() -> None:
    bench = Bench()
    bench.run(Request(1, prompt(8), 1))
    assert bench.num_computed(Request(2, prompt(8, 90, 91), 1)) == 2
    assert bench.executor.num_copies == 1
    assert bench.num_computed(Request(3, prompt(8), 1)) == 1


def test_partial_reuse_can_be_switched_off() -> None:
    bench = Bench(RuntimeConfig(enable_partial_reuse=False))
    bench.run(Request(1, prompt(8), 1))
    assert bench.num_computed(Request(2, prompt(8, 90, 91), 1)) == 4


def test_reuse_can_be_switched_off() -> None:
    bench = Bench(RuntimeConfig(enable_block_reuse=False))
    bench.run(Request(1, prompt(8), 1))
    assert bench.num_computed(Request(2, prompt(8), 1)) == 8


@pytest.mark.parametrize("config", [RuntimeConfig(), RuntimeConfig(CapacityPolicy.STATIC_BATCH)])
def test_prompt_that_is_to_be_seen_is_computed_whole(config: RuntimeConfig) -> None:
    bench = Bench(config)
    bench.run(Request(1, prompt(9), 1))
    wishes = OutputWishes(num_prompt_logprobs=0)
    assert bench.num_computed(Request(2, prompt(9), 1, wishes=wishes)) == 9
    assert bench.num_computed(Request(3, prompt(9), 1)) == 1


def test_generated_tokens_are_found_by_a_prompt_that_continues_them() -> None:
    bench = Bench()
    first = Request(1, prompt(6), 7)
    bench.run(first)
    output, _ = tokens_alone(first, LIMITS)
    # The last token was drawn, not computed: 12 of 13 positions are in the cache.
    assert bench.num_computed(Request(2, (*prompt(6), *output, 3), 1)) == 2


@pytest.mark.parametrize(
    "other", [Request(2, prompt(9), 1, cache_salt="b"), Request(2, prompt(9), 1, lora_id=7)]
)
def test_other_salt_or_adapter_shares_nothing(other: Request) -> None:
    bench = Bench()
    bench.run(Request(1, prompt(9), 1, cache_salt="a"))
    assert bench.num_computed(other) == 9
    assert bench.num_computed(Request(3, prompt(9), 1, cache_salt="a")) == 1


def test_same_block_after_another_beginning_is_not_found() -> None:
    bench = Bench()
    bench.run(Request(1, (1, 2, 3, 4, 5, 6, 7, 8, 9), 1))
    assert bench.num_computed(Request(2, (9, 9, 9, 9, 5, 6, 7, 8, 9), 1)) == 9


def test_request_waits_for_the_prefix_that_another_is_computing() -> None:
    bench = Bench()
    bench.run(Request(1, prompt(20), 1), Request(2, prompt(20), 1), Request(3, prompt(20, 90), 1))
    stats = bench.loop.stats()
    # 20, then the last token of the second, then the last of the third behind a copied block.
    assert stats.total_prompt_tokens == 20 + 1 + 1
    assert stats.iteration == 2


def test_counters_say_what_was_allocated_reused_and_missed() -> None:
    bench = Bench()
    bench.run(Request(1, prompt(13), 1))
    counters = bench.loop.cache_counters
    assert (counters.alloc_total, counters.alloc_new) == (4, 4)
    assert (counters.reused, counters.missed) == (0, 3)
    bench.run(Request(2, prompt(13, 90, 91, 92), 1))
    assert (counters.alloc_total, counters.alloc_new) == (8, 6)
    assert (counters.reused, counters.missed) == (3, 3)


def fill_with_others(bench: Bench, num_blocks: int, first: int = 0) -> None:
    for index in range(first, first + num_blocks):
        bench.run(Request(100 + index, (50 + index, 1, 2, 3), 1))


def test_least_recently_used_blocks_are_overwritten_first() -> None:
    bench = Bench()
    bench.run(Request(1, prompt(9), 1))
    bench.run(Request(2, (9, *prompt(8)), 1))
    fill_with_others(bench, 12)
    assert bench.num_computed(Request(3, prompt(9), 1)) == 1
    fill_with_others(bench, 9, first=20)
    assert bench.num_computed(Request(4, (9, *prompt(8)), 1)) == 9
    assert bench.num_computed(Request(5, prompt(9), 1)) == 1


def retained(
    request_id: int, tokens: tuple[int, ...], *, priority: int, ms: float | None
) -> Request:
    ranges = (TokenRangeRetention(0, 4, priority, ms),)
    return Request(request_id, tokens, 1, retention=KvCacheRetention(ranges))


def test_high_priority_outlasts_use_and_low_priority_goes_first() -> None:
    bench = Bench()
    bench.run(retained(1, prompt(5), priority=90, ms=None))
    bench.run(retained(2, (50, 51, 52, 53, 54), priority=1, ms=None))
    bench.run(Request(3, (40, 41, 42, 43, 44), 1))
    fill_with_others(bench, 40)
    assert bench.num_computed(Request(4, prompt(5), 1)) == 1
    assert bench.num_computed(Request(5, (40, 41, 42, 43, 44), 1)) == 5


def test_retention_ends_with_its_duration() -> None:
    bench = Bench()
    bench.run(retained(1, prompt(5), priority=90, ms=1000))
    bench.now = 2.0
    for first in range(16):
        bench.run(Request(200 + first, (70 + first, 1, 2, 3), 1))
    assert bench.num_computed(Request(4, prompt(5), 1)) == 5


SECRETS = 6


def attack(seed: int) -> int:
    """Cancel among requests with shared beginnings, at any moment; returns the blocks reused."""
    draw = random.Random(seed)
    limits = EngineLimits(
        max_batch_size=4,
        max_num_tokens=draw.choice([3, 7, 16]),
        max_seq_len=64,
        max_input_len=63,
        tokens_per_block=draw.choice([2, 4, 8]),
        num_blocks=draw.choice([20, 40]),
        vocab_size=50,
        num_host_blocks=6 * (seed % 3),
        attention_window=12 if seed % 4 == 3 else None,
    )
    alive: list[int] = []

    def cancel_some() -> None:
        if alive and draw.random() < 0.4:
            loop.cancel(draw.choice(alive))

    executor = WatchfulExecutor(limits, cancel_some)
    loop = Loop(executor)
    shared = tuple(draw.randrange(50) for _ in range(24))
    for number in range(150):
        if draw.random() < 0.7:
            tail = tuple(draw.randrange(50) for _ in range(draw.randint(1, SECRETS)))
            request = Request(number, shared[: draw.randint(0, 24)] + tail, 3)
            executor.expect(request)
            loop.submit(request)
            alive.append(number)
        loop.step()
        loop.check()
    while loop.has_work:
        loop.step()
    return loop.cache_counters.reused


@pytest.mark.parametrize("seed", range(12))
def test_cancelled_prefill_never_shows_its_text_to_others(seed: int) -> None:
    assert attack(seed) > 20


def test_the_watch_sees_blocks_that_are_published_before_they_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave = ActiveRequests.leave

    def publish_all_and_leave(active: ActiveRequests, states: list[RequestState]) -> None:
        for state in states:
            state.name_blocks(active.pool.tokens_per_block)
            for index in range(min(len(state.table.blocks), len(state.keys) - 1)):
                if state.num_computed < (index + 1) * active.pool.tokens_per_block:
                    active.pool.publish(state.table, index, state.keys, state.tokens)
        leave(active, states)

    monkeypatch.setattr(ActiveRequests, "leave", publish_all_and_leave)
    with pytest.raises(AssertionError, match=r"another's text|reads unwritten"):
        for seed in range(40):
            attack(seed)
