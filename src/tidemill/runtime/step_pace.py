"""Bounds the prompt tokens that join running requests, so that a step stays under a stated time.

In come the steps' contents and times as they were measured; out comes the number of context tokens
that the next step may hold. A step of generation alone gives what the running requests cost, what
a step with context took beyond that gives the cost of a context token, and the latest steps count
for most, since it grows with the position. Where many requests have ended since the last step of
generation alone, one more is made: the two costs cannot be told apart in a step that has both.
Cutting prompts changes no answer: engines compute the same bits however a prompt is cut
(docs/decisions/095). Knows nothing of requests or blocks.
"""

from __future__ import annotations

from typing import Protocol

from tidemill.runtime.config import ChunkingPolicy, RuntimeConfig

_NEWEST_SHARE = 0.5
_SHARE_TO_MEASURE_ANEW = 0.75


class StepContents(Protocol):
    """What of a step its time depends on."""

    @property
    def num_generation_requests(self) -> int: ...

    @property
    def num_context_tokens(self) -> int: ...


class StepPace:
    """Learns what steps cost on this machine. Units: milliseconds, tokens."""

    def __init__(self, config: RuntimeConfig, least_tokens: int) -> None:
        """Keep steps under the stated time, but for `least_tokens` of a prompt."""
        # Prompts that are never cut take their step whole, however long it is.
        is_bounded = config.chunking is not ChunkingPolicy.OFF
        self._max_step_ms = config.max_step_ms if is_bounded else 0.0
        self._least_tokens = least_tokens
        self._generation_ms = 0.0
        self._num_measured = 0
        self._ms_per_token = 0.0
        self._guessed_ms_per_token = 0.0

    def max_context_tokens(self, num_generation: int) -> int | None:
        """Return the bound for a step that `num_generation` requests are in; None is no bound.

        It is 0 in the one step that measures the running requests anew.
        Prompts may take as long as the running requests themselves where those alone come near the
        stated time: they would otherwise hardly enter at all.
        """
        ms_per_token = self._ms_per_token or self._guessed_ms_per_token
        if not (self._max_step_ms and num_generation and ms_per_token):
            return None
        if num_generation < _SHARE_TO_MEASURE_ANEW * self._num_measured:
            return 0
        left_ms = max(self._max_step_ms - self._generation_ms, self._generation_ms)
        return max(int(left_ms / ms_per_token), self._least_tokens)

    def note(self, step: StepContents, step_ms: float) -> None:
        """Take in what a step held and how long it took."""
        num_generation, num_context_tokens = step.num_generation_requests, step.num_context_tokens
        if not num_context_tokens:
            is_fewer = num_generation < self._num_measured
            blended = _blend(self._generation_ms, step_ms)
            self._generation_ms = min(self._generation_ms, step_ms) if is_fewer else blended
            self._num_measured = num_generation
            return
        beyond_ms = step_ms - (self._generation_ms if num_generation else 0.0)
        # The running requests can be cheaper than they were: fewer, or on a quieter machine.
        least_ms = step_ms * num_context_tokens / (num_context_tokens + num_generation) / 2
        ms_per_token = max(beyond_ms, least_ms) / num_context_tokens
        if num_context_tokens < self._least_tokens:
            # What a few tokens cost is mostly what any step costs: too much, but a beginning.
            self._guessed_ms_per_token = ms_per_token
        else:
            self._ms_per_token = _blend(self._ms_per_token, ms_per_token)


def _blend(known: float, newest: float) -> float:
    return known + _NEWEST_SHARE * (newest - known) if known else newest
