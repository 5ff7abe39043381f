"""One test for each mistake in what a request asks of sampling."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.errors.test_runtime import refusal
from tidemill.api.sampling_params import GuidedDecodingParams, SamplingParams
from tidemill.base.errors import InvalidRequestError, TidemillError
from tidemill.host.beam_search import BeamSettings
from tidemill.host.jobs import check_numbers, check_together
from tidemill.host.logits_processors import find_processor
from tidemill.host.messages import GenerateRequest
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.observation import OutputWishes
from tidemill.runtime.request import Request
from tidemill.runtime.request import SamplingParams as RuntimeSampling


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "require temperature >= 0, got temperature=-1"),
        ({"top_p": 2}, "require 0 <= top_p <= 1, got top_p=2"),
        ({"top_k": -1}, "require top_k >= 0, got top_k=-1"),
        ({"min_p": 1.5, "top_k": 5}, "require 0 <= min_p <= 1, got min_p=1.5"),
        ({"min_p": 7.0}, "require 0 <= min_p <= 1, got min_p=7.0"),
        ({"seed": -5}, r"require 0 <= seed < 2\*\*64, got seed=-5"),
        ({"repetition_penalty": 0}, "require repetition_penalty > 0, got repetition_penalty=0"),
        ({"presence_penalty": math.nan}, "require a finite presence_penalty"),
        ({"frequency_penalty": math.inf}, "require a finite frequency_penalty"),
        ({"min_tokens": -1}, "require min_tokens >= 0, got min_tokens=-1"),
        ({"no_repeat_ngram_size": -2}, "require no_repeat_ngram_size >= 0"),
        ({"prompt_ignore_length": -2}, "require prompt_ignore_length >= 0"),
        ({"top_p_min": 0}, "require 0 < top_p_min <= 1, got top_p_min=0"),
        ({"top_p_decay": 1.5}, "require 0 < top_p_decay <= 1, got top_p_decay=1.5"),
        ({"bad_token_ids": [[]]}, "require bad words of at least one token"),
        ({"logit_bias": {1: math.nan}}, "require logit_bias below infinity"),
        ({"logprobs": -1}, "require logprobs >= 0, got logprobs=-1"),
        ({"prompt_logprobs": -1}, "require prompt_logprobs >= 0, got prompt_logprobs=-1"),
    ],
)
def test_value_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match="^" + message.replace(".", r"\.")):
        SamplingParams(**settings)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(1, (1,), 4, stop_words=((),)), "require stop words of at least one token"),
        (Request(1, (1,), 4, stop_words=((2, 31),)), "stop words holds token 31"),
        (
            Request(1, (1,), 4, RuntimeSampling(rules=LogitsRules(bad_words=((99,),)))),
            "bad words holds token 99",
        ),
        (
            Request(1, (1,), 4, RuntimeSampling(rules=LogitsRules(logit_bias=((-1, 1.0),)))),
            "logit_bias holds token -1",
        ),
        (
            Request(1, (1,), 4, RuntimeSampling(rules=LogitsRules(embedding_bias=bytes(8)))),
            "embedding_bias has 2 values, expected 31",
        ),
        (
            Request(1, (1,), 4, wishes=OutputWishes(num_logprobs=-1)),
            "require logprobs >= 0, got logprobs=-1",
        ),
    ],
)
def test_what_does_not_fit_the_model(request_: Request, message: str) -> None:
    assert message in refusal(request_)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "require n >= 1, got n=0"),
        ({"n": 3, "best_of": 2}, "best_of (2) cannot be less than n (3)"),
        ({"best_of": 2, "streaming": True}, "a stream tells every answer"),
        ({"beams": BeamSettings(0)}, "require 1 <= beam_width <= 256, got beam_width=0"),
        ({"beams": BeamSettings(2), "streaming": True}, "a beam search cannot stream"),
        ({"beams": BeamSettings(2), "n": 3}, "n (3) cannot exceed beam_width (2)"),
        ({"beams": BeamSettings(2, math.nan)}, "require a finite length_penalty"),
    ],
)
def test_numbers_of_answers_that_contradict(settings: dict[str, Any], message: str) -> None:
    faults = check_numbers(GenerateRequest(request_id="a", **settings))
    assert message in faults[0]


def test_no_beams_at_all() -> None:
    beams = SamplingParams(use_beam_search=True, best_of=0).beams
    (fault, *_) = check_numbers(GenerateRequest(request_id="a", beams=beams))
    assert fault == "require 1 <= beam_width <= 256, got beam_width=0"


def test_several_greedy_answers() -> None:
    wanted = GenerateRequest(request_id="a", n=2)
    (fault,) = check_together(wanted, Request(1, (1,), 4))
    assert fault.startswith("Greedy decoding does not allow multiple returns")


def test_beams_with_penalties() -> None:
    wanted = GenerateRequest(request_id="a", beams=BeamSettings(2))
    rules = LogitsRules(repetition_penalty=2.0)
    (fault,) = check_together(wanted, Request(1, (1,), 4, RuntimeSampling(rules=rules)))
    assert fault == "a beam search takes no penalties, bans and biases"


@pytest.mark.parametrize("given", [{}, {"regex": "a", "json_object": True}])
def test_guides_that_are_not_one(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="takes one guide"):
        GuidedDecodingParams(**given)


@pytest.mark.parametrize("name", ["nowhere.at.all:f", "math:nothing", "math", "math:pi", ":"])
def test_logits_processor_that_is_not_there(name: str) -> None:
    with pytest.raises(TidemillError, match="logits processor cannot be found"):
        find_processor(name)
