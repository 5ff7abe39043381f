"""What a step takes at least on this machine: each op's bytes and arithmetic at measured rates.

In: ops of an engine's graph, the sizes of a step, and what the machine reached just now. Out: the
time below which no step can come. Weights and cached keys and values are read once; activations
stay in the core's caches and are not counted. Products of int8 with int8 have a rate of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tidemill.base.dtypes import DType
from tidemill.builder.machine_limits import PRODUCTS, MachineLimits
from tidemill.ir.graph import Op
from tidemill.ops.row import NO_TOKENS, StepSizes
from tidemill.ops.table import OPS


@dataclass(frozen=True)
class Rates:
    """What the machine reaches. Units: bytes a second; operations a second by activation type."""

    read: float
    ops: Mapping[DType, float]

    @classmethod
    def measure(cls, limits: MachineLimits) -> Rates:
        """Take a look now: on a shared machine, rates move within minutes."""
        read = limits.read_bytes_per_s()
        return cls(read, {dtype: limits.ops_per_s(dtype) for dtype in PRODUCTS})

    @classmethod
    def medians(cls, seen: Sequence[Rates]) -> Rates:
        """Return the middle of several looks, rate by rate."""
        ops = {dtype: median(each.ops[dtype] for each in seen) for dtype in PRODUCTS}
        return cls(median(each.read for each in seen), ops)

    @property
    def by_name(self) -> dict[str, float]:
        """All rates, as benchmarks print them."""
        return {"read": self.read, **{dtype.value: rate for dtype, rate in self.ops.items()}}


@dataclass(frozen=True)
class OpLimit:
    """One op's work in one step, and the least time for each kind of it. Units: seconds."""

    flops: float
    bytes: float
    read_s: float
    dot_s: float

    @property
    def seconds(self) -> float:
        """The longer of reading and computing, which overlap at best."""
        return max(self.read_s, self.dot_s)


def step_sizes(batch_size: int, position: int, num_tokens: int) -> StepSizes:
    """Return what a step asks of each op: requests, tokens cached of each, new tokens of each."""
    pairs = num_tokens * position + num_tokens * (num_tokens + 1) // 2
    return StepSizes(
        tokens=batch_size * num_tokens,
        sequences=batch_size,
        logit_rows=batch_size,
        kv_tokens=batch_size * (position + num_tokens),
        attention_pairs=batch_size * pairs,
    )


def op_limit(op: Op, sizes: StepSizes, rates: Rates) -> OpLimit:
    """Hold one op's cost against the rates."""
    cost = OPS[op.kind].cost
    whole = cost(op, sizes)
    uncached = StepSizes(sizes.tokens, sizes.sequences, sizes.logit_rows, 0, sizes.attention_pairs)
    streamed = cost(op, NO_TOKENS).bytes + whole.bytes - cost(op, uncached).bytes
    # What computes nothing may read anything first: the embedding, tokens.
    dot_s = whole.flops / rates.ops[op.inputs[0].type.dtype] if whole.flops else 0.0
    return OpLimit(whole.flops, streamed, streamed / rates.read, dot_s)
