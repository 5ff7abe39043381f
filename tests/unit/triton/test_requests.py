"""Request tensors to options: rows, aliases, what greedy means."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.triton.fake_pb_utils import Array, text_array
from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.sampling_inputs import TEXT_NAMES, choose_top, read_options
from tidemill.frontends.triton.tokens_model import pack_rows, unpack_prompts

NEUTRAL = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "length_penalty": 1.0,
    "min_tokens": 1,
    "min_length": 1,
    "beam_width": 1,
    "num_return_sequences": 1,
    "return_log_probs": False,
    "return_context_logits": False,
    "pad_id": 2,
}


def column(*values: float) -> Array:
    return np.array(values).reshape(-1, 1)


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (None, None, (1, 1.0)),
        (None, 0.0, (1, 1.0)),
        (None, -1.0, (1, 1.0)),
        (None, 0.9, (0, 0.9)),
        (0, None, (0, 1.0)),
        (50, None, (50, 1.0)),
        (50, 0.0, (50, 1.0)),
        (50, 0.9, (50, 0.9)),
        (1, 0.9, (1, 0.9)),
    ],
)
def test_sampling_is_greedy_unless_top_k_or_top_p_says_otherwise(
    top_k: int | None, top_p: float | None, expected: tuple[int, float]
) -> None:
    assert choose_top(top_k, top_p) == expected


def test_temperature_alone_stays_greedy() -> None:
    inputs = RequestInputs({"max_tokens": column(5), "temperature": column(0.7)}, num_rows=1)
    (options,) = read_options(inputs, TEXT_NAMES)
    assert (options.top_k, options.top_p, options.temperature) == (1, 1.0, 0.7)
    assert (options.max_tokens, options.seed, options.end_id) == (5, None, None)


def test_scalar_holds_for_every_row_and_a_column_for_its_own() -> None:
    inputs = RequestInputs({"max_tokens": column(5), "seed": column(1, 2, 2**64 - 1)}, num_rows=3)
    rows = read_options(inputs, TEXT_NAMES)
    assert [row.max_tokens for row in rows] == [5, 5, 5]
    arrays = {"seed": np.array([[1], [2], [2**64 - 1]], dtype=np.uint64)}
    rows = read_options(RequestInputs(arrays, num_rows=3), TEXT_NAMES)
    assert [row.seed for row in rows] == [1, 2, 2**64 - 1]


@pytest.mark.parametrize("name", ["seed", "random_seed"])
def test_both_names_of_the_seed_are_read(name: str) -> None:
    (options,) = read_options(RequestInputs({name: column(7)}, num_rows=1), TEXT_NAMES)
    assert options.seed == 7


def test_column_of_another_height_is_refused() -> None:
    inputs = RequestInputs({"top_k": column(1, 2)}, num_rows=3)
    with pytest.raises(InvalidRequestError, match="1 or 3 elements"):
        read_options(inputs, TEXT_NAMES)


def test_neutral_values_of_missing_features_are_accepted() -> None:
    arrays = {name: column(value) for name, value in NEUTRAL.items()}
    arrays["bad_words"] = text_array("")
    read_options(RequestInputs(arrays, num_rows=1), TEXT_NAMES)


def test_stop_words_are_lists_by_row_and_empty_ones_are_none() -> None:
    arrays = {"stop_words": text_array("a", "", "b", "c", shape=(2, 2))}
    assert RequestInputs(arrays, num_rows=2).text_lists("stop_words") == [("a",), ("b", "c")]
    arrays = {"stop_words": text_array("a", "b", shape=(2,))}
    assert RequestInputs(arrays, num_rows=1).text_lists("stop_words") == [("a", "b")]
    assert RequestInputs({}, num_rows=2).text_lists("stop_words") == [(), ()]


@pytest.mark.parametrize("rows", [[[1]], [[1, 2, 3], [4], [5, 6]], [[7] * 17, [8] * 31]])
def test_packing_and_unpacking_are_inverse(rows: list[list[int]]) -> None:
    packed = pack_rows(rows)
    assert unpack_prompts(packed["output_ids"], packed["output_lengths"]) == rows


def test_answers_may_be_empty() -> None:
    packed = pack_rows([[], [3], []])
    assert packed["output_ids"].tolist() == [3]
    assert packed["output_lengths"].tolist() == [0, 1, 0]
    assert packed["output_ids"].dtype == packed["output_lengths"].dtype == np.int32
