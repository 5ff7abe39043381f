"""Where an op's operands lie: the step's inputs, the arena, the cache, the packed weights.

In: the graph with its constants, the build's limits, a sink that takes packed weights and says
where they lie. Out: an `Operand` for each word of a kernel's record. Knows how weights are packed,
nothing of which op wants what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tidemill.base import abi
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.cpu_memory import place_buffers, place_inputs
from tidemill.engine.manifest import Operand, TensorSpec
from tidemill.ir.graph import Constant, Graph, Op, Value
from tidemill.ir.storage import Array
from tidemill.ops.heads import Heads
from tidemill.ops.paged_attention.cpu import work_bytes
from tidemill.quant.packing import interleave_gate, pack_panels, pad_vector


class WeightSink(Protocol):
    """Takes each packed tensor once, in plan order; returns its byte offset."""

    def __call__(self, name: str, pack: Callable[[], Array]) -> int: ...


class OperandPlaces:
    """Names every place that a record can point to; packs weights as they are first met."""

    def __init__(self, graph: Graph, config: BuildConfig, sink: WeightSink) -> None:
        self._sink = sink
        self._constants = {c.value.name: c for c in graph.constants}
        self._buffers, self.arena_bytes = place_buffers(graph, config)
        self._inputs, _ = place_inputs(config)
        self._packed: dict[str, int] = {}
        attentions = [op for op in graph.ops if op.kind == "paged_attention"]
        self.shared_scratch_bytes = max(
            (_work_bytes(op, config.max_seq_len) for op in attentions), default=0
        )
        self._layers = sorted({op.layer for op in attentions})

    @property
    def buffer_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(self._buffers.values())

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(self._inputs.values())

    def buffer_row_bytes(self, value: Value) -> int:
        spec = self._buffers[value.name]
        return spec.row_elements * spec.dtype.itemsize_bytes

    def input_row_elements(self, spec: str) -> int:
        return self._inputs[spec].row_elements

    def rows(self, op: Op) -> Operand:
        """The number of rows that the op computes in this step."""
        symbol = op.outputs[0].type.shape[0]
        words = {"T": abi.HEADER_TOKENS, "L": abi.HEADER_LOGIT_ROWS}
        return self.header("rows", words[str(symbol)])

    def header(self, name: str, word: int) -> Operand:
        """A word of the step's header."""
        return Operand(name, "input", self._inputs["header"].offset_bytes + 8 * word)

    def input(self, name: str, spec: str) -> Operand:
        """An array that the executor fills before the step."""
        return Operand(name, "input", self._inputs[spec].offset_bytes)

    def buffer(self, name: str, value: Value) -> Operand:
        """An activation's place in the arena."""
        return Operand(name, "arena", self._buffers[value.name].offset_bytes)

    def cache(self, layer: int) -> tuple[Operand, Operand]:
        """A layer's keys and values in the cache."""
        index = 2 * self._layers.index(layer)
        return Operand("k", "kv", index), Operand("v", "kv", index + 1)

    def shared_scratch(self, name: str) -> Operand:
        """Memory that threads work in together."""
        return Operand(name, "scratch", 0)

    def own_scratch(self, name: str) -> Operand:
        """Memory of each thread, one after the other, behind what they share."""
        return Operand(name, "scratch", self.shared_scratch_bytes)

    def matrix(self, name: str, value: Value) -> Operand:
        """A weight matrix, packed into panels."""
        dtype = value.type.dtype
        return self._weight(name, (value,), lambda w: pack_panels(w[0], dtype, value.name))

    def joined(self, name: str, first: Value, second: Value) -> Operand:
        """A gated MLP's two matrices (or biases) as one."""
        is_bias = len(first.type.shape) == 1

        def pack(arrays: list[Array]) -> Array:
            joined = interleave_gate(*arrays)
            if is_bias:
                return pad_vector(joined)
            return pack_panels(joined, first.type.dtype, f"{first.name}+{second.name}")

        return self._weight(name, (first, second), pack)

    def vector(self, name: str, value: Value) -> Operand:
        """A bias or norm weight, padded to whole panels."""
        return self._weight(name, (value,), lambda arrays: pad_vector(arrays[0]))

    def table(self, name: str, value: Value) -> Operand:
        """A constant stored as it is."""
        return self._weight(name, (value,), lambda arrays: arrays[0])

    def _weight(
        self, name: str, values: tuple[Value, ...], pack: Callable[[list[Array]], Array]
    ) -> Operand:
        """Hand a constant to the sink, once however many ops use it."""
        key = "+".join(value.name for value in values)
        if key not in self._packed:
            constants = [self._constants[value.name] for value in values]
            self._packed[key] = self._sink(key, lambda: pack([_load(c) for c in constants]))
        return Operand(name, "weights", self._packed[key])


def _work_bytes(attention: Op, max_seq_len: int) -> int:
    heads = Heads.of(attention.attrs)
    return work_bytes(heads.num_heads // heads.num_kv_heads, heads.head_size, max_seq_len)


def _load(constant: Constant) -> Array:
    assert constant.load is not None, f"constant {constant.value} has no bytes"
    return constant.load()
