"""Reads how an engine is run from text under TensorRT-LLM's parameter names, and tells it again.

In come strings, as parameters of config.pbtxt or flags give them; out comes a `RuntimeConfig` or a
whole `SessionConfig`. A name left out, or a value that NVIDIA's templates leave empty, means the
default. Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from tidemill.base.errors import ConfigError
from tidemill.host.config import SessionConfig
from tidemill.runtime.config import CapacityPolicy, ChunkingPolicy, RuntimeConfig

Value = TypeVar("Value")

SWITCHES = {"true": True, "1": True, "false": False, "0": False}
POLICIES = {policy.value: policy for policy in CapacityPolicy}
CHUNKINGS = {policy.value: policy for policy in ChunkingPolicy if policy is not ChunkingPolicy.OFF}
WHOLE_NUMBERS = (
    "max_queue_size",
    "max_draft_len",
    "max_matching_ngram_size",
    "secondary_offload_min_priority",
    "iter_stats_max_iterations",
    "event_buffer_max_size",
)
CACHE_TOKENS = "max_tokens_in_paged_kv_cache"
CACHE_FRACTION = "kv_cache_free_gpu_mem_fraction"
HOST_CACHE_BYTES = "kv_cache_host_memory_bytes"
NUM_THREADS, PIN_THREADS = "num_threads", "pin_threads"
NAMES = (
    "batch_scheduler_policy",
    "enable_chunked_context",
    "context_chunking_policy",
    "enable_kv_cache_reuse",
    "enable_partial_reuse",
    "max_step_ms",
    *WHOLE_NUMBERS,
)


def read_runtime_config(parameters: Mapping[str, str]) -> RuntimeConfig:
    """Return the config that the parameters ask for; others than `NAMES` are not looked at.

    Raises: ConfigError naming a value that cannot be read or is out of range.
    """
    chosen: dict[str, Any] = {
        "policy": _one_of(parameters, "batch_scheduler_policy", POLICIES),
        "chunking": _chunking(parameters),
        "enable_block_reuse": _one_of(parameters, "enable_kv_cache_reuse", SWITCHES),
        "enable_partial_reuse": _one_of(parameters, "enable_partial_reuse", SWITCHES),
        "max_step_ms": _read(parameters, "max_step_ms", float, "a number of milliseconds"),
        **{name: _read(parameters, name, int, "a whole number") for name in WHOLE_NUMBERS},
    }
    return RuntimeConfig(**{name: value for name, value in chosen.items() if value is not None})


def read_session_settings(parameters: Mapping[str, str]) -> SessionConfig:
    """Return the config of a session: its cache, its threads and its runtime.

    Raises: ConfigError naming a value that cannot be read or is out of range.
    """
    return SessionConfig(
        kv_cache_tokens=_positive(parameters, CACHE_TOKENS),
        num_threads=_positive(parameters, NUM_THREADS),
        pin_threads=_one_of(parameters, PIN_THREADS, SWITCHES),
        kv_cache_fraction=read_fraction(parameters, CACHE_FRACTION),
        kv_cache_host_memory_bytes=_count(parameters, HOST_CACHE_BYTES),
        runtime=read_runtime_config(parameters),
    )


def tell_settings(config: SessionConfig, chosen: Collection[str]) -> str:
    """Write every setting with its value, and whether the user chose it; `chosen` has names."""
    runtime = config.runtime
    is_chunked = runtime.chunking is not ChunkingPolicy.OFF
    values: dict[str, object] = {
        "batch_scheduler_policy": runtime.policy.value,
        "enable_chunked_context": is_chunked,
        "context_chunking_policy": runtime.chunking.value if is_chunked else None,
        "enable_kv_cache_reuse": runtime.enable_block_reuse,
        "enable_partial_reuse": runtime.enable_partial_reuse,
        CACHE_TOKENS: config.kv_cache_tokens,
        CACHE_FRACTION: config.kv_cache_fraction,
        NUM_THREADS: config.num_threads,
        PIN_THREADS: config.pin_threads,
        HOST_CACHE_BYTES: config.kv_cache_host_memory_bytes,
    }
    values |= {name: value for name, value in asdict(runtime).items() if name in NAMES}
    told = [
        f"{name} {str(value).lower()} ({'user' if name in chosen else 'default'})"
        for name, value in values.items()
        if value is not None
    ]
    return ", ".join(told)


def _count(parameters: Mapping[str, str], name: str) -> int:
    """Return a number from 0; 0 when it is left out."""
    number = _read(parameters, name, int, "a whole number from 0") or 0
    if number < 0:
        raise _unreadable(name, "a whole number from 0", repr(parameters[name]))
    return number


def read_fraction(parameters: Mapping[str, str], name: str) -> float | None:
    """Return a share over 0, up to 1; None when it is left out.

    Raises: ConfigError naming a value that is none.
    """
    fraction = _read(parameters, name, float, "a number over 0, up to 1")
    if fraction is not None and not 0 < fraction <= 1:
        raise _unreadable(name, "a number over 0, up to 1", repr(parameters[name]))
    return fraction


def _chunking(parameters: Mapping[str, str]) -> ChunkingPolicy | None:
    if _one_of(parameters, "enable_chunked_context", SWITCHES) is False:
        return ChunkingPolicy.OFF
    return _one_of(parameters, "context_chunking_policy", CHUNKINGS)


def _one_of(parameters: Mapping[str, str], name: str, words: Mapping[str, Value]) -> Value | None:
    return _read(parameters, name, lambda text: words[text.lower()], "one of " + ", ".join(words))


def _read(
    parameters: Mapping[str, str], name: str, read: Callable[[str], Value], expected: str
) -> Value | None:
    text = parameters.get(name, "").strip()
    if not text or text.startswith("${"):
        return None
    try:
        return read(text)
    except (KeyError, ValueError):
        raise _unreadable(name, expected, repr(text)) from None


def _positive(parameters: Mapping[str, str], name: str) -> int | None:
    number = _read(parameters, name, int, "a number from 1 on")
    if number is not None and number < 1:
        raise _unreadable(name, "a number from 1 on", repr(parameters[name]))
    return number


def _unreadable(name: str, expected: str, got: str) -> ConfigError:
    return ConfigError(
        "a setting of the runtime cannot be read",
        where=name,
        expected=expected,
        got=got,
        hint="remove it to have the default",
    )
