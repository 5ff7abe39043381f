"""How large the key-value cache is when nobody said: enough to be useful, modest by default."""

from __future__ import annotations

import os

from tidemill.engine.reader import EngineFile

SHARE_OF_MEMORY = 0.1


def choose_cache_tokens(engine: EngineFile) -> int:
    """Return tokens for the whole batch at full length, capped at a tenth of this machine's memory.

    One sequence of full length always fits, whatever the cap says.
    """
    built = engine.config["build_config"]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    affordable = int(memory_bytes * SHARE_OF_MEMORY) // engine.manifest.kv.bytes_per_token
    wanted = int(built["max_batch_size"]) * int(built["max_seq_len"])
    return max(int(built["max_seq_len"]), min(wanted, affordable))
