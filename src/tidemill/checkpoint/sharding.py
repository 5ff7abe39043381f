"""The tensors of a checkpoint as one table, and how each is split over ranks and put together.

In: a config, a full array, or the arrays of all tensor-parallel ranks. Out: shapes, shards, full
arrays; the round trip is exact to the bit. A row gives name, dimensions by symbol, split and
condition, so that a new tensor is a new row. Knows no file and no other framework's names.
Source: TensorRT-LLM mapping.py, convert_utils.py (split, dup_kv_weight, pad_vocab_size).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError
from tidemill.base.mapping import Mapping
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.file_bytes import Array, has_equal_bits


class Split(Enum):
    """How tensor parallelism cuts a tensor."""

    REPLICATED = "replicated"
    ROWS = "rows"  # dimension 0
    COLUMNS = "columns"  # dimension 1
    QKV = "qkv"  # queries, keys and values each on dimension 0, then joined again per rank
    EMBEDDING = "embedding"  # replicated, or as use_parallel_embedding says
    VOCAB = "vocab"  # dimension 0, zero-padded to a multiple of tp_size


class Need(Enum):
    """Under which setting of the config a tensor exists."""

    ALWAYS = "always"
    ATTN_BIAS = "attn_bias"
    MLP_BIAS = "mlp_bias"
    QK_LAYERNORM = "qk_layernorm"
    UNTIED = "untied"


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the model, or of every layer where the name has `{i}`.

    Symbols: V vocabulary, H hidden, I intermediate, D head size, Q and K rows of all query and of
    all key (or value) heads, QKV their joined rows, 1 itself. `is_levels`: stored as int8, inputs
    first.
    """

    name: str
    dims: tuple[str, ...]
    split: Split = Split.REPLICATED
    need: Need = Need.ALWAYS
    is_levels: bool = False

    def stored_dtype(self, config: CheckpointConfig) -> DType:
        """Return the type of the tensor in the rank files."""
        return DType.I8 if self.is_levels else config.weight_dtype


_L = "transformer.layers.{i}."

TENSOR_TABLE: tuple[TensorRow, ...] = (
    TensorRow("transformer.vocab_embedding.weight", ("V", "H"), Split.EMBEDDING),
    TensorRow(_L + "input_layernorm.weight", ("H",)),
    TensorRow(_L + "attention.qkv.weight", ("QKV", "H"), Split.QKV),
    TensorRow(_L + "attention.qkv.bias", ("QKV",), Split.QKV, Need.ATTN_BIAS),
    TensorRow(_L + "attention.q_layernorm.weight", ("D",), need=Need.QK_LAYERNORM),
    TensorRow(_L + "attention.k_layernorm.weight", ("D",), need=Need.QK_LAYERNORM),
    TensorRow(_L + "attention.dense.weight", ("H", "Q"), Split.COLUMNS),
    TensorRow(_L + "attention.dense.bias", ("H",), need=Need.ATTN_BIAS),
    TensorRow(_L + "post_layernorm.weight", ("H",)),
    TensorRow(_L + "mlp.fc.weight", ("I", "H"), Split.ROWS),
    TensorRow(_L + "mlp.fc.bias", ("I",), Split.ROWS, Need.MLP_BIAS),
    TensorRow(_L + "mlp.gate.weight", ("I", "H"), Split.ROWS),
    TensorRow(_L + "mlp.gate.bias", ("I",), Split.ROWS, Need.MLP_BIAS),
    TensorRow(_L + "mlp.proj.weight", ("H", "I"), Split.COLUMNS),
    TensorRow(_L + "mlp.proj.bias", ("H",), need=Need.MLP_BIAS),
    TensorRow("transformer.ln_f.weight", ("H",)),
    TensorRow("lm_head.weight", ("V", "H"), Split.VOCAB, Need.UNTIED),
)
NAME_TO_ROW = {row.name: row for row in TENSOR_TABLE}

EMBEDDING = "transformer.vocab_embedding.weight"
LM_HEAD = "lm_head.weight"
_LAYER = re.compile(r"^transformer\.layers\.(\d+)\.")


def dim_sizes(config: CheckpointConfig) -> dict[str, int]:
    """Return the size that each dimension symbol stands for."""
    query_rows = config.num_attention_heads * config.head_size
    kv_rows = config.num_key_value_heads * config.head_size
    return {
        "V": config.vocab_size,
        "H": config.hidden_size,
        "I": config.intermediate_size,
        "D": config.head_size,
        "Q": query_rows,
        "K": kv_rows,
        "QKV": query_rows + 2 * kv_rows,
        "1": 1,
    }


def expected_tensors(config: CheckpointConfig) -> dict[str, TensorRow]:
    """Return every tensor of the whole model by global name, in the order of the model."""
    rows = [row for row in TENSOR_TABLE if _is_needed(row.need, config)]
    layer_rows = [row for row in rows if "{i}" in row.name]
    names = {row.name: row for row in rows[:1]}
    for layer in range(config.num_hidden_layers):
        names.update((row.name.replace("{i}", str(layer)), row) for row in layer_rows)
    names.update((row.name, row) for row in rows[1:] if "{i}" not in row.name)
    return names


def _is_needed(need: Need, config: CheckpointConfig) -> bool:
    return {
        Need.ALWAYS: True,
        Need.ATTN_BIAS: config.attn_bias,
        Need.MLP_BIAS: config.mlp_bias,
        Need.QK_LAYERNORM: config.qk_layernorm,
        Need.UNTIED: not config.tie_word_embeddings,
    }[need]


def full_shape(row: TensorRow, config: CheckpointConfig) -> tuple[int, ...]:
    """Return the shape of the whole tensor, without padding."""
    sizes = dim_sizes(config)
    return tuple(sizes[dim] for dim in row.dims)


def needs_lm_head_copy(config: CheckpointConfig) -> bool:
    """Say whether a tied model's last stage must store its own rows of the embedding.

    Readers take a missing lm_head.weight to be the embedding of the same rank file, which holds
    only where both are on one rank and are cut alike.
    """
    is_cut_alike = config.mapping.tp_size == 1 or (
        config.use_parallel_embedding and config.embedding_sharding_dim == 0
    )
    return config.tie_word_embeddings and not (config.mapping.pp_size == 1 and is_cut_alike)


def stage_of(name: str, config: CheckpointConfig) -> int:
    """Return the pipeline stage that stores a tensor of the given global name."""
    match = _LAYER.match(name)
    if match is None:
        return 0 if name == EMBEDDING else config.mapping.pp_size - 1
    layer = int(match[1])
    stages = [_stage_layers(config, stage) for stage in range(config.mapping.pp_size)]
    return next(stage for stage, layers in enumerate(stages) if layer in layers)


def local_name(name: str, config: CheckpointConfig) -> str:
    """Return the name inside the rank file: layers count from the stage's first."""
    match = _LAYER.match(name)
    if match is None:
        return name
    layer = int(match[1]) - _stage_layers(config, stage_of(name, config)).start
    return f"transformer.layers.{layer}.{name[match.end() :]}"


def _stage_layers(config: CheckpointConfig, stage: int) -> range:
    mapping = Mapping(1, config.mapping.pp_size, stage)
    return mapping.layer_range(config.num_hidden_layers)


def shard_shape(row: TensorRow, config: CheckpointConfig) -> tuple[int, ...]:
    """Return the shape of each rank's part; it is the same on every tensor-parallel rank."""
    shape = _outputs_first_shape(row, config)
    return shape[::-1] if row.is_levels else shape


def _outputs_first_shape(row: TensorRow, config: CheckpointConfig) -> tuple[int, ...]:
    shape = full_shape(row, config)
    tp_size = config.mapping.tp_size
    if row.split is Split.QKV:
        return (sum(_qkv_shard_rows(config)), *shape[1:])
    dim = _split_dim(row, config)
    if dim is None:
        return shape
    return tuple(-(-size // tp_size) if i == dim else size for i, size in enumerate(shape))


def shard(row: TensorRow, config: CheckpointConfig, full: Array, tp_rank: int) -> Array:
    """Cut one tensor-parallel rank's part out of the whole tensor."""
    assert full.shape == full_shape(row, config), (row.name, full.shape)
    part = _shard(row, config, full, tp_rank)
    return np.ascontiguousarray(part.T) if row.is_levels else part


def _shard(row: TensorRow, config: CheckpointConfig, full: Array, tp_rank: int) -> Array:
    if config.mapping.tp_size == 1:
        return full
    if row.split is Split.QKV:
        return _shard_qkv(config, full, tp_rank)
    dim = _split_dim(row, config)
    if dim is None:
        return full
    size = _outputs_first_shape(row, config)[dim]
    part = full[(slice(None),) * dim + (slice(tp_rank * size, (tp_rank + 1) * size),)]
    missing = size - part.shape[dim]
    if missing:
        padding = [(0, missing if i == dim else 0) for i in range(part.ndim)]
        return np.pad(part, padding)
    return np.ascontiguousarray(part)


def assemble(row: TensorRow, config: CheckpointConfig, shards: Sequence[Array]) -> Array:
    """Put the parts of all tensor-parallel ranks together; the exact inverse of `shard`.

    Raises: CheckpointError when copies of one key or value head differ between ranks.
    """
    assert len(shards) == config.mapping.tp_size
    if row.is_levels:
        shards = [np.ascontiguousarray(part.T) for part in shards]
    if len(shards) == 1:
        return shards[0]
    if row.split is Split.QKV:
        return _assemble_qkv(row, config, shards)
    dim = _split_dim(row, config)
    if dim is None:
        return shards[0]
    whole = np.concatenate(shards, axis=dim)
    return whole[: full_shape(row, config)[0]] if dim == 0 else whole


def _split_dim(row: TensorRow, config: CheckpointConfig) -> int | None:
    if row.split is Split.EMBEDDING:
        return config.embedding_sharding_dim if config.use_parallel_embedding else None
    return {Split.ROWS: 0, Split.VOCAB: 0, Split.COLUMNS: 1}.get(row.split)


def _qkv_shard_rows(config: CheckpointConfig) -> tuple[int, int, int]:
    tp_size = config.mapping.tp_size
    kv_rows = max(1, config.num_key_value_heads // tp_size) * config.head_size
    return config.num_attention_heads // tp_size * config.head_size, kv_rows, kv_rows


def _qkv_ranges(config: CheckpointConfig, tp_rank: int) -> tuple[slice, slice, slice]:
    """Rows of the whole tensor that one rank holds, for queries, keys and values.

    With fewer key-value heads than ranks, ranks [h * t / n, (h + 1) * t / n) all hold head h.
    """
    sizes = dim_sizes(config)
    query_rows, kv_rows, _ = _qkv_shard_rows(config)
    first_head = tp_rank * config.num_key_value_heads // config.mapping.tp_size
    key_start = sizes["Q"] + first_head * config.head_size
    value_start = key_start + sizes["K"]
    return (
        slice(tp_rank * query_rows, (tp_rank + 1) * query_rows),
        slice(key_start, key_start + kv_rows),
        slice(value_start, value_start + kv_rows),
    )


def _shard_qkv(config: CheckpointConfig, full: Array, tp_rank: int) -> Array:
    return np.concatenate([full[rows] for rows in _qkv_ranges(config, tp_rank)])


def _assemble_qkv(row: TensorRow, config: CheckpointConfig, shards: Sequence[Array]) -> Array:
    full = np.empty(full_shape(row, config), dtype=shards[0].dtype)
    is_filled = np.zeros(full.shape[0], dtype=bool)
    for tp_rank, part in enumerate(shards):
        start = 0
        for rows in _qkv_ranges(config, tp_rank):
            piece = part[start : start + rows.stop - rows.start]
            start += len(piece)
            if is_filled[rows].any() and not has_equal_bits(full[rows], piece):
                raise CheckpointError(
                    "copies of a key-value head differ between ranks",
                    where=f"{row.name}, tensor-parallel rank {tp_rank}",
                    expected="equal copies on the ranks that share a head",
                    got="different values",
                    hint="the rank files come from different conversions; convert again",
                )
            full[rows] = piece
            is_filled[rows] = True
    return full
