"""What a client's request is made of: one answer, several of one prompt, or a beam search.

A job gives the runtime requests to run and takes their token updates; it tells what the client is
to know. In come `TokenUpdate`s, out goes `News`. Knows nothing of queues, steps or sockets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

from tidemill.base.record import record
from tidemill.host.answer_text import AnswerText
from tidemill.host.beam_search import Beam, BeamSearch
from tidemill.host.messages import GenerateRequest, Update
from tidemill.runtime.observation import Observation as Seen
from tidemill.runtime.observation import OutputWishes, Sight
from tidemill.runtime.request import FinishReason, Request, SamplingParams, TokenUpdate
from tidemill.runtime.statistics import RequestMetrics

SEED_RANGE = 2**64
# Every answer and every beam is a request of its own: beyond these they only keep others waiting.
MAX_ANSWERS = 1024
MAX_BEAM_WIDTH = 256
CUT_SHORT = ("timed_out", "cancelled")


@record
class News:
    """What a step brought: updates for the client, numbers that ended, requests to run next."""

    updates: Sequence[Update] = ()
    ended: Sequence[int] = ()
    requests: Sequence[Request] = ()


NO_NEWS = News()


class Job(Protocol):
    """One client request at work."""

    request_id: str

    def start(self) -> list[Request]:
        """Return the first requests to run."""
        ...

    def take(self, update: TokenUpdate) -> News:
        """Take what a step gave one of its requests."""
        ...


@dataclass(frozen=True)
class Reading:
    """A client's request, read: what to compute, and how its answer becomes text."""

    wanted: GenerateRequest
    computed: Request
    make_answer: Callable[[], AnswerText]
    numbers: Iterator[int]


def make_job(reading: Reading) -> Job:
    """Choose the kind of job."""
    return BeamJob(reading) if reading.wanted.beams is not None else SamplesJob(reading)


class SamplesJob:
    """`best_of` answers to one prompt, drawn by seeds that follow one another; tells the best."""

    def __init__(self, reading: Reading) -> None:
        wanted = reading.wanted
        self.request_id = wanted.request_id
        self._reading = reading
        self._num_told = wanted.n
        self._num_drawn = max(wanted.n, wanted.best_of or 0)
        self._number_to_place: dict[int, int] = {}
        self._answers = [reading.make_answer() for _ in range(self._num_drawn)]
        # A choice is never a stream: what is told of one, ends it.
        self._is_choosing = self._num_drawn > self._num_told
        self._num_open = self._num_told
        self._held: list[Update] = []

    def start(self) -> list[Request]:
        computed = self._reading.computed
        if self._is_choosing:
            wishes = computed.wishes or OutputWishes()
            if wishes.num_logprobs is None:
                computed = replace(computed, wishes=replace(wishes, num_logprobs=0))
        requests = []
        for place in range(self._num_drawn):
            number = next(self._reading.numbers)
            self._number_to_place[number] = place
            sampling = computed.sampling
            if place:
                seed = (sampling.seed + place) % SEED_RANGE
                sampling = replace(sampling, seed=seed)
            guide = computed.guide
            requests.append(
                replace(
                    computed,
                    request_id=number,
                    sampling=sampling,
                    guide=guide.copy() if guide is not None and place else guide,
                )
            )
        return requests

    def take(self, update: TokenUpdate) -> News:
        place = self._number_to_place[update.request_id]
        told = self._answers[place].push(update)
        if told is None:
            return NO_NEWS
        told.index = place
        if told.error is not None:
            return News((told,), tuple(self._number_to_place))
        has_ended = told.finish_reason is not None
        ended = (update.request_id,) if has_ended else ()
        if self._is_choosing:
            self._held.append(told)
            is_complete = len(self._held) == self._num_drawn
            return News(self._chosen() if is_complete else (), ended)
        self._num_open -= has_ended
        told.num_open = self._num_open
        return News((told,), ended)

    def _chosen(self) -> list[Update]:
        """The best answers by cumulative log-probability, best first."""
        self._held.sort(key=_order)
        chosen = self._held[: self._num_told]
        wishes = self._reading.wanted.wishes
        for place, update in enumerate(chosen):
            update.index, update.num_open = place, len(chosen) - place - 1
            if wishes is None or wishes.num_logprobs is None:
                update.logprobs = []
        return chosen


def _order(answer: Update) -> tuple[bool, float]:
    """Whole answers come first, then likelier ones; what never began is the least likely."""
    is_cut = answer.finish_reason in CUT_SHORT
    total = answer.cumulative_logprob
    if total is None:  # an answer of the end token alone has no sum
        total = -math.inf if is_cut else 0.0
    return is_cut, -total


class BeamJob:
    """A beam search: in each round every live beam is a request of one token.

    A beam's request has its whole sequence as prompt: what the cache still holds of it is reused.
    """

    def __init__(self, reading: Reading) -> None:
        wanted, computed = reading.wanted, reading.computed
        assert wanted.beams is not None
        self.request_id = wanted.request_id
        self._reading = reading
        self._search = BeamSearch(wanted.beams, computed.max_new_tokens, computed.end_ids)
        self._number_to_seen: dict[int, Seen | None] = {}
        self._metrics: RequestMetrics | None = None
        self._is_over = False

    def start(self) -> list[Request]:
        self._number_to_seen = {}
        computed, requests = self._reading.computed, []
        wishes = OutputWishes(num_logprobs=self._search.num_candidates)
        for beam in self._search.live:
            number = next(self._reading.numbers)
            self._number_to_seen[number] = None
            requests.append(
                replace(
                    computed,
                    request_id=number,
                    prompt_tokens=computed.prompt_tokens + beam.tokens,
                    max_new_tokens=1,
                    allotted_time_ms=self._left_ms,
                    sampling=SamplingParams(),
                    end_ids=(),
                    wishes=wishes,
                    num_prior_output=len(beam.tokens),
                )
            )
        return requests

    def take(self, update: TokenUpdate) -> News:
        if self._is_over or update.finish_reason is FinishReason.NOT_FINISHED:
            return NO_NEWS
        self._count(update.metrics)
        if update.finish_reason is not FinishReason.LENGTH:
            self._is_over = True
            return News(self._told(update.finish_reason), list(self._number_to_seen))
        self._number_to_seen[update.request_id] = update.observations[-1]
        if None in self._number_to_seen.values():
            return News(ended=[update.request_id])
        ended = list(self._number_to_seen)
        self._search.advance(
            [
                seen.output.logprobs[0]
                for seen in self._number_to_seen.values()
                if seen is not None and seen.output is not None
            ]
        )
        left_ms = self._left_ms
        if self._search.is_done or (left_ms is not None and left_ms <= 0):
            self._is_over = True
            reason = None if self._search.is_done else FinishReason.TIMED_OUT
            return News(self._told(reason), ended)
        return News([], ended, self.start())

    @property
    def _left_ms(self) -> float | None:
        """What is left of the allotted time: it is the search's, not a round's."""
        allotted_ms, metrics = self._reading.computed.allotted_time_ms, self._metrics
        if allotted_ms is None or metrics is None or metrics.last_token_time is None:
            return allotted_ms
        return allotted_ms - (metrics.last_token_time - metrics.arrival_time) * 1e3

    def _count(self, metrics: RequestMetrics | None) -> None:
        if self._metrics is None:
            self._metrics = copy(metrics)
        elif metrics is not None:
            self._metrics.add(metrics)

    def _told(self, reason: FinishReason | None) -> list[Update]:
        beams = self._search.best()[: self._reading.wanted.n]
        updates = []
        for place, beam in enumerate(beams):
            update = self._reading.make_answer().push(self._as_update(beam, reason))
            assert update is not None
            update.index, update.num_open = place, len(beams) - place - 1
            update.cumulative_logprob = beam.total
            updates.append(update)
        return updates

    def _as_update(self, beam: Beam, reason: FinishReason | None) -> TokenUpdate:
        ended = FinishReason.END_ID if beam.has_ended else FinishReason.LENGTH
        wishes = self._reading.wanted.wishes
        seen: tuple[Seen, ...] = ()
        if wishes is not None and wishes.num_logprobs is not None:
            logprobs = tuple(
                ((token, logprob, 0),)
                for token, logprob in zip(beam.tokens, beam.logprobs, strict=True)
            )
            seen = (Seen(output=Sight(logprobs)),)
        return TokenUpdate(0, beam.tokens, reason or ended, self._metrics, seen)


def check_numbers(wanted: GenerateRequest) -> list[str]:
    """List what is wrong with the numbers of answers and beams, in TensorRT-LLM's words."""
    faults = []
    n, best_of, beams = wanted.n, wanted.best_of, wanted.beams
    if n < 1:
        faults.append(f"require n >= 1, got n={n}")
    if max(n, best_of or 0) > MAX_ANSWERS:
        faults.append(f"require n and best_of <= {MAX_ANSWERS}, got {max(n, best_of or 0)}")
    if best_of is not None and best_of < n:
        faults.append(f"best_of ({best_of}) cannot be less than n ({n})")
    if wanted.streaming and max(n, best_of or 0) > n:
        faults.append(f"a stream tells every answer: best_of ({best_of}) must be n ({n})")
    if beams is not None:
        if not 1 <= beams.width <= MAX_BEAM_WIDTH:
            faults.append(
                f"require 1 <= beam_width <= {MAX_BEAM_WIDTH}, got beam_width={beams.width}"
            )
        if not (math.isfinite(beams.length_penalty) and math.isfinite(beams.diversity_rate)):
            faults.append("require a finite length_penalty and beam_search_diversity_rate")
        if wanted.streaming:
            faults.append("a beam search cannot stream: its beams change to the end")
        if max(n, best_of or 0) > beams.width:
            faults.append(f"n ({n}) cannot exceed beam_width ({beams.width})")
    return faults


def check_together(wanted: GenerateRequest, computed: Request) -> list[str]:
    """List what cannot be had together."""
    if wanted.beams is not None:
        extras = {
            "penalties, bans and biases": computed.sampling.rules,
            "guided decoding": computed.guide,
            "a logits processor": computed.processor,
            "stop words": computed.stop_words or wanted.stop,
            "prompt log-probabilities and logits": computed.reads_prompt
            or (wanted.wishes is not None and wanted.wishes.generation_logits),
        }
        return [f"a beam search takes no {name}" for name, given in extras.items() if given]
    num_drawn = max(wanted.n, wanted.best_of or 0)
    if num_drawn > 1 and computed.sampling.is_greedy:
        return [
            "Greedy decoding does not allow multiple returns. Please set best_of to 1,"
            f" got best_of={num_drawn}"
        ]
    return []
