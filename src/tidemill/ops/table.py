"""The table of ops: every kind that a graph may contain, and its row.

An op's package under `ops/` without an entry here, or an entry without its parts, fails at import
with the op's name.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping, Sequence

import tidemill.ops
from tidemill.ops.add import ROW as ADD
from tidemill.ops.attention import ROW as ATTENTION
from tidemill.ops.embedding import ROW as EMBEDDING
from tidemill.ops.gather_last import ROW as GATHER_LAST
from tidemill.ops.linear import ROW as LINEAR
from tidemill.ops.linear_gated import ROW as LINEAR_GATED
from tidemill.ops.linear_residual import ROW as LINEAR_RESIDUAL
from tidemill.ops.mul import ROW as MUL
from tidemill.ops.paged_attention import ROW as PAGED_ATTENTION
from tidemill.ops.quantize import ROW as QUANTIZE
from tidemill.ops.rms_norm import ROW as RMS_NORM
from tidemill.ops.rope import ROW as ROPE
from tidemill.ops.rope_cache import ROW as ROPE_CACHE
from tidemill.ops.row import OpRow
from tidemill.ops.sample import ROW as SAMPLE
from tidemill.ops.silu import ROW as SILU


def tabulate(rows: Sequence[OpRow], packages: Iterable[str]) -> Mapping[str, OpRow]:
    """Index rows by kind.

    Raises: ImportError when a package has no row, or a row no package of its name.
    """
    table = {row.kind: row for row in rows}
    odd = sorted(set(packages) ^ set(table))
    if odd:
        raise ImportError(f"ops/{odd[0]}/ and the row '{odd[0]}' of ops/table.py: one is missing")
    return table


OPS: Mapping[str, OpRow] = tabulate(
    (
        EMBEDDING,
        RMS_NORM,
        LINEAR,
        ROPE,
        ATTENTION,
        SILU,
        MUL,
        ADD,
        GATHER_LAST,
        SAMPLE,
        LINEAR_RESIDUAL,
        LINEAR_GATED,
        ROPE_CACHE,
        PAGED_ATTENTION,
        QUANTIZE,
    ),
    [module.name for module in pkgutil.iter_modules(tidemill.ops.__path__) if module.ispkg],
)
