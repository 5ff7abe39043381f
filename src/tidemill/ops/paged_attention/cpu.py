"""Causal attention over the paged cache on the CPU, for any mix of prefill chunks and decodes.

Legend: a tile is up to `tile_tokens` consecutive tokens of one sequence; G query heads share a
key-value head; a partition is 256 positions, from a multiple of 256 on.
Formula: softmax base 2 over a partition (tile.py); partitions are joined in order (partials.py). A
work item is a (tile, key-value head); each thread takes items of its own share, long tiles first,
then helps with the others'. Where items are few, the partitions of each are items of their own, and
whoever finishes the last one joins them.
Promise: batch-invariant and deterministic. Chunks and partitions start at fixed positions of the
sequence, a row's operations depend on its position alone, and positions beyond a row's own
contribute exact zeros, so decode, prefill, any chunking and any number of threads give the same
bits. With a window, a tile starts at the chunk of the first position that any of its rows sees;
chunks before it would change nothing. f32 accumulation; probabilities are rounded to the activation
type. Keys and values of 8 bits are widened once for a tile; their scales meet scores and
probabilities. Cost is 4*H FLOPs for each (query head, position) and the cache read once for a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.abi import TILE_WORDS
from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import Isa
from tidemill.codegen.kernel import Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I32, I64
from tidemill.ops.layout import ATTENTION_PARTITION, CacheLayout, activation_row
from tidemill.ops.paged_attention.partials import Partials, partial_row_bytes
from tidemill.ops.paged_attention.tile import TilePart
from tidemill.ops.paged_attention.tile_state import MAX_SPARE_ROWS, TileShape
from tidemill.ops.row import activation_dtype

FIELDS = ("tiles", "num_tiles", "tables", "table_row", "q", "k", "v", "y", "work")
# Work memory: words, each in a cache line of its own, for the threads that are done, the items
# taken of each share and the finished partitions of each item that may be split; then those
# items' partial results.
_MOST_SHARES = 64
_LEFT, _TAKEN, _LINE = 0, 8, 8
_FINISHED = _TAKEN + _LINE * _MOST_SHARES
MAX_SPLIT_ITEMS = 32
_HEADER_BYTES = 8 * (_FINISHED + _LINE * MAX_SPLIT_ITEMS)
_ENOUGH_ITEMS_A_THREAD = 4


def tile_tokens(group: int) -> int:
    """Tokens of a prefill tile: about 24 rows, so that a chunk of K and V serves many queries."""
    return max(1, 24 // group)


def work_bytes(group: int, head_size: int, max_seq_len: int) -> int:
    """Work memory, shared by all threads; zero before the first step.

    Pages are taken as they are written, so that its size counts only where contexts are long.
    """
    num_parts = -(-max_seq_len // ATTENTION_PARTITION)
    return _HEADER_BYTES + MAX_SPLIT_ITEMS * num_parts * _slot_bytes(group, head_size)


def _slot_bytes(group: int, head_size: int) -> int:
    """One partial result of a tile, whatever the target's row groups."""
    return (tile_tokens(group) * group + MAX_SPARE_ROWS) * partial_row_bytes(head_size)


@dataclass(frozen=True)
class AttentionKernel:
    """Shapes of one model's heads; a row sees its last `window` positions, 0 means all."""

    isa: Isa
    num_heads: int
    cache: CacheLayout
    window: int = 0

    @property
    def activation(self) -> DType:
        return activation_dtype(self.cache.compute)

    @property
    def group(self) -> int:
        return self.num_heads // self.cache.num_kv_heads

    @property
    def row_bytes(self) -> int:
        width = self.num_heads * self.cache.head_size
        return activation_row(width, self.activation) * self.activation.itemsize_bytes

    @property
    def partials(self) -> Partials:
        return Partials(self.isa, self.cache.head_size, self.group, self.activation, self.row_bytes)

    def shape(self, tokens: int) -> TileShape:
        """The tile of so many tokens."""
        return TileShape(self.isa, self.cache, self.partials, tokens, self.window)

    def emit(self, module: Module, symbol: str) -> Kernel:
        """Emit the kernel, and a body for each tile height."""
        return _Dealer(self, module, symbol).emit()


@dataclass(frozen=True)
class _Item:
    """One (tile, head): its index among the step's, its place, and its positions' partitions."""

    index: Value
    row: Value
    count: Value
    position: Value
    head: Value
    table: Pointer
    first: Value

    @property
    def end(self) -> Value:
        return self.position + self.count

    @property
    def num_parts(self) -> Value:
        return (self.end - self.first + (ATTENTION_PARTITION - 1)) // ATTENTION_PARTITION


class _Dealer:
    """The kernel's body: deals items to threads."""

    def __init__(self, kernel: AttentionKernel, module: Module, symbol: str) -> None:
        self.kernel, partials = kernel, kernel.partials
        self.bodies = {
            tokens: TilePart(
                kernel.shape(tokens), kernel.row_bytes, module, f"{symbol}_part_{tokens}"
            ).emit()
            for tokens in sorted({1, tile_tokens(kernel.group)})
        }
        self.join = partials.emit_join(module, f"{symbol}_join")
        self.finish = partials.emit_finish(module, f"{symbol}_finish")
        self.record, self.frame = open_kernel(module, symbol, FIELDS)
        self.f = self.frame.f
        self.num_tiles = self.frame.count("num_tiles")
        self.work = self.frame.pointer("work", I64)
        self.slot_bytes = _slot_bytes(kernel.group, kernel.cache.head_size)
        self.own, self.more = (self.f.stack(F32, self.slot_bytes // 4) for _ in range(2))

    def emit(self) -> Kernel:
        f, frame = self.f, self.frame
        num_heads = self.kernel.cache.num_kv_heads
        num_items = self.num_tiles * num_heads
        is_split = (num_items <= MAX_SPLIT_ITEMS) & (
            num_items < frame.num_threads * _ENOUGH_ITEMS_A_THREAD
        )
        parts = f.registers(I64)
        parts[0] = 1
        with f.when(is_split & (frame.num_threads > 1)), f.loop(0, self.num_tiles) as t:
            parts[0] = parts[0].max(self._item(t * num_heads).num_parts)
        num_parts = parts[0]
        num_shares = frame.num_threads.min(_MOST_SHARES)
        with f.loop(0, num_shares) as nth:
            share = (frame.thread + nth) % num_shares
            self._take_share(share, num_shares, num_items * num_parts, num_parts)
        self._leave(num_shares)
        return self.record

    def _take_share(self, share: Value, num_shares: Value, total: Value, num_parts: Value) -> None:
        """Serve what is left of one of the equal shares that all items are cut into."""
        f, first = self.f, share * total // num_shares
        size = (share + 1) * total // num_shares - first
        counter, taken = self.work.at(share * _LINE + _TAKEN), f.registers(I64)
        taken[0] = counter.atomic_load("monotonic")
        with f.when(taken[0] < size):
            taken[0] = counter.atomic_add(1)
        with f.repeat_until() as until:
            with f.when(taken[0] < size):
                following = counter.atomic_add(1)
                after = f.select(following < size, following, taken[0])
                self._serve(first + taken[0], first + after, num_parts)
                taken[0] = following
            until(taken[0] >= size)

    def _leave(self, num_shares: Value) -> None:
        """The last thread to leave makes the counters ready for the next layer."""
        left = self.work.at(_LEFT)
        with self.f.when((left.atomic_add(1) + 1).eq(self.frame.num_threads)):
            left[0] = 0
            with self.f.loop(0, num_shares) as share:
                self.work.at(share * _LINE + _TAKEN)[0] = 0

    def _item(self, index: Value) -> _Item:
        """Item `index`: tile by tile, from the last, which is the longest of a prompt."""
        num_heads = self.kernel.cache.num_kv_heads
        tile = self.num_tiles - 1 - index // num_heads
        words = self.frame.pointer("tiles", I32).at(tile * TILE_WORDS)
        table_row = self.frame.integer("table_row")
        row, count, position, sequence = (words[i].to(I64) for i in range(TILE_WORDS))
        table = self.frame.pointer("tables", I32).at(sequence * table_row)
        seen = self.kernel.shape(1).first_seen(position)
        first = seen // ATTENTION_PARTITION * ATTENTION_PARTITION
        return _Item(index, row, count, position, index % num_heads, table, first)

    def _serve(self, taken: Value, following: Value, num_parts: Value) -> None:
        f, item, after = self.f, self._item(taken // num_parts), self._item(following // num_parts)
        with f.when(num_parts.eq(1)):
            self._compute_whole(item, after)
        with f.when(num_parts > 1):
            self._compute_part(item, after, taken % num_parts, num_parts)

    def _compute_whole(self, item: _Item, after: _Item) -> None:
        """All partitions of an item, joined as they come."""
        f = self.f
        self._call_body(item, after, item.first, self.own)
        second = item.first + ATTENTION_PARTITION
        with f.loop(second, item.end, ATTENTION_PARTITION) as start:
            self._call_body(item, after, start, self.more)
            f.call(self.join, self.own, self.more, item.count * self.kernel.group)
        f.call(self.finish, self.own, self._output(item), item.count)

    def _compute_part(self, item: _Item, after: _Item, part: Value, num_parts: Value) -> None:
        """One partition of an item; the last one done joins all of them, in order."""
        f, slot_bytes = self.f, self.slot_bytes
        slots = self.work.of(F32).bytes(_HEADER_BYTES).bytes(item.index * num_parts * slot_bytes)
        with f.when(part < item.num_parts):
            start = item.first + part * ATTENTION_PARTITION
            self._call_body(item, after, start, slots.bytes(part * slot_bytes))
            finished = self.work.at(_FINISHED).at(item.index * _LINE)
            with f.when((finished.atomic_add(1) + 1).eq(item.num_parts)):
                finished[0] = 0
                with f.loop(1, item.num_parts) as other:
                    more = slots.bytes(other * slot_bytes)
                    f.call(self.join, slots, more, item.count * self.kernel.group)
                f.call(self.finish, slots, self._output(item), item.count)

    def _call_body(self, item: _Item, after: _Item, start: Value, rows: Pointer) -> None:
        f = self.f
        args = [
            self._heads_part("q", item), self._cached("k", item), self._cached("v", item),
            item.table, self._cached("k", after), self._cached("v", after), after.table, rows,
            item.position, item.count, start, start + ATTENTION_PARTITION,
        ]  # fmt: skip
        for height, body in self.bodies.items():
            chosen = item.count.eq(1) if height == 1 else item.count > 1
            with f.when(chosen if len(self.bodies) > 1 else item.count > 0):
                f.call(body, *args)

    def _cached(self, name: str, item: _Item) -> Pointer:
        return self.frame.pointer(name, F32).bytes(item.head * self.kernel.cache.head_bytes)

    def _output(self, item: _Item) -> Pointer:
        return self._heads_part("y", item)

    def _heads_part(self, name: str, item: _Item) -> Pointer:
        """The item's heads in its first row of queries or results."""
        kernel = self.kernel
        part_bytes = kernel.group * kernel.cache.head_size * kernel.activation.itemsize_bytes
        rows = self.frame.pointer(name, F32).bytes(item.row * kernel.row_bytes)
        return rows.bytes(item.head * part_bytes)
