"""Memory of a CPU step: the arena's buffers and the block of step inputs, each with its place.

In: a lowered-to graph and the limits. Out: `TensorSpec`s with offsets. An in-place op's output is
the same buffer as the input it overwrites; buffers share memory where their live ranges allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tidemill.base import abi
from tidemill.base.dtypes import DType
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.memory_plan import BufferRequest, plan_memory
from tidemill.builder.verify_memory_plan import verify_memory_plan
from tidemill.engine.manifest import TensorSpec
from tidemill.ir.graph import Graph, Op, Value
from tidemill.ops.layout import ATTENTION_CHUNK, activation_row, round_up, wide_row
from tidemill.ops.linear import LINEAR_KINDS
from tidemill.ops.table import OPS

# Ops whose output a linear layer or attention reads, as rows of activations.
_ACTIVATION_KINDS = ("rms_norm", "quantize", "linear_gated", "rope_cache", "paged_attention")


def place_buffers(graph: Graph, config: BuildConfig) -> tuple[dict[str, TensorSpec], int]:
    """Place every op's output in the arena; returns specs by value name, and the arena's bytes."""
    owner = _owners(graph)
    specs: dict[str, TensorSpec] = {}
    for op in graph.ops:
        for value in op.outputs:
            specs[value.name] = _spec(op, value, config, specs)
    first, last = _live_ranges(graph, owner)
    requests = [
        BufferRequest(root, specs[root].size_bytes, first[root], last[root]) for root in first
    ]
    plan = plan_memory(requests)
    verify_memory_plan(requests, plan)
    placed = {
        name: replace(
            spec,
            offset_bytes=plan.offsets[owner[name]],
            first_op=first[owner[name]],
            last_op=last[owner[name]],
        )
        for name, spec in specs.items()
    }
    return placed, plan.total_bytes


def find_copied(graph: Graph) -> frozenset[str]:
    """Names of values of which each thread may make a copy: what only linear layers multiply."""
    read_otherwise = {value.name for value in graph.outputs}
    for op in graph.ops:
        others = op.inputs[1:] if op.kind in LINEAR_KINDS else op.inputs
        read_otherwise |= {value.name for value in others}
    made = {op.outputs[0].name for op in graph.ops if op.kind in ("rms_norm", "quantize")}
    return frozenset(made - read_otherwise)


def most_rows(value: Value, config: BuildConfig) -> int:
    """The rows that a buffer has room for."""
    return {"T": config.max_num_tokens, "L": config.max_batch_size}[str(value.type.shape[0])]


def _live_ranges(graph: Graph, owner: dict[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    """First and last op that touches each buffer; the graph's outputs live to the end.

    Behind an op that makes copies no thread waits for others, which may still read what it read.
    """
    copied = find_copied(graph)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        for value in (*op.inputs, *op.outputs):
            if value.name in owner:
                root = owner[value.name]
                first.setdefault(root, index)
                last[root] = index + (op.outputs[0].name in copied)
    for value in graph.outputs:
        last[owner[value.name]] = len(graph.ops) - 1
    return first, last


def place_inputs(config: BuildConfig) -> tuple[dict[str, TensorSpec], int]:
    """Place the step's inputs in one block; returns specs by name, and the block's bytes."""
    # The last chunk of attention may look past the last block: those entries stay zero.
    table_row = round_up(config.max_seq_len, ATTENTION_CHUNK) // config.tokens_per_block + 1
    num_listed_blocks = min(abi.MOST_CACHED_BLOCKS, config.max_batch_size * table_row)
    shapes = [
        ("header", DType.I64, "1", abi.HEADER_WORDS, 1),
        ("tokens", DType.I32, "T", config.max_num_tokens, 1),
        ("positions", DType.I32, "T", config.max_num_tokens, 1),
        ("slots", DType.I32, "T", config.max_num_tokens, 1),
        ("tiles", DType.I32, "T", config.max_num_tokens, abi.TILE_WORDS),
        ("tables", DType.I32, "S", config.max_batch_size, table_row),
        ("cached_blocks", DType.I32, "S", num_listed_blocks, 1),
        ("logit_rows", DType.I32, "L", config.max_batch_size, 1),
        ("edits", DType.I64, "L", config.max_batch_size, abi.EDIT_WORDS),
        ("temperature", DType.F32, "L", config.max_batch_size, 1),
        ("top_k", DType.I32, "L", config.max_batch_size, 1),
        ("top_p", DType.F32, "L", config.max_batch_size, 1),
        ("min_p", DType.F32, "L", config.max_batch_size, 1),
        ("seed", DType.I64, "L", config.max_batch_size, 1),
        ("sampled_positions", DType.I64, "L", config.max_batch_size, 1),
    ]
    specs, offset = {}, 0
    for name, dtype, symbol, rows, columns in shapes:
        size = rows * columns * dtype.itemsize_bytes
        specs[name] = TensorSpec(name, dtype, symbol, columns, columns, offset, size)
        offset += round_up(size, 64)
    return specs, offset


def _owners(graph: Graph) -> dict[str, str]:
    """Value name -> name of the value whose buffer it lives in."""
    owner: dict[str, str] = {}
    for op in graph.ops:
        inplace = OPS[op.kind].inplace
        for index, value in enumerate(op.outputs):
            is_inplace = index in inplace
            owner[value.name] = owner[op.inputs[inplace[index]].name] if is_inplace else value.name
    return owner


def _spec(op: Op, value: Value, config: BuildConfig, specs: Mapping[str, TensorSpec]) -> TensorSpec:
    """A value's shape in memory; its place is filled in later."""
    dtype, rows = value.type.dtype, str(value.type.shape[0])
    columns = int(value.type.shape[1]) if len(value.type.shape) > 1 else 1
    if len(value.type.shape) == 1:
        row = 1
    elif op.kind == "gather_last":  # copies rows as they are
        row = specs[op.inputs[0].name].row_elements
    elif op.kind in _ACTIVATION_KINDS:
        row = activation_row(columns, dtype)
    else:
        row = wide_row(columns)
    size_bytes = most_rows(value, config) * row * dtype.itemsize_bytes
    return TensorSpec(value.name, dtype, rows, columns, row, 0, size_bytes)
