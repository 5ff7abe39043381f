"""Build: a checkpoint becomes an engine for this machine (or for a named target).

In: a `BuildRequest` of wishes. Out: an engine directory, and a `BuildReport` with the time of each
stage. Wishes are resolved into limits once, with who chose each; the rest is the left wing's work:
draw, rewrite, lower, pack, compile, write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tidemill.api.resolve_build import ResolvedBuild, choose_target, resolve_build
from tidemill.base.cpus import num_physical_cores
from tidemill.base.debug import Level, say
from tidemill.base.errors import ConfigError
from tidemill.base.mapping import Mapping
from tidemill.base.progress import Progress
from tidemill.base.target import host_targets
from tidemill.base.version import __version__
from tidemill.builder.cpu_plan import CpuPlan, emit_for_cpu, lower_for_cpu
from tidemill.builder.pipelines.cpu import run_cpu_pipeline
from tidemill.builder.tactics import ChosenTactics, measure_tactics, shipped_tactics
from tidemill.checkpoint.checkpoint import Checkpoint
from tidemill.codegen.compile import compile_module, compiler_version
from tidemill.codegen.isa import Isa, isa_for
from tidemill.codegen.link import CodeImage
from tidemill.engine.manifest import CodeSection, Manifest
from tidemill.engine.writer import EngineWriter
from tidemill.ir.graph import Graph
from tidemill.ir.text import print_graph
from tidemill.network.registry import find_architecture
from tidemill.ops.row import NO_TOKENS


@dataclass(frozen=True)
class BuildRequest:
    """A user's wishes; None leaves the choice to us. Units: tokens, requests."""

    checkpoint_dir: Path
    output_dir: Path
    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    max_beam_width: int | None = None
    tokens_per_block: int | None = None
    workers: int | None = None
    target: str | None = None
    quant: str | None = None
    quant_head: str | None = None
    kv_cache_dtype: str | None = None
    is_tuned: bool = False


@dataclass(frozen=True)
class BuildReport:
    """What was built, and where the time went. Units: seconds, bytes."""

    engine_dir: Path
    target: str
    weights_bytes: int
    code_bytes: int
    build_config: dict[str, int | str]
    chosen_by: dict[str, str]
    stage_seconds: dict[str, float]
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        total = sum(self.stage_seconds.values())
        stages = ", ".join(f"{name} {s:.2f}" for name, s in self.stage_seconds.items())
        limits = ", ".join(
            f"{name} {value} ({self.chosen_by[name]})" for name, value in self.build_config.items()
        )
        lines = [
            f"engine: {self.engine_dir} for {self.target}",
            f"weights {self.weights_bytes / 1e6:.1f} MB, code {self.code_bytes / 1e3:.0f} kB",
            f"limits: {limits}",
            f"built in {total:.2f} s ({stages})",
        ]
        return "\n".join([*lines, *self.notes])


class _Stages:
    """Seconds by stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        say(Level.TIMINGS, "build", f"{name} {self.seconds[name]:.3f} s")


def build(request: BuildRequest, progress: Progress | None = None) -> BuildReport:
    """Build an engine; nothing is written unless all of it succeeds.

    A checkpoint that was split for several ranks is joined again: on one CPU machine, one rank
    with all threads is what several would be. Raises: BuildError and its family.
    """
    stages = _Stages()
    with stages.time("draw"):
        checkpoint = Checkpoint.open(request.checkpoint_dir)
        resolved = resolve_build(request, checkpoint.config)
        isa = isa_for(choose_target(request.target))
        graph = _draw(checkpoint, resolved)
    with stages.time("tune" if request.is_tuned else "tactics"):
        tactics = _choose_tactics(request, graph, isa, progress)
    with EngineWriter(request.output_dir) as writer:
        sink = _PackingSink(writer, graph, progress)
        with stages.time("emit"):
            kernels = emit_for_cpu(graph, resolved.config, isa, tactics.tables)
        # It does not hold the interpreter, and cannot be told to end: who stops leaves it behind.
        compiler = ThreadPoolExecutor(1)
        compiling = compiler.submit(compile_module, kernels.module, isa)
        compiler.shutdown(wait=False)
        with stages.time("pack"):
            plan = lower_for_cpu(graph, resolved.config, kernels, sink)
        with stages.time("compile"):
            code = compiling.result()
        with stages.time("write"):
            manifest = _manifest(checkpoint, resolved, graph, plan, code, isa)
            manifest = replace(manifest, tactics=tactics.records)
            config: dict[str, object] = {
                "version": __version__,
                "pretrained_config": replace(checkpoint.config, mapping=Mapping()).to_json(),
                "build_config": {**_settings(resolved), "kv_cache_type": "PAGED"},
            }
            engine_dir = writer.finish(manifest, code.data, config, checkpoint.tokenizer_files())
    return BuildReport(
        engine_dir=engine_dir,
        target=isa.target.name,
        weights_bytes=sink.done_bytes,
        code_bytes=len(code.data),
        build_config=_settings(resolved),
        chosen_by=resolved.chosen_by,
        stage_seconds=stages.seconds,
        notes=(*resolved.notes, *_join_note(checkpoint)),
    )


def _join_note(checkpoint: Checkpoint) -> tuple[str, ...]:
    mapping = checkpoint.config.mapping
    if mapping.world_size == 1:
        return ()
    return (
        f"the checkpoint's {mapping.world_size} ranks (tp {mapping.tp_size}, pp "
        f"{mapping.pp_size}) were joined into one engine: on one machine's CPU, threads share the "
        "work",
    )


def _draw(checkpoint: Checkpoint, resolved: ResolvedBuild) -> Graph:
    config = checkpoint.config
    model = find_architecture(config.architecture, "config.json of the checkpoint")
    graph = model.draw(config, checkpoint, resolved.config.max_seq_len)
    return run_cpu_pipeline(graph, resolved.quantization, _show_pass)


def _choose_tactics(
    request: BuildRequest, graph: Graph, isa: Isa, progress: Progress | None
) -> ChosenTactics:
    """Measure where the user asks for it; code for another CPU cannot be timed on this one."""
    if not request.is_tuned:
        return shipped_tactics(graph, isa)
    if isa.target not in host_targets():
        raise ConfigError(
            "kernels for another CPU cannot be timed on this machine",
            where="--tune and --target of build",
            expected="one of " + ", ".join(target.name for target in host_targets()),
            got=isa.target.name,
            hint="build without --tune, or build on the machine that serves",
        )
    return measure_tactics(graph, isa, num_physical_cores(), progress)


def _show_pass(name: str, graph: Graph, is_changed: bool) -> None:
    if is_changed:
        say(Level.PLANS, "builder", f"after pass {name}:\n{print_graph(graph)}")
    else:
        say(Level.REWRITES, "builder", f"pass {name} changed nothing")


def _settings(resolved: ResolvedBuild) -> dict[str, int | str]:
    """What the engine was shaped by, limits and schemes, by flag."""
    schemes = resolved.quantization
    names = {
        "quant": schemes.layers.name,
        "quant_head": schemes.head.name,
        "kv_cache_dtype": schemes.cache_name,
    }
    return {**asdict(resolved.config), **names}


class _PackingSink:
    """Streams each packed tensor to the writer as lowering meets it."""

    def __init__(self, writer: EngineWriter, graph: Graph, progress: Progress | None) -> None:
        self._writer, self._progress = writer, progress
        self._total = sum(NO_TOKENS.bytes(c.value.type) for c in graph.constants)
        self.done_bytes = 0

    def __call__(self, name: str, pack: Callable[[], npt.NDArray[Any]]) -> int:
        packed = pack()
        offset = self._writer.add_weight(name, packed)
        self.done_bytes += packed.nbytes
        if self._progress:
            self._progress(name, min(self.done_bytes, self._total), self._total)
        return offset


def _manifest(
    checkpoint: Checkpoint,
    resolved: ResolvedBuild,
    graph: Graph,
    plan: CpuPlan,
    code: CodeImage,
    isa: Isa,
) -> Manifest:
    own = checkpoint.config.tidemill or {}
    return Manifest(
        tidemill_version=__version__,
        format_version=0,
        model_name=checkpoint.config.architecture,
        rank=0,
        world_size=1,
        graph_text=print_graph(graph),
        plan=plan.plan,
        buffers=plan.buffers,
        inputs=plan.inputs,
        arena_bytes=plan.arena_bytes,
        scratch_bytes_per_thread=plan.scratch_bytes_per_thread,
        shared_scratch_bytes=plan.shared_scratch_bytes,
        kv=plan.kv,
        code=CodeSection(
            isa.target.name,
            tuple(sorted(isa.target.required)),
            code.entry_offsets,
            compiler_version(),
        ),
        sections={},
        source_checkpoint=str(checkpoint.directory),
        source_hash=str(own.get("content_hash", "")),
        chosen_by=resolved.chosen_by,
    )
