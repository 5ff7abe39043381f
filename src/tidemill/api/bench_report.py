"""A benchmark's figures under the names of TensorRT-LLM's report, with the same definitions.

Time to first token counts from a request's arrival; time per output token is that of the tokens
after the first; percentiles are of requests. A "GPU" is a rank here: one, this machine's CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Timing:
    """When one request arrived and got its tokens. Units: seconds since the start."""

    arrival_s: float
    num_input_tokens: int
    num_output_tokens: int = 0
    first_s: float = math.nan
    last_s: float = math.nan

    def add(self, num_tokens: int, now_s: float) -> None:
        """Note tokens that have come; the request's last news may bring none."""
        if num_tokens and not self.num_output_tokens:
            self.first_s = now_s
        self.num_output_tokens += num_tokens
        self.last_s = now_s

    @property
    def latency_ms(self) -> float:
        return (self.last_s - self.arrival_s) * 1e3

    @property
    def ttft_ms(self) -> float:
        return (self.first_s - self.arrival_s) * 1e3

    @property
    def tpot_ms(self) -> float:
        """Time for each token after the first; 0 where there is none."""
        after = self.num_output_tokens - 1
        return (self.last_s - self.first_s) * 1e3 / after if after > 0 else 0.0


@dataclass(frozen=True)
class BenchReport:
    """`totals` and `breakdowns` have the reference's names; a breakdown holds its seven figures."""

    mode: str
    num_requests: int
    num_input_tokens: int
    num_output_tokens: int
    totals: dict[str, float]
    breakdowns: dict[str, dict[str, float]]

    def __str__(self) -> str:
        lines = [
            f"{self.mode}: {self.num_requests} requests, {self.num_input_tokens} prompt tokens, "
            f"{self.num_output_tokens} output tokens",
            "",
        ]
        lines += [f"{name + ':':<50}{value:>12.4f}" for name, value in self.totals.items()]
        for name, figures in self.breakdowns.items():
            lines += ["", f"-- {name} " + "-" * max(0, 60 - len(name))]
            lines += [f"{each:<10}{value:>12.4f}" for each, value in figures.items()]
        return "\n".join(lines)


def make_report(mode: str, timings: Sequence[Timing], wall_s: float) -> BenchReport:
    """Sum up a run of `wall_s` seconds."""
    num_in = sum(each.num_input_tokens for each in timings)
    num_out = sum(each.num_output_tokens for each in timings)
    tpots = [each.tpot_ms for each in timings if each.num_output_tokens > 1]
    speeds = [1e3 / tpot for tpot in tpots if tpot > 0]
    per_user = [each.num_output_tokens / each.latency_ms * 1e3 for each in timings]
    latencies = [each.latency_ms for each in timings]
    ttfts = [each.ttft_ms for each in timings]
    totals = {
        "Request Throughput (req/sec)": len(timings) / wall_s,
        "Total Output Throughput (tokens/sec)": num_out / wall_s,
        "Per User Output Throughput (tokens/sec/user)": _mean(per_user),
        "Per GPU Output Throughput (tokens/sec/gpu)": num_out / wall_s,
        "Total Token Throughput (tokens/sec)": (num_in + num_out) / wall_s,
        "Total Latency (ms)": wall_s * 1e3,
        "Average request latency (ms)": _mean(latencies),
        "Per User Output Speed [1/TPOT]": _mean(speeds),
        "Average time-to-first-token [TTFT] (ms)": _mean(ttfts),
        "Average time-per-output-token [TPOT] (ms)": _mean(tpots),
    }
    breakdowns = {
        "Per-Request Time-per-Output-Token [TPOT] Breakdown (ms)": breakdown(tpots),
        "Per-Request Time-to-First-Token [TTFT] Breakdown (ms)": breakdown(ttfts),
        "Per-Request Output Speed [1/TPOT] Breakdown (tokens/sec)": breakdown(speeds),
        "Request Latency Breakdown (ms)": breakdown(latencies),
    }
    return BenchReport(mode, len(timings), num_in, num_out, totals, breakdowns)


def breakdown(values: Sequence[float]) -> dict[str, float]:
    """Return the seven figures of a sample; percentiles are interpolated, as NumPy does."""
    ordered = sorted(values) or [0.0]
    figures = {"MINIMUM": ordered[0], "MAXIMUM": ordered[-1], "AVERAGE": _mean(ordered)}
    return {**figures, **{f"P{p}": _percentile(ordered, p / 100) for p in (50, 90, 95, 99)}}


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
