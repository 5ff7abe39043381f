"""The kernels that a plan needs, each emitted once however many ops share it.

In: an op of the lowered graph. Out: its kernel. One kernel for each distinct (op, shape, scheme);
layers of equal shape share one. Knows the shapes of an op's operands, not where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tidemill.base.dtypes import DType
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.tactics import Width
from tidemill.codegen.isa import Isa
from tidemill.codegen.kernel import Kernel
from tidemill.codegen.module import Module
from tidemill.codegen.spmd import emit_team
from tidemill.engine.manifest import KvLayout
from tidemill.ir.graph import Op
from tidemill.ops.embedding import cpu as embedding_cpu
from tidemill.ops.gather_last import cpu as gather_last_cpu
from tidemill.ops.layout import CacheLayout
from tidemill.ops.linear.cpu import LinearKernel
from tidemill.ops.linear.epilogue import Epilogue, add_residual, gate_silu, store
from tidemill.ops.linear.formats import format_for
from tidemill.ops.linear.tactics import TacticTable, default_table
from tidemill.ops.paged_attention.cpu import AttentionKernel, tile_tokens
from tidemill.ops.quantize import cpu as quantize_cpu
from tidemill.ops.rms_norm.cpu import RmsNormKernel
from tidemill.ops.rope_cache.cpu import RopeCacheKernel
from tidemill.ops.sample import cpu as sample_cpu


class KernelLibrary:
    """Emits kernels into one module on demand.

    `piece_bytes` of the cache are what a linear layer's tile fetches ahead for an attention. Rows
    of 8 bits have the sums of their blocks if `has_sums`.
    """

    def __init__(
        self,
        isa: Isa,
        config: BuildConfig,
        tables: Mapping[Width, TacticTable] | None = None,
        piece_bytes: int = 0,
        has_sums: bool = True,
    ) -> None:
        self.module = Module()
        self._isa, self._config, self._tables = isa, config, tables or {}
        self._piece_bytes, self._has_sums = piece_bytes, has_sums
        self._kernels: dict[str, Kernel] = {}
        self._kind_to_emit: dict[str, Callable[[Op], Kernel]] = {
            "embedding": self._embedding,
            "rms_norm": self._rms_norm,
            "linear": self._linear,
            "linear_residual": self._linear,
            "linear_gated": self._linear,
            "quantize": self._quantize,
            "rope_cache": self._rope_cache,
            "paged_attention": self._paged_attention,
            "gather_last": self._gather_last,
            "sample": self._sample,
        }
        emit_team(self.module, isa)

    def kernel(self, op: Op) -> Kernel:
        """Return the op's kernel, emitting it if it is new."""
        return self._kind_to_emit[op.kind](op)

    def _once(self, symbol: str, emit: Callable[[str], Kernel]) -> Kernel:
        if symbol not in self._kernels:
            self._kernels[symbol] = emit(symbol)
        return self._kernels[symbol]

    def _embedding(self, op: Op) -> Kernel:
        dtype, columns = op.inputs[1].type.dtype, _columns(op)
        return self._once(
            f"embedding_{dtype.value}_{columns}",
            lambda symbol: embedding_cpu.emit(self.module, symbol, dtype, columns),
        )

    def _rms_norm(self, op: Op) -> Kernel:
        activation, columns = op.outputs[0].type.dtype, _columns(op)
        epsilon = float(op.attrs["epsilon"])
        emitter = RmsNormKernel(self._isa, activation, columns, epsilon, self._has_sums)
        # Norms of equal width may differ in epsilon: it is part of the identity.
        return self._once(
            f"rms_norm_{activation.value}_{columns}_{epsilon!r}".replace("-", "m"),
            lambda symbol: emitter.emit(self.module, symbol),
        )

    def _linear(self, op: Op) -> Kernel:
        x, weight = (value.type for value in op.inputs[:2])
        form, k = format_for(self._isa, weight.dtype, x.dtype), int(weight.shape[1])
        parts = [op.kind, form.name, f"k{k}"]
        parts += [str(op.attrs["dtype"])] if op.kind == "linear_gated" else []
        parts += ["bias"] if has_bias(op) else []
        kernel = LinearKernel(self.module, form, k, _epilogue(op), self._piece_bytes)
        table = self._tables.get((form.weight, form.activation, k), default_table(form))
        return self._once("_".join(parts), lambda symbol: kernel.emit(symbol, table))

    def _quantize(self, op: Op) -> Kernel:
        activation, columns = op.inputs[0].type.dtype, _columns(op)
        return self._once(
            f"quantize_{activation.value}_{columns}",
            lambda symbol: quantize_cpu.emit(
                self.module, symbol, activation, columns, self._has_sums
            ),
        )

    def _rope_cache(self, op: Op) -> Kernel:
        emitter = RopeCacheKernel(
            self._isa,
            op.outputs[0].type.dtype,
            int(op.attrs["num_heads"]),
            int(op.attrs["rotary_dim"]),
            float(op.attrs["scale"]),
            self._cache(op, op.outputs[0].type.dtype),
        )
        return self._once("rope_cache", lambda symbol: emitter.emit(self.module, symbol))

    def _paged_attention(self, op: Op) -> Kernel:
        num_heads, window = int(op.attrs["num_heads"]), int(op.attrs["window"])
        cache = self._cache(op, op.inputs[0].type.dtype)
        emitter = AttentionKernel(self._isa, num_heads, cache, window)
        symbol = f"paged_attention_w{window}" if window else "paged_attention"
        return self._once(symbol, lambda symbol: emitter.emit(self.module, symbol))

    def _gather_last(self, op: Op) -> Kernel:
        return self._once("gather_last", lambda symbol: gather_last_cpu.emit(self.module, symbol))

    def _sample(self, op: Op) -> Kernel:
        vocab_size = int(op.inputs[0].type.shape[1])
        return self._once("sample", lambda symbol: sample_cpu.emit(self.module, symbol, vocab_size))

    def _cache(self, op: Op, activation: DType) -> CacheLayout:
        stored = DType(op.attrs["cache_dtype"])
        return CacheLayout(
            int(op.attrs["num_kv_heads"]),
            int(op.attrs["head_size"]),
            self._config.tokens_per_block,
            stored,
            activation if stored.is_quantized else stored,
        )


def kv_layout(ops: Sequence[Op], config: BuildConfig) -> KvLayout:
    """Describe the cache that the kernels of a model's attention ops use."""
    attentions = [op for op in ops if op.kind == "paged_attention"]
    attention = attentions[0]
    windows = [int(op.attrs["window"]) for op in attentions]
    heads, kv_heads = int(attention.attrs["num_heads"]), int(attention.attrs["num_kv_heads"])
    return KvLayout(
        num_layers=len({op.layer for op in attentions}),
        num_kv_heads=kv_heads,
        head_size=int(attention.attrs["head_size"]),
        tokens_per_block=config.tokens_per_block,
        dtype=DType(attention.attrs["cache_dtype"]),
        tile_tokens=tile_tokens(heads // kv_heads),
        attention_window=max(windows) if all(windows) else None,
    )


def has_bias(op: Op) -> bool:
    """Whether a linear op of any form adds a bias: its inputs alone say so."""
    return len(op.inputs) > (2 if op.kind == "linear" else 3)


def _epilogue(op: Op) -> Epilogue:
    if op.kind == "linear_gated":
        return gate_silu(DType(op.attrs["dtype"]), has_bias(op))
    return {"linear": store, "linear_residual": add_residual}[op.kind](has_bias(op))


def _columns(op: Op) -> int:
    return int(op.outputs[0].type.shape[1])
