"""Rotary tables against transformers' own, far into the context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tidemill.ir.builder import GraphBuilder
from tidemill.network.layers.rotary import Rotary, draw_rotary_tables, read_scaling
from tidemill.ops.interpreter import load_constants
from tidemill.ops.table import OPS

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
NUM_POSITIONS = 4099


@pytest.mark.parametrize("dim", [16, 48, 64, 128])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize(
    "scaling",
    [None, {"rope_type": "default"}, {"type": "linear", "factor": 4}, LLAMA3],
    ids=["none", "default", "linear", "llama3"],
)
def test_tables_are_those_of_transformers(
    dim: int, base: float, scaling: dict[str, Any] | None
) -> None:
    rope = {"rope_type": "default", **(scaling or {}), "rope_theta": base}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    config = LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, rope_parameters=rope)
    positions = torch.arange(NUM_POSITIONS)[None]
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)

    pen = GraphBuilder("g", OPS)
    draw_rotary_tables(pen, Rotary(dim, base, read_scaling(scaling)), NUM_POSITIONS)
    tables = load_constants(pen.finish([]))
    for name, table in zip(("rope_cos", "rope_sin"), expected, strict=True):
        # One unit in the last place of a frequency is up to 4099 * 2^-24 in an angle; most agree.
        difference = np.abs(tables[name] - table[0, :, : dim // 2].numpy())
        assert difference.max() < NUM_POSITIONS * 2.0**-24
        assert np.median(difference) <= 2.0**-25
