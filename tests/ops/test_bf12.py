"""bf16 weights in 12 bits: panels hold every bit, and what they cannot hold is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compare import assert_same_bits
from tests.ops.judge import make_op, tensor
from tests.ops.native_op import HOST_TARGETS, count, draw_stored, run_native, wide_rows
from tests.ops.test_cpu_linear import NOTHING_FOLLOWS, scratch
from tidemill.base.dtypes import DType
from tidemill.base.errors import BuildError
from tidemill.ir.storage import Array, narrow, widen
from tidemill.ops.layout import (
    NOWHERE,
    PANEL,
    listed_inputs_at,
    most_listed,
    padded_n,
    panel_header_bytes,
)
from tidemill.quant.packing import pack_activations, pack_panels


def unpack(panel: Array, k: int) -> Array:
    """The values of one panel by the words of ops/layout.py, input by input. Shape: (32, k)."""
    scales = panel[:128].view(np.float32).astype(np.float64)
    words = panel[panel_header_bytes(DType.BF12, k) :].view(np.uint16).reshape(-1, 2, 3, 16, 2)
    values = np.zeros((32, 8 * len(words)))
    for step, vector, lane, half in np.ndindex(len(words), 2, 16, 2):
        a, b, c = (int(word) for word in words[step, vector, :, lane, half])
        high, low = (a >> 11) & 15, (b >> 11) & 15
        last = ((c >> 14) & 1) << 15 | high << 7 | low << 3 | ((c >> 11) & 7)
        for pair, code in enumerate((a, b, c, last)):
            exponent, mantissa = (code >> 7) & 15, code & 127
            number = 2.0 ** (exponent - 15) * (1 + mantissa / 128) if exponent or mantissa else 0.0
            sign = -1 if code >> 15 else 1
            values[16 * vector + lane, 8 * step + 2 * pair + half] = sign * number
    first, inputs_at = panel_header_bytes(DType.BF12, k), listed_inputs_at(k)
    places = panel[128:inputs_at].view(np.int32)
    listed = widen(panel[inputs_at:first].view(np.uint16), DType.BF16).reshape(-1, 8)
    assert places[most_listed(k)] == NOWHERE
    for place, inputs in zip(places, listed, strict=False):
        if place != NOWHERE:
            eight = slice(place // 32 * 8, place // 32 * 8 + 8)
            assert not values[place % 32, eight].any()
            values[place % 32, eight] = inputs
    return (values * scales[:, None])[:, :k]


@pytest.mark.parametrize("k", [40, 128])
def test_every_weight_comes_back(k: int) -> None:
    rng = np.random.default_rng(k)
    sizes = 10.0 ** rng.integers(-4, 4, (45, 1))
    sizes[9] = 1e-3  # a scale under 1, which what is hardly a number is divided by
    weights = rng.standard_normal((45, k)).astype(np.float32) * sizes
    weights[rng.random(weights.shape) < 0.1] = 0
    weights[[5, 34]] = 0
    odd = [1e-30, -1e30, 2.0**-133, 1e32, -(2.0**-126), 0.25, 2.0**100]
    weights[[1, 7, 9, 33, 34, 40, 44], [0, 3, k - 1, 5, 6, 7, 8]] = odd
    weights[35] = np.sign(weights[35]) * 8  # powers of two, one exponent
    stored = np.asfortranarray(narrow(weights, DType.BF16))
    expected = widen(stored, DType.BF16)
    packed = pack_panels(stored, DType.BF12)
    assert packed.shape[0] == 2
    for panel, rows in zip(packed, (expected[:32], expected[32:]), strict=True):
        assert (unpack(panel, k)[: len(rows)] == rows).all()
        assert not unpack(panel, k)[len(rows) :].any()


def test_weights_that_are_spread_too_widely_are_refused() -> None:
    k = 64
    stored = narrow(np.ones((64, k), np.float32), DType.BF16)
    stored[40:52, 8:16] = narrow(np.array([2.0**-40]), DType.BF16)
    with pytest.raises(BuildError, match="12 bits") as caught:
        pack_panels(stored, DType.BF12, "layers.3.up")
    assert "layers.3.up, outputs 32 to 63" in (caught.value.where or "")
    assert str(most_listed(k)) in (caught.value.expected or "") and caught.value.got == "12"


@pytest.mark.parametrize("odd", [1e-36, 1e32])
def test_a_weight_whose_bits_would_be_lost_is_refused(odd: float) -> None:
    stored = narrow(np.full((32, 64), 1e3 if odd < 1 else 1e-12, np.float32), DType.BF16)
    stored[3, 9] = narrow(np.array([odd]), DType.BF16)[0]
    with pytest.raises(BuildError, match="too far from its output's others"):
        pack_panels(stored, DType.BF12)


@pytest.mark.parametrize("rows", [1, 4, 12, 13, 29])
@pytest.mark.parametrize("target", HOST_TARGETS)
def test_products_have_the_bits_of_bf16(target: str, rows: int) -> None:
    rng, k, n = np.random.default_rng(rows), 104, 70
    x = narrow(rng.standard_normal((rows, k)), DType.BF16)
    weight = draw_stored(rng, DType.BF12, n, k)
    results = []
    for dtype in (DType.BF12, DType.BF16):
        op = make_op("linear", [tensor("bf16", "T", k), tensor(dtype.value, n, k)])
        y = wide_rows(np.zeros((rows, n), np.float32))
        record: dict[str, Array | int] = {
            "rows": count(rows), "x": pack_activations(x, DType.BF16), "bias": 0, "y": y,
            "w": pack_panels(weight, dtype), "panels": padded_n(n) // PANEL,
            "y_row_bytes": y.strides[0], **scratch(k, dtype), **NOTHING_FOLLOWS,
        }  # fmt: skip
        run_native(target, [op], [record], num_threads=1 + rows % 2)
        results.append(y)
    assert_same_bits(results[0], results[1], "products")
