"""Choosing tokens on the CPU: edits, then greedy or temperature, top-k, top-p, min-p and a draw.

Legend: a row of V logits; scaled = logits / temperature; weights = exp(scaled - max). The k-th
largest value and the top-p threshold are found by bisection on the bits of the floats, whose order
as integers is that of the values: no sorting, exact ties kept. The draw walks the vocabulary in
order. Rows are dealt to threads in turn; nothing depends on other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.abi import EDIT_WORDS
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, V
from tidemill.codegen.kernel import Frame, Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I32, I64
from tidemill.codegen.vector_math import exp
from tidemill.ops.layout import PANEL, wide_row
from tidemill.ops.sample.edits_cpu import BANNED, edit_row

FIELDS = (
    "rows", "logits", "edits", "temperature", "top_k", "top_p", "min_p", "seed", "position",
    "tokens", "scratch", "scratch_bytes",
)  # fmt: skip
LOWEST = -3.0e38
LOWEST_EXPONENT = -87.0  # exp is clamped a little below
_I32V = I32.x(LANES)
_ODD_BITS = 0x7FFFFFFF


@dataclass(frozen=True)
class _Wishes:
    """What a row's request says of how its token is chosen."""

    temperature: Value
    top_k: Value
    top_p: Value

    def is_greedy(self) -> Value:
        return self.temperature.eq(0.0) | self.top_k.eq(1) | (self.top_p <= 0.0)


def emit(module: Module, symbol: str, vocab_size: int) -> Kernel:
    """Emit the kernel for rows of `vocab_size` logits."""
    kernel, frame = open_kernel(module, symbol, FIELDS)
    f = frame.f
    first, last = frame.share(frame.count("rows"))  # as a head of many rows leaves them to cores
    with f.loop(first, last) as row:
        logits = frame.pointer("logits", F32).at(row * wide_row(vocab_size))
        scratch = frame.pointer("scratch", F32).bytes(frame.thread * frame.integer("scratch_bytes"))
        edits = frame.pointer("edits", I64).at(row * EDIT_WORDS)
        logits = edit_row(f, edits, logits, scratch, vocab_size)
        token = frame.pointer("tokens", I32).at(row)
        wishes = _Wishes(
            frame.pointer("temperature", F32)[row],
            frame.pointer("top_k", I32)[row].to(I64),
            frame.pointer("top_p", F32)[row],
        )
        is_greedy = wishes.is_greedy()
        with f.when(is_greedy):
            _argmax(f, logits, vocab_size, token)
        with f.when(is_greedy.eq(0)):
            _draw_row(frame, _Row(f, logits, scratch, vocab_size), wishes, row, token)
    return kernel


def _argmax(f: Function, logits: Pointer, vocab_size: int, token: Pointer) -> None:
    """The lowest index of the largest logit."""
    best, where = f.registers(V), f.registers(_I32V)
    for u in range(2):
        best[u], where[u] = f.constant(LOWEST, V), f.zero(_I32V)
    lanes = f.table(range(LANES), I32)
    with f.loop(0, wide_row(vocab_size), PANEL) as c:
        for u in range(2):
            index = lanes + (c + u * LANES).to(I32).splat(LANES)
            value = f.select(index < vocab_size, logits.vec(c + u * LANES, LANES), LOWEST)
            is_more = value > best[u]
            best[u] = f.select(is_more, value, best[u])
            where[u] = f.select(is_more, index, where[u])
    peak = best[0].max(best[1]).lanes_max()
    first, second = (f.select(best[u].eq(peak), where[u], _ODD_BITS) for u in range(2))
    token[0] = first.min(second).butterfly(lambda a, b: a.min(b)).lane(0)


class _Row:
    """One row's passes over scaled logits and weights, which live in scratch."""

    def __init__(self, f: Function, logits: Pointer, scratch: Pointer, vocab_size: int) -> None:
        self.f, self.logits, self.scratch, self.vocab_size = f, logits, scratch, vocab_size
        self.width = wide_row(vocab_size)

    def scale(self, temperature: Value) -> Value:
        """scratch = logits / temperature (padding: banned); returns the maximum in all lanes."""
        f, top = self.f, self.f.registers(V)
        top[0] = f.constant(LOWEST, V)
        lanes, divisor = f.table(range(LANES), I32), temperature.splat(LANES)
        with f.loop(0, self.width, LANES) as c:
            index = lanes + c.to(I32).splat(LANES)
            value = f.select(index < self.vocab_size, self.logits.vec(c, LANES) / divisor, BANNED)
            self.scratch.put(c, value)
            top[0] = top[0].max(value)
        return top[0].lanes_max()

    def keys(self, c: Value) -> Value:
        """Integers whose signed order is the order of the floats."""
        bits = self.scratch.vec(c, LANES).bits_as(_I32V)
        return bits ^ (bits.shift_right_signed(31) & _ODD_BITS)

    def bisect(self, low: int, holds: Callable[[Value], Value]) -> Value:
        """The largest 32-bit threshold in [low, 2^31) for which `holds`; it must hold at low."""
        f, edge = self.f, self.f.registers(I64)
        edge[0] = low
        start = 31 if low < 0 else 30
        with f.loop(0, start + 1) as i:
            candidate = edge[0] + (f.constant(1, I64) << (f.constant(start, I64) - i))
            fits = candidate < 2**31
            with f.when(fits):
                edge[0] = f.select(holds(candidate), candidate, edge[0])
        return edge[0]

    def kth_key(self, k: Value) -> Value:
        """The key of the k-th largest value: the most that still leaves k keys at or above."""

        def leaves_k(threshold: Value) -> Value:
            count = self.f.registers(_I32V)
            count[0] = self.f.zero(_I32V)
            edge = threshold.to(I32).splat(LANES)
            with self.f.loop(0, self.width, LANES) as c:
                count[0] = count[0] + (self.keys(c) >= edge).to(I32, signed=False)
            return count[0].lanes_sum().lane(0).to(I64) >= k

        return self.bisect(-(2**31), leaves_k)

    def weigh(self, top: Value, lowest_key: Value) -> None:
        """scratch = exp(scaled - max) where the key is kept, 0 elsewhere.

        Zero, too, where exp would underflow: padding and banned tokens must have no weight at all.
        """
        edge = lowest_key.to(I32).splat(LANES)
        with self.f.loop(0, self.width, LANES) as c:
            below_top = self.scratch.vec(c, LANES) - top
            kept = (self.keys(c) >= edge) & (below_top > LOWEST_EXPONENT)
            self.scratch.put(c, self.f.select(kept, exp(below_top), 0.0))

    def mass(self, lowest_bits: Value) -> Value:
        """The sum of weights whose bits are at least `lowest_bits`, in vocabulary order."""
        f, total = self.f, self.f.registers(F32)
        total[0] = f.zero(F32)
        edge = lowest_bits.to(I32).splat(LANES)
        with f.loop(0, self.width, LANES) as c:
            weights = self.scratch.vec(c, LANES)
            kept = f.select(weights.bits_as(_I32V) >= edge, weights, 0.0)
            total[0] = total[0] + kept.lanes_sum().lane(0)
        return total[0]

    def keep_mass(self, top_p: Value) -> None:
        """Zero all but the smallest set of largest weights whose mass reaches top_p."""
        f = self.f
        wanted = top_p * self.mass(f.constant(0, I64))
        edge = self.bisect(0, lambda bits: self.mass(bits) >= wanted).to(I32).splat(LANES)
        with f.loop(0, self.width, LANES) as c:
            weights = self.scratch.vec(c, LANES)
            self.scratch.put(c, f.select(weights.bits_as(_I32V) >= edge, weights, 0.0))

    def keep_likely(self, min_p: Value) -> None:
        """Zero what weighs less than min_p; the most likely token weighs 1."""
        with self.f.loop(0, self.width, LANES) as c:
            weights = self.scratch.vec(c, LANES)
            self.scratch.put(c, self.f.select(weights >= min_p, weights, 0.0))

    def pick(self, uniform: Value, token: Pointer) -> None:
        """The first token whose cumulative weight exceeds uniform * total."""
        f, sums, state = self.f, self.f.registers(F32), self.f.registers(I64)
        goal = uniform * self.mass(f.constant(1, I64))
        sums[0], state["block"], state["token"] = f.zero(F32), 0, -1
        with f.loop(0, self.width, LANES) as c:
            is_before = state["token"] < 0
            after = sums[0] + self.scratch.vec(c, LANES).lanes_sum().lane(0)
            is_here = is_before & (after > goal)
            with f.when(is_here):
                state["block"], state["token"] = c, 0
            sums[0] = f.select(is_before & is_here.eq(0), after, sums[0])
        state["token"] = -1
        weights = self.scratch.at(state["block"])
        with f.loop(0, LANES) as i:
            weight, last = weights[i], state["token"]
            is_open = (sums[0] <= goal) | last.eq(-1)
            takes = is_open & (weight > 0.0)
            state["token"] = f.select(takes, state["block"] + i, last)
            sums[0] = f.select(takes, sums[0] + weight, sums[0])
        # Where every token is banned nothing weighs anything: token 0, as greedy does.
        token[0] = state["token"].max(0).to(I32)


def _draw_row(frame: Frame, work: _Row, wishes: _Wishes, row: Value, token: Pointer) -> None:
    f, keep_all = frame.f, -(2**31)
    top, k, top_p = work.scale(wishes.temperature), wishes.top_k, wishes.top_p
    lowest = f.registers(I64)
    lowest[0] = keep_all
    with f.when((k > 0) & (k < work.vocab_size)):
        lowest[0] = work.kth_key(k)
    work.weigh(top, lowest[0])
    with f.when(top_p < 1.0):
        work.keep_mass(top_p)
    min_p = frame.pointer("min_p", F32)[row]
    with f.when(min_p > 0.0):
        work.keep_likely(min_p)
    seed, position = frame.pointer("seed", I64)[row], frame.pointer("position", I64)[row]
    work.pick(_uniform(seed, position), token)


def _uniform(seed: Value, position: Value) -> Value:
    """A number in [0, 1) with 24 random bits, keyed by (seed, position)."""
    z = seed * 0x9E3779B97F4A7C15 + position + 1
    for _ in range(2):
        z = _splitmix64(z)
    return (z >> 40).to(F32, signed=False) * 2.0**-24


def _splitmix64(z: Value) -> Value:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)
