"""How an engine is run and a request served, in the names of TensorRT-LLM's LLM API.

`KvCacheConfig`, `SchedulerConfig` and `NGramDecodingConfig` are options of `LLM(model, ...)`;
`ServiceOptions` are the keywords of `generate` and `generate_async`. Values are checked by
`SessionConfig`, `RuntimeConfig` and at each request's door. docs/RUNTIME.md says what they do.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import structs

from tidemill.host.messages import GenerateRequest
from tidemill.runtime.config import DEFAULT_CONFIG, CapacityPolicy, ChunkingPolicy
from tidemill.runtime.kvcache.retention import KvCacheRetention

CapacitySchedulerPolicy = CapacityPolicy
ContextChunkingPolicy = ChunkingPolicy


@dataclass(frozen=True)
class KvCacheConfig:
    """The cache: its size, in tokens or as a share of the free memory, and what is reused.

    `host_cache_size` is in bytes; evicted blocks of priority `secondary_offload_min_priority` and
    over go there.
    """

    enable_block_reuse: bool = DEFAULT_CONFIG.enable_block_reuse
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = None
    enable_partial_reuse: bool = DEFAULT_CONFIG.enable_partial_reuse
    host_cache_size: int | None = None
    secondary_offload_min_priority: int = DEFAULT_CONFIG.secondary_offload_min_priority


@dataclass(frozen=True)
class SchedulerConfig:
    """Who may run together, and how prompts share a step; None leaves that to the runtime."""

    capacity_scheduler_policy: CapacityPolicy = DEFAULT_CONFIG.policy
    context_chunking_policy: ChunkingPolicy | None = None


@dataclass(frozen=True)
class NGramDecodingConfig:
    """Guesses by looking the latest tokens up in the request's own text. Units: tokens."""

    max_draft_len: int
    max_matching_ngram_size: int = DEFAULT_CONFIG.max_matching_ngram_size


@dataclass(frozen=True)
class ServiceOptions:
    """How a request is served. `use_tqdm` is there for callers that name it: no bar is drawn."""

    kv_cache_retention_config: KvCacheRetention | None = None
    cache_salt: str = ""
    priority: float = 0.5
    allotted_time_ms: float | None = None
    speculation: bool = True
    use_tqdm: bool = True

    def apply(self, request: GenerateRequest) -> GenerateRequest:
        """Return a request that is served so."""
        return structs.replace(
            request,
            retention=self.kv_cache_retention_config,
            cache_salt=self.cache_salt,
            priority=self.priority,
            allotted_time_ms=self.allotted_time_ms,
            speculation=self.speculation,
        )
