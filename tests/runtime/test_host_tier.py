"""Evicted blocks in the host tier: kept by priority, brought back on a hit; simulation alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.test_block_reuse import LIMITS, Bench, prompt
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.kvcache.host_tier import HostCounters
from tidemill.runtime.kvcache.retention import KvCacheRetention, TokenRangeRetention
from tidemill.runtime.observation import OutputWishes
from tidemill.runtime.request import Request

WITH_HOST = replace(LIMITS, num_blocks=8, num_host_blocks=8)


def other(seed: int, length: int = 29) -> tuple[int, ...]:
    return tuple((seed * 7 + at * at) % 97 for at in range(length))


def host_counters(bench: Bench) -> HostCounters:
    return bench.loop.iterations_since(0)[-1].cache.host


def test_evicted_prompt_comes_back_from_the_host_instead_of_being_computed() -> None:
    for num_host, num_computed in ((0, 29), (8, 1)):
        bench = Bench(limits=replace(WITH_HOST, num_host_blocks=num_host))
        bench.run(Request(1, prompt(29), 1), Request(2, other(2), 1))
        assert bench.num_computed(Request(3, prompt(29), 1)) == num_computed
    host = host_counters(bench)
    # Seven full blocks of each; the second prompt took one block that was empty.
    assert (host.num_onboarded, host.num_blocks) == (7, 8)
    assert host.num_offloaded >= host.num_onboarded + host.num_used
    told = bench.loop.iterations_since(0)[-1].to_json()["kvCacheStats"]
    assert [told[key] for key in ("hostMaxNumBlocks", "hostUsedNumBlocks")] == [8, host.num_used]
    assert (told["offloadedBlocks"], told["onboardedBlocks"]) == (host.num_offloaded, 7)


def test_beginning_of_a_block_in_the_host_is_copied_and_stays_there() -> None:
    bench = Bench(limits=WITH_HOST)
    bench.run(Request(1, prompt(5), 1), Request(2, other(2), 1), Request(3, other(3, 9), 1))
    assert host_counters(bench).num_used > 0
    assert bench.num_computed(Request(4, prompt(5, 90, 91), 1)) == 2
    assert bench.num_computed(Request(5, prompt(5), 1)) == 1


@pytest.mark.parametrize(("priority", "num_offloaded"), [(29, 0), (30, 7)])
def test_blocks_below_the_threshold_are_forgotten(priority: int, num_offloaded: int) -> None:
    bench = Bench(limits=WITH_HOST)
    kept = KvCacheRetention((TokenRangeRetention(0, None, priority),), decode_priority=priority)
    bench.run(Request(1, prompt(29), 1, retention=kept))
    bench.run(Request(2, other(2, 30), 1))
    assert host_counters(bench).num_offloaded == num_offloaded


def test_threshold_can_be_moved() -> None:
    bench = Bench(RuntimeConfig(secondary_offload_min_priority=36), WITH_HOST)
    bench.run(Request(1, prompt(29), 1), Request(2, other(2), 1))
    assert host_counters(bench).num_offloaded == 0


def test_full_host_tier_forgets_the_longest_unused_of_the_lowest_priority() -> None:
    bench = Bench(limits=replace(WITH_HOST, num_host_blocks=7))
    high = KvCacheRetention((TokenRangeRetention(0, None, 90),), decode_priority=90)
    bench.run(Request(1, prompt(29), 1, retention=high))
    for seed in range(2, 7):
        bench.run(Request(seed, other(seed, 30), 1, retention=high))
    assert host_counters(bench).num_used == 7
    assert bench.num_computed(Request(8, other(5, 30), 1)) < 30, "among the latest two"
    assert bench.num_computed(Request(9, prompt(29), 1)) == 29, "longest unused"


def test_priority_of_a_block_runs_out_in_the_host_as_it_would_have_outside() -> None:
    bench = Bench(limits=replace(WITH_HOST, num_host_blocks=7))
    brief = KvCacheRetention((TokenRangeRetention(0, None, 90, 1000.0),))
    bench.run(Request(1, prompt(29), 1, retention=brief))
    bench.now = 0.9
    bench.run(Request(2, other(2, 30), 1))
    bench.now = 1.1
    bench.run(Request(3, other(3, 30), 1))
    assert bench.num_computed(Request(4, prompt(29), 1)) == 29


def test_what_is_computed_again_takes_the_place_of_its_copy_in_the_host() -> None:
    bench = Bench(limits=replace(WITH_HOST, num_host_blocks=40))
    bench.run(Request(1, prompt(29), 1), Request(2, other(2, 30), 1))
    assert host_counters(bench).num_used == 7
    # Whoever wants to see its prompt computes all of it.
    bench.run(Request(3, prompt(29), 1, wishes=OutputWishes(num_prompt_logprobs=0)))
    assert host_counters(bench).num_used == 7, "those of the second request instead"
    assert bench.num_computed(Request(4, prompt(29), 1)) == 1
    assert host_counters(bench).num_onboarded == 0
