"""Makes an engine run on a CPU that it was not compiled for, as it is loaded.

In: an engine directory. Out: nothing, but code for this CPU in the user's cache, where the loader
finds it. Weights are packed alike for all CPU targets, so the graph in the engine file is lowered
again and must give the very same plan; only its kernels are compiled anew. The left wing and its
compiler are imported only when this is needed.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.base.cache_dir import cache_dir
from tidemill.base.debug import warn
from tidemill.base.errors import EngineTargetError, SessionError
from tidemill.base.target import Target, host_targets
from tidemill.engine.manifest import CodeSection
from tidemill.engine.native_code import (
    NativeCode,
    find_native_code,
    target_error,
    write_cached_code,
)
from tidemill.engine.reader import EngineFile

if TYPE_CHECKING:
    from tidemill.builder.cpu_plan import CpuPlan


# What the loader takes from the manifest, whatever code it runs.
_SAME = (
    "plan", "buffers", "inputs", "kv", "arena_bytes", "scratch_bytes_per_thread",
    "shared_scratch_bytes",
)  # fmt: skip


def ensure_native_code(engine_dir: Path | str) -> None:
    """Recompile an engine for this CPU if neither its code nor the cache's runs here.

    Takes a second or two when it does, and says so on stderr. Raises: EngineFormatError,
    EngineTargetError where there is no compiler or the weights are packed otherwise, SessionError
    when the cache cannot be written.
    """
    with EngineFile.open(engine_dir) as engine:
        try:
            find_native_code(engine)
        except EngineTargetError:
            targets = host_targets()
            if not targets or importlib.util.find_spec("llvmlite") is None:
                raise
            _recompile(engine, targets[0])


def _recompile(engine: EngineFile, target: Target) -> None:
    start = time.perf_counter()
    code = compile_for(engine, target)
    try:
        path = write_cached_code(engine, code)
    except OSError as error:
        raise SessionError(
            "code that was recompiled for this CPU cannot be kept",
            where=str(error.filename or cache_dir("code")),
            expected="a cache directory that this user can write",
            got=error.strerror or str(error),
            hint="name another one in XDG_CACHE_HOME",
        ) from error
    warn(
        "engine",
        f"{engine.path} was compiled for {engine.manifest.code.target}; recompiled for "
        f"{target.name} in {time.perf_counter() - start:.1f} s, kept as {path}",
    )


def compile_for(engine: EngineFile, target: Target) -> NativeCode:
    """Compile an engine's kernels for a target.

    Raises: EngineTargetError when that target's plan is not the engine's.
    """
    from tidemill.codegen.compile import compile_module, compiler_version
    from tidemill.codegen.isa import isa_for

    isa = isa_for(target)
    lowered = _lower_again(engine, target)
    if any(getattr(lowered, name) != getattr(engine.manifest, name) for name in _SAME):
        raise target_error(engine, "its plan is for that target, or by another version; build")
    linked = compile_module(lowered.module, isa)
    section = CodeSection(
        target.name, tuple(sorted(target.required)), linked.entry_offsets, compiler_version()
    )
    return NativeCode(section, linked.data)


def _lower_again(engine: EngineFile, target: Target) -> CpuPlan:
    from tidemill.builder.build_config import BuildConfig
    from tidemill.builder.cpu_plan import emit_for_cpu, lower_for_cpu
    from tidemill.codegen.isa import isa_for
    from tidemill.ir.text import parse_graph

    built = engine.config["build_config"]
    limits = {name: int(built[name]) for name in BuildConfig.__dataclass_fields__}
    name_to_offset = {weight.name: weight.offset_bytes for weight in engine.manifest.weights}

    def place_of(name: str, pack: Callable[[], Any]) -> int:
        return name_to_offset.get(name, -1)

    graph = parse_graph(engine.manifest.graph_text)
    config = BuildConfig(**limits)
    return lower_for_cpu(graph, config, emit_for_cpu(graph, config, isa_for(target)), place_of)
