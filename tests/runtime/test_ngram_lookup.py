"""Guesses from the text itself: what is guessed, and that it never changes what is said."""

from __future__ import annotations

import pytest

from tests.runtime.test_block_reuse import LIMITS, Bench
from tests.runtime.watchful_executor import tokens_alone
from tidemill.runtime.config import CapacityPolicy, RuntimeConfig
from tidemill.runtime.ngram_lookup import NgramIndex
from tidemill.runtime.request import Request


def guess(tokens: list[int], num_tokens: int, max_size: int = 3) -> list[int]:
    index = NgramIndex(max_size)
    index.follow(tokens)
    return list(index.guess(tokens, num_tokens))


def test_guess_is_what_followed_the_latest_same_ngram() -> None:
    assert guess([1, 2, 3, 9, 1, 2, 4, 7, 5, 1, 2], 2) == [4, 7]


def test_longer_match_goes_first() -> None:
    assert guess([5, 1, 2, 3, 8, 1, 2, 4, 5, 1, 2], 2) == [3, 8]


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5]])
def test_text_without_repetition_has_no_guess(tokens: list[int]) -> None:
    assert guess(tokens, 4) == []


def test_guess_stops_at_the_end_of_the_text() -> None:
    assert guess([1, 2, 3, 1, 2], 9) == [3, 1, 2]


def test_single_tokens_are_looked_up_only_when_asked_for() -> None:
    assert guess([1, 7, 1], 1) == []
    assert guess([1, 7, 1], 1, max_size=1) == [7]


def test_index_that_follows_a_growing_text_equals_one_made_at_once() -> None:
    tokens = [i * i % 7 for i in range(40)]
    growing = NgramIndex(3)
    for length in range(1, 41):
        growing.follow(tokens[:length])
        assert list(growing.guess(tokens[:length], 5)) == guess(tokens[:length], 5)


def run(config: RuntimeConfig, *requests: Request) -> tuple[dict[int, list[int]], Bench]:
    bench = Bench(config, LIMITS_OF_TWO_TOKENS)
    outputs: dict[int, list[int]] = {request.request_id: [] for request in requests}
    for update in bench.run(*requests):
        outputs[update.request_id].extend(update.new_tokens)
    return outputs, bench


LIMITS_OF_TWO_TOKENS = type(LIMITS)(4, 64, 64, 63, 4, 64, 2)


@pytest.mark.parametrize("policy", list(CapacityPolicy))
def test_guesses_change_the_number_of_steps_and_nothing_else(policy: CapacityPolicy) -> None:
    requests = [Request(i, (1, 0, 1, i % 2) * 4, 40) for i in range(3)]
    plain, plain_bench = run(RuntimeConfig(policy), *requests)
    guessed, bench = run(RuntimeConfig(policy, max_draft_len=3), *requests)
    assert guessed == plain
    assert all(plain[r.request_id] == tokens_alone(r, LIMITS_OF_TWO_TOKENS)[0] for r in requests)
    stats = bench.loop.stats()
    assert stats.total_accepted_draft_tokens > 0
    assert stats.iteration < plain_bench.loop.stats().iteration


def test_request_can_refuse_speculation() -> None:
    _, bench = run(RuntimeConfig(max_draft_len=3), Request(1, (1, 0) * 8, 40, is_speculative=False))
    assert bench.loop.stats().total_draft_tokens == 0
    assert bench.loop.stats().iteration == 40
