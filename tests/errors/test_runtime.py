"""One test for each mistake that the runtime refuses."""

from __future__ import annotations

import math

import pytest

from tidemill.base.errors import ConfigError, InvalidRequestError, QueueFullError
from tidemill.runtime.config import ChunkingPolicy, RuntimeConfig
from tidemill.runtime.kvcache.retention import KvCacheRetention, TokenRangeRetention
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import FinishReason, Request, SamplingParams
from tidemill.runtime.simulation import FakeExecutor
from tidemill.runtime.step import EngineLimits

LIMITS = EngineLimits(
    max_batch_size=2,
    max_num_tokens=8,
    max_seq_len=20,
    max_input_len=10,
    tokens_per_block=4,
    num_blocks=4,
    vocab_size=31,
)


def refusal(request: Request) -> str:
    loop = Loop(FakeExecutor(LIMITS))
    with pytest.raises(InvalidRequestError) as caught:
        loop.submit(request)
    assert not loop.has_work
    return str(caught.value)


def test_empty_prompt() -> None:
    assert "the prompt is empty" in refusal(Request(1, (), 4))


def test_prompt_over_max_input_len() -> None:
    message = refusal(Request(1, (1,) * 11, 4))
    assert "prompt length (11) exceeds maximum input length (10)" in message


def test_prompt_and_output_over_max_seq_len() -> None:
    message = refusal(Request(1, (1,) * 10, 11))
    assert "exceeds maximum sequence length (20); at most 10 new tokens fit" in message


def test_request_larger_than_the_whole_cache() -> None:
    assert "exceeds the key-value cache's 16 tokens" in refusal(Request(1, (1,) * 10, 7))


def test_no_new_tokens_wanted() -> None:
    assert "require max_tokens > 0, got max_tokens=0" in refusal(Request(1, (1,), 0))


@pytest.mark.parametrize("token", [-1, 31])
def test_token_outside_of_the_vocabulary(token: int) -> None:
    message = refusal(Request(1, (3, token, 4), 1))
    assert f"prompt holds token {token}, expected tokens from 0 to 30" in message


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(temperature=-1), "require temperature >= 0, got temperature=-1"),
        (SamplingParams(temperature=math.nan), "require temperature >= 0, got temperature=nan"),
        (SamplingParams(top_p=2), "require 0 <= top_p <= 1, got top_p=2"),
        (SamplingParams(top_k=-1), "require top_k >= 0, got top_k=-1"),
        (SamplingParams(top_k=2**31), "require top_k <= 2147483647, got top_k=2147483648"),
        (SamplingParams(seed=-1), "require 0 <= seed < 2**64, got seed=-1"),
    ],
)
def test_sampling_value_out_of_range(sampling: SamplingParams, expected: str) -> None:
    assert expected in refusal(Request(1, (1,), 1, sampling))


def test_every_fault_is_listed() -> None:
    message = refusal(Request(1, (99,) * 11, 1, SamplingParams(temperature=-1, top_p=2)))
    for part in ("prompt length (11)", "token 99", "temperature=-1", "top_p=2"):
        assert part in message


def test_request_id_in_flight_twice() -> None:
    loop = Loop(FakeExecutor(LIMITS))
    loop.submit(Request(1, (1,), 2))
    with pytest.raises(InvalidRequestError, match="a request of this id is in flight"):
        loop.submit(Request(1, (1,), 2))


def test_full_queue_refuses_and_leaves_the_others_alone() -> None:
    loop = Loop(FakeExecutor(LIMITS), RuntimeConfig(max_queue_size=1))
    loop.submit(Request(1, (1,), 2))
    with pytest.raises(QueueFullError, match="Maximum queue size of 1 has been reached, please"):
        loop.submit(Request(2, (1,), 2))
    ended = []
    while loop.has_work:
        ended += [u for u in loop.step() if u.finish_reason is not FinishReason.NOT_FINISHED]
    assert [update.request_id for update in ended] == [1]


def test_priority_out_of_range() -> None:
    message = refusal(Request(1, (1,), 2, priority=1.5))
    assert "require 0 <= priority <= 1, got priority=1.5" in message


@pytest.mark.parametrize("allotted", [0.0, -1.0, math.nan])
def test_time_allotted_is_no_time(allotted: float) -> None:
    assert "require allotted_time_ms > 0" in refusal(Request(1, (1,), 2, allotted_time_ms=allotted))


def test_retention_priority_out_of_range() -> None:
    retention = KvCacheRetention(decode_priority=101)
    message = refusal(Request(1, (1,), 2, retention=retention))
    assert "require 0 <= retention priority <= 100, got 101" in message


def test_retention_range_that_is_empty() -> None:
    retention = KvCacheRetention((TokenRangeRetention(4, 4),))
    message = refusal(Request(1, (1,), 2, retention=retention))
    assert "require 0 <= token_start < token_end in a retention range, got 4 and 4" in message


def test_prompt_over_a_step_without_chunked_context() -> None:
    loop = Loop(FakeExecutor(LIMITS), RuntimeConfig(chunking=ChunkingPolicy.OFF))
    with pytest.raises(InvalidRequestError, match=r"prompt length \(9\) exceeds max_num_tokens"):
        loop.submit(Request(1, (1,) * 9, 2))


def test_runtime_config_out_of_range() -> None:
    with pytest.raises(ConfigError) as caught:
        RuntimeConfig(max_queue_size=-1, max_draft_len=-2, max_matching_ngram_size=0)
    for part in ("max_queue_size must be at least 0, got -1", "max_draft_len", "ngram_size"):
        assert part in str(caught.value)
