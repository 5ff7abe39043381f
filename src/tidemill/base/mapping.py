"""Mapping: which rank of a tensor- and pipeline-parallel layout owns which layers and shards.

Source: TensorRT-LLM mapping.py; TP fastest, then PP. Pipeline stages split the layers like
numpy.array_split: the first `L % pp` stages get one layer more.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mapping:
    """One rank's place in a (tp_size x pp_size) layout."""

    tp_size: int = 1
    pp_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size, (self.rank, self.world_size)

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def pp_rank(self) -> int:
        return self.rank // self.tp_size

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    def layer_range(self, num_layers: int) -> range:
        """Global indices of this stage's layers, half open."""
        base, extra = divmod(num_layers, self.pp_size)
        first = self.pp_rank * base + min(self.pp_rank, extra)
        return range(first, first + base + (self.pp_rank < extra))
