"""Verify: an engine's every op against the checkpoint's own maths, in order.

In: an engine and the checkpoint it was built from. Out: a `VerifyReport`, or an error naming the
first op that diverges. One prompt is run op by op. Each op is judged twice: alone, on the inputs
that the engine itself gave it (so a fault is found where it happens), and along the chain, against
a float32 interpretation of the same graph (so that small errors cannot add up unseen).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tidemill.api.retarget import ensure_native_code
from tidemill.base.dtypes import DType
from tidemill.base.errors import VerificationError
from tidemill.builder.pipelines.cpu import run_cpu_pipeline
from tidemill.checkpoint.checkpoint import Checkpoint
from tidemill.engine.manifest import PlanOp
from tidemill.ir.graph import Graph, Op
from tidemill.ir.storage import Array, widen
from tidemill.network.registry import find_architecture
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.interpreter import load_constant, run_op, walk
from tidemill.quant.packing import unpack_activations
from tidemill.quant.schemes import NONE, Quantization, find_cache_dtype, find_scheme
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.request import SamplingParams
from tidemill.runtime.step import PlanEntry, StepPlan

NUM_TOKENS = 24
SEED = 20_251

# Bounds on rms error over rms of the reference. Alone: one op's rounding of its output and, for
# attention, of its probabilities. Chain: what that grows to over a whole model; twice to four
# times what SmolLM2-135M shows (docs/ACCURACY.md).
ALONE_BOUND = {DType.F32: 1e-5, DType.F16: 2e-3, DType.BF16: 1.5e-2}
CHAIN_BOUND = {DType.F32: 1e-4, DType.F16: 1e-2, DType.BF16: 6e-2}
# With q8 activations, an op alone is judged against levels rounded as the engine rounds them: a few
# at a tie may differ. Along the chain each level's half step counts, and the last layer's outliers
# make that a fifth of the residual stream (a sixteenth of the logits) in SmolLM2-135M.
LEVELS_ALONE_BOUND = 2e-3
LEVELS_CHAIN_BOUND = 0.5


@dataclass(frozen=True)
class OpError:
    """One op's errors, as rms over rms of the reference."""

    op: str
    layer: int
    output: str
    alone: float
    chain: float


@dataclass(frozen=True)
class VerifyReport:
    """Errors of every op in plan order, the bounds they kept, and whether tokens agree."""

    engine_dir: Path
    checkpoint_dir: Path
    dtype: str
    alone_bound: float
    chain_bound: float
    is_same_token: bool
    errors: tuple[OpError, ...]

    def __str__(self) -> str:
        last = self.errors[-1].layer
        layers = sorted({e.layer for e in self.errors if e.layer >= 0})
        lines = [
            f"{self.engine_dir} agrees with {self.checkpoint_dir}: {len(self.errors)} ops, "
            f"weights in {self.dtype}",
            f"  {'layer':>7} {'worst op alone':>28} {'error alone':>12} {'along chain':>12}",
        ]
        for layer in [*layers, last]:
            rows = [e for e in self.errors if e.layer == layer]
            worst = max(rows, key=lambda e: e.alone)
            name = str(layer) if layer >= 0 else "outside"
            chain = rows[-1].chain
            lines.append(f"  {name:>7} {worst.op:>28} {worst.alone:12.1e} {chain:12.1e}")
        token = "the same" if self.is_same_token else "another (a near tie)"
        lines.append(
            f"bounds: {self.alone_bound:g} alone, {self.chain_bound:g} along the chain; "
            f"the next token is {token}"
        )
        return "\n".join(lines)


def verify_engine(engine_dir: Path, checkpoint_dir: Path) -> VerifyReport:
    """Run a prompt of random tokens through engine and interpreter, and compare op by op.

    Raises: VerificationError naming the first op that diverges, EngineFormatError (the file's
    full hash is checked first), CheckpointError.
    """
    checkpoint = Checkpoint.open(checkpoint_dir)
    ensure_native_code(engine_dir)
    executor = NativeExecutor.load(engine_dir, kv_cache_tokens=4 * NUM_TOKENS, is_checked=True)
    try:
        model = find_architecture(checkpoint.config.architecture, str(checkpoint_dir))
        quantization = _quantization(executor)
        graph = run_cpu_pipeline(
            model.draw(checkpoint.config, checkpoint, executor.limits.max_seq_len), quantization
        )
        _check_same_plan(executor, graph, engine_dir)
        return _compare(executor, graph, checkpoint, engine_dir)
    finally:
        executor.close()


def _quantization(executor: NativeExecutor) -> Quantization:
    """Read the schemes that the engine was built with."""
    built = executor.engine.config["build_config"]
    where = f"{executor.engine.path}, build_config"
    layers, head = (
        find_scheme(built.get(name, NONE.name), where) for name in ("quant", "quant_head")
    )
    cache = find_cache_dtype(built.get("kv_cache_dtype", "none"), where)
    return Quantization(layers, head, cache)


def _check_same_plan(executor: NativeExecutor, graph: Graph, engine_dir: Path) -> None:
    built = [(op.op, op.output) for op in executor.manifest.plan]
    drawn = [(op.kind, op.outputs[0].name) for op in graph.ops]
    if built == drawn:
        return
    at = next(
        (i for i, pair in enumerate(zip(built, drawn, strict=False)) if pair[0] != pair[1]),
        min(len(built), len(drawn)),
    )
    raise VerificationError(
        "the engine was built from another graph than this checkpoint draws",
        where=f"{engine_dir}, op {at}",
        expected=str(drawn[at : at + 1]),
        got=str(built[at : at + 1]),
        hint="verify against the checkpoint that the engine was built from, or build again",
    )


def _compare(
    executor: NativeExecutor, graph: Graph, checkpoint: Checkpoint, engine_dir: Path
) -> VerifyReport:
    config = checkpoint.config
    count = min(NUM_TOKENS, executor.limits.max_num_tokens, executor.limits.max_seq_len)
    tokens = np.random.default_rng(SEED).integers(0, config.vocab_size, count)
    judge = _Judge(executor, graph, config.weight_dtype, tokens)
    blocks = list(range(-(-count // executor.limits.tokens_per_block)))
    entry = PlanEntry(0, tokens.tolist(), 0, blocks, True, SamplingParams())
    result = executor.execute_traced(StepPlan((entry,)), judge.observe)
    return VerifyReport(
        engine_dir=engine_dir,
        checkpoint_dir=checkpoint.directory,
        dtype=config.dtype,
        alone_bound=judge.alone_bound,
        chain_bound=judge.chain_bound,
        is_same_token=result.sampled_tokens[0] == int(judge.chain_tokens[0]),
        errors=tuple(judge.errors),
    )


def _rounds_to_levels(op: Op) -> bool:
    """Whether an op quantises what it hands on, or what it stores in the cache."""
    if op.kind == "rope_cache":
        return DType(op.attrs["cache_dtype"]).is_quantized
    return op.outputs[0].type.dtype.is_quantized


class _Judge:
    """Follows the engine op by op with two references."""

    def __init__(self, executor: NativeExecutor, graph: Graph, dtype: DType, tokens: Array) -> None:
        self._executor = executor
        self.alone_bound, self.chain_bound = ALONE_BOUND[dtype], CHAIN_BOUND[dtype]
        if any(map(_rounds_to_levels, graph.ops)):
            self.alone_bound = max(self.alone_bound, LEVELS_ALONE_BOUND)
            self.chain_bound = max(self.chain_bound, LEVELS_CHAIN_BOUND)
        self._ops = iter(graph.ops)
        self._inputs: dict[str, Array] = {
            "tokens": tokens.astype(np.int32),
            "positions": np.arange(len(tokens), dtype=np.int32),
            "logit_rows": np.array([len(tokens) - 1], dtype=np.int32),
        }
        self._constants = {c.value.name: c for c in graph.constants}
        self._alone_batch = Batch((0, len(tokens)), (0,))
        self._native: dict[str, Array] = {}
        self._chain = self._walk(graph)
        self.errors: list[OpError] = []
        self.chain_tokens: Array = np.zeros(1, np.int32)

    def _walk(self, graph: Graph) -> Iterator[Array]:
        batch = Batch(self._alone_batch.sequence_starts, (0,))
        for _, outputs in walk(graph, self._inputs, batch):
            yield outputs[0]

    def observe(self, planned: PlanOp) -> None:
        """Judge the op that has just run.

        Raises: VerificationError when it diverges.
        """
        op = next(self._ops)
        chain = next(self._chain)
        if op.kind == "sample":
            self.chain_tokens = chain
            return
        got = self._read(op)
        operands = [self._operand(v.name) for v in op.inputs]
        numerics = Numerics(round_activations=_rounds_to_levels(op))
        alone = run_op(op, operands, self._alone_batch, numerics)[0]
        error = OpError(
            op.kind, op.layer, planned.output, _rms_error(got, alone), _rms_error(got, chain)
        )
        self._native[op.outputs[0].name] = got
        self._check(error, op, got, alone)
        self.errors.append(error)

    def _operand(self, name: str) -> Array:
        if name in self._native:
            return self._native[name]
        if name in self._inputs:
            return self._inputs[name]
        return load_constant(self._constants[name])

    def _read(self, op: Op) -> Array:
        """Copy the op's output out of the arena, without padding, as f32."""
        value = op.outputs[0]
        rows = len(self._inputs["tokens" if value.type.shape[0] == "T" else "logit_rows"])
        stored = self._executor.buffer(value.name)[:rows]
        dtype = value.type.dtype
        return widen(unpack_activations(stored, int(value.type.shape[1]), dtype), dtype)

    def _check(self, error: OpError, op: Op, got: Array, expected: Array) -> None:
        bounds = self.alone_bound, self.chain_bound
        if error.alone <= bounds[0] and error.chain <= bounds[1]:
            return
        worst = np.unravel_index(np.argmax(np.abs(got - expected)), got.shape)
        raise VerificationError(
            f"the engine diverges from the checkpoint's maths in op {op.kind}",
            where=f"layer {op.layer}, value %{op.outputs[0].name}, "
            f"row {worst[0]}, column {worst[1]}",
            expected=f"rms error within {bounds[0]:g} alone and {bounds[1]:g} along the "
            f"chain, value {expected[worst]:.6g}",
            got=f"{error.alone:.1e} and {error.chain:.1e}, value {got[worst]:.6g}",
            hint="build the engine again from this checkpoint; if it persists, report the model, "
            "the target and this message",
        )


def _rms_error(got: Array, expected: Array) -> float:
    """Root mean square of the difference over that of the reference; NaN counts as infinite."""
    difference = got.astype(np.float64) - expected.astype(np.float64)
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0
    error = float(np.sqrt(np.mean(np.square(difference)))) / scale
    return error if np.isfinite(error) else float("inf")
