"""The bench verb: flags to a BenchRequest, then one library call.

The report is under the names of TensorRT-LLM's benchmark; knows nothing of how it is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tidemill.frontends.cli.progress_bar import progress_bar
from tidemill.frontends.cli.session_flags import read_session, takes_settings
from tidemill.frontends.cli.shell import as_plain, check_choice, given, print_json, say

MODES = ("throughput", "latency", "trace")

HELP = """Measure an engine: throughput, latency, or a trace of arrivals.

throughput asks everything at once, latency one request after the other, trace at the moments the
dataset says. A dataset is JSON lines, {"task_id": 0, "input_ids": [1, 2] or "prompt": "text",
"output_tokens": 64}, or one JSON object, {"seed": 1, "requests": [{"prompt_len": 9 or "prompt_ids":
[1, 2], "output_len": 64, "arrival_ms": 250}]}. Answers run to their full length.

\b
Examples:
  tidemill bench throughput --engine_dir ./engine --num_requests 64 --input_len 128 --output_len 64
  tidemill bench latency --engine_dir ./engine --num_requests 4 --json
  tidemill bench trace --engine_dir ./engine --dataset trace.json --report_json report.json
"""


@takes_settings
def bench(
    mode: Annotated[str, typer.Argument(help="throughput, latency or trace.")],
    engine_dir: Annotated[Path, typer.Option("--engine_dir", help="Engine that build wrote.")],
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="File of requests; without, they are drawn.")
    ] = None,
    num_requests: Annotated[
        int | None,
        typer.Option("--num_requests", min=1, help="How many; default 16, or all of the dataset."),
    ] = None,
    input_len: Annotated[
        int | None, typer.Option("--input_len", min=1, help="Prompt tokens of drawn requests.")
    ] = None,
    output_len: Annotated[
        int | None, typer.Option("--output_len", min=1, help="Answer tokens of drawn requests.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="Most requests at once; -1 is no bound.")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option("--warmup", min=0, help="Requests before, not counted.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of drawn prompts.")] = None,
    report_json: Annotated[
        Path | None, typer.Option("--report_json", help="Write the report to a file, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    *,
    settings: dict[str, str],
) -> None:
    check_choice("mode of bench", mode, MODES)

    from tidemill.api.bench import BenchRequest
    from tidemill.api.bench import bench as run_bench

    session = read_session(settings)
    request = BenchRequest(
        engine_dir,
        mode,
        dataset,
        **given(
            num_requests=num_requests,
            input_len=input_len,
            output_len=output_len,
            concurrency=concurrency,
            warmup=warmup,
            seed=seed,
            session=session,
        ),
    )
    with progress_bar(f"bench {mode}") as progress:
        report = run_bench(request, progress)
    if as_json:
        print_json(report)
    else:
        print(report)
    if report_json is not None:
        report_json.write_text(json.dumps(as_plain(report), indent=2) + "\n", "utf-8")
        say(f"report: {report_json}")
