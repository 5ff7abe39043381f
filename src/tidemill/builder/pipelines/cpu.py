"""The CPU pipeline: from the graph as drawn to ops that have a CPU kernel, as a plain list.

In: a graph. Out: a graph of `CPU_KINDS` only, or an error that lists every op without a kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.base.errors import UnsupportedError
from tidemill.builder.pass_contract import Pass, run_passes
from tidemill.builder.passes.dead_code import DeadCode
from tidemill.builder.passes.fuse_linear_gated import FuseLinearGated
from tidemill.builder.passes.fuse_linear_residual import FuseLinearResidual
from tidemill.builder.passes.fuse_norm_quantize import FuseNormQuantize
from tidemill.builder.passes.fuse_rope_cache import FuseRopeCache
from tidemill.builder.passes.hoist_gather import HoistGather
from tidemill.builder.passes.pad_heads import PadHeads
from tidemill.builder.passes.quantize_cache import QuantizeCache
from tidemill.builder.passes.quantize_linears import QuantizeLinears
from tidemill.ir.checker import describe_op
from tidemill.ir.graph import Graph
from tidemill.quant.schemes import NO_QUANTIZATION, Quantization


def cpu_passes(quantization: Quantization) -> tuple[Pass, ...]:
    """List the passes in order."""
    return (
        DeadCode(),
        PadHeads(),
        HoistGather(),
        QuantizeCache(quantization.cache),
        QuantizeLinears(quantization),
        FuseNormQuantize(),
        FuseRopeCache(),
        FuseLinearGated(),
        FuseLinearResidual(),
    )


CPU_KINDS = (
    "embedding",
    "rms_norm",
    "linear",
    "linear_residual",
    "linear_gated",
    "quantize",
    "rope_cache",
    "paged_attention",
    "gather_last",
    "sample",
)


def run_cpu_pipeline(
    graph: Graph,
    quantization: Quantization = NO_QUANTIZATION,
    observe: Callable[[str, Graph, bool], None] | None = None,
) -> Graph:
    """Rewrite a graph for the CPU; `observe` sees what `run_passes` shows it.

    Raises: BuildError when a pass breaks the graph; UnsupportedError for ops without a kernel.
    """
    graph = run_passes(graph, cpu_passes(quantization), observe)
    left = [describe_op(at, op) for at, op in enumerate(graph.ops) if op.kind not in CPU_KINDS]
    if left:
        raise UnsupportedError(
            f"{len(left)} op(s) have no CPU kernel",
            where=f"graph '{graph.name}'",
            expected="after fusion, only " + ", ".join(CPU_KINDS),
            got="; ".join(left),
            hint="this model joins its layers in a way that no pass fuses yet",
        )
    return graph
