"""Writes a safetensors file tensor by tensor, so that no model has to fit into memory.

In: names with type and shape, and a function that makes one tensor's values when its turn comes.
bfloat16 values come as their uint16 bits.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPE_TO_STORAGE = {"BF16": np.uint16, "F32": np.float32, "I8": np.int8}

TensorSpec = tuple[str, tuple[int, ...]]


def write_safetensors(
    path: Path, name_to_spec: Mapping[str, TensorSpec], make: Callable[[str], npt.NDArray[Any]]
) -> None:
    """Write all tensors in the order of the mapping."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in name_to_spec.items():
        start, end = end, end + prod(shape) * np.dtype(DTYPE_TO_STORAGE[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (dtype, shape) in name_to_spec.items():
            values = make(name)
            assert values.shape == shape and values.dtype == DTYPE_TO_STORAGE[dtype], name
            file.write(np.ascontiguousarray(values).data)
