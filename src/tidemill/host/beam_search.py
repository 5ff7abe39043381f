"""Beam search as bookkeeping: which beams live on, which have ended, when the search is over.

In: for each live beam the log-probabilities of its likeliest next tokens. Out: the next beams, and
at the end the best sequences. score = sum of log-probabilities / length ** length_penalty, where
an end token counts in both. Knows nothing of engines; deterministic: ties go to the earlier beam,
then to the lower token.

Source: transformers' beam search; early_stopping and the diversity rate as in TensorRT-LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.runtime.observation import TokenLogprobs


@dataclass(frozen=True)
class BeamSettings:
    """How a search goes.

    `early_stopping` 1 ends it when `width` sequences have ended; 0 when no live beam can become
    better at its present length; any other value when none could at any length up to the limit.
    `diversity_rate` times its place is added to what each live beam's candidates score.
    """

    width: int
    length_penalty: float = 0.0
    early_stopping: int = 1
    diversity_rate: float = 0.0


@dataclass(frozen=True)
class Beam:
    """A sequence: its tokens, end token excluded, and what it scores."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0
    score: float = 0.0
    has_ended: bool = False


class BeamSearch:
    """One search of at most `max_tokens` tokens a sequence."""

    def __init__(self, settings: BeamSettings, max_tokens: int, end_ids: Sequence[int]) -> None:
        self._settings, self._max_tokens = settings, max_tokens
        self._end_ids = frozenset(end_ids)
        self.live: list[Beam] = [Beam()]
        self._ended: list[Beam] = []
        self.is_done = False

    @property
    def num_candidates(self) -> int:
        """How many of the likeliest tokens each live beam must be told of.

        Where every end token is likely, `width` others must still be among them.
        """
        return self._settings.width * (1 + max(1, len(self._end_ids)))

    def advance(self, likeliest: Sequence[TokenLogprobs]) -> None:
        """Take the likeliest next tokens of each live beam."""
        candidates = [
            (beam.total + logprob + self._settings.diversity_rate * place, place, token, logprob)
            for place, (beam, entries) in enumerate(zip(self.live, likeliest, strict=True))
            for token, logprob, _ in entries
        ]
        candidates.sort(key=lambda each: (-each[0], each[1], each[2]))
        width, parents = self._settings.width, self.live
        self.live = []
        for rank, (_, place, token, logprob) in enumerate(candidates):
            beam = self._extended(parents[place], token, logprob)
            if beam.has_ended:
                # One that ends below the first `width` would not have been a beam.
                if rank < width:
                    self._keep_ended(beam)
            else:
                self.live.append(beam)
            if len(self.live) == width:
                break
        self.is_done = len(self.live[0].tokens) >= self._max_tokens or self._is_settled()

    def best(self) -> list[Beam]:
        """The best `width` sequences, best first."""
        width = self._settings.width
        # A search that ended early keeps what has ended; otherwise live beams compete as they are.
        runs_on = not self._is_settled() or len(self._ended) < width
        pool = [*self._ended, *self.live] if runs_on else list(self._ended)
        return sorted(pool, key=lambda beam: -beam.score)[:width]

    def _extended(self, beam: Beam, token: int, logprob: float) -> Beam:
        has_ended, total = token in self._end_ids, beam.total + logprob
        return Beam(
            beam.tokens if has_ended else (*beam.tokens, token),
            beam.logprobs if has_ended else (*beam.logprobs, logprob),
            total,
            self._score(total, len(beam.tokens) + 1),
            has_ended,
        )

    def _score(self, total: float, length: int) -> float:
        return float(total / length**self._settings.length_penalty)

    def _keep_ended(self, beam: Beam) -> None:
        self._ended.append(beam)
        self._ended.sort(key=lambda each: -each.score)
        del self._ended[self._settings.width :]

    def _is_settled(self) -> bool:
        settings = self._settings
        if len(self._ended) < settings.width or not self.live:
            return not self.live
        if settings.early_stopping == 1:
            return True
        length = len(self.live[0].tokens)
        if settings.early_stopping != 0 and settings.length_penalty > 0:
            length = self._max_tokens
        return self._ended[-1].score >= self._score(self.live[0].total, length)
