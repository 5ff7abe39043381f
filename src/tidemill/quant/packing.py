"""Weights as native code reads them: panels of 32 outputs, one contiguous stream.

In: plain [outputs, inputs] arrays in storage type. Out: arrays whose bytes go into the engine.
The layout is described in ops/layout.py; it is the same for all CPUs, so that an engine built on
one can be recompiled for another. `unpack_panels` is the inverse, for verification and tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import DType
from tidemill.ops.layout import PANEL, k_step, padded_k, padded_n, round_up

Array = npt.NDArray[Any]
_WORD_TYPE = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def pack_panels(weight_NK: Array, dtype: DType) -> Array:
    """Pack a weight matrix.

    Shapes: (N, K) in storage type -> (N padded / 32, K padded / step, 32) words of `step` inputs.
    """
    num_outputs, num_inputs = weight_NK.shape
    rows, columns = padded_n(num_outputs), padded_k(num_inputs, dtype)
    if (rows, columns) != weight_NK.shape:
        padding = ((0, rows - num_outputs), (0, columns - num_inputs))
        weight_NK = np.pad(weight_NK, padding)
    word = _WORD_TYPE[k_step(dtype) * dtype.itemsize_bytes]
    words = np.ascontiguousarray(weight_NK).view(word)
    panels = words.reshape(rows // PANEL, PANEL, -1)
    packed: Array = np.ascontiguousarray(panels.transpose(0, 2, 1))
    return packed


def unpack_panels(packed: Array, num_outputs: int, num_inputs: int, dtype: DType) -> Array:
    """Restore the (N, K) matrix in storage type."""
    words: Array = np.ascontiguousarray(packed.transpose(0, 2, 1))
    words = words.reshape(packed.shape[0] * PANEL, -1)
    weight_NK: Array = words.view(dtype.storage_name)[:num_outputs, :num_inputs]
    return weight_NK


def interleave_gate(fc_IK: Array, gate_IK: Array) -> Array:
    """Join the two branches of a gated MLP so that a panel is 16 outputs of each.

    Shapes: two of (I, K), or of (I,) for biases -> (2 * I padded to 16, ...).
    """
    half = PANEL // 2
    padding = round_up(len(fc_IK), half) - len(fc_IK)
    widths = [(0, padding)] + [(0, 0)] * (fc_IK.ndim - 1)
    branches = [
        np.pad(branch, widths).reshape(-1, half, *branch.shape[1:]) for branch in (fc_IK, gate_IK)
    ]
    joined: Array = np.concatenate(branches, axis=1).reshape(-1, *fc_IK.shape[1:])
    return joined


def pad_vector(vector_N: Array) -> Array:
    """Pad a vector of f32 with zeros to whole panels."""
    return np.pad(vector_N, (0, padded_n(len(vector_N)) - len(vector_N)))
