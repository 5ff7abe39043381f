"""The native executor: fills a step's inputs, runs the plan's records, reads the drawn tokens.

In: a `StepPlan`. Out: a `StepResult`. Owns the engine's memory: mapped weights, the arena, the
paged cache and the team. Decides nothing: who advances and where blocks lie is the scheduler's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tidemill.base.cpus import num_physical_cores, physical_cpus
from tidemill.base.debug import Level, say
from tidemill.device.cpu import Array, LoadedCode, Team, address_of
from tidemill.engine.manifest import PlanOp
from tidemill.engine.native_code import find_native_code
from tidemill.engine.reader import EngineFile
from tidemill.runtime.executor.cache_blocks import CacheBlocks
from tidemill.runtime.executor.cache_size import (
    DEFAULT_CACHE_MEMORY,
    CacheMemory,
    choose_cache_tokens,
)
from tidemill.runtime.executor.observed_step import ObservedStep
from tidemill.runtime.executor.plan_records import PlanRecords
from tidemill.runtime.executor.step_inputs import StepInputs
from tidemill.runtime.executor.step_memory import StepMemory
from tidemill.runtime.executor.weights_memory import WeightsMemory
from tidemill.runtime.step import EngineLimits, StepPlan, StepResult

# What a step waits at most for memory that is arranged before it, while there is some to arrange.
ARRANGING_SECONDS = 0.02


class NativeExecutor:
    """One engine, loaded and ready to step. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        engine: EngineFile,
        kv_cache_tokens: int,
        num_threads: int,
        pin_threads: bool = False,
        host_cache_bytes: int = 0,
    ) -> None:
        manifest = engine.manifest
        self.engine, self.manifest = engine, manifest
        self.limits = _limits(engine, kv_cache_tokens, host_cache_bytes)
        ends = [weight.offset_bytes + weight.size_bytes for weight in manifest.weights]
        self._weights = WeightsMemory(engine.weights, ends, num_threads, engine.forget_weights)
        self._memory = StepMemory()
        self._arena = self._memory.reserve(manifest.arena_bytes)
        own_scratch_bytes = manifest.scratch_bytes_per_thread * num_threads
        self._scratch = self._memory.reserve(manifest.shared_scratch_bytes + own_scratch_bytes)
        self.cache = CacheBlocks(manifest.kv, self.limits, self._memory)
        self.inputs = StepInputs(manifest, self.limits)
        self._has_stepped = False
        native = find_native_code(engine)
        self.target = native.section.target  # of the code that runs
        code = LoadedCode(native.image, native.section.entry_offsets)
        cpus = physical_cpus() if pin_threads else ()
        space_to_address = {
            "arena": address_of(self._arena),
            "input": address_of(self.inputs.memory),
            "scratch": address_of(self._scratch),
            "kv": self.cache.address,
            "immediate": 0,
        }
        self._records = PlanRecords(
            manifest.plan, code, self._weights, space_to_address, self.cache.part_bytes
        )
        self.team = Team(code, self._records.table, num_threads, cpus)
        self._specs = {spec.name: spec for spec in manifest.buffers}
        # A view without NumPy: right after the native call, each cold line of code costs.
        self._next_tokens = self.buffer(manifest.plan[-1].output)[:, 0].data
        self._observed = ObservedStep(self.manifest, self.inputs, self.team, self.buffer)
        say(Level.DECISIONS, "runtime", self._describe(num_threads))

    @staticmethod
    def load(
        engine_dir: Path,
        *,
        kv_cache_tokens: int | None = None,
        cache_memory: CacheMemory = DEFAULT_CACHE_MEMORY,
        num_threads: int | None = None,
        pin_threads: bool = False,
        is_checked: bool = False,
    ) -> NativeExecutor:
        """Load an engine for this machine; `is_checked` checks the weights' hash, too.

        With `pin_threads` each thread stays on a core of its own, the one that steps on the first.
        Units: `kv_cache_tokens` is the size of the cache; None computes one within `cache_memory`.
        Raises: EngineFormatError, EngineTargetError.
        """
        engine = EngineFile.open(engine_dir, full_check=is_checked)
        tokens = kv_cache_tokens or choose_cache_tokens(engine, cache_memory.fraction)
        threads = num_threads or num_physical_cores()
        return NativeExecutor(engine, tokens, threads, pin_threads, cache_memory.host_bytes)

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""
        num_rows = self._prepare(plan)
        if self.inputs.watched:
            observations = self._observed.run(plan, num_rows)
            return StepResult(self._drawn(num_rows), (*self.inputs.failed, *observations))
        self.team.step()
        return StepResult(self._drawn(num_rows), (*self.inputs.failed,))

    def execute_traced(self, plan: StepPlan, observe: Callable[[PlanOp], None]) -> StepResult:
        """Run one step op by op; `observe` is called after each, while its output still lives."""
        num_rows = self._prepare(plan)
        for index, op in enumerate(self.manifest.plan):
            self.team.select(index, 1)
            self.team.step()
            observe(op)
        self.team.select(0, len(self.manifest.plan))
        return StepResult(self._drawn(num_rows))

    def buffer(self, name: str) -> Array:
        """View a buffer of the arena in storage type, padding included: (rows, row elements)."""
        spec = self._specs[name]
        raw = self._arena[spec.offset_bytes : spec.offset_bytes + spec.size_bytes]
        return raw.view(spec.dtype.storage_name).reshape(-1, spec.row_elements)

    def arrange_memory(self) -> bool:
        """Move memory to huge pages for some milliseconds; returns whether more can be moved now.

        What steps write is moved when the first of them has been run.
        """
        deadline = time.perf_counter() + ARRANGING_SECONDS
        if self._has_stepped and self._memory.move(deadline):
            return True
        is_more = self._weights.move(deadline)
        self._records.follow_weights()
        return is_more

    def close(self) -> None:
        """End the team and release the engine."""
        self.team.close()
        self.engine.close()

    def _drawn(self, num_rows: int) -> tuple[int, ...]:
        return (*self._next_tokens[:num_rows].tolist(),)

    def _prepare(self, plan: StepPlan) -> int:
        """Copy cache blocks, then fill the inputs; returns the number of rows that draw."""
        self._has_stepped = True
        self.cache.copy(plan.copies)
        return self.inputs.fill(plan)

    def _describe(self, num_threads: int) -> str:
        return (
            f"{num_threads} thread(s), {self.target}; "
            f"weights {self._weights.num_bytes / 1e6:.0f} MB, arena up to "
            f"{self._arena.nbytes / 1e6:.0f} MB, {self.cache}"
        )


def _limits(engine: EngineFile, kv_cache_tokens: int, host_cache_bytes: int) -> EngineLimits:
    built = engine.config["build_config"]
    block = engine.manifest.kv.tokens_per_block
    block_bytes = engine.manifest.kv.bytes_per_token * block
    return EngineLimits(
        max_batch_size=built["max_batch_size"],
        max_num_tokens=built["max_num_tokens"],
        max_seq_len=built["max_seq_len"],
        max_input_len=built["max_input_len"],
        tokens_per_block=block,
        num_blocks=-(-kv_cache_tokens // block),
        vocab_size=engine.config["pretrained_config"]["vocab_size"],
        num_host_blocks=host_cache_bytes // block_bytes,
        attention_window=engine.manifest.kv.attention_window,
    )
