"""What an answer looks like to a Python caller, in the names of TensorRT-LLM's LLM API."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tidemill.host.messages import Update

FINISH_REASONS = {
    "end_id": "stop",
    "stop_words": "stop",
    "length": "length",
    "timed_out": "timeout",
    "cancelled": "cancelled",
}


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. `finish_reason` is stop, length, timeout or cancelled.

    `stop_reason` is the stop string that ended it, None where the end token did. Of a streamed
    answer, `text` and `token_ids` are all so far, `text_diff` and `token_ids_diff` the news.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | None = None
    text_diff: str = ""
    token_ids_diff: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its answers. `prompt` is None where only tokens were given."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


@dataclass(frozen=True)
class TextUpdate:
    """What one step added to a streamed answer; `finish_reason` is set on the last one."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | None = None


def to_text_update(update: Update) -> TextUpdate:
    """Show one step's news of a streamed answer."""
    return TextUpdate(update.text, update.token_ids, _public(update), update.stop_reason)


def to_completion(update: Update) -> CompletionOutput:
    """Show a whole answer."""
    return extend(CompletionOutput(0, "", [], None), update)


def extend(answer: CompletionOutput, update: Update) -> CompletionOutput:
    """Add one step's news to an answer."""
    return replace(
        answer,
        text=answer.text + update.text,
        token_ids=answer.token_ids + update.token_ids,
        finish_reason=_public(update),
        stop_reason=update.stop_reason,
        text_diff=update.text,
        token_ids_diff=update.token_ids,
    )


def _public(update: Update) -> str | None:
    return None if update.finish_reason is None else FINISH_REASONS[update.finish_reason]
