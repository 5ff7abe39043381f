"""What an engine file says about itself: a schema of plain frozen dataclasses, stored as JSON.

The plan is data: one `PlanOp` for each native call, whose operands are offsets into named memory
(weights, arena, key-value cache, step inputs). Code is one position-independent image with entry
offsets. Knows nothing of models, kernels or files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidemill.base.dtypes import DType


@dataclass(frozen=True)
class TensorSpec:
    """A buffer's meaning: element type, logical shape and the padded row width that is stored.

    `rows` is a symbol ("T", "S", "L") or a number as text; `row_elements` counts stored elements
    a row, padding included; `columns` the logical ones. An arena buffer is live from the op that
    writes it through the last op that reads it, [first_op, last_op]; -1 where that does not apply.
    """

    name: str
    dtype: DType
    rows: str
    columns: int
    row_elements: int
    offset_bytes: int
    size_bytes: int
    first_op: int = -1
    last_op: int = -1


@dataclass(frozen=True)
class Operand:
    """One 64-bit field of a plan record.

    `space` is "weights", "arena", "input" or "scratch" (then `value` is an offset in bytes that
    the loader adds to that memory's base address), "kv" (`value` is 2 * layer for keys and one
    more for values) or "immediate" (`value` is used as it is).
    """

    name: str
    space: str
    value: int


@dataclass(frozen=True)
class PlanOp:
    """One native call: the kernel's symbol, its operands in record order, what it stands for.

    Rows that each thread makes or reads in a copy of its own have room for so many; 0: no copies.
    """

    kernel: str
    op: str
    layer: int
    output: str
    operands: tuple[Operand, ...]
    flops_per_row: float = 0.0
    bytes_fixed: float = 0.0
    made_copies: int = 0
    read_copies: int = 0


@dataclass(frozen=True)
class CodeSection:
    """The code image of one target: entry offsets by symbol, bytes are in the file."""

    target: str
    cpu_features: tuple[str, ...]
    entry_offsets: dict[str, int]
    compiler: str


@dataclass(frozen=True)
class KvLayout:
    """The paged key-value cache of this engine: bytes of one block of one layer, K and V each.

    `tile_tokens` is the most tokens of one attention tile, a property of the compiled kernel.
    Positions more than `attention_window` before the latest are read by no layer; None: all may be.
    """

    num_layers: int
    num_kv_heads: int
    head_size: int
    tokens_per_block: int
    dtype: DType
    tile_tokens: int = 1
    attention_window: int | None = None

    @property
    def block_bytes_per_layer(self) -> int:
        """Bytes of K (or of V) for one block of one layer."""
        return self.num_kv_heads * self.tokens_per_block * self.dtype.row_bytes(self.head_size)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V of one token in all layers."""
        return 2 * self.num_layers * self.block_bytes_per_layer // self.tokens_per_block


@dataclass(frozen=True)
class Section:
    """A range of the file: page-aligned offset, size and SHA-256 of its bytes."""

    offset_bytes: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class WeightRange:
    """Where one packed tensor lies in the weights section. The writer fills these in."""

    name: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class Tactic:
    """How one shape of an op is computed, and why: `chosen_by` is user, default or measured.

    It goes for up to `max_rows` rows (0: any number above the row before); `flops` and `bytes` are
    its cost at the most of them. `measured_us` is the time that decided and `roofline_share` how
    near to the machine's limit that was, 0.0 where nothing was timed.
    """

    op: str
    shape: str
    choice: str
    chosen_by: str
    measured_us: float = 0.0
    max_rows: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    roofline_share: float = 0.0


@dataclass(frozen=True)
class Manifest:
    """Everything but the bytes of code and weights.

    Scratch memory is `shared_scratch_bytes` for all threads, zeroed at load, then
    `scratch_bytes_per_thread` for each. `chosen_by` maps a build value's name to who chose it:
    user, checkpoint or default. The writer fills in `format_version`, `sections` and `weights`.
    """

    tidemill_version: str
    format_version: int
    model_name: str
    rank: int
    world_size: int
    graph_text: str
    plan: tuple[PlanOp, ...]
    buffers: tuple[TensorSpec, ...]
    inputs: tuple[TensorSpec, ...]
    arena_bytes: int
    scratch_bytes_per_thread: int
    kv: KvLayout
    code: CodeSection
    sections: dict[str, Section]
    source_checkpoint: str
    source_hash: str
    weights: tuple[WeightRange, ...] = ()
    tactics: tuple[Tactic, ...] = ()
    shared_scratch_bytes: int = 0
    chosen_by: dict[str, str] = field(default_factory=dict)
