"""Cosine and sine tables of rotary position embedding, with the scalings of the Llama family.

In: rotary dimension, base, scaling as the checkpoint's config has it. Out: two f32 tables, one row
a position. Source: transformers' LlamaRotaryEmbedding and modeling_rope_utils. Like there, angles
are products of f32 numbers; powers and cosines are computed wider and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import DType
from tidemill.base.errors import UnsupportedError
from tidemill.checkpoint.rope_scaling import KIND_TO_KEYS, UNSCALED, missing_keys, scaling_kind
from tidemill.ir.builder import GraphBuilder
from tidemill.ir.graph import TensorType, Value

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Llama3Scaling:
    """Divides low frequencies by `factor`, keeps high ones, and blends between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def apply(self, frequencies: Floats) -> Floats:
        """Scale inverse frequencies."""
        wavelengths = (2 * pi / frequencies).astype(np.float32)
        context = self.original_max_position_embeddings
        low, high = context / self.low_freq_factor, context / self.high_freq_factor
        slowed = np.where(wavelengths > low, frequencies / np.float32(self.factor), frequencies)
        smooth = (context / wavelengths - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - smooth) * slowed / self.factor + smooth * slowed
        is_between = (wavelengths >= high) & (wavelengths <= low)
        return np.where(is_between, blended, slowed).astype(np.float32)


@dataclass(frozen=True)
class LinearScaling:
    """Divides all frequencies by `factor`."""

    factor: float

    def apply(self, frequencies: Floats) -> Floats:
        """Scale inverse frequencies."""
        return frequencies / np.float32(self.factor)


Scaling = Llama3Scaling | LinearScaling | None


def read_scaling(values: Mapping[str, Any] | None) -> Scaling:
    """Read `rotary_scaling` of a checkpoint's config; None means unscaled.

    Raises: UnsupportedError for other kinds, or llama3 or linear without their numbers.
    """
    if values is None or scaling_kind(values) == UNSCALED:
        return None
    kind = scaling_kind(values)
    if kind not in KIND_TO_KEYS:
        raise UnsupportedError(
            "rotary scaling is not supported",
            where="config.json, rotary_scaling",
            expected="null, " + ", ".join(KIND_TO_KEYS),
            got=kind,
            hint="within the original context length it is often not needed: set it to null",
        )
    missing = missing_keys(values)
    if missing:
        raise UnsupportedError(
            f"rotary scaling {kind} lacks its numbers",
            where="config.json, rotary_scaling",
            expected=", ".join(KIND_TO_KEYS[kind]),
            got="no number for " + ", ".join(missing),
            hint="take rope_scaling from the original model's config.json",
        )
    numbers = {key: values[key] for key in KIND_TO_KEYS[kind]}
    return Llama3Scaling(**numbers) if kind == "llama3" else LinearScaling(**numbers)


@dataclass(frozen=True)
class Rotary:
    """What the tables are made of. `dim` columns of each head are rotated."""

    dim: int
    base: float
    scaling: Scaling = None

    def frequencies(self) -> Floats:
        """Compute the inverse frequencies, f32[dim / 2]."""
        exponents = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        powers = (self.base ** exponents.astype(np.float64)).astype(np.float32)
        frequencies = np.float32(1) / powers
        return self.scaling.apply(frequencies) if self.scaling else frequencies

    def angles(self, num_positions: int) -> Floats:
        """Compute the angles, f32[positions, dim / 2]."""
        positions = np.arange(num_positions, dtype=np.float32)
        return positions[:, None] * self.frequencies()


def draw_rotary_tables(
    pen: GraphBuilder, rotary: Rotary, num_positions: int
) -> tuple[Value, Value]:
    """Draw the constants rope_cos and rope_sin, f32[positions, dim / 2]."""
    table_type = TensorType(DType.F32, (num_positions, rotary.dim // 2))

    def angles() -> npt.NDArray[np.float64]:
        return rotary.angles(num_positions).astype(np.float64)

    cos = pen.constant("rope_cos", table_type, lambda: np.cos(angles()).astype(np.float32))
    sin = pen.constant("rope_sin", table_type, lambda: np.sin(angles()).astype(np.float32))
    return cos, sin
