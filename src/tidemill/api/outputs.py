"""What an answer looks like to a Python caller, in the names of TensorRT-LLM's LLM API."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.host.messages import Update
from tidemill.runtime.observation import TokenLogprobs

# As the session ends answers -> the words of TensorRT-LLM's LLM API and llmapi model.
FINISH_REASONS = {
    "end_id": "stop",
    "stop_words": "stop",
    "length": "length",
    "timed_out": "timeout",
    "cancelled": "cancelled",
}

Logits = npt.NDArray[Any]


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability and its rank among all tokens, 1 for the likeliest."""

    logprob: float
    rank: int


TokenToLogprob = dict[int, Logprob]


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. `finish_reason` is stop, length, timeout or cancelled.

    `stop_reason` is the stop string or stop token that ended it, None where the end token did.
    `logprobs` has an entry for each output token: itself first, then the likeliest ones asked for.
    `prompt_logprobs` likewise for the prompt, None for its first token. Shapes: `generation_logits`
    is (tokens, vocabulary). What was not asked for is None or empty. Of a streamed answer, all is
    so far, and `text_diff` and `token_ids_diff` are the news. `request_perf_metrics` has the
    reference's keys, for the whole answer and, if asked for, with every piece; answers that cost
    differently can be equal.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None = None
    cumulative_logprob: float | None = None
    logprobs: list[TokenToLogprob] | None = None
    prompt_logprobs: list[TokenToLogprob | None] | None = None
    generation_logits: Logits | None = None
    text_diff: str = ""
    token_ids_diff: list[int] = field(default_factory=list)
    request_perf_metrics: dict[str, Any] | None = field(default=None, compare=False)

    @property
    def length(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its answers. `prompt` is None where only tokens were given.

    Shapes: `context_logits` is (prompt tokens, vocabulary), None where not asked for.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    context_logits: Logits | None = None


@dataclass(frozen=True)
class TextUpdate:
    """What one step added to a streamed answer; `finish_reason` is set on the last one."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None = None
    logprobs: list[TokenToLogprob] | None = None
    index: int = 0


def to_text_update(update: Update) -> TextUpdate:
    """Show one step's news of a streamed answer."""
    return TextUpdate(
        update.text,
        update.token_ids,
        _public(update),
        update.stop_reason,
        to_logprobs(update.logprobs),
        update.index,
    )


def to_completion(update: Update) -> CompletionOutput:
    """Show a whole answer."""
    return extend(CompletionOutput(update.index, "", [], None), update)


def extend(answer: CompletionOutput, update: Update) -> CompletionOutput:
    """Add one step's news to an answer."""
    logprobs = to_logprobs(update.logprobs)
    prompt_logprobs = to_logprobs(update.prompt_logprobs)
    logits = to_logits(update.generation_logits, len(update.token_ids))
    if logits is not None and answer.generation_logits is not None:
        logits = np.concatenate([answer.generation_logits, logits])
    cumulative = update.cumulative_logprob
    return replace(
        answer,
        text=answer.text + update.text,
        token_ids=answer.token_ids + update.token_ids,
        finish_reason=_public(update),
        stop_reason=update.stop_reason,
        cumulative_logprob=answer.cumulative_logprob if cumulative is None else cumulative,
        logprobs=answer.logprobs if logprobs is None else [*(answer.logprobs or []), *logprobs],
        prompt_logprobs=(
            answer.prompt_logprobs if prompt_logprobs is None else [None, *prompt_logprobs]
        ),
        generation_logits=answer.generation_logits if logits is None else logits,
        text_diff=update.text,
        token_ids_diff=update.token_ids,
        request_perf_metrics=update.metrics.to_json() if update.metrics else None,
    )


def to_logits(raw: bytes, num_rows: int) -> Logits | None:
    """Return rows of logits, None where there are none."""
    return np.frombuffer(raw, np.float32).reshape(num_rows, -1) if raw else None


def to_logprobs(entries: list[TokenLogprobs]) -> list[TokenToLogprob] | None:
    """Return log-probabilities by token for each position, None where there are none."""
    if not entries:
        return None
    return [{token: Logprob(logprob, rank) for token, logprob, rank in each} for each in entries]


def _public(update: Update) -> str | None:
    return None if update.finish_reason is None else FINISH_REASONS[update.finish_reason]
