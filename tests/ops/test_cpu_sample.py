"""Native sampling against its reference: ties, top-k, top-p, temperature, numbers, distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.ops.judge import make_op, run, tensor
from tests.ops.native_op import HOST_TARGETS, Operands, count, run_native, wide_rows
from tidemill.base.abi import EDIT_WORDS
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics, Sampling
from tidemill.ops.layout import wide_row
from tidemill.ops.logits_edits import LogitsEdits
from tidemill.ops.sample import kept_weights
from tidemill.ops.sample.random import uniform

EXACT = Numerics(np.float64)
RECORD = np.dtype([("token", "<i4"), ("add", "<f4"), ("factor", "<f4"), ("subtract", "<f4")])


def draw_native(
    target: str, logits: Array, settings: Sequence[Sampling], num_threads: int = 1
) -> list[int]:
    """Draw a token for each row; what lies in the padding columns must not matter."""
    rows, vocabulary = logits.shape
    padded = wide_rows(logits.astype(np.float32))
    padded[:, vocabulary:] = 1e30
    scratch_bytes = 4 * wide_row(vocabulary)
    tokens = np.full(max(rows, 1), -1, np.int32)
    words, keep_alive = edit_words([s.edits for s in settings], vocabulary)
    record: Operands = {
        "rows": count(rows), "logits": padded, "tokens": tokens, "edits": words,
        "min_p": np.array([s.min_p for s in settings], np.float32),
        "temperature": np.array([s.temperature for s in settings], np.float32),
        "top_k": np.array([s.top_k for s in settings], np.int32),
        "top_p": np.array([s.top_p for s in settings], np.float32),
        "seed": np.array([s.seed for s in settings], np.uint64),
        "position": np.array([s.position for s in settings], np.int64),
        "scratch": np.zeros(num_threads * scratch_bytes, np.uint8),
        "scratch_bytes": scratch_bytes,
    }  # fmt: skip
    op = make_op("sample", [tensor("f32", "L", vocabulary)])
    raw = padded.copy()
    run_native(target, [op], [record], num_threads=num_threads)
    assert keep_alive is not None and (padded == raw).all(), "the raw logits were changed"
    return [int(token) for token in tokens[:rows]]


def edit_words(edits: Sequence[LogitsEdits | None], vocabulary: int) -> tuple[Array, list[Array]]:
    """The kernel's form of edits, and the arrays that it points to."""
    words = np.zeros((max(len(edits), 1), EDIT_WORDS), np.int64)
    arrays: list[Array] = []
    for row, each in zip(words, edits, strict=False):
        if each is None:
            continue
        records = np.array(list(each.records), RECORD)
        arrays.append(records)
        row[:2] = records.ctypes.data, len(records)
        if each.bias is not None:
            arrays.append(wide_rows(each.bias[np.newaxis].astype(np.float32)))
            row[2] = arrays[-1].ctypes.data
        if each.allowed is not None:
            bits = np.zeros(wide_row(vocabulary) + 32, np.uint8)
            bits[:vocabulary] = each.allowed
            arrays.append(np.packbits(bits, bitorder="little"))
            row[3] = arrays[-1].ctypes.data
    return words, arrays


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


def random_edits(rng: np.random.Generator, vocabulary: int) -> LogitsEdits | None:
    """None, or any mix of a bias, records (several for one token) and a mask."""
    if rng.random() < 0.2:
        return None
    num_records = int(rng.integers(0, 2 * vocabulary))
    records = tuple(
        (
            int(rng.integers(vocabulary)),
            float(rng.choice([0.0, 1.5, -2.0])),
            float(rng.choice([1.0, 1.25, 0.5])),
            float(rng.choice([0.0, 0.75, np.inf])),
        )
        for _ in range(num_records)
    )
    allowed = rng.random(vocabulary) < 0.6
    allowed[rng.integers(vocabulary)] = True
    return LogitsEdits(
        bias=rng.choice([0.0, 0.25, -1.0], vocabulary) if rng.random() < 0.5 else None,
        records=records if rng.random() < 0.7 else (),
        allowed=allowed if rng.random() < 0.5 else None,
    )


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_edits_come_before_everything_else(target: str) -> None:
    for vocabulary in (1, 2, 31, 33, 101, 1009):
        rng = np.random.default_rng(vocabulary)
        rows = 24
        logits = rng.normal(0, 3, (rows, vocabulary)).astype(np.float32)
        for temperature, top_k, top_p, min_p in [(1, 1, 1, 0), (0.7, 0, 1, 0), (1.5, 9, 0.9, 0.1)]:
            settings = [
                Sampling(temperature, top_k, top_p, 5, row, min_p, random_edits(rng, vocabulary))
                for row in range(rows)
            ]
            drawn = draw_native(target, logits, settings, num_threads=2)
            assert drawn == draw_reference(logits, settings), (vocabulary, temperature)


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_min_p_keeps_what_is_likely_enough(target: str) -> None:
    logits = np.log(np.array([[0.4, 0.05, 0.3, 0.19, 0.06]])).astype(np.float32).repeat(300, axis=0)
    for min_p, expected in [
        (0.1, {0, 1, 2, 3, 4}),
        (0.14, {0, 2, 3, 4}),
        (0.5, {0, 2}),
        (1.0, {0}),
    ]:
        settings = [Sampling(1.0, 0, 1.0, 3, position, min_p) for position in range(300)]
        drawn = draw_native(target, logits, settings)
        assert set(drawn) == expected
        assert drawn == draw_reference(logits, settings)


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_row_with_every_token_banned_still_gives_a_token(target: str) -> None:
    edits = LogitsEdits(records=tuple((token, 0.0, 1.0, np.inf) for token in range(17)))
    for settings in (Sampling(edits=edits), Sampling(1.0, 0, 0.9, 1, 2, edits=edits)):
        assert draw_native(target, np.ones((1, 17), np.float32), [settings]) == [0]
