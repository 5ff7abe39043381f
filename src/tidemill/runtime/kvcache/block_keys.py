"""What names a block's content: a chained hash of every token up to its end.

In come tokens, a LoRA id and a salt; out come keys of 32 bytes, one for each full block. Equal keys
mean equal content: the hash is cryptographic, because a collision would show one user another's
text. Knows nothing of blocks or who holds them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 32


def root_key(lora_id: int | None, salt: str) -> bytes:
    """Name the empty prefix of a LoRA adapter and a cache salt; requests share within one only."""
    return blake2b(f"{lora_id}\0{salt}".encode(), digest_size=KEY_BYTES).digest()


def next_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Name the block of these tokens that follows a named prefix."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=KEY_BYTES).digest()


def extend_keys(keys: list[bytes], tokens: Sequence[int], unit: int) -> None:
    """Append keys until each full block of `tokens` has one; `keys` begins with the root key."""
    for start in range((len(keys) - 1) * unit, len(tokens) - unit + 1, unit):
        keys.append(next_key(keys[-1], tokens[start : start + unit]))
