"""Schedules of small workloads, written out by hand."""

from __future__ import annotations

import pytest

from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.request import FinishReason, Request
from tidemill.runtime.scheduler import Scheduler
from tidemill.runtime.simulation import Iteration, SimulatedRequest, simulate
from tidemill.runtime.step import EngineLimits, StepResult


def limits(**changes: int) -> EngineLimits:
    values = {
        "max_batch_size": 4,
        "max_num_tokens": 16,
        "max_seq_len": 64,
        "max_input_len": 63,
        "tokens_per_block": 4,
        "num_blocks": 16,
        "vocab_size": 97,
    }
    return EngineLimits(**{**values, **changes})


def context(iterations: list[Iteration]) -> list[tuple[tuple[int, int], ...]]:
    return [iteration.context for iteration in iterations]


def generation(iterations: list[Iteration]) -> list[tuple[int, ...]]:
    return [iteration.generation for iteration in iterations]


def test_one_request_is_one_context_step_and_then_a_token_a_step() -> None:
    iterations = simulate([SimulatedRequest(5, 3)], limits())
    assert context(iterations) == [((0, 5),), (), ()]
    assert generation(iterations) == [(), (0,), (0,)]
    assert [iteration.ended for iteration in iterations] == [(), (), (0,)]


def test_one_token_request_never_generates() -> None:
    (iteration,) = simulate([SimulatedRequest(1, 1)], limits())
    assert iteration.context == ((0, 1),) and iteration.ended == (0,)
    assert iteration.used_blocks == 0


def test_end_token_ends_a_request_early_and_frees_its_blocks() -> None:
    iterations = simulate([SimulatedRequest(5, 30, output_length=2)], limits())
    assert [iteration.ended for iteration in iterations] == [(), (), (0,)]
    assert iterations[-1].used_blocks == 0


def test_long_prompt_is_cut_on_block_borders_except_its_last_chunk() -> None:
    iterations = simulate([SimulatedRequest(37, 1)], limits(max_num_tokens=14))
    assert context(iterations) == [((0, 12),), ((0, 12),), ((0, 13),)]


@pytest.mark.parametrize("max_num_tokens", [1, 2, 3])
def test_steps_smaller_than_a_block_still_advance(max_num_tokens: int) -> None:
    iterations = simulate([SimulatedRequest(7, 2)], limits(max_num_tokens=max_num_tokens))
    assert sum(length for (entry,) in context(iterations)[:-1] for length in entry[1:]) == 7


def test_generation_goes_first_and_context_fills_the_rest_of_the_step() -> None:
    requests = [SimulatedRequest(4, 4), SimulatedRequest(30, 2, arrival_step=1)]
    iterations = simulate(requests, limits(max_num_tokens=9))
    assert generation(iterations)[:4] == [(), (0,), (0,), (0,)]
    assert context(iterations)[:4] == [((0, 4),), ((1, 8),), ((1, 8),), ((1, 8),)]


def test_short_prompts_share_a_step_in_order_of_arrival() -> None:
    requests = [SimulatedRequest(3, 1), SimulatedRequest(5, 1), SimulatedRequest(9, 1)]
    iterations = simulate(requests, limits(max_num_tokens=12))
    assert context(iterations) == [((0, 3), (1, 5), (2, 4)), ((2, 5),)]


def test_batch_size_bounds_the_active_requests() -> None:
    requests = [SimulatedRequest(1, 3) for _ in range(5)]
    iterations = simulate(requests, limits(max_batch_size=2))
    assert max(len(i.context) + len(i.generation) for i in iterations) == 2
    assert [i.ended for i in iterations if i.ended] == [(0, 1), (2, 3), (4,)]


def test_request_waits_until_its_whole_life_fits_into_the_cache() -> None:
    requests = [SimulatedRequest(4, 8), SimulatedRequest(4, 8), SimulatedRequest(1, 1)]
    iterations = simulate(requests, limits(num_blocks=5))
    # 3 blocks are promised to the first; the second needs 3 of 2, and the third does not overtake.
    first_end = next(i.step for i in iterations if 0 in i.ended)
    assert all(i.context in ((), ((0, 4),)) for i in iterations if i.step <= first_end)
    assert iterations[first_end + 1].context == ((1, 4), (2, 1))


def test_request_of_exactly_the_whole_cache_runs() -> None:
    iterations = simulate([SimulatedRequest(60, 4)], limits(max_seq_len=64, num_blocks=16))
    assert iterations[-1].ended == (0,)


def test_token_budget_under_the_batch_size_starves_nobody() -> None:
    requests = [SimulatedRequest(1, 5) for _ in range(4)]
    iterations = simulate(requests, limits(max_num_tokens=2))
    assert [i.ended for i in iterations if i.ended] == [(0, 1), (2, 3)]


def scheduler_with_one_request() -> tuple[Scheduler, BlockPool]:
    pool = BlockPool(16, 4)
    scheduler = Scheduler(limits(), pool)
    scheduler.add(Request(1, (5, 6, 7), max_new_tokens=4))
    return scheduler, pool


def test_cancel_before_admission_ends_the_request_without_a_step() -> None:
    scheduler, pool = scheduler_with_one_request()
    scheduler.cancel(1)
    assert not scheduler.plan().entries
    (update,) = scheduler.commit(StepResult(()))
    assert update.finish_reason is FinishReason.CANCELLED
    assert pool.num_available == 16 and not scheduler.has_work


def test_cancel_during_a_step_keeps_the_blocks_until_its_commit() -> None:
    scheduler, pool = scheduler_with_one_request()
    scheduler.plan()
    scheduler.cancel(1)
    scheduler.cancel(1)
    assert pool.num_used == 1
    (update,) = scheduler.commit(StepResult((9,)))
    assert update.finish_reason is FinishReason.CANCELLED and update.new_tokens == ()
    assert pool.num_available == 16 and not scheduler.has_work


def test_cancel_during_a_step_of_a_request_outside_of_it_ends_it_at_the_commit() -> None:
    pool = BlockPool(16, 4)
    scheduler = Scheduler(limits(max_num_tokens=4), pool)
    scheduler.add(Request(1, (5,) * 4, max_new_tokens=4))
    scheduler.add(Request(2, (5,) * 4, max_new_tokens=4))
    assert [entry.request_id for entry in scheduler.plan().entries] == [1]
    scheduler.cancel(2)
    updates = scheduler.commit(StepResult((9,)))
    assert [update.request_id for update in updates] == [1, 2]
    scheduler.check()
    assert pool.num_available == 14


def test_cancel_between_steps_frees_at_once() -> None:
    scheduler, pool = scheduler_with_one_request()
    scheduler.plan()
    scheduler.commit(StepResult((9,)))
    scheduler.cancel(1)
    assert pool.num_available == 16 and scheduler.has_work
    scheduler.plan()
    (update,) = scheduler.commit(StepResult(()))
    assert update.finish_reason is FinishReason.CANCELLED and not scheduler.has_work


def test_cancel_of_an_unknown_request_is_no_error() -> None:
    scheduler, _ = scheduler_with_one_request()
    scheduler.cancel(77)
    scheduler.check()


def test_decode_entries_share_the_block_table_object() -> None:
    scheduler, _ = scheduler_with_one_request()
    first = scheduler.plan().entries[0]
    scheduler.commit(StepResult((9,)))
    second = scheduler.plan().entries[0]
    assert second.block_table is first.block_table
    assert second.tokens == (9,) and second.start == 3
