"""Lowering for the CPU: a graph of fused ops becomes a plan of kernel calls over placed memory.

In: the pipeline's graph, the engine's limits, a sink that takes packed weights and says where they
lie. Out: `CpuPlan`: records, buffers, inputs, and the module with the emitted code. A graph lowers
to the same records for every CPU target; only the emitted code differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from tidemill.base import abi
from tidemill.base.errors import BuildError, UnsupportedError
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.cpu_kernels import KernelLibrary, has_bias, kv_layout
from tidemill.builder.cpu_memory import place_buffers, place_inputs
from tidemill.codegen.emitter import Module
from tidemill.codegen.isa import Isa
from tidemill.engine.manifest import KvLayout, Operand, PlanOp, TensorSpec
from tidemill.ir.graph import Constant, Graph, Op, Value
from tidemill.ops.layout import LANES, PANEL, padded_n, round_up, wide_row
from tidemill.ops.row import StepSizes
from tidemill.ops.table import OPS
from tidemill.quant.packing import interleave_gate, pack_panels, pad_vector

Array = npt.NDArray[Any]
_ONE_TOKEN = StepSizes(tokens=1, sequences=1, logit_rows=1, kv_tokens=1, attention_pairs=1)
_NO_TOKENS = StepSizes(tokens=0, sequences=0, logit_rows=0, kv_tokens=0, attention_pairs=0)


class WeightSink(Protocol):
    """Takes each packed tensor once, in plan order; returns its byte offset."""

    def __call__(self, name: str, pack: Callable[[], Array]) -> int: ...


@dataclass(frozen=True)
class CpuPlan:
    """Everything that an engine needs but the bytes of weights and compiled code."""

    module: Module
    plan: tuple[PlanOp, ...]
    buffers: tuple[TensorSpec, ...]
    inputs: tuple[TensorSpec, ...]
    arena_bytes: int
    scratch_bytes_per_thread: int
    kv: KvLayout


def lower_for_cpu(graph: Graph, config: BuildConfig, isa: Isa, sink: WeightSink) -> CpuPlan:
    """Lower a graph of ops that have CPU kernels.

    Raises: UnsupportedError for head widths that the kernels do not take.
    """
    _check_shapes(graph, config)
    return _Lowering(graph, config, isa, sink).run()


def _check_shapes(graph: Graph, config: BuildConfig) -> None:
    widths = {int(op.attrs["head_size"]) for op in graph.ops if "head_size" in op.attrs}
    odd = sorted(width for width in widths if width % LANES)
    if odd:
        raise UnsupportedError(
            "this head width has no CPU kernel",
            where="attention",
            expected=f"head_size a multiple of {LANES}",
            got=", ".join(map(str, odd)),
            hint="pad the heads when the checkpoint is made, or open an issue with the model",
        )
    if config.tokens_per_block % LANES:
        raise BuildError(
            "tokens_per_block does not fit the kernels",
            where="--tokens_per_block",
            expected=f"a multiple of {LANES}",
            got=str(config.tokens_per_block),
            hint="32 is the default and a good choice",
        )


class _Lowering:
    """One graph's walk: ops in order, weights as they are met."""

    def __init__(self, graph: Graph, config: BuildConfig, isa: Isa, sink: WeightSink) -> None:
        self.graph, self.config, self.sink = graph, config, sink
        self.library = KernelLibrary(isa, config)
        self.constants = {c.value.name: c for c in graph.constants}
        self.buffers, self.arena_bytes = place_buffers(graph, config)
        self.inputs, self.inputs_bytes = place_inputs(config)
        self.packed: dict[str, int] = {}
        self.layers = sorted({op.layer for op in graph.ops if op.kind == "paged_attention"})
        self.scratch_bytes = 0

    def run(self) -> CpuPlan:
        plan = tuple(self._lower(op) for op in self.graph.ops)
        attention = next(op for op in self.graph.ops if op.kind == "paged_attention")
        return CpuPlan(
            self.library.module,
            plan,
            tuple(self.buffers.values()),
            tuple(self.inputs.values()),
            self.arena_bytes,
            self.scratch_bytes,
            kv_layout(attention, len(self.layers), self.config),
        )

    def _lower(self, op: Op) -> PlanOp:
        kernel = self.library.kernel(op)
        operands = {operand.name: operand for operand in self._operands(op)}
        assert set(operands) == set(kernel.fields), (op.kind, sorted(operands), kernel.fields)
        fixed = OPS[op.kind].cost(op, _NO_TOKENS)
        row = OPS[op.kind].cost(op, _ONE_TOKEN)
        return PlanOp(
            kernel.symbol, op.kind, op.layer, op.outputs[0].name,
            tuple(operands[field] for field in kernel.fields),
            flops_per_row=row.flops, bytes_fixed=fixed.bytes,
        )  # fmt: skip

    def _operands(self, op: Op) -> list[Operand]:
        """Fill an op's record, by operand name."""
        if op.kind in ("linear", "linear_residual", "linear_gated"):
            return self._linear(op)
        if op.kind == "embedding":
            return [
                self._rows(op),
                self._input("tokens", "tokens"),
                self._matrix("table", op.inputs[1]),
                self._buffer("y", op.outputs[0]),
            ]
        if op.kind == "rms_norm":
            return [
                self._rows(op),
                self._buffer("x", op.inputs[0]),
                self._vector("weight", op.inputs[1]),
                self._buffer("y", op.outputs[0]),
            ]
        if op.kind == "gather_last":
            return [
                self._rows(op),
                self._buffer("x", op.inputs[0]),
                self._input("indices", "logit_rows"),
                self._buffer("y", op.outputs[0]),
            ]
        return self._attention_or_sample(op)

    def _attention_or_sample(self, op: Op) -> list[Operand]:
        if op.kind == "rope_cache":
            qkv, _, cos, sin = op.inputs
            return [
                self._rows(op),
                self._buffer("qkv", qkv),
                self._input("positions", "positions"),
                self._input("slots", "slots"),
                self._table("cos", cos),
                self._table("sin", sin),
                self._buffer("q", op.outputs[0]),
                *self._cache(op.layer),
            ]
        if op.kind == "paged_attention":
            tables = self.inputs["tables"]
            return [
                self._input("tiles", "tiles"),
                self._header("num_tiles", abi.HEADER_TILES),
                self._input("tables", "tables"),
                Operand("table_row", "immediate", tables.row_elements),
                self._buffer("q", op.inputs[0]),
                *self._cache(op.layer),
                self._buffer("y", op.outputs[0]),
            ]
        assert op.kind == "sample", op.kind
        self.scratch_bytes = 4 * wide_row(int(op.inputs[0].type.shape[1]))
        settings = ("temperature", "top_k", "top_p", "seed")
        return [
            self._rows(op),
            self._buffer("logits", op.inputs[0]),
            *(self._input(name, name) for name in settings),
            self._input("position", "sampled_positions"),
            self._buffer("tokens", op.outputs[0]),
            Operand("scratch", "scratch", 0),
            Operand("scratch_bytes", "immediate", self.scratch_bytes),
        ]

    def _linear(self, op: Op) -> list[Operand]:
        x, *weights = op.inputs
        if op.kind == "linear_gated":
            matrix = self._joined("w", weights[0], weights[1])
            bias = self._joined("bias", weights[2], weights[3]) if has_bias(op) else None
            num_outputs = 2 * round_up(int(weights[0].type.shape[0]), LANES)
        else:
            matrix = self._matrix("w", weights[0])
            bias = self._vector("bias", weights[1]) if has_bias(op) else None
            num_outputs = int(weights[0].type.shape[0])
        spec = self.buffers[op.outputs[0].name]
        return [
            self._rows(op),
            self._buffer("x", x),
            matrix,
            bias or Operand("bias", "immediate", 0),
            self._buffer("y", op.outputs[0]),
            Operand("y_row_bytes", "immediate", spec.row_elements * spec.dtype.itemsize_bytes),
            Operand("panels", "immediate", padded_n(num_outputs) // PANEL),
        ]

    def _rows(self, op: Op) -> Operand:
        symbol = op.outputs[0].type.shape[0]
        words = {"T": abi.HEADER_TOKENS, "L": abi.HEADER_LOGIT_ROWS}
        return self._header("rows", words[str(symbol)])

    def _header(self, name: str, word: int) -> Operand:
        return Operand(name, "input", self.inputs["header"].offset_bytes + 8 * word)

    def _input(self, name: str, spec: str) -> Operand:
        return Operand(name, "input", self.inputs[spec].offset_bytes)

    def _buffer(self, name: str, value: Value) -> Operand:
        return Operand(name, "arena", self.buffers[value.name].offset_bytes)

    def _cache(self, layer: int) -> tuple[Operand, Operand]:
        index = 2 * self.layers.index(layer)
        return Operand("k", "kv", index), Operand("v", "kv", index + 1)

    def _matrix(self, name: str, value: Value) -> Operand:
        return self._weight(name, (value,), lambda w: pack_panels(w[0], value.type.dtype))

    def _joined(self, name: str, first: Value, second: Value) -> Operand:
        """A gated MLP's two matrices (or biases) as one."""
        is_bias = len(first.type.shape) == 1

        def pack(arrays: list[Array]) -> Array:
            joined = interleave_gate(*arrays)
            return pad_vector(joined) if is_bias else pack_panels(joined, first.type.dtype)

        return self._weight(name, (first, second), pack)

    def _vector(self, name: str, value: Value) -> Operand:
        return self._weight(name, (value,), lambda arrays: pad_vector(arrays[0]))

    def _table(self, name: str, value: Value) -> Operand:
        return self._weight(name, (value,), lambda arrays: arrays[0])

    def _weight(
        self, name: str, values: tuple[Value, ...], pack: Callable[[list[Array]], Array]
    ) -> Operand:
        """Hand a constant to the sink, once however many ops use it."""
        key = "+".join(value.name for value in values)
        if key not in self.packed:
            constants = [self.constants[value.name] for value in values]
            self.packed[key] = self.sink(key, lambda: pack([_load(c) for c in constants]))
        return Operand(name, "weights", self.packed[key])


def _load(constant: Constant) -> Array:
    assert constant.load is not None, f"constant {constant.value} has no bytes"
    return constant.load()
