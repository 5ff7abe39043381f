"""One short promise each, run before every commit: imports are cheap, the command answers."""

from __future__ import annotations

import subprocess
import sys

IMPORT_BUDGET_S = 0.15


def _fastest_run_s(code: str, runs: int = 3) -> float:
    """Return the shortest of several timed interpreter runs of `code`, start-up excluded."""
    timed = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    times = []
    for _ in range(runs):
        done = subprocess.run(
            [sys.executable, "-c", timed], capture_output=True, text=True, check=True
        )
        times.append(float(done.stdout.splitlines()[-1]))
    return min(times)


def test_importing_tidemill_stays_within_its_budget() -> None:
    assert _fastest_run_s("import tidemill") < IMPORT_BUDGET_S


def test_importing_tidemill_loads_no_third_party_package() -> None:
    code = (
        "import sys; before = set(sys.modules); import tidemill; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'tidemill'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
