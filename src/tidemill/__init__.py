"""Tidemill: the TensorRT-LLM + Triton workflow, kept alive and made portable.

`import tidemill` is cheap: the rooms are imported when they are first used.
"""

from importlib import import_module

from tidemill.base.version import __version__

TYPE_CHECKING = False  # typing's, unread: a server's user may have a typing.py where it is started
if TYPE_CHECKING:
    from tidemill.api.llm import (
        LLM,
        CapacitySchedulerPolicy,
        ContextChunkingPolicy,
        GuidedDecodingParams,
        KvCacheConfig,
        KvCacheRetention,
        NGramDecodingConfig,
        SamplingParams,
        SchedulerConfig,
        TokenRangeRetention,
        TokensPrompt,
    )

__all__ = [
    "LLM",
    "CapacitySchedulerPolicy",
    "ContextChunkingPolicy",
    "GuidedDecodingParams",
    "KvCacheConfig",
    "KvCacheRetention",
    "NGramDecodingConfig",
    "SamplingParams",
    "SchedulerConfig",
    "TokenRangeRetention",
    "TokensPrompt",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("tidemill.api.llm"), name)
    raise AttributeError(f"module 'tidemill' has no attribute {name!r}")
