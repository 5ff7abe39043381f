"""Turns the inputs that steer generation beyond top-k and top-p into fields of engine requests.

In: one engine request for each prompt, and the named tensors of any style. Out: the same with
penalties, bans, biases, guides and wishes for log-probabilities and logits. Inputs that were not
sent change nothing. Names of one thing: the first that was sent counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec
import numpy as np

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.word_lists import unpack_words
from tidemill.host.messages import GenerateRequest
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.observation import OutputWishes

T = TypeVar("T")

# Field of `LogitsRules`: names of the input that sets it.
NUMBER_INPUTS = {
    "repetition_penalty": ("repetition_penalty",),
    "presence_penalty": ("presence_penalty", "sampling_param_presence_penalty"),
    "frequency_penalty": ("frequency_penalty", "sampling_param_frequency_penalty"),
    "top_p_decay": ("runtime_top_p_decay",),
    "top_p_min": ("runtime_top_p_min",),
}
INTEGER_INPUTS = {
    "min_tokens": ("min_tokens", "min_length"),
    "top_p_reset_ids": ("runtime_top_p_reset_ids",),
}


def add_generation_inputs(
    requests: Sequence[GenerateRequest], inputs: RequestInputs
) -> list[GenerateRequest]:
    """Return the requests with what the inputs ask for.

    Raises: InvalidRequestError when an input does not fit the prompts or another input.
    """
    wishes = _wishes(inputs)
    columns = zip(
        requests,
        _rules(inputs),
        inputs.text_lists("bad_words"),
        _bias_words(inputs),
        _guides(inputs),
        strict=True,
    )
    return [
        msgspec.structs.replace(
            request,
            rules=None if rules.is_neutral else rules,
            bad_words=list(bad_words),
            bias_words=bias_words,
            guide=guide,
            wishes=None if wishes.is_empty else wishes,
        )
        for request, rules, bad_words, bias_words, guide in columns
    ]


def _rules(inputs: RequestInputs) -> list[LogitsRules]:
    rows: list[dict[str, object]] = [{} for _ in range(inputs.num_rows)]
    columns: dict[str, list[object]] = {}
    for field, names in NUMBER_INPUTS.items():
        columns[field] = [*_first_sent([inputs.numbers(name) for name in names])]
    for field, names in INTEGER_INPUTS.items():
        columns[field] = [*_first_sent([inputs.integers(name) for name in names])]
    for field, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                row[field] = value
    bad_words = unpack_words("bad_words_list", inputs.array("bad_words_list"), inputs.num_rows)
    biases = _embedding_biases(inputs)
    return [
        replace(
            LogitsRules(**row),  # type: ignore[arg-type]
            bad_words=tuple(map(tuple, words)),
            embedding_bias=bias,
        )
        for row, words, bias in zip(rows, bad_words, biases, strict=True)
    ]


def _first_sent(columns: Sequence[list[T | None]]) -> list[T | None]:
    """Each row's first value that is not None."""
    return [
        next((value for value in values if value is not None), None)
        for values in zip(*columns, strict=True)
    ]


def _embedding_biases(inputs: RequestInputs) -> list[bytes | None]:
    array = inputs.array("embedding_bias")
    if array is None:
        return [None] * inputs.num_rows
    rows = array.astype(np.float32).reshape(-1, array.shape[-1])
    if len(rows) not in (1, inputs.num_rows):
        raise InvalidRequestError(
            "an input does not fit the number of prompts",
            where="embedding_bias",
            expected=f"1 or {inputs.num_rows} rows",
            got=f"shape {list(array.shape)}",
        )
    rows = np.broadcast_to(rows, (inputs.num_rows, rows.shape[1]))
    # preprocessing always sends a row; zeros ask for nothing.
    return [row.tobytes() if row.any() else None for row in rows]


def _bias_words(inputs: RequestInputs) -> list[list[tuple[str, float]]]:
    words = inputs.text_lists("embedding_bias_words")
    array = inputs.array("embedding_bias_weights")
    weights = [] if array is None else array.reshape(-1).tolist()
    if not any(words):
        return [[] for _ in words]
    rows = [weights] * len(words)
    if array is not None and array.ndim == 2 and len(array) == len(words):
        rows = array.tolist()
    for row, own in zip(words, rows, strict=True):
        if len(row) != len(own):
            raise InvalidRequestError(
                "words and weights of the embedding bias do not match",
                where="embedding_bias_words, embedding_bias_weights",
                expected="a weight for each word",
                got=f"{len(row)} words, {len(own)} weights",
            )
    return [
        [(word, float(weight)) for word, weight in zip(row, own, strict=True)]
        for row, own in zip(words, rows, strict=True)
    ]


def _guides(inputs: RequestInputs) -> list[tuple[str, str] | None]:
    kinds = inputs.texts("guided_decoding_guide_type")
    guides = inputs.texts("guided_decoding_guide")
    return [
        (kind, guide or "") if kind else None for kind, guide in zip(kinds, guides, strict=True)
    ]


def _wishes(inputs: RequestInputs) -> OutputWishes:
    wants_logprobs = inputs.flag("return_log_probs") or inputs.flag("return_cumulative_logprob")
    return OutputWishes(
        num_logprobs=0 if wants_logprobs else None,
        context_logits=inputs.flag("return_context_logits"),
        generation_logits=inputs.flag("return_generation_logits"),
    )
