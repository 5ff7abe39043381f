"""Times what a user waits for before anything happens: `import tidemill` and `tidemill --help`.

Checks the answer first (help lists the verbs), then times whole processes, warm. Prints one JSON
line for each, with interpreter start-up included and the bare interpreter as baseline. Units:
milliseconds.
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line, spread

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
    parser_of(__doc__).parse_args()
    shown = subprocess.run(
        [sys.executable, *COMMANDS["tidemill --help"]], check=True, capture_output=True, text=True
    )
    assert "convert" in shown.stdout, shown.stdout
    for name, arguments in COMMANDS.items():
        time_ms(arguments)
        times_ms = [time_ms(arguments) for _ in range(NUM_RUNS)]
        print_line("startup", what=name, ms=spread(times_ms, 1))


if __name__ == "__main__":
    main()
