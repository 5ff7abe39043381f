"""The text form prints for people and parses back exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ir.tiny_graphs import TinyPen, attention_graph, random_graph
from tidemill.base.dtypes import DType
from tidemill.builder.pipelines.cpu import run_cpu_pipeline
from tidemill.ir.graph import AttrValue, Constant, Graph, Op, TensorType, Value
from tidemill.ir.text import parse_graph, print_graph, print_op

TEXT = """\
graph "tiny" {
  input %qkv: f32[T, 16]
  input %positions: i32[T]
  constant %cos: f32[32, 1] from "ckpt.cos"
  constant %sin: f32[32, 1] from "ckpt.sin"
  %layers.3.rotated: f32[T, 16] = rope(%qkv, %positions, %cos, %sin) {num_heads=2, \
num_kv_heads=1, head_size=4, rotary_dim=2} layer 3
  %layers.3.attended: bf16[T, 8] = attention(%layers.3.rotated) {num_heads=2, num_kv_heads=1, \
head_size=4, window=7, scale=0.5, dtype="bf16", cache_dtype="bf16"} layer 3
  output %layers.3.attended
}
"""


def test_graph_prints_one_line_for_each_part() -> None:
    assert print_graph(attention_graph()) == TEXT


def test_printed_text_parses_to_an_equal_graph_and_prints_alike() -> None:
    assert parse_graph(TEXT) == attention_graph()
    assert print_graph(parse_graph(TEXT)) == TEXT


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_survive_the_round_trip(seed: int) -> None:
    graph = random_graph(seed)
    assert parse_graph(print_graph(graph)) == graph


def test_pipeline_result_survives_the_round_trip() -> None:
    graph = run_cpu_pipeline(attention_graph())
    assert parse_graph(print_graph(graph)) == graph


def test_awkward_names_and_attributes_survive_the_round_trip() -> None:
    scalar = Value("s", TensorType(DType.I64, ()))
    attrs: dict[str, AttrValue] = {
        "text": 'a "quoted", {braced} = \\ value\n',
        "small": 1.0000000000000002e-300,
        "whole": 1.0,
        "number": -3,
        "flag": True,
        "empty": "",
    }
    graph = Graph(
        'a "name" {',
        (scalar,),
        (Constant(Value("c", TensorType(DType.U8, (1, 2, 3)))),),
        (
            Op("none", (), (Value("a", scalar.type), Value("b", TensorType(DType.I8, ("S", 2))))),
            Op("all", (scalar, scalar), (Value("d", scalar.type),), attrs, 0),
            Op("effect_only", (scalar,), (Value("e", scalar.type),), {}, 12),
        ),
        (),
    )
    parsed = parse_graph(print_graph(graph))
    assert parsed == graph
    kinds = {name: type(value) for name, value in parsed.ops[1].attrs.items()}
    assert kinds == {name: type(value) for name, value in attrs.items()}


def test_empty_graph_survives_the_round_trip() -> None:
    graph = Graph("", (), (), (), ())
    assert parse_graph(print_graph(graph)) == graph


def test_op_prints_without_layer_and_attributes_where_it_has_none() -> None:
    pen = TinyPen()
    pen.op("silu", pen.hidden(), name="y")
    (op,) = pen.finish([]).ops
    assert print_op(op) == "%y: f32[T, 5] = silu(%x)"
    assert print_op(replace(op, layer=0)).endswith("silu(%x) layer 0")
