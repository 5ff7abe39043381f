"""Lowering for the CPU: a graph of fused ops becomes a plan of kernel calls over placed memory.

In: the pipeline's graph, the engine's limits, a sink that takes packed weights and says where they
lie. Out: first the code, so that it can be compiled while weights are packed; then `CpuPlan`:
records, buffers, inputs. A graph lowers to the same records for every CPU target; only the emitted
code differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tidemill.base import abi
from tidemill.base.errors import BuildError, UnsupportedError
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.cpu_kernels import KernelLibrary, has_bias, kv_layout
from tidemill.builder.cpu_memory import find_copied, most_rows
from tidemill.builder.cpu_operands import OperandPlaces, WeightSink
from tidemill.builder.fetch_ahead import Errand, plan_errands
from tidemill.builder.tactics import Width
from tidemill.codegen.isa import Isa
from tidemill.codegen.module import Module
from tidemill.engine.manifest import KvLayout, Operand, PlanOp, TensorSpec
from tidemill.ir.graph import Graph, Op
from tidemill.ops.layout import LANES, PANEL, padded_n, panel_bytes, round_up, wide_row
from tidemill.ops.linear import LINEAR_KINDS
from tidemill.ops.linear.prepared import prepared_bytes
from tidemill.ops.linear.tactics import TacticTable
from tidemill.ops.row import NO_TOKENS, StepSizes
from tidemill.ops.table import OPS

_ONE_TOKEN = StepSizes(tokens=1, sequences=1, logit_rows=1, kv_tokens=1, attention_pairs=1)


@dataclass(frozen=True)
class CpuPlan:
    """Everything that an engine needs but the bytes of weights and compiled code."""

    module: Module
    plan: tuple[PlanOp, ...]
    buffers: tuple[TensorSpec, ...]
    inputs: tuple[TensorSpec, ...]
    arena_bytes: int
    scratch_bytes_per_thread: int
    shared_scratch_bytes: int
    kv: KvLayout


def emit_for_cpu(
    graph: Graph,
    config: BuildConfig,
    isa: Isa,
    tables: Mapping[Width, TacticTable] | None = None,
) -> KernelLibrary:
    """Emit the kernels of a graph, with the shipped tactics unless told others: all its code.

    Raises: UnsupportedError for head widths that the kernels do not take.
    """
    _check_shapes(graph, config)
    block_bytes = kv_layout(graph.ops, config).block_bytes_per_layer
    has_groups = any(w.type.dtype.group_size for op in graph.ops for w in op.inputs)
    library = KernelLibrary(isa, config, tables, block_bytes, has_groups)
    for op in graph.ops:
        library.kernel(op)
    return library


def lower_for_cpu(
    graph: Graph, config: BuildConfig, library: KernelLibrary, sink: WeightSink
) -> CpuPlan:
    """Lower a graph of ops to records that call the library's kernels."""
    places, kv = OperandPlaces(graph, config, sink), kv_layout(graph.ops, config)
    errands, followers = plan_errands(graph.ops), _next_linear(graph)
    name_to_copies = _copies(graph, config)
    plan = []
    for op in graph.ops:
        operands = _KIND_TO_OPERANDS[op.kind](op, places)
        if op.kind in LINEAR_KINDS:
            name = op.outputs[0].name
            operands += _fetched_next(followers[name], places)
            operands += _fetched_ahead(errands[name], places, kv)
        plan.append(_lower(op, library, operands, name_to_copies))
    return CpuPlan(
        library.module,
        tuple(plan),
        places.buffer_specs,
        places.input_specs,
        places.arena_bytes,
        max(map(_scratch_bytes, graph.ops), default=0),
        places.shared_scratch_bytes,
        kv,
    )


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


def _copies(graph: Graph, config: BuildConfig) -> dict[str, int]:
    """The rows that there is room for, by the name of each value that threads make copies of."""
    copied = find_copied(graph)
    values = (op.outputs[0] for op in graph.ops)
    return {value.name: most_rows(value, config) for value in values if value.name in copied}


def _lower(
    op: Op, library: KernelLibrary, listed: list[Operand], name_to_copies: Mapping[str, int]
) -> PlanOp:
    kernel = library.kernel(op)
    fixed = OPS[op.kind].cost(op, NO_TOKENS)
    row = OPS[op.kind].cost(op, _ONE_TOKEN)
    return PlanOp(
        kernel.symbol, op.kind, op.layer, op.outputs[0].name,
        kernel.in_order({operand.name: operand for operand in listed}),
        flops_per_row=row.flops, bytes_fixed=fixed.bytes,
        made_copies=name_to_copies.get(op.outputs[0].name, 0),
        read_copies=name_to_copies.get(op.inputs[0].name, 0),
    )  # fmt: skip


def _next_linear(graph: Graph) -> dict[str, Op]:
    """The linear op behind each, by its output's name; behind the last one the first."""
    ops = [op for op in graph.ops if op.kind in LINEAR_KINDS]
    return {op.outputs[0].name: after for op, after in zip(ops, ops[1:] + ops[:1], strict=True)}


def _fetched_next(op: Op, at: OperandPlaces) -> list[Operand]:
    """What a linear layer that is done fetches of the next one."""
    weight = op.inputs[1].type
    size = panel_bytes(int(weight.shape[1]), weight.dtype)
    return [
        replace(_matrix(op, at), name="next_w"),
        Operand("next_panels", "immediate", _num_panels(op)),
        Operand("next_panel_bytes", "immediate", size),
    ]


def _fetched_ahead(errand: Errand, at: OperandPlaces, kv: KvLayout) -> list[Operand]:
    """What a linear layer fetches for an attention that comes soon."""
    return [
        at.input("blocks", "cached_blocks"),
        at.header("num_blocks", abi.HEADER_CACHED_BLOCKS),
        *at.cache(errand.layer),
        Operand("block_bytes", "immediate", kv.block_bytes_per_layer),
        Operand("fetch_from", "immediate", errand.fetch_from),
        Operand("fetch_to", "immediate", errand.fetch_to),
    ]


def _embedding(op: Op, at: OperandPlaces) -> list[Operand]:
    return [
        at.rows(op),
        at.input("tokens", "tokens"),
        at.matrix("table", op.inputs[1]),
        at.buffer("y", op.outputs[0]),
    ]


def _rms_norm(op: Op, at: OperandPlaces) -> list[Operand]:
    return [
        at.rows(op),
        at.buffer("x", op.inputs[0]),
        at.vector("weight", op.inputs[1]),
        at.buffer("y", op.outputs[0]),
    ]


def _quantize(op: Op, at: OperandPlaces) -> list[Operand]:
    return [at.rows(op), at.buffer("x", op.inputs[0]), at.buffer("y", op.outputs[0])]


def _gather_last(op: Op, at: OperandPlaces) -> list[Operand]:
    return [
        at.rows(op),
        at.buffer("x", op.inputs[0]),
        at.input("indices", "logit_rows"),
        at.buffer("y", op.outputs[0]),
        Operand("row_bytes", "immediate", at.buffer_row_bytes(op.outputs[0])),
    ]


def _rope_cache(op: Op, at: OperandPlaces) -> list[Operand]:
    qkv, _, cos, sin = op.inputs
    return [
        at.rows(op),
        at.buffer("qkv", qkv),
        at.input("positions", "positions"),
        at.input("slots", "slots"),
        at.table("cos", cos),
        at.table("sin", sin),
        at.buffer("q", op.outputs[0]),
        *at.cache(op.layer),
    ]


def _paged_attention(op: Op, at: OperandPlaces) -> list[Operand]:
    return [
        at.input("tiles", "tiles"),
        at.header("num_tiles", abi.HEADER_TILES),
        at.input("tables", "tables"),
        Operand("table_row", "immediate", at.input_row_elements("tables")),
        at.buffer("q", op.inputs[0]),
        *at.cache(op.layer),
        at.buffer("y", op.outputs[0]),
        at.shared_scratch("work"),
    ]


def _sample(op: Op, at: OperandPlaces) -> list[Operand]:
    settings = ("edits", "temperature", "top_k", "top_p", "min_p", "seed")
    return [
        at.rows(op),
        at.buffer("logits", op.inputs[0]),
        *(at.input(name, name) for name in settings),
        at.input("position", "sampled_positions"),
        at.buffer("tokens", op.outputs[0]),
        *_scratch(op, at),
    ]


def _scratch(op: Op, at: OperandPlaces) -> list[Operand]:
    """A thread's own memory: where it begins, and how much of it each thread has."""
    size = Operand("scratch_bytes", "immediate", _scratch_bytes(op))
    return [at.own_scratch("scratch"), size]


def _scratch_bytes(op: Op) -> int:
    """A row of f32 logits for sampling, a panel of prepared words for a coded layer."""
    if op.kind == "sample":
        return 4 * wide_row(int(op.inputs[0].type.shape[1]))
    if op.kind in LINEAR_KINDS:
        return prepared_bytes(int(op.inputs[1].type.shape[1]), op.inputs[1].type.dtype)
    return 0


def _linear(op: Op, at: OperandPlaces) -> list[Operand]:
    x, *weights = op.inputs
    matrix, bias = _matrix(op, at), None
    if has_bias(op) and op.kind == "linear_gated":
        bias = at.joined("bias", weights[2], weights[3])
    elif has_bias(op):
        bias = at.vector("bias", weights[1])
    return [
        at.rows(op),
        at.buffer("x", x),
        matrix,
        bias or Operand("bias", "immediate", 0),
        at.buffer("y", op.outputs[0]),
        Operand("y_row_bytes", "immediate", at.buffer_row_bytes(op.outputs[0])),
        Operand("panels", "immediate", _num_panels(op)),
        *(_scratch(op, at) if weights[0].type.dtype.is_coded else ()),
    ]


def _matrix(op: Op, at: OperandPlaces) -> Operand:
    is_gated = op.kind == "linear_gated"
    return at.joined("w", *op.inputs[1:3]) if is_gated else at.matrix("w", op.inputs[1])


def _num_panels(op: Op) -> int:
    num_outputs = int(op.inputs[1].type.shape[0])
    if op.kind == "linear_gated":
        num_outputs = 2 * round_up(num_outputs, LANES)
    return padded_n(num_outputs) // PANEL


# How an op's record is filled, by operand name.
_KIND_TO_OPERANDS: dict[str, Callable[[Op, OperandPlaces], list[Operand]]] = {
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "linear_residual": _linear,
    "linear_gated": _linear,
    "quantize": _quantize,
    "rope_cache": _rope_cache,
    "paged_attention": _paged_attention,
    "gather_last": _gather_last,
    "sample": _sample,
}
