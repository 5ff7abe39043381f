"""The gated MLP block: two products, one activated, joined, and an output product.

In: normalised activations. Out: what is to be added to the residual stream. In the checkpoint,
`fc` is the branch that is activated and `gate` the one that multiplies it.
"""

from __future__ import annotations

from tidemill.ir.graph import Value
from tidemill.network.layers.weights import Weights


def draw_gated_mlp(
    weights: Weights, prefix: str, intermediate_size: int, x: Value, *, has_bias: bool
) -> Value:
    """Draw one block. `prefix` is the block's name in the checkpoint, with its dot."""
    pen = weights.pen
    hidden_size = x.type.shape[1]
    assert isinstance(hidden_size, int)

    def product(name: str, source: Value, rows: int, columns: int, result: str) -> Value:
        weight = weights.matrix(f"{prefix}{name}.weight", rows, columns)
        bias = [weights.vector(f"{prefix}{name}.bias", rows)] if has_bias else []
        return pen.op("linear", source, weight, *bias, name=result)

    fc = product("fc", x, intermediate_size, hidden_size, "fc")
    gate = product("gate", x, intermediate_size, hidden_size, "gate")
    activated = pen.op("silu", fc, name="activated")
    gated = pen.op("mul", activated, gate, name="gated", dtype=x.type.dtype.value)
    return product("proj", gated, hidden_size, intermediate_size, "mlp_out")
