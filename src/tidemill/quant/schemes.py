"""The vocabulary of quantisation: which types a linear layer's weights and activations take.

A `Scheme` is named as in TensorRT-LLM's QuantAlgo (w8a16: int8 weights, 16-bit activations; fp8:
e4m3 weights); w12a16 keeps bf16 weights in 12 bits, without loss. Groups of 4 bits have offsets
unless the name ends in sym. A `Quantization` says which scheme the layers have, and which head and
embedding. Calibrated methods (AWQ, GPTQ, SmoothQuant) will be further rows here, with their offline
half beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.base.errors import ConfigError


@dataclass(frozen=True)
class Scheme:
    """`weight` None leaves weights as the checkpoint has them; so does `activation` None."""

    name: str
    weight: DType | None
    activation: DType | None

    @property
    def for_head(self) -> Scheme:
        """The scheme that a head takes beside these layers: 8 bits where they have 4."""
        if self.weight is None or not self.weight.group_size:
            return self
        return NAME_TO_SCHEME["w8a16" if self.activation is None else "w8a8"]


NONE = Scheme("none", None, None)
SCHEMES = (
    NONE,
    Scheme("w12a16", DType.BF12, None),
    Scheme("w8a16", DType.Q8, None),
    Scheme("w8a8", DType.Q8, DType.Q8),
    Scheme("fp8", DType.F8, None),
    Scheme("w4a16_g32", DType.Q4G32, None),
    Scheme("w4a16_g64", DType.Q4G64, None),
    Scheme("w4a16_g128", DType.Q4G128, None),
    Scheme("w4a8_g32", DType.Q4G32, DType.Q8),
    Scheme("w4a8_g64", DType.Q4G64, DType.Q8),
    Scheme("w4a8_g128", DType.Q4G128, DType.Q8),
    Scheme("w4a16_g32_sym", DType.Q4S32, None),
    Scheme("w4a16_g64_sym", DType.Q4S64, None),
    Scheme("w4a16_g128_sym", DType.Q4S128, None),
    Scheme("w4a8_g32_sym", DType.Q4S32, DType.Q8),
    Scheme("w4a8_g64_sym", DType.Q4S64, DType.Q8),
    Scheme("w4a8_g128_sym", DType.Q4S128, DType.Q8),
)
NAME_TO_SCHEME = {scheme.name: scheme for scheme in SCHEMES}
# By --kv_cache_dtype. Each head of a token has a scale of its own.
NAME_TO_CACHE: dict[str, DType | None] = {"none": None, "int8": DType.Q8, "fp8": DType.F8}


@dataclass(frozen=True)
class Quantization:
    """The schemes of one engine; `cache` None keeps keys and values as wide as the weights."""

    layers: Scheme = NONE
    head: Scheme = NONE
    cache: DType | None = None

    @property
    def cache_name(self) -> str:
        """The cache's type as --kv_cache_dtype names it."""
        return next(name for name, dtype in NAME_TO_CACHE.items() if dtype is self.cache)


NO_QUANTIZATION = Quantization()


def find_cache_dtype(name: str, where: str) -> DType | None:
    """Return the element type of keys and values; None where they are as wide as the weights.

    Raises: ConfigError naming the ones we know.
    """
    if name not in NAME_TO_CACHE:
        raise ConfigError(
            "unknown type of the key-value cache",
            where=where,
            expected="one of " + ", ".join(NAME_TO_CACHE),
            got=name,
            hint="int8 halves the cache's memory at next to no loss; none keeps the model's type",
        )
    return NAME_TO_CACHE[name]


def find_scheme(name: str, where: str) -> Scheme:
    """Return the scheme of a name.

    Raises: ConfigError naming the ones we know.
    """
    if name not in NAME_TO_SCHEME:
        raise ConfigError(
            "unknown quantisation scheme",
            where=where,
            expected="one of " + ", ".join(NAME_TO_SCHEME),
            got=name or "an empty text",
            hint="w8a8 is the fastest, w12a16 loses nothing, w8a16 is between them",
        )
    return NAME_TO_SCHEME[name]
