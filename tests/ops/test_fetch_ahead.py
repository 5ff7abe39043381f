"""Linear layers that fetch the cache ahead: what they ask for, and that their products stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from tests.compare import assert_same_bits
from tests.ops.native_op import HOST_TARGETS, count
from tidemill.base import abi
from tidemill.base.dtypes import DType
from tidemill.base.target import NAME_TO_TARGET
from tidemill.codegen.compile import compile_module
from tidemill.codegen.emitter import Pointer
from tidemill.codegen.isa import isa_for
from tidemill.codegen.module import Module
from tidemill.codegen.spmd import emit_team
from tidemill.codegen.types import I64
from tidemill.device.cpu import LoadedCode, Team, address_of
from tidemill.ir.storage import Array, narrow
from tidemill.ops.layout import CACHE_LINE_BYTES, PANEL, padded_n, wide_row
from tidemill.ops.linear.cpu import LinearKernel
from tidemill.ops.linear.epilogue import store
from tidemill.ops.linear.fetch_ahead import ALL_PIECES
from tidemill.ops.linear.formats import format_for
from tidemill.ops.linear.prepared import prepared_bytes
from tidemill.ops.linear.tactics import default_table
from tidemill.quant.packing import pack_activations, pack_panels

ROWS, K, N = 40, 192, 256
BLOCK_BYTES = 3 * 1024
BLOCKS = (3, 1, 6)
NEXT_PANEL_BYTES = 4 * BLOCK_BYTES
FORMATS = (
    (DType.BF16, DType.BF16),
    (DType.Q8, DType.Q8),
    (DType.BF12, DType.BF16),
    (DType.Q8, DType.BF16),
    (DType.Q4G64, DType.Q8),
)


@dataclass
class Layer:
    """A linear layer over random numbers, and a cache of 8 blocks whose first lines are marked."""

    weight: DType
    activation: DType
    num_threads: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        weight = narrow(rng.standard_normal((N, K), np.float32), self.weight)
        x = narrow(rng.standard_normal((ROWS, K), np.float32), self.activation)
        self.x = pack_activations(x, self.activation)
        self.w = pack_panels(weight, self.weight)
        self.scratch = np.zeros(2 * prepared_bytes(K, self.weight) + 64, np.uint8)
        self.k, self.v = (np.zeros((8, BLOCK_BYTES), np.uint8) for _ in range(2))
        self.next_w = np.zeros((4, NEXT_PANEL_BYTES), np.uint8)
        isa, module = isa_for(NAME_TO_TARGET[HOST_TARGETS[0]]), Module()
        emit_team(module, isa)
        form = format_for(isa, self.weight, self.activation)
        self.kernels = [
            LinearKernel(module, form, K, store(), piece_bytes).emit(symbol, default_table(form))
            for symbol, piece_bytes in (("plain", 0), ("ahead", BLOCK_BYTES))
        ]
        image = compile_module(module, isa)
        self.code = LoadedCode(image.data, image.entry_offsets)

    def run(self, blocks: tuple[int, ...], first: int = 0, last: int = ALL_PIECES) -> Array:
        """The products; with blocks, the layer that fetches them."""
        kernel, y = self.kernels[bool(blocks)], np.full((ROWS, wide_row(N)), np.nan, np.float32)
        named: dict[str, Array | int] = {
            "rows": count(ROWS), "x": self.x, "w": self.w, "bias": 0, "y": y,
            "y_row_bytes": y.strides[0], "panels": padded_n(N) // PANEL, "scratch": self.scratch,
            "scratch_bytes": prepared_bytes(K, self.weight), "k": self.k, "v": self.v,
            "blocks": np.array(blocks, np.int32), "num_blocks": count(len(blocks)),
            "block_bytes": BLOCK_BYTES, "fetch_from": first, "fetch_to": last,
            "next_w": self.next_w, "next_panels": 4, "next_panel_bytes": NEXT_PANEL_BYTES,
        }  # fmt: skip
        record = np.zeros((1, abi.RECORD_WORDS), np.int64)
        words = [named[field] for field in kernel.fields]
        record[0, 0] = self.code.address(kernel.symbol)
        record[0, 1 : 1 + len(words)] = [w if isinstance(w, int) else address_of(w) for w in words]
        team = Team(self.code, record, self.num_threads)
        team.step()
        team.close()
        return y[:, :N]


@pytest.mark.parametrize(("weight", "activation"), FORMATS)
def test_products_are_the_same(weight: DType, activation: DType) -> None:
    layer = Layer(weight, activation, 1)
    plain = layer.run(())
    for num_threads in (1, 2):
        layer.num_threads = num_threads
        assert_same_bits(layer.run(BLOCKS), plain, f"products, {num_threads} threads")


class AskedFor:
    """The lines of a layer's cache that code emitted from now on prefetches, marked as it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.caches = np.zeros((2, 8, BLOCK_BYTES), np.uint8)
        num_lines = self.caches.size // CACHE_LINE_BYTES
        self._lines = np.zeros(num_lines + 1, np.int64)  # the last one is of all other memory

        def mark(
            pointer: Pointer, offset_bytes: int, cache_level: int = 1, is_write: bool = False
        ) -> None:
            f = pointer.f
            offset = pointer.to_address() + (offset_bytes - address_of(self.caches))
            line = offset // CACHE_LINE_BYTES  # unsigned: what lies before is far behind
            line = f.select(line < num_lines, line, f.constant(num_lines, I64))
            f.constant(address_of(self._lines), I64).as_pointer(I64).put(line, f.constant(1, I64))

        monkeypatch.setattr(Pointer, "prefetch", mark)

    def layer(self, weight: DType, activation: DType, num_threads: int) -> Layer:
        layer = Layer(weight, activation, num_threads)
        layer.k, layer.v = self.caches
        return layer

    def of(self, cache: int) -> npt.NDArray[np.bool_]:
        """Which lines of each block of the keys (0) or values (1)."""
        asked: npt.NDArray[np.bool_] = self._lines[:-1].reshape(2, 8, -1)[cache] > 0
        return asked


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("weight", "activation"), FORMATS[:2])
def test_every_line_of_the_listed_blocks_is_asked_for_and_no_other(
    weight: DType, activation: DType, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = AskedFor(monkeypatch)
    asked_for.layer(weight, activation, num_threads).run(BLOCKS)
    for cache in range(2):
        asked = asked_for.of(cache)
        assert asked[list(BLOCKS)].all()
        # The line behind a block's last may be asked for, too.
        assert not asked[[0, 2, 4, 5, 7], 1:].any()


def test_a_layer_fetches_its_part_of_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = AskedFor(monkeypatch)
    asked_for.layer(DType.BF16, DType.BF16, 1).run(BLOCKS, ALL_PIECES // 2, ALL_PIECES)
    # Six pieces, keys and values in turns: the last three are block 1's values and both of block 6.
    keys, values = (asked_for.of(cache)[:, 1:].any(1).tolist() for cache in range(2))
    assert [block for block, is_asked in enumerate(keys) if is_asked] == [6]
    assert [block for block, is_asked in enumerate(values) if is_asked] == [1, 6]


def test_each_thread_asks_for_the_panel_that_it_begins_the_next_layer_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_for, layer = AskedFor(monkeypatch), Layer(DType.BF16, DType.BF16, 2)
    layer.next_w = asked_for.caches.reshape(4, -1)
    layer.run(BLOCKS)
    for half in range(2):  # panels 0 and 2 take four blocks each
        asked = asked_for.of(half)
        assert asked[:4].all()
        assert not asked[4:, 1:].any()


@pytest.mark.parametrize(("weight", "activation"), FORMATS)
def test_of_a_huge_piece_the_first_part_is_fetched_by_no_more_code(
    weight: DType, activation: DType
) -> None:
    isa = isa_for(NAME_TO_TARGET[HOST_TARGETS[0]])
    form = format_for(isa, weight, activation)

    def num_prefetches(piece_bytes: int) -> int:
        module = Module()
        LinearKernel(module, form, K, store(), piece_bytes).emit("layer", default_table(form))
        return module.text(isa).count("@llvm.prefetch")

    assert num_prefetches(64) < num_prefetches(1 << 20) == num_prefetches(1 << 30)
