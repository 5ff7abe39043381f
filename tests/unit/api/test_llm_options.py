"""Options of `LLM` under the reference's names, and what they mean to the runtime."""

from __future__ import annotations

from tidemill import (
    CapacitySchedulerPolicy,
    ContextChunkingPolicy,
    KvCacheConfig,
    KvCacheRetention,
    NGramDecodingConfig,
    SchedulerConfig,
    TokenRangeRetention,
)
from tidemill.api.llm_options import LlmOptions
from tidemill.api.runtime_options import ServiceOptions
from tidemill.host.config import SessionConfig
from tidemill.host.messages import GenerateRequest
from tidemill.runtime.config import CapacityPolicy, ChunkingPolicy, RuntimeConfig


def test_nothing_said_is_the_default() -> None:
    assert LlmOptions().session == SessionConfig()


def test_configs_of_the_reference_reach_the_runtime() -> None:
    options = LlmOptions.from_keywords(
        {
            "kv_cache_config": KvCacheConfig(False, 640, 0.25, enable_partial_reuse=False),
            "scheduler_config": SchedulerConfig(
                CapacitySchedulerPolicy.MAX_UTILIZATION, ContextChunkingPolicy.EQUAL_PROGRESS
            ),
            "speculative_config": NGramDecodingConfig(max_draft_len=4, max_matching_ngram_size=2),
            "iter_stats_max_iterations": 7,
            "event_buffer_max_size": 8,
        }
    )
    assert options.session == SessionConfig(
        kv_cache_tokens=640,
        kv_cache_fraction=0.25,
        runtime=RuntimeConfig(
            CapacityPolicy.MAX_UTILIZATION,
            ChunkingPolicy.EQUAL_PROGRESS,
            enable_block_reuse=False,
            enable_partial_reuse=False,
            max_draft_len=4,
            max_matching_ngram_size=2,
            iter_stats_max_iterations=7,
            event_buffer_max_size=8,
        ),
    )


def test_policies_are_taken_by_name() -> None:
    config = SchedulerConfig("MAX_UTILIZATION", "equal_progress")  # type: ignore[arg-type]
    runtime = LlmOptions(scheduler_config=config).session.runtime
    assert runtime.policy is CapacityPolicy.MAX_UTILIZATION
    assert runtime.chunking is ChunkingPolicy.EQUAL_PROGRESS


def test_prompts_are_not_cut_where_chunked_prefill_is_off() -> None:
    config = SchedulerConfig(context_chunking_policy=ContextChunkingPolicy.EQUAL_PROGRESS)
    options = LlmOptions(scheduler_config=config, enable_chunked_prefill=False)
    assert options.session.runtime.chunking is ChunkingPolicy.OFF


def test_retention_can_be_asked_for_with_the_names_of_the_package() -> None:
    retention = KvCacheRetention((TokenRangeRetention(0, 64, priority=90),))
    request = ServiceOptions(kv_cache_retention_config=retention).apply(
        GenerateRequest(request_id="a")
    )
    assert request.retention == retention
