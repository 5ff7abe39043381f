"""What the cache holds of a sequence, and how it is looked up.

In come the keys and tokens of a sequence; out comes a `Prefix`. It only looks: whoever wants the
blocks must hold them before anything changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.runtime.kvcache.block_span import NO_BLOCK, BlockSpan
from tidemill.runtime.kvcache.reuse_index import ReuseIndex


@dataclass(frozen=True)
class Prefix:
    """Whole blocks that are cached, then the first tokens of one more.

    Numbers of host slots stand where the content is in the host tier. The first `num_skipped`
    blocks have left the attention window: they are not needed, and NO_BLOCK stands for them.
    `num_missed` full blocks were looked for and not found.
    """

    blocks: tuple[int, ...] = ()
    partial_block: int | None = None
    num_partial_tokens: int = 0
    num_missed: int = 0
    num_skipped: int = 0

    def num_tokens(self, tokens_per_block: int) -> int:
        """Count the positions that need not be computed."""
        return len(self.blocks) * tokens_per_block + self.num_partial_tokens


NOTHING = Prefix()


def find_prefix(
    index: ReuseIndex, span: BlockSpan, keys: Sequence[bytes], tokens: Sequence[int], partial: bool
) -> Prefix:
    """Find what the cache holds of a sequence but for its last token, which must be computed.

    `keys` begins with the root key and names the full blocks of `tokens`; `partial` looks for the
    beginning of one more block, too.
    """
    unit, limit = span.tokens_per_block, len(tokens) - 1
    blocks = _find_whole(index, span, keys[1 : limit // unit + 1])
    num_whole = len(blocks)
    num_missed = limit // unit - num_whole
    partial_block, num_partial = None, 0
    if partial:
        rest = tokens[num_whole * unit : min((num_whole + 1) * unit, limit)]
        found = index.find_partial(keys[num_whole], rest)
        if found is not None:
            partial_block, num_partial = found
            num_missed = max(0, num_missed - 1)
    num_skipped = span.first_needed(num_whole * unit + num_partial)
    blocks[:num_skipped] = [NO_BLOCK] * num_skipped
    return Prefix(tuple(blocks), partial_block, num_partial, num_missed, num_skipped)


def _find_whole(index: ReuseIndex, span: BlockSpan, keys: Sequence[bytes]) -> list[int]:
    """Find the longest beginning of which all blocks are cached that its end still sees."""
    blocks: list[int] = []
    num_whole = num_in_row = 0
    for count, key in enumerate(keys, 1):
        block = index.find(key)
        if block is None and span.window is None:
            break
        blocks.append(NO_BLOCK if block is None else block)
        num_in_row = 0 if block is None else num_in_row + 1
        if num_in_row >= count - span.first_needed(count * span.tokens_per_block):
            num_whole = count
    return blocks[:num_whole]
