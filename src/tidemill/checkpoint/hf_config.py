"""Hugging Face's config.json read as a checkpoint config.

In: the parsed JSON. Out: a `CheckpointConfig` for one rank in the model's own type; layout and
type are chosen later. Covers the keys that decoder-only models share; what a single architecture
forbids is checked with that architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.attention_windows import runtime_defaults_of, windows_from_hf
from tidemill.checkpoint.config import MAX_LAYERS, CheckpointConfig
from tidemill.checkpoint.field_reader import FieldReader
from tidemill.checkpoint.rope_scaling import rope_from_hf

# TensorRT-LLM stores float32 models as float16 unless told otherwise.
_AUTO_DTYPE = {"float32": "float16", "float16": "float16", "bfloat16": "bfloat16"}


def config_from_hf(values: Mapping[str, Any], architecture: str, where: str) -> CheckpointConfig:
    """Translate a Hugging Face config.

    Raises: CheckpointError listing every missing or unacceptable field.
    """
    reader = FieldReader(values)
    hidden_size = reader.integer("hidden_size", 1)
    num_heads = reader.integer("num_attention_heads", 1)
    dtype = reader.choice("dtype", tuple(_AUTO_DTYPE), values.get("torch_dtype") or "float16")
    translated: dict[str, Any] = {
        "architecture": architecture,
        "dtype": _AUTO_DTYPE[dtype],
        "vocab_size": reader.integer("vocab_size", 1),
        "hidden_size": hidden_size,
        "num_hidden_layers": reader.integer("num_hidden_layers", 1, maximum=MAX_LAYERS),
        "num_attention_heads": num_heads,
        "num_key_value_heads": reader.integer("num_key_value_heads", 1, num_heads or 1),
        "head_size": reader.integer("head_dim", 1, max(1, hidden_size // (num_heads or 1))),
        "intermediate_size": reader.integer("intermediate_size", 1),
        "max_position_embeddings": reader.integer("max_position_embeddings", 1, 2048),
        "hidden_act": reader.text("hidden_act", "silu"),
        "norm_epsilon": reader.number("rms_norm_eps", 1e-6, maximum=1.0),
        "position_embedding_type": "rope_gpt_neox",
        "attn_bias": reader.flag("attention_bias"),
        "mlp_bias": reader.flag("mlp_bias"),
        "tie_word_embeddings": reader.flag("tie_word_embeddings"),
    }
    num_layers, length = translated["num_hidden_layers"], translated["max_position_embeddings"]
    windows = windows_from_hf(reader, architecture, num_layers)
    translated["runtime_defaults"] = runtime_defaults_of(windows, length)
    if reader.faults:
        raise CheckpointError(
            f"model config has {len(reader.faults)} fault(s)",
            where=where,
            expected="a Hugging Face config.json of a decoder-only model",
            got="; ".join(reader.faults),
            hint="fetch config.json of this model again",
        )
    translated["rotary_base"], translated["rotary_scaling"] = rope_from_hf(values, where)
    return CheckpointConfig.from_json(translated, where)
