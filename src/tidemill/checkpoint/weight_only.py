"""Weight-only checkpoints: which tensors are stored as levels and scales, and how.

In: a config, or a weight matrix. Out: the rows of the rank files, or levels and scales. A layer's
matrices are stored as X.weight, int8 [in, out], and X.per_channel_scale [out] in the model's type;
embedding, head and norms stay plain. This is TensorRT-LLM's format with
disable_weight_only_quant_plugin; its other layout is permuted for one GPU's kernels and refused.
Int4 is asked for in the config and its matrices are stored plainly: build quantises them, by group,
as trtllm-build quantises plain weights.
Source: TensorRT-LLM quantization docs, W8A16: scale = largest magnitude / 128, levels -128..127.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import DType
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.dtype_conversion import convert_floats
from tidemill.checkpoint.file_bytes import Array
from tidemill.checkpoint.sharding import Split, TensorRow, expected_tensors

QUANT_ALGO = "W8A16"
INT4_ALGO = "W4A16"
NO_QUANT_ALGO = "NO_QUANT"
GROUP_SIZES = (32, 64, 128)
PLAIN_LAYOUT_KEY = "disable_weight_only_quant_plugin"
_MATRIX = re.compile(r"transformer\.layers\..*\.(qkv|dense|fc|gate|proj)\.weight")
_SCALE_SPLIT = {Split.ROWS: Split.ROWS, Split.QKV: Split.QKV, Split.COLUMNS: Split.REPLICATED}


def is_weight_only(config: CheckpointConfig) -> bool:
    """Whether the layers' matrices are to be int8, stored so or not."""
    return config.quantization.get("quant_algo") == QUANT_ALGO


def as_int4(config: CheckpointConfig) -> CheckpointConfig:
    """Return the config of the same model with layers that build makes int4, by small groups."""
    groups = {"quant_algo": INT4_ALGO, "group_size": GROUP_SIZES[0], "has_zero_point": True}
    return replace(config, quantization={**config.quantization, **groups})


def as_weight_only(config: CheckpointConfig) -> CheckpointConfig:
    """Return the config of the same model with int8 layers."""
    return replace(
        config,
        quantization={**config.quantization, "quant_algo": QUANT_ALGO},
        extra={**config.extra, PLAIN_LAYOUT_KEY: True},
    )


def is_matrix(name: str) -> bool:
    """Whether a tensor is one of those that weight-only checkpoints store as levels."""
    return _MATRIX.fullmatch(name) is not None


def scale_name(name: str) -> str:
    """The name of the scales that belong to a matrix."""
    return name.removesuffix("weight") + "per_channel_scale"


def scale_split(row: TensorRow) -> Split:
    """How the scales by output of a matrix are cut."""
    return _SCALE_SPLIT[row.split]


def stored_rows(config: CheckpointConfig) -> dict[str, TensorRow]:
    """Return every tensor of a weight-only checkpoint, levels and scales in place of matrices."""
    rows: dict[str, TensorRow] = {}
    for name, row in expected_tensors(config).items():
        rows[name] = replace(row, is_levels=is_matrix(name))
        if is_matrix(name):
            scales = TensorRow(scale_name(row.name), row.dims[:1], scale_split(row))
            rows[scale_name(name)] = scales
    return rows


def quantize_matrix(weight_NK: npt.NDArray[np.float32], dtype: DType) -> tuple[Array, Array]:
    """Quantise a matrix by output.

    Shapes: float32 (N, K) -> int8 (N, K) and (N,) of `dtype`; the levels are those that fit the
    scales as `dtype` holds them.
    """
    scales = convert_floats(np.abs(weight_NK).max(axis=1) / 128, DType.F32, dtype, "scales")
    wide = convert_floats(scales, dtype, DType.F32, "scales")
    safe = np.where(wide == 0, np.float32(1), wide)
    levels = np.rint(weight_NK / safe[:, None]).clip(-128, 127).astype(np.int8)
    return levels, scales


def as_q8(levels_NK: Array, scales_N: Array, dtype: DType) -> Array:
    """Join levels and scales as stored rows of q8: each row's levels, then its f32 scale."""
    wide = np.ascontiguousarray(convert_floats(scales_N, dtype, DType.F32, "scales"))
    return np.concatenate([levels_NK.view(np.uint8), wide[:, None].view(np.uint8)], axis=1)


def from_q8(stored: Array, dtype: DType) -> tuple[Array, Array]:
    """Take stored rows of q8 apart; the inverse of `as_q8`."""
    wide = np.ascontiguousarray(stored[:, -4:]).view(np.float32)[:, 0]
    levels = np.ascontiguousarray(stored[:, :-4]).view(np.int8)
    return levels, convert_floats(wide, DType.F32, dtype, "scales")
