"""The runtime's settings, read from text."""

from __future__ import annotations

import msgspec
import pytest

from tidemill.base.errors import ConfigError
from tidemill.host.config import SessionConfig
from tidemill.host.runtime_settings import (
    NAMES,
    read_runtime_config,
    read_session_settings,
    tell_settings,
)
from tidemill.runtime.config import CapacityPolicy, ChunkingPolicy, RuntimeConfig


def test_nothing_said_is_the_default() -> None:
    assert read_runtime_config({}) == RuntimeConfig()


def test_values_that_a_template_leaves_open_are_the_default() -> None:
    assert read_runtime_config(dict.fromkeys(NAMES, "")) == RuntimeConfig()
    assert read_runtime_config(dict.fromkeys(NAMES, "${some_value}")) == RuntimeConfig()


def test_each_name_sets_its_field() -> None:
    read = read_runtime_config(
        {
            "batch_scheduler_policy": "max_utilization",
            "enable_chunked_context": "true",
            "context_chunking_policy": "EQUAL_PROGRESS",
            "enable_kv_cache_reuse": "False",
            "enable_partial_reuse": "0",
            "max_queue_size": "7",
            "max_draft_len": "4",
            "max_matching_ngram_size": "2",
            "iter_stats_max_iterations": "5",
            "event_buffer_max_size": "6",
            "max_step_ms": "62.5",
        }
    )
    assert read == RuntimeConfig(
        CapacityPolicy.MAX_UTILIZATION,
        ChunkingPolicy.EQUAL_PROGRESS,
        max_queue_size=7,
        enable_block_reuse=False,
        enable_partial_reuse=False,
        max_draft_len=4,
        max_matching_ngram_size=2,
        iter_stats_max_iterations=5,
        event_buffer_max_size=6,
        max_step_ms=62.5,
    )


def test_a_session_is_read_whole_and_told_with_who_chose() -> None:
    parameters = {"max_tokens_in_paged_kv_cache": "640", "max_queue_size": "7", "num_threads": "2"}
    session = read_session_settings(parameters)
    assert session == SessionConfig(640, 2, runtime=RuntimeConfig(max_queue_size=7))
    told = tell_settings(session, parameters).split(", ")
    assert "max_tokens_in_paged_kv_cache 640 (user)" in told
    assert "max_queue_size 7 (user)" in told and "max_draft_len 0 (default)" in told
    assert "batch_scheduler_policy guaranteed_no_evict (default)" in told
    assert {each.split()[0] for each in told} >= set(NAMES)


@pytest.mark.parametrize("name", ["max_tokens_in_paged_kv_cache", "num_threads"])
@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5"])
def test_a_number_that_cannot_be_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_session_settings({name: text})


def test_chunked_context_switched_off_wins_over_its_policy() -> None:
    parameters = {"enable_chunked_context": "false", "context_chunking_policy": "equal_progress"}
    assert read_runtime_config(parameters).chunking is ChunkingPolicy.OFF


def test_config_travels_as_json() -> None:
    config = RuntimeConfig(CapacityPolicy.STATIC_BATCH, ChunkingPolicy.OFF, 3)
    assert msgspec.json.decode(msgspec.json.encode(config), type=RuntimeConfig) == config


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_scheduler_policy", "best", "max_utilization, guaranteed_no_evict, static_batch"),
        ("enable_chunked_context", "perhaps", "one of true, 1, false, 0"),
        ("max_queue_size", "many", "a whole number"),
        ("max_queue_size", "-1", "max_queue_size must be at least 0, got -1"),
        ("max_step_ms", "nan", "max_step_ms must be at least 0, got nan"),
        ("max_step_ms", "inf", "every number finite"),
    ],
)
def test_setting_that_cannot_be_read(name: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_runtime_config({name: value})
    assert name in str(caught.value) and expected in str(caught.value)


@pytest.mark.parametrize("value", ["0", "1.5", "much", "nan"])
def test_share_of_memory_that_is_none(value: str) -> None:
    with pytest.raises(ConfigError, match="over 0, up to 1"):
        read_session_settings({"kv_cache_free_gpu_mem_fraction": value})
    assert read_session_settings({}).kv_cache_fraction is None
