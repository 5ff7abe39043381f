"""A Hugging Face directory of a Llama with int8 weights, for vLLM: compressed-tensors, W8A8.

Weights are symmetric int8 by output channel, activations are quantised by token as they come; the
embedding and the head stay as they are, as in published W8A8 models.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.parts.safetensors_stream import TensorSpec, write_safetensors
from tidemill.base.dtypes import DType
from tidemill.checkpoint.dtype_conversion import convert_floats, widen
from tidemill.checkpoint.safetensors_source import SafetensorsSource

_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_ACTIVATIONS = {**_WEIGHTS, "strategy": "token", "dynamic": True}
QUANTIZATION_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_WEIGHTS, "dynamic": False},
            "input_activations": _ACTIVATIONS,
            "output_activations": None,
        }
    },
}
_SCALE = "_scale"


def write_w8a8(hf_dir: Path, directory: Path) -> None:
    """Write the directory; whole or not at all."""
    staged = directory.with_name(directory.name + ".part")
    shutil.copytree(hf_dir, staged, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safe*"))
    config = json.loads((hf_dir / "config.json").read_text("utf-8"))
    config["quantization_config"] = QUANTIZATION_CONFIG
    (staged / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    source = SafetensorsSource([hf_dir / "model.safetensors"])
    specs: dict[str, TensorSpec] = {}
    for name in source.names():
        shape = source.shape(name)
        is_linear = name.endswith("_proj.weight")
        specs[name] = ("I8" if is_linear else "BF16", shape)
        if is_linear:
            specs[name + _SCALE] = ("BF16", (shape[0], 1))

    def make(name: str) -> npt.NDArray[Any]:
        stored = source.read(name.removesuffix(_SCALE))
        if not name.removesuffix(_SCALE).endswith("_proj.weight"):
            return stored
        values = widen(stored, DType.BF16)
        scale = convert_floats(_scales(values), DType.F32, DType.BF16, name)
        if name.endswith(_SCALE):
            return scale
        return np.clip(np.rint(values / widen(scale, DType.BF16)), -128, 127).astype(np.int8)

    write_safetensors(staged / "model.safetensors", specs, make)
    staged.rename(directory)


def _scales(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    most: npt.NDArray[np.float32] = np.abs(values).max(axis=1, keepdims=True)
    return np.maximum(most, np.float32(1e-8)) / np.float32(127)
