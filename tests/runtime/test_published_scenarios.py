"""Schedules that TensorRT-LLM publishes, iteration by iteration, in our simulation.

Source: its guide to max_batch_size and max_num_tokens, and the scenarios of its capacity scheduler
and micro-batch scheduler tests, whose names are given. A scenario (a, b) there means iterations
a <= i < b.
"""

from __future__ import annotations

import pytest

from tidemill.runtime.config import CapacityPolicy, ChunkingPolicy, RuntimeConfig
from tidemill.runtime.simulation import Iteration, SimulatedRequest, simulate
from tidemill.runtime.step import EngineLimits

ALL_POLICIES = list(CapacityPolicy)
MAX_UTILIZATION = CapacityPolicy.MAX_UTILIZATION


def limits(num_tokens: int, *, batch: int = 2, max_num_tokens: int = 1000) -> EngineLimits:
    return EngineLimits(batch, max_num_tokens, 1000, 1000, 10, num_tokens // 10, 97)


def scheduled(iteration: Iteration) -> set[int]:
    return {*iteration.generation, *(index for index, _ in iteration.context)}


def spans(iterations: list[Iteration]) -> list[tuple[int, int, set[int]]]:
    """Join iterations with the same requests: (first, last + 1, requests)."""
    joined: list[tuple[int, int, set[int]]] = []
    for index, iteration in enumerate(iterations):
        if joined and joined[-1][2] == scheduled(iteration):
            joined[-1] = (joined[-1][0], index + 1, joined[-1][2])
        else:
            joined.append((index, index + 1, scheduled(iteration)))
    return joined


@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_simple_should_fit(policy: CapacityPolicy) -> None:
    iterations = simulate([SimulatedRequest(10, 80)] * 2, limits(200), RuntimeConfig(policy))
    assert spans(iterations) == [(0, 80, {0, 1})]


@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_simple_should_fit_in_chunk(policy: CapacityPolicy) -> None:
    config = RuntimeConfig(policy, ChunkingPolicy.EQUAL_PROGRESS)
    iterations = simulate([SimulatedRequest(50, 40)] * 2, limits(200, max_num_tokens=40), config)
    assert [each.context for each in iterations[:3]] == [
        ((0, 20), (1, 20)),
        ((0, 20), (1, 20)),
        ((0, 10), (1, 10)),
    ]
    assert spans(iterations) == [(0, 42, {0, 1})]


def test_simple_doesnt_fit_max_utilization() -> None:
    config = RuntimeConfig(MAX_UTILIZATION)
    iterations = simulate([SimulatedRequest(10, 80)] * 2, limits(100), config)
    assert spans(iterations) == [(0, 41, {0, 1}), (41, 80, {0}), (80, 119, {1})]
    assert iterations[41].paused == (1,)
    assert iterations[80].admitted == (1,)


def test_simple_doesnt_fit_priorities() -> None:
    requests = [SimulatedRequest(10, 80), SimulatedRequest(10, 80, priority=0.6)]
    iterations = simulate(requests, limits(100), RuntimeConfig(MAX_UTILIZATION))
    assert spans(iterations) == [(0, 41, {0, 1}), (41, 80, {1}), (80, 119, {0})]


def test_simple_doesnt_fit_priorities_without_eviction() -> None:
    requests = [SimulatedRequest(10, 80), SimulatedRequest(10, 80, priority=0.6)]
    assert spans(simulate(requests, limits(100))) == [(0, 80, {1}), (80, 160, {0})]


def test_simple_doesnt_fit_max_utilization_in_chunk() -> None:
    config = RuntimeConfig(MAX_UTILIZATION, ChunkingPolicy.EQUAL_PROGRESS)
    iterations = simulate([SimulatedRequest(30, 60)] * 2, limits(100, max_num_tokens=48), config)
    assert spans(iterations) == [(0, 22, {0, 1}), (22, 61, {0}), (61, 100, {1})]


def test_simple_doesnt_fit_max_utilization_in_chunked_cache() -> None:
    config = RuntimeConfig(MAX_UTILIZATION)
    iterations = simulate([SimulatedRequest(70, 20)] * 2, limits(100, max_num_tokens=40), config)
    assert spans(iterations) == [(0, 21, {0}), (21, 42, {1})]
    assert [each.context for each in iterations[:2]] == [((0, 40),), ((0, 30),)]


def test_simple_doesnt_fit_guaranteed_completion() -> None:
    iterations = simulate([SimulatedRequest(10, 80)] * 2, limits(100))
    assert spans(iterations) == [(0, 80, {0}), (80, 160, {1})]


def test_simple_doesnt_fit_guaranteed_completion_in_chunk() -> None:
    iterations = simulate([SimulatedRequest(30, 60)] * 2, limits(100, max_num_tokens=20))
    assert spans(iterations) == [(0, 61, {0}), (61, 122, {1})]


def test_requests_sorted_by_priorities() -> None:
    priorities = [0.5, 0.5, 0.6, 0.6, 0.6, 1.0, 0.3, 0.3, 0.3, 0.6, 1.0, 0.5]
    requests = [SimulatedRequest(10, 1, priority=priority) for priority in priorities]
    iterations = simulate(requests, limits(100, batch=1))
    assert [each.context[0][0] for each in iterations] == [5, 10, 2, 3, 4, 9, 0, 1, 11, 6, 7, 8]


def test_simple_max_num_tokens() -> None:
    config = RuntimeConfig(chunking=ChunkingPolicy.OFF)
    requests = [SimulatedRequest(10, 10)] * 4
    iterations = simulate(requests, limits(200, batch=4, max_num_tokens=12), config)
    assert spans(iterations) == [
        (0, 1, {0}),
        (1, 2, {0, 1}),
        (2, 10, {0, 1, 2}),
        (10, 11, {1, 2, 3}),
        (11, 12, {2, 3}),
        (12, 20, {3}),
    ]


def test_guide_to_max_num_tokens_prompts_that_do_not_fit_wait() -> None:
    config = RuntimeConfig(chunking=ChunkingPolicy.OFF)
    requests = [SimulatedRequest(length, 5) for length in (5, 5, 5, 3, 6)]
    iterations = simulate(requests, limits(200, batch=4, max_num_tokens=12), config)
    # Two prompts of 5 leave 2 of 12 tokens: nobody else fits.
    assert iterations[0].context == ((0, 5), (1, 5))
    # Generation first: 2 tokens, then the prompts of 5 and 3; the batch of 4 is full.
    assert iterations[1].generation == (0, 1) and iterations[1].context == ((2, 5), (3, 3))
    assert iterations[2].generation == (0, 1, 2, 3) and iterations[2].context == ()
    # The first two end, and the last prompt joins in the next iteration.
    assert iterations[4].ended == (0, 1)
    assert iterations[5].generation == (2, 3) and iterations[5].context == ((4, 6),)


def test_static_batch_waits_for_the_whole_batch() -> None:
    requests = [SimulatedRequest(10, 5), SimulatedRequest(10, 9), SimulatedRequest(10, 2)]
    iterations = simulate(requests, limits(200), RuntimeConfig(CapacityPolicy.STATIC_BATCH))
    assert spans(iterations) == [(0, 5, {0, 1}), (5, 9, {1}), (9, 11, {2})]


def test_waiting_request_displaces_a_running_one_of_lower_priority_under_max_utilization() -> None:
    requests = [
        SimulatedRequest(10, 20),
        SimulatedRequest(10, 20, priority=0.4),
        SimulatedRequest(10, 5, priority=0.9, arrival_step=3),
    ]
    iterations = simulate(requests, limits(200), RuntimeConfig(MAX_UTILIZATION))
    assert iterations[3].paused == (1,) and iterations[3].admitted == (2,)
    assert iterations[8].admitted == (1,)
    without = simulate(requests, limits(200))
    assert not any(iteration.paused for iteration in without)
    assert next(each.step for each in without if 2 in each.admitted) == 20


def test_request_of_equal_priority_displaces_nobody() -> None:
    requests = [SimulatedRequest(10, 20)] * 2 + [SimulatedRequest(10, 5, arrival_step=3)]
    iterations = simulate(requests, limits(200), RuntimeConfig(MAX_UTILIZATION))
    assert not any(iteration.paused for iteration in iterations)


def test_first_come_first_served_and_equal_progress_cut_differently() -> None:
    requests = [SimulatedRequest(50, 1), SimulatedRequest(30, 1)]
    first_come = simulate(requests, limits(200, max_num_tokens=40))
    assert [each.context for each in first_come] == [((0, 40),), ((0, 10), (1, 30))]
    config = RuntimeConfig(chunking=ChunkingPolicy.EQUAL_PROGRESS)
    equal = simulate(requests, limits(200, max_num_tokens=40), config)
    assert [each.context for each in equal] == [((0, 20), (1, 20)), ((0, 30), (1, 10))]


def test_drafts_use_the_rows_and_tokens_that_requests_leave() -> None:
    requests = [SimulatedRequest(10, 10, draft_length=3)]
    iterations = simulate(requests, limits(200, batch=8))
    assert [each.new_tokens for each in iterations] == [((0, 1),), ((0, 4),), ((0, 4),), ((0, 1),)]
    alone = simulate(requests, limits(200, batch=1))
    assert len(alone) == 10


def test_request_waits_for_a_shared_prompt_and_reuses_it() -> None:
    requests = [SimulatedRequest(40, 2, prompt_group="a")] * 2
    iterations = simulate(requests, limits(200))
    assert [each.context for each in iterations] == [((0, 40),), ((1, 1),), ()]
    assert iterations[-1].reused_blocks == 4
