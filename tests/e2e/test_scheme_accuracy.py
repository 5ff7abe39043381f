"""What each quantisation scheme costs the sample model: logits and perplexity on a fixed text.

Measured against the bfloat16 engine of the same checkpoint, whose own distance from float32 is in
docs/ACCURACY.md, where the bounds stand, too. Every position of the text is judged, decoded one by
one in four sequences at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MakeSample
from tests.engine_logits import Array, forced_logits
from tidemill.api.build import BuildRequest, build
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

# Scheme -> (rms error of the logits over their rms, change of perplexity), about twice what was
# measured, as in docs/ACCURACY.md.
BOUNDS = {
    "w8a16": (0.08, 0.01),
    "w8a8": (0.25, 0.04),
    "w4a16_g32": (0.04, 0.01),
    "w4a8_g32": (0.27, 0.05),
    "w4a8_g64": (0.7, 0.7),
}
SLOW = {"w4a8_g64": pytest.mark.slow}  # six seconds each, and this one says nothing of kernels


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
    "scheme", [pytest.param(name, marks=SLOW.get(name, ())) for name in BOUNDS]
)
def test_scheme_loses_no_more_than_its_table_allows(
    scheme: str, plain: Answers, make_sample: MakeSample, tmp_path: Path
) -> None:
    checkpoint = make_sample("bfloat16").checkpoint
    build(BuildRequest(checkpoint, tmp_path / "engine", max_seq_len=512, quant=scheme))
    got = read_text(tmp_path / "engine")
    rms = np.sqrt(np.mean((got.logits - plain.logits) ** 2) / np.mean(plain.logits**2))
    change = got.perplexity / plain.perplexity - 1
    same = (got.logits.argmax(-1) == plain.logits.argmax(-1)).mean()
    print(
        f"{scheme}: logits rms {rms:.2e}, perplexity {plain.perplexity:.3f} -> "
        f"{got.perplexity:.3f} ({change:+.2%}), same first {same:.1%}"
    )
    assert rms < BOUNDS[scheme][0] and change < BOUNDS[scheme][1]
