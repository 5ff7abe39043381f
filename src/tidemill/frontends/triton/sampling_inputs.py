"""Turns the sampling inputs of a request into what the engine samples by.

In: named tensors of either style. Out: one `RowOptions` for each prompt. Greedy unless top_k or
top_p is given, as in TensorRT-LLM: a temperature alone changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.unsupported_inputs import refuse_unsupported

GREEDY_TOP_K = 1
ALL_TOKENS = 0
ALL_MASS = 1.0


@dataclass(frozen=True)
class InputNames:
    """The names under which one style takes what both have."""

    max_tokens: str
    top_k: str
    top_p: str


TEXT_NAMES = InputNames("max_tokens", "top_k", "top_p")
TOKENS_NAMES = InputNames("request_output_len", "runtime_top_k", "runtime_top_p")


@dataclass(frozen=True)
class RowOptions:
    """How one prompt's answer is made.

    `max_tokens` unset means the engine's own limit, `end_id` unset the model's own end token and
    -1 none.
    """

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    end_id: int | None


def read_options(inputs: RequestInputs, names: InputNames) -> list[RowOptions]:
    """Return the options of each row.

    Raises: InvalidRequestError for inputs that ask for what this version cannot do, all of them
    at once, and for aliases that contradict each other.
    """
    refuse_unsupported(inputs)
    columns = zip(
        inputs.integers(names.max_tokens),
        inputs.numbers("temperature"),
        inputs.integers(names.top_k),
        inputs.numbers(names.top_p),
        _either(inputs, "seed", "random_seed"),
        inputs.integers("end_id"),
        strict=True,
    )
    rows = []
    for max_tokens, temperature, given_top_k, given_top_p, seed, end_id in columns:
        top_k, top_p = choose_top(given_top_k, given_top_p)
        rows.append(
            RowOptions(
                max_tokens=max_tokens,
                temperature=1.0 if temperature is None else temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                end_id=end_id,
            )
        )
    return rows


def choose_top(top_k: int | None, top_p: float | None) -> tuple[int, float]:
    """Return top_k (0 = all tokens) and top_p from what was given; top_p <= 0 means unset."""
    if top_p is not None and top_p <= 0.0:
        top_p = None
    if top_k is None:
        top_k = GREEDY_TOP_K if top_p is None else ALL_TOKENS
    return top_k, ALL_MASS if top_p is None else top_p


def _either(inputs: RequestInputs, name: str, alias: str) -> list[int | None]:
    """Return what one of two names of the same thing says."""
    first, second = inputs.integers(name), inputs.integers(alias)
    if name in inputs and alias in inputs and first != second:
        raise InvalidRequestError(
            "two names of one input disagree",
            where=f"{name}, {alias}",
            expected="one of them",
            got=f"{first} and {second}",
        )
    return first if name in inputs else second
