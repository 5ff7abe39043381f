"""The limits that shape an engine, resolved: every field has its final value.

What the process may choose later (threads, cache size, ports) is not here. Units: tokens,
requests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildConfig:
    """One engine's limits, named as trtllm-build's flags."""

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    max_beam_width: int
    tokens_per_block: int
