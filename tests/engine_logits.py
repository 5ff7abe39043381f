"""Drives a loaded engine with tokens that the test chooses, and reads its logits.

In: an executor, sequences of tokens, how many of the last ones are to be decoded one by one. Out:
the logits that a step leaves in the arena. No scheduler: blocks are dealt out here, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.request import SamplingParams
from tidemill.runtime.step import PlanEntry, StepPlan

Array = npt.NDArray[Any]


def run_and_read_logits(executor: NativeExecutor, entries: Sequence[PlanEntry]) -> Array:
    """Run one step; Shapes: (entries that sample, vocabulary), float32."""
    num_rows = len(executor.execute(StepPlan(tuple(entries))).sampled_tokens)
    stored = executor.buffer("logits")[:num_rows, : executor.limits.vocab_size]
    return np.asarray(stored, np.float32).copy()


def forced_logits(
    executor: NativeExecutor, sequences: Sequence[Sequence[int]], num_decoded: int
) -> Array:
    """Logits at each sequence's last `num_decoded` + 1 positions, the later ones decoded singly.

    Each sequence but its last `num_decoded` tokens goes in as one chunk of a prompt, alone in its
    step; then all sequences decode together. Shapes: (sequences, num_decoded + 1, vocabulary).
    """
    block = executor.limits.tokens_per_block
    tables, next_block = [], 0
    for tokens in sequences:
        num_blocks = -(-len(tokens) // block)
        tables.append(list(range(next_block, next_block + num_blocks)))
        next_block += num_blocks
    assert next_block <= executor.limits.num_blocks, "the cache is too small for this test"

    def entry(index: int, start: int, end: int) -> PlanEntry:
        chunk = sequences[index][start:end]
        return PlanEntry(index, chunk, start, tables[index], True, SamplingParams())

    starts = [len(tokens) - num_decoded for tokens in sequences]
    each = range(len(sequences))
    first = [run_and_read_logits(executor, [entry(i, 0, starts[i])])[0] for i in each]
    steps = [np.stack(first)]
    for number in range(num_decoded):
        entries = [entry(i, starts[i] + number, starts[i] + number + 1) for i in each]
        steps.append(run_and_read_logits(executor, entries))
    return np.stack(steps, axis=1)
