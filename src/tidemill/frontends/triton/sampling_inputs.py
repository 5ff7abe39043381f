"""Turns the sampling inputs of a request into what the engine samples by.

In: named tensors of any style. Out: for each prompt a request of the engine that lacks only the
prompt. Greedy unless top_k or top_p is given, as in TensorRT-LLM: a temperature alone changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.retention_inputs import read_retention
from tidemill.frontends.triton.unsupported_inputs import refuse_unsupported
from tidemill.host.beam_search import BeamSettings
from tidemill.host.messages import GenerateRequest
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.observation import OutputWishes

GREEDY_TOP_K = 1
ALL_TOKENS = 0
ALL_MASS = 1.0

Columns = Mapping[str, Sequence[Any]]  # the values of all rows, by the name of what they set


@dataclass(frozen=True)
class InputNames:
    """The names under which one style takes what both have."""

    max_tokens: str
    top_k: str
    top_p: str
    length_penalty: str


TEXT_NAMES = InputNames("max_tokens", "top_k", "top_p", "length_penalty")
TOKENS_NAMES = InputNames("request_output_len", "runtime_top_k", "runtime_top_p", "len_penalty")


def read_options(inputs: RequestInputs, names: InputNames) -> list[GenerateRequest]:
    """Return each row's request without its prompt.

    `max_tokens` unset means the engine's own limit, `end_id` unset the model's own end token and
    -1 none.

    Raises: InvalidRequestError for inputs that ask for what this version cannot do, all of them
    at once, and for aliases that contradict each other.
    """
    refuse_unsupported(inputs)
    columns = zip(
        inputs.integers(names.max_tokens),
        inputs.numbers("temperature"),
        zip(inputs.integers(names.top_k), inputs.numbers(names.top_p), strict=True),
        _either(inputs, "seed", "random_seed"),
        inputs.integers("end_id"),
        read_rules(inputs),
        read_beams(inputs, names),
        read_guides(inputs),
        read_retention(inputs),
        strict=True,
    )
    requests = []
    for max_tokens, temperature, given_top, seed, end_id, rules, beams, guide, kept in columns:
        top_k, top_p = choose_top(*given_top)
        requests.append(
            GenerateRequest(
                request_id="",
                max_tokens=max_tokens,
                temperature=1.0 if temperature is None else temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                end_id=end_id,
                rules=rules,
                beams=beams,
                n=1 if beams is None else beams.width,
                guide=guide,
                wishes=read_output_wishes(inputs),
                retention=kept,
                return_perf_metrics=inputs.flag("return_perf_metrics"),
            )
        )
    return requests


def choose_top(top_k: int | None, top_p: float | None) -> tuple[int, float]:
    """Return top_k (0 = all tokens) and top_p from what was given; top_p <= 0 means unset."""
    if top_p is not None and top_p <= 0.0:
        top_p = None
    if top_k is None:
        top_k = GREEDY_TOP_K if top_p is None else ALL_TOKENS
    return top_k, ALL_MASS if top_p is None else top_p


def read_rules(inputs: RequestInputs) -> list[LogitsRules]:
    """Return each row's penalties and bans; what was not sent is neutral."""
    columns: Columns = {
        "repetition_penalty": inputs.numbers("repetition_penalty"),
        "presence_penalty": inputs.numbers("presence_penalty"),
        "frequency_penalty": inputs.numbers("frequency_penalty"),
        "min_tokens": _either(inputs, "min_tokens", "min_length"),
        "no_repeat_ngram_size": inputs.integers("no_repeat_ngram_size"),
        "top_p_min": inputs.numbers("runtime_top_p_min"),
        "top_p_decay": inputs.numbers("runtime_top_p_decay"),
        "top_p_reset_ids": inputs.integers("runtime_top_p_reset_ids"),
    }
    return [LogitsRules(**given) for given in _given(columns)]


def read_beams(inputs: RequestInputs, names: InputNames) -> list[BeamSettings | None]:
    """Return how each row is searched for; None where no beams were asked for.

    Raises: InvalidRequestError for a width below 1.
    """
    columns: Columns = {
        "width": inputs.integers("beam_width"),
        "length_penalty": inputs.numbers(names.length_penalty),
        "early_stopping": inputs.integers("early_stopping"),
        "diversity_rate": inputs.numbers("beam_search_diversity_rate"),
    }
    rows = [{"width": 1, **given} for given in _given(columns)]
    least = min(row["width"] for row in rows)
    if least < 1:
        raise InvalidRequestError(
            f"require beam_width >= 1, got beam_width={least}",
            where="beam_width",
            expected="at least 1",
            got=str(least),
            hint="leave beam_width out, or send 1, where no beam search is wanted",
        )
    return [BeamSettings(**row) if row["width"] > 1 else None for row in rows]


def read_guides(inputs: RequestInputs) -> list[tuple[str, str] | None]:
    """Return the kind and text of what each row's answer must follow."""
    kinds = inputs.texts("guided_decoding_guide_type")
    guides = inputs.texts("guided_decoding_guide")
    return [
        (kind, guide or "") if kind else None for kind, guide in zip(kinds, guides, strict=True)
    ]


def read_output_wishes(inputs: RequestInputs) -> OutputWishes | None:
    """Return what the request wants to see beside tokens."""
    wishes = OutputWishes(
        num_logprobs=0 if inputs.flag("return_log_probs") else None,
        context_logits=inputs.flag("return_context_logits"),
        generation_logits=inputs.flag("return_generation_logits"),
    )
    return None if wishes.is_empty else wishes


def _given(columns: Columns) -> list[dict[str, Any]]:
    """Return each row's values by name, without those that were not sent."""
    return [
        {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    ]


def _either(inputs: RequestInputs, name: str, alias: str) -> list[int | None]:
    """Return what one of two names of the same thing says."""
    first, second = inputs.integers(name), inputs.integers(alias)
    if name in inputs and alias in inputs and first != second:
        raise InvalidRequestError(
            "two names of one input disagree",
            where=f"{name}, {alias}",
            expected="one of them",
            got=f"{first} and {second}",
            hint=f"send {name} alone",
        )
    return first if name in inputs else second
