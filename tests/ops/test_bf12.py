"""bf16 weights in 12 bits: panels hold every bit, and what they cannot hold is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tidemill.base.dtypes import DType
from tidemill.base.errors import BuildError
from tidemill.ir.storage import Array, narrow
from tidemill.ops.layout import listed_at, most_listed
from tidemill.quant.packing import pack_panels


def unpack(panel: Array, k: int) -> Array:
    """The values of one panel by the words of ops/layout.py, input by input. Shape: (32, k)."""
    scales = panel[:128].view(np.float32).astype(np.float64)
    words = panel[128 : listed_at(k)].view(np.uint16).reshape(-1, 2, 3, 16, 2)
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
    tail = panel[listed_at(k) :]
    count = tail[:4].view(np.int32)[0]
    for place, value in tail[64:].view([("place", np.int32), ("value", np.float32)])[:count]:
        assert values[place % 32, place // 32] == 0
        values[place % 32, place // 32] = value
    return (values * scales[:, None])[:, :k]


@pytest.mark.parametrize("k", [40, 128])
def test_every_weight_comes_back(k: int) -> None:
    rng = np.random.default_rng(k)
    weights = rng.standard_normal((45, k)).astype(np.float32) * 10.0 ** rng.integers(-4, 4, (45, 1))
    weights[rng.random(weights.shape) < 0.1] = 0
    weights[5] = 0
    odd = [1e-30, -1e30, 2.0**-133, 1e32, -(2.0**-126), 0.25, 2.0**100]
    weights[[1, 7, 9, 33, 34, 40, 44], [0, 3, k - 1, 5, 6, 7, 8]] = odd
    stored = narrow(weights, DType.BF16)
    expected = (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    packed = pack_panels(stored, DType.BF12)
    assert packed.shape[0] == 2
    for panel, rows in zip(packed, (expected[:32], expected[32:]), strict=True):
        assert (unpack(panel, k)[: len(rows)] == rows).all()
        assert not unpack(panel, k)[len(rows) :].any()


def test_weights_that_are_spread_too_widely_are_refused() -> None:
    k = 64
    stored = narrow(np.ones((64, k), np.float32), DType.BF16)
    stored[40:48, 8:16] = narrow(np.array([2.0**-40]), DType.BF16)
    with pytest.raises(BuildError, match="12 bits") as caught:
        pack_panels(stored, DType.BF12)
    assert "outputs 32 to 63" in (caught.value.where or "")
    assert str(most_listed(k)) in (caught.value.expected or "") and caught.value.got == "64"
