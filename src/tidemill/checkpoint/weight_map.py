"""Weight maps: which source tensors make a checkpoint tensor, as rows of a table.

A row gives the target's name, the source names (more than one is joined on dimension 0, as for
queries, keys and values) and the order of the source's rows. Shapes and conditions come from the
table in `sharding`, so a map holds names only. `resolve` checks completeness both ways: every
target has its sources, every source is used, all shapes agree; all faults are listed at once.
Knows no architecture; those maps live with their models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.dtype_conversion import convert_into
from tidemill.checkpoint.file_bytes import Array
from tidemill.checkpoint.sharding import (
    EMBEDDING,
    LM_HEAD,
    NAME_TO_ROW,
    TensorRow,
    dim_sizes,
    expected_tensors,
    full_shape,
)
from tidemill.checkpoint.source import TensorSource

_READ_ELEMENTS = 1 << 16
_MAX_LISTED = 20


class RowOrder(Enum):
    """How the rows of a source tensor lie, compared with Hugging Face's order."""

    PLAIN = "plain"
    PAIRED_Q = "paired_q"  # rotary pairs adjacent (GGUF, Meta), by query heads
    PAIRED_K = "paired_k"  # the same, by key heads


@dataclass(frozen=True)
class WeightRule:
    """One target tensor and its sources; `{i}` stands for the layer index on both sides."""

    target: str
    sources: tuple[str, ...]
    orders: tuple[RowOrder, ...] = ()

    def __post_init__(self) -> None:
        assert self.target in NAME_TO_ROW, self.target
        assert len(self.orders) in (0, len(self.sources)), self.target


@dataclass(frozen=True)
class WeightMap:
    """The rules of one source format of one architecture; `ignored` are fnmatch patterns."""

    rules: tuple[WeightRule, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourcePart:
    """A source tensor that fills consecutive rows of a target."""

    name: str
    shape: tuple[int, ...]
    order: RowOrder


@dataclass(frozen=True)
class ResolvedTensor:
    """A target tensor with its checked sources."""

    name: str
    row: TensorRow
    shape: tuple[int, ...]
    parts: tuple[SourcePart, ...]


def resolve(
    weight_map: WeightMap, config: CheckpointConfig, source: TensorSource, where: str
) -> list[ResolvedTensor]:
    """Match a source's tensors with the targets that the config asks for.

    A source that already holds a tensor under the target's own name needs no rule for it.
    Raises: CheckpointError listing all missing, unused and wrongly shaped tensors.
    """
    available = set(source.names())
    rules = {rule.target: rule for rule in weight_map.rules}
    resolved = [
        _resolve_one(name, row, rules.get(row.name), config, available)
        for name, row in expected_tensors(config).items()
    ]
    wanted = {part.name: part for tensor in resolved for part in tensor.parts}
    missing = [name for name in wanted if name not in available]
    unused = sorted(
        name
        for name in available - set(wanted)
        if not any(fnmatchcase(name, pattern) for pattern in weight_map.ignored)
        and not _is_tied_copy(name, rules, config)
    )
    misshapen = [
        f"{part.name} has shape {source.shape(part.name)}, expected {part.shape}"
        for part in wanted.values()
        if part.name in available and source.shape(part.name) != part.shape
    ]
    if missing or unused or misshapen:
        raise _disagreement(where, missing, unused, misshapen)
    return resolved


def _resolve_one(
    name: str,
    row: TensorRow,
    rule: WeightRule | None,
    config: CheckpointConfig,
    available: set[str],
) -> ResolvedTensor:
    shape = full_shape(row, config)
    layer = name.split(".")[2] if "{i}" in row.name else ""
    if rule is None or name in available:
        return ResolvedTensor(name, row, shape, (SourcePart(name, shape, RowOrder.PLAIN),))
    sizes = dim_sizes(config)
    num_rows = [shape[0]] if len(rule.sources) == 1 else [sizes["Q"], sizes["K"], sizes["K"]]
    if row.dims[0] == "QKV" and len(rule.sources) == 1:
        num_rows = [sizes["QKV"]]
    orders = rule.orders or (RowOrder.PLAIN,) * len(rule.sources)
    parts = tuple(
        SourcePart(pattern.replace("{i}", layer), (rows, *shape[1:]), order)
        for pattern, rows, order in zip(rule.sources, num_rows, orders, strict=True)
    )
    return ResolvedTensor(name, row, shape, parts)


def _is_tied_copy(name: str, rules: dict[str, WeightRule], config: CheckpointConfig) -> bool:
    """Some files of tied models carry the head all the same; it is then a copy."""
    head = rules.get(LM_HEAD)
    head_names = (LM_HEAD, *(head.sources if head is not None else ()))
    return config.tie_word_embeddings and name in head_names


def _disagreement(
    where: str, missing: list[str], unused: list[str], misshapen: list[str]
) -> CheckpointError:
    parts = [
        f"{len(names)} {state}: {'; '.join(names[:_MAX_LISTED])}"
        + (f"; and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")
        for state, names in (
            ("missing", missing),
            ("not used", unused),
            ("of wrong shape", misshapen),
        )
        if names
    ]
    return CheckpointError(
        "tensors disagree with the config",
        where=where,
        expected="exactly the tensors of the architecture, in the config's shapes",
        got="\n    ".join(parts),
        hint="is config.json of this model? for other names give a --weight_map; a shape that is "
        "a fraction of the expected one means: already split for tensor parallelism",
    )


def load(
    tensor: ResolvedTensor, source: TensorSource, target: DType, config: CheckpointConfig
) -> Array:
    """Read a target tensor in the asked type, rows in Hugging Face's order.

    Reads in slices of rows, so that wide temporaries stay small beside the tensor.
    """
    out = np.empty(tensor.shape, dtype=target.storage_name)
    start = 0
    for part in tensor.parts:
        piece = out[start : start + part.shape[0]]
        start += part.shape[0]
        _read_part(piece, part, source, target)
        if part.order is not RowOrder.PLAIN:
            is_query = part.order is RowOrder.PAIRED_Q
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            piece[...] = unpair_rotary_rows(piece, heads)
    return out


def _read_part(out: Array, part: SourcePart, source: TensorSource, target: DType) -> None:
    dtype = source.dtype(part.name)
    row_elements = max(1, int(np.prod(part.shape[1:])))
    is_sliced = source.has_cheap_rows(part.name)
    step = max(1, _READ_ELEMENTS // row_elements) if is_sliced else part.shape[0]
    for start in range(0, part.shape[0], step):
        stop = min(start + step, part.shape[0])
        rows = source.read_rows(part.name, start, stop)
        convert_into(out[start:stop], target, rows, dtype, part.name)


def unpair_rotary_rows(rows: Array, num_heads: int) -> Array:
    """Undo the interleaving of each head's two rotary halves that llama.cpp applies.

    Shapes: rows (heads * width, ...). Row 2j of a head becomes row j, row 2j + 1 becomes row
    width / 2 + j.
    """
    head_size = rows.shape[0] // num_heads
    paired = rows.reshape(num_heads, head_size // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)


def settle_tie(
    config: CheckpointConfig, weight_map: WeightMap, source: TensorSource, is_stated: bool
) -> CheckpointConfig:
    """Decide whether the head is the embedding, where config and tensors may disagree.

    A config that does not say is tied when the head is absent. One that says tied, beside a
    head that differs from the embedding, is untied, as in transformers.
    """
    rules = {rule.target: rule for rule in weight_map.rules}
    names = source.names()
    head, embedding = (
        next((name for name in (target, rules[target].sources[0]) if name in names), None)
        for target in (LM_HEAD, EMBEDDING)
    )
    if head is None:
        return config if is_stated else replace(config, tie_word_embeddings=True)
    if embedding is None or not config.tie_word_embeddings:
        return config
    return replace(config, tie_word_embeddings=_are_equal(source, head, embedding))


def _are_equal(source: TensorSource, first: str, second: str) -> bool:
    if source.shape(first) != source.shape(second) or source.dtype(first) != source.dtype(second):
        return False
    num_rows, step = source.shape(first)[0], 4096
    return all(
        source.read_rows(first, start, min(start + step, num_rows)).tobytes()
        == source.read_rows(second, start, min(start + step, num_rows)).tobytes()
        for start in range(0, num_rows, step)
    )
