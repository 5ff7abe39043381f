"""Native rope_cache and paged_attention over a paged cache with scattered blocks.

Legend: a step is a list of (sequence, number of tokens); prefill chunks and decodes mix freely.
The judge is the pair of references over plain arrays, in float64, with queries, keys and values
rounded as the cache holds them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.compare import TOLERANCES, assert_close, assert_same_bits
from tests.ops.judge import make_op, run, tensor
from tests.ops.native_op import (
    HOST_TARGETS,
    WEIGHT_DTYPES,
    Operands,
    count,
    draw_stored,
    empty_activations,
    run_native,
    wide_rows,
)
from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op
from tidemill.ir.storage import Array, widen
from tidemill.ops.batch import Batch, KvStore, Numerics
from tidemill.ops.paged_attention.cpu import tile_tokens, work_bytes
from tidemill.ops.row import activation_dtype

ROUNDED = Numerics(np.float64, round_activations=True)
MAX_POSITIONS = 576
NUM_BLOCKS = 64
Step = list[tuple[int, int]]
_ANGLES = np.random.default_rng(0).uniform(-3, 3, (MAX_POSITIONS, 64))
COS, SIN = (
    {dim: np.ascontiguousarray(f(_ANGLES[:, : dim // 2]), np.float32) for dim in range(2, 129, 2)}
    for f in (np.cos, np.sin)
)

# A prompt in one piece, in pieces across chunk (64), partition (256) and block borders, single
# tokens in between.
MIXED_STEPS: list[Step] = [
    [(0, 13)],
    [(0, 1), (1, 29)],
    [(0, 1), (1, 1), (2, 64)],
    [(2, 1), (1, 37), (0, 50), (3, 2)],
    [(0, 1), (1, 1), (2, 1), (3, 1)],
    [(2, 14), (0, 1), (3, 83)],
    [(3, 1)],
    [(3, 179)],
    [(3, 1), (1, 1)],
]
THREADS_BY_STEP = (1, 2, 3, 5)
# 8-bit caches on the best target; the lesser ones, judged by the references anyway, are a sweep.
CASES = [
    pytest.param(
        target,
        dtype,
        marks=pytest.mark.sweep if dtype.is_quantized and target != HOST_TARGETS[0] else (),
    )
    for target in HOST_TARGETS
    for dtype in (*WEIGHT_DTYPES, DType.Q8, DType.F8)
]


@dataclass(frozen=True)
class Heads:
    """One model's heads, cache and rotation."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    rotary_dim: int
    dtype: DType
    tokens_per_block: int = 32
    window: int = 0

    @property
    def activation(self) -> DType:
        return DType.BF16 if self.dtype.is_quantized else activation_dtype(self.dtype)

    @property
    def width(self) -> int:
        return self.num_heads * self.head_size

    def __str__(self) -> str:
        heads = f"{self.num_heads}over{self.num_kv_heads}x{self.head_size}"
        cache = f"{self.dtype.value}-b{self.tokens_per_block}-w{self.window}"
        return f"{heads}-r{self.rotary_dim}-{cache}"

    @property
    def qkv_width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_size

    def ops(self) -> list[Op]:
        half, activation = self.rotary_dim // 2, self.activation.value
        heads: dict[str, int | float | str | bool] = {
            "num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads,
            "head_size": self.head_size, "cache_dtype": self.dtype.value,
        }  # fmt: skip
        seen = {**heads, "window": self.window}
        table = tensor("f32", MAX_POSITIONS, half)
        rope = make_op(
            "rope_cache",
            [tensor("f32", "T", self.qkv_width), tensor("i32", "T"), table, table],
            {**heads, "rotary_dim": self.rotary_dim, "scale": self.head_size**-0.5,
             "dtype": activation},
        )  # fmt: skip
        return [rope, make_op("paged_attention", [tensor(activation, "T", self.width)], seen)]


@dataclass
class Paged:
    """One layer's paged cache, with the blocks of each sequence drawn at random."""

    heads: Heads
    rng: np.random.Generator
    k: Array = field(init=False)
    v: Array = field(init=False)
    blocks: dict[int, list[int]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Whoever had a block before left numbers in it: they must not matter. Block 0 is nobody's.
        self.k, self.v = (self._stale() for _ in range(2))
        self.k[0], self.v[0] = 0, 0
        self.free = [int(block) for block in self.rng.permutation(NUM_BLOCKS - 1) + 1]

    def _stale(self) -> Array:
        heads, size = self.heads, self.heads.tokens_per_block
        shape = (NUM_BLOCKS, heads.num_kv_heads, heads.head_size * size)
        if not heads.dtype.is_quantized:
            stored = draw_stored(self.rng, heads.dtype, *shape)
        else:
            elements = self.rng.integers(0, 256, shape).astype(np.uint8)
            scales = draw_stored(self.rng, DType.F32, NUM_BLOCKS, heads.num_kv_heads, size)
            stored = np.concatenate([elements, scales.view(np.uint8)], axis=-1)
        return stored.reshape(NUM_BLOCKS, -1)

    def _drop(self, owned: list[int], start: int) -> None:
        """Give up blocks that lie wholly before the window, and spoil what was in them."""
        window, size = self.heads.window or MAX_POSITIONS, self.heads.tokens_per_block
        for index in range(max(0, start - window + 1) // size):
            if owned[index]:
                for stored in (self.k, self.v):
                    stored[owned[index]].view(np.uint8)[:] = 0xFF  # not a number, in every type
                owned[index] = 0

    def advance(self, step: Step) -> dict[str, Array]:
        """Reserve slots for a step; returns positions, slots, tiles and tables."""
        size, group = self.heads.tokens_per_block, self.heads.num_heads // self.heads.num_kv_heads
        positions, slots, tiles, row = [], [], [], 0
        tables = np.zeros((len(step), MAX_POSITIONS // size + 8), np.int32)
        for index, (sequence, tokens) in enumerate(step):
            start = self.lengths.get(sequence, 0)
            owned = self.blocks.setdefault(sequence, [])
            while len(owned) * size < start + tokens:
                owned.append(self.free.pop())
            self._drop(owned, start)
            tables[index, : len(owned)] = owned
            for position in range(start, start + tokens):
                positions.append(position)
                slots.append(owned[position // size] * size + position % size)
            for first in range(0, tokens, tile_tokens(group)):
                length = min(tile_tokens(group), tokens - first)
                tiles.append((row + first, length, start + first, index))
            self.lengths[sequence] = start + tokens
            row += tokens
        int_arrays = {"positions": positions, "slots": slots, "tiles": tiles}
        arrays: dict[str, Array] = {k: np.array(v, np.int32) for k, v in int_arrays.items()}
        return {**arrays, "tables": tables}


@dataclass
class Model:
    """Runs steps natively on one target; `seed` scatters the blocks."""

    heads: Heads
    target: str
    seed: int

    def __post_init__(self) -> None:
        heads = self.heads
        self.paged = Paged(heads, np.random.default_rng(self.seed))
        group = heads.num_heads // heads.num_kv_heads
        self.work = np.zeros(work_bytes(group, heads.head_size, MAX_POSITIONS), np.uint8)

    def run(self, step: Step, qkv: Array, num_threads: int) -> tuple[Array, Array]:
        """Return queries and results of a step in storage type."""
        heads, activation = self.heads, self.heads.activation
        inputs = self.paged.advance(step)
        q, y = (empty_activations(len(qkv), heads.width, activation) for _ in range(2))
        cache = {"k": self.paged.k, "v": self.paged.v}
        rope: Operands = {
            "rows": count(len(qkv)), "qkv": wide_rows(qkv), "positions": inputs["positions"],
            "slots": inputs["slots"], "cos": COS[heads.rotary_dim], "sin": SIN[heads.rotary_dim],
            "q": q, **cache,
        }  # fmt: skip
        attention: Operands = {
            "tiles": inputs["tiles"], "num_tiles": count(len(inputs["tiles"])),
            "tables": inputs["tables"], "table_row": inputs["tables"].shape[1],
            "q": q, "y": y, **cache, "work": self.work,
        }  # fmt: skip
        run_native(
            self.target, heads.ops(), [rope, attention], num_threads=num_threads,
            tokens_per_block=heads.tokens_per_block,
        )  # fmt: skip
        return q[:, : heads.width], y[:, : heads.width]


@dataclass
class Judge:
    """Runs steps by the references."""

    heads: Heads
    store: KvStore = field(default_factory=KvStore)
    lengths: dict[int, int] = field(default_factory=dict)

    def run(self, step: Step, qkv: Array) -> tuple[Array, Array]:
        counts = [tokens for _, tokens in step]
        starts = [self.lengths.get(each, 0) for each, _ in step]
        sequences = [each for each, _ in step]
        batch = Batch(np.cumsum([0, *counts]).tolist(), starts, self.store, sequences)
        pairs = list(zip(starts, counts, strict=True))
        positions = np.concatenate([np.arange(start, start + n) for start, n in pairs])
        self.lengths.update(zip(sequences, (start + n for start, n in pairs), strict=True))
        rope, attention = self.heads.ops()
        operands = (qkv, positions, COS[self.heads.rotary_dim], SIN[self.heads.rotary_dim])
        q = run(rope, *operands, batch=batch, numerics=ROUNDED)
        return q, run(attention, q, batch=batch, numerics=ROUNDED)


# num_heads, num_kv_heads, head_size, rotary_dim, dtype, tokens_per_block: groups 1, 3, 4 and 8.
HEADS = [
    Heads(4, 4, 16, 16, DType.BF16, 16),
    Heads(3, 1, 64, 64, DType.BF16, 32),
    Heads(8, 2, 80, 32, DType.BF16, 48),
    Heads(8, 1, 32, 20, DType.BF16, 64),
    Heads(9, 3, 48, 48, DType.BF16, 128),
    Heads(2, 2, 128, 96, DType.BF16, 16),
    Heads(8, 2, 80, 32, DType.F16, 48),
    Heads(8, 1, 32, 20, DType.F16, 64),
    Heads(9, 3, 48, 48, DType.F32, 128),
    Heads(2, 2, 128, 96, DType.F32, 16),
    Heads(3, 1, 64, 64, DType.BF16, 32, window=1),
    Heads(8, 2, 80, 32, DType.BF16, 16, window=33),
    Heads(8, 1, 32, 20, DType.F16, 64, window=64),
    Heads(9, 3, 48, 48, DType.F32, 16, window=70),
    Heads(9, 3, 64, 64, DType.Q8, 32),
    Heads(8, 2, 80, 32, DType.Q8, 16, window=33),
    Heads(8, 1, 32, 20, DType.F8, 64),
    Heads(2, 2, 128, 96, DType.F8, 16),
]


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention_equals_its_reference_over_mixes_of_prefill_and_decode(
    heads: Heads,
) -> None:
    dtype, activation = heads.dtype, heads.activation
    judge, rng = Judge(heads), np.random.default_rng(heads.head_size)
    models = [Model(heads, target, seed=heads.head_size) for target in HOST_TARGETS]
    for index, step in enumerate(MIXED_STEPS):
        rows = sum(tokens for _, tokens in step)
        qkv = draw_stored(rng, DType.F32, rows, heads.qkv_width)
        expected_q, expected_y = judge.run(step, qkv)
        for model in models:
            q, y = model.run(step, qkv, num_threads=THREADS_BY_STEP[index % 4])
            what = f"{model.target}, step {step}"
            bound = TOLERANCES["rope_cache", dtype]
            assert_close(widen(q, activation), expected_q, bound, "queries, " + what)
            bound = TOLERANCES["paged_attention", dtype]
            assert_close(widen(y, activation), expected_y, bound, what)


@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize(("target", "dtype"), CASES)
def test_attention_has_the_same_bits_however_a_prompt_is_cut(
    target: str, dtype: DType, window: int
) -> None:
    heads = Heads(3, 1, 64, 64, dtype, tokens_per_block=16, window=window)
    total = 300
    rng = np.random.default_rng(11)
    qkv = draw_stored(rng, DType.F32, total, heads.qkv_width)
    _, whole = Model(heads, target, seed=1).run([(0, total)], qkv, 1)
    around = [1] * 20
    for cuts in ([*around, 230, *around, 30], [64, 64, 19, 153], [13, 1, 1, 50, 189, 46], [299, 1]):
        model = Model(heads, target, seed=len(cuts))
        done = 0
        for index, length in enumerate(cuts):
            threads = THREADS_BY_STEP[index % 4]
            _, part = model.run([(0, length)], qkv[done : done + length], threads)
            assert_same_bits(part, whole[done : done + length], f"{len(cuts)} cuts, from {done}")
            done += length


@pytest.mark.parametrize("lengths", [(530, 300), (300, 530), (530, 300, 20)])
def test_shared_partitions_of_sequences_of_unlike_lengths_give_the_same_bits(
    lengths: tuple[int, ...],
) -> None:
    heads, rng = Heads(9, 3, 64, 64, DType.BF16), np.random.default_rng(5)
    prompts = [(sequence, length) for sequence, length in enumerate(lengths)]
    step = [(sequence, 1) for sequence, _ in prompts]
    qkv = draw_stored(rng, DType.F32, sum(lengths), heads.qkv_width)
    last = draw_stored(rng, DType.F32, len(step), heads.qkv_width)
    alone, many = (Model(heads, HOST_TARGETS[0], seed=1) for _ in range(2))
    for model, num_threads in ((alone, 1), (many, 5)):
        model.run(prompts, qkv, num_threads)
    expected = alone.run(step, last, 1)[1]
    assert_same_bits(many.run(step, last, 5)[1], expected)


@pytest.mark.parametrize(("target", "dtype"), CASES)
def test_infinities_left_in_a_freed_block_do_not_reach_its_next_owner(
    target: str, dtype: DType
) -> None:
    heads = Heads(3, 1, 64, 64, dtype, tokens_per_block=16)
    rng = np.random.default_rng(2)
    qkv = draw_stored(rng, DType.F32, 5, heads.qkv_width)
    expected = Model(heads, target, seed=1).run([(0, 5)], qkv, 1)[1]

    model = Model(heads, target, seed=1)
    wild = np.full((20, heads.qkv_width), np.inf, np.float32)
    wild[::2] = np.nan
    model.run([(0, 20)], wild, 1)
    model.paged.free += reversed(model.paged.blocks.pop(0))
    del model.paged.lengths[0]
    assert_same_bits(model.run([(0, 5)], qkv, 1)[1], expected)
