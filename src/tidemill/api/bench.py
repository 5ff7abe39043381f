"""Bench: requests through an engine in this process, and what they took.

In: a `BenchRequest`. Out: a `BenchReport` whose names and definitions are those of TensorRT-LLM's
benchmark. Answers run to their full length: end tokens do not end them. Requests travel as they do
in service, through the session with its text, streamed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tidemill.api.bench_report import BenchReport, Timing, make_report
from tidemill.api.open_session import open_session
from tidemill.api.workload import Job, check_jobs, draw_jobs, read_jobs
from tidemill.base.errors import ConfigError
from tidemill.base.progress import Progress
from tidemill.host.config import SessionConfig
from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.session import Session

MODES = ("throughput", "latency", "trace")


@dataclass(frozen=True)
class BenchRequest:
    """What to measure. Units: tokens, requests.

    `throughput` asks everything at once, up to `concurrency` (below 1: no bound); `latency` one
    after the other; `trace` at the moments that the dataset says. Without a dataset, requests are
    drawn. `warmup` requests go before and are not counted.
    """

    engine_dir: Path
    mode: str
    dataset: Path | None = None
    num_requests: int = 0
    input_len: int = 128
    output_len: int = 128
    concurrency: int = -1
    warmup: int = 2
    seed: int = 1234
    session: SessionConfig = field(default_factory=SessionConfig)


def bench(request: BenchRequest, progress: Progress | None = None) -> BenchReport:
    """Run a benchmark; `progress` is told (what, requests done, requests in all).

    Raises: ConfigError for requests that cannot be read or served; what loading an engine raises.
    """
    if request.mode == "trace" and request.dataset is None:
        raise ConfigError(
            "a trace needs its requests",
            where="bench trace",
            expected="--dataset with a file of requests",
            got="none",
            hint="bench/traces/small.json, or bench throughput for drawn requests",
        )
    session = open_session(request.engine_dir, request.session)
    try:
        jobs = _jobs(request, session)
        check_jobs(jobs, session.limits)
        concurrency = 1 if request.mode == "latency" else request.concurrency
        if request.mode != "trace":
            jobs = [Job(job.prompt_tokens, job.num_output_tokens) for job in jobs]
        _run(session, jobs[: request.warmup], -1, None)
        while session.arrange_memory():
            pass
        timings, wall_s = _run(session, jobs, concurrency, progress)
    finally:
        session.close()
    return make_report(request.mode, timings, wall_s)


def _jobs(request: BenchRequest, session: Session) -> list[Job]:
    vocab_size = session.limits.vocab_size
    if request.dataset is None:
        lengths = request.input_len, request.output_len
        return draw_jobs(request.num_requests or 16, lengths, vocab_size, request.seed)

    def encode(text: str) -> list[int]:
        if session.tokenizer is None:
            raise ValueError("the engine has no tokenizer for prompts in text")
        return session.tokenizer.encode(text)

    jobs = read_jobs(request.dataset, vocab_size, encode)
    return jobs[: request.num_requests] if request.num_requests else jobs


def _run(
    session: Session, jobs: Sequence[Job], concurrency: int, progress: Progress | None
) -> tuple[list[Timing], float]:
    """Serve all jobs; returns their timings in the jobs' order, and the time from start to end."""
    waiting = deque(enumerate(jobs))
    id_to_timing: dict[str, Timing] = {}
    num_running = num_done = 0
    start = time.perf_counter()
    while num_done < len(jobs):
        now = time.perf_counter() - start
        while waiting and waiting[0][1].arrival_s <= now and not 0 < concurrency <= num_running:
            number, job = waiting.popleft()
            # A request that had to wait for room has been waiting since it arrived.
            begun = job.arrival_s if concurrency < 1 else now
            id_to_timing[str(number)] = Timing(begun, len(job.prompt_tokens))
            session.submit(_to_request(str(number), job))
            num_running += 1
        if not session.has_work:
            time.sleep(max(0.0, waiting[0][1].arrival_s - now))
            continue
        num_ended = _note(session.step(), id_to_timing, start)
        num_running, num_done = num_running - num_ended, num_done + num_ended
        if progress and num_ended:
            progress(f"{num_running} in flight", num_done, len(jobs))
    wall_s = time.perf_counter() - start
    return [id_to_timing[str(number)] for number in range(len(jobs))], wall_s


def _note(updates: Sequence[Update], id_to_timing: dict[str, Timing], start: float) -> int:
    now, num_ended = time.perf_counter() - start, 0
    for update in updates:
        if update.error is not None:
            raise update.error.to_exception()
        id_to_timing[update.request_id].add(len(update.token_ids), now)
        num_ended += update.is_final
    return num_ended


def _to_request(request_id: str, job: Job) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_tokens=job.prompt_tokens,
        max_tokens=job.num_output_tokens,
        end_id=-1,
        streaming=True,
    )
