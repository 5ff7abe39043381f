"""Weights in huge pages are the file's weights, and no copy is made where memory is short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tidemill.runtime.executor import weights_memory
from tidemill.runtime.executor.weights_memory import place_weights


@pytest.mark.parametrize("num_bytes", [0, 1, 4097, (16 << 20) - 1, 16 << 20, (16 << 20) + 1])
def test_copy_holds_the_same_bytes(num_bytes: int) -> None:
    mapped = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, dtype=np.uint8)
    placed = place_weights(mapped, 2)
    assert np.array_equal(placed[:num_bytes], mapped)


def test_short_memory_keeps_the_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 64 kB\nMemAvailable: 15 kB\n")
    monkeypatch.setattr(weights_memory, "_MEMORY", meminfo)
    mapped = np.zeros(4096, np.uint8)
    assert place_weights(mapped, 2) is mapped


def test_system_without_huge_pages_keeps_the_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]")
    monkeypatch.setattr(weights_memory, "_HUGE_PAGES", setting)
    mapped = np.zeros(1, np.uint8)
    assert place_weights(mapped, 2) is mapped
