"""What each quantisation scheme costs a model: logits and perplexity on a fixed text.

Measured against the bfloat16 engine of the same checkpoint, whose own distance from float32 is in
docs/ACCURACY.md. The bounds are those of tests/scheme_losses.py. Every position of the text is
judged, decoded one by one, several sequences at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MakeTinyLlama, Sample
from tests.engine_logits import Array, forced_logits
from tests.scheme_losses import APART, CACHES, LOSSES, ON_RANDOM_WEIGHTS, build_flags, table
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.quant.schemes import NAME_TO_SCHEME, NONE
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.text.tokenizer import Tokenizer

# Jane Austen, Pride and Prejudice, chapters 1 and 2.
TEXT = (Path(__file__).parents[1] / "data" / "accuracy_text.txt").read_text("utf-8")
NUM_SEQUENCES = 8
RANDOM_MODEL = TinyLlama(
    hidden_size=256, num_heads=16, head_size=16, intermediate_size=512, weight_std=0.0625
)
RANDOM_CHARACTERS = 1024  # of which its tokenizer makes a token each

DEFAULT = ("w8a8", "w4a8_g128")  # seconds each; the others are a sweep


@dataclass(frozen=True)
class Answers:
    """Logits at every position of the text but sequences' last, and the mean surprise there.

    `logits` are float16, whose rounding is a fortieth of the smallest loss, to halve their memory.
    """

    logits: Array
    surprise: float

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.surprise))


@dataclass(frozen=True)
class Judged:
    """A checkpoint, the text it reads, and the answers of its plain engine."""

    checkpoint: Path
    text: str
    plain: Answers


Judge = Callable[[bool], Judged]


def read_text(engine: Path, text: str) -> Answers:
    tokens = Tokenizer.from_directory(engine).encode(text)
    length = len(tokens) // NUM_SEQUENCES
    sequences = [tokens[i * length : (i + 1) * length] for i in range(NUM_SEQUENCES)]
    executor = NativeExecutor.load(engine, kv_cache_tokens=4096, num_threads=2)
    logits = forced_logits(executor, [each[:-1] for each in sequences], length - 2)
    executor.close()
    mean = surprise(logits, np.array([each[1:] for each in sequences]))
    return Answers(logits.astype(np.float16), float(mean))


def surprise(logits: Array, following: Array) -> float:
    """The mean negative log-probability of the tokens that follow."""
    total = 0.0
    for row, token in zip(logits.reshape(-1, logits.shape[-1]), following.reshape(-1), strict=True):
        wide = row.astype(np.float64)
        total += np.log(np.exp(wide - wide.max()).sum()) + wide.max() - wide[token]
    return total / following.size


def rms_error(got: Array, plain: Array) -> float:
    """The rms of the differences over the rms of the plain logits."""
    errors = sum(
        float(np.square(g - p, dtype=np.float64).sum()) for g, p in zip(got, plain, strict=True)
    )
    size = sum(float(np.square(p, dtype=np.float64).sum()) for p in plain)
    return float(np.sqrt(errors / size))


@pytest.fixture(scope="module")
def judge(
    sample: Sample,
    make_tiny_llama: MakeTinyLlama,
    tmp_path_factory: pytest.TempPathFactory,
) -> Judge:
    @cache
    def make(is_random: bool) -> Judged:
        if not is_random:
            return Judged(sample.checkpoint, TEXT, read_text(sample.engine, TEXT))
        checkpoint = tmp_path_factory.mktemp("random") / "checkpoint"
        convert(ConvertRequest(make_tiny_llama(RANDOM_MODEL), checkpoint, dtype="bfloat16"))
        build(BuildRequest(checkpoint, checkpoint.parent / "engine"))
        text = TEXT[:RANDOM_CHARACTERS]
        return Judged(checkpoint, text, read_text(checkpoint.parent / "engine", text))

    return make


@pytest.mark.parametrize(
    "scheme",
    [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.sweep) for name in LOSSES],
)
def test_scheme_loses_no_more_than_its_table_allows(
    scheme: str, judge: Judge, tmp_path: Path
) -> None:
    judged, bounds = judge(scheme in ON_RANDOM_WEIGHTS), LOSSES[scheme]
    request = BuildRequest(judged.checkpoint, tmp_path / "engine", max_seq_len=512)
    build(replace(request, **build_flags(scheme)))
    got, plain = read_text(tmp_path / "engine", judged.text), judged.plain
    rms, change = rms_error(got.logits, plain.logits), got.perplexity / plain.perplexity - 1
    same = (got.logits.argmax(-1) == plain.logits.argmax(-1)).mean()
    print(
        f"{scheme}: logits rms {rms:.2e}, perplexity {plain.perplexity:.3f} -> "
        f"{got.perplexity:.3f} ({change:+.2%}), same first {same:.1%}"
    )
    assert rms <= bounds.max_rms
    assert bounds.max_perplexity is None or change <= bounds.max_perplexity


def test_every_scheme_has_a_row_and_the_document_shows_the_table() -> None:
    assert {*LOSSES} == {*CACHES, *APART, *NAME_TO_SCHEME} - {NONE.name}
    document = Path(__file__).parents[2] / "docs" / "ACCURACY.md"
    assert table() in document.read_text("utf-8"), f"docs/ACCURACY.md should have:\n{table()}"
