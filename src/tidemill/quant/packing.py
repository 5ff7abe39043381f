"""Weights as native code reads them: panels of 32 outputs, one contiguous stream.

In: plain [outputs, inputs] arrays in storage type. Out: arrays whose bytes go into the engine.
The layout is described in ops/layout.py; it is the same for all CPUs, so that an engine built on
one can be recompiled for another. `pack_activations` does the same for rows of activations, and
`unpack_activations` is its inverse.
"""

from __future__ import annotations

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.ir.storage import Array, join_scaled, split_q4, split_q8, split_scaled
from tidemill.ops.layout import (
    PANEL,
    activation_row,
    k_step,
    padded_k,
    padded_n,
    round_up,
    scale_at,
    sums_at,
)
from tidemill.quant.packing_bf12 import pack_bf12

_WORD_TYPE = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def pack_panels(weight_NK: Array, dtype: DType, name: str = "a matrix") -> Array:
    """Pack a weight matrix.

    Shapes: (N, K) in storage type -> (N padded / 32, K padded / step, 32) words of `step` inputs,
    for q8 and f8 with rows of header words before them; for types of other widths (N padded / 32,
    panel bytes).
    Raises: BuildError, with the matrix's name, where weights do not fit bf12.
    """
    if dtype is DType.Q8 or dtype is DType.F8:
        return _pack_scaled(weight_NK, dtype)
    if dtype.group_size:
        return _pack_q4(weight_NK, dtype)
    if dtype is DType.BF12:
        return pack_bf12(weight_NK, name)
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


def _pack_scaled(weight_NK: Array, dtype: DType) -> Array:
    elements, scales = split_scaled(weight_NK)
    num_outputs, num_inputs = elements.shape
    padding = (
        (0, padded_n(num_outputs) - num_outputs),
        (0, padded_k(num_inputs, dtype) - num_inputs),
    )
    elements = np.pad(elements, padding)
    words = elements.view(np.uint32).reshape(-1, PANEL, elements.shape[1] // 4)
    rows = [pad_vector(scales).view(np.uint32)]
    if dtype is DType.Q8:
        starts = -128 * elements.view(np.int8).sum(axis=1, dtype=np.int32)
        rows.append(starts.view(np.uint32))
    header = np.stack(rows).reshape(len(rows), -1, PANEL).transpose(1, 0, 2)
    packed = np.concatenate([header, words.transpose(0, 2, 1)], axis=1)
    return np.ascontiguousarray(packed)


def _pack_q4(stored: Array, dtype: DType) -> Array:
    """Pack 4-bit rows. Shapes: stored (N, row bytes) -> (N padded / 32, panel bytes)."""
    missing = padded_n(len(stored)) - len(stored)
    nibbles, scales, offsets = split_q4(np.pad(stored, ((0, missing), (0, 0))), dtype)
    panels, groups, size = len(nibbles) // PANEL, nibbles.shape[1], dtype.group_size
    values = scales * nibbles.sum(-1, dtype=np.float32) - size * offsets
    starts = (-128 * values.astype(np.float64).sum(-1)).astype(np.float32)
    kinds = [scales, offsets] if dtype.has_offsets else [scales]
    header = np.stack(kinds, axis=1).astype(np.float16)
    header = header.reshape(panels, PANEL, len(kinds), groups).transpose(0, 3, 2, 1)
    # Inputs t and 4 + t of each eight share a byte.
    eights = nibbles.reshape(panels, PANEL, groups, size // 8, 2, 4)
    rows = (eights[..., 0, :] | eights[..., 1, :] << 4).transpose(0, 2, 3, 1, 4)
    body = [
        np.ascontiguousarray(header).view(np.uint8).reshape(panels, groups, -1),
        rows.reshape(panels, groups, -1),
    ]
    grouped = np.concatenate(body, axis=-1).reshape(panels, -1)
    packed: Array = np.concatenate([starts.view(np.uint8).reshape(panels, -1), grouped], axis=-1)
    return packed


def pack_activations(stored_TK: Array, dtype: DType) -> Array:
    """Lay out rows of activations as kernels read them, padded with zeros."""
    rows, columns = stored_TK.shape
    if dtype is not DType.Q8:
        padded: Array = np.zeros((rows, activation_row(columns, dtype)), dtype.storage_name)
        padded[:, :columns] = stored_TK
        return padded
    levels, scales = split_q8(stored_TK)
    columns = levels.shape[1]
    padded = np.zeros((rows, activation_row(columns, dtype)), np.uint8)
    padded[:, : padded_n(columns)] = 128
    padded[:, :columns] = levels.view(np.uint8) + np.uint8(128)
    padded[:, scale_at(columns) :][:, :4] = scales[:, None].view(np.uint8)
    sums = (
        padded[:, : padded_n(columns)]
        .reshape(rows, padded_n(columns) // PANEL, PANEL)
        .sum(-1)
        .astype(np.float32)
    )
    padded[:, sums_at(columns) :][:, : 4 * sums.shape[1]] = sums.view(np.uint8)
    return padded


def unpack_activations(rows: Array, columns: int, dtype: DType) -> Array:
    """Take rows of activations in storage type out of a kernel's buffer."""
    if dtype is not DType.Q8:
        return rows[:, :columns].copy()
    scales = np.ascontiguousarray(rows[:, scale_at(columns) :][:, :4]).view(np.float32)[:, 0]
    levels = rows[:, :columns] - np.uint8(128)
    return join_scaled(levels, scales)


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
