"""Sharding rules against loops over heads, and the exact round trip of every tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tidemill.base.errors import CheckpointError
from tidemill.base.mapping import Mapping
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.sharding import (
    NAME_TO_ROW,
    TENSOR_TABLE,
    assemble,
    expected_tensors,
    full_shape,
    local_name,
    shard,
    shard_shape,
    stage_of,
)

QKV = NAME_TO_ROW["transformer.layers.{i}.attention.qkv.weight"]


def _config(tp_size: int = 1, pp_size: int = 1, **changes: Any) -> CheckpointConfig:
    config = CheckpointConfig(
        architecture="LlamaForCausalLM",
        dtype="float32",
        vocab_size=263,
        hidden_size=24,
        num_hidden_layers=7,
        num_attention_heads=12,
        num_key_value_heads=2,
        head_size=6,
        intermediate_size=36,
        max_position_embeddings=64,
        rotary_embedding_dim=6,
        attn_bias=True,
        mlp_bias=True,
        qk_layernorm=True,
        mapping=Mapping(tp_size, pp_size),
    )
    return replace(config, **changes)


def _numbered(shape: tuple[int, ...]) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("tp_size", [1, 2, 4, 6, 12])
@pytest.mark.parametrize("embedding", [(False, 0), (True, 0), (True, 1)])
@pytest.mark.parametrize("row", TENSOR_TABLE, ids=lambda row: row.name)
def test_shards_reassemble_to_the_same_bits(row: Any, tp_size: int, embedding: Any) -> None:
    config = _config(
        tp_size, use_parallel_embedding=embedding[0], embedding_sharding_dim=embedding[1]
    )
    full = _numbered(full_shape(row, config))
    shards = [shard(row, config, full, rank) for rank in range(tp_size)]
    assert {part.shape for part in shards} == {shard_shape(row, config)}
    np.testing.assert_array_equal(assemble(row, config, shards), full)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4, 12])
def test_each_rank_holds_its_query_heads_and_the_key_heads_they_attend_to(
    num_kv_heads: int,
) -> None:
    tp_size, head_size = 4, 6
    config = _config(tp_size, num_key_value_heads=num_kv_heads)
    heads = _numbered(full_shape(QKV, config)).reshape(-1, head_size, 24)
    queries, keys = heads[:12], heads[12 : 12 + num_kv_heads]
    values = heads[12 + num_kv_heads :]
    for rank in range(tp_size):
        mine = range(rank * 3, rank * 3 + 3)
        groups = sorted({head * num_kv_heads // 12 for head in mine})
        want = [queries[h] for h in mine] + [keys[g] for g in groups] + [values[g] for g in groups]
        got = shard(QKV, config, _numbered(full_shape(QKV, config)), rank)
        np.testing.assert_array_equal(got, np.concatenate(want))


def test_vocabulary_is_padded_with_zero_rows_on_the_last_rank() -> None:
    row, config = NAME_TO_ROW["lm_head.weight"], _config(4)
    parts = [shard(row, config, 1 + _numbered((263, 24)), rank) for rank in range(4)]
    assert [part.shape for part in parts] == [(66, 24)] * 4
    assert not parts[3][65:].any() and parts[3][:65].all()


def test_copies_of_a_key_head_that_differ_are_refused() -> None:
    config = _config(4)
    full = _numbered(full_shape(QKV, config))
    shards = [shard(QKV, config, full, rank).copy() for rank in range(4)]
    shards[1][-1, -1] += 1
    with pytest.raises(CheckpointError, match="copies of a key-value head differ"):
        assemble(QKV, config, shards)


def test_layers_are_dealt_as_array_split_does_and_numbered_from_each_stage() -> None:
    config = _config(pp_size=4)
    name = "transformer.layers.{}.input_layernorm.weight"
    stages = [stage_of(name.format(layer), config) for layer in range(7)]
    assert stages == [s for s, part in enumerate(np.array_split(range(7), 4)) for _ in part]
    assert local_name(name.format(5), config) == name.format(1)
    assert stage_of("transformer.vocab_embedding.weight", config) == 0
    assert stage_of("transformer.ln_f.weight", config) == stage_of("lm_head.weight", config) == 3


def test_tensors_of_absent_biases_norms_and_head_are_not_expected() -> None:
    config = _config(attn_bias=False, mlp_bias=False, qk_layernorm=False, tie_word_embeddings=True)
    names = expected_tensors(config)
    assert len(names) == 2 + 7 * 7
    assert not any("bias" in name or "q_layernorm" in name for name in names)
    assert "lm_head.weight" not in names
