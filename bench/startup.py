"""Times what a user waits for before anything happens: `import tidemill` and `tidemill --help`.

Checks the answer first (help lists the verbs), then times whole processes, warm. Prints one JSON
line for each, with interpreter start-up included and the bare interpreter as baseline. Units:
milliseconds.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time

NUM_RUNS = 15
COMMANDS = {
    "bare interpreter": ["-c", "pass"],
    "import tidemill": ["-c", "import tidemill"],
    "tidemill --help": ["-m", "tidemill", "--help"],
}


def time_ms(arguments: list[str]) -> float:
    """Run the interpreter once and return how long the process took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Check, warm up, time, print."""
    shown = subprocess.run(
        [sys.executable, *COMMANDS["tidemill --help"]], check=True, capture_output=True, text=True
    )
    assert "convert" in shown.stdout, shown.stdout
    for name, arguments in COMMANDS.items():
        time_ms(arguments)
        deciles = statistics.quantiles([time_ms(arguments) for _ in range(NUM_RUNS)], n=10)
        line = {
            "bench": "startup",
            "what": name,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "median_ms": round(deciles[4], 1),
            "p10_ms": round(deciles[0], 1),
            "p90_ms": round(deciles[8], 1),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
