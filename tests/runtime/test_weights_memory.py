"""Weights in huge pages are the file's weights, and no copy is made where memory is short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tidemill.runtime.executor import free_memory, weights_memory
from tidemill.runtime.executor.weights_memory import place_weights


def must_not_forget(first: int, size: int) -> None:
    raise AssertionError("pages that are still computed with were forgotten")


@pytest.mark.parametrize("num_bytes", [0, 1, 4097, (16 << 20) - 1, 16 << 20, (16 << 20) + 1])
def test_copy_holds_the_same_bytes(num_bytes: int) -> None:
    mapped = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, dtype=np.uint8)
    forgotten: list[tuple[int, int]] = []
    placed = place_weights(mapped, 2, lambda first, size: forgotten.append((first, size)))
    assert np.array_equal(placed[:num_bytes], mapped)
    assert sum(size for _, size in forgotten) == num_bytes
    assert all(first % 4096 == 0 for first, _ in forgotten)


def test_short_memory_keeps_the_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 64 kB\nMemAvailable: 15 kB\n")
    monkeypatch.setattr(free_memory, "_MEMORY", meminfo)
    mapped = np.zeros(4096, np.uint8)
    assert place_weights(mapped, 2, must_not_forget) is mapped


def test_free_memory_is_told_where_the_kernel_does_not_reckon_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "_MEMORY", tmp_path / "nowhere")
    assert free_memory.free_bytes() > 0


def test_system_without_huge_pages_keeps_the_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]")
    monkeypatch.setattr(weights_memory, "_HUGE_PAGES", setting)
    mapped = np.zeros(1, np.uint8)
    assert place_weights(mapped, 2, must_not_forget) is mapped
