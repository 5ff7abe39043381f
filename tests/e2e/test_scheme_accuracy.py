"""What each quantisation scheme costs the sample model: logits and perplexity on a fixed text.

Measured against the bfloat16 engine of the same checkpoint, whose own distance from float32 is in
docs/ACCURACY.md. The bounds are those of tests/scheme_losses.py. Every position of the text is
judged, decoded one by one in four sequences at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MakeSample
from tests.engine_logits import Array, forced_logits
from tests.scheme_losses import CACHES, LOSSES, NOT_ON_THE_SAMPLE, build_flags, table
from tidemill.api.build import BuildRequest, build
from tidemill.quant.schemes import NAME_TO_SCHEME, NONE
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.text.tokenizer import Tokenizer

# Jane Austen, Pride and Prejudice, chapter 1.
TEXT = """It is a truth universally acknowledged, that a single man in possession of a good fortune,
must be in want of a wife. However little known the feelings or views of such a man may be on his
first entering a neighbourhood, this truth is so well fixed in the minds of the surrounding
families, that he is considered as the rightful property of some one or other of their daughters.
"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let at
last?" Mr. Bennet replied that he had not. "But it is," returned she; "for Mrs. Long has just been
here, and she told me all about it." Mr. Bennet made no answer. "Do not you want to know who has
taken it?" cried his wife impatiently. "You want to tell me, and I have no objection to hearing it."
This was invitation enough. "Why, my dear, you must know, Mrs. Long says that Netherfield is taken
by a young man of large fortune from the north of England; that he came down on Monday in a chaise
and four to see the place, and was so much delighted with it that he agreed with Mr. Morris
immediately; that he is to take possession before Michaelmas, and some of his servants are to be in
the house by the end of next week." """
NUM_SEQUENCES = 4

DEFAULT = ("w8a8", "w4a8_g32")  # a few seconds each; the others are a sweep


@dataclass(frozen=True)
class Answers:
    """Logits at every position of the text but the last, and the tokens that follow them."""

    logits: Array
    following: Array

    @property
    def perplexity(self) -> float:
        wide = self.logits.astype(np.float64)
        peak = wide.max(-1, keepdims=True)
        total = np.log(np.exp(wide - peak).sum(-1)) + peak[..., 0]
        chosen = np.take_along_axis(wide, self.following[..., None], -1)[..., 0]
        return float(np.exp(np.mean(total - chosen)))


def read_text(engine: Path) -> Answers:
    tokens = Tokenizer.from_directory(engine).encode(TEXT)
    length = len(tokens) // NUM_SEQUENCES
    sequences = [tokens[i * length : (i + 1) * length] for i in range(NUM_SEQUENCES)]
    executor = NativeExecutor.load(engine, kv_cache_tokens=1024, num_threads=2)
    logits = forced_logits(executor, [each[:-1] for each in sequences], length - 2)
    executor.close()
    return Answers(logits, np.array([each[1:] for each in sequences]))


@pytest.fixture(scope="module")
def plain(make_sample: MakeSample) -> Answers:
    return read_text(make_sample("bfloat16").engine)


@pytest.mark.parametrize(
    "scheme",
    [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.sweep) for name in LOSSES],
)
def test_scheme_loses_no_more_than_its_table_allows(
    scheme: str, plain: Answers, make_sample: MakeSample, tmp_path: Path
) -> None:
    checkpoint = make_sample("bfloat16").checkpoint
    request = BuildRequest(checkpoint, tmp_path / "engine", max_seq_len=512)
    build(replace(request, **build_flags(scheme)))
    got = read_text(tmp_path / "engine")
    rms = np.sqrt(np.mean((got.logits - plain.logits) ** 2) / np.mean(plain.logits**2))
    change = got.perplexity / plain.perplexity - 1
    same = (got.logits.argmax(-1) == plain.logits.argmax(-1)).mean()
    print(
        f"{scheme}: logits rms {rms:.2e}, perplexity {plain.perplexity:.3f} -> "
        f"{got.perplexity:.3f} ({change:+.2%}), same first {same:.1%}"
    )
    assert rms < LOSSES[scheme].max_rms and change < LOSSES[scheme].max_perplexity


def test_every_scheme_has_a_row_and_the_document_shows_the_table() -> None:
    assert {*LOSSES, *NOT_ON_THE_SAMPLE} == {*CACHES, *NAME_TO_SCHEME} - {NONE.name}
    document = Path(__file__).parents[2] / "docs" / "ACCURACY.md"
    assert table() in document.read_text("utf-8"), f"docs/ACCURACY.md should have:\n{table()}"
