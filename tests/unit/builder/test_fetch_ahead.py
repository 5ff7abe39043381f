"""Which linear layers fetch for which attention."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tidemill.base.dtypes import DType
from tidemill.builder import fetch_ahead
from tidemill.builder.fetch_ahead import Errand, plan_errands
from tidemill.ir.graph import Op, TensorType, Value
from tidemill.ops.linear.fetch_ahead import ALL_PIECES


def linear(name: str, outputs: int, kind: str = "linear") -> Op:
    weight = Value(f"{name}.w", TensorType(DType.BF16, (outputs, 64)))
    x, y = (Value(f"{name}.{end}", TensorType(DType.F32, ("T", 64))) for end in "xy")
    weights = (weight, weight) if kind == "linear_gated" else (weight,)
    return Op(kind, (x, *weights), (Value(name, y.type),), {}, 0)


def attention(layer: int, window: int = 0) -> Op:
    y = Value(f"attention{layer}", TensorType(DType.BF16, ("T", 64)))
    return Op("paged_attention", (), (y,), {"window": window}, layer)


LAYERS = (
    linear("qkv0", 100), attention(0), linear("out0", 100), linear("gated0", 150, "linear_gated"),
    linear("down0", 100), linear("qkv1", 100), attention(1), linear("head", 1000),
)  # fmt: skip


def test_layers_share_the_next_attentions_cache_by_their_outputs() -> None:
    errands = plan_errands(LAYERS)
    assert errands["head"] == Errand(0), "nothing is read after it"
    assert errands["qkv0"] == Errand(0, 0, ALL_PIECES)
    parts = [errands[name] for name in ("out0", "gated0", "down0", "qkv1")]
    assert {errand.layer for errand in parts} == {1}
    ends = [ALL_PIECES * sixths // 6 for sixths in (0, 1, 4, 5, 6)]
    assert [(e.fetch_from, e.fetch_to) for e in parts] == list(pairwise(ends))


def test_layers_whose_weights_would_push_the_cache_out_fetch_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch_ahead, "MOST_WEIGHT_BYTES", 101 * 128)
    errands = plan_errands(LAYERS)
    assert errands["out0"] == errands["gated0"] == Errand(0)
    assert errands["down0"].fetch_to == errands["qkv1"].fetch_from == ALL_PIECES // 2


def test_nothing_is_fetched_for_a_window() -> None:
    assert plan_errands((linear("qkv", 100), attention(3, window=64))) == {"qkv": Errand(3)}
