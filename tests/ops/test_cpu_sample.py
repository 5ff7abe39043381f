"""Native sampling against its reference: ties, top-k, top-p, temperature, numbers, distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.ops.judge import make_op, run, tensor
from tests.ops.native_op import HOST_TARGETS, Operands, count, run_native, wide_rows
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics, Sampling
from tidemill.ops.layout import wide_row
from tidemill.ops.sample import kept_weights
from tidemill.ops.sample.random import uniform

EXACT = Numerics(np.float64)


def draw_native(
    target: str, logits: Array, settings: Sequence[Sampling], num_threads: int = 1
) -> list[int]:
    """Draw a token for each row; what lies in the padding columns must not matter."""
    rows, vocabulary = logits.shape
    padded = wide_rows(logits.astype(np.float32))
    padded[:, vocabulary:] = 1e30
    scratch_bytes = 4 * wide_row(vocabulary)
    tokens = np.full(max(rows, 1), -1, np.int32)
    record: Operands = {
        "rows": count(rows), "logits": padded, "tokens": tokens,
        "temperature": np.array([s.temperature for s in settings], np.float32),
        "top_k": np.array([s.top_k for s in settings], np.int32),
        "top_p": np.array([s.top_p for s in settings], np.float32),
        "seed": np.array([s.seed for s in settings], np.uint64),
        "position": np.array([s.position for s in settings], np.int64),
        "scratch": np.zeros(num_threads * scratch_bytes, np.uint8),
        "scratch_bytes": scratch_bytes,
    }  # fmt: skip
    op = make_op("sample", [tensor("f32", "L", vocabulary)])
    run_native(target, [op], [record], num_threads=num_threads)
    return [int(token) for token in tokens[:rows]]


def draw_reference(logits: Array, settings: Sequence[Sampling]) -> list[int]:
    op = make_op("sample", [tensor("f32", "L", logits.shape[1])])
    batch = Batch((0,), (), sampling=settings)
    drawn = run(op, logits, batch=batch, numerics=EXACT)
    return [int(token) for token in drawn]


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_greedy_ties_go_to_the_lowest_index(target: str) -> None:
    rng = np.random.default_rng(1)
    for vocabulary in (1, 2, 15, 16, 17, 32, 33, 101):
        for rows in (1, 2, 5):
            logits = rng.integers(-3, 3, (rows, vocabulary)).astype(np.float32)
            for greedy in (Sampling(top_k=1), Sampling(0.0, top_k=7), Sampling(top_k=0, top_p=0.0)):
                drawn = draw_native(target, logits, [greedy] * rows, num_threads=2)
                assert drawn == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_no_rows_draw_nothing(target: str) -> None:
    assert draw_native(target, np.zeros((0, 33), np.float32), [], num_threads=2) == []


SETTINGS = [
    (1.0, 0, 1.0),
    (0.7, 5, 1.0),
    (2.5, 200, 0.9),
    (1.0, 0, 0.3),
    (1e-3, 0, 0.95),
    (1.3, 101, 1.0),
    (1.0, 2, 0.999),
]


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_draws_equal_the_reference_for_all_settings(target: str) -> None:
    for vocabulary in (2, 33, 101, 1009):
        rng = np.random.default_rng(vocabulary)
        rows = 40
        logits = rng.normal(0, 3, (rows, vocabulary)).astype(np.float32)
        for temperature, top_k, top_p in SETTINGS:
            settings = [
                Sampling(temperature, top_k, top_p, int(rng.integers(2**63)), position)
                for position in range(rows)
            ]
            drawn = draw_native(target, logits, settings, num_threads=2)
            assert drawn == draw_reference(logits, settings), (vocabulary, settings[0])


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_ties_at_the_edge_of_top_k_are_kept(target: str) -> None:
    logits = np.array([[1.0, 3.0, 2.0, 2.0, 0.0, 2.0, -1.0]], np.float32)
    settings = [Sampling(5.0, 2, 1.0, 9, position) for position in range(200)]
    drawn = draw_native(target, logits.repeat(200, axis=0), settings)
    assert set(drawn) == {1, 2, 3, 5}
    assert drawn == draw_reference(logits.repeat(200, axis=0), settings)


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_banned_tokens_are_never_drawn(target: str) -> None:
    logits = np.full((64, 47), -np.inf, np.float32)
    logits[:, [3, 40]] = 0.0
    settings = [Sampling(1.5, 0, 1.0, 2**64 - 1, position) for position in range(64)]
    drawn = draw_native(target, logits, settings)
    assert set(drawn) == {3, 40}
    alone = [Sampling(1.5, 5, 0.9, 4, position) for position in range(64)]
    assert set(draw_native(target, np.where(logits == 0, 1e30, logits), alone)) == {3, 40}


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_random_numbers_are_those_of_the_reference(target: str) -> None:
    """Over V equal logits the token drawn is the number's first 10 bits."""
    rng = np.random.default_rng(6)
    seeds = [0, 1, 2**63, 2**64 - 1, *(int(each) for each in rng.integers(2**63, size=60))]
    settings = [Sampling(1.0, 0, 1.0, seed, 37 * row) for row, seed in enumerate(seeds)]
    drawn = draw_native(target, np.zeros((len(seeds), 1024), np.float32), settings)
    assert drawn == [int(uniform(s.seed, s.position) * 1024) for s in settings]


def test_draws_follow_the_distribution() -> None:
    logits = np.random.default_rng(3).normal(0, 1.5, 33).astype(np.float32)
    plain = Sampling(0.8, 20, 0.9)
    num_draws = 20_000
    settings = [Sampling(0.8, 20, 0.9, 77, position) for position in range(num_draws)]
    drawn = draw_native(HOST_TARGETS[0], np.tile(logits, (num_draws, 1)), settings)
    weights = kept_weights(logits.astype(np.float64), plain)
    expected = num_draws * weights / weights.sum()
    counts = np.bincount(drawn, minlength=33)
    assert not counts[expected == 0].any()
    kept = expected > 0
    chi_square = float((((counts - expected) ** 2)[kept] / expected[kept]).sum())
    # 99.99 % of draws from the distribution itself stay below this, for fewer than 20 degrees.
    assert chi_square < 50, chi_square


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_a_row_draws_the_same_token_in_any_crowd(target: str) -> None:
    logits = np.random.default_rng(8).normal(0, 2, (13, 271)).astype(np.float32)
    settings = [Sampling(1.0, 0, 0.9, 5, row) for row in range(13)]
    crowd = draw_native(target, logits, settings, num_threads=2)
    for row in range(13):
        assert draw_native(target, logits[row : row + 1], settings[row : row + 1]) == [crowd[row]]
