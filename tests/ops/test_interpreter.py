"""The interpreter: what it keeps, what it loads, where it stops."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Graph
from tidemill.ir.storage import Array, narrow
from tidemill.ir.text import parse_graph
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.interpreter import interpret, load_constants, walk

TEXT = """graph "g" {
  input %x: f32[T, 2]
  constant %w: bf16[2, 2]
  constant %n: f32[2]
  %a: bf16[T, 2] = rms_norm(%x, %n) {epsilon=0.0, dtype="bf16"}
  %b: f32[T, 2] = linear(%a, %w)
  %c: f32[T, 2] = silu(%b)
  %d: f32[T, 2] = add(%c, %b)
  output %d
}
"""
X = np.array([[3.0, 4.0]], dtype=np.float32)
BATCH = Batch((0, 1), (0,))


def counting_graph(loads: list[str]) -> Graph:
    """Parse the text; its constants note each load."""
    arrays: dict[str, Array] = {
        "w": narrow(np.array([[1.0, 2.0], [3.0, 0.5]]), DType.BF16),
        "n": np.array([1.0, 2.0], dtype=np.float32),
    }

    def loader(name: str) -> Array:
        loads.append(name)
        return arrays[name]

    graph = parse_graph(TEXT)
    constants = tuple(
        replace(each, load=partial(loader, each.value.name)) for each in graph.constants
    )
    return replace(graph, constants=constants)


def test_every_value_is_kept_by_name() -> None:
    values = interpret(counting_graph([]), {"x": X}, BATCH)
    assert list(values) == ["a", "b", "c", "d"]
    rms = np.sqrt(12.5)
    np.testing.assert_allclose(values["a"], [[3 / rms, 8 / rms]], rtol=1e-6)
    np.testing.assert_allclose(values["b"], [[19 / rms, 13 / rms]], rtol=1e-6)
    assert all(value.dtype == np.float32 for value in values.values())


def test_until_stops_after_that_value_and_loads_nothing_that_follows() -> None:
    loads: list[str] = []
    assert list(interpret(counting_graph(loads), {"x": X}, BATCH, until="a")) == ["a"]
    assert loads == ["n"]


def test_constants_load_once_when_first_used_or_not_at_all_when_given() -> None:
    loads: list[str] = []
    graph = counting_graph(loads)
    lazy = interpret(graph, {"x": X}, BATCH)
    assert loads == ["n", "w"]
    constants = load_constants(graph)
    loads.clear()
    given = interpret(graph, {"x": X}, BATCH, constants)
    assert loads == []
    np.testing.assert_array_equal(given["d"], lazy["d"])
    assert set(constants) == {"w", "n"}


def test_walk_yields_ops_in_order_with_their_outputs() -> None:
    steps = list(walk(counting_graph([]), {"x": X}, BATCH))
    assert [op.kind for op, _ in steps] == ["rms_norm", "linear", "silu", "add"]
    (last,) = steps[-1][1]
    np.testing.assert_array_equal(last, interpret(counting_graph([]), {"x": X}, BATCH)["d"])


def test_float64_stays_float64_throughout() -> None:
    values = interpret(counting_graph([]), {"x": X}, BATCH, numerics=Numerics(np.float64))
    assert all(value.dtype == np.float64 for value in values.values())


def test_rounding_keeps_what_bf16_holds() -> None:
    values = interpret(
        counting_graph([]), {"x": X}, BATCH, numerics=Numerics(round_activations=True)
    )
    # 3 / sqrt(12.5) = 0.84853 and 8 / sqrt(12.5) = 2.26274 to eight bits.
    np.testing.assert_array_equal(values["a"], [[0.84765625, 2.265625]])


def test_step_without_tokens_gives_empty_values() -> None:
    values = interpret(
        counting_graph([]), {"x": np.empty((0, 2), dtype=np.float32)}, Batch((0,), ())
    )
    assert values["d"].shape == (0, 2)
