"""The ambient state of a step: who is in the batch, what is cached, how tokens are drawn.

`attention` and `sample` need more than their inputs: which packed rows belong to which sequence,
the keys and values of earlier steps, sampling settings. In native code these are step inputs and
paged memory; for the references they are a `Batch` over a `KvStore` of plain arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.ir.storage import Array, FloatArray, rounded
from tidemill.ops.logits_edits import LogitsEdits


@dataclass(frozen=True)
class Numerics:
    """How the references compute: in which float type, and whether declared types round.

    With `round_activations`, a value declared bf16 or q8 (or keys and values cached as bf16 or f16)
    keeps only what that type can hold; the default keeps full precision, as an oracle should.
    """

    precision: type[np.float32] | type[np.float64] = np.float32
    round_activations: bool = False

    def settle(self, values: Array, dtype: DType) -> Array:
        """Return values as an op's output of this declared type holds them."""
        if not dtype.is_float:
            return values.astype(dtype.storage_name, copy=False)
        values = values.astype(self.precision, copy=False)
        if self.round_activations and dtype is not DType.F32:
            return rounded(values, dtype).astype(self.precision, copy=False)
        return values


@dataclass(frozen=True)
class Sampling:
    """How one row's token is drawn.

    `temperature` 0, `top_k` 1 or `top_p` 0 mean greedy; `top_k` 0 means all tokens. `position` is
    the position of the row's own token in its sequence; with `seed` it keys the random number.
    `edits` come before everything else.
    """

    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 1.0
    seed: int = 0
    position: int = 0
    min_p: float = 0.0
    edits: LogitsEdits | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1 or self.top_p <= 0.0


class KvStore:
    """Keys and values of every sequence, by layer: layer -> list of (keys, values) by sequence.

    Shapes: keys and values are (positions, key-value heads, head width).
    """

    def __init__(self) -> None:
        self.layers: dict[int, list[tuple[FloatArray, FloatArray] | None]] = {}

    def write(
        self, layer: int, sequence: int, start: int, keys: FloatArray, values: FloatArray
    ) -> None:
        """Store positions [start, start + len(keys)); later ones, if any, are forgotten."""
        slots = self.layers.setdefault(layer, [])
        slots.extend([None] * (sequence + 1 - len(slots)))
        old = slots[sequence]
        if start == 0 or old is None:
            assert start == 0, f"layer {layer}, sequence {sequence}: no positions before {start}"
            slots[sequence] = (keys.copy(), values.copy())
            return
        assert len(old[0]) >= start, f"sequence {sequence} has {len(old[0])} positions, not {start}"
        slots[sequence] = (
            np.concatenate([old[0][:start], keys]),
            np.concatenate([old[1][:start], values]),
        )

    def read(self, layer: int, sequence: int) -> tuple[FloatArray, FloatArray]:
        """Return all stored keys and values of one sequence."""
        stored = self.layers[layer][sequence]
        assert stored is not None, f"layer {layer}, sequence {sequence}: nothing stored"
        return stored


@dataclass(frozen=True)
class Span:
    """One sequence's share of a step: rows [first, last) are positions from `start` on."""

    sequence: int
    first: int
    last: int
    start: int


@dataclass(frozen=True)
class Batch:
    """Who is in this step.

    `sequence_starts` holds S + 1 row numbers: sequence s owns packed rows
    [sequence_starts[s], sequence_starts[s + 1]). `kv_lengths` holds the positions cached before
    this step. `sequences` names the store's slot of each (0 .. S-1 when empty). `sampling` has an
    entry for each logit row (greedy when empty).
    """

    sequence_starts: Sequence[int]
    kv_lengths: Sequence[int]
    store: KvStore = field(default_factory=KvStore)
    sequences: Sequence[int] = ()
    sampling: Sequence[Sampling] = ()

    def __post_init__(self) -> None:
        assert len(self.sequence_starts) == len(self.kv_lengths) + 1
        assert not self.sequences or len(self.sequences) == len(self.kv_lengths)

    def spans(self) -> Iterator[Span]:
        """Yield each sequence's share of the step."""
        for index, start in enumerate(self.kv_lengths):
            sequence = self.sequences[index] if self.sequences else index
            yield Span(
                sequence, self.sequence_starts[index], self.sequence_starts[index + 1], start
            )

    def row_sampling(self, row: int) -> Sampling:
        """Return the settings of one logit row."""
        return self.sampling[row] if self.sampling else Sampling()
