"""The Python API over a fake engine: shapes of answers, streams, chat, threads, faults."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.host.fake_engine import open_session, write_tokenizer
from tidemill.api.llm import LLM, SamplingParams, TokensPrompt
from tidemill.base.errors import InvalidRequestError, SessionError
from tidemill.host.sampling_rules import resolve_sampling
from tidemill.host.session import Session
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.simulation import FakeExecutor
from tidemill.runtime.step import EngineLimits


@pytest.fixture
def session(tmp_path: Path) -> Session:
    write_tokenizer(tmp_path)
    return open_session(tmp_path)


@pytest.fixture
def llm(session: Session) -> Iterator[LLM]:
    with LLM.from_session(session) as llm:
        yield llm


def used_blocks(session: Session) -> int:
    while session.has_work:
        session.step()
    return session.info().stats.used_blocks


def test_one_text_gives_one_answer(llm: LLM) -> None:
    output = llm.generate("say>hello")
    (answer,) = output.outputs
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("hello", "stop", None)
    assert output.prompt == "say>hello" and len(output.prompt_token_ids) == 9
    assert answer.length == 5 and answer.index == 0 and output.finished


def test_answers_come_in_the_order_of_their_prompts(llm: LLM) -> None:
    prompts = [f"say>{'n' * number}" for number in (7, 1, 0, 13, 2)]
    outputs = llm.generate(prompts)
    assert [len(output.outputs[0].text) for output in outputs] == [7, 1, 0, 13, 2]
    assert [output.prompt for output in outputs] == prompts


def test_prompts_in_tokens_are_answered_like_texts(llm: LLM) -> None:
    tokens = llm.tokenizer.encode("say>hello")
    prompt: TokensPrompt = {"prompt_token_ids": tokens}
    for output in (llm.generate(tokens), llm.generate([tokens])[0], llm.generate(prompt)):
        assert output.outputs[0].text == "hello" and output.prompt is None


def test_no_prompts_give_no_answers(llm: LLM) -> None:
    assert list(llm.generate(())) == []


def test_default_is_32_tokens(llm: LLM) -> None:
    output = llm.generate("endless")
    assert output.outputs[0].length == 32 and output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(("window", "num_output"), [(None, 24), (16, 360)])
def test_as_many_tokens_as_fit_is_what_the_engine_can_serve(
    window: int | None, num_output: int
) -> None:
    limits = EngineLimits(4, 16, 400, 300, 8, 8, 97, attention_window=window)
    with LLM.from_session(Session(FakeExecutor(limits), None, RuntimeConfig(), "here")) as llm:
        output = llm.generate([5] * 40, SamplingParams(max_tokens=None, ignore_eos=True))
    assert output.outputs[0].length == num_output


def test_each_prompt_may_have_parameters_of_its_own(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=1), SamplingParams(stop="c")]
    texts = [output.outputs[0].text for output in llm.generate([">abcd"] * 2, params)]
    assert texts == ["a", "ab"]


def test_stop_string_is_told_as_the_reason(llm: LLM) -> None:
    output = llm.generate(">abcd", SamplingParams(stop=["x", "c"]))
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "c")


def test_prompt_is_part_of_the_text_when_asked_for(llm: LLM) -> None:
    output = llm.generate(" q>ab", SamplingParams(exclude_input_from_output=False))
    assert output.outputs[0].text == " q>abab"


def test_ignore_eos_runs_past_the_end_token(llm: LLM) -> None:
    output = llm.generate(">ab", SamplingParams(max_tokens=3, ignore_eos=True))
    assert output.outputs[0].finish_reason == "length"


def test_stream_joined_is_the_answer(llm: LLM) -> None:
    updates = list(llm.generate_stream("say>hello"))
    assert "".join(update.text for update in updates) == "hello"
    assert updates[-1].finish_reason == "stop"
    assert all(update.finish_reason is None for update in updates[:-1])


def test_left_stream_frees_its_blocks(llm: LLM, session: Session) -> None:
    stream = llm.generate_stream("endless", SamplingParams(max_tokens=1000))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.generate(">next").outputs[0].text == "next"
    assert used_blocks(session) == 0


def test_interleaved_streams_keep_their_texts_apart(llm: LLM) -> None:
    streams = [llm.generate_stream(f">{word * 5}") for word in ("a", "b", "c")]
    texts = ["", "", ""]
    for updates in zip(*streams, strict=True):
        for place, update in enumerate(updates):
            texts[place] += update.text
    assert texts == ["aaaaa", "bbbbb", "ccccc"]


def test_threads_get_their_own_answers(llm: LLM) -> None:
    texts: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        prompts = [f">{number} {turn}" for turn in range(5)]
        texts[number] = [llm.generate(prompt).outputs[0].text for prompt in prompts]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert texts == {number: [f"{number} {turn}" for turn in range(5)] for number in range(8)}


def test_chat_goes_through_the_template(llm: LLM) -> None:
    output = llm.chat([{"role": "user", "content": "good day"}])
    assert output.outputs[0].text == "hi"


def test_prompt_that_cannot_be_served_raises_and_leaves_nothing(llm: LLM, session: Session) -> None:
    with pytest.raises(InvalidRequestError, match="exceeds maximum input length"):
        llm.generate([">fine", "x" * 3000, ">fine"])
    assert used_blocks(session) == 0
    assert llm.generate(">fine").outputs[0].text == "fine"


def test_half_a_character_in_a_prompt_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="no valid text"):
        llm.generate("\ud83d")


def test_wrong_number_of_parameters_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="do not match"):
        llm.generate([">a", ">b"], [SamplingParams()] * 3)


def test_text_without_tokenizer_is_refused(session: Session) -> None:
    llm = LLM.from_session(Session(session._loop._executor, None))
    with pytest.raises(SessionError, match="no tokenizer"):
        llm.generate("text")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"temperature": -1}, "require temperature >= 0, got temperature=-1"),
        ({"top_p": 2}, "require 0 <= top_p <= 1, got top_p=2"),
        ({"top_k": -1}, "require top_k >= 0, got top_k=-1"),
        ({"max_tokens": 0}, "require max_tokens > 0, got max_tokens=0"),
        ({"stop": ["a", ""]}, "require stop strings with at least one character"),
        ({"temperature": -1, "top_k": -1}, "temperature=-1; require top_k >= 0"),
    ],
)
def test_sampling_values_are_refused_in_the_words_of_the_reference(
    values: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidRequestError, match=expected):
        SamplingParams(**values)


@pytest.mark.parametrize(
    ("values", "is_greedy"),
    [
        ((None, None, None), True),
        ((0.0, None, None), True),
        ((0.0, 40, 0.9), True),
        ((None, 1, None), True),
        ((None, None, 0.0), True),
        ((0.7, None, None), False),
        ((1.0, None, None), False),
        ((None, 0, None), False),
        ((None, None, 1.0), False),
        ((0.7, 2, 0.5), False),
    ],
)
def test_greedy_unless_sampling_is_asked_for(
    values: tuple[float | None, int | None, float | None], is_greedy: bool
) -> None:
    assert resolve_sampling(*values, seed=None).is_greedy is is_greedy


def test_greedy_whatever_seed_and_min_p_say() -> None:
    assert resolve_sampling(None, None, None, seed=9, min_p=0.5).is_greedy


def test_values_left_out_beside_others_are_neutral() -> None:
    sampling = resolve_sampling(0.5, None, None, None)
    assert (sampling.top_k, sampling.top_p, sampling.seed) == (0, 1.0, 0)
    sampling = resolve_sampling(None, 5, None, 9)
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (1.0, 1.0, 9)


def test_keywords_say_how_a_request_is_served(llm: LLM, session: Session) -> None:
    first = llm.generate("long enough to fill a block>a", cache_salt="one")
    assert first.outputs[0].text == "a"
    before = session.info().stats.reused_blocks
    llm.generate("long enough to fill a block>a", cache_salt="two", use_tqdm=False)
    assert session.info().stats.reused_blocks == before
    llm.generate("long enough to fill a block>a", cache_salt="two", priority=0.9)
    assert session.info().stats.reused_blocks > before
    late = llm.generate("endless", SamplingParams(max_tokens=2000), allotted_time_ms=1.0)
    assert late.outputs[0].finish_reason == "timeout"


def test_a_request_served_impossibly_is_refused_alone(llm: LLM) -> None:
    good = llm.generate_async("say>hello")
    with pytest.raises(InvalidRequestError, match=r"require 0 <= priority <= 1, got priority=7"):
        llm.generate("say>hello", priority=7.0)
    with pytest.raises(TypeError, match="priorty"):
        llm.generate("say>hello", priorty=0.5)
    assert good.result().outputs[0].text == "hello"


def test_perf_metrics_have_the_keys_of_the_reference(llm: LLM) -> None:
    (answer,) = llm.generate("say>hello", SamplingParams(return_perf_metrics=True)).outputs
    metrics = answer.request_perf_metrics
    assert metrics is not None
    assert list(metrics) == [
        *("timingMetrics", "kvCacheMetrics", "speculativeDecoding", "firstIter", "lastIter")
    ]
    timing = metrics["timingMetrics"]
    moments = ("arrivalTime", "firstScheduledTime", "firstTokenTime", "lastTokenTime")
    times = [timing[moment] for moment in moments]
    assert times == sorted(times)


def test_answer_without_text_still_stops_at_texts(llm: LLM) -> None:
    (answer,) = llm.generate("say>hello", SamplingParams(detokenize=False)).outputs
    assert answer.text == "" and answer.length == 5
    silent = SamplingParams(detokenize=False, exclude_input_from_output=False)
    assert llm.generate("say>hello", silent).outputs[0].text == ""
    params = SamplingParams(detokenize=False, stop="l")
    (stopped,) = llm.generate("say>hello", params).outputs
    assert (stopped.text, stopped.stop_reason, stopped.length) == ("", "l", 3)


def test_long_prompts_lose_their_beginning_where_asked(llm: LLM) -> None:
    output = llm.generate("say>no>hello", SamplingParams(truncate_prompt_tokens=6))
    assert len(output.prompt_token_ids) == 6 and output.outputs[0].text == "hello"
    params = SamplingParams(truncate_prompt_tokens=6, exclude_input_from_output=False)
    echoed = llm.generate("say>no>hello", params)
    assert (echoed.prompt, echoed.outputs[0].text) == ("say>no>hello", ">hellohello")
    whole = llm.generate("</s>>ab", params)  # uncut, it comes back exactly as it was given
    assert len(whole.prompt_token_ids) == 4 and whole.outputs[0].text == "</s>>abab"


@pytest.mark.parametrize("is_streaming", [False, True])
def test_stop_word_of_several_tokens_may_stay_in_the_text(llm: LLM, is_streaming: bool) -> None:
    words = [llm.tokenizer.encode("lo"), llm.tokenizer.encode("z")]
    params = SamplingParams(stop_token_ids=words, include_stop_str_in_output=True)
    if is_streaming:
        pieces = list(llm.generate_stream("say>hello you", params))
        assert [piece.text for piece in pieces] == ["h", "e", "l", "l", "o"]
        assert pieces[-1].finish_reason == "stop"
    else:
        assert llm.generate("say>hello you", params).outputs[0].text == "hello"


def test_wishes_of_the_reference_that_cannot_be_had_are_named() -> None:
    with pytest.raises(InvalidRequestError, match="beam_width_array, return_encoder_output"):
        SamplingParams(beam_width_array=[2, 3], return_encoder_output=True)
    with pytest.raises(InvalidRequestError, match=r"require truncate_prompt_tokens >= 1, got tru"):
        SamplingParams(truncate_prompt_tokens=0)


def test_events_tell_each_life_once_under_the_id_of_the_request(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    config = RuntimeConfig(event_buffer_max_size=100)
    with LLM.from_session(open_session(tmp_path, runtime=config)) as llm:
        output = llm.generate("say>hello")
        events = llm.get_request_events()
        assert [each["kind"] for each in events] == ["queued", "admitted", "first_token", "ended"]
        assert {each["clientId"] for each in events} == {str(output.request_id)}
        assert events[-1]["detail"] == "end_id" and llm.get_request_events() == []
