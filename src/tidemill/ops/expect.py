"""Checks that type rules are made of; each raises `TypeFault` with expected against got.

In: input types. Out: the dimensions that a rule goes on with. Knows no op by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidemill.base.dtypes import DType
from tidemill.ir.graph import AttrValue, Dim, TensorType
from tidemill.ir.rules import TypeFault

Types = Sequence[TensorType]
Attrs = Mapping[str, AttrValue]
WEIGHT_DTYPES = (DType.F32, DType.F16, DType.BF16)
# Keys and values: 8-bit ones have a scale for each token and head.
CACHE_DTYPES = (*WEIGHT_DTYPES, DType.Q8, DType.F8)
MATRIX_DTYPES = (*CACHE_DTYPES, DType.BF12, *(dtype for dtype in DType if dtype.group_size))
ACTIVATION_DTYPES = (DType.F32, DType.BF16)
QUANTIZED_ACTIVATIONS = (*ACTIVATION_DTYPES, DType.Q8)


def expect_count(types: Types, *counts: int) -> None:
    """Expect as many inputs as one of the counts."""
    if len(types) not in counts:
        expected = " or ".join(map(str, counts))
        raise TypeFault(f"expected {expected} inputs, got {len(types)}")


def expect_dims(what: str, got: TensorType, rank: int) -> tuple[Dim, ...]:
    """Expect a rank; return the dimensions."""
    if len(got.shape) != rank:
        raise TypeFault(f"{what}: expected {rank} dimension(s), got {got}")
    return got.shape


def expect_dtype(what: str, got: TensorType, *dtypes: DType) -> None:
    """Expect one of the element types."""
    if got.dtype not in dtypes:
        expected = " or ".join(dtype.value for dtype in dtypes)
        raise TypeFault(f"{what}: expected element type {expected}, got {got}")


def expect_type(what: str, got: TensorType, dtype: DType, *shape: Dim) -> None:
    """Expect exactly this type."""
    expected = TensorType(dtype, shape)
    if got != expected:
        raise TypeFault(f"{what}: expected {expected}, got {got}")


def expect_size(what: str, dim: Dim) -> int:
    """Expect a dimension that is known at build time."""
    if not isinstance(dim, int):
        raise TypeFault(f"{what}: expected a known size, got {dim}")
    return dim


def expect_int(attrs: Attrs, name: str) -> int:
    """Expect a positive integer attribute."""
    value = attrs[name]
    if not isinstance(value, int) or value <= 0:
        raise TypeFault(f"attribute {name}: expected a positive number, got {value!r}")
    return value


def expect_window(attrs: Attrs) -> int:
    """Expect how many of the last positions a row attends to, its own included; 0 means all."""
    value = attrs["window"]
    if not isinstance(value, int) or value < 0:
        raise TypeFault(f"attribute window: expected a number from 0, got {value!r}")
    return value


def expect_dtype_attr(attrs: Attrs, name: str, *dtypes: DType) -> DType:
    """Expect an attribute that names one of the element types."""
    for dtype in dtypes:
        if attrs[name] == dtype.value:
            return dtype
    expected = " or ".join(dtype.value for dtype in dtypes)
    raise TypeFault(f"attribute {name}: expected {expected}, got {attrs[name]!r}")
