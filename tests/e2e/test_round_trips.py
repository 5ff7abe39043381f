"""Hugging Face -> TensorRT-LLM's format -> Hugging Face, bit for bit, by somebody else's hands.

The way back is written out here from the published rules of the format: raw rank files, read with
safetensors, joined by hand. The tests of `test_convert.py` read the same files with our reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.convert import ConvertRequest, convert

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, VOCAB_SIZE = 5, 8, 4, 6, 263
# Module -> its Hugging Face name and the dimension that tensor parallelism splits.
MODULES = {
    "attention.dense": ("self_attn.o_proj", 1),
    "mlp.fc": ("mlp.gate_proj", 0),
    "mlp.gate": ("mlp.up_proj", 0),
    "mlp.proj": ("mlp.down_proj", 1),
    "input_layernorm": ("input_layernorm", None),
    "post_layernorm": ("post_attention_layernorm", None),
}

Tensors = dict[str, torch.Tensor]


def join(parts: list[torch.Tensor], dim: int | None) -> torch.Tensor:
    """Join the ranks of one stage; what is not split must be the same in all of them."""
    if dim is None:
        assert all(torch.equal(part, parts[0]) for part in parts)
        return parts[0]
    return torch.cat(parts, dim)


def split_qkv(ranks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each rank holds its share of the query heads, then of the key heads, then of the value's."""
    tp_size = len(ranks)
    rows = [count * HEAD_SIZE // tp_size for count in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)]
    each = [torch.split_with_sizes(rank, rows) for rank in ranks]
    return [torch.cat([parts[which] for parts in each]) for which in range(3)]


def layer_to_hf(ranks: list[Tensors], local: int, layer: int) -> Tensors:
    ours, theirs = f"transformer.layers.{local}.", f"model.layers.{layer}."
    found: Tensors = {}
    for module, (name, dim) in MODULES.items():
        parts = [rank[f"{ours}{module}.weight"] for rank in ranks]
        found[f"{theirs}{name}.weight"] = join(parts, dim)
    for kind in ("weight", "bias"):
        qkv = split_qkv([rank[f"{ours}attention.qkv.{kind}"] for rank in ranks])
        for letter, part in zip("qkv", qkv, strict=True):
            found[f"{theirs}self_attn.{letter}_proj.{kind}"] = part
    # A bias after a row-parallel product is added once, by every rank alike.
    biases = [rank[f"{ours}attention.dense.bias"] for rank in ranks]
    found[f"{theirs}self_attn.o_proj.bias"] = join(biases, None)
    return found


def to_hf(directory: Path, tp_size: int, pp_size: int, is_embedding_split: bool) -> Tensors:
    """Join the rank files: tensor parallelism is the faster index, layers restart in each stage."""
    ranks = [load_file(directory / f"rank{r}.safetensors") for r in range(tp_size * pp_size)]
    stages = [ranks[first : first + tp_size] for first in range(0, len(ranks), tp_size)]
    found: Tensors = {}
    for stage, layers in zip(stages, torch.arange(NUM_LAYERS).tensor_split(pp_size), strict=True):
        for local, layer in enumerate(layers.tolist()):
            found |= layer_to_hf(stage, local, layer)
    tables = [rank["transformer.vocab_embedding.weight"] for rank in stages[0]]
    found["model.embed_tokens.weight"] = join(tables, 0 if is_embedding_split else None)
    found["model.norm.weight"] = join(
        [rank["transformer.ln_f.weight"] for rank in stages[-1]], None
    )
    if "lm_head.weight" in stages[-1][0]:
        found["lm_head.weight"] = join([rank["lm_head.weight"] for rank in stages[-1]], 0)
    # The vocabulary is padded with zero rows to a multiple of the ranks.
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in found:
            assert not found[name][VOCAB_SIZE:].any()
            found[name] = found[name][:VOCAB_SIZE]
    return found


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("is_embedding_split", [False, True], ids=["table_whole", "table_split"])
@pytest.mark.parametrize(("tp_size", "pp_size"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2)])
def test_hf_model_comes_back_bit_for_bit_from_any_layout(
    make_tiny_llama: MakeTinyLlama,
    tmp_path: Path,
    tp_size: int,
    pp_size: int,
    is_embedding_split: bool,
    is_tied: bool,
) -> None:
    shape = TinyLlama(
        num_layers=NUM_LAYERS, num_heads=NUM_HEADS, num_kv_heads=NUM_KV_HEADS, head_size=HEAD_SIZE,
        vocab_size=VOCAB_SIZE, is_tied=is_tied, has_attention_bias=True, dtype="bfloat16",
    )  # fmt: skip
    source = make_tiny_llama(shape)
    settings: dict[str, Any] = {"tp_size": tp_size, "pp_size": pp_size}
    settings["use_parallel_embedding"] = is_embedding_split
    convert(ConvertRequest(source, tmp_path / "out", dtype="bfloat16", **settings))
    mapping = json.loads((tmp_path / "out" / "config.json").read_text())["mapping"]
    assert (mapping["world_size"], mapping["tp_size"], mapping["pp_size"]) == (
        tp_size * pp_size, tp_size, pp_size,
    )  # fmt: skip
    expected = load_file(source / "model.safetensors")
    found = to_hf(tmp_path / "out", tp_size, pp_size, is_embedding_split)
    if is_tied and "lm_head.weight" in found:
        # Ranks that hold no such part of the table are given the head that it is tied to.
        assert torch.equal(found.pop("lm_head.weight"), found["model.embed_tokens.weight"])
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), name
