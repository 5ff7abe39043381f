"""Rotary position scaling as written by different sources, brought to one dict.

In: a Hugging Face config (old `rope_scaling` or new `rope_parameters`), or a GGUF's keys and its
`rope_freqs.weight`. Out: (rotary base, scaling dict or None) as TensorRT-LLM's config holds them.
Does not compute rotary tables.
Source: transformers modeling_rope_utils; llama.cpp convert_hf_to_gguf.py (rope_freqs).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tidemill.base.errors import CheckpointError, UnsupportedError
from tidemill.checkpoint.file_bytes import Array

UNSCALED = "default"
_DEFAULT_BASE = 10000.0
_LEAST, _MOST = 1e-30, 1e30
# The scalings that there are, and the numbers that each of them needs.
KIND_TO_KEYS = {
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip
# What Llama 3.1 and later use beside the factor; GGUF does not store these.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_from_hf(config: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    """Read the rotary base and scaling of a Hugging Face config.

    Raises: UnsupportedError for scaling other than linear and llama3; CheckpointError listing the
    keys that such scaling lacks.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise _malformed("an object", repr(parameters), where)
    if any(isinstance(value, dict) for value in parameters.values()):
        raise _unsupported("different rotary parameters per layer type", where)
    scaling = dict(parameters)
    base = scaling.pop("rope_theta", None) or config.get("rope_theta") or _DEFAULT_BASE
    if not _is_positive_number(base):
        raise _malformed("rope_theta above 0", repr(base), where)
    kind = scaling_kind(scaling)
    if kind == UNSCALED:
        return float(base), None
    if kind not in KIND_TO_KEYS:
        raise _unsupported(kind, where)
    missing = missing_keys(scaling)
    if missing:
        raise CheckpointError(
            "rotary scaling is incomplete",
            where=where,
            expected=f"{kind} scaling with numbers above 0 for {', '.join(KIND_TO_KEYS[kind])}",
            got="none for " + ", ".join(missing),
            hint="fetch config.json of this model again",
        )
    return float(base), scaling


def scaling_kind(scaling: Mapping[str, Any]) -> str:
    """Return which kind a scaling says it is, under either name of that key."""
    return str(scaling.get("rope_type", scaling.get("type", UNSCALED)))


def missing_keys(scaling: Mapping[str, Any]) -> list[str]:
    """List what a scaling of a known kind has no usable number for."""
    keys = KIND_TO_KEYS[scaling_kind(scaling)]
    return [key for key in keys if not _is_positive_number(scaling.get(key))]


def _is_positive_number(value: object) -> bool:
    """Say whether a value is a number above 0 that float32 can be divided by."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and _LEAST <= value <= _MOST  # type: ignore[operator]


def _malformed(expected: str, got: str, where: str) -> CheckpointError:
    return CheckpointError(
        "rotary parameters are malformed",
        where=where,
        expected=expected,
        got=got,
        hint="fetch config.json of this model again",
    )


def rope_from_gguf(
    metadata: Mapping[str, Any], prefix: str, factors: Array | None, where: str
) -> tuple[float, dict[str, Any] | None]:
    """Read the rotary base and scaling of a GGUF file; `factors` is its rope_freqs.weight.

    Raises: UnsupportedError for other scaling, or factors that no llama3 setting explains.
    """
    base = metadata.get(f"{prefix}.rope.freq_base", _DEFAULT_BASE)
    kind = metadata.get(f"{prefix}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise _unsupported(str(kind), where)
    factor = metadata.get(f"{prefix}.rope.scaling.factor", 1.0)
    if not (_is_positive_number(base) and _is_positive_number(factor)):
        raise _malformed("rotary base and factor above 0", f"{base!r}, {factor!r}", where)
    if kind == "linear" and factor != 1.0:
        if factors is not None:
            raise _unsupported("linear scaling together with rope_freqs.weight", where)
        return base, {"rope_type": "linear", "factor": float(factor)}
    if factors is None:
        return base, None
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
    if not np.allclose(factors, _llama3_factors(scaling, base, len(factors)), rtol=1e-5):
        raise _unsupported("rope_freqs.weight of unknown origin", where)
    return base, scaling


def _llama3_factors(scaling: Mapping[str, Any], base: float, num_pairs: int) -> Array:
    """Compute how much llama3 scaling divides each rotary frequency."""
    context = scaling["original_max_position_embeddings"]
    low, high, factor = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    wavelengths = 2 * math.pi * base ** (np.arange(num_pairs, dtype=np.float64) / num_pairs)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    divisors: Array = 1 / ((1 - smooth) / factor + smooth)
    return divisors


def _unsupported(got: str, where: str) -> UnsupportedError:
    return UnsupportedError(
        "rotary scaling is not supported",
        where=where,
        expected="none, " + ", ".join(KIND_TO_KEYS),
        got=got,
        hint="use a model without it; up to the original context length it is often not needed: "
        "remove rope_scaling from config.json to try",
    )
