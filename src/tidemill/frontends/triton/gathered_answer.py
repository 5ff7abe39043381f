"""What the classic models' answers share: gathering an answer's news until a response is due.

In: updates of the engine, of one beam or several. Out: one response for each piece of a stream,
otherwise one for each answer, with all of its beams. What a response holds beside tokens and text
(counts, log-probabilities, logits, costs, its place) is made here; the two kinds of answer add
their own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tidemill.frontends.triton.answer import Answer
from tidemill.frontends.triton.perf_outputs import classic_perf_outputs
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.frontends.triton.sequences import AnswerPlace
from tidemill.frontends.triton.stub_api import Array, ResponseSender
from tidemill.host.messages import Update
from tidemill.runtime.statistics import RequestMetrics

PADDING = -1


@dataclass(frozen=True)
class DetailWishes:
    """What each response holds beside tokens or text; logits have the type the model declares."""

    num_input_tokens: bool = False
    num_output_tokens: bool = False
    perf_metrics: bool = False
    log_probs: bool = False
    logits_type: npt.DTypeLike = np.float32

    @classmethod
    def read(
        cls, inputs: RequestInputs, counts_tokens: bool, logits_type: npt.DTypeLike
    ) -> DetailWishes:
        """Read the wishes of a request; `counts_tokens` is what holds where it says nothing."""
        return cls(
            num_input_tokens=inputs.flag("return_num_input_tokens", counts_tokens),
            num_output_tokens=inputs.flag("return_num_output_tokens", counts_tokens),
            perf_metrics=inputs.flag("return_perf_metrics"),
            log_probs=inputs.flag("return_log_probs"),
            logits_type=logits_type,
        )


@dataclass
class Gathered:
    """One beam's news that no response has told yet."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    cumulative_logprob: float | None = None
    context_logits: bytes = b""
    generation_logits: bytes = b""
    num_input_tokens: int = 0
    finish_reason: str | None = None
    metrics: RequestMetrics | None = None

    def add(self, update: Update) -> None:
        """Take an update in."""
        self.tokens += update.token_ids
        self.text += update.text
        self.logprobs += [entries[0][1] for entries in update.logprobs]
        self.context_logits += update.context_logits
        self.generation_logits += update.generation_logits
        self.num_input_tokens = update.num_input_tokens
        self.finish_reason = update.finish_reason
        if update.cumulative_logprob is not None:
            self.cumulative_logprob = update.cumulative_logprob
        if update.metrics is not None:
            self.metrics = update.metrics


class GatheredAnswer(Answer):
    """Responses in the tensors of the classic models."""

    def __init__(
        self, sender: ResponseSender, places: Sequence[AnswerPlace], details: DetailWishes
    ) -> None:
        super().__init__(sender, len(places))
        self.places = places
        self._details = details
        self._rows: list[dict[int, Gathered]] = [{} for _ in places]

    def take(self, row: int, update: Update, is_last: bool) -> None:
        beam = self._rows[row].setdefault(update.index, Gathered())
        beam.add(update)
        if not update.is_final:
            is_beam_of_several = update.finish_reason is not None
            if is_beam_of_several or not self.is_due(row, update, beam):
                return
        beams = [each for _, each in sorted(self._rows[row].items())]
        self._rows[row] = {}
        outputs = {**self.outputs(row, beams), **detail_outputs(beams, self._details)}
        for name, index in self.places[row].outputs().items():
            outputs[name] = integers(index)
        self.send(self.shaped(outputs), is_final=is_last)

    @abstractmethod
    def is_due(self, row: int, update: Update, gathered: Gathered) -> bool:
        """Say whether a stream's news are enough for a response."""

    @abstractmethod
    def outputs(self, row: int, beams: Sequence[Gathered]) -> dict[str, Array]:
        """Return the tokens or the text of a response."""

    def shaped(self, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs as the model's clients have them."""
        return outputs


def detail_outputs(beams: Sequence[Gathered], wishes: DetailWishes) -> dict[str, Array]:
    """Return what was wished for beside tokens, for the beams of one response."""
    outputs, first = {}, beams[0]
    if wishes.num_input_tokens:
        outputs["num_input_tokens"] = integers(first.num_input_tokens)
    if wishes.num_output_tokens:
        outputs["num_output_tokens"] = integers(sum(len(beam.tokens) for beam in beams))
    if wishes.perf_metrics and first.metrics is not None:
        costs = classic_perf_outputs(first.metrics)
        outputs.update({name: value.reshape(1, 1) for name, value in costs.items()})
    if wishes.log_probs:  # in a last piece without tokens too: clients count outputs
        outputs["output_log_probs"] = pad_rows([beam.logprobs for beam in beams], np.float32)
        known = [beam.cumulative_logprob or 0.0 for beam in beams]
        outputs["cum_log_probs"] = np.array([known], dtype=np.float32)
    if first.context_logits:
        logits = np.frombuffer(first.context_logits, dtype=np.float32)
        rows = logits.reshape(1, first.num_input_tokens, -1)
        outputs["context_logits"] = rows.astype(wishes.logits_type, copy=False)
    if first.generation_logits:
        logits = np.frombuffer(first.generation_logits, dtype=np.float32)
        rows = logits.reshape(1, 1, len(first.tokens), -1)
        outputs["generation_logits"] = rows.astype(wishes.logits_type, copy=False)
    return outputs


def integers(*values: int) -> Array:
    """Return integers as (1, n): every response is a batch of one."""
    return np.array([values], dtype=np.int32)


def pad_rows(rows: Sequence[Sequence[float]], dtype: npt.DTypeLike) -> Array:
    """Return (1, beams, n) of rows of unequal length."""
    padded: Array = np.full((1, len(rows), max(map(len, rows), default=0)), PADDING, dtype=dtype)
    for target, row in zip(padded[0], rows, strict=True):
        target[: len(row)] = row
    return padded
