"""The checker: says whether a graph is well formed, and lists every fault when it is not.

In: a graph and the rule table of `ops`. Out: a list of faults in plain words, empty for a good
graph. A graph is good when every value is defined once, before its use, with the type that its
op's rule gives; and when nothing reads a value after an op has overwritten its memory.
"""

from __future__ import annotations

import re

from tidemill.base.errors import BuildError
from tidemill.ir.graph import Graph, Op, Value
from tidemill.ir.rules import RuleTable, TypeFault, output_types

NAME_PATTERN = r"[A-Za-z_][A-Za-z0-9_.]*"
_NAME = re.compile(NAME_PATTERN)


def check_graph(graph: Graph, rules: RuleTable) -> None:
    """Accept a well-formed graph.

    Raises: BuildError with all faults.
    """
    faults = find_faults(graph, rules)
    if faults:
        raise BuildError(
            f"the graph is not well formed: {len(faults)} fault(s)",
            where=f"graph '{graph.name}'",
            expected="every value defined once, before use, typed by its op's rule",
            got="; ".join(faults),
            hint="this is a defect of whatever drew or rewrote the graph; please report it",
        )


def find_faults(graph: Graph, rules: RuleTable) -> list[str]:
    """List all faults of a graph, in order of appearance."""
    walk = _Walk(rules)
    for value in graph.inputs:
        walk.define(value, "input")
    for constant in graph.constants:
        walk.define(constant.value, "constant")
    walk.fixed = set(walk.defined)
    for index, op in enumerate(graph.ops):
        walk.visit(index, op)
    for value in graph.outputs:
        walk.use(value, "graph output")
    return walk.faults


class _Walk:
    """One pass over a graph in execution order, and the faults found so far."""

    def __init__(self, rules: RuleTable) -> None:
        self.rules = rules
        self.faults: list[str] = []
        self.defined: dict[str, Value] = {}
        self.fixed: set[str] = set()
        self.overwritten: dict[str, str] = {}

    def define(self, value: Value, where: str) -> None:
        if not _NAME.fullmatch(value.name):
            self.faults.append(f"{where}: '{value.name}' is not a valid name")
        if value.name in self.defined:
            self.faults.append(f"{where}: {value} is defined twice")
        for dim in value.type.shape:
            is_size = isinstance(dim, int) and dim > 0
            if not (is_size or (isinstance(dim, str) and _NAME.fullmatch(dim))):
                self.faults.append(f"{where}: {value} has dimension {dim!r}")
        self.defined.setdefault(value.name, value)

    def use(self, value: Value, where: str) -> None:
        known = self.defined.get(value.name)
        if known is None:
            self.faults.append(f"{where}: {value} is used before it is defined")
        elif known.type != value.type:
            self.faults.append(f"{where}: {value} is {known.type}, used as {value.type}")
        if value.name in self.overwritten:
            writer = self.overwritten[value.name]
            self.faults.append(f"{where}: {value} is used after {writer} overwrote it")

    def visit(self, index: int, op: Op) -> None:
        where = describe_op(index, op)
        for value in op.inputs:
            self.use(value, where)
        row = self.rules.get(op.kind)
        if row is None:
            self.faults.append(f"{where}: no op is called '{op.kind}'")
        else:
            self._check_types(op, where)
            for source in row.inplace.values():
                if -len(op.inputs) <= source < len(op.inputs):
                    self._overwrite(op, op.inputs[source], where)
        for value in op.outputs:
            self.define(value, where)

    def _check_types(self, op: Op, where: str) -> None:
        got = tuple(value.type for value in op.outputs)
        try:
            inferred = output_types(
                self.rules[op.kind], [value.type for value in op.inputs], op.attrs
            )
        except TypeFault as fault:
            self.faults.append(f"{where}: {fault}")
            return
        if inferred != got:
            expected_text = ", ".join(map(str, inferred))
            got_text = ", ".join(map(str, got))
            self.faults.append(f"{where}: expected output {expected_text}, got {got_text}")

    def _overwrite(self, op: Op, value: Value, where: str) -> None:
        if value.name in self.fixed:
            self.faults.append(f"{where}: overwrites {value}, an input or constant of the graph")
        if sum(other.name == value.name for other in op.inputs) > 1:
            self.faults.append(f"{where}: overwrites {value} while reading it as another input")
        self.overwritten[value.name] = where


def describe_op(index: int, op: Op) -> str:
    """Name an op for a message: its index, kind and first output."""
    result = f" {op.outputs[0]}" if op.outputs else ""
    return f"op {index} {op.kind}{result}"
