"""Attention windows by layer, as Hugging Face's and TensorRT-LLM's config.json tell them.

A window is the number of last positions that a token sees, its own included; None means all.
Hugging Face has one size and says which layers use it; TensorRT-LLM has a list in
runtime_defaults.max_attention_window, which is repeated over the layers. Faults are sentences,
collected by the callers.

Source: transformers' configs of Mistral and Ministral; TensorRT-LLM's RuntimeDefaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.checkpoint.field_reader import FieldReader

Windows = tuple[int | None, ...]

# What transformers takes where config.json does not say; null there means no window.
_DEFAULT_WINDOW = {"MistralForCausalLM": 4096}
_SLIDING, _FULL = "sliding_attention", "full_attention"


def windows_from_hf(reader: FieldReader, architecture: str, num_layers: int) -> Windows:
    """Read each layer's window; faults are added to the reader's."""
    values: Mapping[str, Any] = reader.values
    window = values.get("sliding_window", _DEFAULT_WINDOW.get(architecture))
    if window is None:
        return (None,) * num_layers
    size = reader.integer("sliding_window", 1, window)
    kinds = values.get("layer_types")
    if kinds is None:
        return (size,) * num_layers
    is_list = isinstance(kinds, list) and len(kinds) == num_layers
    if not is_list or not all(kind in (_SLIDING, _FULL) for kind in kinds):
        reader.faults.append(
            f"layer_types is {kinds!r}, expected {num_layers} of {_SLIDING} and {_FULL}"
        )
        return (None,) * num_layers
    return tuple(size if kind == _SLIDING else None for kind in kinds)


def runtime_defaults_of(windows: Windows, max_positions: int) -> dict[str, Any] | None:
    """Write windows as TensorRT-LLM does: layers that see all have the model's length."""
    sizes = [min(window or max_positions, max_positions) for window in windows]
    if all(size == max_positions for size in sizes):
        return None
    return {"max_attention_window": sizes[:1] if len(set(sizes)) == 1 else sizes}


def windows_of(runtime_defaults: Mapping[str, Any] | None, num_layers: int) -> Windows:
    """Read runtime_defaults that have no faults."""
    sizes: Sequence[int] = (runtime_defaults or {}).get("max_attention_window") or ()
    if not sizes:
        return (None,) * num_layers
    return tuple(sizes[index % len(sizes)] for index in range(num_layers))


def runtime_defaults_faults(runtime_defaults: Mapping[str, Any] | None) -> list[str]:
    """List what is wrong with runtime_defaults."""
    values, faults = runtime_defaults or {}, []
    sizes = values.get("max_attention_window")
    is_list = isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)
    if sizes is not None and not is_list:
        faults.append(
            f"runtime_defaults.max_attention_window is {sizes!r}, expected a list of numbers from 1"
        )
    if values.get("sink_token_length"):
        sinks = values["sink_token_length"]
        faults.append(f"runtime_defaults.sink_token_length is {sinks!r}, expected 0: no sinks here")
    return faults
