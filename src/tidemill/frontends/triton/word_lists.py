"""Word lists as the classic models pass them: two rows of integers for each prompt.

Row 0 is the tokens of all words end to end, row 1 where each word ends, filled up with -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.stub_api import Array

PADDING = -1


def pack_words(rows: Sequence[Sequence[Sequence[int]]]) -> Array:
    """Return (prompts, 2, n) of each prompt's words, n the most tokens that a prompt has."""
    width = max((sum(map(len, words)) for words in rows), default=0)
    packed = np.zeros((len(rows), 2, width), dtype=np.int32)
    packed[:, 1] = PADDING
    for row, words in zip(packed, rows, strict=True):
        tokens = [token for word in words for token in word]
        row[0, : len(tokens)] = tokens
        row[1, : len(words)] = np.cumsum([len(word) for word in words])
    return packed


def unpack_words(name: str, array: Array | None, num_rows: int) -> list[list[list[int]]]:
    """Cut a word list into the words of each prompt; without an array there are none.

    Raises: InvalidRequestError when the shape is another, or the ends do not increase.
    """
    if array is None or array.size == 0:
        return [[] for _ in range(num_rows)]
    if array.ndim == 2:
        array = array[np.newaxis]
    if array.ndim != 3 or array.shape[:2] != (num_rows, 2):
        raise _fault(name, f"shape [{num_rows}, 2, n]", f"shape {list(array.shape)}")
    return [_cut(name, *row.tolist()) for row in array]


def _cut(name: str, tokens: list[int], ends: list[int]) -> list[list[int]]:
    ends = [end for end in ends if end != PADDING]
    starts = [0, *ends]
    if any(end <= start for start, end in zip(starts, ends, strict=False)) or (
        ends and ends[-1] > len(tokens)
    ):
        raise _fault(name, f"ends that increase, up to {len(tokens)}", f"ends {ends}")
    return [tokens[start:end] for start, end in zip(starts, ends, strict=False)]


def _fault(name: str, expected: str, got: str) -> InvalidRequestError:
    return InvalidRequestError(
        "a list of words cannot be read",
        where=name,
        expected=expected,
        got=got,
        hint="row 0 holds the words' tokens end to end, row 1 where each word ends, then -1",
    )
