"""Times the attention kernel alone: decode by batch and context, chunks of a prompt.

    scripts/bench attention [--threads N] [--dtypes bf16 q8] [--rounds N]

The kernel is emitted, compiled and called as in an engine, over a paged cache with scattered
blocks and as many layers as make the cache larger than the processor's. Heads are those of
SmolLM2-135M and of a Llama of 1.1B. Rounds take turns with a plain read and a loop of dot
products. Prints one JSON line for each case: microseconds a layer, GB/s of cache and GFLOP/s of
the causal pairs, and `roofline_share`, the time that the slower of both takes at the rates
measured next to it over the time taken.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line, spread
from tidemill.base import abi
from tidemill.base.cpus import num_physical_cores
from tidemill.base.dtypes import DType
from tidemill.base.target import host_targets
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.cpu_kernels import KernelLibrary, kv_layout
from tidemill.builder.machine_limits import MachineLimits
from tidemill.codegen.compile import compile_module
from tidemill.codegen.isa import isa_for
from tidemill.device.cpu import LoadedCode, Team, address_of, allocate
from tidemill.engine.manifest import KvLayout
from tidemill.ir.graph import Op, TensorType, Value
from tidemill.ir.storage import narrow
from tidemill.ops.layout import ATTENTION_CHUNK, activation_row
from tidemill.ops.paged_attention.cpu import work_bytes

BLOCK = 32
LEAST_CACHE_BYTES = 128 << 20  # several times the last level's
MOST_LAYERS = 64
MOST_FLOPS = 5e9  # of a step, so that it stays short


@dataclass(frozen=True)
class Model:
    """A model's heads."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_size: int = 64


@dataclass(frozen=True)
class Case:
    """A step: `batch` sequences that advance by `tokens` from position `start`."""

    batch: int
    start: int
    tokens: int

    @property
    def pairs(self) -> int:
        each = self.tokens * self.start + self.tokens * (self.tokens + 1) // 2
        return self.batch * each

    def __str__(self) -> str:
        if self.tokens == 1:
            return f"decode {self.batch} at {self.start}"
        return f"prefill {self.tokens} at {self.start}"


MODELS = (Model("smollm2-135m", 9, 3), Model("llama-1.1b", 32, 4))
CASES = [Case(b, start, 1) for b in (1, 8, 32) for start in (128, 1024, 4096)]
CASES += [Case(1, 0, 512), Case(1, 1536, 512)]


@dataclass
class Bench:
    """One case, compiled and laid out."""

    model: Model
    case: Case
    dtype: DType
    num_threads: int
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        op, layout, code, symbol = _compile(self.model, self.dtype)
        case, rng = self.case, np.random.default_rng(1)
        blocks_each = -(-(case.start + case.tokens) // BLOCK)
        num_blocks = case.batch * blocks_each + 1
        layer_bytes = 2 * num_blocks * layout.block_bytes_per_layer
        flops = 4 * case.pairs * self.model.num_heads * self.model.head_size
        most_layers = min(MOST_LAYERS, int(MOST_FLOPS / flops))
        self.layers = max(1, min(most_layers, LEAST_CACHE_BYTES // layer_bytes))
        self._cache = allocate(self.layers * layer_bytes)
        # A few random numbers, repeated: bf16 around one, and levels of any size.
        pattern = narrow(rng.standard_normal(1 << 14), DType.BF16)
        noise = pattern.view(np.uint8)
        for at in range(0, len(self._cache), len(noise)):
            part = self._cache[at : at + len(noise)]
            part[:] = noise[: len(part)]
        activation = op.inputs[0].type.dtype
        width = activation_row(self.model.num_heads * self.model.head_size, activation)
        rows = case.batch * case.tokens
        self._q = np.resize(pattern, (rows, width)).copy()
        self._y = np.zeros((rows, width), np.uint16)
        self._tables = np.zeros((case.batch, blocks_each + ATTENTION_CHUNK // BLOCK + 1), np.int32)
        order = rng.permutation(num_blocks - 1) + 1
        self._tables[:, :blocks_each] = order.reshape(case.batch, blocks_each)
        self._tiles = _tiles(case, layout.tile_tokens)
        self._count = np.array([len(self._tiles)], np.int64)
        group = self.model.num_heads // self.model.num_kv_heads
        self._work = allocate(work_bytes(group, self.model.head_size, case.start + case.tokens))
        named: dict[str, npt.NDArray[Any]] = {
            "tiles": self._tiles, "num_tiles": self._count, "tables": self._tables, "q": self._q,
            "y": self._y, "work": self._work,
        }  # fmt: skip
        records = np.zeros((self.layers, abi.RECORD_WORDS), np.int64)
        for layer, record in enumerate(records):
            words = {name: address_of(array) for name, array in named.items()}
            words["table_row"] = self._tables.shape[1]
            words["k"] = address_of(self._cache) + layer * layer_bytes
            words["v"] = words["k"] + layer_bytes // 2
            record[0] = code.address(symbol[0])
            record[1 : 1 + len(symbol[1])] = [words[name] for name in symbol[1]]
        self._team = Team(code, records, self.num_threads)
        read = case.batch * (case.start + case.tokens) * layout.bytes_per_token
        self.cache_bytes = read * self.layers
        self.flops = flops * self.layers

    def visit(self, limits: MachineLimits) -> None:
        """Time a few steps beside the machine's rates."""
        self._team.step()
        count = 3
        start = time.perf_counter()
        for _ in range(count):
            self._team.step()
        seconds = (time.perf_counter() - start) / count
        read_s = self.cache_bytes / limits.read_bytes_per_s()
        dots_s = self.flops / limits.ops_per_s(DType.BF16)
        self.seconds.append(seconds)
        self.shares.append(max(read_s, dots_s) / seconds)

    def report(self) -> None:
        median = statistics.median(self.seconds)
        print_line(
            "attention", model=self.model.name, dtype=self.dtype.value, case=str(self.case),
            threads=self.num_threads, layers=self.layers,
            layer_us=spread([s / self.layers * 1e6 for s in self.seconds], 1),
            gb_s=round(self.cache_bytes / median / 1e9, 1),
            gflop_s=round(self.flops / median / 1e9, 1),
            roofline_share=spread(self.shares),
        )  # fmt: skip

    def close(self) -> None:
        self._team.close()


_compiled: dict[tuple[Model, DType], Any] = {}


def _compile(
    model: Model, dtype: DType
) -> tuple[Op, KvLayout, LoadedCode, tuple[str, tuple[str, ...]]]:
    """The op, its cache, and its code with the kernel's symbol and operands."""
    if (model, dtype) in _compiled:
        return _compiled[model, dtype]  # type: ignore[no-any-return]
    row = TensorType(DType.BF16, ("T", model.num_heads * model.head_size))
    attrs: dict[str, int | float | str | bool] = {
        "num_heads": model.num_heads, "num_kv_heads": model.num_kv_heads,
        "head_size": model.head_size, "cache_dtype": dtype.value, "window": 0,
    }  # fmt: skip
    op = Op("paged_attention", (Value("q", row),), (Value("y", row),), attrs, 0)
    config = BuildConfig(1, 1, 1, 1, 1, BLOCK)
    isa = isa_for(host_targets()[0])
    library = KernelLibrary(isa, config)
    kernel = library.kernel(op)
    image = compile_module(library.module, isa)
    code = LoadedCode(image.data, image.entry_offsets)
    found = op, kv_layout([op], config), code, (kernel.symbol, kernel.fields)
    _compiled[model, dtype] = found
    return found


def _tiles(case: Case, tile_tokens: int) -> npt.NDArray[np.int32]:
    tiles = [
        (sequence * case.tokens + first, min(tile_tokens, case.tokens - first),
         case.start + first, sequence)
        for sequence in range(case.batch)
        for first in range(0, case.tokens, tile_tokens)
    ]  # fmt: skip
    return np.array(tiles, np.int32)


def main() -> None:
    """Lay out one case at a time; rounds over its rates and times; print."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=num_physical_cores())
    parser.add_argument("--dtypes", nargs="+", default=["bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="part of a case's name")
    options = parser.parse_args()
    limits = MachineLimits(options.threads)
    for model in MODELS:
        for case in (case for case in CASES if options.only in str(case)):
            benches = [Bench(model, case, DType(d), options.threads) for d in options.dtypes]
            for _ in range(options.rounds):
                for bench in benches:
                    bench.visit(limits)
            for bench in benches:
                bench.report()
                bench.close()
    limits.close()


if __name__ == "__main__":
    main()
