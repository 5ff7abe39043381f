"""What a request cost, as the output tensors of TensorRT-LLM's models.

In: the runtime's record of one answer. Out: values by the contract's names. The classic models and
the llmapi model share most of them and spell a few their own way; shapes are the caller's.
Units: nanoseconds on the engine's monotonic clock, 0 for what has not happened yet.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tidemill.frontends.triton.stub_api import Array
from tidemill.runtime.statistics import RequestMetrics

NANOSECONDS = 1_000_000_000


def classic_perf_outputs(metrics: RequestMetrics) -> dict[str, Array]:
    """Return the ten values of `return_perf_metrics`, without dimensions."""
    return {
        "kv_cache_reused_blocks": np.array(metrics.num_reused_blocks, dtype=np.int32),
        **_shared(metrics),
    }


def llmapi_perf_outputs(metrics: RequestMetrics) -> dict[str, Array]:
    """Return the values of `sampling_param_return_perf_metrics`, as one element each."""
    outputs: Mapping[str, Array] = {
        "kv_cache_reused_block": np.array(metrics.num_reused_blocks, dtype=np.int32),
        "kv_cache_missed_block": np.array(metrics.num_missed_blocks, dtype=np.int32),
        "kv_cache_hit_rate": np.array(metrics.hit_rate, dtype=np.float32),
        **_shared(metrics),
    }
    return {name: value.reshape(1) for name, value in outputs.items()}


def _shared(metrics: RequestMetrics) -> dict[str, Array]:
    times = {
        "arrival_time_ns": metrics.arrival_time,
        "first_scheduled_time_ns": metrics.first_scheduled_time,
        "first_token_time_ns": metrics.first_token_time,
        "last_token_time_ns": metrics.last_token_time,
    }
    counts = {
        "kv_cache_alloc_new_blocks": metrics.num_new_blocks,
        "kv_cache_alloc_total_blocks": metrics.num_allocated_blocks,
        "total_accepted_draft_tokens": metrics.num_accepted_draft_tokens,
        "total_draft_tokens": metrics.num_draft_tokens,
    }
    return {
        **{
            name: np.array(int((seconds or 0.0) * NANOSECONDS), dtype=np.int64)
            for name, seconds in times.items()
        },
        **{name: np.array(count, dtype=np.int32) for name, count in counts.items()},
        "acceptance_rate": np.array(metrics.acceptance_rate, dtype=np.float32),
    }
