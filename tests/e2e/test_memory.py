"""Weights are in memory once, while they move and afterwards, and moving changes no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Sample
from tests.engine_logits import run_and_read_logits
from tidemill.runtime.executor import cpu
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.request import SamplingParams
from tidemill.runtime.step import PlanEntry, StepPlan

MOST_BESIDES_BYTES = 80 << 20  # code, inputs, arena, and pieces of the file that are being copied
_RESET_PEAK = "5"


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def test_moving_never_holds_the_weights_twice(sample: Sample) -> None:
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        pytest.skip("this system does not let a process reset its own high-water mark")
    before = status_bytes("VmRSS")
    executor = NativeExecutor.load(
        sample.engine, kv_cache_tokens=64, num_threads=2, is_checked=True
    )
    entries = [PlanEntry(0, (504, 3575, 282, 4649, 314), 0, (0,), 1, SamplingParams())]
    while executor.arrange_memory():
        executor.execute(StepPlan((*entries,)))
    weights = executor.engine.weights.nbytes
    peak, after = status_bytes("VmHWM") - before, status_bytes("VmRSS") - before
    executor.close()
    assert weights > 250e6
    # The full check has read the whole file: its pages go as they are copied.
    assert peak < weights + MOST_BESIDES_BYTES, f"{peak / 1e6:.0f} MB for {weights / 1e6:.0f}"
    assert after < weights + MOST_BESIDES_BYTES


def test_weights_that_move_between_steps_change_no_bit(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "ARRANGING_SECONDS", 0.0)  # a piece of 8 MB a thread
    executor = NativeExecutor.load(sample.engine, kv_cache_tokens=64)
    entries = [PlanEntry(0, (504, 3575, 282, 4649, 314), 0, (0,), 1, SamplingParams())]
    first, num_moves = run_and_read_logits(executor, entries), 0
    while executor.arrange_memory():
        num_moves += 1
        assert np.array_equal(run_and_read_logits(executor, entries), first)
    assert np.array_equal(run_and_read_logits(executor, entries), first)
    assert num_moves > 10
    executor.close()
