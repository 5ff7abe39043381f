"""fp8 checkpoints: e4m3 matrices with one scale each (FP8), or one for each output (rowwise).

In: a config, or the bytes and scales of a matrix. Out: the rows of the rank files, or stored rows
of f8. Weights are taken as they are and activations stay 16 bits wide, so the calibrated scales of
activations and of the key-value cache have no use here and may be there or not.
Source: TensorRT-LLM quantization/mode.py and ModelOpt's export; value = e4m3 * scale.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.dtype_conversion import convert_floats
from tidemill.checkpoint.file_bytes import Array
from tidemill.checkpoint.sharding import Split, TensorRow, expected_tensors
from tidemill.checkpoint.weight_only import is_matrix, scale_name, scale_split

ONE_SCALE = "FP8"
SCALE_BY_OUTPUT = "FP8_PER_CHANNEL_PER_TOKEN"
UNUSED_ENDINGS = (
    ".activation_scaling_factor",
    ".kv_cache_scaling_factor",
    ".k_cache_scaling_factor",
    ".v_cache_scaling_factor",
)


def is_fp8(config: CheckpointConfig) -> bool:
    """Whether the layers' matrices are to be fp8, stored so or not."""
    return config.quantization.get("quant_algo") in (ONE_SCALE, SCALE_BY_OUTPUT)


def fp8_scale_name(name: str, config: CheckpointConfig) -> str:
    """The name of the scale or scales that belong to a matrix."""
    if config.quantization["quant_algo"] == SCALE_BY_OUTPUT:
        return scale_name(name)
    return name.removesuffix("weight") + "weights_scaling_factor"


def fp8_rows(config: CheckpointConfig) -> dict[str, TensorRow]:
    """Return every tensor of an fp8 checkpoint: after each matrix come its scales."""
    is_by_output = config.quantization["quant_algo"] == SCALE_BY_OUTPUT
    rows: dict[str, TensorRow] = {}
    for name, row in expected_tensors(config).items():
        rows[name] = row
        if is_matrix(name):
            scales = replace(row, name=fp8_scale_name(row.name, config), dims=("1",))
            split = scale_split(row) if is_by_output else Split.REPLICATED
            dims = row.dims[:1] if is_by_output else scales.dims
            rows[fp8_scale_name(name, config)] = replace(scales, dims=dims, split=split)
    return rows


def as_f8(codes_NK: Array, scales: Array, scale_dtype: DType) -> Array:
    """Join e4m3 bytes and their scales, one or one for each row, as stored rows of f8."""
    wide = convert_floats(scales, scale_dtype, DType.F32, "scales")
    each = np.broadcast_to(wide, codes_NK.shape[:1])
    scale_bytes = np.ascontiguousarray(each)[:, None].view(np.uint8)
    return np.concatenate([codes_NK.view(np.uint8), scale_bytes], axis=1)
