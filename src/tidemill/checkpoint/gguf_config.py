"""A GGUF file's metadata read as a checkpoint config.

In: metadata and tensors of the file. Out: a `CheckpointConfig` for one rank. The keys carry the
GGUF architecture name as prefix (llama.block_count, ...). What the file leaves out is derived from
its tensors, as llama.cpp does.
Source: ggml docs/gguf.md, "Standardized key-value pairs".
"""

from __future__ import annotations

from typing import Any

from tidemill.base.dtypes import DTYPE_TO_TRTLLM
from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.config import MAX_LAYERS, CheckpointConfig
from tidemill.checkpoint.field_reader import FieldReader
from tidemill.checkpoint.gguf_source import GgufSource
from tidemill.checkpoint.rope_scaling import rope_from_gguf

ROPE_FACTORS = "rope_freqs.weight"


def config_from_gguf(source: GgufSource, architecture: str, prefix: str) -> CheckpointConfig:
    """Translate GGUF metadata.

    Raises: CheckpointError listing every missing or unacceptable key.
    """
    where = str(source.file.bytes.path)
    metadata = source.file.metadata
    names = set(source.names())
    own = {
        key.removeprefix(f"{prefix}."): value
        for key, value in metadata.items()
        if key.startswith(f"{prefix}.")
    }
    reader = FieldReader(own, prefix=f"{prefix}.")
    translated = _read_keys(reader, source)
    if reader.faults:
        raise CheckpointError(
            f"GGUF metadata has {len(reader.faults)} fault(s)",
            where=where,
            expected=f"the {prefix}.* keys of the GGUF specification",
            got="; ".join(reader.faults),
            hint="convert the model to GGUF again with a current llama.cpp",
        )
    factors = source.read(ROPE_FACTORS) if ROPE_FACTORS in names else None
    base, scaling = rope_from_gguf(metadata, prefix, factors, where)
    translated |= {
        "architecture": architecture,
        "dtype": DTYPE_TO_TRTLLM[source.dominant_dtype()],
        "hidden_act": "silu",
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": base,
        "rotary_scaling": scaling,
        "attn_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_gate.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
    }
    return CheckpointConfig.from_json(translated, where)


def _read_keys(reader: FieldReader, source: GgufSource) -> dict[str, Any]:
    embedding = "token_embd.weight"
    vocab_size = source.shape(embedding)[0] if embedding in source.names() else None
    hidden_size = reader.integer("embedding_length", 1)
    num_heads = reader.integer("attention.head_count", 1)
    default_size = max(1, hidden_size // (num_heads or 1))
    head_size = reader.integer("attention.key_length", 1, default_size)
    return {
        "vocab_size": reader.integer("vocab_size", 1, vocab_size),
        "hidden_size": hidden_size,
        "num_hidden_layers": reader.integer("block_count", 1, maximum=MAX_LAYERS),
        "num_attention_heads": num_heads,
        "num_key_value_heads": reader.integer("attention.head_count_kv", 1, num_heads or 1),
        "head_size": head_size,
        "intermediate_size": reader.integer("feed_forward_length", 1),
        "max_position_embeddings": reader.integer("context_length", 1),
        "rotary_embedding_dim": reader.integer("rope.dimension_count", 1, head_size),
        "norm_epsilon": _shortest(reader.number("attention.layer_norm_rms_epsilon", 1e-5, 1.0)),
    }


def _shortest(value: float) -> float:
    """Undo the float32 storage of a setting: 9.999999747378752e-06 was written as 1e-05."""
    return float(f"{value:.7g}")
