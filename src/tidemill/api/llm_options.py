"""The keyword options of `LLM(model, ...)`, checked by name before anything is loaded.

Some shape the engine, where one is built; some say how it is run. Nothing here does either.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tidemill.api.engine_cache import EngineCache, EngineOptions
from tidemill.api.runtime_options import KvCacheConfig, NGramDecodingConfig, SchedulerConfig
from tidemill.base.errors import ConfigError, UnsupportedError
from tidemill.host.config import SessionConfig
from tidemill.runtime.config import DEFAULT_CONFIG, ChunkingPolicy, RuntimeConfig


@dataclass(frozen=True)
class LlmOptions:
    """How an engine is built, if it has to be, and how it is run. Units: tokens, requests.

    `tokenizer` is a directory whose tokenizer replaces the engine's own, `cache_dir` where built
    engines are kept, at most `max_cache_bytes` of them; `kv_cache_tokens` is the size of the cache,
    None a modest one; `pin_threads` keeps each thread on a core of its own; `max_queue_size` 0 is
    no limit, nor is `max_step_ms` 0. `event_buffer_max_size` is how many events of requests' lives
    are kept.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    tokenizer: Path | str | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    cache_dir: Path | str | None = None
    max_cache_bytes: int | None = None
    kv_cache_tokens: int | None = None
    num_threads: int | None = None
    pin_threads: bool | None = None
    max_queue_size: int = DEFAULT_CONFIG.max_queue_size
    max_step_ms: float = DEFAULT_CONFIG.max_step_ms
    kv_cache_config: KvCacheConfig | None = None
    scheduler_config: SchedulerConfig | None = None
    speculative_config: NGramDecodingConfig | None = None
    enable_chunked_prefill: bool = True
    iter_stats_max_iterations: int = DEFAULT_CONFIG.iter_stats_max_iterations
    event_buffer_max_size: int = DEFAULT_CONFIG.event_buffer_max_size

    @classmethod
    def from_keywords(cls, keywords: dict[str, Any]) -> LlmOptions:
        """Take a caller's keywords; those that shape the engine are the fields of `EngineOptions`.

        Raises: ConfigError for names that are no options, UnsupportedError for several ranks.
        """
        shaping = [each.name for each in fields(EngineOptions)]
        names = [*shaping, *(each.name for each in fields(cls) if each.name != "engine")]
        unknown = [name for name in keywords if name not in names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, n=1)
            raise ConfigError(
                "LLM has no such option",
                where="LLM(model, ...)",
                expected="some of " + ", ".join(names),
                got=", ".join(unknown),
                hint=f"did you mean {near[0]}?" if near else "docs/PYTHON_API.md lists them",
            )
        engine = EngineOptions(**{name: keywords[name] for name in shaping if name in keywords})
        others = {name: value for name, value in keywords.items() if name not in shaping}
        options = cls(engine, **others)
        if (options.tensor_parallel_size, options.pipeline_parallel_size) != (1, 1):
            raise UnsupportedError(
                "an engine of several ranks cannot be run yet",
                where="LLM(model, ...)",
                expected="tensor_parallel_size=1, pipeline_parallel_size=1",
                got=f"{options.tensor_parallel_size}, {options.pipeline_parallel_size}",
                hint="leave them out: on one machine's CPU, threads share the work",
            )
        return options

    @property
    def cache(self) -> EngineCache:
        """Where what is built is kept."""
        return EngineCache.of_user(self.cache_dir, self.max_cache_bytes)

    @property
    def session(self) -> SessionConfig:
        """The options that say how it is run. Raises: ConfigError for values out of bounds."""
        cache = self.kv_cache_config or KvCacheConfig()
        scheduler = self.scheduler_config or SchedulerConfig()
        guesses = self.speculative_config or NGramDecodingConfig(0)
        tokens = cache.max_tokens if self.kv_cache_tokens is None else self.kv_cache_tokens
        chunking = scheduler.context_chunking_policy or DEFAULT_CONFIG.chunking
        return SessionConfig(
            kv_cache_tokens=tokens,
            kv_cache_fraction=cache.free_gpu_memory_fraction,
            num_threads=self.num_threads,
            pin_threads=self.pin_threads,
            kv_cache_host_memory_bytes=cache.host_cache_size or 0,
            runtime=RuntimeConfig(
                policy=scheduler.capacity_scheduler_policy,
                chunking=chunking if self.enable_chunked_prefill else ChunkingPolicy.OFF,
                max_queue_size=self.max_queue_size,
                enable_block_reuse=cache.enable_block_reuse,
                enable_partial_reuse=cache.enable_partial_reuse,
                secondary_offload_min_priority=cache.secondary_offload_min_priority,
                max_draft_len=guesses.max_draft_len,
                max_matching_ngram_size=guesses.max_matching_ngram_size,
                iter_stats_max_iterations=self.iter_stats_max_iterations,
                event_buffer_max_size=self.event_buffer_max_size,
                max_step_ms=self.max_step_ms,
            ),
        )
