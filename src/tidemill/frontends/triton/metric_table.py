"""Every metric family of a model, as data: the names that dashboards and alerts are written for.

`nv_trt_llm_*` and `nv_llm_*` are TensorRT-LLM's, with its labels and help texts; `tidemill_*` is
what its operators miss. Each row says how its values come from the engine's counters. Knows
nothing of Triton's interface.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from tidemill.frontends.triton.traffic import REQUEST_SECONDS, TOKEN_SECONDS
from tidemill.runtime.loop_stats import LoopStats

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"
LENGTH_BUCKETS = (10.0, 50.0, 100.0, 500.0, 1000.0)


@dataclass(frozen=True)
class Family:
    """One family: its name, kind, help text, the label that tells its metrics apart, if any."""

    name: str
    kind: str
    help: str
    label: str = ""
    buckets: tuple[float, ...] = ()


REQUESTS = Family("nv_trt_llm_request_metrics", GAUGE, "TRT LLM request metrics", "request_type")
MEMORY = Family(
    "nv_trt_llm_runtime_memory_metrics", GAUGE, "TRT LLM runtime memory metrics", "memory_type"
)
KV_BLOCKS = Family(
    "nv_trt_llm_kv_cache_block_metrics",
    GAUGE,
    "TRT LLM KV cache block metrics",
    "kv_cache_block_type",
)
BATCHER = Family(
    "nv_trt_llm_inflight_batcher_metrics",
    GAUGE,
    "TRT LLM inflight_batcher-specific metrics",
    "inflight_batcher_specific_metric",
)
GENERAL = Family("nv_trt_llm_general_metrics", GAUGE, "General TRT LLM metrics", "general_type")
DISAGGREGATED = Family(
    "nv_trt_llm_disaggregated_serving_metrics",
    COUNTER,
    "TRT LLM disaggregated serving metrics",
    "disaggregated_serving_type",
)
INPUT_LENGTH = Family(
    "nv_llm_input_token_len",
    HISTOGRAM,
    "TRT LLM response metrics",
    "response_metric_type",
    LENGTH_BUCKETS,
)
OUTPUT_LENGTH = Family(
    "nv_llm_output_token_len",
    HISTOGRAM,
    "TRT LLM response metrics",
    "response_metric_type",
    LENGTH_BUCKETS,
)
QUEUE_DEPTH = Family(
    "tidemill_queue_depth", GAUGE, "Requests that wait for a place in the engine's batch"
)
IN_FLIGHT = Family("tidemill_requests_in_flight", GAUGE, "This model's requests under way")
ENGINE_UP = Family(
    "tidemill_engine_up", GAUGE, "1 while the engine host answers, 0 otherwise; NaN: unloaded"
)
HIT_RATE = Family(
    "tidemill_kv_cache_hit_rate", GAUGE, "Share of the prompts' blocks found in the cache"
)
STEP_LATENCY = Family("tidemill_step_seconds", GAUGE, "Duration of the engine's latest step")
FINISHED = Family(
    "tidemill_requests_total", COUNTER, "Requests that ended, by the reason", "finish_reason"
)
PROMPT_TOKENS = Family("tidemill_prompt_tokens_total", COUNTER, "Prompt tokens of ended requests")
OUTPUT_TOKENS = Family("tidemill_output_tokens_total", COUNTER, "Tokens given by ended requests")
FIRST_TOKEN = Family(
    "tidemill_time_to_first_token_seconds",
    HISTOGRAM,
    "From a streaming request's arrival at the model to its first token",
    buckets=REQUEST_SECONDS,
)
DURATION = Family(
    "tidemill_request_duration_seconds",
    HISTOGRAM,
    "From a request's arrival at the model to its end",
    buckets=REQUEST_SECONDS,
)
# Triton observes histograms one value a call; tokens are too many for that, so that these three
# families are a histogram written out. Gauges by kind, because readers append _total to counters.
INTER_TOKEN_BUCKET = Family(
    "tidemill_inter_token_latency_seconds_bucket",
    GAUGE,
    "Streamed tokens by the time since the token before, cumulative",
    "le",
)
INTER_TOKEN_SUM = Family(
    "tidemill_inter_token_latency_seconds_sum", GAUGE, "Time between streamed tokens, summed"
)
INTER_TOKEN_COUNT = Family(
    "tidemill_inter_token_latency_seconds_count", GAUGE, "Streamed tokens after the first"
)

FAMILIES = (
    *(REQUESTS, MEMORY, KV_BLOCKS, BATCHER, GENERAL, DISAGGREGATED, INPUT_LENGTH, OUTPUT_LENGTH),
    *(QUEUE_DEPTH, IN_FLIGHT, ENGINE_UP, HIT_RATE, STEP_LATENCY),
    *(FINISHED, PROMPT_TOKENS, OUTPUT_TOKENS),
    *(FIRST_TOKEN, DURATION, INTER_TOKEN_BUCKET, INTER_TOKEN_SUM, INTER_TOKEN_COUNT),
)
FINISH_REASONS = ("end_id", "stop_words", "length", "timed_out", "cancelled", "error")
TOKEN_BOUNDS = (*(f"{bound:g}" for bound in TOKEN_SECONDS), "+Inf")

Values = dict[tuple[Family, str], float]


def gauge_values(stats: LoopStats, host_bytes: int) -> Values:
    """Return every gauge of a living engine.

    An idle engine schedules nothing, whatever its latest step held. Units: bytes; the timestamp
    counts microseconds, as upstream's C++ backend has it.
    """
    is_idle = stats.num_active_requests == 0
    num_context = 0 if is_idle else stats.num_context_requests
    num_generation = 0 if is_idle else stats.num_generation_requests
    num_scheduled = num_context + num_generation
    num_active = stats.num_active_requests + stats.num_queued_requests
    by_family: Mapping[Family, Mapping[str, float]] = {
        REQUESTS: {
            "active": num_active,
            "max": stats.max_batch_size,
            "scheduled": num_scheduled,
            "context": num_context,
            "waiting": num_active - num_scheduled,
        },
        MEMORY: {"cpu": host_bytes, "gpu": 0, "pinned": 0},
        KV_BLOCKS: {
            "max": stats.max_blocks,
            "free": stats.free_blocks,
            "used": stats.used_blocks,
            "tokens_per": stats.tokens_per_block,
            "reused": stats.reused_blocks,
            "fraction": stats.used_blocks / max(1, stats.max_blocks),
        },
        BATCHER: {
            "total_context_tokens": 0 if is_idle else stats.num_context_tokens,
            "generation_requests": num_generation,
            "micro_batch_id": 0,
            "paused_requests": stats.total_paused_requests,
        },
        GENERAL: {"timestamp": time.time() * 1e6, "iteration_counter": stats.iteration},
        QUEUE_DEPTH: {"": stats.num_queued_requests},
        HIT_RATE: {"": stats.reused_blocks / max(1, stats.reused_blocks + stats.missed_blocks)},
        STEP_LATENCY: {"": stats.latency_ms / 1e3},
        ENGINE_UP: {"": 1},
    }
    return {
        (family, value): float(number)
        for family, values in by_family.items()
        for value, number in values.items()
    }
