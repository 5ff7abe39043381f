"""The profile as a page of its own: a bar for each op of the step, in the order it ran.

In: a `ProfileReport`. Out: one HTML file without scripts or outside parts, to open or attach. A
bar's length is the op's time, its dark part the op's limit on this machine.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.base.errors import ConfigError

if TYPE_CHECKING:
    from tidemill.api.profile import OpTime, ProfileReport

BAR_PX, ROW_PX, LABEL_PX = 560, 18, 310
_STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em; color: #222; }
pre { font: 13px ui-monospace, monospace; }
svg text { font: 12px ui-monospace, monospace; fill: #222; }
.time { fill: #9dc3e6; } .limit { fill: #1f5c99; } .wait { fill: #f2c299; }
"""


def write_profile_page(report: ProfileReport, path: Path) -> None:
    """Write the page.

    Raises: ConfigError when the file cannot be written.
    """
    try:
        path.write_text(profile_page(report), "utf-8")
    except OSError as error:
        raise ConfigError(
            "the page cannot be written",
            where=str(path),
            expected="a file in a directory that exists",
            got=error.strerror or str(error),
            hint="choose another --html",
        ) from error


def profile_page(report: ProfileReport) -> str:
    """Return the page: the table, totals by kind as bars, then every op."""
    kinds = {
        f"{kind} x {len(ops)}": (
            sum(op.work_us for op in ops),
            sum(op.wait_us for op in ops),
            sum(op.limit_us for op in ops),
        )
        for kind, ops in report.by_kind.items()
    }
    ops = {_label(op): (op.work_us, op.wait_us, op.limit_us) for op in report.ops}
    title = escape(f"Tidemill profile: {report.title}")
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
            f"<pre>{escape(str(report))}</pre>",
            "<p>Light: time in microseconds; dark: the machine's limit; orange: waiting for "
            "other threads.</p><h2>By kind</h2>",
            _bars(kinds),
            "<h2>Every op, in order</h2>",
            _bars(ops),
            "</body></html>",
            "",
        ]
    )


def _label(op: OpTime) -> str:
    return f"{op.output} ({op.op})"


def _bars(label_to_us: dict[str, tuple[float, float, float]]) -> str:
    """Draw a bar for each label: time, then waiting; the limit lies over the time."""
    longest = max((work + wait for work, wait, _ in label_to_us.values()), default=0.0) or 1.0
    scale = BAR_PX / longest
    width, height = LABEL_PX + BAR_PX + 160, ROW_PX * len(label_to_us)
    parts = [f'<svg width="{width}" height="{height}" role="img">']
    for row, (label, (work, wait, limit)) in enumerate(label_to_us.items()):
        top = row * ROW_PX
        parts.append(f'<text x="0" y="{top + 13}">{escape(label)}</text>')
        parts.append(_bar("time", LABEL_PX, top + 2, work * scale, ROW_PX - 4))
        parts.append(_bar("wait", LABEL_PX + work * scale, top + 2, wait * scale, ROW_PX - 4))
        parts.append(_bar("limit", LABEL_PX, top + 6, min(limit, work) * scale, ROW_PX - 12))
        end = LABEL_PX + (work + wait) * scale + 6
        share = f", {limit / work:.0%}" if work else ""
        parts.append(f'<text x="{end:.1f}" y="{top + 13}">{work:.1f} us{share}</text>')
    return "\n".join([*parts, "</svg>"])


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}"/>'
    )
