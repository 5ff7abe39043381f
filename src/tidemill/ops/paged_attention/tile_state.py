"""What the emission of one tile's body goes on with: its shape, memory and the current chunk.

Legend: R rows (token-major, `group` query heads a token) in row groups whose sums fit the
registers; C chunk of 64 cached positions, four columns of 16; H head width. Knows where things
lie, nothing of what is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, Isa
from tidemill.codegen.types import I64
from tidemill.ops.cpu_elements import PairMath
from tidemill.ops.layout import ATTENTION_CHUNK, ATTENTION_PARTITION, CacheLayout
from tidemill.ops.paged_attention.cached_head import CachedHead, WidenedPart
from tidemill.ops.paged_attention.partials import Partials

MAX_SPARE_ROWS = 8  # that the last row group may have beyond the tile's own
COLUMNS = ATTENTION_CHUNK // LANES
ROW_POSITIONS = ATTENTION_PARTITION + LANES  # in memory; the last ones are zeros, or not used


@dataclass(frozen=True)
class TileShape:
    """Heads of one model, and the tokens of a tile; `window` 0 means that all is seen."""

    isa: Isa
    cache: CacheLayout
    partials: Partials
    tokens: int
    window: int

    @property
    def group(self) -> int:
        return self.partials.group

    @property
    def activation(self) -> DType:
        return self.partials.activation

    @property
    def math(self) -> PairMath:
        return PairMath(self.isa, self.cache.compute)

    @property
    def words(self) -> int:
        """Words of `step` dimensions of a head."""
        return self.cache.head_size // self.cache.step

    @property
    def goes_by_chunk(self) -> bool:
        """Whether all rows take a chunk's values before any goes on.

        A single token's values come from far away and are read once; for the rows of a prompt
        products are the limit, and sums stay in registers for a whole partition.
        """
        return self.tokens == 1

    @property
    def num_row_groups(self) -> int:
        return -(-self.tokens * self.group // self.isa.attention_rows)

    @property
    def rows_a_group(self) -> int:
        return -(-self.tokens * self.group // self.num_row_groups)

    @property
    def num_rows(self) -> int:
        """Rows that have memory; the last group's may be more than the tile's."""
        return self.num_row_groups * self.rows_a_group

    def first_seen(self, position: Value) -> Value:
        """The first position that a row at `position` sees."""
        if not self.window:
            return position.f.constant(0, position.type)
        return (position - (self.window - 1)).max(0)

    def is_seen(self, lanes: Value, end: Value) -> Value:
        """Which lanes lie in a window that ends before lane `end`."""
        if not self.window:
            return lanes < end
        return (lanes < end) & (lanes >= end - self.window)


@dataclass(frozen=True)
class TileState:
    """Memory of a tile's partition, from position `start` on.

    Queries side by side, scores, shares, where each row's sight ends, results. Of an 8-bit cache,
    `widened` is where keys and values go before they meet the rows, and `weights` are the shares
    with the values' scales; otherwise they are the shares.
    """

    f: Function
    shape: TileShape
    start: Value
    q: Pointer
    scores: Pointer
    shares: Pointer
    weights: Pointer
    limits: Pointer
    exp2_tables: Pointer | None
    rows: Pointer
    head: CachedHead
    widened: WidenedPart | None

    def row(self, g: Value, r: Value | int) -> Pointer:
        """The result so far of row r of row group g."""
        partials = self.shape.partials
        return self.rows.at(g * (self.shape.rows_a_group * partials.row_floats)).at(
            r * partials.row_floats
        )

    def num_columns(self, end: Value) -> Value:
        """Columns of the partition up to position `end`."""
        return (end - self.start + (LANES - 1)) // LANES

    def scores_of(self, g: Value, r: Value | int) -> Pointer:
        return self.scores.at(g * (self.shape.rows_a_group * ROW_POSITIONS)).at(r * ROW_POSITIONS)

    def shares_of(self, g: Value, r: Value | int) -> Pointer:
        return self._shares_row(self.shares, g, r)

    def weights_of(self, g: Value, r: Value | int) -> Pointer:
        return self._shares_row(self.weights, g, r)

    def _shares_row(self, shares: Pointer, g: Value, r: Value | int) -> Pointer:
        row_bytes = ROW_POSITIONS * self.shape.activation.itemsize_bytes
        return shares.bytes(g * (self.shape.rows_a_group * row_bytes)).bytes(r * row_bytes)

    @property
    def source(self) -> CachedHead | WidenedPart:
        """What the keys and values that meet the rows are read from."""
        return self.head if self.widened is None else self.widened

    def first_key(self, start: Value) -> Value:
        """Where the keys of the chunk at `start` begin in the source."""
        return start if self.widened is None else self.f.constant(0, I64)

    def first_value(self, start: Value) -> Value:
        """Where the values of the chunk at `start` begin in the source."""
        return start if self.widened is None else start - self.start

    def fetched_columns(self, g: Value) -> list[Value]:
        """Each row group fetches its share of the columns that come next."""
        each = -(-COLUMNS // self.shape.num_row_groups)
        return [(g * each + i).min(COLUMNS - 1) * LANES for i in range(each)]


@dataclass(frozen=True)
class Chunk:
    """Positions [start, start + 64), of which some row sees the first `columns` * 16.

    `following` is the head, and the position, of what will be wanted after this chunk. A whole
    chunk is seen by every row to its end.
    """

    start: Value
    end: Value
    columns: Value
    following: tuple[CachedHead, Value]
    is_whole: bool
