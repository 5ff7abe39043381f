"""Results as markdown: every figure, then our best against the best peer of the same precision."""

from __future__ import annotations

from collections.abc import Sequence

from bench.peers.engines import PRECISIONS, EngineRow
from bench.peers.results import Results

CASES = (
    "prefill 512", "prefill 2048", "decode @128", "decode @1024", "batch 8", "batch 32", "trace",
    "cold",
)  # fmt: skip
LESS_IS_BETTER = ("cold",)
# Issue 5's targets: ours over the best peer's, by model, precision and case.
_SMALL = {"decode @128": 1.5, "prefill 512": 1.15, "prefill 2048": 1.15, "cold": 1.0}
_SMALL |= {"batch 8": 2.0, "batch 32": 2.0, "trace": 2.0}
_LARGE = {"decode @128": 1.15, "prefill 512": 1.0, "prefill 2048": 1.0, "cold": 1.0}
_LARGE |= {"batch 8": 1.3, "batch 32": 1.3, "trace": 1.3}
TARGETS: dict[tuple[str, str], dict[str, float]] = {
    ("smollm2", "bf16"): _SMALL,
    ("smollm2", "8-bit"): _SMALL | {"decode @128": 3.0},
    ("smollm2", "4-bit"): {"decode @128": 3.0},
    ("llama-1.1b", "bf16"): _LARGE,
    ("llama-1.1b", "8-bit"): _LARGE | {"decode @128": 1.3, "prefill 512": 1.1, "prefill 2048": 1.1},
    ("llama-1.1b", "4-bit"): {"decode @128": 1.3},
}

Medians = dict[EngineRow, dict[str, float]]


def table(results: Results) -> str:
    """Return both tables of every model, and what the reader must know of them."""
    parts = [
        f"{', '.join(sorted(results.machines))}; {', '.join(sorted(results.days))}; commits "
        f"{', '.join(sorted(results.commits))}; medians, tokens/s (cold: s)"
    ]
    for model in results.models:
        medians = results.medians(model)
        parts.append(_markdown((model, *CASES), _figures(medians)))
        parts.append(_markdown((f"{model}: ours / best peer", *CASES), _ratios(model, medians)))
    if results.engine_to_version:
        versions = sorted(set(results.engine_to_version.values()))
        parts.append("Versions: " + "; ".join(versions) + ".")
    for each in results.absences.values():
        parts.append(f"Absent: {each.engine} on {each.model} ({each.reason}).")
    return "\n\n".join(parts)


def _figures(medians: Medians) -> list[Sequence[str]]:
    return [
        (row.name, *(_figure(cases.get(case)) for case in CASES)) for row, cases in medians.items()
    ]


def _ratios(model: str, medians: Medians) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for precision in PRECISIONS:
        cells = [_ratio(model, precision, case, medians) for case in CASES]
        if any(cells):
            rows.append((precision, *cells))
    return rows


def _ratio(model: str, precision: str, case: str, medians: Medians) -> str:
    """Return our best over the best peer's, who that is, and the target where it is missed."""
    found = {
        row: cases[case]
        for row, cases in medians.items()
        if row.precision == precision and case in cases
    }
    best = min if case in LESS_IS_BETTER else max
    ours = [value for row, value in found.items() if row.is_ours]
    peers = {row: value for row, value in found.items() if not row.is_ours}
    if not ours or not peers:
        return ""
    peer = best(peers, key=lambda row: peers[row])
    ratio = best(ours) / peers[peer]
    if case in LESS_IS_BETTER:
        ratio = 1 / ratio
    target = TARGETS.get((model, precision), {}).get(case)
    missed = f", target {target}" if target and ratio < target else ""
    return f"{ratio:.2f} ({peer.name.split()[0]}{missed})"


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
