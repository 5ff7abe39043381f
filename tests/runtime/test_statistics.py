"""Statistics under TensorRT-LLM's JSON keys, and the events of a request's life."""

from __future__ import annotations

import msgspec

from tests.runtime.test_block_reuse import Bench, prompt
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.events import EventKind
from tidemill.runtime.iteration_stats import IterationStats
from tidemill.runtime.request import Request
from tidemill.runtime.statistics import RequestMetrics, RequestStage, RequestStats

ITERATION_KEYS = [
    "timestamp",
    "iter",
    "iterLatencyMS",
    "newActiveRequestsQueueLatencyMS",
    "numNewActiveRequests",
    "numActiveRequests",
    "numQueuedRequests",
    "numCompletedRequests",
    "maxNumActiveRequests",
    "maxBatchSizeStatic",
    "maxBatchSizeTunerRecommended",
    "maxBatchSizeRuntime",
    "maxNumTokensStatic",
    "maxNumTokensTunerRecommended",
    "maxNumTokensRuntime",
    "gpuMemUsage",
    "cpuMemUsage",
    "pinnedMemUsage",
    "kvCacheStats",
    "staticBatchingStats",
    "inflightBatchingStats",
]
CACHE_KEYS = [
    "maxNumBlocks",
    "freeNumBlocks",
    "usedNumBlocks",
    "tokensPerBlock",
    "allocTotalBlocks",
    "allocNewBlocks",
    "reusedBlocks",
    "missedBlocks",
    "cacheHitRate",
]
REQUEST_KEYS = [
    "id",
    "clientId",
    "stage",
    "contextPrefillPosition",
    "numGeneratedTokens",
    "avgNumDecodedTokensPerIter",
    "scheduled",
    "paused",
    "allocTotalBlocksPerRequest",
    "allocNewBlocksPerRequest",
    "reusedBlocksPerRequest",
    "missedBlocksPerRequest",
    "kvCacheHitRatePerRequest",
]
INFLIGHT_KEYS = [
    "numScheduledRequests",
    "numContextRequests",
    "numGenRequests",
    "numPausedRequests",
    "numCtxTokens",
    "microBatchId",
    "avgNumDecodedTokensPerIter",
]


def test_iteration_has_the_keys_of_the_reference_and_counts_what_happened() -> None:
    bench = Bench()
    bench.run(Request(1, prompt(9), 3), Request(2, (1, 2, 3), 1))
    first, second, third = (each.to_json(77) for each in bench.loop.iterations_since(0))
    assert list(first) == ITERATION_KEYS
    assert list(first["kvCacheStats"]) == CACHE_KEYS
    assert list(first["inflightBatchingStats"]) == INFLIGHT_KEYS
    assert first["staticBatchingStats"] is None and first["cpuMemUsage"] == 77
    assert (first["numNewActiveRequests"], first["numCompletedRequests"]) == (2, 1)
    assert first["numActiveRequests"] == 1 and third["numActiveRequests"] == 0
    assert first["inflightBatchingStats"]["numCtxTokens"] == 12
    assert second["inflightBatchingStats"]["numGenRequests"] == 1
    assert second["inflightBatchingStats"]["avgNumDecodedTokensPerIter"] == 1.0
    assert third["kvCacheStats"]["usedNumBlocks"] == 0
    assert third["kvCacheStats"]["allocNewBlocks"] == 4
    assert [each.iteration for each in bench.loop.iterations_since(1)] == [2, 3]


def test_iterations_are_kept_up_to_the_configured_number() -> None:
    bench = Bench(RuntimeConfig(iter_stats_max_iterations=2))
    bench.run(Request(1, prompt(9), 5))
    assert [each.iteration for each in bench.loop.iterations_since(0)] == [4, 5]


def test_statistics_travel_as_messages() -> None:
    bench = Bench()
    bench.run(Request(1, prompt(9), 2))
    told = bench.loop.iterations_since(0)
    data = msgspec.msgpack.encode(told)
    assert msgspec.msgpack.decode(data, type=list[IterationStats]) == told


def test_last_update_says_what_the_request_cost() -> None:
    bench = Bench()
    bench.run(Request(1, prompt(9), 2))
    bench.now = 5.0
    last = bench.run(Request(2, prompt(9), 2))[-1]
    assert last.metrics is not None
    metrics = last.metrics.to_json()
    assert metrics["timingMetrics"] == {
        "arrivalTime": 5.0,
        "firstScheduledTime": 5.0,
        "firstTokenTime": 5.0,
        "lastTokenTime": 5.0,
    }
    assert metrics["kvCacheMetrics"] == {
        "numTotalAllocatedBlocks": 3,
        "numNewAllocatedBlocks": 1,
        "numReusedBlocks": 2,
        "numMissedBlocks": 0,
        "kvCacheHitRate": 1.0,
    }
    assert (metrics["firstIter"], metrics["lastIter"]) == (2, 3)


def test_request_stats_say_where_each_request_is() -> None:
    bench = Bench()
    for request in (Request(1, prompt(9), 5), Request(2, (2,) * 60, 2), Request(3, (3,) * 60, 2)):
        bench.executor.expect(request)
        bench.loop.submit(request)
    bench.loop.step()
    stats = {each.request_id: each.to_json() for each in bench.loop.request_stats()}
    assert stats[1]["stage"] == "GENERATION_IN_PROGRESS" and stats[1]["numGeneratedTokens"] == 1
    assert stats[3]["stage"] == "QUEUED" and not stats[3]["scheduled"]
    assert list(stats[1]) == REQUEST_KEYS
    # What a request holds counts while it lives: 9 tokens of prompt take 3 blocks of 4, all new.
    assert stats[1]["allocTotalBlocksPerRequest"] == stats[1]["allocNewBlocksPerRequest"] == 3
    assert stats[3]["allocTotalBlocksPerRequest"] == 0
    bench.loop.cancel(2)
    bench.loop.cancel(3)


def test_tokens_of_a_step_are_counted_with_the_guesses_that_were_right() -> None:
    metrics = RequestMetrics(0.0, num_draft_tokens=7, num_accepted_draft_tokens=4)
    stats = RequestStats(1, RequestStage.GENERATION_IN_PROGRESS, 9, 12, True, metrics)
    assert stats.to_json()["avgNumDecodedTokensPerIter"] == 12 / 8


def test_events_tell_a_life_in_order() -> None:
    bench = Bench(RuntimeConfig(event_buffer_max_size=100))
    bench.run(Request(7, prompt(9), 3))
    events = bench.loop.events_since(0)
    assert [event.kind for event in events] == [
        EventKind.QUEUED,
        EventKind.ADMITTED,
        EventKind.FIRST_TOKEN,
        EventKind.ENDED,
    ]
    assert [event.number for event in events] == [1, 2, 3, 4]
    assert events[-1].detail == "length"
    assert bench.loop.events_since(3) == events[3:]


def test_totals_count_ends_without_a_step() -> None:
    bench = Bench()
    request = Request(1, prompt(9), 3, allotted_time_ms=10)
    bench.executor.expect(request)
    bench.loop.submit(request)
    bench.now = 1.0
    (update,) = bench.loop.step()
    assert update.finish_reason.name == "TIMED_OUT" and not update.new_tokens
    stats = bench.loop.stats()
    assert (stats.total_completed_requests, stats.total_timed_out_requests) == (1, 1)
