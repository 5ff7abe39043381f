"""The key-value cache's memory: a part for the keys and one for the values of each layer.

In: copies as (source, destination). Out: the address that a plan's records reach. The scheduler
numbers the blocks and decides where they lie; numbers past the cache's are slots of the host tier.
Block 0 of the memory is nobody's: unused table entries point to it.
"""

from __future__ import annotations

from tidemill.device.cpu import Array, address_of, allocate
from tidemill.engine.manifest import KvLayout
from tidemill.runtime.executor.step_memory import StepMemory
from tidemill.runtime.step import EngineLimits


class CacheBlocks:
    """Blocks of the cache and slots of the host tier."""

    def __init__(self, kv: KvLayout, limits: EngineLimits, memory: StepMemory) -> None:
        self._num_blocks, num_slots = limits.num_blocks, limits.num_host_blocks
        self._num_parts = 2 * kv.num_layers
        self.part_bytes = (limits.num_blocks + 1) * kv.block_bytes_per_layer
        # What one step can fill: whole blocks, and one more for each request.
        most_blocks = limits.max_num_tokens // kv.tokens_per_block + limits.max_batch_size
        first_bytes = most_blocks * kv.block_bytes_per_layer
        num_bytes = self._num_parts * self.part_bytes
        self._cache = memory.reserve(num_bytes, self.part_bytes, first_bytes)
        # By block and layer as the cache has them, so that a copy is one assignment.
        host_bytes = num_slots * self._num_parts * kv.block_bytes_per_layer
        self._host = allocate(host_bytes)[:host_bytes]  # memory of no bytes has one all the same
        self._slots = self._host.reshape(num_slots, self._num_parts, kv.block_bytes_per_layer)
        self._text = (
            f"key-value cache {num_bytes / 1e6:.0f} MB for "
            f"{limits.num_blocks * limits.tokens_per_block} tokens, "
            f"host tier {self._host.nbytes / 1e6:.0f} MB"
        )

    @property
    def address(self) -> int:
        """Where the first layer's keys begin; each further part lies `part_bytes` behind."""
        return address_of(self._cache)

    def __str__(self) -> str:
        return self._text

    def copy(self, copies: tuple[tuple[int, int], ...]) -> None:
        """Copy blocks of all layers, in the order given; either side may be of the host tier."""
        for source, destination in copies:
            self._region(destination)[:] = self._region(source)

    def write(self) -> None:
        """Fill the cache, for whoever times steps: what was never written is one page of zeros.

        Call it when memory is arranged. The bytes are numbers near one in all of the cache's types.
        """
        self._cache[:] = 0x3F

    def _region(self, block: int) -> Array:
        if block >= self._num_blocks:
            region: Array = self._slots[block - self._num_blocks]
        else:
            region = self._cache.reshape(self._num_parts, self._num_blocks + 1, -1)[:, block + 1]
        return region
