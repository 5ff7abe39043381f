"""The tensors of a weight-only checkpoint: levels and scales where matrices stood.

In: the tensors as they would be written plainly. Out: the list to write. A matrix is loaded and
quantised once: its scales, a vector, wait until their own turn. A source that holds levels already
keeps them to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from tidemill.api.convert_sources import OpenedModel
from tidemill.base.dtypes import DType
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.file_bytes import Array
from tidemill.checkpoint.weight_only import (
    from_q8,
    is_matrix,
    quantize_matrix,
    scale_name,
    stored_rows,
)
from tidemill.checkpoint.writer import TensorToWrite


def weight_only_tensors(
    tensors: Sequence[TensorToWrite], model: OpenedModel, config: CheckpointConfig
) -> list[TensorToWrite]:
    """Return the tensors to write: after each matrix come its scales."""
    rows = stored_rows(config)
    result: list[TensorToWrite] = []
    for tensor in tensors:
        if not is_matrix(tensor.name):
            result.append(tensor)
            continue
        scales: Future[Array] = Future()
        load = partial(_load_levels, model.loaders[tensor.name], model.has_levels, config, scales)
        name = scale_name(tensor.name)
        result.append(TensorToWrite(tensor.name, rows[tensor.name], load))
        result.append(TensorToWrite(name, rows[name], scales.result))
    return result


def _load_levels(
    load: Callable[[DType], Array],
    has_levels: bool,
    config: CheckpointConfig,
    scales: Future[Array],
) -> Array:
    """Load a matrix as levels, and hand over its scales, or the error that there are none."""
    try:
        if has_levels:
            levels, found = from_q8(load(DType.Q8), config.weight_dtype)
        else:
            levels, found = quantize_matrix(load(DType.F32), config.weight_dtype)
    except BaseException as error:
        scales.set_exception(error)
        raise
    scales.set_result(found)
    return levels
