"""Small graphs for tests of the language and its passes, and random data to run them on."""

from __future__ import annotations

from itertools import count

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.ir.builder import GraphBuilder
from tidemill.ir.graph import Graph, TensorType, Value
from tidemill.ir.storage import Array, narrow
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.interpreter import interpret
from tidemill.ops.table import OPS

HEADS = {"num_heads": 2, "num_kv_heads": 1, "head_size": 4}
Q_WIDTH, QKV_WIDTH, HIDDEN = 8, 16, 5


class TinyPen(GraphBuilder):
    """A pen whose constants are random, from a seed."""

    def __init__(self, seed: int = 0, dtype: DType = DType.F32) -> None:
        super().__init__("tiny", OPS)
        self.random = np.random.default_rng(seed)
        self.dtype = dtype

    def weight(self, name: str, *shape: int, dtype: DType | None = None) -> Value:
        dtype = dtype or self.dtype
        data = narrow(self.random.normal(0, 0.5, shape), dtype)
        return self.constant(name, TensorType(dtype, shape), lambda: data, source=f"ckpt.{name}")

    def hidden(self, name: str = "x", width: int = HIDDEN) -> Value:
        return self.input(name, TensorType(DType.F32, ("T", width)))


def attention_graph() -> Graph:
    """rope and attention of layer 3, in bf16."""
    pen = TinyPen()
    qkv = pen.hidden("qkv", QKV_WIDTH)
    positions = pen.input("positions", TensorType(DType.I32, ("T",)))
    cos, sin = pen.weight("cos", 32, 1), pen.weight("sin", 32, 1)
    with pen.layer(3):
        rotated = pen.op("rope", qkv, positions, cos, sin, name="rotated", **HEADS, rotary_dim=2)
        out = pen.op(
            "attention",
            rotated,
            name="attended",
            **HEADS,
            window=7,
            scale=0.5,
            dtype="bf16",
            cache_dtype="bf16",
        )
    return pen.finish([out])


def attention_block_graph() -> Graph:
    """A whole attention block of layer 3 in f32: products on both sides, a bias on one."""
    pen = TinyPen()
    x = pen.hidden()
    positions = pen.input("positions", TensorType(DType.I32, ("T",)))
    cos, sin = pen.weight("cos", 32, 1), pen.weight("sin", 32, 1)
    qkv_weights = pen.weight("w_qkv", QKV_WIDTH, HIDDEN), pen.weight("b_qkv", QKV_WIDTH)
    with pen.layer(3):
        qkv = pen.op("linear", x, *qkv_weights, name="qkv")
        rotated = pen.op("rope", qkv, positions, cos, sin, name="rotated", **HEADS, rotary_dim=2)
        attended = pen.op(
            "attention",
            rotated,
            name="attended",
            **HEADS,
            window=7,
            scale=0.5,
            dtype="f32",
            cache_dtype="f32",
        )
        out = pen.op("linear", attended, pen.weight("w_out", HIDDEN, Q_WIDTH), name="out")
    return pen.finish([out])


def random_graph(seed: int) -> Graph:
    """A random tangle of linear, add, silu and mul over one width, after an rms_norm.

    Operands are mostly the latest values, so that chains form; values are taken twice, residuals
    are used again, operands swap: patterns that must not be fused stand beside those that must.
    """
    pen = TinyPen(seed)
    norm = pen.weight("norm", HIDDEN)
    weights = [pen.weight(f"w{index}", HIDDEN, HIDDEN) for index in range(3)]
    bias = pen.weight("b", HIDDEN)
    values = [pen.op("rms_norm", pen.hidden(), norm, name="v0", epsilon=1e-5, dtype="f32")]
    numbers = count(1)

    def pick() -> Value:
        return values[-1 - min(int(pen.random.exponential(1.0)), len(values) - 1)]

    def draw(kind: str, *inputs: Value, **attrs: str) -> Value:
        return pen.op(kind, *inputs, name=f"v{next(numbers)}", **attrs)

    def linear(x: Value) -> Value:
        biases = [bias] if pen.random.integers(3) == 0 else []
        return draw("linear", x, weights[pen.random.integers(3)], *biases)

    def swapped(*pair: Value) -> tuple[Value, ...]:
        return pair[:: pen.random.choice([-1, 1])]

    for _ in range(12):
        x, y = pick(), pick()
        match pen.random.integers(5):
            case 0:
                values.append(draw("add", x, y))
            case 1:
                values.append(draw("silu", x))
            case 2:
                product = linear(x)
                # Sometimes others see the product as well.
                values += [product] * int(pen.random.integers(4) == 0)
                values.append(draw("add", *swapped(product, y)))
            case 3:
                gate, activated = linear(x), draw("silu", linear(x))
                values.append(draw("mul", *swapped(gate, activated), dtype="f32"))
            case _:
                values.append(linear(x))
    return pen.finish(values[-2:])


def run_outputs(graph: Graph, seed: int, num_tokens: int = 6) -> list[Array]:
    """Interpret a graph in float64 on random inputs of two sequences; return its outputs."""
    random = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for value in graph.inputs:
        shape = tuple(num_tokens if dim == "T" else int(dim) for dim in value.type.shape)
        if value.type.dtype is DType.I32:
            inputs[value.name] = np.array([0, 1, 2, 3, 0, 1], dtype=np.int32)[:num_tokens]
        else:
            inputs[value.name] = random.normal(size=shape)
    batch = Batch((0, 4, num_tokens), (0, 0))
    values = interpret(graph, inputs, batch, numerics=Numerics(np.float64))
    return [values[value.name] for value in graph.outputs]
