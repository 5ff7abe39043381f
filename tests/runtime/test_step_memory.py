"""Memory that moves to huge pages keeps what was written, and says when it is done."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tidemill.device import cpu
from tidemill.runtime.executor import step_memory
from tidemill.runtime.executor.step_memory import StepMemory


def test_moved_parts_hold_what_was_written() -> None:
    part_bytes = (3 << 20) + 4096
    memory = StepMemory()
    reserved = memory.reserve(5 * part_bytes, part_bytes, 5000)
    written = np.random.default_rng(5).integers(0, 256, (5, 5000), np.uint8)
    reserved.reshape(5, part_bytes)[:, :5000] = written
    assert [memory.move(0.0) for _ in range(6)] == [True] * 4 + [False] * 2
    expected = np.zeros((5, part_bytes), np.uint8)
    expected[:, :5000] = written
    assert np.array_equal(reserved.reshape(5, part_bytes), expected)


def test_memory_of_any_size_can_be_moved() -> None:
    memory = StepMemory()
    sizes = [0, 1, 4097, (2 << 20) - 1, (2 << 20) + 1]
    reserved = [memory.reserve(size) for size in sizes]
    for each in reserved:
        each[:] = 7
    assert not memory.move(math.inf)
    assert all((each == 7).all() for each in reserved)


def test_system_without_huge_pages_keeps_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_take(*args: object) -> None:
        raise AssertionError("huge pages were taken although the system says never")

    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]")
    monkeypatch.setattr(cpu, "_HUGE_PAGES", setting)
    monkeypatch.setattr(step_memory, "take_huge_pages", must_not_take)
    memory = StepMemory()
    memory.reserve(4 << 20)
    assert not memory.move(math.inf)
