"""dead_code: ops whose results nobody uses are removed, and constants that only they read.

An op that writes the cache is never dead: later steps read it. Graph inputs stay, used or not:
they are the contract with the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tidemill.ir.graph import Graph, Op
from tidemill.ops.table import OPS


@dataclass(frozen=True)
class DeadCode:
    """The pass; it has no options."""

    name: str = "dead_code"

    def apply(self, graph: Graph) -> Graph:
        """Remove what is dead, walking from the outputs up."""
        used = {value.name for value in graph.outputs}
        kept: list[Op] = []
        for op in reversed(graph.ops):
            if OPS[op.kind].writes_cache or any(value.name in used for value in op.outputs):
                kept.append(op)
                used |= {value.name for value in op.inputs}
        constants = tuple(each for each in graph.constants if each.value.name in used)
        return replace(graph, ops=tuple(reversed(kept)), constants=constants)
