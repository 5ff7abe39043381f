"""Times this machine's engines side by side, on the same weights, threads, prompts and trace.

    python -m bench.peers.environments        once: each peer's environment, some gigabytes
    python -m bench.peers.models              once: the model's files for each of them
    python -m bench.peers --precision bf16 [--cases decode_@128 trace] [--results FILE]
    python -m bench.peers --table FILE...     one table of everything that the files hold

Engines of one precision are loaded together and take turns, A B C A B C, so that what disturbs the
machine disturbs all alike; each has answered prompts before it is timed. A peer that is not
installed is named in the table. Nothing else may run meanwhile. Figures: tokens per second, and
for `cold` seconds from the start of a process to its first token.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line
from bench.peers.cases import Case, all_cases
from bench.peers.engines import PRECISIONS, ROWS, EngineRow, peers_dir
from bench.peers.models import refresh_engine
from bench.peers.results import Absence, Results, Sample
from bench.peers.runner_process import Load, RunnerProcess, absence
from bench.peers.table import CASES, table

# "The capital of France is", in the sample's vocabulary.
CHECKED_PROMPT = [504, 3575, 282, 4649, 314]
CHECKED_TOKENS = 16
# Answered once before anything is timed: what engines do in their first steps is not their speed.
WARM_TOKENS = 128
# OpenMP's threads spin for 0.2 s after their last work, and would take a core from the next engine.
PAUSE_S = 0.3
COLD = "cold"


def main() -> None:
    """Load, check, time in turns, print."""
    options = read_options()
    results = Results()
    for path in options.table or ():
        results.read(path)
    if options.table is None:
        measure(options, results)
        if options.results is not None:
            results.write(options.results)
    print(table(results))
    if options.json is not None:
        options.json.write_text(results.to_json() + "\n", "utf-8")


def read_options() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="smollm2", help="smollm2 or llama-1.1b")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument(
        "--engines",
        nargs="+",
        metavar="NAME",
        choices=[row.name for row in ROWS],
        help="some of the precision's",
    )
    names = [case.replace(" ", "_") for case in CASES]
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="NAME",
        choices=names,
        help=f"default: all of {', '.join(names)}",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new_tokens", type=int, default=128, help="of decode and batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wait", action="store_true", help="load, then wait for a line on stdin")
    parser.add_argument(
        "--results", type=Path, help="file for the samples, written after each case"
    )
    parser.add_argument("--json", type=Path, help="write all samples and ratios to a file")
    parser.add_argument("--table", type=Path, nargs="+", help="only print what these files hold")
    return parser.parse_args()


def measure(options: argparse.Namespace, results: Results) -> None:
    """Start engines cold, one after another; then load all, run the rounds and fill the results."""
    results.note_run()
    model_dir = peers_dir() / "models" / options.model
    load = Load(options.threads, max_requests=32, max_tokens=1024)
    rows = present_rows(options, model_dir, results)
    wanted = [each.replace("_", " ") for each in options.cases or (COLD, *CASES)]
    for _ in range(options.rounds if COLD in wanted else 0):
        for row in rows:
            results.add(Sample(options.model, row, COLD, start_cold(row, model_dir, load)))
    cases = [case for name, case in all_cases(options.new_tokens).items() if name in wanted]
    if not cases:
        return
    engines = [RunnerProcess(row, model_dir, load) for row in rows]
    for engine in engines:
        results.note_version(engine.row, engine.loaded["version"])
        report_loaded(engine, check(engine, engines[0]))
    for engine in engines:
        engine.generate([CHECKED_PROMPT] * 2, [WARM_TOKENS] * 2)
    if options.wait:
        print("loaded: a line on stdin starts the rounds", flush=True)
        sys.stdin.readline()
    run_rounds(engines, cases, options, results)
    for engine in engines:
        engine.close()


def run_rounds(
    engines: list[RunnerProcess], cases: list[Case], options: argparse.Namespace, results: Results
) -> None:
    """Time every case on every engine; each round begins with another engine."""
    for turn in range(options.rounds):
        first, chance = turn % len(engines), random.Random(turn)
        for case in cases:
            for engine in engines[first:] + engines[:first]:
                rate = time_case(engine, case, chance)
                results.add(Sample(options.model, engine.row, case.name, rate))
            if options.results is not None:
                results.write(options.results)


def present_rows(options: argparse.Namespace, model_dir: Path, results: Results) -> list[EngineRow]:
    """Return the engines that can run; the others are noted."""
    rows = []
    for row in ROWS:
        if row.precision != options.precision or row.name not in (options.engines or [row.name]):
            continue
        if row.is_ours:
            refresh_engine(model_dir, row)
        reason = absence(row, model_dir)
        if reason:
            results.note_absence(Absence(options.model, row.name, reason))
            print(f"{row.name}: {reason}", file=sys.stderr)
        else:
            rows.append(row)
    return rows


def start_cold(row: EngineRow, model_dir: Path, load: Load) -> float:
    """Return the seconds from the start of a process to its first token, files in memory."""
    start = time.perf_counter()
    engine = RunnerProcess(row, model_dir, load)
    first = engine.generate([CHECKED_PROMPT], [1])
    seconds = time.perf_counter() - start
    engine.close()
    print_line(
        "peers",
        engine=row.name,
        what=COLD,
        seconds=round(seconds, 3),
        import_s=round(engine.loaded["import_s"], 3),
        load_s=round(engine.loaded["load_s"], 3),
        first_token_s=round(first["seconds"], 3),
    )
    return seconds


def check(engine: RunnerProcess, reference: RunnerProcess) -> int:
    """Return how many tokens of an answer are the reference's, counted from the first."""
    answers = [
        each.generate([CHECKED_PROMPT], [CHECKED_TOKENS])["first"] for each in (engine, reference)
    ]
    pairs = list(zip(*answers, strict=True))
    return next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))


def report_loaded(engine: RunnerProcess, num_equal: int) -> None:
    print_line(
        "peers",
        engine=engine.row.name,
        version=engine.loaded["version"],
        load_s=round(engine.loaded["import_s"] + engine.loaded["load_s"], 2),
        tokens_like_the_first_engine=f"{num_equal} of {CHECKED_TOKENS}",
    )


def time_case(engine: RunnerProcess, case: Case, chance: random.Random) -> float:
    def timed(prompts: list[list[int]], lengths: list[int]) -> float:
        time.sleep(PAUSE_S)
        return float(engine.generate(prompts, lengths)["seconds"])

    rate = case.measure(timed, chance)
    print_line("peers", engine=engine.row.name, what=case.name, tokens_per_s=round(rate, 1))
    return rate


if __name__ == "__main__":
    main()
