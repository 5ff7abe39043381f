"""A session over a fake engine: text, stops, echo, and errors that stay with their request."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.host.fake_engine import LIMITS, open_session
from tidemill.base.errors import CheckpointError, UnsupportedError
from tidemill.host.answer_text import AnswerText
from tidemill.host.beam_search import BeamSettings
from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.request_reader import RequestReader
from tidemill.host.session import Session
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.request import TokenUpdate


@pytest.fixture
def session(engine_dir: Path) -> Session:
    return open_session(engine_dir, RuntimeConfig(max_queue_size=8))


def run(session: Session, *requests: GenerateRequest) -> dict[str, list[Update]]:
    for request in requests:
        session.submit(request)
    id_to_updates: dict[str, list[Update]] = {request.request_id: [] for request in requests}
    while session.has_work:
        for update in session.step():
            id_to_updates[update.request_id].append(update)
        session.check()
    assert session.info().stats.used_blocks == 0
    return id_to_updates


def answer(session: Session, prompt: str | None, **fields: Any) -> Update:
    request = GenerateRequest(request_id="a", prompt=prompt, **fields)
    (update,) = run(session, request)["a"]
    return update


def streamed(session: Session, prompt: str, **fields: Any) -> list[Update]:
    request = GenerateRequest(request_id="a", prompt=prompt, streaming=True, **fields)
    return run(session, request)["a"]


def test_answer_ends_at_the_end_token_which_is_not_part_of_it(session: Session) -> None:
    update = answer(session, "say>hello")
    assert (update.text, update.finish_reason) == ("hello", "end_id")
    assert len(update.token_ids) == 5 == update.num_output_tokens
    assert update.num_input_tokens == 9


def test_answer_ends_at_max_tokens(session: Session) -> None:
    update = answer(session, "say>hello", max_tokens=3)
    assert (update.text, update.finish_reason) == ("hel", "length")


def test_max_tokens_left_open_runs_to_the_end_of_the_sequence(session: Session) -> None:
    prompt = "a" * LIMITS.max_input_len
    update = answer(session, prompt, max_tokens=None)
    assert update.finish_reason == "length"
    assert update.num_output_tokens == LIMITS.max_seq_len - LIMITS.max_input_len


def test_disabled_end_token_is_an_ordinary_token(session: Session) -> None:
    update = answer(session, "say>ab", end_id=-1, max_tokens=3)
    assert update.text == "ab" and update.token_ids[-1] == 0 and update.finish_reason == "length"


def test_end_id_of_the_request_replaces_the_models_own(session: Session) -> None:
    assert session.tokenizer is not None
    (letter,) = session.tokenizer.encode("l")
    update = answer(session, "say>hello", end_id=letter)
    assert (update.text, update.finish_reason) == ("he", "end_id")


def test_stop_string_cuts_the_text_and_is_kept_in_the_tokens(session: Session) -> None:
    update = answer(session, "say>one, two, three", stop=[", t"])
    assert (update.text, update.finish_reason, update.stop_reason) == ("one", "stop_words", ", t")
    assert update.num_output_tokens == len("one, t")


def test_stop_string_is_in_the_text_when_asked_for(session: Session) -> None:
    update = answer(session, "say>one, two", stop=[","], include_stop_in_output=True)
    assert update.text == "one,"


def test_unfinished_stop_string_is_given_back_at_the_end(session: Session) -> None:
    update = answer(session, "say>one, t", stop=[", two"])
    assert (update.text, update.finish_reason) == ("one, t", "end_id")


def test_stop_string_on_the_last_allowed_token_counts_as_stop(session: Session) -> None:
    update = answer(session, "say>abc", stop=["c"], max_tokens=3)
    assert (update.text, update.finish_reason) == ("ab", "stop_words")


@pytest.mark.parametrize("stop", [[], ["zzz"], ["\u00fcr"], ["\U0001f60a!"], ["n, "]])
@pytest.mark.parametrize("max_tokens", [1, 2, 5, 13, 64])
def test_streamed_texts_joined_equal_the_text_not_streamed(
    session: Session, stop: list[str], max_tokens: int
) -> None:
    prompt = "say>Gr\u00fc\u00dfe f\u00fcr all \U0001f60a\U0001f60a! \u4f60\u597d, end, "
    whole = answer(session, prompt, stop=stop, max_tokens=max_tokens)
    pieces = streamed(session, prompt, stop=stop, max_tokens=max_tokens)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token for piece in pieces for token in piece.token_ids] == whole.token_ids
    assert pieces[-1].finish_reason == whole.finish_reason
    assert [piece.num_output_tokens for piece in pieces[:-1]] == list(range(1, len(pieces)))


def test_stream_gives_one_update_a_token(session: Session) -> None:
    pieces = streamed(session, "say>abc")
    assert [piece.text for piece in pieces] == ["a", "b", "c", ""]


def test_echo_returns_the_prompt_exactly_as_given(session: Session) -> None:
    prompt = "  odd   spaces \u00fc</s> say>ok"
    update = answer(session, prompt, exclude_input_in_output=False)
    assert update.text == prompt + "ok"


def test_echo_of_a_prompt_in_tokens_is_its_text(session: Session) -> None:
    assert session.tokenizer is not None
    tokens = session.tokenizer.encode("say>ok")
    update = answer(session, None, prompt_tokens=tokens, exclude_input_in_output=False)
    assert update.text == "say>okok"


def test_stream_never_returns_the_prompt(session: Session) -> None:
    pieces = streamed(session, "say>ok", exclude_input_in_output=False)
    assert "".join(piece.text for piece in pieces) == "ok"


def test_echo_is_not_searched_for_stop_strings(session: Session) -> None:
    update = answer(session, "say>ok", exclude_input_in_output=False, stop=["say"])
    assert update.text == "say>okok"


def test_messages_go_through_the_chat_template(session: Session) -> None:
    update = answer(session, None, messages=[{"role": "user", "content": "abc"}])
    assert update.text == "hi" and update.num_input_tokens == len("abc>hi")


def test_requests_in_flight_together_keep_their_texts_apart(session: Session) -> None:
    words = [f"answer {number} " * number for number in range(1, 8)]
    requests = [
        GenerateRequest(
            request_id=word, prompt=f">{word}", streaming=number % 2 == 0, max_tokens=99
        )
        for number, word in enumerate(words)
    ]
    updates = run(session, *requests)
    for word in words:
        assert "".join(update.text for update in updates[word]) == word


def test_faulty_request_ends_with_its_error_and_others_go_on(session: Session) -> None:
    updates = run(
        session,
        GenerateRequest(request_id="empty", prompt=""),
        GenerateRequest(request_id="good", prompt=">fine"),
        GenerateRequest(request_id="hot", prompt=">x", temperature=-1.0),
        GenerateRequest(request_id="none"),
        GenerateRequest(request_id="half", prompt="\ud83d"),
        GenerateRequest(request_id="stop", prompt=">x", stop=[""]),
        GenerateRequest(request_id="long", prompt="x" * 2049),
    )
    assert [update.text for update in updates.pop("good")] == ["fine"]
    messages = {key: update.error.what for key, (update,) in updates.items() if update.error}
    assert "the prompt is empty" in messages["empty"]
    assert "require temperature >= 0, got temperature=-1" in messages["hot"]
    assert "has no prompt" in messages["none"]
    assert "no valid text" in messages["half"]
    assert "stop string" in messages["stop"]
    assert "exceeds maximum input length (2048)" in messages["long"]


@pytest.mark.parametrize("character", ["a", " ", "\u6f6e"])
def test_prompt_of_megabytes_is_refused_without_reading_it_all(
    session: Session, character: str
) -> None:
    start = time.process_time()
    update = answer(session, character * 30_000_000)
    assert update.error is not None
    assert "exceeds maximum input length (2048)" in update.error.what
    assert time.process_time() - start < 5.0  # all of it would take a minute


@pytest.mark.parametrize(
    "wish",
    [{"bad_words": ["x" * 2**18, "y"]}, {"guide": ("regex", "(a|" * 2**17)}],
    ids=["words", "guide"],
)
def test_side_texts_of_great_length_are_refused(session: Session, wish: dict[str, Any]) -> None:
    update = answer(session, ">a", **wish)
    assert update.error is not None and "side texts" in update.error.what


@pytest.mark.parametrize(
    "wish",
    [{"n": 10**6, "top_k": 9}, {"best_of": 10**6, "top_k": 9}, {"beams": BeamSettings(10**6)}],
    ids=["n", "best_of", "beams"],
)
def test_a_million_answers_to_one_request_are_refused(
    session: Session, wish: dict[str, Any]
) -> None:
    update = answer(session, ">a", **wish)
    assert update.error is not None and "require" in update.error.what


def test_costs_come_with_each_piece_of_a_stream_that_asked_for_them(session: Session) -> None:
    pieces = streamed(session, "say>hello", return_perf_metrics=True)
    told = [piece.metrics for piece in pieces]
    assert all(metrics is not None for metrics in told)
    times = [metrics.last_token_time for metrics in told if metrics and metrics.last_token_time]
    assert times == sorted(times) and len(set(times)) > 1
    assert all(piece.metrics is None for piece in streamed(session, "say>hello")[:-1])


def test_fault_of_ours_in_one_answer_ends_that_one_only(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, pushed = AnswerText.push, []

    def break_some(answer: AnswerText, update: TokenUpdate) -> Update | None:
        pushed.append(answer.request_id)
        if answer.request_id == "bad" and pushed.count("bad") == 2:
            raise ZeroDivisionError("in the answer's text")
        return push(answer, update)

    monkeypatch.setattr(AnswerText, "push", break_some)
    requests = [GenerateRequest(request_id=name, prompt=">ok then") for name in ("bad", "good")]
    updates = run(session, *requests)
    (failed,) = updates["bad"]
    assert failed.error is not None and "ZeroDivisionError" in failed.error.got
    assert updates["good"][-1].text == "ok then"
    assert session.info().stats.used_blocks == 0


def test_fault_of_ours_in_reading_a_request_ends_that_one_only(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = RequestReader.read

    def break_some(reader: RequestReader, request: GenerateRequest, numbers: Any) -> Any:
        return read(reader, request, numbers) if request.request_id == "good" else 1 // 0

    monkeypatch.setattr(RequestReader, "read", break_some)
    requests = [GenerateRequest(request_id=name, prompt=">ok") for name in ("bad", "good")]
    updates = run(session, *requests)
    (failed,) = updates["bad"]
    assert failed.error is not None and failed.error.kind == "SessionError"
    assert updates["good"][-1].text == "ok"


def test_same_id_in_flight_twice_fails_the_second_only(session: Session) -> None:
    request = GenerateRequest(request_id="twin", prompt=">both")
    updates = run(session, request, request)["twin"]
    assert updates[0].error is not None and "in flight" in updates[0].error.what
    assert updates[1].text == "both"


def test_full_queue_is_told_to_the_request_it_refuses(session: Session) -> None:
    requests = [GenerateRequest(request_id=str(number), prompt=">ok") for number in range(9)]
    updates = run(session, *requests)
    refused = updates["8"][0].error
    assert refused is not None and refused.kind == "QueueFullError"
    assert all(updates[str(number)][0].text == "ok" for number in range(8))


def test_fault_of_no_class_of_ours_leaves_no_id_behind(session: Session) -> None:
    unread: Any = "none"
    for _ in range(2):
        update = answer(session, ">ok", priority=unread)
        assert update.error is not None and update.error.kind == "SessionError"
    assert answer(session, ">ok").text == "ok"


def test_cancelled_request_ends_with_what_it_had(session: Session) -> None:
    session.submit(GenerateRequest(request_id="a", prompt="x", max_tokens=100))
    for _ in range(3):
        assert session.step() == []
    session.cancel("a")
    session.cancel("never seen")
    (update,) = session.step()
    assert (update.finish_reason, update.text) == ("cancelled", "xxx")
    assert not session.has_work and session.info().stats.used_blocks == 0


def test_engine_without_tokenizer_serves_tokens_and_refuses_text(engine_dir: Path) -> None:
    donor = open_session(engine_dir)
    assert donor.tokenizer is not None
    tokens = donor.tokenizer.encode(">ab")
    session = Session(donor._loop._executor, None)
    assert "no tokenizer" in str(answer(session, ">ab").error)
    update = answer(session, None, prompt_tokens=tokens, max_tokens=2)
    assert update.text == "" and update.token_ids == donor.tokenizer.encode("ab")


def test_engines_own_tokenizer_is_read_when_a_request_needs_it(engine_dir: Path) -> None:
    donor = open_session(engine_dir)
    assert donor.tokenizer is not None
    session = Session(donor._loop._executor, None, engine_dir=str(engine_dir))
    file = engine_dir / "tokenizer.json"
    whole = file.read_text()
    file.write_text("{")
    tokens = donor.tokenizer.encode(">ab")
    silent = GenerateRequest(
        request_id="a", prompt_tokens=tokens, max_tokens=2, end_id=-1, detokenize=False
    )
    session.submit(silent)
    updates = [update for _ in range(2) for update in session.step()]
    assert updates[-1].token_ids == donor.tokenizer.encode("ab")
    decoder = {"type": "BPEDecoder", "suffix": "</w>"}  # cannot be streamed
    foreign = json.dumps({**json.loads(whole), "decoder": decoder})
    for text, error in (("{", CheckpointError), (foreign, UnsupportedError)):
        file.write_text(text)
        session.submit(GenerateRequest(request_id="b", prompt=">ab"))
        (update,) = session.step()
        assert update.error is not None
        with pytest.raises(error, match="tokenizer"):
            raise update.error.to_exception()
    file.write_text(whole)
    assert answer(session, ">ab").text == "ab"
