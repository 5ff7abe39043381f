"""What a pass is, and the one way to run a list of them.

In: a graph and a list of passes. Out: the rewritten graph, checked before the first pass and after
each; a pass that breaks it is named, with those that ran before. `GraphIndex` answers what every
pass asks: who makes a value, who uses it. Knows no pass and no target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from tidemill.base.errors import BuildError
from tidemill.ir.checker import check_graph, find_faults
from tidemill.ir.graph import Graph, Op, Value
from tidemill.ops.table import OPS


class Pass(Protocol):
    """A rewrite that keeps the meaning. Implementations are frozen dataclasses with options.

    `apply` returns an equal graph where there is nothing to rewrite.
    """

    @property
    def name(self) -> str: ...

    def apply(self, graph: Graph) -> Graph: ...


def run_passes(
    graph: Graph,
    passes: Sequence[Pass],
    observe: Callable[[str, Graph, bool], None] | None = None,
) -> Graph:
    """Apply passes in order; `observe` sees each one's name, graph and whether it changed that.

    Raises: BuildError when the graph is not well formed at first, or a pass breaks it.
    """
    check_graph(graph, OPS)
    done: list[str] = []
    for each in passes:
        result = each.apply(graph)
        faults = find_faults(result, OPS)
        if faults:
            raise BuildError(
                f"pass {each.name} broke the graph",
                where=f"graph '{graph.name}', after passes: {', '.join(done) or 'none'}",
                expected="a well-formed graph",
                got="; ".join(faults),
                hint="this is a defect of the pass; please report it with the graph's text",
            )
        if observe is not None:
            observe(each.name, result, result != graph)
        done.append(each.name)
        graph = result
    return graph


class GraphIndex:
    """Who makes and who uses each value of one graph. Ops are named by their index."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._maker: dict[str, int] = {}
        self._users: dict[str, list[int]] = {}
        self._outputs = {value.name for value in graph.outputs}
        for index, op in enumerate(graph.ops):
            for value in op.inputs:
                self._users.setdefault(value.name, []).append(index)
            for value in op.outputs:
                self._maker[value.name] = index

    def maker(self, value: Value, kind: str) -> int | None:
        """Return the op that makes a value, if it is of this kind."""
        index = self._maker.get(value.name)
        return index if index is not None and self.graph.ops[index].kind == kind else None

    def sole_maker(self, value: Value, kind: str) -> int | None:
        """Return the op that makes a value, if it is of this kind and nothing else uses it."""
        index = self.maker(value, kind)
        is_sole = len(self._users.get(value.name, ())) == 1 and value.name not in self._outputs
        return index if is_sole else None

    def sole_user(self, value: Value, kind: str) -> int | None:
        """Return the one op that uses a value, once and as its first input, if of this kind."""
        users = self._users.get(value.name, [])
        if len(users) != 1 or value.name in self._outputs:
            return None
        op = self.graph.ops[users[0]]
        return users[0] if op.kind == kind and op.inputs[0] == value else None

    def users(self, value: Value) -> set[int]:
        """Return the ops that use a value; one that the graph gives away has one more, -1."""
        return {*self._users.get(value.name, ()), *([-1] if value.name in self._outputs else ())}

    def num_users(self, value: Value) -> int:
        """Count how often ops use a value."""
        return len(self._users.get(value.name, ()))

    def is_dead_after(self, value: Value, index: int) -> bool:
        """Say whether an op's result may take this value's memory: computed, used last here."""
        if value.name not in self._maker or value.name in self._outputs:
            return False
        users = self._users[value.name]
        return max(users) == index and users.count(index) == 1


def replace_ops(graph: Graph, index_to_ops: Mapping[int, Sequence[Op]]) -> Graph:
    """Put other ops (or none) where these ops stood."""
    ops = tuple(new for index, op in enumerate(graph.ops) for new in index_to_ops.get(index, (op,)))
    return replace(graph, ops=ops)
