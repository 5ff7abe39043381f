"""The plan as the team walks it: a row of words for each op, operands resolved to addresses.

In come the manifest's ops and where each memory lies; out comes the table. Weights may move while
an engine runs: their addresses are asked for again. Knows nothing of what kernels do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tidemill.base import abi
from tidemill.device.cpu import LoadedCode
from tidemill.engine.manifest import PlanOp
from tidemill.runtime.executor.weights_memory import WeightsMemory


class PlanRecords:
    """Resolves a plan. Units: `kv_part_bytes` is how far the cache's parts are apart."""

    def __init__(
        self,
        plan: Sequence[PlanOp],
        code: LoadedCode,
        weights: WeightsMemory,
        space_to_address: Mapping[str, int],
        kv_part_bytes: int,
    ) -> None:
        self._weights = weights
        self._weight_words: list[tuple[int, int, int]] = []  # record, word, offset of the weight
        self.table = np.zeros((len(plan), abi.RECORD_WORDS), np.int64)
        for number, (record, op) in enumerate(zip(self.table, plan, strict=True)):
            record[0] = code.address(op.kernel)
            record[abi.RECORD_MADE_COPIES] = op.made_copies
            record[abi.RECORD_READ_COPIES] = op.read_copies
            for word, operand in enumerate(op.operands, 1):
                if operand.space == "weights":
                    self._weight_words.append((number, word, operand.value))
                    continue
                scale = kv_part_bytes if operand.space == "kv" else 1
                record[word] = space_to_address[operand.space] + operand.value * scale
        self.follow_weights()

    def follow_weights(self) -> None:
        """Point to where the weights lie now."""
        for number, word, offset in self._weight_words:
            self.table[number, word] = self._weights.address(offset)
