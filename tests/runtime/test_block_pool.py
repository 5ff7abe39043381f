"""The block pool: promises kept, nothing lost or shared."""

from __future__ import annotations

import pytest

from tidemill.runtime.kvcache.block_pool import BlockPool


def test_full_pool_refuses_a_promise_without_losing_blocks() -> None:
    pool = BlockPool(num_blocks=5, tokens_per_block=4)
    assert pool.open(17) is not None
    assert pool.open(1) is None
    pool.check()
    assert (pool.num_free, pool.num_available) == (5, 0)


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (19, 5)]
)
def test_tables_grow_by_whole_blocks(num_tokens: int, num_blocks: int) -> None:
    pool = BlockPool(num_blocks=7, tokens_per_block=4)
    table = pool.open(28)
    assert table is not None
    pool.grow(table, num_tokens)
    pool.grow(table, num_tokens)
    pool.check()
    assert len(table.blocks) == num_blocks == pool.num_used
    assert table.num_promised == 7 - num_blocks


def test_closed_table_gives_back_blocks_and_promise() -> None:
    pool = BlockPool(num_blocks=3, tokens_per_block=1)
    table = pool.open(3)
    assert table is not None
    pool.grow(table, 2)
    shown = table.blocks
    pool.close(table)
    pool.check()
    assert pool.num_available == 3
    assert len(shown) == 2, "a plan in flight still sees its blocks"


def test_check_finds_a_shared_block() -> None:
    pool = BlockPool(num_blocks=3, tokens_per_block=1)
    table = pool.open(2)
    assert table is not None
    pool.grow(table, 1)
    table.blocks.append(table.blocks[0])
    with pytest.raises(AssertionError, match="lost or shared"):
        pool.check()
