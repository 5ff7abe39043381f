"""Answers that nobody waits for on the spot: threads, asyncio, aborts, statistics."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.host.fake_engine import open_session, write_tokenizer
from tidemill.api.llm import LLM, SamplingParams
from tidemill.base.errors import InvalidRequestError, SessionError
from tidemill.host.session import Session

ENDLESS = SamplingParams(max_tokens=2000)
TIMEOUT_S = 20.0


@pytest.fixture
def session(tmp_path: Path) -> Session:
    write_tokenizer(tmp_path)
    return open_session(tmp_path, step_seconds=0.001)


@pytest.fixture
def llm(session: Session) -> Iterator[LLM]:
    with LLM.from_session(session) as llm:
        yield llm


def wait_until_free(session: Session) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while session.info().stats.used_blocks:
        assert time.monotonic() < deadline, "blocks are still held"
        time.sleep(0.002)


def test_result_is_the_answer_of_generate(llm: LLM) -> None:
    result = llm.generate_async("say>hello")
    output = result.result(TIMEOUT_S)
    assert output.outputs[0].text == "hello" and output.finished and result.finished
    assert output.outputs[0].token_ids == llm.generate("say>hello").outputs[0].token_ids
    assert output.prompt == "say>hello" and len(output.prompt_token_ids) == 9


def test_await_and_aresult_give_the_whole_answer(llm: LLM) -> None:
    async def ask() -> list[str]:
        futures = [llm.generate_async(f">{word}") for word in ("one", "two", "three")]
        outputs = await asyncio.gather(*(future.aresult() for future in futures))
        assert (await futures[0]).outputs[0].text == "one"
        return [output.outputs[0].text for output in outputs]

    assert asyncio.run(ask()) == ["one", "two", "three"]


def test_iteration_shows_all_so_far_and_what_is_new(llm: LLM) -> None:
    async def ask() -> None:
        whole = ""
        async for output in llm.generate_async(">hello", streaming=True):
            (answer,) = output.outputs
            whole += answer.text_diff
            assert answer.text == whole and output.finished is (answer.finish_reason is not None)
        assert whole == "hello" and answer.finish_reason == "stop"

    asyncio.run(ask())


def test_many_at_once_keep_their_texts_apart(llm: LLM) -> None:
    async def one(number: int) -> str:
        pieces = [
            output.outputs[0].text_diff
            async for output in llm.generate_async(f">text {number}", streaming=True)
        ]
        return "".join(pieces)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(64)))

    assert asyncio.run(all_of_them()) == [f"text {number}" for number in range(64)]


def test_abort_ends_the_request_and_frees_its_blocks(llm: LLM, session: Session) -> None:
    result = llm.generate_async("endless", ENDLESS, streaming=True)
    time.sleep(0.05)
    result.abort()
    assert result.result(TIMEOUT_S).outputs[0].finish_reason == "cancelled"
    wait_until_free(session)


def test_answer_that_is_whole_is_kept_by_its_caller_alone(llm: LLM) -> None:
    result = llm.generate_async(">gone")
    result.result(TIMEOUT_S)
    kept = weakref.ref(result)
    del result
    llm.generate_async(">next").result(TIMEOUT_S)
    gc.collect()
    assert kept() is None


def test_cancelled_task_aborts_its_request(llm: LLM, session: Session) -> None:
    async def ask() -> None:
        task = asyncio.create_task(llm.generate_async("endless", ENDLESS).aresult())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    wait_until_free(session)


def test_fault_of_the_request_comes_with_its_result(llm: LLM) -> None:
    async def iterate() -> None:
        async for _ in llm.generate_async("x" * 3000, streaming=True):
            pass

    with pytest.raises(InvalidRequestError, match="exceeds maximum input length"):
        llm.generate_async("x" * 3000).result(TIMEOUT_S)
    with pytest.raises(InvalidRequestError, match="exceeds maximum input length"):
        asyncio.run(iterate())
    assert llm.generate_async(">fine").result(TIMEOUT_S).outputs[0].text == "fine"


def test_result_that_takes_too_long_is_a_timeout(llm: LLM) -> None:
    result = llm.generate_async("endless", ENDLESS)
    with pytest.raises(TimeoutError):
        result.result(timeout=0.01)
    result.abort()


def test_broken_engine_is_told_to_all_who_wait(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    llm = LLM.from_session(open_session(tmp_path))
    with pytest.raises(SessionError, match="a wire came loose"):
        llm.generate_async("!break").result(TIMEOUT_S)
    llm.shutdown()


def test_statistics_have_the_names_of_the_reference(llm: LLM) -> None:
    assert llm.get_stats() == []
    llm.generate(">hello")
    told = llm.get_stats()
    assert [stats["iter"] for stats in told] == list(range(1, len(told) + 1)) and len(told) >= 5
    assert sum(stats["numCompletedRequests"] for stats in told) == 1
    assert told[0]["inflightBatchingStats"]["numContextRequests"] == 1
    assert told[-1]["inflightBatchingStats"]["numGenRequests"] == 1
    assert told[-1]["kvCacheStats"]["usedNumBlocks"] == 0
    assert llm.get_stats() == []

    async def collect() -> list[int]:
        return [stats["iter"] async for stats in llm.get_stats_async()]

    llm.generate(">again")
    assert asyncio.run(collect()) == list(range(len(told) + 1, len(told) + 7))


def test_statistics_are_told_in_the_middle_of_the_work(llm: LLM) -> None:
    result = llm.generate_async("endless", ENDLESS)
    told: list[int] = []
    for _ in range(20):
        told += [stats["iter"] for stats in llm.get_stats()]
        time.sleep(0.005)
    result.abort()
    assert told == list(range(1, len(told) + 1)) and len(told) > 5
