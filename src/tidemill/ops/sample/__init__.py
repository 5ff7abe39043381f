"""sample: draws one token from each row of logits.

First the row's edits: biases, penalties, bans (ops/logits_edits.py). Then, greedy (temperature 0,
top_k 1 or top_p 0), the lowest index of the largest logit. Otherwise
    scaled = logits / temperature
    top_k: keep scaled >= the k-th largest (ties kept)
    top_p: of the softmax of what is left, keep the smallest set of highest probabilities whose
           mass reaches top_p (a threshold on the value, so ties are kept)
    min_p: of what is left, keep what weighs at least min_p times the most likely token
    weight[v] = exp(scaled[v] - max) where kept, 0 elsewhere; u = uniform(seed, position)
    out = the first v in vocabulary order with weight[0] + ... + weight[v] > u * (sum of weights)

Legend: L logit rows, V vocabulary. f32 or wider; settings come from the batch, one for each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array, FloatArray
from tidemill.ops.batch import Batch, Numerics, Sampling
from tidemill.ops.expect import Attrs, Types, expect_count, expect_dims, expect_type
from tidemill.ops.row import Cost, OpRow, StepSizes, moved_bytes
from tidemill.ops.sample.random import uniform


def kept_weights(logits_V: FloatArray, settings: Sampling) -> FloatArray:
    """Weigh the tokens that top_k and top_p keep; zero for all others. Not greedy settings."""
    scaled_V = logits_V / logits_V.dtype.type(settings.temperature)
    weights_V: FloatArray = np.exp(scaled_V - scaled_V.max())
    if 0 < settings.top_k < len(weights_V):
        threshold = np.sort(scaled_V)[-settings.top_k]
        weights_V[scaled_V < threshold] = 0
    if settings.top_p < 1:
        descending_V = np.sort(weights_V)[::-1]
        mass_V = np.cumsum(descending_V)
        wanted = mass_V.dtype.type(settings.top_p) * mass_V[-1]
        last = int(np.argmax(mass_V >= wanted))
        weights_V[weights_V < descending_V[last]] = 0
    weights_V[weights_V < weights_V.dtype.type(settings.min_p)] = 0  # the largest weight is 1
    return weights_V


def draw(logits_V: FloatArray, settings: Sampling) -> int:
    """Draw one token."""
    if settings.edits is not None:
        logits_V = settings.edits.apply(logits_V)
    if settings.is_greedy or not (logits_V > -np.inf).any():  # all banned: token 0
        return int(np.argmax(logits_V))
    mass_V = np.cumsum(kept_weights(logits_V, settings))
    # At most 1 - 2^-24 of the whole, which rounds to less than the whole: some token is above it.
    drawn = mass_V.dtype.type(uniform(settings.seed, settings.position)) * mass_V[-1]
    return int(np.argmax(mass_V > drawn))


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: f32[L, V] -> i32[L]."""
    expect_count(types, 1)
    rows, vocabulary = expect_dims("logits", types[0], 2)
    expect_type("logits", types[0], DType.F32, rows, vocabulary)
    return (TensorType(DType.I32, (rows,)),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Draw a token for each row."""
    tokens = [draw(logits, batch.row_sampling(row)) for row, logits in enumerate(inputs[0])]
    return (np.array(tokens, dtype=np.int32),)


def cost(op: Op, sizes: StepSizes) -> Cost:
    """Count one comparison a logit: the greedy path, which every mode contains."""
    return Cost(sizes.elements(op.inputs[0].type), moved_bytes(op, sizes))


ROW = OpRow("sample", rule, reference, cost)
