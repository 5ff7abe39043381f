"""One JSON line for each result: where it was measured, and a sample's median, p10 and p90."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return median, p10 and p90, within what was seen; all the same where there is one value."""
    is_one = len(values) == 1
    deciles = [*values] * 9 if is_one else statistics.quantiles(values, n=10, method="inclusive")
    names = ("median", "p10", "p90")
    return {name: round(deciles[at], digits) for name, at in zip(names, (4, 0, 8), strict=True)}


def print_line(bench: str, **facts: Any) -> None:
    """Print one result with the commit and the machine that it belongs to."""
    print(
        json.dumps({"bench": bench, "commit": commit(), "machine": machine(), **facts}), flush=True
    )


def commit() -> str:
    """Return the commit that is checked out, and whether it was changed."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
