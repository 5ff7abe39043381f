"""The benchmark's arithmetic against NumPy, its datasets, and a run over a fake engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.host.fake_engine import LIMITS, open_session, write_tokenizer
from tidemill.api.bench import BenchRequest, bench
from tidemill.api.bench_report import Timing, breakdown, make_report
from tidemill.api.workload import check_jobs, draw_jobs, read_jobs
from tidemill.base.errors import ConfigError
from tidemill.host.session import Session

SMALL_TRACE = Path(__file__).parents[3] / "bench" / "traces" / "small.json"


@pytest.fixture
def engine_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tokenizer(tmp_path)
    opened = staticmethod(
        lambda directory, config, tokenizer: open_session(directory, step_seconds=0.001)
    )
    monkeypatch.setattr(Session, "open", opened)
    monkeypatch.setattr("tidemill.api.open_session.ensure_native_code", lambda engine_dir: None)
    return tmp_path


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("num_values", [1, 2, 3, 7, 100])
def test_percentiles_are_those_of_numpy(num_values: int) -> None:
    values = np.random.default_rng(num_values).random(num_values)
    figures = breakdown(values.tolist())
    for percent in (50, 90, 95, 99):
        assert figures[f"P{percent}"] == pytest.approx(np.percentile(values, percent))
    assert figures["AVERAGE"] == pytest.approx(values.mean())
    assert (figures["MINIMUM"], figures["MAXIMUM"]) == (values.min(), values.max())


def test_figures_follow_their_definitions() -> None:
    first, second = Timing(0.0, 10), Timing(1.0, 20)
    for now_s in (0.5, 0.6, 0.7):
        first.add(1, now_s)
    second.add(1, 3.0)
    second.add(0, 3.0)
    report = make_report("trace", [first, second], wall_s=4.0)
    totals = report.totals
    assert totals["Request Throughput (req/sec)"] == 0.5
    assert totals["Total Output Throughput (tokens/sec)"] == 1.0
    assert totals["Total Token Throughput (tokens/sec)"] == 34 / 4
    assert totals["Average request latency (ms)"] == pytest.approx((700 + 2000) / 2)
    assert totals["Average time-to-first-token [TTFT] (ms)"] == pytest.approx((500 + 2000) / 2)
    assert totals["Average time-per-output-token [TPOT] (ms)"] == pytest.approx(100)
    assert totals["Per User Output Speed [1/TPOT]"] == pytest.approx(10)
    assert "[TTFT] Breakdown" in str(report)


@pytest.mark.parametrize(
    ("mode", "concurrency"), [("throughput", -1), ("throughput", 2), ("latency", -1)]
)
def test_drawn_requests_run_to_their_full_length(
    engine_dir: Path, mode: str, concurrency: int
) -> None:
    request = BenchRequest(
        engine_dir, mode, num_requests=5, input_len=7, output_len=6, concurrency=concurrency
    )
    seen: list[tuple[int, int]] = []
    report = bench(request, lambda what, done, total: seen.append((done, total)))
    assert (report.num_requests, report.num_input_tokens, report.num_output_tokens) == (5, 35, 30)
    assert seen[-1] == (5, 5)
    assert all(value > 0 for value in report.totals.values())


def test_trace_waits_for_its_arrivals(engine_dir: Path) -> None:
    trace = engine_dir / "trace.json"
    rows = [{"prompt_len": 4, "output_len": 2, "arrival_ms": at} for at in (150, 0)]
    trace.write_text(json.dumps({"requests": rows}))
    report = bench(BenchRequest(engine_dir, "trace", trace, warmup=0))
    assert report.totals["Total Latency (ms)"] >= 150
    assert report.breakdowns["Request Latency Breakdown (ms)"]["MAXIMUM"] < 140


def test_both_formats_of_datasets_are_read(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text(
        '{"task_id": 0, "input_ids": [5, 6], "output_tokens": 3}\n\n'
        '{"task_id": 1, "prompt": "ab", "output_tokens": 4}\n'
        '{"task_id": 2, "input_ids": [], "output_tokens": 5}\n'
    )
    jobs = read_jobs(lines, 257, encode)
    assert [(job.prompt_tokens, job.num_output_tokens) for job in jobs] == [
        ([5, 6], 3), ([97, 98], 4), ([], 5)
    ]  # fmt: skip
    jobs = read_jobs(SMALL_TRACE, 257, encode)
    assert jobs == read_jobs(SMALL_TRACE, 257, encode), "drawn prompts depend on the seed alone"
    assert len(jobs) == 12 and all(3 <= token < 257 for token in jobs[0].prompt_tokens)
    check_jobs(jobs, LIMITS)


@pytest.mark.parametrize(
    "text", ["", "nonsense", '{"requests": []}', '{"requests": [{"prompt_len": 3}]}', "[1, 2]",
             '{"requests": [{"prompt_len": 3, "output_len": 0}]}'],
)  # fmt: skip
def test_dataset_in_no_format_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_jobs(tmp_path / "trace.json", 257, encode)


def test_requests_beyond_the_limits_are_all_named() -> None:
    jobs = draw_jobs(2, (3000, 4), 257, 1) + draw_jobs(1, (4, 4), 257, 1)
    with pytest.raises(ConfigError, match="request 0: 3000 \\+ 4 tokens; request 1"):
        check_jobs(jobs, LIMITS)


def test_requests_longer_than_the_cache_fit_where_attention_has_a_window() -> None:
    jobs, small = draw_jobs(1, (200, 600), 257, 1), replace(LIMITS, num_blocks=8)
    check_jobs(jobs, replace(small, attention_window=32))
    with pytest.raises(ConfigError, match="at most 128"):
        check_jobs(jobs, small)


def test_trace_without_requests_is_refused(engine_dir: Path) -> None:
    with pytest.raises(ConfigError, match="needs its requests"):
        bench(BenchRequest(engine_dir, "trace"))
