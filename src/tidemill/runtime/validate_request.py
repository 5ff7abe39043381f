"""Tells whether a request can be served by an engine, before it is queued.

In comes a `Request` (or sampling values) and the engine's limits; out comes nothing or one
`InvalidRequestError` that lists every fault. Knows nothing of the queue or the cache's state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain

from tidemill.base.errors import InvalidRequestError
from tidemill.runtime.kvcache.block_span import BlockSpan
from tidemill.runtime.logits_rules import rules_faults
from tidemill.runtime.observation import OutputWishes
from tidemill.runtime.request import Request, SamplingParams
from tidemill.runtime.step import EngineLimits

MAX_SEED = 2**64 - 1
MAX_TOP_K = 2**31 - 1


def sampling_faults(sampling: SamplingParams) -> list[str]:
    """List what is wrong with sampling values, in TensorRT-LLM's words."""
    faults = []
    temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
    if not (temperature >= 0 and math.isfinite(temperature)):
        faults.append(f"require temperature >= 0, got temperature={temperature}")
    if not 0 <= top_p <= 1:
        faults.append(f"require 0 <= top_p <= 1, got top_p={top_p}")
    if top_k < 0:
        faults.append(f"require top_k >= 0, got top_k={top_k}")
    if top_k > MAX_TOP_K:
        faults.append(f"require top_k <= {MAX_TOP_K}, got top_k={top_k}")
    if not 0 <= sampling.seed <= MAX_SEED:
        faults.append(f"require 0 <= seed < 2**64, got seed={sampling.seed}")
    if not 0 <= sampling.min_p <= 1:
        faults.append(f"require 0 <= min_p <= 1, got min_p={sampling.min_p}")
    if sampling.rules is not None:
        faults += rules_faults(sampling.rules)
    return faults


def wishes_faults(wishes: OutputWishes) -> list[str]:
    """List what is wrong with numbers of log-probabilities."""
    given = {"logprobs": wishes.num_logprobs, "prompt_logprobs": wishes.num_prompt_logprobs}
    return [
        f"require {name} >= 0, got {name}={number}"
        for name, number in given.items()
        if number is not None and number < 0
    ]


def validate_request(request: Request, limits: EngineLimits, is_chunked: bool = True) -> None:
    """Refuse a request that this engine can never serve; `is_chunked` allows prompts over a step.

    Raises: InvalidRequestError with all faults found.
    """
    faults = _length_faults(request, limits) + sampling_faults(request.sampling)
    faults += _service_faults(request) + _token_faults(request, limits.vocab_size)
    if request.wishes is not None:
        faults += wishes_faults(request.wishes)
    if not is_chunked and len(request.prompt_tokens) > limits.max_num_tokens:
        faults.append(
            f"prompt length ({len(request.prompt_tokens)}) exceeds max_num_tokens"
            f" ({limits.max_num_tokens}) and context chunking is off"
        )
    if faults:
        raise InvalidRequestError(
            "the request cannot be served: " + "; ".join(faults),
            where=f"request {request.request_id}",
            expected=f"a prompt of at most {limits.max_input_len} tokens, with its answer at most "
            f"{limits.max_seq_len}, and sampling values within their bounds",
            got=f"{len(request.prompt_tokens)} prompt tokens, max_tokens {request.max_new_tokens}",
            hint="correct what is named above; longer prompts and answers need an engine built "
            "with a larger --max_input_len and --max_seq_len",
        )


def already_in_flight(request_id: int | str) -> InvalidRequestError:
    """Return what a request ends with whose id another one has that has not ended."""
    return InvalidRequestError(
        "a request of this id is in flight",
        where=f"request {request_id}",
        expected="an id that no unfinished request has",
        got=repr(request_id),
        hint="give each request an id of its own",
    )


def most_tokens(limits: EngineLimits) -> int:
    """Return the longest sequence, prompt and answer, that an engine can serve.

    With an attention window that is as long as the engine was built for, whatever the cache holds,
    once the cache has room for the window and a step.
    """
    longest = limits.max_seq_len
    span = BlockSpan(limits.tokens_per_block, limits.attention_window)
    num_blocks = span.most_blocks(longest, 0, min(longest, limits.max_num_tokens))
    if num_blocks <= limits.num_blocks:
        return longest
    return min(longest, limits.num_blocks * limits.tokens_per_block)


def _token_faults(request: Request, vocab_size: int) -> list[str]:
    """List what names tokens that the model does not have."""
    lists: dict[str, Iterable[int]] = {
        "prompt": request.prompt_tokens,
        "stop words": chain.from_iterable(request.stop_words),
    }
    faults = []
    rules = request.sampling.rules
    if rules is not None:
        lists["bad words"] = chain.from_iterable(rules.bad_words)
        lists["logit_bias"] = [token for token, _ in rules.logit_bias]
        num_biases = len(rules.embedding_bias or b"") // 4
        if rules.embedding_bias is not None and num_biases != vocab_size:
            faults.append(f"embedding_bias has {num_biases} values, expected {vocab_size}")
    for name, tokens in lists.items():
        wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
        if wrong is not None:
            faults.append(f"{name} holds token {wrong}, expected tokens from 0 to {vocab_size - 1}")
    if not all(request.stop_words):
        faults.append("require stop words of at least one token, got an empty one")
    return faults


def _service_faults(request: Request) -> list[str]:
    faults = request.retention.faults() if request.retention else []
    if not 0 <= request.priority <= 1:
        faults.append(f"require 0 <= priority <= 1, got priority={request.priority}")
    allotted = request.allotted_time_ms
    if allotted is not None and not allotted > 0:
        faults.append(f"require allotted_time_ms > 0, got allotted_time_ms={allotted}")
    return faults


def _length_faults(request: Request, limits: EngineLimits) -> list[str]:
    num_prompt, max_new = len(request.prompt_tokens), request.max_new_tokens
    if num_prompt == 0:
        return ["the prompt is empty, expected at least one token"]
    if max_new < 1:
        return [f"require max_tokens > 0, got max_tokens={max_new}"]
    num_input = num_prompt - request.num_prior_output
    if num_input > limits.max_input_len:
        return [
            f"prompt length ({num_input}) exceeds maximum input length ({limits.max_input_len})"
        ]
    total = num_prompt + max_new
    if total > limits.max_seq_len:
        return [
            f"prompt length ({num_prompt}) + max_tokens ({max_new}) exceeds maximum sequence"
            f" length ({limits.max_seq_len}); at most {limits.max_seq_len - num_prompt} new"
            " tokens fit"
        ]
    most = most_tokens(limits)
    if total > most:
        return [
            f"prompt length ({num_prompt}) + max_tokens ({max_new}) exceeds the key-value cache's"
            f" {most} tokens; give it more with --kv_cache_tokens"
        ]
    return []
