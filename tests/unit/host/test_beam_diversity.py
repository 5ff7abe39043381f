"""Diverse beams against a search in NumPy over every candidate.

The judge is TensorRT-LLM's definition (its beam kernels and PyTorch sampler): candidates of a round
are ranked by sum of log-probabilities + rate * index of the beam they come from; sums stay as they
are. It looks at all candidates, knows no likeliest ones, and keeps what ended apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from tidemill.host.beam_search import BeamSearch, BeamSettings
from tidemill.runtime.observation import TokenLogprobs

Row = npt.NDArray[np.float64]
Model = Callable[[tuple[int, ...]], Row]
Sequences = list[tuple[tuple[int, ...], float]]
VOCAB_SIZE, END, NUM_ROUNDS = 13, 2, 6


def random_model(seed: int) -> Model:
    """Log-probabilities that depend on the last two tokens and the length."""
    table = np.random.default_rng(seed).normal(0, 2, (NUM_ROUNDS, VOCAB_SIZE, VOCAB_SIZE))

    def row(tokens: tuple[int, ...]) -> Row:
        logits = table[len(tokens), tokens[-1] if tokens else 0].copy()
        logits += table[0, tokens[-2]] if len(tokens) > 1 else 0.0
        return np.asarray(logits - np.log(np.exp(logits).sum()))

    return row


def judged(model: Model, width: int, rate: float, end: int | None) -> tuple[Sequences, Sequences]:
    """Search all candidates; returns the live beams of the last round and all that ended."""
    beams: Sequences = [((), 0.0)]
    ended: Sequences = []
    for _ in range(NUM_ROUNDS):
        sums_BV = np.array([total + model(tokens) for tokens, total in beams])
        ranked_BV = sums_BV + rate * np.arange(len(beams))[:, None]
        parents, beams = beams, []
        for rank, flat in enumerate(np.argsort(-ranked_BV, axis=None)):
            place, token = divmod(int(flat), VOCAB_SIZE)
            if token == end and rank < width:
                ended.append((parents[place][0], sums_BV[place, token]))
            elif token != end:
                beams.append(((*parents[place][0], token), sums_BV[place, token]))
            if len(beams) == width:
                break
    return beams, ended


def likeliest(row: Row, count: int) -> TokenLogprobs:
    order = np.argsort(-row)[:count]
    return tuple((int(t), float(row[t]), rank) for rank, t in enumerate(order, 1))


def searched(model: Model, width: int, rate: float, end: int | None) -> tuple[Sequences, Sequences]:
    # Ended only by length, so that every round is seen: no live beam settles the search.
    settings = BeamSettings(width, 0.0, early_stopping=0, diversity_rate=rate)
    search = BeamSearch(settings, NUM_ROUNDS, () if end is None else (end,))
    ended: dict[tuple[int, ...], float] = {}
    for _ in range(NUM_ROUNDS):
        rows = [likeliest(model(beam.tokens), search.num_candidates) for beam in search.live]
        search.advance(rows)
        ended |= {beam.tokens: beam.total for beam in search._ended}
    return [(beam.tokens, beam.total) for beam in search.live], list(ended.items())


@pytest.mark.parametrize("rate", [-1.5, 0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_beams_are_those_of_a_search_over_all_candidates(width: int, rate: float) -> None:
    for seed in range(8):
        for end in (None, END):
            model = random_model(seed)
            got_live, got_ended = searched(model, width, rate, end)
            live, ended = judged(model, width, rate, end)
            assert [tokens for tokens, _ in got_live] == [tokens for tokens, _ in live]
            np.testing.assert_allclose([t for _, t in got_live], [t for _, t in live])
            told = dict(got_ended)
            for tokens, total in sorted(ended, key=lambda each: -each[1])[:width]:
                assert told[tokens] == pytest.approx(total)


def test_diversity_changes_what_is_found_and_counts_in_no_score() -> None:
    model = random_model(3)
    (plain, _), (diverse, _) = (searched(model, 4, rate, None) for rate in (0.0, 2.0))
    assert {tokens for tokens, _ in plain} != {tokens for tokens, _ in diverse}
    for tokens, total in diverse:
        steps = [model(tokens[:at])[token] for at, token in enumerate(tokens)]
        assert total == pytest.approx(sum(steps))
