"""Inputs that steer generation, as fields of engine requests; observations as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unit.triton.fake_pb_utils import Array, text_array
from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.generation_inputs import add_generation_inputs
from tidemill.frontends.triton.observed_tensors import ObservedTensors
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.tokens_model import pack_observed
from tidemill.host.messages import GenerateRequest, Update
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.observation import OutputWishes

PLAIN = GenerateRequest(request_id="")


def column(*values: float) -> Array:
    return np.array(values).reshape(-1, 1)


def read(arrays: dict[str, Array], num_rows: int = 1) -> list[GenerateRequest]:
    return add_generation_inputs([PLAIN] * num_rows, RequestInputs(arrays, num_rows))


def test_nothing_sent_changes_nothing() -> None:
    assert read({}) == [PLAIN]
    neutral = {
        "repetition_penalty": column(1.0),
        "presence_penalty": column(0.0),
        "min_length": column(0),
        "bad_words": text_array(""),
        "embedding_bias": np.zeros((1, 5), np.float32),
        "return_log_probs": np.array([[False]]),
    }
    assert read(neutral) == [PLAIN]


def test_each_row_has_rules_of_its_own() -> None:
    first, second = read(
        {
            "repetition_penalty": column(1.5, 2.0),
            "presence_penalty": column(0.5),
            "sampling_param_frequency_penalty": column(0.25),
            "min_length": column(3, 4),
            "runtime_top_p_decay": column(0.5),
            "runtime_top_p_min": column(0.125),
            "runtime_top_p_reset_ids": column(7, 8),
            "bad_words_list": np.array([[[4, 5, 6], [1, 3, -1]], [[0, 0, 0], [-1, -1, -1]]]),
            "embedding_bias": np.array([[0.0, 0.0], [1.0, -1.0]], np.float32),
        },
        num_rows=2,
    )
    common: dict[str, Any] = {
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "top_p_decay": 0.5,
        "top_p_min": 0.125,
    }
    assert first.rules == LogitsRules(
        1.5, min_tokens=3, top_p_reset_ids=7, bad_words=((4,), (5, 6)), **common
    )
    bias = np.array([1.0, -1.0], np.float32).tobytes()
    assert second.rules == LogitsRules(
        2.0, min_tokens=4, top_p_reset_ids=8, embedding_bias=bias, **common
    )


def test_words_and_guides_stay_text_for_the_host() -> None:
    (request,) = read(
        {
            "bad_words": text_array("no", "never"),
            "embedding_bias_words": text_array("yes", "so"),
            "embedding_bias_weights": np.array([[1.5, -2.0]], np.float32),
            "guided_decoding_guide_type": text_array("regex"),
            "guided_decoding_guide": text_array("[a-z]+"),
        }
    )
    assert request.bad_words == ["no", "never"]
    assert request.bias_words == [("yes", 1.5), ("so", -2.0)]
    assert request.guide == ("regex", "[a-z]+")


def test_biased_words_without_weights_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="2 words, 1 weights"):
        read({"embedding_bias_words": text_array("a", "b"), "embedding_bias_weights": column(1.0)})


def test_embedding_bias_for_other_prompts_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="1 or 2 rows"):
        read({"embedding_bias": np.ones((3, 4), np.float32)}, num_rows=2)


def test_wishes_become_tensors_of_what_is_new() -> None:
    (request,) = read(
        {
            "return_log_probs": column(1),
            "return_context_logits": column(1),
            "return_generation_logits": column(1),
        }
    )
    assert request.wishes == OutputWishes(0, None, True, True)
    tensors = ObservedTensors(request.wishes)
    logits = np.arange(12, dtype=np.float32).reshape(4, 3)
    first, second = Update("", [5], "", None, 2, 1), Update("", [6], "", "length", 2, 2)
    first.logprobs, first.cumulative_logprob = [((5, -0.5, 1),)], -0.5
    first.context_logits, first.generation_logits = logits[:2].tobytes(), logits[2].tobytes()
    second.logprobs, second.cumulative_logprob = [((6, -1.0, 1),)], -1.5
    second.generation_logits = logits[3].tobytes()
    tensors.add(first)
    told = tensors.take(1)
    assert told["cum_log_probs"].tolist() == [-0.5]
    assert told["context_logits"].tolist() == logits[:2].tolist()
    tensors.add(second)
    later = tensors.take(1)
    assert "context_logits" not in later
    assert later["output_log_probs"].tolist() == [[-1.0]]
    assert later["generation_logits"].tolist() == [[logits[3].tolist()]]
    packed = pack_observed([told, later])
    assert packed["cum_log_probs"].tolist() == [-0.5, -1.5]
    assert packed["output_log_probs"].tolist() == [-0.5, -1.0]
    assert packed["generation_logits"].tolist() == logits[2:].tolist()
