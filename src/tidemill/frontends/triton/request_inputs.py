"""Reads the tensors of one request by name, as Python values, one row for each prompt.

In: a Triton request, with or without a batch dimension. Out: typed values; scalars that were given
once hold for every row. Knows no sampling names and no defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.stub_api import Array, InferenceRequest

T = TypeVar("T")


def collect_arrays(request: InferenceRequest) -> dict[str, Array]:
    """Return the tensors of a request by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


class RequestInputs:
    """The input tensors of one request, for a number of prompts.

    Raises: InvalidRequestError from every reader when a tensor has the wrong number of elements.
    """

    def __init__(self, arrays: Mapping[str, Array], num_rows: int) -> None:
        self._arrays = arrays
        self.num_rows = num_rows

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a switch that holds for the whole request."""
        array = self._arrays.get(name)
        return default if array is None or array.size == 0 else bool(array.reshape(-1)[0])

    def array(self, name: str) -> Array | None:
        """Return a tensor as it was sent; None when it was not, or has no element."""
        array = self._arrays.get(name)
        return None if array is None or array.size == 0 else array

    def integers(self, name: str) -> list[int | None]:
        return self._scalars(name, int)

    def numbers(self, name: str) -> list[float | None]:
        return self._scalars(name, float)

    def texts(self, name: str) -> list[str | None]:
        return self._scalars(name, as_text)

    def _scalars(self, name: str, convert: Callable[[Any], T]) -> list[T | None]:
        """One value a row; all None when the tensor was not sent or is empty."""
        array = self._arrays.get(name)
        if array is None or array.size == 0:
            return [None] * self.num_rows
        values = [convert(value) for value in array.reshape(-1).tolist()]
        if len(values) == 1:
            return [values[0]] * self.num_rows
        if len(values) != self.num_rows:
            raise InvalidRequestError(
                "an input does not fit the number of prompts",
                where=name,
                expected=f"1 or {self.num_rows} elements",
                got=f"shape {list(array.shape)}",
                hint="send one value for all prompts, or one for each",
            )
        return list(values)

    def text_lists(self, name: str) -> list[tuple[str, ...]]:
        """Return a list of words for each row; empty words mean none and are skipped."""
        rows = self._lists(name)
        return [tuple(text for text in map(as_text, row) if text) for row in rows]

    def integer_lists(self, name: str) -> list[tuple[int, ...]]:
        """Return a list of integers for each row."""
        return [tuple(map(int, row)) for row in self._lists(name)]

    def _lists(self, name: str) -> list[list[Any]]:
        """Return each row's elements; a list that was given once holds for every row."""
        array = self._arrays.get(name)
        if array is None or array.size == 0:
            return [[]] * self.num_rows
        is_per_row = array.ndim == 2 and array.shape[0] == self.num_rows
        rows: list[list[Any]] = array.tolist()
        return rows if is_per_row else [array.reshape(-1).tolist()] * self.num_rows


def as_text(value: object) -> str:
    """Return a string element as text; clients send bytes, JSON and some tests send text.

    Raises: InvalidRequestError when the bytes are not UTF-8.
    """
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            "a text is not UTF-8",
            where=f"byte {error.start} of {len(value)}",
            expected="UTF-8",
            got=repr(value[error.start : error.end]),
            hint="encode the text as UTF-8, without cutting a character in two",
        ) from error
