"""How large the key-value cache is when nobody said: enough to be useful, modest by default.

A container's limit counts as its machine's memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.engine.reader import EngineFile
from tidemill.runtime.executor.free_memory import free_bytes, total_bytes
from tidemill.runtime.kvcache.block_span import BlockSpan

SHARE_OF_MEMORY = 0.1


@dataclass(frozen=True)
class CacheMemory:
    """A share of the machine's free memory, None for a modest one; bytes for what is evicted."""

    fraction: float | None = None
    host_bytes: int = 0


DEFAULT_CACHE_MEMORY = CacheMemory()


def choose_cache_tokens(engine: EngineFile, fraction: float | None = None) -> int:
    """Return tokens for the whole batch at full length, capped at a tenth of this machine's memory.

    With `fraction`, the cap is that share of the memory that is free now beside weights and arena.
    One sequence of full length always fits, whatever the cap says. With an attention window, what
    has left it counts for nothing.
    """
    built = engine.config["build_config"]
    share = total_bytes() * SHARE_OF_MEMORY
    if fraction is not None:
        share = (free_bytes() - engine.weights.nbytes - engine.manifest.arena_bytes) * fraction
    affordable = max(0, int(share)) // engine.manifest.kv.bytes_per_token
    kv, length = engine.manifest.kv, int(built["max_seq_len"])
    span = BlockSpan(kv.tokens_per_block, kv.attention_window)
    reading = min(length, int(built["max_num_tokens"]))
    first, other = (
        span.most_blocks(length, 0, step_tokens) * kv.tokens_per_block
        for step_tokens in (reading, 1)
    )
    return max(first, min(first + (int(built["max_batch_size"]) - 1) * other, affordable))
