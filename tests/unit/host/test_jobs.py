"""Several answers and beam searches: their time, their choice, and their way past a full queue."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tidemill.base.errors import SessionError
from tidemill.host.answer_text import AnswerText
from tidemill.host.beam_search import BeamSettings
from tidemill.host.jobs import BeamJob, Reading, SamplesJob
from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.session import Session
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.loop import Loop
from tidemill.runtime.observation import Observation, OutputWishes, Sight
from tidemill.runtime.request import FinishReason, Request, TokenUpdate
from tidemill.runtime.simulation import FakeExecutor
from tidemill.runtime.statistics import RequestMetrics
from tidemill.runtime.step import EngineLimits, StepPlan, StepResult

LIKELIEST = tuple((token, -1.0 - token, token + 1) for token in range(11))
SIGHT = Observation(output=Sight((LIKELIEST,)))
LIMITS = EngineLimits(
    max_batch_size=2,
    max_num_tokens=64,
    max_seq_len=64,
    max_input_len=32,
    tokens_per_block=8,
    num_blocks=64,
    vocab_size=31,
)


class SeeingExecutor(FakeExecutor):
    """Shows the same likeliest tokens wherever something was to be seen."""

    def execute(self, plan: StepPlan) -> StepResult:
        sampled = super().execute(plan).sampled_tokens
        seen = [
            (place, SIGHT)
            for place, entry in enumerate(plan.entries)
            if entry.history is not None and entry.num_draws
        ]
        return StepResult(sampled, tuple(seen))


def reading(wishes: OutputWishes | None = None, **fields: Any) -> Reading:
    wanted = GenerateRequest(request_id="a", **fields)
    computed = Request(
        -1, (5, 6), max_new_tokens=4, allotted_time_ms=wanted.allotted_time_ms, wishes=wishes
    )
    return Reading(wanted, computed, lambda: AnswerText(wanted, None, 2, ""), itertools.count())


def drawn(number: int, seconds: float | None, reason: FinishReason) -> TokenUpdate:
    """A request's only update; it arrived at 10 s and drew its token after `seconds`."""
    if seconds is None:
        return TokenUpdate(number, (), reason, RequestMetrics(10.0))
    metrics = RequestMetrics(10.0, last_token_time=10.0 + seconds)
    return TokenUpdate(number, (0,), reason, metrics, (SIGHT,))


def ends(session: Session, *requests: GenerateRequest) -> dict[str, list[Update]]:
    id_to_updates: dict[str, list[Update]] = {}
    for request in requests:
        session.submit(request)
    while session.has_work:
        for update in session.step():
            id_to_updates.setdefault(update.request_id, []).append(update)
        session.check()
    return id_to_updates


def test_rounds_of_a_beam_search_share_the_time_it_was_allotted() -> None:
    job = BeamJob(reading(beams=BeamSettings(1), allotted_time_ms=50.0))
    (first,) = job.start()
    assert first.allotted_time_ms == 50.0
    (second,) = job.take(drawn(first.request_id, 0.03, FinishReason.LENGTH)).requests
    assert second.allotted_time_ms == pytest.approx(20.0)
    news = job.take(drawn(second.request_id, 0.06, FinishReason.LENGTH))
    (told,) = news.updates
    assert (told.finish_reason, told.token_ids, told.num_open) == ("timed_out", [0, 0], 0)
    assert not news.requests and list(news.ended) == [second.request_id]


def test_round_that_ended_in_the_queue_leaves_the_time_of_the_last_token() -> None:
    metrics = RequestMetrics(10.0, last_token_time=12.0, last_iter=3)
    metrics.add(RequestMetrics(12.0, last_iter=9))
    assert (metrics.last_token_time, metrics.last_iter) == (12.0, 9)


def test_best_answer_is_one_that_was_not_cut_short() -> None:
    job = SamplesJob(reading(n=3, best_of=4, temperature=1.0))
    never, cut, whole, other = (request.request_id for request in job.start())
    job.take(drawn(never, None, FinishReason.TIMED_OUT))
    job.take(drawn(cut, 0.1, FinishReason.TIMED_OUT))
    job.take(drawn(whole, 0.1, FinishReason.LENGTH))
    told = job.take(drawn(other, None, FinishReason.END_ID)).updates  # empty, yet whole
    assert [update.finish_reason for update in told] == ["end_id", "length", "timed_out"]
    assert told[-1].token_ids == [0]


def test_answers_are_chosen_by_likelihood_whatever_else_is_asked_for() -> None:
    wishes = OutputWishes(generation_logits=True)
    for request in SamplesJob(reading(wishes, n=1, best_of=2, temperature=1.0)).start():
        assert request.wishes == OutputWishes(num_logprobs=0, generation_logits=True)


def test_full_queue_refuses_who_arrives_and_no_part_of_what_runs() -> None:
    session = Session(SeeingExecutor(LIMITS), None, RuntimeConfig(max_queue_size=1))
    beams = GenerateRequest(
        request_id="beams", prompt_tokens=[5, 6], max_tokens=6, beams=BeamSettings(5)
    )
    assert ends(session, beams)["beams"][-1].finish_reason == "length"
    many = GenerateRequest(
        request_id="many", prompt_tokens=[5, 6], max_tokens=6, temperature=1.0, n=5
    )
    late = GenerateRequest(request_id="late", prompt_tokens=[5, 6], max_tokens=6)
    told = ends(session, many, late)
    assert [update.finish_reason for update in told["many"]] == ["length"] * 5
    assert told["late"][0].error is not None and told["late"][0].error.kind == "QueueFullError"


def test_fault_of_ours_in_a_later_round_ends_that_search_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit = Loop.submit

    def break_some(loop: Loop, request: Request, is_bounded: bool = True) -> None:
        if len(request.prompt_tokens) == 4:
            raise ZeroDivisionError("in the third round")
        submit(loop, request, is_bounded)

    monkeypatch.setattr(Loop, "submit", break_some)
    session = Session(SeeingExecutor(LIMITS), None)
    told = ends(
        session,
        GenerateRequest(request_id="beams", prompt_tokens=[5, 6], beams=BeamSettings(2)),
        GenerateRequest(request_id="good", prompt_tokens=[5], max_tokens=6),
    )
    (failed,) = told["beams"]
    assert failed.error is not None and failed.error.kind == SessionError.__name__
    assert told["good"][-1].finish_reason == "length"
