"""A pen to draw graphs with: names values, infers types, remembers the layer.

In: a rule table, then inputs, constants and ops in execution order. Out: a `Graph`. Output types
come from the ops' own rules, so that a drawing cannot state a wrong one. Knows no op by name and
no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from tidemill.base.errors import BuildError
from tidemill.ir.graph import AttrValue, Constant, Graph, Op, TensorType, Value
from tidemill.ir.rules import RuleTable, TypeFault, output_types

Load = Callable[[], npt.NDArray[np.generic]]


class GraphBuilder:
    """Collects the parts of one graph."""

    def __init__(self, name: str, rules: RuleTable) -> None:
        self._name = name
        self._rules = rules
        self._inputs: list[Value] = []
        self._constants: dict[str, Constant] = {}
        self._ops: list[Op] = []
        self._layer = -1

    @contextmanager
    def layer(self, index: int) -> Iterator[None]:
        """Mark the ops drawn inside as layer `index`; names get the prefix "layers.<index>."."""
        assert self._layer == -1, "layers do not nest"
        self._layer = index
        try:
            yield
        finally:
            self._layer = -1

    def input(self, name: str, value_type: TensorType) -> Value:
        """Declare a graph input."""
        value = Value(name, value_type)
        self._inputs.append(value)
        return value

    def constant(
        self, name: str, value_type: TensorType, load: Load | None = None, *, source: str = ""
    ) -> Value:
        """Declare a constant, whose bytes `load` brings when asked. `name` is used as it is."""
        value = Value(name, value_type)
        assert name not in self._constants, name
        self._constants[name] = Constant(value, source, load)
        return value

    def op(self, kind: str, *inputs: Value, name: str, **attrs: AttrValue) -> Value:
        """Draw an op with one output, called `name` under the prefix of the current layer.

        Raises: BuildError when the inputs or attributes break the op's rule.
        """
        prefix = f"layers.{self._layer}." if self._layer >= 0 else ""
        try:
            types = output_types(self._rules[kind], [value.type for value in inputs], attrs)
        except TypeFault as fault:
            raise BuildError(
                "the model cannot be drawn",
                where=f"graph '{self._name}', op {kind} %{prefix}{name}",
                expected="inputs and attributes that the op's rule allows",
                got=str(fault),
                hint="config and weights may disagree, or this model needs another op",
            ) from fault
        assert len(types) == 1, kind
        output = Value(prefix + name, types[0])
        self._ops.append(Op(kind, inputs, (output,), dict(attrs), self._layer))
        return output

    def finish(self, outputs: Sequence[Value]) -> Graph:
        """Return the graph."""
        return Graph(
            self._name,
            tuple(self._inputs),
            tuple(self._constants.values()),
            tuple(self._ops),
            tuple(outputs),
        )
