"""Errors of graphs: of their text, their drawing, their constants; one test each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tidemill.base.dtypes import DType
from tidemill.base.errors import BuildError, TidemillError, UnsupportedError
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.ir.builder import GraphBuilder
from tidemill.ir.checker import check_graph
from tidemill.ir.graph import Graph, TensorType
from tidemill.ir.storage import Array
from tidemill.ir.text import parse_graph
from tidemill.network.layers.rotary import read_scaling
from tidemill.network.models.llama import LlamaGraphConfig, draw_llama
from tidemill.network.registry import find_architecture
from tidemill.ops.batch import Batch
from tidemill.ops.interpreter import interpret
from tidemill.ops.table import OPS

GOOD = """graph "g" {
  input %x: f32[T, 4]
  constant %w: f32[4, 4] from "ckpt.w"
  %y: f32[T, 4] = linear(%x, %w)
  output %y
}
"""
CONFIG = CheckpointConfig(
    architecture="LlamaForCausalLM",
    dtype="float32",
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_size=4,
    intermediate_size=7,
    max_position_embeddings=16,
    rotary_embedding_dim=4,
    tie_word_embeddings=True,
)


def raised(action: Callable[[], object]) -> TidemillError:
    with pytest.raises(BuildError) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(
    ("line", "replacement", "expected", "number"),
    [
        ('graph "g" {', 'grpah "g" {', 'graph "<name>" {', 1),
        ("input %x: f32[T, 4]", "input %x f32[T, 4]", "%<name>: <dtype>[<dims>]", 2),
        ("input %x: f32[T, 4]", "input %x: f33[T, 4]", "f32 or f16", 2),
        ('"ckpt.w"', '"ckpt.w', 'constant %<name>: <type> from "<source>"', 3),
        ("linear(%x, %w)", "linear(%x, %v)", "a value defined above", 4),
        ("linear(%x, %w)", "linear(x, %w)", "a value defined above", 4),
        ("linear(%x, %w)", "linear(%y, %w)", "a value defined above", 4),
        ("linear(%x, %w)", "linear %x, %w", "%<name>: <type> = <kind>", 4),
        ("linear(%x, %w)", "linear(%x, %w) {a=one}", "a JSON value", 4),
        ("linear(%x, %w)", "linear(%x, %w) {a:1}", "<name>=<JSON value>", 4),
        ("linear(%x, %w)", "linear(%x, %w) {a=[1]}", "a number, a text or true or false", 4),
        ("output %y", "output %z", "a value defined above", 5),
        ("}\n", "", "a closing }", 5),
    ],
)
def test_malformed_text_names_its_line(
    line: str, replacement: str, expected: str, number: int
) -> None:
    error = raised(lambda: parse_graph(GOOD.replace(line, replacement)))
    assert error.what == "graph text cannot be read"
    assert error.where.startswith(f"line {number}: ")
    assert expected in error.expected


def test_empty_text_is_not_a_graph() -> None:
    assert raised(lambda: parse_graph("")).where == "line 1: "


def test_text_after_the_end_is_refused() -> None:
    error = raised(lambda: parse_graph(GOOD + GOOD))
    assert "end of the text" in error.expected
    assert error.where.startswith("line 7: ")


def test_ill_formed_graph_lists_all_its_faults() -> None:
    text = GOOD.replace("f32[T, 4] = linear", "f16[T, 4] = linear").replace("%w: f32", "%w: bf16")
    graph = parse_graph(text.replace("  output", "  %x: f32[T, 4] = silu(%x)\n  output"))
    error = raised(lambda: check_graph(graph, OPS))
    assert error.what == "the graph is not well formed: 2 fault(s)"
    assert error.where == "graph 'g'"
    assert error.got == (
        "op 0 linear %y: x: expected bf16[T, 4], got f32[T, 4]; op 1 silu %x: %x is defined twice"
    )


def test_drawing_an_op_with_operands_that_do_not_fit_names_op_and_value() -> None:
    pen = GraphBuilder("g", OPS)
    x = pen.input("x", TensorType(DType.F32, ("T", 4)))
    y = pen.input("y", TensorType(DType.F32, ("T", 5)))
    with pen.layer(2):
        error = raised(lambda: pen.op("add", x, y, name="sum"))
    assert error.what == "the model cannot be drawn"
    assert error.got == "y: expected f32[T, 4], got f32[T, 5]"
    assert error.where == "graph 'g', op add %layers.2.sum"


def run_with(load: Callable[[], Array] | None) -> Callable[[], object]:
    graph = parse_graph(GOOD)
    constant = replace(graph.constants[0], load=load)
    graph = replace(graph, constants=(constant,))
    x = np.zeros((1, 4), dtype=np.float32)
    return lambda: interpret(graph, {"x": x}, Batch((0, 1), (0,)))


def test_constant_without_bytes_names_its_source() -> None:
    error = raised(run_with(None))
    assert error.what == "a constant has no bytes to load"
    assert error.where == "%w, source 'ckpt.w'"


@pytest.mark.parametrize("array", [np.zeros((4, 3), dtype=np.float32), np.zeros((4, 4))])
def test_constant_of_another_shape_or_type_is_refused(array: Array) -> None:
    error = raised(run_with(lambda: array))
    assert error.expected == "f32[4, 4]"
    assert error.got in ("float32[4, 3]", "float64[4, 4]")


def test_interpreting_without_an_input_names_it() -> None:
    graph: Graph = parse_graph(GOOD)
    error = raised(lambda: interpret(graph, {}, Batch((0,), ())))
    assert error.got == "no %x"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"hidden_act": "gelu"}, "hidden_act gelu (only silu)"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type alibi"),
        ({"rotary_embedding_dim": 0}, "rotary_embedding_dim 0"),
        ({"qk_layernorm": True}, "qk_layernorm"),
    ],
)
def test_llama_with_unsupported_setting_names_it(change: dict[str, Any], fault: str) -> None:
    llama, config = find_architecture("LlamaForCausalLM", ""), replace(CONFIG, **change)
    error = raised(lambda: llama.draw(config, NoTensors(), 16))
    assert isinstance(error, UnsupportedError)
    assert error.got == fault


def test_unknown_rotary_scaling_names_what_is_known() -> None:
    error = raised(lambda: read_scaling({"rope_type": "yarn", "factor": 2.0}))
    assert isinstance(error, UnsupportedError)
    assert (error.expected, error.got) == ("null, linear, llama3", "yarn")


def test_rotary_scaling_without_its_numbers_lists_them() -> None:
    error = raised(lambda: read_scaling({"type": "llama3", "factor": "8"}))
    assert error.got == (
        "no number for factor, low_freq_factor, high_freq_factor, original_max_position_embeddings"
    )


class NoTensors:
    """A source that holds nothing; drawing must not read."""

    def read(self, name: str) -> Array:
        raise AssertionError(f"{name} was read while drawing")

    def dtype(self, name: str) -> DType:
        return DType.F32  # a header says it, no tensor is read


def test_drawing_reads_no_tensor_and_odd_rotary_dim_is_refused() -> None:
    config = LlamaGraphConfig.from_checkpoint(CONFIG)
    check_graph(draw_llama(config, NoTensors(), 16), OPS)
    attention = replace(config.attention, rotary_dim=3)
    error = raised(lambda: draw_llama(replace(config, attention=attention), NoTensors(), 16))
    assert "attribute rotary_dim: expected even, at most 4, got 3" in error.got
