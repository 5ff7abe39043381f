"""Request tensors to options: rows, aliases, what greedy means."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.triton.fake_pb_utils import Array, text_array
from tidemill.base.errors import ConfigError, InvalidRequestError
from tidemill.frontends.triton.model_parameters import ModelParameters, read_session_config
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.sampling_inputs import TEXT_NAMES, choose_top, read_options
from tidemill.frontends.triton.sequences import expand_sequences
from tidemill.frontends.triton.tokens_model import pack_rows, unpack_prompts
from tidemill.host.messages import GenerateRequest
from tidemill.runtime.kvcache.retention import KvCacheRetention, TokenRangeRetention

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


def retention(**lists: list[int]) -> dict[str, Array]:
    names = {"priority": "retention_decode_priority", "duration": "retention_decode_duration_ms"}
    return {
        names.get(name, f"retention_token_range_{name}"): np.array([values], dtype=np.int32)
        for name, values in lists.items()
    }


def test_retention_is_read_with_its_open_ends_and_lasting_priorities() -> None:
    arrays = retention(starts=[0, 64], ends=[32, -1], priorities=[100, 0], durations_ms=[-1, 500])
    arrays |= retention(priority=[80], duration=[-1])
    first, second = read_options(RequestInputs(arrays, num_rows=2), TEXT_NAMES)
    ranges = (TokenRangeRetention(0, 32, 100), TokenRangeRetention(64, None, 0, 500.0))
    assert first.retention == second.retention == KvCacheRetention(ranges, 80)
    (plain,) = read_options(RequestInputs({}, num_rows=1), TEXT_NAMES)
    assert plain.retention is None


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"starts": [0], "priorities": [1]}, "retention_token_range_ends must be provided"),
        ({"starts": [0], "ends": [1]}, "retention_token_range_priorities must be provided"),
        (
            {"starts": [0], "ends": [1], "priorities": [1], "durations_ms": [1, 2]},
            "retention_token_range_durations_ms must .* have the same length",
        ),
    ],
)
def test_ranges_to_retain_that_differ_in_number_are_refused_in_upstreams_words(
    lists: dict[str, list[int]], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        read_options(RequestInputs(retention(**lists), num_rows=1), TEXT_NAMES)


def test_ban_of_repeated_ngrams_is_read_where_a_deployment_declares_it() -> None:
    (options,) = read_options(
        RequestInputs({"no_repeat_ngram_size": column(3)}, num_rows=1), TEXT_NAMES
    )
    assert options.rules is not None and options.rules.no_repeat_ngram_size == 3


@pytest.mark.parametrize("counts", [[0], [-3], [1, 0], [10**6], [4000, 97]])
def test_numbers_of_answers_out_of_range_are_refused_before_any_is_made(counts: list[int]) -> None:
    requests = [GenerateRequest(request_id="", prompt="x")] * len(counts)
    with pytest.raises(InvalidRequestError, match="out of range"):
        expand_sequences(requests, counts)


@pytest.mark.parametrize("width", [0, -2])
def test_beam_width_below_one_is_refused(width: int) -> None:
    with pytest.raises(InvalidRequestError, match="beam_width >= 1"):
        read_options(RequestInputs({"beam_width": column(width)}, num_rows=1), TEXT_NAMES)


def test_bound_of_tritons_queue_is_the_engines_unless_it_has_its_own() -> None:
    policy = {"dynamic_batching": {"default_queue_policy": {"max_queue_size": 7}}}
    assert read_session_config(ModelParameters.of_config(policy)).runtime.max_queue_size == 7
    own = {"parameters": {"max_queue_size": {"string_value": "9"}}, **policy}
    assert read_session_config(ModelParameters.of_config(own)).runtime.max_queue_size == 9
    assert read_session_config(ModelParameters.of_config({})).runtime.max_queue_size == 0


@pytest.mark.parametrize("name", ["encoder_model_path", "lora_prefetch_dir"])
def test_parameter_that_asks_for_a_missing_feature_ends_the_load(name: str) -> None:
    for text in ("", "${encoder_engine_dir}"):
        read_session_config(ModelParameters({name: text}))
    with pytest.raises(ConfigError, match=name):
        read_session_config(ModelParameters({name: "/somewhere"}))


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
