"""Weights are in memory once: while an engine loads, and afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeSample
from tidemill.runtime.executor.cpu import NativeExecutor

MOST_BESIDES_BYTES = 80 << 20  # code, inputs, arena, and pieces of the file that are being copied
_RESET_PEAK = "5"


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def test_loading_never_holds_the_weights_twice(make_sample: MakeSample) -> None:
    engine = make_sample("bfloat16").engine
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        pytest.skip("this system does not let a process reset its own high-water mark")
    before = status_bytes("VmRSS")
    executor = NativeExecutor.load(engine, kv_cache_tokens=64, num_threads=2, is_checked=True)
    weights = executor.engine.weights.nbytes
    peak, after = status_bytes("VmHWM") - before, status_bytes("VmRSS") - before
    executor.close()
    assert weights > 250e6
    # The full check has read the whole file: its pages go as they are copied.
    assert peak < weights + MOST_BESIDES_BYTES, f"{peak / 1e6:.0f} MB for {weights / 1e6:.0f}"
    assert after < weights + MOST_BESIDES_BYTES
