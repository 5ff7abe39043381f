"""The checkpoint config: defaults, unknown keys, the round trip, all faults at once."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.config import CheckpointConfig

MINIMAL: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "dtype": "float16",
    "vocab_size": 263,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
}


def test_missing_fields_take_the_defaults_of_tensorrt_llm() -> None:
    config = CheckpointConfig.from_json(MINIMAL, "config.json")
    assert config.num_key_value_heads == 6
    assert config.head_size == config.rotary_embedding_dim == 8
    assert config.intermediate_size == 4 * 48
    assert config.logits_dtype == "float32"
    assert config.norm_epsilon == 1e-5
    assert config.mapping.world_size == 1


def test_unknown_keys_survive_reading_and_writing() -> None:
    mapping = {"tp_size": 2, "pp_size": 3, "world_size": 6, "gpus_per_node": 8}
    values = {**MINIMAL, "producer": {"name": "modelopt"}, "mapping": mapping}
    written = CheckpointConfig.from_json(values, "config.json").to_json()
    assert written["producer"] == {"name": "modelopt"}
    assert written["mapping"] == mapping
    assert CheckpointConfig.from_json(written, "config.json").to_json() == written


def test_old_key_for_tied_embeddings_is_read() -> None:
    values = {**MINIMAL, "share_embedding_table": True}
    config = CheckpointConfig.from_json(values, "config.json")
    assert config.tie_word_embeddings
    assert "share_embedding_table" not in config.to_json()


def test_every_fault_of_a_config_is_listed_at_once() -> None:
    values = {
        **MINIMAL,
        "dtype": "int3",
        "vocab_size": None,
        "hidden_size": "48",
        "norm_epsilon": -1,
        "attn_bias": "yes",
        "rotary_scaling": [],
        "mapping": {"tp_size": 2, "world_size": 3},
    }
    with pytest.raises(CheckpointError) as caught:
        CheckpointConfig.from_json(values, "some/config.json")
    message = str(caught.value)
    assert "7 fault(s)" in message and "some/config.json" in message
    for key in ("dtype", "vocab_size", "hidden_size", "norm_epsilon", "attn_bias"):
        assert key in message
    assert "mapping.world_size is 3" in message


def test_sizes_that_tp_does_not_divide_are_listed_at_once() -> None:
    values = {**MINIMAL, "num_key_value_heads": 3, "mapping": {"tp_size": 4, "pp_size": 4}}
    values["intermediate_size"] = 106
    with pytest.raises(CheckpointError) as caught:
        CheckpointConfig.from_json(values, "config.json")
    assert "4 fault(s)" in str(caught.value)
