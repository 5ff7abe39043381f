"""The checker accepts what is well formed and lists every fault of what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ir.tiny_graphs import HIDDEN, TinyPen, attention_graph, random_graph
from tidemill.base.dtypes import DType
from tidemill.ir.checker import check_graph, find_faults
from tidemill.ir.graph import AttrValue, Constant, Graph, Op, TensorType, Value
from tidemill.ops.table import OPS

X = Value("x", TensorType(DType.F32, ("T", HIDDEN)))
Y = Value("y", X.type)
W = Value("w", TensorType(DType.F32, (HIDDEN, HIDDEN)))


def graph_of(*ops: Op, outputs: tuple[Value, ...] = ()) -> Graph:
    return Graph("g", (X,), (Constant(W),), ops, outputs)


def only_fault(graph: Graph) -> str:
    (fault,) = find_faults(graph, OPS)
    return fault


@pytest.mark.parametrize("seed", range(5))
def test_drawn_graphs_are_well_formed(seed: int) -> None:
    check_graph(random_graph(seed), OPS)
    check_graph(attention_graph(), OPS)


def test_empty_graph_is_well_formed() -> None:
    check_graph(Graph("empty", (), (), (), ()), OPS)


def test_use_before_definition_is_found() -> None:
    fault = only_fault(graph_of(Op("silu", (Y,), (replace(Y, name="z"),)), Op("silu", (X,), (Y,))))
    assert fault == "op 0 silu %z: %y is used before it is defined"


def test_second_definition_is_found() -> None:
    fault = only_fault(graph_of(Op("silu", (X,), (Y,)), Op("silu", (X,), (Y,))))
    assert fault == "op 1 silu %y: %y is defined twice"


def test_op_that_redefines_a_constant_is_found() -> None:
    fault = only_fault(graph_of(Op("silu", (X,), (Value("w", X.type),))))
    assert fault == "op 0 silu %w: %w is defined twice"


def test_undefined_graph_output_is_found() -> None:
    assert only_fault(graph_of(outputs=(Y,))) == "graph output: %y is used before it is defined"


def test_value_used_with_another_type_is_found() -> None:
    wider = Value("x", TensorType(DType.F32, ("T", 7)))
    fault = only_fault(graph_of(Op("silu", (wider,), (Value("y", wider.type),))))
    assert fault == "op 0 silu %y: %x is f32[T, 5], used as f32[T, 7]"


def test_output_type_that_the_rule_does_not_give_is_found() -> None:
    narrower = Value("y", TensorType(DType.BF16, X.type.shape))
    fault = only_fault(graph_of(Op("silu", (X,), (narrower,))))
    assert fault == "op 0 silu %y: expected output f32[T, 5], got bf16[T, 5]"


def test_input_that_breaks_the_rule_is_found() -> None:
    fault = only_fault(graph_of(Op("add", (X, W), (Y,))))
    assert fault == "op 0 add %y: y: expected f32[T, 5], got f32[5, 5]"


def test_unknown_op_is_found() -> None:
    assert only_fault(graph_of(Op("softplus", (X,), (Y,)))).endswith("no op is called 'softplus'")


def test_missing_unknown_and_mistyped_attributes_are_one_fault_of_three_parts() -> None:
    attrs: dict[str, AttrValue] = {"epsilon": 1, "colour": "red"}
    fault = only_fault(graph_of(Op("rms_norm", (X, W), (Y,), attrs)))
    assert "lacks attribute dtype" in fault
    assert "unknown attribute colour" in fault
    assert "attribute epsilon: expected float, got 1" in fault


def test_boolean_is_not_taken_for_a_number() -> None:
    graph = attention_graph()
    op = replace(graph.ops[0], attrs={**graph.ops[0].attrs, "num_heads": True})
    fault = only_fault(replace(graph, ops=(op, *graph.ops[1:])))
    assert "attribute num_heads: expected int, got True" in fault


def test_bad_names_and_dimensions_are_found() -> None:
    value = Value("2 x", TensorType(DType.F32, (0,)))
    faults = find_faults(Graph("g", (value,), (), (), ()), OPS)
    assert faults == ["input: '2 x' is not a valid name", "input: %2 x has dimension 0"]


def fused(residual: Value, output: Value) -> Op:
    return Op("linear_residual", (X, W, residual), (output,), {})


def test_use_after_overwriting_is_found() -> None:
    z = Value("z", X.type)
    graph = graph_of(Op("silu", (X,), (Y,)), fused(Y, z), Op("silu", (Y,), (Value("u", X.type),)))
    assert only_fault(graph) == (
        "op 2 silu %u: %y is used after op 1 linear_residual %z overwrote it"
    )


def test_graph_output_that_was_overwritten_is_found() -> None:
    graph = graph_of(Op("silu", (X,), (Y,)), fused(Y, Value("z", X.type)), outputs=(Y,))
    assert only_fault(graph).startswith("graph output: %y is used after")


def test_overwriting_a_graph_input_is_found() -> None:
    faults = find_faults(graph_of(fused(X, Y)), OPS)
    assert faults == [
        "op 0 linear_residual %y: overwrites %x, an input or constant of the graph",
        "op 0 linear_residual %y: overwrites %x while reading it as another input",
    ]


def test_all_faults_are_listed_in_order() -> None:
    pen = TinyPen()
    good = pen.finish([pen.op("silu", pen.hidden(), name="y")])
    bad = replace(good, ops=(*good.ops, *good.ops, Op("nothing", (W,), ())))
    assert [fault.split(":")[0] for fault in find_faults(bad, OPS)] == [
        "op 1 silu %y",
        "op 2 nothing",
        "op 2 nothing",
    ]
