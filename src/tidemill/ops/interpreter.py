"""The interpreter: runs a graph op by op through the references. It is the meaning of the language.

In: a graph, its inputs, a batch (who is in the step, what is cached) and constants, or none to
load them lazily. Out: values by name. Slow and obvious; the oracle of every test and of `verify`.
`walk` gives one op's outputs at a time and forgets dead values, for models that would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tidemill.base.errors import BuildError
from tidemill.ir.graph import Constant, Graph, Op
from tidemill.ir.storage import Array, storage_shape, widen
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.table import OPS

DEFAULT_NUMERICS = Numerics()


def interpret(
    graph: Graph,
    inputs: Mapping[str, Array],
    batch: Batch,
    constants: Mapping[str, Array] | None = None,
    until: str | None = None,
    numerics: Numerics = DEFAULT_NUMERICS,
) -> dict[str, Array]:
    """Return every value that an op computes, by name, up to and including value `until`.

    `constants` are float arrays, as `load_constants` returns them; the batch's store is updated.
    Raises: BuildError when an input is missing or a constant cannot be loaded.
    """
    values: dict[str, Array] = {}
    for op, outputs in walk(graph, inputs, batch, constants, numerics):
        values.update(zip((value.name for value in op.outputs), outputs, strict=True))
        if until in values:
            break
    return values


def walk(
    graph: Graph,
    inputs: Mapping[str, Array],
    batch: Batch,
    constants: Mapping[str, Array] | None = None,
    numerics: Numerics = DEFAULT_NUMERICS,
) -> Iterator[tuple[Op, tuple[Array, ...]]]:
    """Yield each op with its outputs; values and lazy constants are dropped after their last use.

    Raises: BuildError when an input is missing or a constant cannot be loaded.
    """
    missing = [str(value) for value in graph.inputs if value.name not in inputs]
    if missing:
        raise BuildError(
            "a graph cannot run without its inputs",
            where=f"graph '{graph.name}'",
            expected=", ".join(map(str, graph.inputs)),
            got="no " + ", ".join(missing),
            hint="give an array for each of the graph's inputs",
        )
    lazy = {constant.value.name: constant for constant in graph.constants}
    values = {**(constants or {}), **inputs}
    last_use = {value.name: index for index, op in enumerate(graph.ops) for value in op.inputs}
    for index, op in enumerate(graph.ops):
        for value in op.inputs:
            if value.name not in values:
                values[value.name] = load_constant(lazy[value.name], numerics)
        operands = [values[value.name] for value in op.inputs]
        outputs = run_op(op, operands, batch, numerics)
        for value, output in zip(op.outputs, outputs, strict=True):
            values[value.name] = output
        for name in {value.name for value in op.inputs if last_use[value.name] == index}:
            del values[name]
        yield op, outputs


def run_op(
    op: Op, operands: list[Array], batch: Batch, numerics: Numerics = DEFAULT_NUMERICS
) -> tuple[Array, ...]:
    """Run one op through its reference; outputs hold what their declared types can."""
    operands = [
        operand.astype(numerics.precision, copy=False) if value.type.dtype.is_float else operand
        for value, operand in zip(op.inputs, operands, strict=True)
    ]
    outputs = OPS[op.kind].reference(op, operands, batch, numerics)
    return tuple(
        numerics.settle(output, value.type.dtype)
        for value, output in zip(op.outputs, outputs, strict=True)
    )


def load_constants(graph: Graph, numerics: Numerics = DEFAULT_NUMERICS) -> dict[str, Array]:
    """Load and widen all constants at once: faster for many steps of a small model."""
    return {constant.value.name: load_constant(constant, numerics) for constant in graph.constants}


def load_constant(constant: Constant, numerics: Numerics = DEFAULT_NUMERICS) -> Array:
    """Load one constant as the references want it.

    Raises: BuildError when there is nothing to load it from, or its shape or type is another.
    """
    if constant.load is None:
        raise BuildError(
            "a constant has no bytes to load",
            where=f"{constant.value}, source '{constant.source}'",
            expected="a lazy source",
            got="none",
            hint="a graph parsed from text has none; draw it from the checkpoint",
        )
    stored = constant.load()
    expected = constant.value.type
    shape = storage_shape(tuple(int(dim) for dim in expected.shape), expected.dtype)
    if stored.shape != shape or stored.dtype.name != expected.dtype.storage_name:
        raise BuildError(
            "a constant differs from its declared type",
            where=f"{constant.value}, source '{constant.source}'",
            expected=str(expected),
            got=f"{stored.dtype.name}{list(stored.shape)}",
            hint="convert the checkpoint again; if it stays, please report the model",
        )
    if not expected.dtype.is_float:
        return stored
    return widen(stored, expected.dtype).astype(numerics.precision, copy=False)
