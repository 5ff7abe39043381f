"""One test for each mistake in what is given to `LLM`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.api.llm import LLM, NGramDecodingConfig
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
