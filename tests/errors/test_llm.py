"""One test for each mistake in what is given to `LLM`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tidemill.api.llm import LLM, KvCacheConfig, NGramDecodingConfig, SchedulerConfig
from tidemill.api.llm_options import LlmOptions
from tidemill.base.errors import CheckpointError, ConfigError, UnsupportedError


def test_option_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no such option") as caught:
        LLM("anywhere", max_batchsize=3)
    assert caught.value.hint == "did you mean max_batch_size?"


def test_several_ranks() -> None:
    with pytest.raises(UnsupportedError, match="several ranks"):
        LLM("anywhere", tensor_parallel_size=2)


def test_model_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model not found"):
        LLM(tmp_path / "nowhere", cache_dir=tmp_path / "cache")


def test_build_options_for_a_built_engine(tmp_path: Path) -> None:
    (tmp_path / "rank0.engine").touch()
    with pytest.raises(ConfigError, match="shape an engine") as caught:
        LLM(tmp_path, dtype="float16", max_batch_size=3)
    assert caught.value.got == "dtype=float16, max_batch_size=3"


def test_failed_build_leaves_no_engine(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["NobodysModel"]}')
    with pytest.raises((CheckpointError, UnsupportedError)):
        LLM(model, cache_dir=tmp_path / "cache")
    left = {path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"}
    assert left == {"hashes.json"}


def test_speculation_of_a_negative_length() -> None:
    with pytest.raises(ConfigError, match="max_draft_len must be at least 0"):
        _ = LlmOptions.from_keywords({"speculative_config": NGramDecodingConfig(-1)}).session


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"kv_cache_tokens": 0}, "kv_cache_tokens must be at least 1, got 0"),
        ({"num_threads": -2}, "num_threads must be at least 1 and at most 1024, got -2"),
        ({"max_queue_size": 1.5}, "max_queue_size must be a whole number, at least 0, got 1.5"),
        ({"max_step_ms": "fast"}, "max_step_ms must be at least 0, got fast"),
        ({"kv_cache_config": KvCacheConfig(max_tokens=-64)}, "kv_cache_tokens must be at least 1"),
        (
            {"kv_cache_config": KvCacheConfig(free_gpu_memory_fraction=math.nan)},
            "kv_cache_fraction must be over 0 and at most 1, got nan",
        ),
        (
            {"kv_cache_config": KvCacheConfig(free_gpu_memory_fraction=5.0)},
            "kv_cache_fraction must be over 0 and at most 1, got 5.0",
        ),
        (
            {"kv_cache_config": KvCacheConfig(free_gpu_memory_fraction="0.5")},  # type: ignore[arg-type]
            "kv_cache_fraction must be over 0 and at most 1, got '0.5'",
        ),
        (
            {"kv_cache_config": KvCacheConfig(host_cache_size=-1)},
            "kv_cache_host_memory_bytes must be at least 0, got -1",
        ),
        (
            {"kv_cache_config": KvCacheConfig(secondary_offload_min_priority=500)},
            "secondary_offload_min_priority must be at least 0 and at most 100, got 500",
        ),
        (
            {"scheduler_config": SchedulerConfig("no_evict")},  # type: ignore[arg-type]
            "policy must be one of max_utilization, guaranteed_no_evict, static_batch, got 'no_ev",
        ),
    ],
)
def test_value_out_of_bounds_is_refused_before_anything_is_built(
    options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        LLM("anywhere", **options)
    assert fault in str(caught.value)
