"""Storage types: exact widening, rounding to nearest even."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tidemill.base.dtypes import DType
from tidemill.ir.e4m3 import narrow_e4m3, widen_e4m3
from tidemill.ir.storage import join_scaled, narrow, rounded, split_q8, storage_shape, widen


def test_every_bf16_pattern_widens_and_narrows_to_itself() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = widen(bits, DType.BF16)
    is_number = ~np.isnan(wide)
    np.testing.assert_array_equal(narrow(wide, DType.BF16)[is_number], bits[is_number])
    assert np.isnan(widen(narrow(wide[~is_number], DType.BF16), DType.BF16)).all()


def test_bf16_rounding_agrees_with_torch_on_ties_extremes_and_random_bits() -> None:
    seed = 3
    print(f"seed {seed}")
    random = np.random.default_rng(seed).integers(0, 1 << 32, 50_000, dtype=np.uint64)
    special = np.array(
        [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0xFF7FFFFF, 0x00000001, 0x80008000],
        dtype=np.uint32,
    )
    values = np.concatenate([random.astype(np.uint32), special]).view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(narrow(values, DType.BF16), expected.view(np.uint16))


def test_nan_with_payload_in_the_dropped_bits_stays_nan() -> None:
    values = np.array([0x7F800001, 0xFF800001], dtype=np.uint32).view(np.float32)
    assert np.isnan(rounded(values, DType.BF16)).all()


def test_overflow_becomes_infinity_and_empty_stays_empty() -> None:
    assert np.isinf(narrow(np.array([70000.0]), DType.F16)).all()
    assert narrow(np.empty((0, 3)), DType.BF16).shape == (0, 3)


def test_rounded_keeps_the_float_type_it_was_given() -> None:
    out = rounded(np.array([1.0 + 2.0**-9]), DType.BF16)
    assert out.dtype == np.float64
    assert out[0] == 1.0


def test_q8_rows_keep_their_largest_value_and_are_half_a_step_from_all_others() -> None:
    values = np.random.default_rng(5).normal(size=(7, 101)).astype(np.float32)
    values[3] = 0.0
    stored = narrow(values, DType.Q8)
    assert stored.dtype == np.uint8 and stored.shape == storage_shape(values.shape, DType.Q8)
    step = np.abs(values).max(axis=1, keepdims=True) / 127
    assert (np.abs(widen(stored, DType.Q8) - values) <= 0.5001 * step).all()
    np.testing.assert_array_equal(narrow(widen(stored, DType.Q8), DType.Q8)[:, :-4], stored[:, :-4])
    assert narrow(np.empty((0, 5)), DType.Q8).shape == (0, 9)


def test_q8_levels_and_scales_come_apart_and_together() -> None:
    stored = narrow(np.random.default_rng(6).normal(size=(3, 17)), DType.Q8)
    levels, scales = split_q8(stored)
    assert levels.shape == (3, 17) and scales.shape == (3,) and (np.abs(levels).max(1) == 127).all()
    np.testing.assert_array_equal(join_scaled(levels, scales), stored)


def test_e4m3_is_what_torch_makes_of_it_and_saturates() -> None:
    codes = np.arange(256, dtype=np.uint8)
    judge = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    np.testing.assert_array_equal(widen_e4m3(codes), judge)
    exact = judge[np.isfinite(judge)]
    ties = (exact[:-1] + exact[1:]) / 2
    chance = np.random.default_rng(8).normal(size=10_000) * 10.0 ** np.linspace(-4, 2.6, 10_000)
    values = np.concatenate([exact, ties, chance.astype(np.float32)])
    values = values[np.abs(values) <= 448]
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(narrow_e4m3(values), expected)
    beyond = np.array([460.0, -1e9, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(narrow_e4m3(beyond), [0x7E, 0xFE, 0x7E, 0x7F])


def test_f8_rows_keep_their_largest_value_and_three_bits_of_all_others() -> None:
    values = np.random.default_rng(9).normal(size=(7, 101)).astype(np.float32)
    values[3] = 0.0
    stored = narrow(values, DType.F8)
    assert stored.shape == storage_shape(values.shape, DType.F8)
    largest = np.abs(values).max(axis=1, keepdims=True)
    # Half of 2^-3 of a value, or half a step of the subnormal values.
    bound = np.maximum(np.abs(values) * 2.0**-4, largest / 448 * 2.0**-10) * 1.0001
    assert (np.abs(widen(stored, DType.F8) - values) <= bound).all()
    assert narrow(np.empty((0, 5)), DType.F8).shape == (0, 9)


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype.group_size])
def test_4_bit_groups_keep_their_ends_and_are_half_a_step_from_all_between(dtype: DType) -> None:
    values = np.random.default_rng(7).normal(size=(5, 2 * dtype.group_size)).astype(np.float32)
    values[3] = 0.25  # a group of equal values
    stored = narrow(values, dtype)
    assert stored.shape == storage_shape(values.shape, dtype) and stored.dtype == np.uint8
    groups = values.reshape(5, 2, -1)
    largest = np.abs(groups).max(-1, keepdims=True)
    half_step = np.ptp(groups, axis=-1, keepdims=True) / 30
    if not dtype.has_offsets:
        # Levels -8 to 7: what lies near 8 is held at 7.
        half_step = np.where(np.abs(groups) > largest * 15 / 16, largest / 8, largest / 16)
    error = np.abs(widen(stored, dtype).reshape(groups.shape) - groups)
    # Scale and offset are f16: 2^-11 of the range and of the least value.
    assert (error <= half_step + 2e-3 * largest).all()
