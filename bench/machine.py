"""Prints what this machine can do: reading memory, products of bf16, int8 and f32, by threads.

The loops are `builder.machine_limits`; other benchmarks run them beside what they time. One JSON
line for each number of threads, the best of a few runs. Units: GB/s, G operations/s (a
multiplication and an addition are two).
"""

from __future__ import annotations

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line
from tidemill.api.step_limits import Rates
from tidemill.base.cpus import num_physical_cores
from tidemill.builder.machine_limits import MachineLimits

NUM_RUNS = 5


def main() -> None:
    """Measure on one thread and on all cores."""
    parser_of(__doc__).parse_args()
    for num_threads in sorted({1, num_physical_cores()}):
        limits = MachineLimits(num_threads)
        runs = [Rates.measure(limits) for _ in range(NUM_RUNS)]
        limits.close()
        best = {
            name: round(max(run.by_name[name] for run in runs) / 1e9, 1) for name in runs[0].by_name
        }
        print_line("machine", threads=num_threads, **best)


if __name__ == "__main__":
    main()
