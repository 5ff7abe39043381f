"""Describes an open engine, one view at a time: as facts for machines and as text for people.

In: an `EngineFile`; out: JSON-ready values, or tables drawn in ASCII. Reads only the manifest and
the config: no weight is touched. Knows nothing of how kernels work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tidemill.engine.format import SECTION_NAMES
from tidemill.engine.manifest import Manifest, PlanOp, TensorSpec
from tidemill.engine.native_code import runs_own_code
from tidemill.engine.reader import EngineFile

_PICTURE_COLUMNS = 64


@dataclass(frozen=True)
class View:
    """One way to look at an engine."""

    facts: Callable[[EngineFile], object]
    text: Callable[[EngineFile], str]


def bytes_text(num_bytes: float) -> str:
    """Return a size as people read it: exact bytes below 10 KiB, then three digits and a unit."""
    if num_bytes < 10 * 1024:
        return f"{num_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        num_bytes /= 1024
        if num_bytes < 1024 or unit == "GiB":
            break
    return f"{num_bytes:.3g} {unit}" if num_bytes < 1000 else f"{num_bytes:.0f} {unit}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Draw rows in columns, the first row being the heading; numbers align to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def live_at_once_bytes(buffers: Sequence[TensorSpec]) -> int:
    """Return the most bytes that are live at one op: no arena can be smaller.

    Buffers that are updated in place share theirs under several names; such bytes count once.
    """
    ops = {buffer.first_op for buffer in buffers}
    return max(
        (without_reuse_bytes([b for b in buffers if b.first_op <= op <= b.last_op]) for op in ops),
        default=0,
    )


def without_reuse_bytes(buffers: Sequence[TensorSpec]) -> int:
    """Return the bytes of all buffers, those that share a place at the same time counted once."""
    place_to_bytes = {(b.offset_bytes, b.first_op, b.last_op): b.size_bytes for b in buffers}
    return sum(place_to_bytes.values())


def _summary_facts(engine: EngineFile) -> dict[str, Any]:
    manifest, pretrained = engine.manifest, engine.config.get("pretrained_config", {})
    return {
        "path": str(engine.path),
        "model": manifest.model_name,
        "architecture": pretrained.get("architecture", ""),
        "dtype": pretrained.get("dtype", ""),
        "rank": manifest.rank,
        "world_size": manifest.world_size,
        "tidemill_version": manifest.tidemill_version,
        "format_version": manifest.format_version,
        "source_checkpoint": manifest.source_checkpoint,
        "source_hash": manifest.source_hash,
        "target": manifest.code.target,
        "cpu_features": list(manifest.code.cpu_features),
        "compiler": manifest.code.compiler,
        "build_config": engine.config.get("build_config", {}),
        "chosen_by": manifest.chosen_by,
        "num_plan_ops": len(manifest.plan),
        "num_kernels": len({op.kernel for op in manifest.plan}),
        "sizes_bytes": _total_sizes(manifest),
        "kv_cache_bytes_per_token": manifest.kv.bytes_per_token,
        "kv_cache_dtype": manifest.kv.dtype.value,
        "tokens_per_block": manifest.kv.tokens_per_block,
    }


def _total_sizes(manifest: Manifest) -> dict[str, int]:
    sizes = {name: manifest.sections[name].size_bytes for name in SECTION_NAMES}
    return {
        **sizes,
        "arena": manifest.arena_bytes,
        "scratch_per_thread": manifest.scratch_bytes_per_thread,
        "scratch_shared": manifest.shared_scratch_bytes,
    }


def _summary_text(engine: EngineFile) -> str:
    facts = _summary_facts(engine)
    sizes = facts["sizes_bytes"]
    lines = [
        ("engine", facts["path"]),
        ("model", f"{facts['model']} ({facts['architecture']}, {facts['dtype']})"),
        ("rank", f"{facts['rank']} of {facts['world_size']}"),
        ("built by", f"tidemill {facts['tidemill_version']}, format {facts['format_version']}"),
        ("built from", f"{facts['source_checkpoint']} ({facts['source_hash'][:12]})"),
        ("target", f"{facts['target']} ({facts['compiler']})"),
        ("needs", ", ".join(facts["cpu_features"]) or "nothing beyond the target's base"),
        ("plan", f"{facts['num_plan_ops']} native calls of {facts['num_kernels']} kernels"),
        ("weights", f"{bytes_text(sizes['weights'])}, mapped at load"),
        ("code", bytes_text(sizes["code"])),
        ("arena", bytes_text(sizes["arena"])),
        (
            "scratch",
            f"{bytes_text(sizes['scratch_per_thread'])} for each thread, up to "
            f"{bytes_text(sizes['scratch_shared'])} shared",
        ),
        (
            "KV cache",
            f"{bytes_text(facts['kv_cache_bytes_per_token'])} for each token "
            f"({facts['kv_cache_dtype']}, blocks of {facts['tokens_per_block']} tokens)",
        ),
    ]
    settings = [("build value", "is", "chosen by")]
    for name, value in facts["build_config"].items():
        shown = value if isinstance(value, str) else json.dumps(value)
        settings.append((name, shown, facts["chosen_by"].get(name, "-")))
    head = "\n".join(f"{name + ':':<11} {value}" for name, value in lines)
    return f"{head}\n\n{table(settings)}"


def _plan_facts(engine: EngineFile) -> object:
    return [
        {"index": index, **msgspec.to_builtins(op), "flops_per_byte_one_row": _intensity(op)}
        for index, op in enumerate(engine.manifest.plan)
    ]


def _intensity(op: PlanOp) -> float:
    return op.flops_per_row / op.bytes_fixed if op.bytes_fixed else 0.0


def _plan_text(engine: EngineFile) -> str:
    rows = [("op", "layer", "kind", "kernel", "FLOP/row", "bytes", "FLOP/B", "output", "operands")]
    for index, op in enumerate(engine.manifest.plan):
        operands = " ".join(
            f"{o.name}={o.value}" if o.space == "immediate" else f"{o.name}={o.space}+{o.value:#x}"
            for o in op.operands
        )
        layer = str(op.layer) if op.layer >= 0 else ""
        rows.append((str(index), layer, op.op, op.kernel, *_cost_cells(op), op.output, operands))
    return (
        f"{table(rows)}\n\n{table(_kind_totals(engine.manifest.plan))}\n"
        "FLOP/row: for each row of activations; bytes: read whatever the number of rows;\n"
        "FLOP/B: arithmetic intensity with one row (multiply by the rows of the step)."
    )


def _cost_cells(op: PlanOp) -> tuple[str, str, str]:
    intensity = f"{_intensity(op):.2f}" if op.bytes_fixed else ""
    return f"{op.flops_per_row:.3g}", f"{op.bytes_fixed:.0f}", intensity


def _kind_totals(plan: Sequence[PlanOp]) -> list[tuple[str, ...]]:
    kinds = sorted({op.op for op in plan})
    groups = {**{kind: [op for op in plan if op.op == kind] for kind in kinds}, "all": plan}
    rows: list[tuple[str, ...]] = [("kind", "calls", "kernels", "FLOP/row", "bytes")]
    for name, ops in groups.items():
        flops, fixed = sum(op.flops_per_row for op in ops), sum(op.bytes_fixed for op in ops)
        kernels = len({op.kernel for op in ops})
        rows.append((name, str(len(ops)), str(kernels), f"{flops:.3g}", f"{fixed:.0f}"))
    return rows


def _memory_facts(engine: EngineFile) -> object:
    manifest = engine.manifest
    return {
        "arena_bytes": manifest.arena_bytes,
        "live_at_once_bytes": live_at_once_bytes(manifest.buffers),
        "buffers": msgspec.to_builtins(manifest.buffers),
    }


def _memory_text(engine: EngineFile) -> str:
    manifest = engine.manifest
    num_ops = max(len(manifest.plan), 1)
    rows = [("buffer", "type", "offset", "bytes", "live ops", "|" + "op 0".ljust(_PICTURE_COLUMNS))]
    for buffer in sorted(manifest.buffers, key=lambda b: (b.offset_bytes, b.first_op)):
        kind = f"{buffer.dtype.value}[{buffer.rows}, {buffer.columns}]"
        live = f"{buffer.first_op}..{buffer.last_op}" if buffer.first_op >= 0 else "-"
        place = (str(buffer.offset_bytes), str(buffer.size_bytes), live)
        rows.append((buffer.name, kind, *place, f"|{_bar(buffer, num_ops)}|"))
    rows[0] = (*rows[0][:-1], f"|op 0{f'op {num_ops - 1}':>{_PICTURE_COLUMNS - 4}}|")
    bound = live_at_once_bytes(manifest.buffers)
    return (
        f"arena: {manifest.arena_bytes} bytes; live at once: {bound} bytes (no plan is smaller); "
        f"without reuse: {without_reuse_bytes(manifest.buffers)} bytes\n\n{table(rows)}"
    )


def _bar(buffer: TensorSpec, num_ops: int) -> str:
    """Draw [first_op, last_op] on a line that stands for all ops; always at least one mark."""
    if buffer.first_op < 0:
        return " " * _PICTURE_COLUMNS
    start = min(buffer.first_op * _PICTURE_COLUMNS // num_ops, _PICTURE_COLUMNS - 1)
    end = min(-(-(buffer.last_op + 1) * _PICTURE_COLUMNS // num_ops), _PICTURE_COLUMNS)
    return (" " * start + "#" * max(end - start, 1)).ljust(_PICTURE_COLUMNS)


def _tactics_facts(engine: EngineFile) -> object:
    return msgspec.to_builtins(engine.manifest.tactics)


def _tactics_text(engine: EngineFile) -> str:
    if not engine.manifest.tactics:
        return "no tactics are recorded: every kernel has one form for this target"
    rows = [
        (
            "op", "shape", "rows up to", "choice", "chosen by",
            "Mflop", "kB", "measured us", "roofline",
        )
    ]  # fmt: skip
    for tactic in engine.manifest.tactics:
        is_measured = bool(tactic.measured_us)
        rows.append(
            (
                tactic.op, tactic.shape, str(tactic.max_rows or "any"), tactic.choice,
                tactic.chosen_by, f"{tactic.flops / 1e6:.1f}", f"{tactic.bytes / 1e3:.0f}",
                f"{tactic.measured_us:.1f}" if is_measured else "-",
                f"{tactic.roofline_share:.0%}" if is_measured else "-",
            )
        )  # fmt: skip
    if runs_own_code(engine):
        return table(rows)
    return (
        f"Chosen for {engine.manifest.code.target}. On this CPU the engine runs code that is "
        f"compiled as it loads, with the shipped choices for this CPU instead.\n\n{table(rows)}"
    )


def _sizes_facts(engine: EngineFile) -> object:
    return {
        "totals_bytes": _total_sizes(engine.manifest),
        "weights": msgspec.to_builtins(engine.manifest.weights),
    }


def _sizes_text(engine: EngineFile) -> str:
    totals = [("part", "bytes", "")]
    totals += [
        (name, str(size), bytes_text(size)) for name, size in _total_sizes(engine.manifest).items()
    ]
    weights = [("weight", "offset", "bytes")]
    weights += [(w.name, str(w.offset_bytes), str(w.size_bytes)) for w in engine.manifest.weights]
    return f"{table(totals)}\n\n{table(weights)}"


VIEWS = {
    "summary": View(_summary_facts, _summary_text),
    "graph": View(lambda e: {"graph": e.manifest.graph_text}, lambda e: e.manifest.graph_text),
    "plan": View(_plan_facts, _plan_text),
    "memory": View(_memory_facts, _memory_text),
    "tactics": View(_tactics_facts, _tactics_text),
    "sizes": View(_sizes_facts, _sizes_text),
    "config": View(lambda e: e.config, lambda e: json.dumps(e.config, indent=2)),
}
