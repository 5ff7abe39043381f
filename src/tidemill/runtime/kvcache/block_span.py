"""Which blocks of a sequence attention still needs, and how many of them at once.

In come positions and numbers of tokens; out come numbers of blocks. With an attention window only
the last positions are read, so blocks before them are let go of while the request runs. Knows
nothing of pools or requests.
"""

from __future__ import annotations

from dataclasses import dataclass

NO_BLOCK = -1
"""Stands in a block table where the block has left the window: nothing is read there."""


@dataclass(frozen=True)
class BlockSpan:
    """Blocks of `tokens_per_block` positions; each position sees the last `window`, or all."""

    tokens_per_block: int
    window: int | None = None

    def blocks_for(self, num_tokens: int) -> int:
        """Count the blocks that positions [0, num_tokens) lie in."""
        return -(-num_tokens // self.tokens_per_block)

    def first_needed(self, position: int) -> int:
        """Count the leading blocks that no position from `position` on can see."""
        if self.window is None:
            return 0
        return max(0, position - self.window + 1) // self.tokens_per_block

    def most_blocks(self, num_tokens: int, num_dropped: int, step_tokens: int) -> int:
        """Count the blocks needed at once on the way to `num_tokens` positions.

        `num_dropped` leading blocks are not needed any more; a step computes `step_tokens` at most.
        """
        num_left = self.blocks_for(num_tokens) - num_dropped
        if self.window is None:
            return num_left
        # Positions [p - window + 1, p + step_tokens), wherever they begin within a block.
        length = self.window - 1 + step_tokens
        return min(num_left, (length + self.tokens_per_block - 2) // self.tokens_per_block + 1)
