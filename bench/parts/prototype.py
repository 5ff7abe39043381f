"""An optional peer: a sketch of the decode step kept outside of the repository, of the same shapes.

In: the directory that holds its `smol.py`. It has random weights of the sample model's shapes,
decode alone and a fixed batch, so it shows what a step costs without a runtime around it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


class Prototype:
    """Peer engines by batch size, all on the same weights."""

    def __init__(
        self, directory: Path, batches: tuple[int, ...], context: int, num_threads: int
    ) -> None:
        sys.path.insert(0, str(directory))
        smol: Any = importlib.import_module("smol")
        weights = smol.random_weights()
        self._engines: dict[int, Any] = {
            batch: smol.Engine("bf16", batch, num_threads, context, weights) for batch in batches
        }

    def prepare(self, batch: int, position: int) -> None:
        """Let the next step compute the token at `position` of every sequence."""
        self._engines[batch].a["lengths"][:batch] = position

    def step(self, batch: int) -> None:
        """Decode one token of every sequence."""
        self._engines[batch].step()

    def close(self) -> None:
        for engine in self._engines.values():
            engine.team.stop()
