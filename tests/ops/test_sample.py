"""Sampling: exact rules, reproducible draws, and frequencies that match the weights."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ops.judge import make_op, run, tensor
from tidemill.ir.storage import FloatArray
from tidemill.ops.batch import Batch, Sampling
from tidemill.ops.sample import draw, kept_weights
from tidemill.ops.sample.random import uniform


def logits(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("seed", "position", "numerator"),
    [
        (0, 0, 8041486),
        (0, 1, 5434071),
        (1, 0, 14476323),
        (42, 1000, 9652338),
        (2**64 - 1, 2**31, 16542606),
        (-1, 2**31, 16542606),
    ],
)
def test_random_numbers_are_these_forever(seed: int, position: int, numerator: int) -> None:
    assert uniform(seed, position) * 2**24 == numerator


def test_random_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    for numbers in (
        np.array([uniform(7, position) for position in range(20_000)]),
        np.array([uniform(seed, 7) for seed in range(20_000)]),
    ):
        assert (numbers >= 0).all()
        assert (numbers < 1).all()
        counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
        # 1000 in each bin, standard deviation 31: five of them.
        assert np.abs(counts - 1000).max() < 155


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(),
        Sampling(temperature=0.0, top_k=0),
        Sampling(temperature=0.7, top_k=1, seed=3),
        Sampling(temperature=0.7, top_k=0, top_p=0.0, seed=3),
    ],
)
def test_greedy_takes_the_lowest_index_of_the_largest(settings: Sampling) -> None:
    assert draw(logits(1, 3, 2, 3), settings) == 1
    assert draw(logits(-np.inf, -np.inf), settings) == 0


def kept(values: FloatArray, **settings: float) -> list[int]:
    weights = kept_weights(values, Sampling(**{"top_k": 0, **settings}))  # type: ignore[arg-type]
    return [int(index) for index in np.flatnonzero(weights)]


def test_top_k_keeps_the_largest_and_their_ties() -> None:
    values = logits(1, 4, 2, 4, 3, 2)
    assert kept(values, top_k=2) == [1, 3]
    assert kept(values, top_k=3) == [1, 3, 4]
    assert kept(values, top_k=4) == [1, 2, 3, 4, 5]
    assert kept(values, top_k=6) == kept(values, top_k=99) == kept(values) == list(range(6))


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass_and_its_ties() -> None:
    values = np.log(logits(0.4, 0.05, 0.3, 0.125, 0.125))
    assert kept(values, top_p=0.01) == [0]
    assert kept(values, top_p=0.39) == [0]
    assert kept(values, top_p=0.41) == [0, 2]
    assert kept(values, top_p=0.71) == [0, 2, 3, 4]
    assert kept(values, top_p=0.99) == [0, 1, 2, 3, 4]


def test_top_p_near_one_keeps_everything_even_where_sums_round() -> None:
    values = np.random.default_rng(1).normal(size=5000).astype(np.float32)
    assert len(kept(values, top_p=float(np.nextafter(np.float32(1), np.float32(0))))) > 4990


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    values = np.log(logits(0.5, 0.3, 0.1, 0.1))
    assert kept(values, top_k=2, top_p=0.6) == [0]
    assert kept(values, top_p=0.6) == [0, 1]


def test_temperature_comes_before_top_p() -> None:
    values = np.log(logits(0.5, 0.3, 0.2))
    assert kept(values, top_p=0.75) == [0, 1]
    assert kept(values, top_p=0.75, temperature=4.0) == [0, 1, 2]


def test_draws_have_the_frequencies_of_the_weights() -> None:
    values: FloatArray = 2.0 * np.log(logits(0.05, 0.5, 0.15, 0.3))
    settings = Sampling(temperature=2.0, top_k=3, seed=11)
    draws = [
        draw(values, Sampling(settings.temperature, settings.top_k, 1.0, settings.seed, position))
        for position in range(10_000)
    ]
    share = np.bincount(draws, minlength=4) / len(draws)
    np.testing.assert_allclose(share, [0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95], atol=0.02)


def test_each_row_has_its_own_settings_and_no_neighbour_changes_its_draw() -> None:
    rows = np.random.default_rng(2).normal(size=(5, 101)).astype(np.float32)
    settings = [Sampling(1.0, 0, 0.9, seed, 17 * seed) for seed in range(5)]
    op = make_op("sample", [tensor("f32", "L", 101)])
    together = run(op, rows, batch=Batch((0,), (), sampling=settings))
    alone = [
        run(op, rows[row : row + 1], batch=Batch((0,), (), sampling=settings[row : row + 1]))[0]
        for row in range(5)
    ]
    assert together.tolist() == alone
    assert together.dtype == np.int32


def test_sample_of_no_rows_is_empty() -> None:
    op = make_op("sample", [tensor("f32", "L", 101)])
    assert run(op, np.empty((0, 101), dtype=np.float32)).shape == (0,)
