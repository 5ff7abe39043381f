"""The text form of a graph: printed for people, parsed back exactly.

In: a graph, or its text. Out: the other. One line for each input, constant, op and output:

    graph "tiny" {
      input %tokens: i32[T]
      constant %table: bf16[101, 64] from "transformer.vocab_embedding.weight"
      constant %norm: f32[64] from "transformer.layers.0.input_layernorm.weight"
      %h: f32[T, 64] = embedding(%tokens, %table)
      %layers.0.x: bf16[T, 64] = rms_norm(%h, %norm) {epsilon=1e-05, dtype="bf16"} layer 0
      output %layers.0.x
    }

Attribute values are JSON. A parsed constant has no `load`: its bytes stay where they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tidemill.base.dtypes import DType
from tidemill.base.errors import BuildError
from tidemill.ir.checker import NAME_PATTERN
from tidemill.ir.graph import AttrValue, Constant, Dim, Graph, Op, TensorType, Value


def print_graph(graph: Graph) -> str:
    """Return the text of a graph; `parse_graph` gives an equal graph back."""
    lines = [f"graph {json.dumps(graph.name)} {{"]
    lines += [f"  input {_typed(value)}" for value in graph.inputs]
    for constant in graph.constants:
        source = f" from {json.dumps(constant.source)}" if constant.source else ""
        lines.append(f"  constant {_typed(constant.value)}{source}")
    lines += [f"  {print_op(op)}" for op in graph.ops]
    lines += [f"  output {value}" for value in graph.outputs]
    return "\n".join([*lines, "}", ""])


def print_op(op: Op) -> str:
    """Return the one line of an op."""
    outputs = ", ".join(map(_typed, op.outputs))
    attrs = ", ".join(f"{name}={json.dumps(value)}" for name, value in op.attrs.items())
    layer = f" layer {op.layer}" if op.layer >= 0 else ""
    operands = ", ".join(map(str, op.inputs))
    return f"{outputs} = {op.kind}({operands})" + (f" {{{attrs}}}" if attrs else "") + layer


def parse_graph(text: str) -> Graph:
    """Return the graph that a text describes. It is not checked beyond its grammar.

    Raises: BuildError naming the line.
    """
    return _Parser(text).parse()


def _typed(value: Value) -> str:
    return f"{value}: {value.type}"


_TYPED = rf"%{NAME_PATTERN}: \w+\[[^\]]*\]"
_HEADER = re.compile(r"graph (\".*\") \{")
_TYPED_VALUE = re.compile(rf"%({NAME_PATTERN}): (\w+)\[([^\]]*)\]")
_CONSTANT = re.compile(rf"constant ({_TYPED})(?: from (\".*\"))?")
_OP = re.compile(rf"({_TYPED}(?:, {_TYPED})*) = (\w+)\(([^)]*)\)(?: \{{(.*)\}})?(?: layer (\d+))?")
_ATTR = re.compile(r"(?:, )?(\w+)=")


class _Parser:
    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._number = 0
        self._values: dict[str, Value] = {}

    def parse(self) -> Graph:
        header = _HEADER.fullmatch(self._lines[0]) if self._lines else None
        if header is None:
            raise self._fault('graph "<name>" {')
        inputs: list[Value] = []
        constants: list[Constant] = []
        ops: list[Op] = []
        outputs: list[Value] = []
        for number in range(1, len(self._lines)):
            self._number = number
            line = self._lines[number].strip()
            word = line.split(" ", 1)[0]
            if word == "input":
                inputs.append(self._define(line.removeprefix("input ")))
            elif word == "constant":
                constants.append(self._constant(line))
            elif word == "output":
                outputs.append(self._use(line.removeprefix("output ")))
            elif word != "}":
                ops.append(self._op(line))
            else:
                break
        else:
            raise self._fault("a closing }")
        if len(self._lines) > self._number + 1:
            self._number += 1
            raise self._fault("the end of the text")
        name = self._string(header[1])
        return Graph(name, tuple(inputs), tuple(constants), tuple(ops), tuple(outputs))

    def _constant(self, line: str) -> Constant:
        match = _CONSTANT.fullmatch(line)
        if match is None:
            raise self._fault('constant %<name>: <type> from "<source>"')
        return Constant(self._define(match[1]), self._string(match[2]) if match[2] else "")

    def _op(self, line: str) -> Op:
        match = _OP.fullmatch(line)
        if match is None:
            raise self._fault("%<name>: <type> = <kind>(%<name>, ...) {<attributes>} layer <n>")
        # Inputs first: an op's output is not in scope of its own operands.
        operands = match[3].split(", ") if match[3] else []
        inputs = tuple(self._use(operand) for operand in operands)
        typed = [found[0] for found in re.finditer(_TYPED, match[1])]
        outputs = tuple(self._define(each) for each in typed)
        layer = int(match[5]) if match[5] else -1
        return Op(match[2], inputs, outputs, self._attrs(match[4] or ""), layer)

    def _attrs(self, text: str) -> Mapping[str, AttrValue]:
        attrs: dict[str, AttrValue] = {}
        at = 0
        while at < len(text):
            match = _ATTR.match(text, at)
            if match is None:
                raise self._fault("<name>=<JSON value>", text[at:])
            try:
                value, at = json.JSONDecoder().raw_decode(text, match.end())
            except json.JSONDecodeError as error:
                raise self._fault("a JSON value", text[match.end() :]) from error
            if not isinstance(value, int | float | str):
                raise self._fault("a number, a text or true or false", repr(value))
            attrs[match[1]] = value
        return attrs

    def _define(self, text: str) -> Value:
        match = _TYPED_VALUE.fullmatch(text)
        if match is None:
            raise self._fault("%<name>: <dtype>[<dims>]", text)
        known = {dtype.value: dtype for dtype in DType}
        if match[2] not in known:
            raise self._fault(" or ".join(known), match[2])
        shape: list[Dim] = [
            int(dim) if dim.lstrip("-").isdigit() else dim
            for dim in (match[3].split(", ") if match[3] else [])
        ]
        value = Value(match[1], TensorType(known[match[2]], tuple(shape)))
        self._values[value.name] = value
        return value

    def _use(self, text: str) -> Value:
        value = self._values.get(text.removeprefix("%"))
        if value is None or not text.startswith("%"):
            raise self._fault("a value defined above", text)
        return value

    def _string(self, text: str) -> str:
        try:
            return str(json.loads(text))
        except json.JSONDecodeError as error:
            raise self._fault("a quoted string", text) from error

    def _fault(self, expected: str, got: str = "") -> BuildError:
        line = self._lines[self._number] if self._lines else ""
        return BuildError(
            "graph text cannot be read",
            where=f"line {self._number + 1}: {line.strip()}",
            expected=expected,
            got=got or repr(line),
            hint="the text was edited by hand or comes from another version",
        )
