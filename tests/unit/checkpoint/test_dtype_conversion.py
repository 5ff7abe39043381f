"""Float conversion against torch, over every 16-bit pattern and the hard 32-bit ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.dtype_conversion import convert_floats

SEED = 20260


def _hard_float32() -> Any:
    """Random bit patterns, and every exact tie between neighbouring bfloat16 values."""
    print(f"seed {SEED}")
    random_bits = np.random.default_rng(SEED).integers(0, 1 << 32, 300_007, dtype=np.uint32)
    highs = np.arange(1 << 16, dtype=np.uint32) << 16
    ties = np.concatenate([highs | low for low in (0x7FFF, 0x8000, 0x8001)])
    return np.concatenate([random_bits, ties]).view(np.float32)


def _to_torch_bits(values: Any, dtype: torch.dtype) -> Any:
    return torch.from_numpy(values.copy()).to(dtype).view(torch.int16).numpy().view(np.uint16)


def test_float32_to_bfloat16_rounds_as_torch_does() -> None:
    values = _hard_float32()
    got = convert_floats(values, DType.F32, DType.BF16, "x")
    want = _to_torch_bits(values, torch.bfloat16)
    is_nan = np.isnan(values)
    np.testing.assert_array_equal(got[~is_nan], want[~is_nan])
    assert np.isnan(convert_floats(got[is_nan], DType.BF16, DType.F32, "x")).all()


def test_float32_to_float16_rounds_as_torch_does_where_it_fits() -> None:
    values = _hard_float32()
    values = values[~(np.abs(values) >= 65504.0) | np.isinf(values)]
    got = convert_floats(values, DType.F32, DType.F16, "x").view(np.uint16)
    is_nan = np.isnan(values)
    np.testing.assert_array_equal(got[~is_nan], _to_torch_bits(values, torch.float16)[~is_nan])
    assert np.isnan(got[is_nan].view(np.float16)).all()


def test_every_bfloat16_widens_and_narrows_back_to_its_own_bits() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    wide = convert_floats(bits, DType.BF16, DType.F32, "x")
    back = convert_floats(wide, DType.F32, DType.BF16, "x")
    np.testing.assert_array_equal(back[~np.isnan(wide)], bits[~np.isnan(wide)])


def test_every_float16_goes_to_bfloat16_as_in_torch() -> None:
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    halves = halves[~np.isnan(halves)]
    got = convert_floats(halves, DType.F16, DType.BF16, "x")
    np.testing.assert_array_equal(got, _to_torch_bits(halves, torch.bfloat16))


def test_bfloat16_subnormal_in_float16_is_kept() -> None:
    tiny = np.array([2.0**-24, 3 * 2.0**-24, 2.0**-26], dtype=np.float32)
    bits = convert_floats(tiny, DType.F32, DType.BF16, "x")
    got = convert_floats(bits, DType.BF16, DType.F16, "x")
    np.testing.assert_array_equal(got.astype(np.float32), [2.0**-24, 3 * 2.0**-24, 0.0])


@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_value_too_large_for_float16_is_an_error_that_names_the_tensor(value: float) -> None:
    with pytest.raises(CheckpointError, match=r"float16[\s\S]*layers\.3\.mlp"):
        convert_floats(np.array([1.0, value], np.float32), DType.F32, DType.F16, "layers.3.mlp")


def test_infinity_stays_infinity_in_float16() -> None:
    values = np.array([np.inf, -np.inf, 65504.0], np.float32)
    np.testing.assert_array_equal(convert_floats(values, DType.F32, DType.F16, "x"), values)


def test_array_longer_than_a_chunk_keeps_its_shape() -> None:
    values = np.random.default_rng(SEED).standard_normal((521, 1031)).astype(np.float32)
    got = convert_floats(values, DType.F32, DType.F16, "x")
    np.testing.assert_array_equal(got, values.astype(np.float16))
