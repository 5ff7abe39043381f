"""How large the key-value cache is when nobody said: enough to be useful, modest by default."""

from __future__ import annotations

import os
from pathlib import Path

from tidemill.engine.reader import EngineFile

SHARE_OF_MEMORY = 0.1


def choose_cache_tokens(engine: EngineFile, fraction: float | None = None) -> int:
    """Return tokens for the whole batch at full length, capped at a tenth of this machine's memory.

    With `fraction`, the cap is that share of the memory that is free now. One sequence of full
    length always fits, whatever the cap says.
    """
    built = engine.config["build_config"]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * SHARE_OF_MEMORY
    if fraction is not None:
        memory_bytes = _free_bytes() * fraction
    affordable = int(memory_bytes) // engine.manifest.kv.bytes_per_token
    wanted = int(built["max_batch_size"]) * int(built["max_seq_len"])
    return max(int(built["max_seq_len"]), min(wanted, affordable))


def _free_bytes() -> int:
    """Memory that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
