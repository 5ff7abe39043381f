"""What an attention window frees, promises, and lets be found; simulation alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.test_block_reuse import LIMITS, Bench, prompt
from tidemill.base.errors import InvalidRequestError
from tidemill.runtime.config import CapacityPolicy, RuntimeConfig
from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.kvcache.block_span import NO_BLOCK, BlockSpan
from tidemill.runtime.request import Request
from tidemill.runtime.validate_request import most_tokens

WINDOWED = replace(LIMITS, max_seq_len=400, max_input_len=399, vocab_size=500, attention_window=9)


@pytest.mark.parametrize("unit", [1, 4, 7])
@pytest.mark.parametrize("window", [1, 2, 4, 9, 30])
def test_most_blocks_is_what_the_worst_position_needs(unit: int, window: int) -> None:
    span = BlockSpan(unit, window)
    for step_tokens in (1, 3, 8):
        for num_tokens in (step_tokens, 17, 50):
            held = [
                span.blocks_for(min(num_tokens, at + step_tokens)) - span.first_needed(at)
                for at in range(num_tokens)
            ]
            most = span.most_blocks(num_tokens, 0, step_tokens)
            assert max(held) <= most
            assert num_tokens < window + step_tokens + unit or max(held) == most


def test_blocks_that_left_the_window_are_free_while_the_request_runs() -> None:
    bench = Bench(limits=replace(WINDOWED, max_num_tokens=32))
    request = Request(1, prompt(100), 80)
    bench.executor.expect(request)
    bench.loop.submit(request)
    used = []
    while bench.loop.has_work:
        bench.loop.step()
        bench.loop.check()
        used.append(bench.loop.stats().used_blocks)
    # A chunk of 32 tokens leaves the 8 behind that its successor sees.
    assert used[:3] == [2, 2, 2] and set(used[3:-1]) == {2, 3}
    assert used[-1] == 0


def test_sequence_longer_than_the_pool_is_served_and_one_that_never_fits_is_refused() -> None:
    bench = Bench(limits=replace(WINDOWED, num_blocks=5, max_num_tokens=9))
    updates = bench.run(Request(1, prompt(200), 150))
    assert sum(len(update.new_tokens) for update in updates) == 150
    tight = Bench(limits=replace(WINDOWED, num_blocks=5, max_num_tokens=10))
    with pytest.raises(InvalidRequestError, match="key-value cache"):
        tight.run(Request(1, prompt(200), 150))


@pytest.mark.parametrize("window", [None, 1, 9, 30])
def test_most_tokens_fit_and_one_more_does_not(window: int | None) -> None:
    for num_blocks in range(1, 12):
        limits = replace(LIMITS, num_blocks=num_blocks, max_num_tokens=7, attention_window=window)
        span = BlockSpan(limits.tokens_per_block, window)
        fitting = [
            total
            for total in range(1, limits.max_seq_len + 1)
            if span.most_blocks(total, 0, min(total, 7)) <= num_blocks
        ]
        assert fitting == list(range(1, most_tokens(limits) + 1))


@pytest.mark.parametrize("policy", list(CapacityPolicy))
def test_requests_that_share_blocks_can_all_leave_them(policy: CapacityPolicy) -> None:
    bench = Bench(RuntimeConfig(policy), replace(WINDOWED, num_blocks=9, max_num_tokens=12))
    bench.run(Request(0, prompt(9), 1))
    bench.run(*(Request(index, prompt(9), 40) for index in range(1, 5)))


def test_what_the_window_of_a_prompt_sees_is_found_when_its_beginning_is_overwritten() -> None:
    bench = Bench(RuntimeConfig(enable_partial_reuse=False), limits=WINDOWED)
    bench.run(Request(1, prompt(60), 1))
    # 15 full blocks are cached in a pool of 16; the oldest 5 make room for another request.
    bench.run(Request(2, (1,) * 17, 1))
    before = bench.loop.stats()
    assert bench.num_computed(Request(3, prompt(63), 1)) == 3
    assert bench.loop.stats().reused_blocks - before.reused_blocks == 2


def test_request_statistics_leave_out_blocks_skipped_at_admission() -> None:
    bench = Bench(limits=WINDOWED)
    bench.run(Request(1, prompt(60), 1))
    request = Request(2, prompt(60), 2)
    bench.executor.expect(request)
    bench.loop.submit(request)
    bench.loop.step()
    (stats,) = bench.loop.request_stats()
    # Two of the prompt's that its last position sees, and one for that position.
    assert stats.to_json()["allocTotalBlocksPerRequest"] == 3
    while bench.loop.has_work:
        bench.loop.step()
    assert stats.metrics.num_allocated_blocks == 4, "and one for the second token"


def test_table_keeps_its_places_and_the_old_list_when_blocks_leave() -> None:
    pool = BlockPool(8, 4, window=5)
    table = pool.open(40, step_tokens=4)
    assert table is not None and table.num_promised == 3
    pool.grow(table, 8)
    shown = table.blocks
    pool.slide(table, 8, 40, 4)
    pool.check()
    assert table.blocks == [NO_BLOCK, shown[1]] and NO_BLOCK not in shown
    assert (pool.num_used, table.num_promised) == (1, 2)
