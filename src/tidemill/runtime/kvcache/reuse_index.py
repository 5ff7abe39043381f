"""Which block holds which content: blocks by their key, and by the prefix that they follow.

Only blocks whose every position has been computed are put in here, so nothing else can be found.
Knows nothing of who holds a block; `BlockPool` takes blocks out before they are overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence

# A prefix with thousands of continuations is searched for the best of so many only.
MAX_COMPARED = 64


class ReuseIndex:
    """Two maps that agree: key to block, and (parent key, first token) to candidate blocks."""

    def __init__(self) -> None:
        self._key_to_block: dict[bytes, int] = {}
        self._block_to_entry: dict[int, tuple[bytes, bytes, tuple[int, ...]]] = {}
        self._children: dict[tuple[bytes, int], dict[int, None]] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._block_to_entry

    def __len__(self) -> int:
        return len(self._block_to_entry)

    def find(self, key: bytes) -> int | None:
        """Return the block of that content."""
        return self._key_to_block.get(key)

    def find_partial(self, parent: bytes, tokens: Sequence[int]) -> tuple[int, int] | None:
        """Find the block after `parent` that begins most like `tokens`: (block, equal tokens)."""
        if not tokens:
            return None
        candidates = self._children.get((parent, tokens[0]), {})
        best, num_best = None, 0
        for _, block in zip(range(MAX_COMPARED), reversed(candidates), strict=False):
            num_equal = _num_equal(self._block_to_entry[block][2], tokens)
            if num_equal > num_best:
                best, num_best = block, num_equal
        return None if best is None else (best, num_best)

    def add(self, block: int, parent: bytes, key: bytes, tokens: Sequence[int]) -> bool:
        """Make a block findable; false when another one of that content is found already."""
        if key in self._key_to_block:
            return False
        assert block not in self._block_to_entry, block
        self._key_to_block[key] = block
        self._block_to_entry[block] = (parent, key, tuple(tokens))
        self._children.setdefault((parent, tokens[0]), {})[block] = None
        return True

    def move(self, block: int, to: int) -> None:
        """Let content be found in another block, which held none."""
        parent, key, tokens = self._block_to_entry[block]
        self.remove(block)
        self.add(to, parent, key, tokens)

    def blocks(self) -> set[int]:
        """All blocks that can be found."""
        return set(self._block_to_entry)

    def remove(self, block: int) -> None:
        """Let a block be found no more."""
        parent, key, tokens = self._block_to_entry.pop(block)
        del self._key_to_block[key]
        siblings = self._children[parent, tokens[0]]
        del siblings[block]
        if not siblings:
            del self._children[parent, tokens[0]]

    def check(self) -> None:
        """Recompute that all maps say the same."""
        entries = self._block_to_entry
        assert {key: block for block, (_, key, _) in entries.items()} == self._key_to_block
        children = {(parent, tokens[0], b) for b, (parent, _, tokens) in entries.items()}
        assert children == {(*k, block) for k, blocks in self._children.items() for block in blocks}


def _num_equal(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
