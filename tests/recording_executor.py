"""An executor that keeps the logits of every drawn token, to be compared bit for bit.

Wraps the native one; a test may lower its limits, so that one engine is run in several regimes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.step import EngineLimits, StepPlan, StepResult


class RecordingExecutor:
    """Runs steps; `logits` is keyed by request and by the position whose successor is drawn."""

    def __init__(self, executor: NativeExecutor, **limits: int) -> None:
        self._executor = executor
        self.limits: EngineLimits = replace(executor.limits, **limits)
        self.logits: dict[tuple[int, int], npt.NDArray[Any]] = {}
        self.most_entries = 0
        self.num_chunks = 0

    def execute(self, plan: StepPlan) -> StepResult:
        result = self._executor.execute(plan)
        drawn = [entry for entry in plan.entries if entry.num_draws]
        rows = self._executor.buffer("logits")[: len(drawn), : self.limits.vocab_size]
        for entry, row in zip(drawn, rows, strict=True):
            position = entry.start + len(entry.tokens) - 1
            self.logits[entry.request_id, position] = np.array(row, np.float32)
        self.most_entries = max(self.most_entries, len(plan.entries))
        self.num_chunks += sum(not entry.num_draws for entry in plan.entries)
        return result

    def arrange_memory(self) -> bool:
        return self._executor.arrange_memory()

    def close(self) -> None:
        """Leave the wrapped executor open: its owner closes it."""
