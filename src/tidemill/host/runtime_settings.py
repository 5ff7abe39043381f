"""Reads how an engine is run from text under TensorRT-LLM's parameter names, and tells it again.

In come strings, as parameters of config.pbtxt or flags give them; out comes a `RuntimeConfig` or a
whole `SessionConfig`. A name left out, or a value that NVIDIA's templates leave empty, means the
default. Knows no files.
"""

from __future__ import annotations

import contextlib
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
        kv_cache_tokens=_whole_number(parameters, CACHE_TOKENS, 1),
        num_threads=_whole_number(parameters, NUM_THREADS, 1),
        pin_threads=_one_of(parameters, PIN_THREADS, SWITCHES),
        kv_cache_fraction=_read(
            parameters, CACHE_FRACTION, float, "a number over 0, up to 1", lambda x: 0 < x <= 1
        ),
        kv_cache_host_memory_bytes=_whole_number(parameters, HOST_CACHE_BYTES, 0) or 0,
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


def _chunking(parameters: Mapping[str, str]) -> ChunkingPolicy | None:
    if _one_of(parameters, "enable_chunked_context", SWITCHES) is False:
        return ChunkingPolicy.OFF
    return _one_of(parameters, "context_chunking_policy", CHUNKINGS)


def _one_of(parameters: Mapping[str, str], name: str, words: Mapping[str, Value]) -> Value | None:
    return _read(parameters, name, lambda text: words[text.lower()], "one of " + ", ".join(words))


def _whole_number(parameters: Mapping[str, str], name: str, least: int) -> int | None:
    return _read(parameters, name, int, f"a whole number from {least} on", lambda x: x >= least)


def _read(
    parameters: Mapping[str, str],
    name: str,
    read: Callable[[str], Value],
    expected: str,
    accepts: Callable[[Value], bool] = lambda _: True,
) -> Value | None:
    """Read a value; None when it is left out.

    Raises: ConfigError naming a value that cannot be read, or is not accepted.
    """
    text = parameters.get(name, "").strip()
    if not text or text.startswith("${"):
        return None
    with contextlib.suppress(KeyError, ValueError):
        value = read(text)
        if accepts(value):
            return value
    raise ConfigError(
        "a setting of the runtime cannot be read",
        where=name,
        expected=expected,
        got=repr(text),
        hint="remove it to have the default",
    )
