"""Reads tables of tensors as the contract prints them: a row for each name, type, dims and flags.

In: text such as `top_k INT32 [1] opt`. Out: `TensorConfig`s. Flags: `opt` optional, `rs` the model
sees no dims, `ragged` rows may differ in shape. Knows no names.
"""

from __future__ import annotations

from tidemill.frontends.triton.config_pbtxt import DataType, TensorConfig

FLAGS = {"opt": "is_optional", "rs": "drops_dims", "ragged": "is_ragged"}


def read_table(text: str) -> tuple[TensorConfig, ...]:
    """Return the tensors of a table; several names of one type stand in one row, with commas."""
    tensors = []
    for row in text.strip().splitlines():
        names, data_type, dims, *flags = row.split()
        wishes = {FLAGS[flag]: True for flag in flags}
        sizes = tuple(int(size) for size in dims.strip("[]").split(","))
        for name in names.split(","):
            tensors.append(TensorConfig(name, DataType[data_type], sizes, **wishes))
    return tuple(tensors)
